"""The outbox: what MLflow is to hear lies in files first, and is delivered from there, once, in batches.

    STATE/LINE/line.json            where it goes: URI, experiment
    STATE/LINE/00-line.jsonl        one file a run, events of the driver: open, params, …, close
    STATE/LINE/01-corpus.jsonl
    STATE/LINE/01-corpus.stage      the stage's own events.jsonl: a hard link, or a copy where there can be none
    STATE/LINE/position.json        how far each has been delivered
    STATE/LINE/refused.jsonl        what MLflow will never take, with its reason
    STATE/LINE/lock                 held by the process that writes; free when it is dead

Whoever holds the lock delivers: the line's own process while it lives, the next run of the line after that. Nothing
is lost when MLflow is away or the process is killed, and nothing is sent twice: a step that a metric has passed is
not sent again (a restarted worker repeats steps), a point sent again after a lost answer has the same time and value,
which MLflow's database takes as one, and files are overwritten by what they were.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.events import EventLog, read_events
from cluster.masking import masked
from cluster.tracking.figures import draw
from cluster.tracking.links import NOTE, maker, tags_of
from cluster.tracking.place import connect, experiment_id
from model.inside import plain_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "tokenmill."
ID, ALIVE, LEASE = f"{TAG}id", f"{TAG}alive", f"{TAG}lease"
BATCH = 900  # metrics in one request; MLflow's limit is 1,000 entities
PARAMS = 100  # its limit on params, and on tags, in one request
ALIVE_EVERY = 60.0  # seconds between two signs of life of a run: the last is when a killed one ended
ATTEMPTS = 5  # at one file that the artifact store refuses while the tracking store answers
# Which MLflow's page shows as they are; it renders Markdown, and an HTML page in a frame where its scripts run.
TEXTS = (".txt", ".log", ".toml", ".json", ".jsonl")
# MLflow's codes for a request that will be as wrong the next time.
PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
}
_log = logging.getLogger(__name__)


@dataclass
class Position:
    """How far one run has been delivered."""

    run_id: str = ""
    asked: bool = False  # a create_run was sent; without run_id its answer was lost
    own: int = 0  # bytes of the driver's events
    stage: int = 0  # bytes of the stage's events
    passed: dict[str, int] = field(default_factory=dict)  # metric -> its last step
    rows: dict[str, list] = field(default_factory=dict)  # table -> [columns, rows]
    tables: list[str] = field(default_factory=list)
    links: dict[str, list[str]] = field(default_factory=dict)  # cached step -> [experiment, run] that made it
    opened: bool = False
    closed: bool = False


class Delivery:
    """Delivers one line's folder. Not for two threads at once.

    Args:
        folder: STATE/LINE.
        live: its writer is this process: runs that it hasn't closed stay open.
    """

    def __init__(self, folder: Path, live: bool):
        self.folder, self.live = folder, live
        self.line = json.loads((folder / "line.json").read_text(encoding="utf-8"))
        self.experiment = ""
        self._positions = {key: Position(**values) for key, values in _read_json(folder / "position.json", {}).items()}
        self._client: MlflowClient | None = None
        self._alive: dict[str, float] = {}
        self._attempts: dict[tuple[str, int], int] = {}

    @property
    def client(self) -> MlflowClient:
        if self._client is None:
            client = connect(self.line["uri"])
            self.experiment = experiment_id(client, self.line["experiment"], self.line["artifact_root"])
            self._client = client
        return self._client

    def reconnect(self) -> None:
        """Forget the connection: after a failure the server may be another, or the experiment gone."""
        self._client = None

    def run_id(self, key: str) -> str:
        """MLflow's id of a run, "" before it exists there."""
        position = self._positions.get(key)
        return position.run_id if position else ""

    def pump(self) -> bool:
        """Deliver what there is; whether all of it is now delivered. Raises what MLflow raises when it is away."""
        done = True
        for path in sorted(self.folder.glob("*-*.jsonl")):
            position = self._positions.setdefault(path.stem, Position())
            if not position.closed:
                done &= self._pump_run(path, position)
        return done

    def undelivered(self) -> tuple[int, int]:
        """(runs that MLflow hasn't got whole, events that are still to be sent)."""
        open_runs = events = 0
        for path in self.folder.glob("*-*.jsonl"):
            position = self._positions.get(path.stem, Position())
            if not position.closed:
                open_runs += 1
                events += sum(1 for _ in read_events(path, position.own))
                events += sum(1 for _ in read_events(self.folder / f"{path.stem}.stage", position.stage))
        return open_runs, events

    def finished(self) -> bool:
        """Whether every run is closed in MLflow, so that the folder has done its work."""
        paths = list(self.folder.glob("*-*.jsonl"))
        return all(self._positions.get(p.stem, Position()).closed for p in paths)

    # -- one run ---------------------------------------------------------------------------------------------

    def _pump_run(self, path: Path, position: Position) -> bool:
        key = path.stem
        if not position.opened:
            for offset, event in read_events(path):
                if event.get("type") == "open":
                    self._open(key, event, position)
                    position.own, position.opened = offset, True
                    self._save()
                break
            if not position.opened:
                return True  # its process died before it wrote what it is
        stage = self.folder / f"{key}.stage"
        self._deliver(key, stage, "stage", position)  # before the driver's summary, which may bear a curve's name
        closing = self._deliver(key, path, "own", position, stop_at_close=True)
        if closing is not None:
            self._deliver(key, stage, "stage", position)  # what came between the two looks
        if closing is None and not self.live:
            closing = {"status": "KILLED", "end": self._last_time(key, path)}
        if closing is None:
            self._sign_of_life(key, position)
            return False
        status, end = closing["status"], closing["end"]
        error = self._ask(lambda: self.client.set_terminated(position.run_id, status, end))
        if error:
            self._refuse(key, closing, error)
        position.closed = True
        self._save()
        return True

    def _open(self, key: str, event: dict, position: Position) -> None:
        """Create the run. Its id is MLflow's to choose, so after a lost answer it is looked for by our own tag."""
        identity = f"{self.folder.name}/{key}"
        client = self.client
        if position.asked and not position.run_id:
            position.run_id = next(iter(self._search(f"tags.`{ID}` = '{identity}'")), "")
        if not position.run_id:
            if event.get("took_over", "").isalnum():  # it is out of a file, and goes into a query
                self._bury(event["took_over"])
            tags = {k: _short(v, 8000) for k, v in event["tags"].items()} | {ID: identity, ALIVE: str(_now())}
            parent = event.get("parent")
            if parent:
                tags["mlflow.parentRunId"] = self.run_id(parent)
            position.asked = True
            self._save()
            run = client.create_run(self.experiment, event["start"], tags, event["name"])
            position.run_id = run.info.run_id
        self._alive[key] = time.monotonic()

    def _search(self, condition: str) -> list[str]:
        runs = self.client.search_runs([self.experiment], condition, max_results=50)
        return [r.info.run_id for r in runs]

    def _bury(self, lease: str) -> None:
        """The run that a dead process left RUNNING, also on another machine, whose lease was taken over: KILLED.

        The store has judged who is dead; two machines' clocks, and one's before and after it was set, say nothing.
        """
        for run_id in self._search(f"tags.`{LEASE}` = '{lease}' and attributes.status = 'RUNNING'"):
            alive = int(self.client.get_run(run_id).data.tags.get(ALIVE, "0"))
            self._ask(lambda i=run_id, t=alive: self.client.set_terminated(i, "KILLED", t or None))

    def _sign_of_life(self, key: str, position: Position) -> None:
        if time.monotonic() - self._alive.get(key, 0.0) > ALIVE_EVERY:
            self._ask(lambda: self.client.set_tag(position.run_id, ALIVE, str(_now())))
            self._alive[key] = time.monotonic()

    def _last_time(self, key: str, path: Path) -> int:
        times = [e.get("t", 0) for p in (path, self.folder / f"{key}.stage") for _, e in read_events(p)]
        return max(times, default=_now())

    # -- its events ------------------------------------------------------------------------------------------

    def _deliver(
        self, key: str, path: Path, which: str, position: Position, stop_at_close: bool = False
    ) -> dict | None:
        """Send the events after the position, in order; the run's close event, if it is reached."""
        batch: list[dict] = []
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size < getattr(position, which):  # it was begun anew; passed steps aren't sent again
                setattr(position, which, 0)
        size, reached = 0, getattr(position, which)

        def flush() -> None:
            nonlocal batch, size
            if batch:
                self._batch(key, batch, position)
            if reached != getattr(position, which):
                setattr(position, which, reached)
                self._save()
            batch, size = [], 0

        for offset, event in read_events(path, getattr(position, which)):
            kind = event.get("type")
            if kind == "close" and stop_at_close:
                flush()
                return event
            if kind in ("metrics", "params", "tags"):
                count = len(event["values"])
                if size and size + count > BATCH:
                    flush()
                batch.append(event)
                size += count
            elif kind == "cached":
                position.links[event["step"]] = maker(self.client, self.experiment, event["fingerprint"])
                batch = [e for e in batch if e["type"] != "tags" or NOTE not in e["values"]]
                batch.append({"type": "tags", "values": tags_of(position.links)})
            elif kind in ("text", "table", "figure"):
                flush()
                if not self._file(key, event, offset, position):
                    return None
            reached = offset
        flush()
        return None

    def _batch(self, key: str, events: list[dict], position: Position) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        passed = dict(position.passed)
        for event in events:
            if event["type"] == "metrics":
                for name, value in event["values"].items():
                    name = metric_name(name)
                    if event["step"] > passed.get(name, -1):
                        passed[name] = event["step"]
                        if math.isinf(value):  # the database would store 1.8e308, which spoils the plot
                            value = math.nan
                        metrics.append(Metric(name, float(value), int(event["t"]), int(event["step"])))
            elif event["type"] == "params":
                params |= {metric_name(k): _short(v, 6000) for k, v in event["values"].items()}
            else:
                tags |= {k: _short(v, 8000) for k, v in event["values"].items()}
        for request in _requests(
            metrics, [Param(k, v) for k, v in params.items()], [RunTag(k, v) for k, v in tags.items()]
        ):
            self._send(key, position, *request)
        position.passed = passed

    def _file(self, key: str, event: dict, offset: int, position: Position) -> bool:
        """Write a text, a table or a figure to the run's artifacts. False: not now."""
        try:
            name = plain_name(event["name"])
            if event["type"] == "text":
                self.client.log_text(position.run_id, event["body"], name if name.endswith(TEXTS) else f"{name}.txt")
            elif event["type"] == "figure":
                self.client.log_figure(position.run_id, draw(event["spec"]), f"figures/{_suffixed(name, '.png')}")
            else:
                self._table(event, position)
        except Exception as error:
            if isinstance(error, (ValueError, KeyError, TypeError)) or is_permanent(error):
                self._refuse(key, event, error)
                return True
            self.client.get_run(position.run_id)  # raises if MLflow is away: then this waits for it
            attempt = self._attempts.get((key, offset), 0) + 1
            self._attempts[(key, offset)] = attempt
            if attempt < ATTEMPTS:
                raise
            self._refuse(key, event, error)
        return True

    def _table(self, event: dict, position: Position) -> None:
        """Rows are added to those of the table's earlier events; the whole file is written again each time.

        A row that is there already is a worker's that was restarted, or an event's that is delivered again.
        """
        name = _suffixed(plain_name(event["name"]), ".json")
        columns, rows = position.rows.get(name, [event["columns"], []])
        if columns != event["columns"]:
            columns, rows = event["columns"], []  # it has become another table
        seen = {json.dumps(r, sort_keys=True) for r in rows}
        rows = rows + [r for r in event["rows"] if json.dumps(r, sort_keys=True) not in seen]
        position.rows[name] = [columns, rows]
        self.client.log_dict(position.run_id, {"columns": columns, "data": rows}, name)
        if name not in position.tables:  # by this tag MLflow's interface shows the file as a table
            marked = [{"path": n, "type": "table"} for n in [*position.tables, name]]
            self.client.set_tag(position.run_id, "mlflow.loggedArtifacts", json.dumps(marked))
            position.tables.append(name)

    # -- MLflow's answers ------------------------------------------------------------------------------------

    def _send(self, key: str, position: Position, metrics: list, params: list, tags: list) -> None:
        """One log_batch. Where MLflow refuses one entry for good, the others are still sent."""
        entries = [("metric", m) for m in metrics] + [("param", p) for p in params] + [("tag", t) for t in tags]
        error = self._ask(lambda: self.client.log_batch(position.run_id, metrics, params, tags))
        if error is None:
            return
        if len(entries) == 1 or not self._exists(position.run_id):
            self._refuse(key, {"type": "batch", "values": [(kind, dict(e)) for kind, e in entries]}, error)
            return
        for half in (entries[: len(entries) // 2], entries[len(entries) // 2 :]):
            self._send(key, position, *([e for k, e in half if k == kind] for kind in ("metric", "param", "tag")))

    def _ask(self, request: Callable[[], Any]) -> Exception | None:
        """Make a request; the error, if MLflow will never take it. Raises what may pass."""
        from mlflow.exceptions import MlflowException

        try:
            request()
        except MlflowException as error:
            if not is_permanent(error):
                raise
            return error
        return None

    def _exists(self, run_id: str) -> bool:
        """Whether the run is there and not in the trash."""
        run: list[Any] = []
        return self._ask(lambda: run.append(self.client.get_run(run_id))) is None and (
            run[0].info.lifecycle_stage == "active"
        )

    def _refuse(self, key: str, what: dict, error: Exception) -> None:
        _log.warning("MLflow takes no %s of run %s: %s", what.get("type", "record"), key, error)
        EventLog(self.folder / "refused.jsonl").append({"run": key, "reason": masked(str(error))[:2000], "what": what})

    def _save(self) -> None:
        path = self.folder / "position.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({k: asdict(p) for k, p in self._positions.items()}), encoding="utf-8")
        fresh.replace(path)


def _requests(metrics: list, params: list, tags: list) -> Iterator[tuple[list, list, list]]:
    """The entries in requests within MLflow's limits."""
    count = BATCH - 2 * PARAMS
    while metrics or params or tags:
        yield metrics[:count], params[:PARAMS], tags[:PARAMS]
        metrics, params, tags = metrics[count:], params[PARAMS:], tags[PARAMS:]


def is_permanent(error: Exception) -> bool:
    """Whether MLflow itself said that the request is wrong. A proxy's plain 4xx page says nothing of the kind."""
    code = getattr(error, "error_code", None)
    return code in PERMANENT and not str(error).startswith("API request to")


def metric_name(name: str) -> str:
    """A name that MLflow allows: letters, digits, and _ - . space : /, as a path that is another nowhere."""
    allowed = "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)[:250]
    return "/".join(part for part in allowed.split("/") if part not in ("", ".", "..")) or "_"


def _suffixed(name: str, suffix: str) -> str:
    return name if name.endswith(suffix) else name + suffix


def _short(value: Any, limit: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _now() -> int:
    return time.time_ns() // 1_000_000


def _read_json(path: Path, default: Any) -> Any:
    with contextlib.suppress(FileNotFoundError):
        return json.loads(path.read_text(encoding="utf-8"))
    return default
