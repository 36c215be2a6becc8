"""A checkout of its own in which the docs' commands are run as they are written; for test_commands_of_docs.py.

    checkout/   this code, its Makefile and recipes (of `demo` the numbers are made small, unless all is to be real), a
                virtual environment that is installed already, and a test suite of two files
    home/       the user's, empty at first

Its processes have a network and process numbers of their own where the machine allows that (`unshare`): then the ports
that the docs name are free, and whatever a command starts ends with the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import psutil

from tests.files import ROOT

CODE = ("flows", "cluster", "model", "infra")
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "README.md", ".gitignore")
SUITE = ("tests/__init__.py", "tests/cluster/data/filters/test_normalise.py", "tests/model/test_presets.py")
SMALL: dict[str, Any] = {  # of the demo
    "tokenizer.vocab_size": 512, "model.d_model": 32, "model.n_layers": 1, "model.n_heads": 2, "model.n_kv_heads": 1,
    "model.max_seq_len": 160, "train.steps": 20, "train.batch_size": 1, "train.seq_len": 32, "train.lr": 5e-3,
    "train.optimizer": "adamw", "train.checkpoint_every": 1000, "tracking.system_metrics": False,
    "instruct.data": ["generated://arithmetic?n=60&digits=1", "generated://signatures?n=20"],
    "instruct.train.steps": 6, "instruct.train.batch_size": 4, "instruct.train.seq_len": 160,
    "rlhf.tasks": ["generated://arithmetic?n=20&digits=1&seed=7"],
    "rlhf.heldout": ["generated://arithmetic?n=4&digits=1&split=heldout"], "rlhf.group_size": 2,
    "rlhf.max_new_tokens": 4, "rlhf.train.steps": 1, "rlhf.train.batch_size": 2, "rlhf.train.seq_len": 160,
    "evaluate.validation_mb": 0.01, "evaluate.sample_tokens": 4, "cluster.workers": 0,
}  # fmt: skip
# A network with loopback, and an address that leads nowhere: Ray looks for one of this machine.
NETWORK = """\
ip link set lo up
ip link add d0 type dummy && ip addr add 10.111.0.1/24 dev d0 && ip link set d0 up && ip route add default dev d0
echo ready
cat  # until the tests end, however they do
"""
ASK = """\
import re, sys, time, urllib.request
url, wanted, data, seconds = sys.argv[1:]
deadline = time.monotonic() + float(seconds)
while True:
    try:
        asked = urllib.request.Request(url, data.encode() or None, {"Content-Type": "application/json"})
        answer = urllib.request.urlopen(asked, timeout=10).read().decode()
        if re.search(wanted, answer):
            sys.exit(print(answer))
    except OSError as error:
        answer = str(error)
    if time.monotonic() > deadline:
        sys.exit(f"{url}: {answer[:2000]}")
    time.sleep(0.3)
"""


class Sandbox:
    """See the top of this file; `close` ends all that was started in it."""

    def __init__(self, base: Path, small: bool = True) -> None:
        self.folder, home = base / "checkout", base / "home"
        home.mkdir()
        self._short = Path(tempfile.mkdtemp(prefix="tm"))  # a socket's name has to be short
        self._patience = 1 if small else 20
        make_checkout(self.folder)
        if small:
            shrink(self.folder / "flows" / "recipes" / "demo.toml")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_", "PREFECT_", "RAY_"))}
        path = f"{self.folder}/.venv/bin:{kept['PATH']}"
        self.environment = kept | {
            "PATH": path, "PYTHONPATH": str(self.folder), "HOME": str(home), "RAY_TMPDIR": str(self._short),
            "TOKENMILL_CACHE": str(base / "cache"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._started: list[Any] = []
        self._holder: Any = None
        self._into: list[str] = []
        self._begin()

    @property
    def isolated(self) -> bool:
        return bool(self._into)

    def _begin(self) -> None:
        own = ["unshare", "--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
        with contextlib.suppress(FileNotFoundError):
            self._holder = subprocess.Popen(
                [*own, "bash", "-c", NETWORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            )  # fmt: skip
            if self._holder.stdout.readline().strip() == "ready":
                inner = psutil.Process(self._holder.pid).children()[0].pid
                entered = ["nsenter", "--target", str(inner), "--net", "--pid", "--mount"]
                self._into = [*entered, "env", f"--chdir={self.folder}"]

    def shell(self, command: str, typed: str = "", timeout: float = 500, codes: tuple[int, ...] = (0,)) -> str:
        """Run a command to its end; what it says on stdout. AssertionError unless it ends with one of `codes`."""
        done = subprocess.run(
            [*self._into, "bash", "-c", command], cwd=self.folder, env=self.environment, input=typed,
            capture_output=True, text=True, timeout=timeout * self._patience, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode in codes, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, command: str, said: str, seconds: float = 90) -> str:
        """Start a command that stays; what it says until a line has `said` in it. AssertionError if none comes."""
        log = self.folder.parent / f"{len(list(self.folder.parent.glob('*.log')))}.log"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [*self._into, "bash", "-c", command], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        deadline = time.monotonic() + seconds
        while not re.search(said, text := log.read_text(encoding="utf-8", errors="replace")):
            assert process.poll() in (None, 0) and time.monotonic() < deadline, f"{command}\n{text}"
            time.sleep(0.1)
        return text

    def get(self, url: str, wanted: str = "", data: str = "", seconds: float = 120) -> str:
        """What a server in the sandbox answers, once it does with `wanted` (a pattern) in it; data: posted, as JSON."""
        words = [sys.executable, "-c", ASK, url, wanted, data, str(seconds * self._patience)]
        return self.shell(shlex.join(words))

    def free(self, port: int) -> bool:
        """Whether a command may take this port: always in a network of its own."""
        with socket.socket() as probe:
            return self.isolated or probe.connect_ex(("127.0.0.1", port)) != 0

    def close(self) -> None:
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
            process.kill()
            process.wait()
        if self._holder is not None:
            self._holder.kill()  # and with it, by --kill-child, the first process of the namespace, and so all of them
            self._holder.wait()
            self._holder.stdin.close()
            self._holder.stdout.close()
        shutil.rmtree(self._short, ignore_errors=True)


def make_checkout(folder: Path) -> None:
    """Copy the code, and link the virtual environments, marked as installed."""
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*FILES, *SUITE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for name in (*FILES, "infra/s3/install.sh", "infra/s3/requirements.txt"):
        os.utime(folder / name, (1, 1))  # older than what was installed by them
    for name, stamps in {".venv": (".installed", ".installed-dev"), ".venv-s3": (".installed",)}.items():
        (folder / name).mkdir()
        origin = Path(sys.prefix) if name == ".venv" else ROOT / name
        for entry in origin.iterdir() if origin.is_dir() else ():
            if entry.name not in stamps:
                (folder / name / entry.name).symlink_to(entry.absolute())
        for stamp in stamps:
            text = (ROOT / name / stamp).read_text(encoding="utf-8") if (ROOT / name / stamp).is_file() else ""
            (folder / name / stamp).write_text(text, encoding="utf-8")


def shrink(recipe: Path) -> None:
    """The demo as it is, with small numbers."""
    values = tomllib.loads(recipe.read_text(encoding="utf-8"))
    for key, value in SMALL.items():
        *tables, last = key.split(".")
        here = values
        for table in tables:
            here = here.setdefault(table, {})
        here[last] = value
    for source in values["sources"]:
        source["path"] = source["path"].partition("?")[0] + "?packages=stdlib&max_mb=0.3"
    for task in values["evaluate"]["tasks"]:
        task["data"] = re.sub(r"n=\d+", "n=4", task["data"])
        task |= {"max_new_tokens": 4} if "max_new_tokens" in task else {}
    recipe.write_text("\n".join(f"{k} = {toml(v)}" for k, v in values.items()) + "\n", encoding="utf-8")


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)
