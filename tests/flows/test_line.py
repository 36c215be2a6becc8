"""The Prefect flow over fake stages, against a real Prefect API."""

from __future__ import annotations

import logging
import threading
from typing import Any

import httpx
import pytest

from cluster.data.summaries import CorpusSummary
from cluster.errors import Stopped
from cluster.evaluate.summary import EvaluationSummary
from flows.prefect_logs import RunLogs
from flows.prefect_mirror import Mirror


def fine(ws: Any) -> dict:
    ws.progress(1, 1, "")
    return {"value": ws.config.value}


@pytest.fixture
def orchestrate(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a run, mirrored in Prefect, and returns (ending, {task name: (state name, state type, run count)})."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import walk

    monkeypatch.setattr(walk, "RETRY_SECONDS", (0, 0))

    def go(run: Any) -> Any:
        with temporary_settings({PREFECT_API_URL: prefect_api}):
            run.start()
            run.watcher = Mirror(run).start()
            ending = walk.walk(run)
            run.close()
        assert run.unshown == ""
        return ending, task_states(prefect_api, run)

    return go


def task_states(api: str, run: Any) -> dict[str, tuple[str, str, int]]:
    asked = {"flow_runs": {"id": {"any_": [run.watcher.flow_run_id]}}}
    answer = httpx.post(f"{api}/task_runs/filter", json=asked, timeout=30)
    return {t["name"]: (t["state"]["name"], t["state"]["type"], t["run_count"]) for t in answer.json()}


def flow_state(api: str, run: Any) -> tuple[str, str, str]:
    state = httpx.get(f"{api}/flow_runs/{run.watcher.flow_run_id}", timeout=30).json()["state"]
    return state["name"], state["type"], state["message"]


def test_a_task_ends_completed_where_it_worked_and_cached_where_the_artifact_was_there(
    make_run: Any, orchestrate: Any
) -> None:
    ending, tasks = orchestrate(make_run({"corpus": fine, "filter": fine}))
    assert ending.kind == "completed"
    assert {n: s[0] for n, s in tasks.items()} == {"corpus": "Completed", "filter": "Completed"}

    run = make_run({"corpus": fine, "filter": fine}, values={"filter": 1})
    ending, tasks = orchestrate(run)
    assert ending.kind == "completed"
    assert {n: s[:2] for n, s in tasks.items()} == {
        "corpus": ("Cached", "COMPLETED"),
        "filter": ("Completed", "COMPLETED"),
    }
    assert run.outcomes["corpus"].cached and not run.outcomes["filter"].cached
    assert [(t.name, t.cached) for t in run.tracker.runs] == [
        ("line", False),
        ("corpus", True),
        ("filter", False),
    ]


def test_an_infrastructure_fault_is_tried_again_and_a_bad_value_is_not(make_run: Any, orchestrate: Any) -> None:
    tries = {"network": 0, "value": 0}

    def network(ws: Any) -> dict:
        tries["network"] += 1
        if tries["network"] < 3:
            raise ConnectionError("the store is away")
        return {}

    def value(ws: Any) -> dict:
        tries["value"] += 1
        raise ValueError("no such column")

    run = make_run({"corpus": network, "filter": value, "pack": fine})
    ending, tasks = orchestrate(run)
    assert ending.kind == "failed"
    assert tries == {"network": 3, "value": 1}
    assert tasks["corpus"] == ("Completed", "COMPLETED", 3)
    assert tasks["filter"][1] == "FAILED"
    assert "pack" not in tasks  # the line ends at its first failure
    assert isinstance(run.errors["filter"], ValueError) and "corpus" not in run.errors
    assert run.tracker.status == "FAILED"
    assert [t.status for t in run.tracker.runs if t.name == "corpus"] == ["FAILED", "FAILED", "FINISHED"]


def test_a_stopped_stage_ends_the_line_cancelled_and_is_not_retried(
    make_run: Any, orchestrate: Any, prefect_api: str
) -> None:
    tries = []

    def stopped(ws: Any) -> dict:
        tries.append(1)
        run.stop.signal = 2
        if ws.stopping():
            raise Stopped("at step 7, with a checkpoint")
        return {}

    run = make_run({"corpus": fine, "filter": stopped, "pack": fine})
    ending, tasks = orchestrate(run)
    assert ending.kind == "stopped" and "step 7" in ending.message
    assert flow_state(prefect_api, run) == ("Stopped", "CANCELLED", ending.message)
    assert len(tries) == 1
    assert tasks["filter"][:2] == ("Stopped", "CANCELLED")
    assert run.tracker.status == "KILLED"


def test_a_connection_fault_after_ctrl_c_is_not_retried(make_run: Any, orchestrate: Any) -> None:
    tries = []

    def fails(ws: Any) -> dict:
        tries.append(1)
        run.stop.signal = 2
        raise ConnectionError("Ray is gone")

    run = make_run({"corpus": fails})
    orchestrate(run)
    assert len(tries) == 1


def test_the_ui_gets_a_data_report_a_stage_table_and_the_way_to_mlflow(
    make_run: Any, orchestrate: Any, prefect_api: str
) -> None:
    def corpus(ws: Any) -> CorpusSummary:
        return CorpusSummary(documents=12, bytes=3400, quarantined={"broken utf-8": 2, "empty": 1})

    def evaluation(ws: Any) -> EvaluationSummary:
        return EvaluationSummary({"bpb": 1.5, "bpb/prose": 1.25})

    classes = {"corpus": CorpusSummary, "evaluation": EvaluationSummary}
    run = make_run({"corpus": corpus, "evaluation": evaluation}, summaries=classes)
    orchestrate(run)
    assert flow_state(prefect_api, run)[1] == "COMPLETED"
    this_run = {"artifacts": {"flow_run_id": {"any_": [run.watcher.flow_run_id]}}}
    found = httpx.post(f"{prefect_api}/artifacts/filter", json=this_run, timeout=30).json()
    shown = {a["key"]: a for a in found}
    assert "| broken utf-8 | 2 |" in shown["fake-corpus-report"]["data"]
    assert "bpb/prose" in str(shown["fake-evaluation-metrics"]["data"])
    assert "http://127.0.0.1/#/runs/" in shown["fake-mlflow-run"]["data"]
    assert shown["fake-stages"]["type"] == "table"


def test_the_flow_run_has_what_the_screen_says_and_each_stage_s_warnings_as_logs(
    make_run: Any, orchestrate: Any, prefect_api: str
) -> None:
    def warns(ws: Any) -> dict:
        logging.getLogger("cluster.data.corpus").warning("3 files were passed over")
        logging.getLogger("cluster.data.corpus").info("not of interest")
        thread = threading.Thread(target=lambda: logging.getLogger("flows.x").error("in a thread"))
        thread.start()
        thread.join()
        return {}

    def fails(ws: Any) -> dict:
        raise ValueError("no such thing")

    run = make_run({"corpus": warns, "train": fails})
    orchestrate(run)
    assert flow_state(prefect_api, run)[1] == "FAILED"
    flow_run = run.watcher.flow_run_id
    asked = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
    found = httpx.post(f"{prefect_api}/logs/filter", json=asked, timeout=30).json()
    tasks = httpx.post(f"{prefect_api}/task_runs/filter", json={"flow_runs": {"id": {"any_": [flow_run]}}}).json()
    names = {t["id"]: t["name"] for t in tasks}
    said = {(names.get(log["task_run_id"]), log["level"], log["message"]) for log in found}
    assert ("corpus", 30, "cluster.data.corpus: 3 files were passed over") in said
    assert ("corpus", 40, "flows.x: in a thread") in said
    assert any(of == "corpus" and level == 20 and text.startswith("✓ corpus") for of, level, text in said)
    assert (None, 40, "train: no such thing") in said
    assert not any("not of interest" in text for _, _, text in said)
    assert not any(isinstance(handler, RunLogs) for handler in logging.getLogger().handlers)


def test_the_flows_parameters_are_flat(prefect_api: str) -> None:
    from flows.line import tokenmill

    properties = tokenmill.parameters.model_dump()["properties"]
    assert set(properties) == {"recipe", "overrides", "until"}
    assert properties["recipe"]["default"] == "demo"


def test_a_served_flow_has_the_tasks_in_its_own_flow_run(
    make_run: Any, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `tokenmill` of flows/line.py is run by a deployment: the flow run is Prefect's, the work is in its thread."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.prefect_mirror import state_of
    from flows.walk import walk

    threads: list[Any] = []
    run = make_run({"corpus": lambda ws: threads.append(threading.current_thread()) or {}, "filter": fine})

    @flow(name="served", persist_result=False)
    def served() -> Any:
        run.watcher = Mirror(run).within_flow()
        ending = walk(run)
        run.close()
        return state_of(ending)

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        state: Any = served(return_state=True)
    assert state.is_completed() and run.unshown == ""
    assert threads == [threading.main_thread()]
    assert str(state.state_details.flow_run_id) == run.watcher.flow_run_id
    assert {n: s[0] for n, s in task_states(prefect_api, run).items()} == {"corpus": "Completed", "filter": "Completed"}
