"""The command line: one file for each group of commands, thin: parse, call, show.

Only typer and rich are imported here; what a command needs it imports when it runs, so `--help` is quick.
"""

from __future__ import annotations

import typer

from flows.cli import chat, generate, interop, models, run

app = typer.Typer(
    help="From raw text to an aligned, evaluated, registered language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("models")(models.models)
app.command("import")(interop.import_)
app.command("export")(interop.export)
