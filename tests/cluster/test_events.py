import json
import threading

import pytest

from cluster.events import EventLog, read_events


def test_what_is_logged_is_read_back_in_order(tmp_path):
    log = EventLog(tmp_path / "deep" / "events.jsonl")
    log.params({"lr": 0.1, "name": "µ"})
    log.metrics(3, {"loss": 1.5}, time_ms=17)
    log.table("samples", ["prompt", "text"], [["a", "b"]])
    log.figure("loss", {"title": "loss", "kind": "line", "series": [{"name": "loss", "x": [1], "y": [2.0]}]})
    log.text("recipe.toml", "x = 1\n")
    log.tags({"commit": "abc"})
    events = [e for _, e in read_events(log.path)]
    assert [e["type"] for e in events] == ["params", "metrics", "table", "figure", "text", "tags"]
    assert events[0]["values"] == {"lr": 0.1, "name": "µ"}
    assert events[1] == {"t": 17, "type": "metrics", "step": 3, "values": {"loss": 1.5}}
    assert all(isinstance(e["t"], int) for e in events)


def test_reading_goes_on_from_the_offset_without_loss_or_repetition(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.metrics(1, {"loss": 1})
    (offset, _), *rest = read_events(log.path)
    assert not rest
    log.metrics(2, {"loss": 2})
    assert [e["step"] for _, e in read_events(log.path, offset)] == [2]


def test_half_a_line_is_never_read_and_a_torn_one_spoils_only_itself(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.metrics(1, {"loss": 1})
    with path.open("ab") as file:
        file.write(b'{"t": 1, "type": "metr')  # a writer killed in its write
    assert [e["step"] for _, e in read_events(path)] == [1]
    EventLog(path).metrics(2, {"loss": 2})
    assert [e["step"] for _, e in read_events(path)] == [1, 2]


def test_a_line_that_is_being_written_is_read_once_it_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).metrics(1, {"loss": 1})
    line = path.read_bytes()
    path.write_bytes(line + line[:30])
    offsets = [offset for offset, _ in read_events(path)]
    assert offsets == [len(line)]
    path.write_bytes(line + line)
    assert [e["step"] for _, e in read_events(path, offsets[-1])] == [1]


def test_every_line_is_strict_json_also_with_infinite_and_missing_values(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.metrics(1, {"a": float("nan"), "b": float("inf"), "c": float("-inf")})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(log.path.read_text(encoding="utf-8"), parse_constant=refuse)
    values = next(e for _, e in read_events(log.path))["values"]
    assert values["a"] != values["a"]
    assert (values["b"], values["c"]) == (float("inf"), float("-inf"))


def test_threads_never_mix_their_lines(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")

    def write(worker):
        for step in range(50):
            log.metrics(step, {f"w{worker}": 1.0, "filler" * 200: 2.0})

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(list(read_events(log.path))) == 400


def test_no_file_is_no_events(tmp_path):
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_a_row_of_another_width_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 columns, but a row of 1"):
        EventLog(tmp_path / "e").table("t", ["a", "b"], [["x"]])
