"""The thread that shows a run to Prefect imports nothing: the work imports at the same time, and sees it half made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LINE = """
import sys, threading
from pathlib import Path

class Told:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread().name == "prefect-mirror":
            print("imported", name, file=sys.stderr)

sys.meta_path.insert(0, Told())
from slow_line import main
sys.exit(main(Path(sys.argv[1]), "shown"))
"""


@pytest.mark.slow
def test_the_mirror_s_thread_imports_nothing(tmp_path: Path, prefect_api: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    env = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "PREFECT_API_URL": prefect_api}
    done = subprocess.run(
        [sys.executable, "-c", LINE, str(store)], env=env, capture_output=True, text=True, timeout=120, encoding="utf-8"
    )
    log = (store / "line.log").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + log
    assert [line for line in (done.stderr + log).splitlines() if line.startswith("imported")] == []
