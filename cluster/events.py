"""The log of what a stage observed: one JSON object a line, appended where the work happens.

    {"t": 1764000000000, "type": "metrics", "step": 10, "values": {"loss": 3.2}}
    {"t": …, "type": "params", "values": {"lr": 0.001}}         {"t": …, "type": "tags", "values": {…}}
    {"t": …, "type": "text", "name": "recipe.toml", "body": "…"}
    {"t": …, "type": "table", "name": "samples", "columns": […], "rows": [[…]]}
    {"t": …, "type": "figure", "name": "loss", "spec": {"title", "x_label", "y_label", "kind", "series"}}

A sender (cluster/tracking/tracker.py) reads the file from its last offset. A line counts once its newline is there,
so a reader never sees half an event, and what a killed process left torn is skipped.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.masking import masked_all


class EventLog:
    """Appends events to a file. Threads may share one log; each event is one write.

    Args:
        path: the file; made at the first event. A torn last line of an earlier process is closed off first.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])

    def append(self, event: Mapping[str, Any], time_ms: int | None = None) -> None:
        """Add one event; `t`, Unix time in milliseconds, is put in front unless the event has it."""
        stamped = {"t": time_ms if time_ms is not None else time.time_ns() // 1_000_000, **event}
        line = json.dumps(masked_all(plain_json(stamped)), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = "\n" + line
                data = memoryview(line.encode("utf-8", errors="replace"))
                while data:
                    data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)

    def metrics(self, step: int, values: Mapping[str, float], time_ms: int | None = None) -> None:
        """A point of one or more curves. Infinite and missing values are kept, as "inf", "-inf" and "nan"."""
        self.append(
            {"type": "metrics", "step": int(step), "values": {k: float(v) for k, v in values.items()}},
            time_ms,
        )

    def params(self, values: Mapping[str, Any]) -> None:
        self.append({"type": "params", "values": dict(values)})

    def tags(self, values: Mapping[str, Any]) -> None:
        self.append({"type": "tags", "values": dict(values)})

    def text(self, name: str, body: str) -> None:
        """A file for a person to read."""
        self.append({"type": "text", "name": name, "body": body})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Rows of plain values. Raises ValueError for a row of another width than `columns`."""
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"Table {name!r} has {len(columns)} columns, but a row of {len(row)} values.")
        self.append({"type": "table", "name": name, "columns": list(columns), "rows": [list(r) for r in rows]})

    def figure(self, name: str, spec: Mapping[str, Any]) -> None:
        """A plot, as data: title, x_label, y_label, kind ("line" or "bar"), series of {name, x, y}."""
        self.append({"type": "figure", "name": name, "spec": dict(spec)})


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[int, dict]]:
    """(offset after the event, event) for each whole line from `offset` on; none if there is no file yet.

    A line that isn't JSON (a writer was killed in it) is skipped. Metrics come back as floats.
    """
    with contextlib.suppress(FileNotFoundError), Path(path).open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if not isinstance(event, dict):
                continue
            if event.get("type") == "metrics":
                event["values"] = {k: float(v) for k, v in event["values"].items()}
            yield offset, event


def plain_json(value: Any) -> Any:
    """Strict JSON: numpy's numbers as Python's, and floats that JSON lacks as strings."""
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)
