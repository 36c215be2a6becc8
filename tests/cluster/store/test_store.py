import gzip
import io
import os
import pickle
import threading
import uuid

import pytest

from cluster.store import NotFound, StoreError, open_store, s3_client
from cluster.store import s3 as s3_module
from cluster.store.source import digest_source, expand, open_binary
from tests.flaky_proxy import BUSY, CUT, LOST, OK, RESET, FlakyProxy


def test_bytes_come_back_and_what_is_absent_says_so(store_url):
    store = open_store(store_url)
    assert store.stat("a/b.txt") is None
    with pytest.raises(NotFound, match=r"a/b\.txt"):
        store.read("a/b.txt")
    store.write("a/b.txt", b"one")
    store.write("a/b.txt", b"two!")
    assert store.read("a/b.txt") == b"two!"
    assert store.stat("a/b.txt").size == 4
    with pytest.raises(NotFound):
        store.read("a")  # a folder is no file
    assert store.stat("a") is None


def test_a_prefix_is_a_folder_and_listings_are_in_order(store_url):
    store = open_store(store_url)
    for key in ("m/ab/2", "m/ab/1", "m/abc/1", "m/ab/deep/x", "n"):
        store.write(key, key.encode())
    assert [e.key for e in store.list("m/ab")] == ["m/ab/1", "m/ab/2", "m/ab/deep/x"]
    assert [e.size for e in store.list("m/abc")] == [7]
    assert sorted(e.key for e in store.list()) == ["m/ab/1", "m/ab/2", "m/ab/deep/x", "m/abc/1", "n"]
    assert list(store.list("nothing")) == []
    assert list(store.folders("m")) == ["ab", "abc"]
    assert list(store.folders()) == ["m"]
    assert list(store.folders("none")) == []


def test_an_etag_changes_with_the_content(store_url):
    store = open_store(store_url)
    store.write("k", b"one")
    first = store.stat("k").etag
    assert next(iter(store.list())).etag == first
    store.write("k", b"another")
    assert store.stat("k").etag != first


def test_if_absent_never_overwrites(store_url):
    store = open_store(store_url)
    assert store.write("k", b"first", if_absent=True)
    assert not store.write("k", b"second", if_absent=True)
    assert not store.write("k", b"first", if_absent=True)
    assert store.read("k") == b"first"


def test_of_racing_conditional_writes_one_wins(tmp_path):
    store = open_store(tmp_path)
    results = in_threads(16, lambda i: store.write("k", f"writer {i}".encode(), if_absent=True))
    assert sum(results) == 1
    assert store.read("k") == f"writer {results.index(True)}".encode()
    assert [e.key for e in store.list()] == ["k"]


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 7_300])
def test_files_of_any_size_come_back_also_in_parts(store_url, tmp_path, monkeypatch, size):
    monkeypatch.setattr(s3_module, "MULTIPART_BYTES", 1000)
    monkeypatch.setattr(s3_module, "PART_BYTES", 1000)
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    store = open_store(store_url)
    store.upload(tmp_path / "in", "big")
    assert store.stat("big").size == size
    store.download("big", tmp_path / "sub" / "out")
    assert (tmp_path / "sub" / "out").read_bytes() == data
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["out"]


def test_a_file_with_too_many_parts_gets_larger_ones(s3_url, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "MULTIPART_BYTES", 100)
    monkeypatch.setattr(s3_module, "PART_BYTES", 100)
    monkeypatch.setattr(s3_module, "MAX_PARTS", 3)
    (tmp_path / "in").write_bytes(bytes(range(256)) * 4)
    store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
    store.upload(tmp_path / "in", "big")
    assert store.read("big") == bytes(range(256)) * 4
    assert store.stat("big").etag.endswith("-3")


def test_an_upload_that_fails_leaves_no_parts_behind(s3_url, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "MULTIPART_BYTES", 100)
    monkeypatch.setattr(s3_module, "PART_BYTES", 100)
    monkeypatch.setattr(s3_client, "ROUNDS", 1)
    (tmp_path / "in").write_bytes(b"x" * 1000)
    store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
    wrong = iter([s3_module._md5(b"")])
    real = s3_module._md5
    monkeypatch.setattr(s3_module, "_md5", lambda data: next(wrong, None) or real(data))
    with pytest.raises(StoreError, match="upload in to"):
        store.upload(tmp_path / "in", "big")
    assert store.stat("big") is None
    uploads = s3_client.client().list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix)
    assert uploads.get("Uploads", []) == []


def test_a_server_refuses_bytes_that_were_damaged_on_the_way(s3_url, monkeypatch):
    monkeypatch.setattr(s3_client, "ROUNDS", 1)
    monkeypatch.setattr(s3_module, "_md5", lambda data, real=s3_module._md5: real(data + b"."))
    with pytest.raises(StoreError, match="BadDigest"):
        open_store(s3_url).write("damaged", b"data")
    assert open_store(s3_url).stat("damaged") is None


def test_deleting_a_folder_leaves_its_neighbours(store_url):
    store = open_store(store_url)
    for key in ("a/b/1", "a/b/manifest.json", "a/bc/1", "a/b2"):
        store.write(key, b"x")
    store.delete_prefix("a/b")
    store.delete_prefix("a/none")
    assert [e.key for e in store.list()] == ["a/b2", "a/bc/1"]
    store.delete_prefix("a/b2")
    assert [e.key for e in store.list()] == ["a/bc/1"]
    with pytest.raises(ValueError, match="whole store"):
        store.delete_prefix("")


def test_moving_a_folder_moves_all_of_it_and_overwrites_nothing(store_url):
    store = open_store(store_url)
    for key in ("a/1", "a/deep/2", "ab/1", "taken/1"):
        store.write(key, key.encode())
    store.move_prefix("a", "b/c")
    assert {e.key: store.read(e.key) for e in store.list("b")} == {"b/c/1": b"a/1", "b/c/deep/2": b"a/deep/2"}
    assert list(store.list("a")) == []
    with pytest.raises(ValueError, match="exists"):
        store.move_prefix("b/c", "taken")
    with pytest.raises(NotFound):
        store.move_prefix("gone", "elsewhere")


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/./b", "a/../../b", "a\\b"])
def test_a_key_stays_in_its_store(tmp_path, key):
    with pytest.raises(ValueError, match="Not a store key"):
        open_store(tmp_path).write(key, b"x")


def test_a_store_pickles_as_its_place(store_url):
    store = open_store(store_url)
    store.write("k", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.read("k")) == (store.url, b"x")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="gs://"):
        open_store("gs://bucket/x")


def test_a_local_store_never_imports_boto3(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from cluster import stage; from cluster.store.artifact import Artifacts;"
        f"Artifacts({str(tmp_path)!r}).find('model', 'x'); stage.digest_source('generated://x');"
        "bad = {'boto3', 'botocore', 'torch', 'ray', 'mlflow', 'numpy', 'pyarrow'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- a server that fails


def test_every_operation_survives_resets_throttling_and_broken_answers(s3_url, s3_server, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "MULTIPART_BYTES", 3000)
    monkeypatch.setattr(s3_module, "PART_BYTES", 1000)
    quick_retries(monkeypatch)
    data = os.urandom(5_500)
    (tmp_path / "in").write_bytes(data)
    with FlakyProxy(s3_server["AWS_ENDPOINT_URL"], [OK, RESET, OK, BUSY, OK, CUT, LOST, OK]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
        for i in range(4):
            assert store.write(f"small/{i}", f"{i}".encode(), if_absent=True)  # also where the answer was lost
            assert not store.write(f"small/{i}", b"other", if_absent=True)
        store.upload(tmp_path / "in", "big")
        store.download("big", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data
        assert open_binary(f"{store.url}/big").read() == data
        store.move_prefix("small", "moved")
        assert [store.read(e.key) for e in store.list("moved")] == [b"0", b"1", b"2", b"3"]
        store.delete_prefix("moved")
        assert [e.key for e in store.list()] == ["big"]
    assert {RESET, BUSY, CUT, LOST} <= set(proxy.failures)


def test_a_server_that_is_gone_is_named(s3_url, s3_server, monkeypatch):
    quick_retries(monkeypatch, rounds=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"read .*/key: .*127\.0\.0\.1:9.*AWS_ENDPOINT_URL"):
        open_store(s3_url).read("key")


def test_a_wrong_secret_and_a_missing_bucket_are_explained(s3_url, monkeypatch):
    with pytest.raises(StoreError, match="make the bucket"):
        open_store("s3://no-such-bucket/x").write("k", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3_client._client.cache_clear()
    try:
        with pytest.raises(StoreError, match="check AWS_SECRET_ACCESS_KEY"):
            open_store(s3_url).write("k", b"x")
    finally:
        s3_client._client.cache_clear()


def test_a_server_that_ignores_the_condition_is_noticed_and_still_not_overwritten(s3_url, monkeypatch, caplog):
    def strip(request, **kw):
        del request.headers["If-None-Match"]

    events = s3_client.client().meta.events
    events.register("before-sign.s3.PutObject", strip)
    s3_module._honours.clear()
    try:
        store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
        assert store.write("k", b"one", if_absent=True)
        assert not store.write("k", b"two", if_absent=True)
        assert store.read("k") == b"one"
        assert "ignores If-None-Match" in caplog.text
        assert [e.key for e in store.list()] == ["k"]  # the probe is gone
    finally:
        events.unregister("before-sign.s3.PutObject", strip)
        s3_module._honours.clear()


# ---- sources


@pytest.fixture(params=["local", "s3"])
def source_url(request, tmp_path):
    """Some files of someone else's, and the URL of their folder."""
    names = ["a.jsonl", "b.jsonl.gz", "sub/c.jsonl", "sub/deep/d.jsonl", "sub/e.txt", "sub2/f.jsonl"]
    if request.param == "local":
        url = str(tmp_path / "data")
    else:
        url = f"{request.getfixturevalue('s3_url')}/{uuid.uuid4().hex}"
    store = open_store(url)
    for name in names:
        store.write(name, name.encode())
    return url


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.jsonl", "b.jsonl.gz", "sub/c.jsonl", "sub/deep/d.jsonl", "sub/e.txt", "sub2/f.jsonl"]),
        ("/a.jsonl", ["a.jsonl"]),
        ("/sub/e.txt", ["e.txt"]),
        ("/sub", ["c.jsonl", "deep/d.jsonl", "e.txt"]),
        ("/sub/", ["c.jsonl", "deep/d.jsonl", "e.txt"]),
        ("/*.jsonl", ["a.jsonl"]),
        ("/*.jsonl*", ["a.jsonl", "b.jsonl.gz"]),
        ("/sub*/*.jsonl", ["sub/c.jsonl", "sub2/f.jsonl"]),
        ("/**/*.jsonl", ["a.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl", "sub2/f.jsonl"]),
        ("/sub/**/*.jsonl", ["c.jsonl", "deep/d.jsonl"]),
        ("/sub/?.jsonl", ["c.jsonl"]),
        ("/[ab].*", ["a.jsonl", "b.jsonl.gz"]),
        ("/[!a].*", ["b.jsonl.gz"]),
        ("/none", []),
        ("/none*", []),
    ],
)
def test_a_source_means_the_same_files_here_and_on_s3(source_url, pattern, names):
    found = expand(source_url + pattern)
    assert [f.name for f in found] == names
    for file in found:
        content = open_binary(file.url).read()
        assert file.url.endswith(content.decode()) and file.size == len(content)


def test_a_file_with_a_wildcard_in_its_name_is_taken_as_it_is(tmp_path):
    (tmp_path / "a[1].txt").write_text("x", encoding="utf-8")
    assert [f.name for f in expand(tmp_path / "a[1].txt")] == ["a[1].txt"]


def test_a_stream_can_be_sought_and_unzipped(store_url):
    store = open_store(store_url)
    data = os.urandom(3_000_000)
    store.write("x.gz", gzip.compress(data, 1))
    store.write("raw", data)
    with open_binary(f"{store_url}/x.gz") as stream, gzip.open(stream) as unzipped:
        assert unzipped.read() == data
    with open_binary(f"{store_url}/raw") as stream:
        assert stream.seek(-1000, io.SEEK_END) == 2_999_000
        assert stream.read() == data[-1000:]
        stream.seek(17)
        assert stream.read(5) == data[17:22]
        assert stream.tell() == 22
        assert stream.read(2_000_000) == data[22:2_000_022]
        assert stream.seek(5_000_000) == 5_000_000 and stream.read() == b""


def test_an_object_that_changes_while_it_is_read_is_an_error_not_a_mixture(s3_url):
    store = open_store(f"{s3_url}/{uuid.uuid4().hex}")
    store.write("k", b"a" * 3_000_000)
    with open_binary(f"{store.url}/k") as stream:
        assert stream.read(10) == b"a" * 10
        store.write("k", b"b" * 3_000_000)
        stream.seek(2_500_000)
        with pytest.raises(StoreError, match="changed while it was read"):
            stream.read(10)


def test_the_digest_of_a_source_is_that_of_its_names_and_content(source_url):
    store = open_store(source_url)
    before = digest_source(source_url)
    assert digest_source(source_url) == before
    store.write("sub/e.txt", b"changed")
    changed = digest_source(source_url)
    store.write("sub/e.txt", b"sub/e.txt")
    assert changed != before and digest_source(source_url) == before
    store.write("new", b"")
    assert digest_source(source_url) != before
    with pytest.raises(ValueError, match="Nothing is at"):
        digest_source(f"{source_url}/nowhere")


def test_a_local_digest_follows_content_not_place_or_time(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("same", encoding="utf-8")
    os.utime(tmp_path / "there" / "x", (1, 1))
    assert digest_source(tmp_path / "here") == digest_source(tmp_path / "there")


def test_a_file_rewritten_with_its_old_size_and_time_right_away_is_noticed(tmp_path):
    path = tmp_path / "x"
    path.write_text("aaaa", encoding="utf-8")
    stat = path.stat()
    before = digest_source(path)
    path.write_text("bbbb", encoding="utf-8")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest_source(path) != before


def test_unchanged_files_are_read_once(tmp_path, monkeypatch):
    from cluster.store import digest

    path = tmp_path / "x"
    path.write_text("aaaa", encoding="utf-8")
    os.utime(path, (1000, 1000))
    first = digest_source(path)
    monkeypatch.setattr(digest, "sha256_file", lambda path: pytest.fail("read again"))
    assert digest_source(path) == first


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("aaaa", encoding="utf-8")
    expected = digest_source(tmp_path / "x")
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "file" / "cache"))
    assert digest_source(tmp_path / "x") == expected


def quick_retries(monkeypatch, rounds=8):
    """The same retries, without the waits: boto3's and ours both sleep by time.sleep."""
    monkeypatch.setattr(s3_client, "ROUNDS", rounds)
    monkeypatch.setattr(s3_client, "ATTEMPTS", 3)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def in_threads(count, work):
    results = [None] * count
    barrier = threading.Barrier(count)

    def run(i):
        barrier.wait()
        results[i] = work(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results
