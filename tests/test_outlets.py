"""Where text goes out, or a secret comes in, is one place for each: who goes another way is found here."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.files import ROOT

# A call -> the files that may make it. `x.y` is a method or function of any x where x is *.
OUTLETS = {
    # the terminal
    "print": (),
    "typer.echo": ("flows/terminal.py",),
    "typer.secho": (),
    "click.echo": (),
    "Console": (),  # Terminal is the only one
    "Text.from_markup": (),
    "Text.from_ansi": (),
    "sys.stdout.write": (),
    "sys.stderr.write": (),
    "traceback.print_exc": ("flows/cli/errors.py",),  # to the log file, which masks
    # logs
    "logging.basicConfig": ("flows/cli/run.py",),
    "logging.StreamHandler": (),
    "logging.FileHandler": (),
    # Prefect's pages
    "create_markdown_artifact": ("flows/prefect_page.py",),
    "create_table_artifact": ("flows/prefect_page.py",),
    "create_link_artifact": ("flows/prefect_page.py",),
    "create_image_artifact": ("flows/prefect_page.py",),
    "create_progress_artifact": ("flows/prefect_page.py",),
    # MLflow: dialled with what was put away
    "MlflowClient": ("cluster/tracking/place.py",),
    "SqlAlchemyStore": ("cluster/tracking/place.py",),
    "mlflow.set_tracking_uri": (),
    "mlflow.set_registry_uri": (),
    "taken_out": (
        "cluster/registry/find.py", "cluster/registry/rest_reader.py", "cluster/store/s3_client.py",
        "cluster/tracking/place.py", "cluster/tracking/tracker.py",
    ),
    "boto3.Session": ("cluster/store/s3_client.py",),
    "boto3.client": (),
    "tomllib.loads": ("flows/recipe_toml.py", "flows/prefect_server.py"),
}  # fmt: skip
# A variable that may hold a user and a password -> the files that read it.
VARIABLES = {
    "MLFLOW_TRACKING_URI": ("cluster/tracking/place.py", "flows/commands.py"),
    "MLFLOW_REGISTRY_URI": ("cluster/registry/versions.py", "cluster/tracking/place.py"),
    "RAY_ADDRESS": ("cluster/session.py", "flows/plan.py"),
    "PREFECT_API_URL": ("flows/prefect_server.py",),
    "AWS_ENDPOINT_URL": ("cluster/store/s3_client.py",),
    "AWS_ENDPOINT_URL_S3": ("cluster/store/s3_client.py",),
    "AWS_ACCESS_KEY_ID": ("cluster/store/s3_client.py",),
    "AWS_SECRET_ACCESS_KEY": (),
    "HTTP_PROXY": (),
    "HTTPS_PROXY": (),
    "HF_TOKEN": (),
}
FILES = [file for room in ("flows", "cluster", "model") for file in sorted((ROOT / room).rglob("*.py"))]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(`print`, `typer.echo`, `sys.stdout.write`, …) for each call."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            yield ast.unparse(call.func), call


def outlets(file: str, tree: ast.AST) -> Iterator[str]:
    """The calls that this file may not make."""
    for name, call in calls(tree):
        if file not in OUTLETS.get(name, (file,)):
            yield f"{file}:{call.lineno} {name}"
        if name.endswith("environ.get") or name in ("os.getenv", "getenv"):
            key = call.args[0].value if isinstance(call.args[0], ast.Constant) else None
            if file not in VARIABLES.get(str(key), (file,)):
                yield f"{file}:{call.lineno} reads {key}"
        if name == "TextColumn" and not any(k.arg == "markup" and not k.value.value for k in call.keywords):  # type: ignore[attr-defined]
            yield f"{file}:{call.lineno} TextColumn reads markup"


def streamed(tree: ast.AST) -> Iterator[int]:
    """Lines of writes to a console's own stream of what is neither a constant nor shown by cluster/outside.py."""
    for name, call in calls(tree):
        if name in ("out.write", "console.file.write"):
            (text,) = call.args
            by = ast.unparse(text.func) if isinstance(text, ast.Call) else ""
            if by not in ("generated", "plain") and not isinstance(text, ast.Constant):
                yield call.lineno


def test_text_goes_out_by_its_one_way() -> None:
    found = [
        where
        for file in FILES
        for where in outlets(file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_a_stream_is_given_what_may_be_shown() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in FILES
        if "flows/cli" in file.as_posix()
        for line in streamed(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "print('x')",
        "typer.echo(text)",
        "Console(file=screen)",
        "sys.stderr.write(text)",
        "Text.from_markup(name)",
        "TextColumn('{task.description}')",
        "create_markdown_artifact(page)",
        "MlflowClient(tracking_uri=uri)",
        "taken_out(uri)",
        "os.environ.get('MLFLOW_TRACKING_URI')",
        "tomllib.loads(text)",
    ],
)
def test_another_way_is_seen(code: str) -> None:
    assert list(outlets("flows/other.py", ast.parse(code)))


@pytest.mark.parametrize(
    ("code", "wrong"),
    [("out.write(piece)", True), ("out.write(f'{name}')", True), ("out.write('\\n')", False),
     ("out.write(generated(piece, out))", False), ("console.file.write(plain(text))", False)],
)  # fmt: skip
def test_such_writes_are_seen(code: str, wrong: bool) -> None:
    assert bool(list(streamed(ast.parse(code)))) is wrong
