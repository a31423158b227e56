"""Reading a store behind a storage that fails in every way a server can, without any server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from cachedet.errors import CorruptBlockError, RemoteStoreError, StoreError
from cachedet.store.files.depot import open_depot
from cachedet.store.files.remote import ZarrStorage, open_url
from cachedet.store.files.schemes import open_object_storage
from cachedet.store.reader import FeatureStore

Fault = Callable[[str, bytes], "bytes | None"]
SHARD, RECORD = "/c/", "commits/"
PAGE = b"\n<!DOCTYPE html><html><title>Sign in</title>" + b" " * 4000
SAYS_DAMAGE = ("damage", "corrupt", "repair", "verify", "extract")


class FaultyStore(WrapperStore[LocalStore]):
    """A storage of its own kind: what it gives goes through `fault` first, which may raise."""

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.fault: Fault = lambda key, content: content
        self.asked: list[str] = []

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        self.asked.append(key)
        found = await self._store.get(key, prototype, byte_range)
        content = self.fault(key, b"" if found is None else found.to_bytes())
        if content is None or found is None:
            return None
        if content == b"stall":
            await asyncio.sleep(3600)
        return prototype.buffer.from_bytes(content)

    async def getsize(self, key: str) -> int:
        return await self._store.getsize(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        self.fault(prefix, b"")
        async for name in self._store.list_dir(prefix):
            yield name


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "0.5")
    monkeypatch.setenv("CACHEDET_REMOTE_TIMEOUT", "0.2")


@pytest.fixture
def faulty(root: Path) -> FaultyStore:
    return FaultyStore(LocalStore(root, read_only=True))


def at(part: str, act: Callable[[bytes], bytes | None], *, first: int = 10**9) -> Fault:
    """`act` on what keys with `part` give, the first so many times."""
    left = [first]

    def fault(key: str, content: bytes) -> bytes | None:
        if part not in key or left[0] == 0:
            return content
        left[0] -= 1
        return act(content)

    return fault


def failing(error: Exception) -> Callable[[bytes], bytes]:
    def act(_: bytes) -> bytes:
        raise error

    return act


def read_all(faulty: FaultyStore, fault: Fault | None = None) -> FeatureStore:
    """Open it; `fault` begins once it is open. Each image must be what was written."""
    store = FeatureStore.open(faulty)
    faulty.fault = fault or faulty.fault
    for row in range(len(store)):
        for view, flip in (("base", 0.0), ("hflip", 100.0)):
            maps = store.read(row, view)
            assert torch.equal(maps["C4"], torch.full_like(maps["C4"], row + flip))
    return store


class Status(Exception):
    """An answer of a web server."""

    def __init__(self, status: int) -> None:
        super().__init__("url='http://alice:S3CRET@host/s.zarr?sig=S3CRET'")
        self.status = status


PASSING = {
    "503": failing(Status(503)),
    "429": failing(Status(429)),
    "cut": failing(ConnectionResetError("S3CRET")),
    "stalled": lambda _: b"stall",
    "short": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "page": lambda _: PAGE,
    "other bytes": lambda content: bytes(255 - byte for byte in content),
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("part", [SHARD, RECORD, "manifest.json", "images.npz", "zarr.json"])
def test_what_passes_is_not_noticed(faulty: FaultyStore, fault: str, part: str) -> None:
    faulty.fault = at(part, PASSING[fault], first=1)
    read_all(faulty)


LASTING = {
    "503": (failing(Status(503)), "503 Service Unavailable .tried"),
    "cut": (failing(ConnectionResetError("S3CRET")), "connection was cut .tried"),
    "stalled": (lambda _: b"stall", "no answer came in time .tried"),
    "short": (lambda content: content[: len(content) // 2], "ended early, after|is cut off"),
    "page": (lambda _: PAGE, "a web page instead of the file"),
    "JSON": (lambda _: b'{"error": "who are you?"}', "JSON without|ended early|no .npz"),
    "other bytes": (
        lambda content: bytes(255 - byte for byte in content),
        "sends other bytes than were written, also when it is asked again",
    ),
    "401": (failing(Status(401)), "401 Unauthorized: it wants credentials. Give credentials"),
    "403": (failing(Status(403)), "403 Forbidden.*Give credentials"),
    "404": (lambda _: None, "there is no such object .404|has no manifest.json"),
    "no ranges": (lambda content: content + bytes(40 << 20), "knows no range requests.*Serve"),
}


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("part", [SHARD, "images.npz", "manifest.json"])
def test_what_lasts_is_called_what_it_is_and_never_damage(
    faulty: FaultyStore, fault: str, part: str
) -> None:
    act, words = LASTING[fault]
    faulty.fault = at(part, act)
    with pytest.raises(StoreError, match=words) as raised:
        read_all(faulty)
    text = str(raised.value)
    assert "S3CRET" not in text
    assert not isinstance(raised.value, CorruptBlockError)
    if "has no manifest.json" not in text:
        assert isinstance(raised.value, RemoteStoreError)
        assert raised.value.__cause__ is None
        assert not [word for word in SAYS_DAMAGE if word in text.lower().replace("alter", "")]


def test_altered_records_of_a_server_are_no_damage(faulty: FaultyStore) -> None:
    """JSON with every field, and another value."""

    def alter(content: bytes) -> bytes:
        values = json.loads(content)
        return json.dumps({**values, "block": "another"}).encode()

    faulty.fault = at(RECORD, alter)
    with pytest.raises(RemoteStoreError, match="sends other bytes than were written"):
        FeatureStore.open(faulty)


def test_a_folder_is_still_damaged(root: Path) -> None:
    """What lies on this machine is judged as before, through zarr's storage class too."""
    shard = root / "base/b96x128/C4/values/c/0/0/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    for location in (root, LocalStore(root, read_only=True), f"file://{root}"):
        store = FeatureStore.open(location)
        with pytest.raises(CorruptBlockError, match="verify --deep"):
            store.read(0, "base")


def test_a_server_that_does_not_list_is_read_by_names(faulty: FaultyStore) -> None:
    def fault(key: str, content: bytes) -> bytes:
        if key.rstrip("/") == "commits":
            raise Status(403)
        return content

    faulty.fault = fault
    read_all(faulty).require_complete()


def test_requests_are_small_enough_to_be_answered_in_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file comes in pieces, each of which is asked again on its own."""
    monkeypatch.setattr("cachedet.store.files.remote._REQUEST_NBYTES", 100)
    faulty = FaultyStore(LocalStore(root, read_only=True))
    counts: dict[str, int] = {}

    def fault(key: str, content: bytes) -> bytes:
        assert len(content) <= 100
        counts[key] = counts.get(key, 0) + 1
        if counts[key] == 2:
            raise Status(502)
        return content

    faulty.fault = fault
    read_all(faulty)
    assert counts["manifest.json"] > 10


def test_missing_objects_of_a_shard_name_the_copy(faulty: FaultyStore) -> None:
    faulty.fault = at(SHARD, lambda _: None)
    with pytest.raises(RemoteStoreError, match="The copy there is not complete"):
        read_all(faulty)


def test_locations_are_shown_without_credentials(root: Path) -> None:
    """A storage object of the user's, and a URL whose file system needs no server."""

    class Named(FaultyStore):
        def __str__(self) -> str:
            return "<Storage http://alice:S3CRET@host/s.zarr?sig=S3CRET>"

    storage = ZarrStorage(Named(LocalStore(root, read_only=True)))
    assert storage.describe("x") == "<Storage http://host/s.zarr>/x"
    store = FeatureStore.open(f"file://{root}")
    assert store.location == f"file://{root}"


def test_storage_options_are_never_shown(root: Path) -> None:
    store = FsspecStore.from_url(f"memory://{root}", read_only=True)
    store.fs.storage_options = {"client_kwargs": {"secret": "S3CRET"}}
    storage = ZarrStorage(store)
    assert storage._hide("it said S3CRET") == "it said ***"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sftp://alice:S3CRET@host/s.zarr", "pip install paramiko"),
        ("nowhere://alice:S3CRET@host/x?sig=S3CRET", "cannot open nowhere://host/x: unknown kind"),
        (
            "s4://b/x",
            "unknown kind of place s4://; nearest: 's3', 'gs'; such as s3, ",
        ),
    ],
)
def test_urls_that_cannot_be_opened(url: str, words: str) -> None:
    if url.startswith("sftp") and _is_installed("paramiko"):
        pytest.skip("paramiko is installed")
    with pytest.raises(StoreError, match=words) as raised:
        open_url(url)
    assert "S3CRET" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("open_it", [open_url, open_depot])
@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_object_storages_without_the_extra(
    open_it: Callable[[str], object], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"cannot open .*pip install 'cachedet\[remote\]'"):
        open_it(f"{scheme}://bucket/s.zarr")


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_a_range_that_begins_behind_the_end_is_nothing(faulty: FaultyStore) -> None:
    """S3 and web servers call it an error, 416."""
    prototype = default_buffer_prototype()

    class Strict(FaultyStore):
        async def get(self, key: str, prototype: Any = prototype, byte_range: Any = None) -> Any:
            content = await super().get(key, prototype, byte_range)
            is_behind = isinstance(byte_range, RangeByteRequest) and byte_range.start > 0
            if content is not None and is_behind and not len(content):
                raise Status(416)
            return content

    strict = Strict(faulty._store)
    storage = ZarrStorage(strict)
    nbytes = len(storage.read("manifest.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cachedet.store.files.remote._REQUEST_NBYTES", nbytes)
        assert len(storage.read("manifest.json")) == nbytes


@pytest.mark.parametrize(
    ("url", "endpoint", "said"),
    [
        ("s3://", "http://127.0.0.1:1", "expected s3://BUCKET/NAME, got s3://"),
        ("s3:///x", "http://127.0.0.1:1", "expected s3://BUCKET/NAME, got s3:///x"),
        ("s3://b/x", "127.0.0.1:1", "AWS_ENDPOINT_URL must begin with http:// or https://, got 1"),
    ],
)
def test_addresses_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, url: str, endpoint: str, said: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError, match=said):
        open_object_storage(url)
