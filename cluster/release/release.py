"""Release: a new version in the MLflow registry, and the champion's place if it passes the gate.

    model, evaluations ─▶ MLflow model (code, safetensors, signature) ─▶ version N, @candidate
                                                           gate ─ passed ─▶ @champion, audit tags on both
                                                                └ failed ─▶ tag gate=failed, and the reason

A version is found again by its fingerprint's tag, so a release that is resumed or repeated registers nothing twice.
Two that come at the same time take turns (cluster/registry/promote.py), so each is judged against the champion that
it would replace.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.errors import Stopped, UserError
from cluster.identity import how
from cluster.outside import in_markdown
from cluster.registry.names import checked_name
from cluster.registry.promote import alone, champion_of, promote
from cluster.registry.versions import CANDIDATE, CHAMPION, TAG, Registry, Version
from cluster.release.gate import NOT_MEASURED, GateMetric, Requirement, Verdict, judge
from cluster.release.package import count_parameters, register
from cluster.release.summary import ReleaseSummary
from cluster.stage import Stage, Workspace
from cluster.store.artifact import Artifact
from cluster.tracking.patience import GivenUp, waited_for
from cluster.tracking.place import (
    Place,
    answering,
    checked_experiment,
    connect,
    experiment_id,
    import_quietly,
    locate,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

ASK_SECONDS = 15.0  # for whether a release is still there: a server that hangs says as little as one that is away
SILENT_SECONDS = 10.0  # after which the screen says what is waited for
_log = logging.getLogger(__name__)


class ReleaseConfig(BaseModel):
    """`[release]` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", description="the registered model; default: the recipe's name")
    metrics: tuple[GateMetric, ...] = Field((), description="compared with the champion's; see cluster/release/gate.py")
    require: tuple[Requirement, ...] = Field((), description="bounds that must hold, champion or not")
    tracking_uri: str | None = how(None, description="default: [tracking] uri")
    experiment: str | None = how(None, description="default: [tracking] experiment")

    @field_validator("experiment")
    @classmethod
    def _of_mlflow(cls, name: str | None) -> str | None:
        return checked_experiment(name) if name is not None else name

    @field_validator("name")
    @classmethod
    def _registered(cls, name: str) -> str:
        return checked_name(name) if name else name


def run_release(ws: Workspace) -> ReleaseSummary:
    """Register, judge, promote. Writes release.json; the summary is the same.

    Inputs: model; evaluation, whose summary the gate judges; base_evaluation, shown beside it.

    Raises:
        ConnectionError: MLflow doesn't answer; the stage can be tried again at any point.
        Stopped: Ctrl-C came, and MLflow had not done it all some seconds later.
    """
    config: ReleaseConfig = ws.config
    if not config.name:
        raise UserError("[release] needs a name for the registered model.")
    place = locate(ws.artifacts.store.url, config.tracking_uri)
    import_quietly()  # in the main thread: two that import what imports one another see it half made

    def work() -> ReleaseSummary:
        with answering(place.uri), alone(place, config.name, ws.stopping):
            return _release(ws, config, place)

    def waiting(seconds: float) -> None:
        if seconds > SILENT_SECONDS:
            ws.progress(0, 0, f"waiting for MLflow at {place.uri}")

    kept = "The model is kept in the store; the same command registers it"
    try:
        return waited_for(work, stopping=ws.stopping, waiting=waiting)
    except GivenUp as error:
        raise Stopped(f"MLflow at {place.uri} has not answered. {kept}.") from error
    except ConnectionError as error:
        raise ConnectionError(f"{error} {kept} once MLflow answers.") from error


def _release(ws: Workspace, config: ReleaseConfig, place: Place) -> ReleaseSummary:
    client = connect(place.uri)
    registry = Registry(place)
    metrics = _numbers(ws.inputs["evaluation"].summary)
    version = registry.find(config.name, ws.fingerprint)
    if version is None:
        ws.progress(0, 3, "registering")
        version = _register(ws, client, registry, metrics)
    ws.progress(1, 3, f"version {version.version}")
    why = ws.inputs["evaluation"].summary.get(NOT_MEASURED, {})
    verdict = _judge_and_promote(client, registry, version, config, metrics, why)
    ws.progress(2, 3, "passed" if verdict.passed else "failed")
    _describe(client, version, ws, metrics, verdict)
    final = registry.get(version.uri)
    result = ReleaseSummary(
        name=final.name,
        version=final.version,
        aliases=list(final.aliases),
        uri=f"models:/{final.name}@{CHAMPION}" if CHAMPION in final.aliases else final.uri,
        gate={"passed": verdict.passed, "reason": verdict.reason, "metrics": verdict.rows},
        parameters=final.parameters,
    )
    (ws.out / "release.json").write_text(json.dumps(result.values(), indent=1), encoding="utf-8")
    columns = ["metric", "value", "champion", "verdict"]
    ws.events.table("gate", columns, [[r[c] for c in columns] for r in verdict.rows])
    ws.progress(3, 3, result.uri)
    return result


def still_valid(artifact: Artifact, config: ReleaseConfig) -> bool:
    """Whether the version is still in the registry. An MLflow that is away proves nothing."""
    place = locate(artifact.store_url, config.tracking_uri)
    try:
        found = waited_for(lambda: Registry(place).find(artifact.summary["name"], artifact.fingerprint), ASK_SECONDS)
        return found is not None
    except LookupError:
        return False
    except Exception as error:
        _log.warning("Can't ask MLflow at %s whether the release is still there: %s", place.uri, error)
        return True


# -- registering ---------------------------------------------------------------------------------------------


def _register(ws: Workspace, client: MlflowClient, registry: Registry, metrics: dict[str, float]) -> Version:
    folder, name = ws.inputs["model"].path(), ws.config.name
    made = register(registry, folder, name, _run_id(ws, client), _tags(ws, folder, metrics), metrics)
    first = registry.find(name, ws.fingerprint)
    if first is not None and first.version != made.version:  # another machine was quicker, and both see the same first
        client.delete_model_version(name, str(made.version))
        return first
    return made


def _run_id(ws: Workspace, client: MlflowClient) -> str:
    """The stage's run in MLflow: without one, a run of its own."""
    run_id = ws.tracked.wait_run_id() if ws.tracked is not None else ""
    if run_id:
        return run_id
    config: ReleaseConfig = ws.config
    place = locate(ws.artifacts.store.url, config.tracking_uri)
    experiment = experiment_id(client, config.experiment or config.name, place.artifact_root)
    made = client.create_run(experiment, run_name="release", tags={f"{TAG}fingerprint": ws.fingerprint})
    client.set_terminated(made.info.run_id)
    return made.info.run_id


def _tags(ws: Workspace, folder: Path, metrics: dict[str, float]) -> dict[str, str]:
    model, evaluation = ws.inputs["model"], ws.inputs["evaluation"]
    made_from = ws.artifacts.lineage(model)
    lineage = {a.manifest.name or a.kind: a.manifest.key for a in made_from}
    base = next((a.summary["model"] for a in made_from if a.manifest.stage == "base"), "")
    tokens = evaluation.manifest.inputs.get("tokens")
    return {
        f"{TAG}fingerprint": ws.fingerprint,
        f"{TAG}model": model.fingerprint,
        f"{TAG}recipe": ws.recipe,
        f"{TAG}store": ws.artifacts.store.url,
        f"{TAG}lineage": json.dumps(lineage),
        f"{TAG}metrics": json.dumps(metrics),
        f"{TAG}evaluated_on": tokens.fingerprint if tokens else "",
        f"{TAG}parameters": str(count_parameters(folder / "model.safetensors")),
        f"{TAG}code_version": model.manifest.code_version,
        f"{TAG}sha256": model.manifest.files["model.safetensors"].sha256,
    } | ({f"{TAG}base": base} if base else {})


# -- judging -------------------------------------------------------------------------------------------------


def _judge_and_promote(
    client: MlflowClient,
    registry: Registry,
    version: Version,
    config: ReleaseConfig,
    metrics: dict[str, float],
    why: dict[str, str],
) -> Verdict:
    """Set the aliases that the version has earned, and read back that they are there.

    Raises:
        RuntimeError: another release set the champion at the same time; running again decides anew.
    """
    number = str(version.version)
    client.set_registered_model_alias(version.name, CANDIDATE, number)
    while True:
        champion = champion_of(registry, version.name)
        if champion is not None and champion.version == version.version:  # an earlier attempt had come this far
            return Verdict(True, version.reason or "it is the champion", _json_rows(version))
        verdict = judge(metrics, champion.metrics if champion else None, config.metrics, config.require, why)
        tags = {"gate": "passed" if verdict.passed else "failed", "gate.reason": verdict.reason}
        tags["gate.rows"] = json.dumps(verdict.rows)
        tags["gate.against"] = champion.uri if champion else ""
        for name, value in tags.items():
            client.set_model_version_tag(version.name, number, f"{TAG}{name}", value)
        if not verdict.passed:
            return verdict
        now = champion_of(registry, version.name)
        if (now and now.version) == (champion and champion.version):
            promote(registry, version, champion)
            return verdict  # else another machine has promoted its version meanwhile: that is the one to beat


def _json_rows(version: Version) -> list[dict]:
    return json.loads(version.tags.get(f"{TAG}gate.rows", "[]"))


def _describe(
    client: MlflowClient, version: Version, ws: Workspace, metrics: dict[str, float], verdict: Verdict
) -> None:
    """The version's page: verdict and evaluation, as Markdown."""
    before = _numbers(ws.inputs["base_evaluation"].summary) if "base_evaluation" in ws.inputs else {}
    rows = {r["metric"]: r for r in verdict.rows}
    lines = [
        f"**Gate {'passed' if verdict.passed else 'failed'}**: {in_markdown(verdict.reason)}",
        "",
        "| metric | base model | this version | champion | verdict |",
        "|---|---|---|---|---|",
    ]
    for name in sorted({*metrics, *rows}):
        row = rows.get(name, {})
        cells = [before.get(name), metrics.get(name), row.get("champion")]
        shown = ["" if c is None else f"{c:.4g}" for c in cells]
        lines.append(f"| {in_markdown(name)} | {' | '.join(shown)} | {in_markdown(row.get('verdict', ''))} |")
    client.update_model_version(version.name, str(version.version), "\n".join(lines))


def _numbers(summary: dict[str, Any]) -> dict[str, float]:
    from cluster.tracking.tracker import numbers_of

    return numbers_of(summary)


STAGE = Stage(
    name="release",
    kind="release",
    version=1,
    config=ReleaseConfig,
    run=run_release,
    summary=ReleaseSummary,
    still_valid=still_valid,
    uses_ray=False,
)
