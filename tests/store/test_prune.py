"""`prune`: what is freed, and what is never touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import InputError
from cachedet.store.durable import temporary_path
from cachedet.store.leases import LeaseBook
from cachedet.store.owner import Owner
from cachedet.store.prune import PruneReport, prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.structures import Truth

DEAD = Owner(host=Owner.me().host, pid=2**22 + 1, start=1)


def counts(report: PruneReport) -> dict[str, int]:
    return {waste.kind: len(waste.paths) for waste in report.waste}


NOTHING = {"leftover": 0, "withdrawn": 0, "orphan": 0, "view": 0}


def test_a_clean_store_has_nothing_to_free(root: Path, kit: Any) -> None:
    before = kit.files(root)
    assert counts(prune_store(root, dry_run=False)) == NOTHING
    assert kit.files(root) == before


def test_waste_of_every_kind(root: Path, kit: Any) -> None:
    whole = kit.files(root)
    shard = root / "base/b96x128/C4/values/c/0/0/0/0"
    leftover = temporary_path(shard)
    leftover = leftover.with_name(leftover.name.replace(Owner.me().token, DEAD.token))
    leftover.write_bytes(bytes(1000))
    LeaseBook(root, owner=DEAD).take("base-b96x128-000000")
    (root / "commits/base-b96x128-000009.json").write_bytes(b"{}")
    (root / "base/b96x128/C4/values/c/9").mkdir()
    (root / "base/b96x128/C4/values/c/9/old").write_bytes(bytes(500))
    kit.flip_bit(root / "hflip/b96x128/C4/values/c/0/0/0/0", 3)
    assert len(verify_store(root, deep=True).bad) == 1
    shown = prune_store(root, dry_run=True)
    assert counts(shown) == {"leftover": 2, "withdrawn": 1, "orphan": 4, "view": 0}
    sizes = {waste.kind: waste.nbytes for waste in shown.waste}
    assert sizes["leftover"] >= 1000
    assert shown.removed is False
    assert json.loads(json.dumps(shown.to_json()))["waste"][0]["files"] == 2
    assert leftover.exists()
    assert counts(prune_store(root, dry_run=False)) == counts(shown)
    assert counts(prune_store(root, dry_run=True)) == NOTHING
    kit.fill(root, FeatureStore.open(root).truth)
    assert kit.files(root) == whole


def test_living_and_foreign_writers_and_other_files_are_left_alone(root: Path, kit: Any) -> None:
    shard = root / "base/b96x128/C4/values/c/0/0/0/0"
    living = temporary_path(shard)
    elsewhere = living.with_name(living.name.replace(Owner.me().host, "another-machine"))
    for path in (living, elsewhere, root / "notes.txt", root / "README"):
        path.write_bytes(b"x")
    (root / "commits/hflip-b96x128-000000.json").unlink()
    LeaseBook(root).take("hflip-b96x128-000000")  # somebody writes this block just now
    before = kit.files(root)
    assert counts(prune_store(root, dry_run=False)) == NOTHING
    assert kit.files(root) == before


def test_a_view_leaves_for_good(root: Path, truth: Truth, tmp_path: Path, kit: Any) -> None:
    report = prune_store(root, dry_run=True, keep_views=["base"])
    assert counts(report)["view"] > 10
    assert FeatureStore.open(root).manifest.views == ("base", "hflip")
    prune_store(root, dry_run=False, keep_views=["base"])
    assert not (root / "hflip").exists()
    store = FeatureStore.open(root)
    store.require_complete()
    assert store.manifest.views == ("base",)
    assert float(store.read(4, "base")["C4"].max()) == 4.0
    assert verify_store(root, deep=True).is_good
    only_base = kit.fill(tmp_path / "base.zarr", truth, views=("base",))
    assert kit.files(root) == kit.files(only_base)


def test_unknown_views(root: Path) -> None:
    for views in (["crop"], []):
        with pytest.raises(InputError, match="--keep-views expects some of base, hflip, got"):
            prune_store(root, dry_run=True, keep_views=views)
