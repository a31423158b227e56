"""Reading from a server: how often it is asked, what a copy on the disk spares and never hides."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.errors import RemoteStoreError, StoreError
from cachedet.store.files.disk_cache import DiskCache
from cachedet.store.reader import FeatureStore

Kit = Any
pytest.importorskip("obstore", reason="pip install 'cachedet[remote]'")
IMAGES = 40
OPTIONS: dict[str, Any] = {"codec": "int8+zstd", "block_size": 16, "batch_size": 16}


@pytest.fixture
def many(kit: Kit) -> Kit:
    """Of forty images of one bucket: blocks of 16, 16 and 8 in each view."""
    blank: Kit = kit.blank(IMAGES)
    return blank


@pytest.fixture
def local(many: Kit, tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(many.fill(tmp_path / "s.zarr", many.noise_of, **OPTIONS))


@pytest.fixture
def url(many: Kit, s3: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "3")
    url: str = s3.new_url()
    many.fill(url, many.noise_of, **OPTIONS)
    return url


def require_same(store: FeatureStore, exact: FeatureStore, rows: Sequence[int]) -> None:
    """One read of these rows gives what each alone is in the local store."""
    bucket = exact.bucket_of(rows[0], "base")
    of_one, of_other = (some.make_buffers(bucket, len(rows)) for some in (store, exact))
    for some, out in ((store, of_one), (exact, of_other)):
        some.read_encoded([(row, "base") for row in rows], out=out)
    for level, arrays in of_one.arrays.items():
        for name, array in arrays.items():
            assert array.tobytes() == of_other.arrays[level][name].tobytes()


def asked(s3: Any) -> int:
    """GETs of chunks and indices since the last call."""
    found = sum(method == "GET" and "/c/" in key for method, key in s3.requests)
    s3.requests.clear()
    return found


PARTS = 4  # codes and scales of two levels
SHARDS = PARTS * 3


def test_neighbours_are_one_request(
    url: str, s3: Any, local: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index and a range for each shard; of neighbours one, of distant images two."""
    store = FeatureStore.open(url)
    s3.requests.clear()
    require_same(store, local, range(IMAGES))
    assert sum(method == "HEAD" and "/c/" in key for method, key in s3.requests) == SHARDS
    assert asked(s3) == 2 * SHARDS
    require_same(store, local, [3, 1, 2, 2])
    assert asked(s3) == PARTS
    require_same(store, local, [0, 15])
    assert asked(s3) == PARTS  # what lies between is little
    monkeypatch.setattr("cachedet.store.format.fetching._NEAR", 0)
    require_same(store, local, [0, 15])
    assert asked(s3) == 2 * PARTS
    require_same(store, local, range(0, 16, 3))
    assert asked(s3) == 6 * PARTS
    require_same(store, local, [row for row in range(16) if row % 3])
    assert asked(s3) == PARTS  # most of a shard is asked for as a whole
    monkeypatch.setattr("cachedet.store.format.fetching._PIECE", 50)
    require_same(store, local, range(16))
    assert asked(s3) > 2 * PARTS


def test_packed_images_are_those_of_a_folder(url: str, s3: Any, local: FeatureStore) -> None:
    store = FeatureStore.open(url)
    keys = [(row, "hflip") for row in range(8)]
    bucket = store.bucket_of(0, "hflip")
    s3.requests.clear()
    mine = store.read_packed(keys, out=store.make_buffers(bucket, 8))
    assert asked(s3) == 2 * PARTS
    its = local.read_packed(keys, out=local.make_buffers(bucket, 8))
    for one, other in zip(mine, its, strict=True):
        for part, exact in zip(one, other, strict=True):
            assert bytes(part) == bytes(exact)


def test_what_was_read_once_is_not_asked_for_again(
    url: str, s3: Any, local: FeatureStore, tmp_path: Path
) -> None:
    """Also by another process, and by another store of the same bytes; files are the shards."""
    store = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", 10**9))
    require_same(store, local, [7, 0, 39])
    require_same(store, local, range(IMAGES))
    s3.requests.clear()
    require_same(store, local, range(IMAGES))
    require_same(store, local, [7, 0, 39])
    maps, exact = store.read(5, "base"), local.read(5, "base")
    assert all(torch.equal(maps[level], exact[level]) for level in exact)
    again = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", 10**9))
    require_same(again, local, [20, 2])
    assert asked(s3) == 0
    shards = {
        path.read_bytes() for path in (tmp_path / "s.zarr/base").rglob("c/**/*") if path.is_file()
    }
    assert {path.read_bytes() for path in (tmp_path / "cache").glob("??/*")} == shards


def test_a_damaged_copy_is_fetched_anew(
    url: str, s3: Any, local: FeatureStore, tmp_path: Path, kit: Kit
) -> None:
    """Bits, a lost end, an empty file, a lost file: each is noticed, and repaired."""
    store = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", 10**9))
    require_same(store, local, range(IMAGES))
    whole = {path: path.read_bytes() for path in (tmp_path / "cache").glob("??/*")}

    def read_anew() -> None:
        fresh = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", 10**9))
        s3.requests.clear()
        require_same(fresh, local, range(IMAGES))
        assert asked(s3) > 0
        assert {path: path.read_bytes() for path in (tmp_path / "cache").glob("??/*")} == whole
        require_same(fresh, local, range(IMAGES))
        assert asked(s3) == 0

    harms: list[Callable[[Path, bytes], object]] = [
        lambda path, content: path.write_bytes(content[:5] + b"?" + content[6:]),
        lambda path, content: path.write_bytes(content[:-3] + b"???"),
        lambda path, content: path.write_bytes(content[: len(content) // 2]),
        lambda path, content: path.write_bytes(b""),
        lambda path, content: path.unlink(),
    ]
    for harm, (path, content) in zip(harms, list(whole.items()), strict=False):
        harm(path, content)
        read_anew()


def test_a_store_that_was_extracted_anew_never_meets_old_copies(
    many: Kit, url: str, s3: Any, tmp_path: Path
) -> None:
    """The same URL and the same names, with other bytes."""
    cache = tmp_path / "cache"
    store = FeatureStore.open(url).cached_in(DiskCache.make(cache, 10**9))
    store.read(0, "base")
    other = s3.new_url()
    many.fill(other, many.features_of, **OPTIONS)
    anew = FeatureStore.open(other).cached_in(DiskCache.make(cache, 10**9))
    exact = FeatureStore.open(other)
    for row in (0, 1, 20):
        assert torch.equal(anew.read(row, "base")["C4"], exact.read(row, "base")["C4"])


def test_the_bound_is_held_while_everything_is_read(
    url: str, s3: Any, local: FeatureStore, tmp_path: Path
) -> None:
    """What has no room is read from the server, in every epoch the same share."""
    most = local.nbytes // 4
    store = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", most))
    costs = []
    for _ in range(3):
        s3.requests.clear()
        for row in (17, 3, 39, 20, 0, 8, 31):
            require_same(store, local, [row])
        costs.append(asked(s3))
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("??/*")) <= most
    assert costs[0] > costs[1] == costs[2] > 0


def test_a_server_that_is_away_is_noticed_only_for_what_is_not_here(
    url: str, s3: Any, local: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "0.2")
    store = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", 10**9))
    require_same(store, local, [0, 1, 2])
    s3.before = lambda method, key: (403, "AccessDenied")
    require_same(store, local, [2, 1])
    with pytest.raises(RemoteStoreError, match="refuses the credentials .AccessDenied."):
        require_same(store, local, [2, 3])


def test_other_bytes_are_never_kept(
    url: str, s3: Any, local: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends another object: an error, and no copy of it is believed later."""
    store = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", 10**9))
    require_same(store, local, [0])
    honest = s3._storage
    bad = [True]

    def lying(environ: Any, start: Any) -> Any:
        body = b"".join(honest(environ, start))
        return [
            bytes(255 - byte for byte in body) if bad[0] and "/c/" in environ["PATH_INFO"] else body
        ]

    monkeypatch.setattr(s3, "_storage", lying)
    with pytest.raises(StoreError, match="other bytes than were written"):
        require_same(store, local, [5])
    bad[0] = False
    require_same(store, local, [5])
    require_same(store, local, [0, 5])


_READER = """
import os, sys, time
os.environ.update({environment!r})
from cachedet.store.files.disk_cache import DiskCache
from cachedet.store.reader import FeatureStore
store = FeatureStore.open({url!r}).cached_in(DiskCache.make(root.parent / "cache", 10**9))
print("begun", flush=True)
for _ in range({rounds}):
    for row in range(40):
        out = store.make_buffers(store.bucket_of(row, "base"), 1)
        store.read_encoded([(row, "base")], out=out)
print("ended", flush=True)
"""


def test_processes_that_fill_one_cache_and_one_that_is_killed(
    many: Kit, url: str, s3: Any, local: FeatureStore, tmp_path: Path, thorough: bool
) -> None:
    """Two read everything at once, one of them is killed on the way: the copies are the shards."""
    if not thorough:
        pytest.skip("two processes take 10 s")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("AWS_", "CACHEDET_REMOTE"))
    }
    body = _READER.format(environment=environment, url=url, rounds=1)
    endless = _READER.format(environment=environment, url=url, rounds=10**6)
    with (
        many.start(tmp_path / "s.zarr", body) as one,
        many.start(tmp_path / "s.zarr", endless) as other,
    ):
        assert other.stdout.readline() == "begun\n"
        other.send_signal(signal.SIGKILL)
        output, errors = one.communicate()
        other.wait()
    assert output.endswith("ended\n"), errors
    shards = {
        path.read_bytes() for path in (tmp_path / "s.zarr/base").rglob("c/**/*") if path.is_file()
    }
    assert {path.read_bytes() for path in (tmp_path / "cache").glob("??/*")} == shards
    s3.requests.clear()
    store = FeatureStore.open(url).cached_in(DiskCache.make(tmp_path / "cache", 10**9))
    require_same(store, local, range(IMAGES))
    assert asked(s3) == 0
