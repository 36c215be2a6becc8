"""The command as a person uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import UserError
from cluster.serve.context import Outgrown
from flows.cli import app
from model.generate.decoding import CHAT, TEXT, Decoding
from tests.cluster.their_chat_model import make_chat_model

ROOT = Path(__file__).parents[2]
COMMANDS = ("run", "generate", "chat", "models", "import", "export")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a recipe and its text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path.parent / "cache"))
    lines = [json.dumps({"text": f"document number {i} has some words"}) for i in range(20)]
    (tmp_path / "web.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[[sources]]\nname = "web"\npath = "web.jsonl"\n[tokenizer]\nvocab_size = 400\n'
        "[model]\nd_model = 32\nmax_seq_len = 64\n[train]\nsteps = 10\nseq_len = 64\nbatch_size = 4\n[release]\n",
        encoding="utf-8",
    )
    return tmp_path


def call(*words: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, list(words), input=stdin, catch_exceptions=False)


def shell(*words: str, cwd: Path | None = None) -> Any:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120, encoding="utf-8")


# --- help ------------------------------------------------------------------------------------------------------


def test_help_is_quick_since_it_imports_no_heavy_library() -> None:
    code = (
        "import sys, flows.__main__; "
        "print([m for m in ('torch', 'ray', 'mlflow', 'prefect', 'numpy', 'pydantic', 'boto3') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, env=env, check=True, encoding="utf-8")
    assert out.stdout.strip() == "[]"


def test_help_names_every_command_and_each_command_its_options() -> None:
    assert all(name in call("--help").output for name in COMMANDS)
    assert all(word in call("run", "--help").output for word in ("recipe", "--set", "--until", "--plan", "--store"))
    assert all(
        word in call("generate", "--help").output for word in ("models:/NAME", "complete", "--max-tokens", "--seed")
    )
    assert "/exit" in call("chat", "--help").output
    assert "NAME" in call("models", "--help").output


def test_without_a_command_the_help_is_shown_and_it_offers_nothing_that_changes_a_shell() -> None:
    shown = call().output
    assert all(name in shown for name in COMMANDS) and "completion" not in shown


def test_a_bug_has_python_s_own_traceback(tmp_path: Path) -> None:
    """Rich's would show the values of variables, a password too, and break lines within it."""
    code = (
        "from flows import streams\nfrom flows.cli import app\nstreams.prepare()\n"
        "@app.command('bug')\ndef bug():\n    raise RuntimeError('it broke')\n"
        "app(['bug'])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, encoding="utf-8").stderr
    assert told.startswith("Traceback (most recent call last):\n") and told.endswith("RuntimeError: it broke\n")


def test_the_module_is_the_command() -> None:
    shown = shell("--help")
    assert shown.returncode == 0 and "tokenmill" in shown.stdout


# --- run: what is wrong is shown before anything starts --------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("mine.toml", "--set", "train.lrr=3"), "Did you mean lr?"),
        (("mine.toml", "--until", "packs"), "Did you mean pack?"),
        (("mien.toml",), "Did you mean mine.toml?"),
        (("mine.toml", "--set", "sources.web.path=gone.jsonl"), "gone.jsonl"),
        (("mine.toml", "--set", "tracking.uri=./runs"), "MLflow no longer keeps runs in plain files"),
    ],
)
@pytest.mark.parametrize("plan", [True, False])
def test_a_wrong_request_ends_with_code_2_one_paragraph_and_nothing_made(
    folder: Path, words: tuple[str, ...], shown: str, plan: bool
) -> None:
    result = call("run", *words, *(["--plan"] if plan else []))
    text = " ".join(result.output.split())
    assert result.exit_code == 2, text
    assert shown in text and "Traceback" not in text
    assert not (folder / "store").exists() and not (folder / "mlflow.db").exists()


def test_plan_tells_what_would_run_and_its_cost_and_touches_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = call("run", "mine.toml", "--plan")
    assert result.exit_code == 0, result.output
    assert sorted(folder.rglob("*")) == before
    text = " ".join(result.output.split())
    assert "7 of 7 stages would run" in text and "never made in this store" in text
    for words in ("parameters", "vocabulary 400", "GFLOP/s", "memory per worker", "2,560", "About"):
        assert words in text, words


def test_store_is_an_option(folder: Path) -> None:
    from flows.cli.run import overrides_of

    assert overrides_of(["train.lr=1"], "s3://b/p") == ["train.lr=1", "store=s3://b/p"]
    assert overrides_of(None, None) == []


# --- run: with everything cached ---------------------------------------------------------------------------------


def test_with_everything_cached_neither_prefect_nor_ray_is_even_imported(folder: Path) -> None:
    script = folder / "cached.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from fakes import fake_run\n"
        "from flows.cli.run import ending\n"
        "from flows.quiet import quiet\n"
        "stages = {'corpus': lambda ws: {}, 'filter': lambda ws: {}}\n"
        "with quiet(Path('a.log')) as console:\n"
        "    run = fake_run(Path('store'), stages, console)\n"
        "    for step in run.steps:\n"
        "        run.execute(step.name)\n"
        "    run = fake_run(Path('store'), stages, console)\n"
        "    code = ending(run, console)\n"
        "    assert [r.cached for r in run.tracker.runs] == [False, True, True], run.tracker.runs\n"
        "print([m for m in ('prefect', 'ray', 'torch') if m in sys.modules])\n"
        "sys.exit(code)\n",
        encoding="utf-8",
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "PREFECT_HOME": str(folder / "none")}
    command = [sys.executable, str(script)]
    out = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, encoding="utf-8")
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == "[]"
    assert "= corpus" in out.stdout and "cached" in out.stdout and "Store:" in out.stdout


# --- run: endings -------------------------------------------------------------------------------------------------


def test_a_stage_that_fails_ends_with_its_words_the_log_and_how_to_go_on(
    make_run: Any, prefect_api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import walk
    from flows.cli.run import ending

    monkeypatch.setattr(walk, "RETRY_SECONDS", (0, 0))

    def fails(error: Exception) -> Any:
        def work(ws: Any) -> dict:
            raise error

        return work

    for error, code, words in (
        (UserError("vocab_size = 9 is too small"), 2, "Error: vocab_size = 9 is too small"),
        (ConnectionError("out of luck"), 1, "Error: ConnectionError: out of luck"),
        (KeyError("oh"), 1, "This is a bug in tokenmill"),
        (ValueError("not the user's"), 1, "This is a bug in tokenmill"),
    ):
        run = make_run({"corpus": lambda ws: {}, "train": fails(error)}, log=tmp_path / "the.log", source="mine.toml")
        with temporary_settings({PREFECT_API_URL: prefect_api}):
            assert ending(run, run.screen.console) == code
        run.screen.console.file.flush()
        text = (tmp_path / "screen.txt").read_text(encoding="utf-8")
        assert words in text and "Traceback" not in text
        assert ("the.log" in text) == ("run mine.toml" in text) == (code == 1)
        (tmp_path / "screen.txt").write_text("", encoding="utf-8")


@pytest.mark.parametrize(("aliases", "code"), [(("champion", "candidate"), 0), (("candidate",), 3)])
def test_a_script_can_require_the_champion_s_place(
    make_run: Any,
    prefect_api: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    aliases: tuple[str, ...],
    code: int,
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from cluster.registry import versions
    from flows.cli.run import ending

    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    found = version(aliases=aliases, reason="bpb is not better")
    monkeypatch.setattr(versions, "Registry", lambda place: SimpleNamespace(get=lambda uri: found))
    for required, expected in ((True, code), (False, 0)):
        run = make_run({"release": lambda ws: {"name": "mine", "version": 2}})
        with temporary_settings({PREFECT_API_URL: prefect_api}):
            assert ending(run, run.screen.console, required) == expected
    run.screen.console.file.flush()
    assert ("Not the champion: models:/mine/2. bpb" in (tmp_path / "screen.txt").read_text(encoding="utf-8")) == (
        code == 3
    )


@pytest.mark.parametrize("words", [["--until", "pack"], ["--set", "release=false"]])
@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_run_that_releases_nothing_can_t_require_a_champion(folder: Path, words: list[str], plan: list[str]) -> None:
    result = call("run", "mine.toml", "--require-champion", *words, *plan)
    assert result.exit_code == 2 and "releases nothing" in result.output and not (folder / "store").exists()


# --- generate, chat, models -----------------------------------------------------------------------------------------


class FakeGenerator:
    """Says what it was asked."""

    asked: list[Any]
    last = None

    def stream(self, prompt: Any, decoding: Decoding, **changes: Any) -> Any:
        self.asked.append((list(prompt) if isinstance(prompt, list) else prompt, replace(decoding, **changes)))
        if isinstance(prompt, list) and len(prompt) > 4:
            raise Outgrown("The conversation is longer than the context of 64 tokens.")
        if prompt == [{"role": "user", "content": "break"}]:
            raise UserError("The model gives no probabilities.")
        yield " one"
        yield " two"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    from cluster.serve.generator import Generator

    fake = FakeGenerator()
    fake.asked = []
    monkeypatch.setattr(Generator, "load", classmethod(lambda cls, model: fake))
    return fake


def test_generate_writes_the_prompt_and_what_follows(generator: FakeGenerator) -> None:
    result = call("generate", "m", "Once", "--max-tokens", "5", "--temperature", "0", "--top-p", "0.5", "--seed", "3")
    assert (result.exit_code, result.output) == (0, "Once one two\n")
    assert generator.asked == [("Once", Decoding(max_new_tokens=5, temperature=0.0, top_p=0.5, seed=3))]
    assert call("generate", "m", "Once", "--steps", "4", "--stop", "a", "--stop", "b c").exit_code == 0
    assert generator.asked[-1] == ("Once", replace(TEXT, steps=4, stops=("a", "b c")))


def test_generate_says_what_it_took_and_as_json_says_nothing_else(tmp_path: Path) -> None:
    from tests.cluster.tiny_model import make_model

    words = ("generate", str(make_model(tmp_path / "model")), "The quick", "--max-tokens", "4", "--top-logprobs", "2")
    result = call(*words, "--json", "--decoding", "beam:n=2")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert len(said["tokens"]) == said["steps"] == 4 and len(said["others"]) == 1 and len(said["top_logprobs"]) == 4
    plain = call(*words, "--temperature", "0")
    assert plain.stdout.startswith("The quick") and "(4 tokens in 4 steps, " in plain.stderr
    assert plain.stderr.count(": ") == 4, "a line of likeliest tokens for each"
    wrong = call(*words, "--decoding", "beam:m=2")
    assert wrong.exit_code == 2 and "has no option 'm'" in " ".join(wrong.output.split())
    itself = ("--decoding", f"speculative:draft={words[1]},k=3", "--temperature", "0")  # each of its guesses is right
    said = json.loads(call(*words, "--json", *itself).stdout)
    assert said["drafted"] == said["accepted"] == 3 and said["steps"] == 2, "the prompt, then all at once"
    assert " steps, 3 of 3 guesses accepted, " in call(*words, *itself).stderr


def test_generate_reads_the_prompt_from_standard_input_where_it_is_a_dash(generator: FakeGenerator) -> None:
    assert call("generate", "m", "-", stdin="Then").output == "Then one two\n"
    assert call("generate", "m", "(a)", stdin="Then").output == "(a) one two\n"


def test_a_chat_with_a_model_that_can_t_answer_is_an_error(generator: FakeGenerator) -> None:
    result = call("chat", "m", stdin="break\nmore\n")
    assert result.exit_code == 2 and "Error: The model gives no probabilities." in result.output
    assert len(generator.asked) == 1


def test_chat_keeps_the_conversation_resets_and_ends(generator: FakeGenerator) -> None:
    typed = "hello\n\nagain\nmore\n/reset\nnew\n/nonsense\n/exit\n"
    result = call("chat", "m", "--system", "be brief", stdin=typed)
    assert result.exit_code == 0 and result.output.count("one two") == 3
    first, second, _too_long, third = (messages for messages, _ in generator.asked)
    system = {"role": "system", "content": "be brief"}
    assert first[0] == third[0] == system and len(second) == 4 and len(third) == 2
    assert "longer than the context" in result.output
    assert second[1:] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": " one two"},
        {"role": "user", "content": "again"},
    ]
    assert third[1:] == [{"role": "user", "content": "new"}]
    seeds = [decoding.seed for _, decoding in generator.asked]
    assert [decoding for _, decoding in generator.asked] == [replace(CHAT, seed=seed) for seed in seeds]
    assert len(set(seeds[:3])) == 3, "an answer that is asked for again is another"


def test_a_message_may_begin_with_a_slash(generator: FakeGenerator) -> None:
    result = call("chat", "m", stdin="//etc/hosts, what is it?\n///\n/etc\n")
    assert [messages[-1]["content"] for messages, _ in generator.asked] == ["/etc/hosts, what is it?", "//"]
    assert result.output.count("/help shows this") == 2  # at the start, and for "/etc"


def test_chat_ends_where_the_input_ends(generator: FakeGenerator) -> None:
    assert call("chat", "m", stdin="hello\n").exit_code == 0


@pytest.mark.parametrize("words", [("generate", "nowhere", "x"), ("chat", "./nowhere"), ("models", "nothing")])
def test_a_model_that_is_not_there_is_one_sentence_and_code_2(folder: Path, words: tuple[str, ...]) -> None:
    result = call(*words)
    assert result.exit_code == 2 and "Error:" in result.output and "Traceback" not in result.output
    assert not (folder / "mlflow.db").exists()


def version(**values: Any) -> Any:
    from cluster.registry.versions import Version

    base: dict[str, Any] = dict(  # noqa: C408
        name="mine", version=2, aliases=("candidate",), metrics={"bpb": 1.25, "task/sums": 0.5}, gate="failed",
        reason="bpb is not better [1.2]", fingerprint="ab", recipe="mine", lineage={"corpus": "corpus/12"},
        parameters=1234567, created=1_700_000_000_000, run_id="r1",
    )  # fmt: skip
    return Version(**(base | values))


def test_models_lists_models_versions_and_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.registry import versions as registry

    both = [version(), version(version=1, aliases=("champion",), gate="passed", reason="")]
    fake = SimpleNamespace(
        place=SimpleNamespace(uri="sqlite:///x.db"),
        names=lambda: ["mine"],
        versions=lambda name: both,
        get=lambda uri: both[0],
    )
    monkeypatch.setattr(registry, "Registry", lambda: fake)
    assert all(w in call("models").output for w in ("mine", "@candidate=2", "@champion=1", "sqlite:///x.db"))
    listed = call("models", "mine").output
    assert all(w in listed for w in ("@champion", "failed", "1.250", "bpb is not better [1.2]"))
    one = call("models", "mine@candidate").output
    assert all(w in one for w in ("models:/mine/2", "corpus/12", "1.23M", "task/sums", "bpb is not better"))


def test_an_unexpected_error_is_told_in_words_and_its_traceback_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.serve.generator import Generator

    def load(cls: Any, model: str) -> Any:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(Generator, "load", classmethod(load))
    begun = time.time()
    result = call("generate", "m", "x")
    assert result.exit_code == 1 and "RuntimeError: the disk is on fire" in result.output
    assert "This is a bug in tokenmill" in result.output
    log = Path(re.search(r"with (\S+\.log)", result.output.replace("\n", " "))[1])  # type: ignore[index]
    assert log.stat().st_mtime >= begun - 1 and "Traceback" in log.read_text(encoding="utf-8")
    log.unlink()


@pytest.mark.parametrize("fault", [OSError(30, "Read-only file system"), PermissionError(13, "Permission denied")])
def test_a_store_that_can_t_be_written_ends_the_run_before_it_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    store = folder / "elsewhere" / "store"
    mkdir = Path.mkdir

    def refused(path: Path, *args: Any, **kw: Any) -> None:
        if store in (path, *path.parents):
            raise type(fault)(fault.errno, fault.strerror, str(path))
        mkdir(path, *args, **kw)

    monkeypatch.setattr(Path, "mkdir", refused)
    result = call("run", "mine.toml", "--until", "corpus", "--store", str(store))
    assert result.exit_code == 2 and result.output.count("Error:") == 1
    assert f"{store}: {fault.strerror}" in result.output and "Traceback" not in result.output


def test_a_folder_that_may_not_be_written_is_the_person_s_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the store's logs should go: exit code 2 and a sentence, before anything starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").write_text("a file", encoding="utf-8")
    (tmp_path / "web.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    (tmp_path / "r.toml").write_text('name = "r"\n[[sources]]\nname = "web"\npath = "web.jsonl"\n', encoding="utf-8")
    result = call("run", "r.toml", "--until", "corpus")
    assert result.exit_code == 2 and "logs" in result.output and "exists" in result.output, result.output
    assert "Traceback" not in result.output and not (tmp_path / "store").exists()


# --- a store that is away --------------------------------------------------------------------------------------


@pytest.fixture
def dead_s3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of S3 at which nothing listens; it is asked once."""
    from cluster.store import s3_client

    monkeypatch.setattr(s3_client, "ROUNDS", 1)
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"key-of-{folder.name}")  # so that the client is a new one
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 20)
    return "s3://bucket/prefix"


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["run", "plan"])
@pytest.mark.parametrize("key", ["store", "sources.0.path"])
def test_a_store_that_is_away_is_one_sentence(key: str, plan: tuple[str, ...], dead_s3: str) -> None:
    result = call("run", "mine.toml", *plan, "--set", f"{key}={dead_s3}")
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert said.startswith("Error: StoreError: Can't ")
    assert "s3://bucket/prefix" in said
    assert "check AWS_ENDPOINT_URL, and that the server runs" in said
    assert "Traceback" not in said
    assert "bug" not in said


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "http://[::1", "http://"])
def test_an_address_of_s3_that_is_none_is_the_persons(address: str, dead_s3: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    result = call("run", "mine.toml", "--plan", "--store", dead_s3)
    assert result.exit_code == 2
    assert "AWS_ENDPOINT_URL" in result.output
    assert "http://host:port" in result.output


@pytest.mark.parametrize("words", [("generate", "models:/m/1", "hi"), ("export", "models:/m/1", "out"),
                                   ("import", "theirs", "--name", "imported")], ids=lambda words: words[0])  # fmt: skip
def test_the_s3_of_a_registry_that_is_away_is_one_sentence(
    words: tuple[str, ...], dead_s3: str, folder: Path, monkeypatch: Any
) -> None:
    from cluster.tracking.place import connect, locate

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = connect(locate().uri)
    client.create_experiment("imported", artifact_location=dead_s3)
    client.create_registered_model("m")
    client.create_model_version("m", f"{dead_s3}/1/models/m-1/artifacts")
    make_chat_model(folder / "theirs")
    result = call(*words)
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "does not answer" in said
    assert "Check AWS_ENDPOINT_URL, and that the server runs" in said
    assert "bug" not in said
    assert not (folder / "out").exists()
