import gzip
import json

import pytest

from cluster.data.examples.examples import read_chat, read_choices, read_preferences, read_tasks

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
ASKED = {"messages": CHAT["messages"][:1]}
TASK = {**ASKED, "answer": "b", "verifier": "exact"}
CHOICE = {"prompt": "a", "choices": ["b", "c"], "answer": 1}
PAIR = {**ASKED, "chosen": "b", "rejected": "c"}


def write(path, *records):
    text = "\n".join(json.dumps(r) for r in records) + "\n\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_files_globs_and_addresses_are_read_in_their_order(tmp_path):
    write(tmp_path / "b.jsonl", CHAT, CHAT)
    write(tmp_path / "a.jsonl.gz", {"messages": [*CHAT["messages"], *CHAT["messages"]]})
    found = read_chat([f"{tmp_path}/*.jsonl*", "generated://arithmetic?n=3"])
    assert [len(e["messages"]) for e in found] == [4, 2, 2, 2, 2, 2]
    assert len(read_chat([str(tmp_path), "generated://arithmetic?n=3"], limit=2)) == 4


def test_each_form_is_read(tmp_path):
    assert read_tasks(write(tmp_path / "t.jsonl", TASK, {"prompt": "a", "answer": 3})) == [
        TASK,
        {"prompt": "a", "answer": 3},
    ]
    assert read_choices(write(tmp_path / "c.jsonl", CHOICE)) == [CHOICE]
    assert read_preferences(write(tmp_path / "p.jsonl", PAIR)) == [PAIR]
    for read in (read_chat, read_tasks, read_choices, read_preferences):
        assert len(read("generated://parity?n=4")) == 4


@pytest.mark.parametrize(
    ("read", "record", "message"),
    [
        (read_chat, ASKED, "needs an assistant"),
        (read_chat, {"message": []}, '"messages" must be a list'),
        (read_chat, [CHAT], "must be a JSON object"),
        (read_tasks, CHAT, "end with the user"),
        (read_tasks, {"answer": "b"}, 'needs "messages", or a "prompt"'),
        (read_tasks, {**TASK, "verifier": "exakt"}, "Did you mean 'exact'"),
        (read_tasks, {**TASK, "verifier": None}, '"verifier" must be a name'),
        (read_tasks, {**TASK, "verifier": ["exact"]}, '"verifier" must be a name'),
        (read_tasks, {**TASK, "verifier": "number"}, "'b' is no number"),
        (read_tasks, {**TASK, "answer": "1/0", "verifier": "number"}, "'1/0' is no number"),
        (read_choices, {**CHOICE, "choices": ["b"]}, "at least two"),
        (read_choices, {**CHOICE, "choices": ["b", "\ud83d"]}, "half a surrogate pair"),
        (read_choices, {**CHOICE, "answer": 2}, "0 to 1, not 2"),
        (read_choices, {**CHOICE, "answer": -1}, "0 to 1, not -1"),
        (read_choices, {**CHOICE, "answer": True}, "0 to 1, not True"),
        (read_preferences, {**PAIR, "rejected": None}, '"rejected" must be a string'),
        (read_preferences, {"prompt": "a", "chosen": "b", "rejected": "c"}, '"messages" must be a list'),
    ],
)
def test_a_wrong_record_is_named_by_its_file_and_line(tmp_path, read, record, message):
    good = {read_chat: CHAT, read_tasks: TASK, read_choices: CHOICE, read_preferences: PAIR}[read]
    path = write(tmp_path / "x.jsonl", good, record)
    with pytest.raises(ValueError, match="x.jsonl:2: .*" + message):
        read(path)


def test_what_is_no_json_or_not_there_is_said(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"messages": [', encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON object"):
        read_chat(str(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no example"):
        read_chat(str(tmp_path / "x.jsonl"))
    with pytest.raises(ValueError, match="no such file"):
        read_chat(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(CHAT).encode() * 100)[:60])
    with pytest.raises(ValueError, match="can't be read: truncated"):
        read_chat(str(tmp_path / "cut.jsonl.gz"))
