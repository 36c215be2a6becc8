import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from tiny_artifact import FP, KILLED, build, contents, manifest

from cluster.store import NotFound, StoreError, open_store
from cluster.store import artifact as artifact_module
from cluster.store import folder as folder_module
from cluster.store import local as local_module
from cluster.store import s3 as s3_module
from cluster.store.artifact import Artifact, Artifacts, Corrupt, InputRef
from cluster.store.base import MANIFEST

pytestmark = pytest.mark.usefixtures("fresh_process")

FILES = {"weights": "w" * 5000, "deep/config.json": "{}", "empty": ""}


def test_what_is_published_is_found_and_read_in_any_process(store_url, tmp_path):
    artifacts = Artifacts(store_url)
    assert artifacts.find("model", FP) is None
    folder = build(tmp_path, FILES)
    made = artifacts.publish(
        manifest(summary={"loss": 1.5}, inputs={"t": InputRef(kind="tokens", fingerprint="x")}), folder
    )
    assert not folder.exists()
    found = Artifacts(store_url).find("model", FP)
    assert found is not None
    assert found.manifest == made.manifest
    assert found.summary == {"loss": 1.5}
    assert contents(found.path()) == FILES
    assert found.manifest.size == 5002
    code = f"import pickle; print((pickle.loads({pickle.dumps(found)!r}).path() / 'weights').read_text(), end='')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert other.stdout == FILES["weights"]


def test_one_file_is_read_without_the_others(store_url, tmp_path):
    artifacts = Artifacts(store_url, tmp_path / "cache")
    made = artifacts.publish(manifest(), build(tmp_path, FILES))
    assert made.read("deep/config.json") == b"{}"
    with pytest.raises(NotFound, match=r"no file x; it has deep/config\.json, empty, weights"):
        made.read("x")


def test_the_manifest_is_written_last(store_url, tmp_path, monkeypatch):
    """Whenever the manifest can be read, every file can be."""
    seen = []
    if store_url.startswith("s3"):
        write = s3_module.S3Store.write

        def spy(self, key, data, **kw):
            if key.endswith(MANIFEST):
                there = {e.key.split("/", 3)[-1] for e in self.list(f"model/{FP}")}
                seen.append(there >= set(FILES))
            return write(self, key, data, **kw)

        monkeypatch.setattr(s3_module.S3Store, "write", spy)
    else:
        rename = Path.rename

        def spy(self, target):
            if Path(target).name == FP:
                seen.append(set(contents(self)) == set(FILES) and (self / MANIFEST).is_file())
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", spy)
    Artifacts(store_url).publish(manifest(), build(tmp_path, FILES))
    assert seen == [True]


def test_a_second_publication_gets_the_first_and_leaves_it_alone(store_url, tmp_path):
    artifacts = Artifacts(store_url)
    first = artifacts.publish(manifest(summary={"who": 1}), build(tmp_path, {"a": "one"}))
    keys = [e.key for e in artifacts.store.list()]
    folder = build(tmp_path, {"a": "two"})
    second = artifacts.publish(manifest(summary={"who": 2}), folder)
    assert second.manifest == first.manifest and contents(second.path()) == {"a": "one"}
    assert not folder.exists()
    assert [e.key for e in artifacts.store.list()] == keys


def publish_one(url: str, folder: str, who: int, cache: str, start) -> str:
    """A racing process: its bytes are its own, and what it returns is what it then reads."""
    os.environ["TOKENMILL_CACHE"] = cache
    start.wait()
    made = Artifacts(url).publish(manifest(summary={"who": who}), Path(folder))
    return json.dumps([made.summary["who"], sorted(contents(made.path()).items())])


def test_of_racing_processes_one_publishes_and_all_read_its_bytes(store_url, tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(4) as pool:
        for attempt in range(3):
            url = f"{store_url}/{attempt}"
            start = manager.Barrier(4)
            builds = [build(tmp_path, {"a": f"{i}" * 4000, "b": f"{i}"}) for i in range(4)]
            jobs = [
                pool.apply_async(publish_one, (url, str(builds[i]), i, str(tmp_path / f"cache{i}"), start))
                for i in range(4)
            ]
            results = {job.get(60) for job in jobs}
            assert len(results) == 1
            who, files = json.loads(results.pop())
            assert dict(files) == {"a": f"{who}" * 4000, "b": f"{who}"}
            found = Artifacts(url, tmp_path / f"reader{attempt}").find("model", FP)
            assert found is not None and found.summary["who"] == who
            assert contents(found.path()) == dict(files)
            assert not list(open_store(url).list("aside"))


def test_on_a_server_that_lets_all_writers_through_they_still_agree(s3_url, tmp_path, monkeypatch):
    """Each writer passes the look and the condition before any manifest is there: the worst a server can do."""
    import threading

    url = f"{s3_url}/{uuid.uuid4().hex}"
    writers = 3
    barrier = threading.Barrier(writers)
    real = s3_module.S3Store.write

    def all_at_once(self, key, data, *, if_absent=False):
        if key.endswith(MANIFEST) and if_absent:
            barrier.wait()
            return real(self, key, data)
        return real(self, key, data)

    monkeypatch.setattr(s3_module.S3Store, "write", all_at_once)
    results: list[Artifact] = []

    def work(i: int) -> None:
        folder = build(tmp_path, {"a": f"{i}" * 100})
        results.append(Artifacts(url, tmp_path / f"cache{i}").publish(manifest(summary={"who": i}), folder))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(writers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len({a.summary["who"] for a in results}) == 1
    who = results[0].summary["who"]
    assert all(contents(a.path()) == {"a": f"{who}" * 100} for a in results)
    found = Artifacts(url, tmp_path / "reader").find("model", FP)
    assert found is not None and found.summary["who"] == who and contents(found.path()) == {"a": f"{who}" * 100}


@pytest.mark.parametrize("where", ["before the manifest", "between the files"])
def test_a_kill_while_publishing_leaves_nothing_that_can_be_read(store_url, tmp_path, where):
    folder = build(tmp_path, FILES)
    code = KILLED.format(where=where, url=store_url, folder=str(folder), manifest=manifest().model_dump_json())
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    artifacts = Artifacts(store_url)
    assert artifacts.find("model", FP) is None
    assert list(artifacts.manifests("model")) == []
    again = artifacts.publish(manifest(), build(tmp_path, FILES))
    assert contents(again.path()) == FILES


def spoil(store_url: str, made: Artifact, how: str) -> None:
    store = open_store(store_url)
    prefix = made.manifest.prefix
    if how == "a file is missing":
        store.delete_prefix(prefix + "weights")
    elif how == "a file is short":
        store.write(prefix + "weights", b"w" * 4999)
    elif how == "bytes differ":
        store.write(prefix + "weights", b"v" * 5000)
    elif how == "the manifest is torn":
        store.write(f"model/{FP}/{MANIFEST}", b'{"format": 1, "ki')
    elif how == "the manifest is another's":
        store.write(f"model/{FP}/{MANIFEST}", manifest(fingerprint="other").model_dump_json().encode())


@pytest.mark.parametrize(
    "how", ["a file is missing", "a file is short", "the manifest is torn", "the manifest is another's"]
)
def test_what_is_torn_is_set_aside_with_the_reason_and_made_again(store_url, tmp_path, how):
    artifacts = Artifacts(store_url)
    spoil(store_url, artifacts.publish(manifest(), build(tmp_path, FILES)), how)
    assert artifacts.find("model", FP) is None
    aside = [e.key for e in artifacts.store.list("aside")]
    reasons = [k for k in aside if k.endswith("/reason.txt")]
    assert len(reasons) == 1 and reasons[0].startswith(f"aside/model-{FP}-")
    word = {"a file is missing": "weights is missing", "a file is short": "weights has 4999 bytes, not 5000"}
    assert word.get(how, "manifest") in artifacts.store.read(reasons[0]).decode()
    assert artifacts.find("model", FP) is None
    again = artifacts.publish(manifest(), build(tmp_path, FILES))
    assert contents(again.path()) == FILES
    assert len([e for e in artifacts.store.list("aside") if e.key.endswith("/reason.txt")]) == 1


def test_a_publication_takes_the_place_of_what_is_torn_there(store_url, tmp_path):
    """Another process may have found nothing when it began, and only now something that nobody can read."""
    artifacts = Artifacts(store_url)
    spoil(store_url, artifacts.publish(manifest(), build(tmp_path, FILES)), "a file is missing")
    assert contents(artifacts.publish(manifest(), build(tmp_path, FILES)).path()) == FILES


def test_a_local_folder_without_a_manifest_is_set_aside(tmp_path):
    artifacts = Artifacts(tmp_path / "store")
    artifacts.store.write(f"model/{FP}/weights", b"half")
    assert artifacts.find("model", FP) is None
    assert [e.key.split("/", 2)[2] for e in artifacts.store.list("aside")] == ["reason.txt", "weights"]


def test_what_is_published_between_two_looks_is_found_not_set_aside(tmp_path, monkeypatch):
    artifacts = Artifacts(tmp_path / "store")
    artifacts.publish(manifest(), build(tmp_path, FILES))
    looks = []
    read = local_module.LocalStore.read

    def not_yet(self, key):
        looks.append(key)
        if len(looks) == 1:
            raise NotFound("not yet")
        return read(self, key)

    monkeypatch.setattr(local_module.LocalStore, "read", not_yet)
    assert artifacts.find("model", FP) is not None
    assert not list(artifacts.store.list("aside"))


def test_an_upload_under_way_is_not_taken_for_a_torn_artifact(s3_url):
    artifacts = Artifacts(f"{s3_url}/{uuid.uuid4().hex}")
    artifacts.store.write(f"model/{FP}/nonce/weights", b"half")
    assert artifacts.find("model", FP) is None
    assert [e.key for e in artifacts.store.list()] == [f"model/{FP}/nonce/weights"]


def test_wrong_bytes_are_never_read(store_url, tmp_path):
    artifacts = Artifacts(store_url, tmp_path / "writer")
    spoil(store_url, artifacts.publish(manifest(), build(tmp_path, FILES)), "bytes differ")
    reader = Artifacts(store_url, tmp_path / "reader")
    found = reader.find("model", FP)
    assert found is not None  # the sizes are right
    with pytest.raises(Corrupt, match="weights has another checksum"):
        found.path()
    assert reader.find("model", FP) is None
    assert "checksum" in next(
        reader.store.read(e.key).decode() for e in reader.store.list("aside") if e.key.endswith("reason.txt")
    )


def test_one_wrong_file_is_never_read_either(store_url, tmp_path):
    artifacts = Artifacts(store_url, tmp_path / "writer")
    made = artifacts.publish(manifest(), build(tmp_path, FILES))
    spoil(store_url, made, "bytes differ")
    with pytest.raises(Corrupt, match="weights has another checksum"):
        made.read("weights")
    assert artifacts.find("model", FP) is None


def test_checksums_are_taken_on_the_first_use_in_a_process_only(store_url, tmp_path, monkeypatch):
    artifacts = Artifacts(store_url)
    artifacts.publish(manifest(), build(tmp_path, FILES))
    calls = []
    real = folder_module.sha256_files
    monkeypatch.setattr(folder_module, "sha256_files", lambda paths: calls.append(1) or real(paths))
    found = artifacts.find("model", FP)
    assert found is not None and calls == []
    found.path(verify=False)
    assert calls == []
    for _ in range(3):
        found.path()
    assert calls == [1]
    monkeypatch.setattr(folder_module, "_verified", set())  # another process
    found.path()
    assert calls == [1, 1]


def test_a_damaged_copy_in_the_cache_is_fetched_again(s3_url, tmp_path, monkeypatch):
    url = f"{s3_url}/{uuid.uuid4().hex}"
    Artifacts(url, tmp_path / "writer").publish(manifest(), build(tmp_path, FILES))
    found = Artifacts(url, tmp_path / "reader").find("model", FP)
    assert found is not None
    (found.path() / "weights").write_text("x" * 5000, encoding="utf-8")
    monkeypatch.setattr(folder_module, "_verified", set())
    assert contents(found.path()) == FILES
    assert Artifacts(url).find("model", FP) is not None  # the store's own was never at fault


def test_what_was_uploaded_is_not_downloaded_again(s3_url, tmp_path, monkeypatch):
    made = Artifacts(f"{s3_url}/{uuid.uuid4().hex}", tmp_path / "c").publish(manifest(), build(tmp_path, FILES))
    monkeypatch.setattr(s3_module.S3Store, "download", lambda *a: pytest.fail("downloaded"))
    assert contents(made.path()) == FILES


def fetch_one(pickled: bytes, cache: str, start) -> int:
    os.environ["TOKENMILL_CACHE"] = cache
    downloads = []
    real = s3_module.S3Store.download
    s3_module.S3Store.download = lambda self, key, path: (downloads.append(key), real(self, key, path))[1]
    artifact = pickle.loads(pickled)
    start.wait()
    assert contents(artifact.path()) == FILES
    return len(downloads)


def test_many_processes_share_one_download(s3_url, tmp_path):
    url = f"{s3_url}/{uuid.uuid4().hex}"
    made = Artifacts(url).publish(manifest(), build(tmp_path, FILES))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(3) as pool:
        start = manager.Barrier(3)
        arguments = [(pickle.dumps(made), str(tmp_path / "shared"), start)] * 3
        assert sorted(pool.starmap(fetch_one, arguments)) == [0, 0, 3]


def test_a_process_that_finds_an_artifact_torn_leaves_the_one_made_meanwhile(store_url, tmp_path):
    artifacts = Artifacts(store_url)
    spoil(store_url, artifacts.publish(manifest(), build(tmp_path, FILES)), "a file is missing")
    seen = artifacts.store.read(f"model/{FP}/{MANIFEST}")
    assert artifacts.find("model", FP) is None  # this process sets it aside …
    made = artifacts.publish(manifest(), build(tmp_path, FILES))  # … and makes it again …
    artifacts._set_aside(f"model/{FP}", seen, "torn")  # … before the other, which saw the same, comes to it
    found = artifacts.find("model", FP)
    assert found is not None and found.manifest == made.manifest
    assert contents(found.path()) == FILES


def test_a_newer_format_is_refused_and_left_alone(store_url, tmp_path):
    artifacts = Artifacts(store_url)
    made = artifacts.publish(manifest(), build(tmp_path, FILES))
    newer = made.manifest.model_copy(update={"format": artifact_module.FORMAT + 1}).model_dump_json().encode()
    artifacts.store.write(f"model/{FP}/{MANIFEST}", newer)
    with pytest.raises(StoreError, match="newer tokenmill"):
        artifacts.find("model", FP)
    assert not list(artifacts.store.list("aside"))


def test_a_folder_with_links_or_a_manifest_of_its_own_is_refused(tmp_path):
    artifacts = Artifacts(tmp_path / "store")
    linked = build(tmp_path, FILES)
    (linked / "link").symlink_to(linked / "weights")
    with pytest.raises(ValueError, match="link is a link"):
        artifacts.publish(manifest(), linked)
    with pytest.raises(ValueError, match="the store's own"):
        artifacts.publish(manifest(), build(tmp_path, {MANIFEST: "{}"}))
    assert artifacts.find("model", FP) is None


def test_a_folder_on_another_file_system_is_published_whole(tmp_path, monkeypatch):
    import errno

    rename = Path.rename

    def across(self, target):
        if self.name.startswith("build-"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    folder = build(tmp_path, FILES)
    made = Artifacts(tmp_path / "store").publish(manifest(), folder)
    assert contents(made.path()) == FILES and not folder.exists()


def test_lineage_is_a_walk_over_manifests_inputs_first(store_url, tmp_path):
    artifacts = Artifacts(store_url)

    def publish(kind: str, **inputs: str) -> Artifact:
        refs = {role: InputRef(kind=role, fingerprint=fp) for role, fp in inputs.items()}
        return artifacts.publish(manifest(kind=kind, fingerprint=f"{kind}1", inputs=refs), build(tmp_path, {"x": kind}))

    publish("documents", corpus="corpus1")  # the corpus has been deleted
    publish("tokenizer", documents="documents1")
    publish("tokens", documents="documents1", tokenizer="tokenizer1")
    model = publish("model", tokens="tokens1", tokenizer="tokenizer1")
    assert [a.kind for a in artifacts.lineage(model)] == ["documents", "tokenizer", "tokens", "model"]


def test_the_lineage_of_a_diamond_is_walked_once_for_each_edge(tmp_path, monkeypatch):
    artifacts = Artifacts(tmp_path / "store")
    for i in range(12):
        refs = {role: InputRef(kind="model", fingerprint=f"{i - 1}") for role in ("left", "right") if i}
        made = artifacts.publish(manifest(fingerprint=f"{i}", inputs=refs), build(tmp_path, {"x": f"{i}"}))
    reads: list[str] = []
    real = Artifacts.manifest
    monkeypatch.setattr(Artifacts, "manifest", lambda self, kind, fp: (reads.append(fp), real(self, kind, fp))[1])
    assert [a.fingerprint for a in artifacts.lineage(made)] == [f"{i}" for i in range(12)]
    assert len(reads) == 2 * 11


def test_finding_eleven_artifacts_takes_a_moment(tmp_path):
    import time

    artifacts = Artifacts(tmp_path / "store")
    for i in range(11):
        artifacts.publish(manifest(fingerprint=f"{i:020d}"), build(tmp_path, {f"shard-{j}": "x" for j in range(20)}))
    begun = time.process_time()
    assert all(artifacts.find("model", f"{i:020d}") for i in range(11))
    assert time.process_time() - begun < 0.5
