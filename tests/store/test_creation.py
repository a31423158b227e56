"""Making a store: any kind of place, several writers at once, dead in the middle of it."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.data.views import parse_views
from cachedet.errors import InputError, MissingFeatureError, StoreError
from cachedet.store.codecs.codec import Codec
from cachedet.store.files.owner import Owner
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store
from cachedet.structures import FeatureSpec, LevelSpec


@pytest.fixture
def whole(tmp_path: Path, kit: Any) -> dict[str, bytes]:
    """Files of the store that each of these tests makes."""
    files: dict[str, bytes] = kit.files(kit.fill(tmp_path / "whole.zarr"))
    return files


def as_made(root: Path, kit: Any) -> dict[str, bytes]:
    """Its files without what was in the folder before."""
    return {key: content for key, content in kit.files(root).items() if "lost+found" not in key}


def test_in_the_current_folder(
    tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, kit: Any
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    kit.fill(Path("."))
    assert FeatureStore.open(Path(".")).missing_blocks() == []
    assert kit.files(folder) == whole


@pytest.mark.parametrize("exists", [True, False])
def test_through_a_link(tmp_path: Path, whole: Any, exists: bool, kit: Any) -> None:
    target = tmp_path / "disk" / "target"
    (target if exists else target.parent).mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(target)
    kit.fill(link)
    assert link.is_symlink()
    assert kit.files(target) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"whole.zarr", "disk", "link"}


def test_in_an_empty_mount_point(tmp_path: Path, whole: Any, kit: Any) -> None:
    """A volume of Docker's; on a disk of its own it has lost+found."""
    folder = tmp_path / "volume"
    folder.mkdir()
    with kit.mounted(folder, "-t tmpfs -o size=2m none"):
        (folder / "lost+found").mkdir()
        kit.fill(folder)
        assert as_made(folder, kit) == whole


def test_beside_names_that_look_like_patterns(tmp_path: Path, kit: Any) -> None:
    folder = tmp_path / "s[1]*.zarr"
    dead = Owner.me().token.replace(f"~{Owner.me().pid}~", f"~{2**22 + 1}~")
    (tmp_path / f".{folder.name}.{dead}.creating").mkdir()
    kit.fill(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["a" * 240, "a" * 255, "\U0001f600" * 63, "b" * 96])
def test_any_name_a_disk_takes_is_a_name_for_a_store(
    tmp_path: Path, whole: Any, name: str, kit: Any
) -> None:
    """What a dead writer left of it is removed; what one left of another long name is not."""
    me = Owner.me().token
    dead = me.replace(f"~{Owner.me().pid}~", f"~{2**22 + 1}~")
    made: list[str] = []

    def interrupt() -> None:
        made.extend(path.name for path in tmp_path.iterdir() if path.name.endswith(".creating"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kit.at_call("write_files", interrupt):
        kit.open_writer(tmp_path / name)
    assert len(os.fsencode(made[0])) <= 255
    (tmp_path / made[0].replace(me, dead)).mkdir()
    with pytest.raises(KeyboardInterrupt), kit.at_call("write_files", interrupt):
        kit.open_writer(tmp_path / (name[:-1] + "c"))
    assert len({*made}) == 3, "each store has a name of its own"
    kit.fill(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.zarr", name}
    assert kit.files(tmp_path / name) == whole


@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_creation_can_be_repeated_in_the_same_process(
    tmp_path: Path, whole: Any, exists: bool, kit: Any
) -> None:
    folder = tmp_path / "s.zarr"
    if exists:
        folder.mkdir()
    giant = FeatureSpec((LevelSpec(name="C4", channels=10**12, stride=16),))
    with pytest.raises(StoreError, match="are still to be written"):
        kit.open_writer(folder, spec=giant)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kit.at_call("sync_directory", interrupt):
        kit.open_writer(folder)
    assert {path.name for path in tmp_path.iterdir()} <= {"whole.zarr", "s.zarr"}
    kit.fill(folder)
    assert kit.files(folder) == whole


@pytest.mark.parametrize(
    ("exists", "moment"),
    [
        (False, "_create"),
        (False, "_make_files"),
        (False, "_create_beside"),
        (False, "_flock"),
        (True, "_create"),
        (True, "_make_files"),
        (True, "_flock"),
    ],
)
def test_the_slower_of_two_starters_takes_the_others_store(
    tmp_path: Path, whole: Any, exists: bool, moment: str, kit: Any
) -> None:
    folder = tmp_path / "s.zarr"
    if exists:
        folder.mkdir()
    with kit.at_call(moment, lambda: kit.fill(folder)):
        writer = kit.open_writer(folder)
    assert writer.missing_blocks() == []
    assert kit.files(folder) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"whole.zarr", "s.zarr"}


def test_a_codec_is_learnt_while_another_makes_the_store(tmp_path: Path, kit: Any) -> None:
    folder = tmp_path / "s.zarr"

    def learn_slowly(codec: Codec) -> Codec:
        kit.fill(folder, kit.noise_of, codec="snr12")
        fitted: Codec = kit.fit(codec)
        return fitted

    writer = kit.open_writer(folder, fit=learn_slowly, codec="snr12")
    assert writer.missing_blocks() == []


DIE_IN_PLACE = """
def make(folder):
    kit.open_writer(folder, views=("base",))
print(kit.die_at_each_step(root, lambda folder: folder.mkdir(parents=True), make))
"""


def test_dead_at_each_step_of_making_it_in_place(tmp_path: Path, kit: Any) -> None:
    blank = kit.blank(2)
    made = kit.files(blank.open_writer(tmp_path / "whole.zarr", views=("base",)).root)
    output, errors = kit.run(tmp_path / "in place" / "s.zarr", DIE_IN_PLACE, images=2)
    steps = int(output or 0)
    assert steps > 30, errors
    for step in range(1, steps + 1):
        folder = tmp_path / "in place" / str(step)
        if (folder / "manifest.json").exists():
            FeatureStore.open(folder)
        else:
            with pytest.raises(StoreError, match="is not a feature store"):
                FeatureStore.open(folder)
        blank.open_writer(folder, views=("base",))
        assert kit.files(folder) == made, step
        shutil.rmtree(folder)


def test_four_start_in_one_empty_folder(tmp_path: Path, whole: Any, kit: Any) -> None:
    root = tmp_path / "s.zarr"
    root.mkdir()
    with ThreadPoolExecutor(4) as pool:
        writers = list(pool.map(lambda _: kit.open_writer(root), range(4)))
    assert all(len(writer.missing_blocks()) == 6 for writer in writers)
    kit.fill(root)
    assert kit.files(root) == whole


def test_an_unfinished_creation_is_told_from_other_folders(tmp_path: Path, kit: Any) -> None:
    """Somebody's own zarr group is nothing that we began."""
    folder = tmp_path / "s.zarr"
    (folder / "base").mkdir(parents=True)
    (folder / "zarr.json").write_text("{}")
    before = kit.files(folder)
    with pytest.raises(StoreError, match=r"exists and is not a feature store \(it has no manifest"):
        kit.open_writer(folder)
    assert kit.files(folder) == before


PLAIN = ("base", "hflip")
ALL = (*PLAIN, "scale-0.5", "crop-k0", "jitter-s0", "jitter-0.5-1.5-s1")


@pytest.fixture
def plain(tmp_path: Path, kit: Any) -> Path:
    return Path(kit.fill(tmp_path / "s.zarr", kit.noise_of, views=PLAIN))


def states(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths
    }


def test_what_is_there_is_not_touched(plain: Path, tmp_path: Path, kit: Any) -> None:
    before, content = states(plain), kit.files(plain)
    writer = kit.open_writer(plain, views=ALL)
    assert {block.view for block in writer.missing_blocks()} == set(ALL[2:])
    kit.fill(plain, kit.noise_of, views=ALL)
    after = states(plain)
    changed = {key for key in before if after[key] != before[key]}
    assert changed == {"manifest.json", "zarr.json"}
    assert all(kit.files(plain)[key] == content[key] for key in before.keys() - changed)
    at_once = kit.fill(tmp_path / "once.zarr", kit.noise_of, views=ALL)
    assert kit.files(plain) == kit.files(at_once)
    assert verify_store(plain, deep=True).is_good


def test_readers_opened_before_read_on(plain: Path, kit: Any) -> None:
    before, unread = FeatureStore.open(plain), FeatureStore.open(plain)
    expected = before.read(4, "hflip")
    kit.fill(plain, kit.noise_of, views=ALL)
    for reader in (before, unread, FeatureStore.open(plain)):
        for level, maps in reader.read(4, "hflip").items():
            assert torch.equal(maps, expected[level])
    message = "holds views base, hflip, not 'crop-k0'; the sam"
    with pytest.raises(MissingFeatureError, match=message):
        before.read(0, "crop-k0")
    assert before.missing_blocks() == []


def test_an_addition_that_stopped_continues(plain: Path, kit: Any) -> None:
    writer = kit.open_writer(plain, views=ALL)
    block = writer.missing_blocks()[1]
    writer.write(block, kit.noise_of(block))
    store = FeatureStore.open(plain)
    assert store.manifest.views == ALL
    store.require_complete(PLAIN)
    with pytest.raises(MissingFeatureError, match=r"is unfinished: \d+ of 18 blocks are not"):
        store.require_complete()
    with pytest.raises(MissingFeatureError, match=r"2 of 6 blocks are not committed; run the same"):
        store.require_complete(("base", "scale-0.5"))
    message = "not 'crop-k1', 'scale-2'; the same `cachedet ex"
    with pytest.raises(MissingFeatureError, match=message):
        store.require_complete(("base", "crop-k1", "scale-2"))
    again = kit.open_writer(plain, views=PLAIN)  # whatever is asked for, it is finished
    assert len(again.missing_blocks()) == 11
    assert block not in again.missing_blocks()


@pytest.mark.parametrize("asked", [("base",), ("hflip", "base"), ("hflip",)])
def test_what_was_not_asked_for_stays(plain: Path, asked: tuple[str, ...], kit: Any) -> None:
    before = kit.files(plain)
    assert kit.open_writer(plain, views=asked).manifest.views == PLAIN
    assert kit.files(plain) == before


def test_only_new_views_may_be_named(plain: Path, kit: Any) -> None:
    writer = kit.open_writer(plain, views=("jitter-s1", "base", "jitter-s0"))
    assert writer.manifest.views == ("base", "hflip", "jitter-s1", "jitter-s0")


def test_the_codec_keeps_what_it_learnt(fitted: Path, tmp_path: Path, kit: Any) -> None:
    root = Path(tmp_path / "s.zarr")
    shutil.copytree(fitted, root)
    state = (root / "codec.npz").read_bytes()

    def never(codec: Codec) -> Codec:
        raise AssertionError("the codec has learnt already")

    writer = kit.open_writer(root, fit=never, views=("jitter-s0",), codec="snr12")
    for block in writer.missing_blocks():
        writer.write(block, kit.noise_of(block))
    assert (root / "codec.npz").read_bytes() == state
    FeatureStore.open(root).require_complete()


def test_damaged_metadata_is_repaired_first(plain: Path, tmp_path: Path, kit: Any) -> None:
    (plain / "base/b96x128/C4/values/zarr.json").unlink()
    (plain / "images.npz").write_bytes(b"")
    kit.truth(plain).unlink()
    kit.fill(plain, kit.noise_of, views=ALL)
    at_once = kit.fill(tmp_path / "once.zarr", kit.noise_of, views=ALL)
    assert kit.files(plain) == kit.files(at_once)


def test_a_disk_too_small_is_known_before_the_store_changes(tmp_path: Path, kit: Any) -> None:
    """A store of too many views would be unfinished for ever."""
    spec = FeatureSpec((LevelSpec(name="C4", channels=2_500_000, stride=16),))
    root = kit.open_writer(tmp_path / "s.zarr", spec=spec, views=("base",)).root
    before = kit.files(root)
    count = 2 + shutil.disk_usage(tmp_path).free // 10**9  # each view takes more than 1 GB
    views = parse_views(",".join(f"scale={4 - n / 10_000:g}" for n in range(count)))
    with pytest.raises(StoreError, match="are still to be written, the disk has"):
        kit.open_writer(root, spec=spec, views=("base", *(view.name for view in views)))
    assert kit.files(root) == before


def test_several_add_at_once(plain: Path, kit: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda view: kit.open_writer(plain, views=(view,)), ALL[2:]))
    assert set(FeatureStore.open(plain).manifest.views) == set(ALL)
    kit.fill(plain, kit.noise_of, views=ALL)
    assert verify_store(plain, deep=True).is_good


def test_a_writer_goes_on_while_views_are_added(tmp_path: Path, kit: Any) -> None:
    writer = kit.open_writer(tmp_path / "s.zarr")
    blocks = writer.missing_blocks()
    writer.write(blocks[0], kit.noise_of(blocks[0]))
    kit.open_writer(writer.root, views=ALL)
    assert writer.write(blocks[1], kit.noise_of(blocks[1]))
    assert FeatureStore.open(writer.root).manifest.views == ALL


def test_a_view_leaves_and_comes_back(plain: Path, kit: Any) -> None:
    kit.fill(plain, kit.noise_of, views=ALL)
    whole = kit.files(plain)
    prune_store(plain, dry_run=False, keep_views=["base", "hflip", "scale=0.5", "crop=1"])
    assert FeatureStore.open(plain).manifest.views == ALL[:4]
    assert not (plain / "jitter-s0").exists()
    kit.fill(plain, kit.noise_of, views=ALL)
    assert kit.files(plain) == whole
    with pytest.raises(InputError, match="--keep-views expects some of base, .*, got 'jitter=2'"):
        prune_store(plain, dry_run=True, keep_views=["jitter=2"])


def test_views_beyond_the_most_change_nothing(plain: Path, kit: Any) -> None:
    before = states(plain)
    many = [view.name for n in range(2, 6) for view in parse_views(f"jitter=64:0.{n}-2")]
    message = "cannot grow so far: a store holds at most 256 views, got 258. Nothing was changed"
    with pytest.raises(StoreError, match=message):
        kit.open_writer(plain, views=tuple(many))
    assert states(plain) == before
    assert FeatureStore.open(plain).views == PLAIN


def test_forged_views(plain: Path, forger: Any) -> None:
    many = [view.name for n in range(2, 7) for view in parse_views(f"jitter=60:0.{n}-2")]
    forger.manifest(plain, views=many)
    with pytest.raises(StoreError, match="a store holds at most 256 views, got 300"):
        FeatureStore.open(plain)
    for name in ("jitter-s64", "scale-1", "jitter-s00", "crop", "scale-0.5/../../x", "../../etc"):
        forger.manifest(plain, views=["base", name])
        message = f"views .*{name}.* this cachedet does not know; upgrade"
        with pytest.raises(StoreError, match=message):
            FeatureStore.open(plain)


ADD_AND_DIE = """
import shutil
def add(folder):
    kit.open_writer(folder, views=("base", "crop-k0"))
print(kit.die_at_each_step(root, lambda folder: shutil.copytree(root, folder), add, every=3))
"""


def test_dead_at_each_step_of_adding(tmp_path: Path, kit: Any) -> None:
    """At every moment the store is the one before or the one after, and both can be continued."""
    blank = kit.blank(2)
    views = ("base", "crop-k0")
    whole = kit.files(blank.fill(tmp_path / "whole.zarr", views=views))
    root = blank.fill(tmp_path / "s" / "s.zarr", views=("base",))
    before = kit.files(root)
    output, errors = kit.run(root, ADD_AND_DIE, images=2)
    steps = int(output or 0)
    assert steps > 15, errors
    seen = set()
    for step in range(1, steps + 1, 3):
        folder = root.parent / str(step)
        store = FeatureStore.open(folder)
        store.require_complete(["base"])
        seen.add(store.manifest.views)
        assert float(store.read(1, "base")["C4"].max()) == 1.0
        if store.manifest.views == ("base",) and step % 2:  # given up instead: nothing stays
            prune_store(folder, dry_run=False)
            assert kit.files(folder) == before, step
            assert not (folder / "crop-k0").exists()
        else:
            blank.fill(folder, views=views)
            assert kit.files(folder) == whole, step
    assert seen == {("base",), views}
