"""What a place to write a store must do, be it a folder, memory or a server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import ChangedMeanwhileError, RemoteStoreError, StoreError
from cachedet.store.files.bucket import Bucket
from cachedet.store.files.depot import Depot, Folder, open_depot
from cachedet.store.files.source import open_source
from cachedet.store.format.manifest import load_manifest

pytest.importorskip("obstore", reason="pip install 'cachedet[remote]'")


def in_memory() -> Bucket:
    from obstore.store import MemoryStore

    return Bucket(MemoryStore(), location="memory://s.zarr")


@pytest.fixture(params=["folder", "memory", "s3"])
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> Depot:
    if request.param == "folder":
        (tmp_path / "s.zarr").mkdir()
        return open_depot(tmp_path / "s.zarr")
    if request.param == "memory":
        return in_memory()
    return open_depot(request.getfixturevalue("s3").new_url())


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    if request.param == "memory":
        return in_memory()
    opened = open_depot(request.getfixturevalue("s3").new_url())
    assert isinstance(opened, Bucket)
    return opened


def test_what_is_put_is_read_listed_and_removed(depot: Depot) -> None:
    assert not depot.has("manifest.json")
    files = {"manifest.json": b'{"checksum": 1}', "base/C4/c/0/0": b"abc", "base/zarr.json": b"{}"}
    depot.put(files)
    depot.put({"base/C4/c/0/0": b"abcd"})
    assert depot.has("manifest.json")
    assert depot.source.read("manifest.json") == files["manifest.json"]
    assert depot.source.open("base/C4/c/0/0").nbytes == 4
    assert depot.sizes("base") == {"base/C4/c/0/0": 4, "base/zarr.json": 2}
    assert depot.sizes()["manifest.json"] == 15
    depot.remove(["base/zarr.json", "base/none"])
    assert set(depot.sizes("base")) == {"base/C4/c/0/0"}


def test_a_manifest_is_changed_by_one_at_a_time(depot: Depot) -> None:
    depot.put({"manifest.json": b'{"checksum": 1}'})
    with depot.changing():
        depot.put_manifest(b'{"checksum": 2}')
        depot.put_manifest(b'{"checksum": 3}')
    assert depot.source.read("manifest.json") == b'{"checksum": 3}'
    if isinstance(depot, Folder):
        return
    with depot.changing():
        depot.put({"manifest.json": b'{"checksum": 4}'})  # as another process
        with pytest.raises(ChangedMeanwhileError, match="changed by another process meanwhile"):
            depot.put_manifest(b'{"checksum": 5}')
    assert depot.source.read("manifest.json") == b'{"checksum": 4}'


def test_of_many_that_create_one_does(bucket: Bucket) -> None:
    """And each knows whether it was the one."""
    done: list[tuple[bytes, bool]] = []

    def create(text: bytes) -> None:
        done.append((text, bucket.create("commits/a.json", text)))

    texts = [bytes([65 + number]) * 10 for number in range(6)]
    threads = [threading.Thread(target=create, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [text for text, is_first in done if is_first]
    found = bucket.find("commits/a.json")
    assert found is not None
    assert found.content == winner
    assert len(done) == 6


def test_what_is_settled_stays_and_what_is_not_whole_is_replaced(bucket: Bucket) -> None:
    keeps = {"of": "f", "stays": lambda found: found.content.startswith(b"whole")}
    assert bucket.settle("c/0", b"whole 1", **keeps) == b"whole 1"
    assert bucket.settle("c/0", b"whole 2", **keeps) == b"whole 1"
    bucket.put({"c/1": b"torn"})
    assert bucket.settle("c/1", b"whole 3", **keeps) == b"whole 3"
    found = bucket.find("c/1")
    assert found is not None
    assert (found.content, found.of) == (b"whole 3", "f")


def test_only_what_was_found_is_replaced(bucket: Bucket) -> None:
    bucket.put({"a": b"1"})
    found = bucket.find("a")
    assert found is not None
    bucket.put({"a": b"2"})
    assert not bucket.replace("a", b"3", found)
    assert bucket.source.open("a").nbytes == 1
    bucket.remove(["a"])
    assert not bucket.replace("a", b"3", found)
    assert bucket.find("a") is None


def test_a_lost_answer_is_no_other_writer(s3: Any) -> None:
    """The object was made, and what came back was an error: the second try finds one's own."""
    bucket = open_depot(s3.new_url())
    assert isinstance(bucket, Bucket)
    lost = iter([(500, "InternalError")])
    s3.after = lambda method, key: next(lost, None) if method == "PUT" else None
    assert bucket.create("commits/a.json", b"mine")
    assert not bucket.create("commits/a.json", b"mine")


def test_a_conflict_that_is_not_settled_is_tried_again(s3: Any) -> None:
    """S3's 409 of a request with a condition, which obstore takes for an object that is there."""
    bucket = open_depot(s3.new_url())
    assert isinstance(bucket, Bucket)
    conflicts = iter([(409, "ConditionalRequestConflict")] * 3)
    s3.before = lambda method, key: next(conflicts, None) if method == "PUT" else None
    assert bucket.create("commits/a.json", b"mine")


@pytest.mark.parametrize("fault", [(500, "InternalError"), (503, "SlowDown"), (429, "Throttling")])
def test_what_passes_is_waited_for(s3: Any, fault: tuple[int, str]) -> None:
    bucket = open_depot(s3.new_url())
    every_other = iter([fault, None] * 100)
    s3.before = lambda method, key: next(every_other)
    bucket.put({"a": b"1", "b": b"2"})
    assert bucket.sizes() == {"a": 1, "b": 1}


LASTING = {
    "403": ((403, "AccessDenied"), "refuses the credentials .AccessDenied.*What was committed"),
    "expired": ((400, "ExpiredToken"), "refuses the credentials .ExpiredToken"),
    "503": ((503, "SlowDown"), "cannot be written: the server answered SlowDown .tried"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_said_without_a_secret(
    s3: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "0.5")
    bucket = open_depot(s3.new_url())
    answer, words = LASTING[fault]
    s3.before = lambda method, key: answer
    with pytest.raises(RemoteStoreError, match=words) as raised:
        bucket.put({"a": b"1"})
    assert "S3CRET" not in str(raised.value)


def test_a_server_that_comes_back(s3: Any) -> None:
    bucket = open_depot(s3.new_url())
    bucket.put({"a": b"1"})
    s3.stop()
    later = threading.Timer(1.0, s3.start)
    later.start()
    try:
        bucket.put({"b": b"2"})
        assert bucket.sizes() == {"a": 1, "b": 1}
    finally:
        later.join()


def test_a_place_is_tried_before_the_work(s3: Any) -> None:
    bucket = open_depot(s3.new_url())
    assert isinstance(bucket, Bucket)
    bucket.require_writable()
    assert bucket.sizes() == {}
    missing = open_depot("s3://no-such-bucket/s.zarr")
    assert isinstance(missing, Bucket)
    with pytest.raises(StoreError, match="s3://no-such-bucket/s.zarr.*no such bucket"):
        missing.require_writable()
    with pytest.raises(StoreError, match="^s3://no-such-bucket/s.zarr: there is no such bucket"):
        load_manifest(open_source("s3://no-such-bucket/s.zarr"))
    with pytest.raises(StoreError, match="is not a feature store: it has no manifest.json"):
        load_manifest(open_source(s3.new_url()))
    s3.before = lambda method, key: (403, "AccessDenied") if method == "PUT" else None
    with pytest.raises(StoreError, match="refuses the credentials .AccessDenied"):
        bucket.require_writable()


def test_a_storage_that_ignores_conditions_is_refused() -> None:
    class Careless(Bucket):
        def _put(self, key: str, content: bytes, *, mode: Any, **more: str) -> Any:
            return super()._put(key, content, mode="overwrite", **more)

    from obstore.store import MemoryStore

    bucket = Careless(MemoryStore(), location="s3://old/s.zarr")
    with pytest.raises(StoreError, match="refuses If-None-Match.*--rank and --world-size"):
        bucket.require_writable()
    assert bucket.sizes() == {}


def test_a_storage_that_refuses_conditions_is_refused(s3: Any) -> None:
    bucket = open_depot(s3.new_url())
    assert isinstance(bucket, Bucket)
    answers = iter([None, (501, "NotImplemented")])
    s3.before = lambda method, key: next(answers) if method == "PUT" else None
    with pytest.raises(StoreError, match="refuses If-None-Match"):
        bucket.require_writable()
    assert bucket.sizes() == {}


def test_larger_than_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachedet.store.files.bucket.MOST_NBYTES", 10)
    with pytest.raises(StoreError, match="smaller --block-size"):
        in_memory().create("c/0", bytes(11))


def test_places_that_are_only_read() -> None:
    with pytest.raises(StoreError, match="http://host/s.zarr cannot be written.*s3://"):
        open_depot("http://alice:S3CRET@host/s.zarr")
