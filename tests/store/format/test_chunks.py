"""Fault F13 and misplaced shards: a chunk is the one its commit record names, or an error."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from zarr.storage import LocalStore

from cachedet.errors import CorruptBlockError, StoreError
from cachedet.store.files.source import LocalFiles, OpenFile
from cachedet.store.format.commits import check_block, digest_of, read_record
from cachedet.store.format.layout import commit_key, shard_key
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store


def with_one_open_file(root: Path) -> FeatureStore:
    store = FeatureStore.open(root)
    store._chunks._most_files = 1
    return store


READERS: dict[str, Callable[[Path], FeatureStore]] = {
    "local": FeatureStore.open,
    "one open file": with_one_open_file,
    "zarr storage": lambda root: FeatureStore.open(LocalStore(root, read_only=True)),
}
FIRST = "base-b96x128-000000"  # rows 0 and 1
SECOND = "base-b96x128-000001"  # rows 3 and 4


def misplace(root: Path, number: int) -> tuple[str, str]:
    """Put an array's first shard in the place of its second; returns the array and the key.

    Length and digest in the record are made to fit: only the ends of the chunks tell.
    """
    plan = StorePlan.load(LocalFiles(root))
    first, second = (block for block in plan.blocks if block.name in (FIRST, SECOND))
    array, part = list(plan.layout.parts(first.bucket).items())[number]
    key = shard_key(second, array, part)
    shutil.copyfile(root / shard_key(first, array, part), root / key)
    record = read_record(plan.source, second)
    file = plan.source.open(key)
    shard = replace(record.shards[array], nbytes=file.nbytes, digest=digest_of(file))
    forged = replace(record, shards={**record.shards, array: shard})
    (root / commit_key(second)).write_bytes(forged.to_bytes())
    return array, key


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("codec", ["fp16", "int8", "int8+zstd", "snr12"])
def test_a_shard_of_another_block_is_not_handed_out(
    tmp_path: Path, codec: str, number: int, reader: str, kit: Any
) -> None:
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec=codec)
    array, key = misplace(root, number)
    store = READERS[reader](root)
    message = rf"{key} \(block {SECOND}\): image . of the block ends with the checksum .*"
    message += r"was committed: another shard lies in its place; run `cachedet verify --deep STORE`"
    for row in (3, 4):
        with pytest.raises(CorruptBlockError, match=message):
            store.read(row, "base")
    assert set(store.read(0, "base")) == {"C4", "C5"}
    other = "C5" if array.startswith("C4") else "C4"
    assert set(store.read(3, "base", [other])) == {other}


def test_shards_that_changed_places_are_withdrawn_and_repaired(root: Path, kit: Any) -> None:
    whole = kit.files(root)
    first, second = (root / f"base/b96x128/C4/values/c/{n}/0/0/0" for n in (0, 1))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(CorruptBlockError, match="another shard lies in its place"):
        FeatureStore.open(root).read(0, "base")
    assert [bad.name for bad in verify_store(root, deep=True).bad] == [FIRST, SECOND]
    kit.fill(root)
    assert kit.files(root) == whole


def write_anew(root: Path, kit: Any, *, codec: str) -> None:
    """The first block, with other content."""
    (root / f"commits/{FIRST}.json").unlink()
    kit.fill(
        root, lambda b: {k: m.flip(1) * 2 + 1 for k, m in kit.noise_of(b).items()}, codec=codec
    )


WRITTEN_ANEW = r"block base-b96x128-000000\) was written anew while this store was open; open the"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", ["fp16", "int8", "int8+zstd", "snr12"])
def test_levels_of_two_commits_are_not_mixed(
    tmp_path: Path, codec: str, reader: str, kit: Any
) -> None:
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec=codec)
    store = READERS[reader](root)
    before = store.read(0, "base", ["C4"])
    write_anew(root, kit, codec=codec)
    with pytest.raises(CorruptBlockError, match=WRITTEN_ANEW):
        store.read(0, "base", ["C5"])
    if reader == "local":  # its old file is still open
        torch.testing.assert_close(store.read(0, "base", ["C4"]), before)
    fresh = READERS[reader](root).read(0, "base")
    assert not torch.allclose(fresh["C4"], before["C4"])


class HookedFiles(LocalFiles):
    """Something happens just before a shard is opened for the first time."""

    def __init__(self, root: Path, *, before: str, do: Callable[[], None]) -> None:
        super().__init__(root)
        self._before = before
        self._waiting = [do]

    def open(self, key: str) -> OpenFile:
        if key.startswith(self._before) and self._waiting:
            self._waiting.pop()()
        return super().open(key)


def test_parts_of_two_commits_are_not_mixed(tmp_path: Path, kit: Any) -> None:
    """Codes of the old commit times scales of the new one would be nobody's features."""
    root = kit.fill(tmp_path / "s.zarr", kit.noise_of, codec="int8")
    scale = "base/b96x128/C4/scale/c/0"
    rewrite = HookedFiles(root, before=scale, do=lambda: write_anew(root, kit, codec="int8"))
    store = FeatureStore(StorePlan.load(rewrite))
    with pytest.raises(CorruptBlockError, match=f"{scale}.*{WRITTEN_ANEW}"):
        store.read(0, "base", ["C4"])


@pytest.mark.parametrize("reader", READERS)
def test_the_same_bytes_written_anew_are_read_on(root: Path, reader: str, kit: Any) -> None:
    """Extracting a withdrawn block again gives the committed bytes again (law L5)."""
    store = READERS[reader](root)
    expected = store.read(0, "base", ["C4"])
    (root / f"commits/{FIRST}.json").unlink()
    kit.fill(root)
    store.read(2, "base", ["C4"])  # with one open file the new one is opened now
    torch.testing.assert_close(store.read(0, "base", ["C4"]), expected, rtol=0, atol=0)
    assert float(store.read(0, "base", ["C5"])["C5"].max()) == 0.5


def test_a_block_withdrawn_under_an_open_store_says_so(root: Path, kit: Any) -> None:
    store = FeatureStore.open(root)
    kit.flip_bit(root / "base/b96x128/C4/values/c/0/0/0/0", 3)
    verify_store(root, deep=True)
    with pytest.raises(CorruptBlockError, match="was withdrawn, or is being written anew, while"):
        store.read(0, "base")


class HookedFile:
    """A file that does something before each read."""

    def __init__(self, file: OpenFile, do: Callable[[], None]) -> None:
        self.nbytes, self.identity = file.nbytes, file.identity
        self._file, self._do = file, do

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._do()
        self._file.read_into(offset, buffers)


class HookedReads(LocalFiles):
    """Something happens before each read of files with these words in their key."""

    def __init__(self, root: Path, hooks: dict[str, Callable[[], None]]) -> None:
        super().__init__(root)
        self._hooks = hooks

    def open(self, key: str) -> OpenFile:
        file = super().open(key)
        hook = next((do for words, do in self._hooks.items() if words in key), None)
        return file if hook is None else HookedFile(file, hook)


def fail_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_disk_that_fails_is_not_taken_for_damage(root: Path) -> None:
    failing = fail_with(OSError(errno.EIO, "Input/output error"))
    source = HookedReads(root, {"C4/values": failing})
    plan = StorePlan.load(source)
    message = r"C4/values/c/0/0/0/0.* cannot be read: Input/output error. That proves no damage"
    with pytest.raises(StoreError, match=message) as caught:  # the index is what is read first
        FeatureStore(plan).read(0, "base")
    assert not isinstance(caught.value, CorruptBlockError)
    with pytest.raises(StoreError, match=message):
        check_block(plan, plan.blocks[0], deep=True)


def test_a_shard_cut_off_while_it_is_read(root: Path) -> None:
    cut = fail_with(EOFError("the file ends at 7"))
    source = HookedReads(root, {"C4/values": cut})
    plan = StorePlan.load(source)
    with pytest.raises(CorruptBlockError, match=r"the shard was cut off \(the file ends at 7\)"):
        FeatureStore(plan).read(0, "base")
    _, fault = check_block(plan, plan.blocks[0], deep=True)
    assert "was cut off" in fault.reason
