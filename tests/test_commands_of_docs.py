"""Each command of the README and the guide, run as it is written there, in a checkout of its own (docs_sandbox.py).

Fenced and inline commands are run in the documents' order: servers that a text starts stay, what it exports is set from
there on. The demo's numbers are small. A synopsis is run with its options filled in. What takes long or can't be run
here is skipped with its reason; `EVERY_COMMAND=1 pytest tests/test_commands_of_docs.py` runs the long ones too, and the
demo in its real size. A command that no way below knows fails the test, so that a new one is given a way on purpose.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.tiny_model import make_model
from tests.docs_sandbox import Sandbox
from tests.files import ROOT

pytestmark = pytest.mark.slow
DOCS = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
EVERY = bool(os.environ.get("EVERY_COMMAND"))
DEMO = "tokenmill run flows/recipes/demo.toml"
SERVE = "make .venv-s3/.installed && .venv-s3/bin/python infra/s3/serve.py"
PROGRAMS = r"(?:tokenmill|make|pip|python|ray|prefect|mlflow|RAY_ADDRESS=\S+|run|--set|--store)"

# A synopsis -> commands that have each of its options. `ours` is a Llama of ours.
SYNOPSES = {
    "tokenmill run RECIPE [--set k=v]… [--until STAGE] [--plan] [--store URL] [--require-champion]": [
        f"{DEMO} --set seed=1 --set train.lr=5e-3 --until pack --plan",
        "run --store store --require-champion",
    ],
    "tokenmill generate MODEL PROMPT": ['tokenmill generate ours "The quick"'],
    "tokenmill chat MODEL": ["tokenmill chat ours"],
    "tokenmill models [NAME]": ["tokenmill models", "tokenmill models tokenmill-demo"],
    "tokenmill import DIR, tokenmill export MODEL DIR": [
        "tokenmill export models:/tokenmill-demo@champion theirs", "tokenmill import theirs --out again",
    ],
    "tokenmill import DIR --out PATH": ["tokenmill import theirs --out again"],
    "tokenmill import DIR --name NAME": ["tokenmill import theirs --name imported"],
    "tokenmill export MODEL DIR [--max-shard-size 5GB] [--architecture LlamaForCausalLM]": [
        "tokenmill export ours llama --max-shard-size 5GB --architecture LlamaForCausalLM",
    ],
    "tokenmill export MODEL FILE.gguf [--precision q4_0]": ["tokenmill export ours ours.gguf --precision q4_0"],
    "python -m flows …": ["python -m flows --help"],
    "tokenmill chat": ["tokenmill chat --help"],
}  # fmt: skip
# A command -> why it isn't run with the suite; in a real checkout, by EVERY_COMMAND=1.
LONG = {
    "make lint": "a minute, and run at each commit",
    "make bench-model": "minutes, and it installs other libraries from the network",
    "make bench-mup": "minutes",
    "make test-numeric": "minutes: tests/model five times",
    "make audit": "it asks a database on the network; test_audit.py has its answers",
    "make fuzz CASES=100000": "ten minutes; test_fuzz_names.py tries some hundred",
    "make kill-matrix": "hours",
    "tokenmill run rope": "minutes; test_every_recipe.py trains it, small",
}
# A command -> why nobody can run it here.
NEVER = {"pip install 'tokenmill[hf]'": "no package index has tokenmill; a test below holds that it has this extra"}


def commands() -> list[str]:
    """The commands of the docs, fenced and inline, in their order; a line that goes on is one with the next."""
    found: list[str] = []
    for doc in DOCS:
        for block, inline in re.findall(
            r"^```sh\n(.*?)^```|^```.*?^```|`([^`\n]+)`", doc.read_text(encoding="utf-8"), re.M | re.S
        ):
            if re.fullmatch(rf"make|run|tokenmill|{PROGRAMS} .*|\.venv-s3/.*", inline) and inline not in PROGRAMS:
                found.append(inline)
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+#.*", "", line).strip()
                found += [re.sub(r"\s+", " ", command)] if command else []
    return list(dict.fromkeys(found))


def pythons() -> list[str]:
    return [
        b for doc in DOCS for b in re.findall(r"^```python\n(.*?)^```", doc.read_text(encoding="utf-8"), re.M | re.S)
    ]


class Docs:
    """Who follows the docs: runs a command once, and before it what the text has had run by then."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._done: dict[str, str] = {}

    def follow(self, command: str) -> str:
        """What it says. AssertionError if it fails, or if nobody knows how to run it."""
        if command not in self._done:
            way = next((run for pattern, run in WAYS if re.fullmatch(pattern, command)), None)
            if way is None:
                pytest.fail(f"Nobody runs this command of the docs: {command}")
            self._done[command] = way(self, command)
        return self._done[command]

    def run(self, command: str) -> str:
        self.follow("make demo")
        said = self.sandbox.shell(command)
        assert said, command
        return said

    def chat(self, command: str) -> str:
        self.follow("make demo")
        said = self.sandbox.shell(command, typed="What is 2 + 3?\n/exit\n")
        assert "> " in said
        return said

    def plan(self, options: str) -> str:
        if "s3://" in options:
            self.follow(SERVE)
        return self.run(f"{DEMO} --plan {options}")

    def option(self, words: str) -> str:
        """An option of `run`, named in a sentence: `run --require-champion`, which may end with 3 by its meaning."""
        self.follow("make demo")
        return self.sandbox.shell(f"{DEMO} {words.removeprefix('run ')}", codes=(0, 3))

    def serve(self, command: str) -> str:
        """The S3 server stays; its variables are set from here on, and the bucket of the docs is made and filled."""
        self.follow("make demo")
        said = self.sandbox.start(command, r"# then: tokenmill run")
        self.sandbox.environment |= dict(re.findall(r"^export (\w+)=(.*)$", said, re.M))
        assert "AWS_ENDPOINT_URL" in self.sandbox.environment
        self.sandbox.shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(FILL)}")
        return said

    def start_ray(self, command: str) -> str:
        self._port(8265)
        self.follow(SERVE)  # a cluster's processes need the store's variables
        return self.sandbox.start(command, r"Ray runtime started")

    def submit(self, command: str) -> str:
        self.follow("ray start --head --dashboard-port 8265")
        said = self.sandbox.shell(command)
        assert "succeeded" in said and "Registered: tokenmill-demo version 1" in said
        return said

    def start_prefect(self, command: str) -> str:
        self._port(4200)
        said = self.sandbox.start(command, r"4200")
        self.sandbox.get("http://127.0.0.1:4200/api/health", "true")
        return said

    def export(self, command: str) -> str:
        self.follow("prefect server start")
        name, _, value = command.removeprefix("export ").partition("=")
        self.sandbox.environment[name] = value
        return self.sandbox.shell(command)

    def serve_flow(self, command: str) -> str:
        self.follow("export PREFECT_API_URL=http://127.0.0.1:4200/api")
        return self.sandbox.start(command, r"being served")

    def deployment(self, command: str) -> str:
        """The run that it starts goes through."""
        self.follow('prefect flow serve flows/line.py:tokenmill --name nightly --cron "0 3 * * *"')
        said = self.sandbox.shell(command)
        found = re.search(r"UUID: (\S+)", said)
        assert found, said
        state = self.sandbox.get(
            f"http://127.0.0.1:4200/api/flow_runs/{found[1]}", r'"state_type":"(COMPLETED|FAILED|CRASHED|CANCELLED)"'
        )
        assert '"state_type":"COMPLETED"' in state, state
        return said

    def ui(self, command: str) -> str:
        self._port(5000)
        self.follow("make demo")
        said = self.sandbox.start(command, r"Uvicorn running")
        url = "http://127.0.0.1:5000/api/2.0/mlflow/registered-models/search"
        self.sandbox.get(url, "tokenmill-demo")
        return said

    def synopsis(self, command: str) -> str:
        ours = self.sandbox.folder / "ours"
        if not ours.exists():
            make_model(ours)
        filled = SYNOPSES[command]
        options = set(re.findall(r"--[a-z-]+", command))
        assert options <= set(re.findall(r"--[a-z-]+", " ".join(filled))), "an option of it is not run"
        return "".join(map(self.follow, filled))

    def long(self, command: str) -> str:
        if not EVERY:
            if command.startswith("make "):
                self.sandbox.shell(f"make -n {command.removeprefix('make ')}")
            pytest.skip(f"{command}: {LONG[command]}")
        if command.startswith("make "):  # of the whole checkout
            done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout
        return self.run(command)

    def never(self, command: str) -> str:
        pytest.skip(f"{command}: {NEVER[command]}")

    def _port(self, port: int) -> None:
        if not self.sandbox.free(port):
            pytest.skip(f"port {port} of this machine, which the docs name, is taken, and `unshare` isn't allowed")


# In s3://bucket/prefix lies what the demo has made, as if it had been run there: the docs' job then finds it.
FILL = """\
from pathlib import Path
import boto3
client = boto3.client("s3")
client.create_bucket(Bucket="bucket")
files = sorted((p for p in Path("store").rglob("*") if p.is_file()), key=lambda p: p.name == "manifest.json")
for path in files:
    if path.parts[1] not in ("work", "release"):
        client.upload_file(str(path), "bucket", f"prefix/{path.relative_to('store').as_posix()}")
"""

WAYS: list[tuple[str, Callable[[Docs, str], str]]] = [
    ("|".join(map(re.escape, SYNOPSES)), Docs.synopsis),
    ("|".join(map(re.escape, LONG)), Docs.long),
    ("|".join(map(re.escape, NEVER)), Docs.never),
    (r"make demo", lambda docs, command: docs.sandbox.shell(command, timeout=600)),
    (r"make test", Docs.run),
    (re.escape(SERVE), Docs.serve),
    (r"ray start --head .*", Docs.start_ray),
    (r"RAY_ADDRESS=\S+ ray job submit .*", Docs.submit),
    (r"prefect server start", Docs.start_prefect),
    (r"export PREFECT_API_URL=.*", Docs.export),
    (r"prefect flow serve .*", Docs.serve_flow),
    (r"prefect deployment run .*", Docs.deployment),
    (r"mlflow ui", Docs.ui),
    (r"--(set|store) .*", Docs.plan),
    (r"run --.*", Docs.option),
    (r"tokenmill chat .*", Docs.chat),
    (r"tokenmill (run|generate|models|import|export) .*|tokenmill models|python -m flows --help", Docs.run),
]


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docs]:
    sandbox = Sandbox(tmp_path_factory.mktemp("docs"), small=not EVERY)
    yield Docs(sandbox)
    sandbox.close()


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_docs_works_as_it_is_written(command: str, docs: Docs) -> None:
    docs.follow(command)


@pytest.mark.parametrize("code", pythons())
def test_python_of_the_docs_works_as_it_is_written(code: str, docs: Docs) -> None:
    docs.follow("make demo")
    (docs.sandbox.folder / "docs.py").write_text(code, encoding="utf-8")
    docs.sandbox.shell("python docs.py")


def test_there_are_commands_and_one_that_nobody_knows_is_told(docs: Docs) -> None:
    assert len(commands()) > 30 and len(pythons()) == 1
    for command in ("tokenmil run demo", "ray stop", "docker run it"):
        with pytest.raises(pytest.fail.Exception, match="Nobody runs"):
            docs.follow(command)


def test_what_is_not_run_is_still_of_the_docs_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    told = {**LONG, **NEVER}
    assert set(told) | set(SYNOPSES) <= set(commands())
    with capsys.disabled():
        print("\nCommands of the docs that are not run here:", *(f"  {c}: {why}" for c, why in told.items()), sep="\n")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^hf = \[", text, re.M)
