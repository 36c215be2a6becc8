"""`tokenmill models`: what is registered, how it scored, where it came from."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.errors import quietly

if TYPE_CHECKING:
    from cluster.registry.versions import Registry, Version


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME[@ALIAS|/VERSION]]", help="One model, or one version of it.")
    ] = None,
) -> None:
    """List the registered models, a model's versions, or one version with its metrics and lineage."""
    with quietly() as console:
        from cluster.registry.versions import Registry

        registry = Registry()
        if name is None:
            all_models(registry, console)
        elif "@" in name or "/" in name:
            uri = name if name.startswith("models:/") else f"models:/{name}"
            one_version(registry.get(uri), console)
        else:
            versions_table(name, registry.versions(name), console)


def all_models(registry: Registry, console: Any) -> None:
    from flows.closing import plain_table, put

    table = plain_table(f"Registered models in {registry.place.uri}")
    for column in ("model", "versions", "aliases", "newest"):
        table.add_column(column)
    for model in registry.names():
        versions = registry.versions(model)
        aliases = [f"@{a}={v.version}" for v in versions for a in v.aliases]
        newest = when(versions[0]) if versions else ""
        table.add_row(model, str(len(versions)), " ".join(aliases), newest)
    put(table, console)
    if not table.row_count:
        from flows.commands import tokenmill

        words = f"No model is registered in {registry.place.uri} yet. This makes one:\n  {tokenmill('run', 'demo')}"
        console.print(words, soft_wrap=True)


def versions_table(name: str, versions: list[Version], console: Any) -> None:
    from cluster.evaluate.summary import at_most
    from flows.closing import plain_table, put

    known = {m for v in versions for m in v.metrics}
    metrics = [*sorted(known & {"bpb"}), *sorted(m for m in known if m.startswith("task/"))]
    table = plain_table(name)
    for column in ("version", "aliases", "gate", *metrics, "made", "reason"):
        table.add_column(column, overflow="fold")
    for v in versions:
        bound = {"bpb": at_most(v.metrics)}
        scores = [f"{bound.get(m, '')}{v.metrics[m]:.3f}" if m in v.metrics else "" for m in metrics]
        aliases = " ".join(f"@{a}" for a in v.aliases)
        table.add_row(str(v.version), aliases, v.gate, *scores, when(v), v.reason)
    put(table, console)


def one_version(v: Version, console: Any) -> None:
    from rich.text import Text

    from cluster.quantities import count
    from flows.closing import plain_table, put

    head = plain_table(f"{v.name} version {v.version}")
    head.add_column("")
    head.add_column("", overflow="fold")
    head.show_header = False
    rows = {
        "uri": v.uri,
        "aliases": " ".join(f"@{a}" for a in v.aliases),
        "gate": f"{v.gate}: {v.reason}" if v.gate else "",
        "made": when(v),
        "recipe": v.recipe,
        "base": v.base,
        "parameters": count(v.parameters) if v.parameters else "",
        "MLflow run": v.run_id,
    }
    for key, value in rows.items():
        if value:
            head.add_row(key, Text(value))
    put(head, console)
    for title, values in (("Metrics", v.metrics), ("Lineage, inputs first", v.lineage)):
        if values:
            table = plain_table(title)
            table.show_header = False
            table.add_column("")
            table.add_column("")
            for key, value in values.items():
                table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
            put(table, console)


def when(v: Version) -> str:
    return datetime.fromtimestamp(v.created / 1000).strftime("%Y-%m-%d %H:%M") if v.created else ""
