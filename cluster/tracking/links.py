"""A cached stage in MLflow: no run of its own, which would be empty, but a link to the run that made its artifact.

the line's run ─┬─ description         Cached: pack, [the run that made it](#/experiments/1/runs/ab…)
                └─ tokenmill.made_by.pack = ab…
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cluster.outside import in_markdown

if TYPE_CHECKING:
    from mlflow import MlflowClient

MADE_BY = "tokenmill.made_by."
NOTE = "mlflow.note.content"  # what MLflow shows as a run's description
FINGERPRINT = "tokenmill.fingerprint"
MAX_EXPERIMENTS = 1000


def maker(client: MlflowClient, experiment: str, fingerprint: str) -> list[str]:
    """[experiment, run] that made an artifact: in this experiment, else in another; [] if this MLflow has none."""
    condition = f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment], condition, max_results=1)
    if not found:
        others = [e.experiment_id for e in client.search_experiments(max_results=MAX_EXPERIMENTS)]
        found = client.search_runs(others, condition, max_results=1)
    return [found[0].info.experiment_id, found[0].info.run_id] if found else []


def tags_of(links: Mapping[str, list[str]]) -> dict[str, str]:
    """The line's tags, from step -> what `maker` found."""
    lines = []
    for step, found in links.items():
        where = f"[the run that made it](#/experiments/{found[0]}/runs/{found[1]})" if found else "made elsewhere"
        lines.append(f"- {in_markdown(step)}: {where}")
    made = {f"{MADE_BY}{step}": found[1] for step, found in links.items() if found}
    return {NOTE: "Cached, so without a run here:\n" + "\n".join(lines), **made}
