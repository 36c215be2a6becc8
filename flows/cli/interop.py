"""`tokenmill import DIR` and `tokenmill export MODEL DIR`: Hugging Face folders, and GGUF files, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import UserError, named_by_a_person
from flows.cli.errors import quietly
from flows.cli.generate import MODEL

if TYPE_CHECKING:
    from model.interop.convert import Converted

TEMPLATES = ("its own", "tokenmill's", "none")
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model's folder, or a .gguf file.")],
    name: Annotated[str | None, typer.Option(help="Register it as a new version of models:/NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep it in this folder, which `generate` takes.")] = None,
) -> None:
    """Import a Hugging Face folder: config.json, safetensors and the tokenizer."""
    import tempfile

    with quietly() as console:
        if name is None and out is None:
            raise UserError("Where to? Give --out PATH for a folder, --name NAME for the registry, or both.")
        if name is not None:
            from cluster.tracking.place import locate

            check_name(name)
            locate()  # an address that can't be is said before the work
        from cluster.interop.huggingface import import_folder, register_folder

        with tempfile.TemporaryDirectory() as scratch:
            target = out or Path(scratch) / "model"
            with named_by_a_person(folder):
                done, tokenizer = import_folder(folder, target)
            uri = register_folder(target, name, done, folder.absolute()) if name is not None else None
            template = template_of(target) if tokenizer is not None else None
        chats = template in TEMPLATES[:2]
        told = {"chat template": template} if template is not None else {}
        show(f"Imported {folder}", done, {"tokenizer": tokenizer or "none in the folder", **told}, console)
        if tokenizer is not None:
            from cluster.tracking.place import locate
            from flows.commands import tokenmill

            place = locate() if uri else None
            model = uri or str(target.absolute())
            commands = [tokenmill("chat", model, place=place)] if chats else []
            commands.append(tokenmill("generate", model, "Once upon a time", place=place))
            console.print("\n  ".join(["Next:", *commands]), soft_wrap=True)


def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or a .gguf file.")],
    max_shard_size: Annotated[str, typer.Option(help="Of one file of weights, e.g. 500MB.")] = "5GB",
    architecture: Annotated[
        str | None, typer.Option(help="E.g. LlamaForCausalLM; default: the one that it came from, or that holds it.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of a .gguf file's matrices: f32, f16, q8_0, q5_0 or q4_0.")] = "f16",
) -> None:
    """Export a model as a folder that Hugging Face's Auto classes load, or as a GGUF file."""
    with quietly() as console:
        max_bytes = bytes_of(max_shard_size)
        from cluster.registry.find import model_folder

        if folder.suffix == ".gguf":
            from cluster.interop.gguf import export_gguf

            size = export_gguf(model_folder(model), folder, precision)
            console.print(f"Exported to {folder}: {size / 1e6:.1f} MB, {precision}")
            return
        from cluster.interop.huggingface import export_folder

        done = export_folder(model_folder(model), folder, architecture, max_bytes)
        show(f"Exported to {folder}", done, {"weights": f"{done.files} file{'s' * (done.files > 1)}"}, console)


def template_of(folder: Path) -> str:
    """A model's chat template: one of TEMPLATES, or why its own can't be used."""
    from cluster.data.tokenizer.chat import chats
    from cluster.data.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder)
    own, ours, none = TEMPLATES
    if tokenizer.template is None:
        return ours if chats(tokenizer) else none
    problem = tokenizer.template.problem()
    return own if problem is None else f"its own can't be used: {problem}"


def check_name(name: str) -> None:
    from cluster.registry.names import checked_name

    try:
        checked_name(name)
    except UserError as error:
        raise UserError(f"--name {name!r}: {error}") from None


def bytes_of(text: str) -> int:
    """A size such as 5GB or 500MB. Raises ValueError."""
    number, unit = text[:-2].strip(), text[-2:].upper()
    try:
        size = int(float(number) * UNITS[unit])
    except (KeyError, ValueError):
        size = 0
    if size < 1:
        raise UserError(f"--max-shard-size {text!r}: write a number and KB, MB or GB, e.g. 5GB.")
    return size


def show(title: str, done: Converted, more: dict[str, str], console: Any) -> None:
    from cluster.quantities import count
    from flows.closing import plain_table, put

    same = done.dtype == "float32"
    table = plain_table(title)
    table.show_header = False
    table.add_column("")
    table.add_column("", overflow="fold")
    rows = {
        "architecture": done.architecture,
        "parameters": count(done.parameters),
        "dtype": done.dtype if same else f"{done.dtype} in the file; computes in float32 here",
        "context": f"{done.config.max_seq_len:,} tokens",
        **more,
    }
    for key, text in rows.items():
        table.add_row(key, text)
    put(table, console)
