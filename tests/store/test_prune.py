"""`prune`: what is freed, and what is never touched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.errors import InputError, StoreError
from cachedet.store.files.durable import temporary_path
from cachedet.store.files.leases import LeaseBook
from cachedet.store.files.owner import Owner
from cachedet.store.leftovers import remove_leftovers
from cachedet.store.prune import PruneReport, prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

DEAD = replace(Owner.me(), pid=2**22 + 1, start=1)


def counts(report: PruneReport) -> dict[str, int]:
    return {waste.kind: len(waste.paths) for waste in report.waste}


NOTHING = {"leftover": 0, "withdrawn": 0, "orphan": 0, "view": 0, "image": 0}


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
    (root / "base/b96x128/C4/values/c/9/0").mkdir(parents=True)
    (root / "base/b96x128/C4/values/c/9/0/0").write_bytes(bytes(500))
    kit.flip_bit(root / "hflip/b96x128/C4/values/c/0/0/0/0", 3)
    assert len(verify_store(root, deep=True).bad) == 1
    shown = prune_store(root, dry_run=True)
    assert counts(shown) == {**NOTHING, "leftover": 2, "withdrawn": 1, "orphan": 4}
    sizes = {waste.kind: waste.nbytes for waste in shown.waste}
    assert sizes["leftover"] >= 1000
    assert shown.removed is False
    assert json.loads(json.dumps(shown.to_json()))["waste"][0]["files"] == 2
    assert leftover.exists()
    assert counts(prune_store(root, dry_run=False)) == counts(shown)
    assert counts(prune_store(root, dry_run=True)) == NOTHING
    kit.fill(root)
    assert kit.files(root) == whole


def elsewhere(path: Path) -> Path:
    """The same name as another machine would give it."""
    return path.with_name(path.name.replace(Owner.me().host, "another-machine"))


def test_living_and_foreign_writers_and_other_files_are_left_alone(root: Path, kit: Any) -> None:
    (root / "commits/hflip-b96x128-000000.json").unlink()
    LeaseBook(root).take("hflip-b96x128-000000")  # somebody writes this block just now
    foreign = elsewhere(temporary_path(root / "hflip/b96x128/C4/values/c/0/0/0/0"))
    living = temporary_path(root / "base/b96x128/C4/values/c/0/0/0/0")
    for path in (living, foreign, root / "notes.txt", root / "README"):
        path.write_bytes(b"x")
    (root / "hflip/b96x128/C5").rename(root.parent / "on another disk")
    (root / "hflip/b96x128/C5").symlink_to(root.parent / "on another disk")
    before = kit.files(root)
    assert counts(prune_store(root, dry_run=False)) == NOTHING
    assert kit.files(root) == before


def test_what_another_machine_left_of_a_committed_block_is_waste(root: Path, kit: Any) -> None:
    """Containers are gone for ever, with the host name that would tell whether they live."""
    before = kit.files(root)
    name = "base-b96x128-000000"
    for path in (root / "base/b96x128/C4/values/c/0/0/0/0", root / f"commits/{name}.json"):
        elsewhere(temporary_path(path)).write_bytes(b"x")
    LeaseBook(root, owner=replace(Owner.me(), host="another-machine")).take(name)
    assert counts(prune_store(root, dry_run=False)) == {**NOTHING, "leftover": 3}
    assert kit.files(root) == before


def test_a_view_leaves_for_good(root: Path, tmp_path: Path, kit: Any) -> None:
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
    only_base = kit.fill(tmp_path / "base.zarr", views=("base",))
    assert kit.files(root) == kit.files(only_base)


def test_unknown_views(root: Path) -> None:
    for views in (["crop"], []):
        with pytest.raises(InputError, match="--keep-views expects some of base, hflip, got"):
            prune_store(root, dry_run=True, keep_views=views)


def test_a_block_committed_while_prune_looks_is_kept(root: Path, kit: Any) -> None:
    """What is waste is decided under the lock, and not before."""
    whole = kit.files(root)
    record = root / "commits/base-b96x128-000000.json"
    record.rename(record.with_name(f"{record.name}.bad"))
    with kit.at_call("_flock", lambda: kit.fill(root)):
        assert counts(prune_store(root, dry_run=False)) == NOTHING
    assert kit.files(root) == whole


def test_a_writer_of_a_pruned_view_is_stopped(root: Path, kit: Any) -> None:
    writer = kit.open_writer(root)
    base, hflip = (next(b for b in writer.blocks if b.view == view) for view in ("base", "hflip"))
    prune_store(root, dry_run=False, keep_views=["base"])
    message = r"was changed while this process wrote into it. views: \['base'\] in the"
    with pytest.raises(StoreError, match=message):
        writer.write(hflip, kit.features_of(hflip))
    assert writer.write(base, kit.features_of(base)) is False
    prune_store(root, dry_run=False)
    assert not (root / "hflip").exists()


def test_a_writer_of_a_replaced_store_is_stopped(root: Path, kit: Any) -> None:
    writer = kit.open_writer(root)
    shutil.rmtree(root)
    kit.open_writer(root, image_size=64)
    block = writer.blocks[0]
    with pytest.raises(StoreError, match=r"image_size: 64 in the store, 128 now\. Give the inputs"):
        writer.write(block, kit.features_of(block))


WRITE_WITH_LEASES = """
from cachedet.extraction.ranks import Rank, blocks_to_write
from cachedet.store.files.leases import LeaseBook
writer = kit.open_writer(root)
print("open", flush=True)
with LeaseBook(root) as leases:
    for block in blocks_to_write(writer, leases, Rank(), on_wait=print):
        writer.write(block, kit.noise_of(block))
        leases.release(block.name)
print("done", flush=True)
"""


def test_prune_beside_a_running_writer(tmp_path: Path, kit: Any) -> None:
    blank = kit.blank(40)
    whole = kit.files(blank.fill(tmp_path / "whole.zarr", kit.noise_of))
    root = tmp_path / "s.zarr"
    rounds = 0
    with kit.start(root, WRITE_WITH_LEASES, images=40) as process:
        assert process.stdout.readline() == "open\n"
        while process.poll() is None:
            assert counts(prune_store(root, dry_run=False)) == NOTHING
            rounds += 1
        output, errors = process.communicate()
    assert "done" in output, errors
    assert rounds > 3
    assert verify_store(root, deep=True).is_good
    assert kit.files(root) == whole


PRUNE_KILLED_AT_EACH_STEP = """
import shutil
from cachedet.store.leftovers import remove_leftovers
from cachedet.store.prune import prune_store
def prune(folder):
    prune_store(folder, dry_run=False, keep_views=["base"])
print(kit.die_at_each_step(root, lambda folder: shutil.copytree(root, folder), prune))
"""


def test_prune_killed_at_each_step(tmp_path: Path, kit: Any) -> None:
    """The store stays good at every moment, and the next prune frees the rest."""
    blank = kit.blank(2)
    only_base = kit.files(blank.fill(tmp_path / "base.zarr", views=("base",)))
    root = blank.fill(tmp_path / "s" / "s.zarr")
    output, errors = kit.run(root, PRUNE_KILLED_AT_EACH_STEP)
    steps = int(output or 0)
    assert steps > 20, errors
    for step in range(1, steps + 1):
        folder = root.parent / str(step)
        store = FeatureStore.open(folder)
        assert float(store.read(1, "base")["C4"].max()) == 1.0
        prune_store(folder, dry_run=False, keep_views=["base"])
        assert kit.files(folder) == only_base, step
        assert not (folder / "hflip").exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_store_whose_empty_folders_were_not_copied(root: Path, dry_run: bool) -> None:
    shutil.rmtree(root / "leases")
    assert counts(prune_store(root, dry_run=dry_run)) == NOTHING


def test_a_read_only_store_is_one_clear_message(root: Path, kit: Any) -> None:
    (root / "commits/base-b96x128-000000.json").unlink()
    with kit.read_only(root):
        assert counts(prune_store(root, dry_run=True))["orphan"] == 2
        with pytest.raises(StoreError, match=r"cannot write .*commit.lock: (Read-only|Permission)"):
            prune_store(root, dry_run=False)
    assert counts(prune_store(root, dry_run=False))["orphan"] == 2


def test_a_withdrawn_record_that_somebody_made_a_folder_is_left(root: Path, kit: Any) -> None:
    record = root / "commits/base-b96x128-000000.json"
    whole = record.read_bytes()
    record.unlink()
    record.mkdir()
    (record / "a file").touch()
    assert verify_store(root, deep=False).bad[0].withdrawn
    aside = record.with_name(f"{record.name}.bad") / "a file"
    report = prune_store(root, dry_run=False)
    assert counts(report) == {**NOTHING, "orphan": 2}
    assert report.left == (aside,)
    kit.fill(root)
    assert record.read_bytes() == whole
    assert aside.exists()


FOREIGN = ("thesis.tex", "zarr.json", "b96x128/C4/values/c/0/0/0/0", "commit.lock", "a.lease")


def precious(folder: Path, *names: str) -> Path:
    """A folder of somebody's, with names that the store has too, and an empty folder."""
    for name in (*FOREIGN, *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).write_text(DEAD.token)
    (folder / "empty").mkdir()
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    paths = folder.rglob("*")
    return {str(p): p.read_bytes() if p.is_file() else None for p in paths if not p.is_symlink()}


@pytest.mark.parametrize(
    "name",
    ["jitter-k5", "crop-s0", "leases", "commits", "base", "hflip/b96x128", "base/b96x128/C4"],
)
@pytest.mark.parametrize("keep_views", [None, ["base"]])
def test_nothing_behind_a_link_is_removed(
    root: Path, tmp_path: Path, name: str, keep_views: list[str] | None
) -> None:
    """Whatever the link's name, and whatever lies there: tar and rsync keep such links."""
    leftover = temporary_path(Path("base-b96x128-000000.json")).name
    dead = leftover.replace(Owner.me().token, DEAD.token)
    if (root / name).exists():
        (root / name).rename(tmp_path / "precious")
    folder = precious(tmp_path / "precious", dead, "base-b96x128-000000.json.bad")
    (root / name).symlink_to(folder)
    before = tree(folder)
    prune_store(root, dry_run=False, keep_views=keep_views)
    remove_leftovers(root)
    assert (root / name).is_symlink()
    assert {path: content for path, content in tree(folder).items() if path in before} == before


@pytest.mark.parametrize("target", [".", "..", "base", "../s.zarr/hflip"])
def test_a_link_to_the_store_itself_or_above_it(root: Path, target: str, kit: Any) -> None:
    precious(root.parent / "beside")
    (root / "jitter-s0").symlink_to(target)
    before = tree(root.parent)
    report = prune_store(root, dry_run=False)
    assert counts(report) == NOTHING
    assert report.left == (root / "jitter-s0",)
    assert tree(root.parent) == before


def test_links_to_files_are_left(root: Path, tmp_path: Path) -> None:
    folder = precious(tmp_path / "precious")
    shard = root / "base/b96x128/C4/values/c/7/0/0/0"
    shard.parent.mkdir(parents=True)
    dead = temporary_path(root / "leases/x")
    links = [
        shard,
        root / "commits/base-b96x128-000007.json.bad",
        root / "leases/base-b96x128-000007.lease",
        dead.with_name(dead.name.replace(Owner.me().token, DEAD.token)),
    ]
    for link in links:
        link.symlink_to(folder / "thesis.tex")
    assert counts(prune_store(root, dry_run=False)) == NOTHING
    assert all(link.is_symlink() for link in links)
    assert (folder / "thesis.tex").exists()


def test_files_that_no_writer_made_are_left(root: Path) -> None:
    """In any folder of the store, also in those whose other files are waste."""
    names = (
        "hflip/thesis.tex", "hflip/b96x128/photo.jpg", "hflip/b96x128/C4/values/c/0/0/0/0.jpg",
        "jitter-s7/zarr.txt", "leases/notes", "leases/notes.tmp", "commits/notes.bad",
        "commits/b.tmp",
    )  # fmt: skip
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    report = prune_store(root, dry_run=False, keep_views=["base"])
    assert counts(report)["view"] > 10
    assert all((root / name).read_text() == "mine" for name in names)
    assert {path.relative_to(root).as_posix() for path in report.left} == {
        *names[:4], "commits/notes.bad", "commits/b.tmp",
    }  # fmt: skip
    assert not (root / "hflip/b96x128/C5").exists()
    assert FeatureStore.open(root).manifest.views == ("base",)


def test_a_view_on_another_disk_is_read_and_its_data_stay_when_it_leaves(
    root: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "another disk"
    (root / "hflip").rename(disk)
    (root / "hflip").symlink_to(disk)
    before = tree(disk)
    assert float(FeatureStore.open(root).read(4, "hflip")["C4"].max()) == 104.0
    assert prune_store(root, dry_run=False).left == ()
    shown = CliRunner().invoke(app, ["prune", str(root), "--keep-views", "base"])
    assert shown.exit_code == 0, shown.output
    assert f"left alone: {root}/hflip is a link, and not followed" in shown.output
    assert tree(disk) == before
    assert FeatureStore.open(root).manifest.views == ("base",)
    assert verify_store(root, deep=True).is_good


def test_a_folder_that_becomes_a_link_while_prune_removes(
    root: Path, tmp_path: Path, kit: Any
) -> None:
    folder = precious(tmp_path / "precious", "b96x128/C5/values/c/0/0/0/0")
    before = tree(folder)

    def swap() -> None:
        (root / "hflip").rename(tmp_path / "moved")
        (root / "hflip").symlink_to(folder)

    with kit.at_call("remove_inside", swap):
        prune_store(root, dry_run=False, keep_views=["base"])
    assert tree(folder) == before


def test_through_the_command_line(root: Path) -> None:
    (root / "commits/base-b96x128-000000.json").unlink()
    run = CliRunner()
    shown = run.invoke(app, ["prune", str(root), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "would be freed" in shown.output
    freed = run.invoke(app, ["prune", str(root), "--keep-views", "base", "--json"])
    waste = {one["kind"]: one["files"] for one in json.loads(freed.stdout)["waste"]}
    assert waste["orphan"] == 2
    assert waste["view"] > 10
    again = run.invoke(app, ["prune", str(root)])
    assert "freed" in again.output
    assert FeatureStore.open(root).manifest.views == ("base",)
    for arguments, message in (
        ([str(root), "--keep-views", "bse"], "error: --keep-views expects some of base, got 'bse'"),
        ([str(root / "base")], "is not a feature store"),
        (
            ["http://b/x"],
            "error: http://b/x cannot be written: cachedet writes stores into folders",
        ),
    ):
        refused = run.invoke(app, ["prune", *arguments])
        assert refused.exit_code == 1
        assert message in refused.stderr
