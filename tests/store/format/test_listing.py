"""What zarr lists of a store, alone and in silence: warnings are errors in these tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.storage import ZipStore

from cachedet.errors import StoreError
from cachedet.store.format.listing import agrees, lists_all, split_listing, with_listing
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore

NODE = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
ROOT = json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}, indent=2).encode()
FILES = {"zarr.json": ROOT, "base/zarr.json": NODE, "base/b96x128/zarr.json": NODE}


def paths_of(place: Any) -> set[str]:
    group = zarr.open_group(place, mode="r")
    return {path for path, _ in group.members(max_depth=None)}


def found(root: Path) -> set[str]:
    below = (path.parent.relative_to(root) for path in root.rglob("zarr.json"))
    return {str(path) for path in below} - {"."}


def test_zarr_lists_all_arrays_and_nothing_else(root: Path, tmp_path: Path) -> None:
    paths = paths_of(root)
    assert paths == found(root)
    assert {"base", "hflip", "base/b96x128/C4/values"} <= paths
    for name, array in zarr.open_group(root / "base" / "b96x128", mode="r").members(max_depth=None):
        if isinstance(array, zarr.Array):
            listed = zarr.open_group(root, mode="r")[f"base/b96x128/{name}"]
            assert str(listed.metadata) == str(array.metadata)


def test_in_a_zip_file_too(root: Path, tmp_path: Path) -> None:

    packed = shutil.make_archive(str(tmp_path / "s"), "zip", root)
    assert paths_of(ZipStore(packed, mode="r")) == found(root)


def test_views_that_come_and_go_are_listed(tmp_path: Path, kit: Any) -> None:
    root = kit.fill(tmp_path / "s.zarr", views=("base",))
    assert "hflip" not in paths_of(root)
    kit.fill(root, views=("base", "hflip"))
    assert paths_of(root) == found(root) >= {"hflip"}
    prune_store(root, dry_run=False, keep_views=["base"])
    assert paths_of(root) == {path for path in found(root) if path.startswith("base")}
    assert FeatureStore.open(root).views == ("base",)


def test_a_store_without_a_listing_is_whole_and_gets_one(root: Path, kit: Any) -> None:
    """As after a writer that died while it added views."""
    before = (root / "zarr.json").read_bytes()
    (root / "zarr.json").write_bytes(split_listing(before)[0])
    assert FeatureStore.open(root).views == ("base", "hflip")
    kit.fill(root)
    assert (root / "zarr.json").read_bytes() == before


def test_a_listing_that_lies_is_refused_and_repaired(root: Path, kit: Any) -> None:
    before = (root / "zarr.json").read_text()
    (root / "zarr.json").write_text(before.replace('"float16"', '"float32"', 1))
    message = r"s.zarr/zarr.json lists another base/.*/zarr.json. The same `cachedet extract` again"
    with pytest.raises(StoreError, match=message):
        FeatureStore.open(root)
    kit.fill(root)
    assert (root / "zarr.json").read_text() == before


def test_the_root_without_its_listing_is_as_zarr_makes_it() -> None:
    listed = with_listing(FILES)
    plain, nodes = split_listing(listed)
    assert plain == ROOT
    assert nodes == {"base": json.loads(NODE), "base/b96x128": json.loads(NODE)}
    assert with_listing({**FILES, "zarr.json": listed}) == listed
    assert lists_all(listed, FILES)
    assert not lists_all(listed, [*FILES, "hflip/zarr.json"])
    assert not lists_all(ROOT, FILES)


def test_too_many_are_not_listed() -> None:
    many = {f"base/b{number}x32/zarr.json": NODE for number in range(1001)}
    assert with_listing({"zarr.json": ROOT, **many}) == ROOT
    assert lists_all(ROOT, many)


SECTION = b'{"consolidated_metadata": '


@pytest.mark.parametrize(
    "root", [b"", b"[1]", b"3", SECTION + b"3}", SECTION + b"{}}", b"[" * 10**5]
)
def test_what_is_no_listing_stays_for_the_digest_to_refuse(root: bytes) -> None:
    assert split_listing(root) == (root, {})


def test_what_is_listed_has_to_be_what_is_there() -> None:
    nodes = {"base": json.loads(NODE)}
    assert agrees(nodes, "base/zarr.json", NODE)
    assert agrees(nodes, "hflip/zarr.json", b"anything")
    assert not agrees(nodes, "base/zarr.json", NODE.replace(b"group", b"array"))
    assert not agrees(nodes, "base/zarr.json", b"{")
