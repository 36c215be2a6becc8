"""Each command of the README and the guide, as it is written there, run where it can be.

What can't be run here (the whole demo, an install, servers that stay) is asked for its options: a command of the docs
that no way below knows fails the test, so that a new one is given a way on purpose.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from cluster.stage import Surroundings, run_step
from cluster.store.artifact import Artifacts
from tests.cluster.tiny_mlflow import sqlite_place
from tests.cluster.tiny_release import release_step
from tests.files import ROOT

pytestmark = pytest.mark.slow
DOCS = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
MODEL = "tokenmill-demo"  # as the docs have it
PLACEHOLDER = re.compile(r"[…\[\]]|\b[A-Z]{3,}\b(?!_)")


def commands() -> list[str]:
    """The commands in the docs' blocks of shell, without their comments; a line that goes on is one with the next."""
    found = []
    for doc in DOCS:
        for block in re.findall(r"^```sh\n(.*?)^```", doc.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+#.*", "", line).strip()
                found += [command] if command else []
    inline = r"`(make \S+ && \S+/python [^`]+)`"
    return [*found, *(c for doc in DOCS for c in re.findall(inline, doc.read_text(encoding="utf-8")))]


def pythons() -> list[str]:
    return [
        b for doc in DOCS for b in re.findall(r"^```python\n(.*?)^```", doc.read_text(encoding="utf-8"), re.M | re.S)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's folder in which the demo has been run: its recipes, and its model in the registry."""
    made = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        sqlite_place(made)
        run_step(release_step(name=MODEL), Artifacts(made / "store"), Surroundings())
    (made / "flows").symlink_to(ROOT / "flows")
    (made / "bin").mkdir()
    (made / "bin" / "tokenmill").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m flows "$@"\n', encoding="utf-8"
    )
    (made / "bin" / "tokenmill").chmod(0o755)
    return made


def shell(command: str, folder: Path) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_", "PREFECT_API"))}
    path = f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, executable="bash", cwd=folder, env={**kept, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@cache
def helped(program: str, folder: Path) -> str:
    return shell(f"{program} --help", folder)


def options_are_there(command: str, folder: Path) -> None:
    """The program takes the options that the command has: of a synopsis, or of what can't be started here."""
    for part in re.split(r", (?=tokenmill )", command):
        words = [w for w in shlex.split(re.sub(r"[\[\]…]", " ", part)) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        known = 3 if words[0] == "prefect" else 2
        program = " ".join(words[:known]) if words[0] in ("tokenmill", "prefect", "ray") else words[0]
        if words[:3] == ["ray", "job", "submit"]:
            program = "ray job submit"
        text = helped(program, folder)
        own = words[: words.index("--")] if "--" in words else words
        missing = [w for w in own if w.startswith("--") and w.partition("=")[0] not in text]
        assert not missing, (command, missing)


def follow(command: str, folder: Path) -> None:
    """Run it as it is written, or as near to that as can be here."""
    if command.startswith("make ") and "&&" in command:
        target, script = command.removeprefix("make ").split(" && ")
        shell(f"make -n -C {shlex.quote(str(ROOT))} {target}", folder)
        assert script.endswith("infra/s3/serve.py")  # which test_s3_server.py starts
    elif command.startswith("make "):
        shell(f"make -n -C {shlex.quote(str(ROOT))} {command.removeprefix('make ')}", folder)
    elif command.startswith("export PREFECT_API_URL="):
        shell(command, folder)
    elif command.startswith(("ray ", "prefect ", "RAY_ADDRESS=")):
        options_are_there(command, folder)
    elif command.startswith("python -m flows …"):
        shell("python -m flows --help", folder)
    elif command.startswith("tokenmill ") and PLACEHOLDER.search(command):
        options_are_there(command, folder)
    elif command.startswith("tokenmill run "):
        assert "would run" in shell(command if "--plan" in command else f"{command} --plan --until corpus", folder)
    elif command.startswith("tokenmill "):
        assert shell(command, folder)
    else:
        pytest.fail(f"Nobody runs this command of the docs: {command}")


@pytest.mark.parametrize("command", list(dict.fromkeys(commands())))
def test_a_command_of_the_docs_works_as_it_is_written(command: str, folder: Path) -> None:
    follow(command, folder)


@pytest.mark.parametrize("code", pythons())
def test_python_of_the_docs_works_as_it_is_written(code: str, folder: Path) -> None:
    (folder / "docs.py").write_text(code, encoding="utf-8")
    shell(f"{shlex.quote(sys.executable)} docs.py", folder)


def test_there_are_commands_and_one_that_nobody_knows_is_told() -> None:
    assert len(commands()) > 20 and len(pythons()) == 1
    with pytest.raises(pytest.fail.Exception, match="Nobody runs"):
        follow("tokenmil run demo", Path())
