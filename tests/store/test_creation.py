"""Making a store: any kind of place, several writers at once, dead in the middle of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import StoreError
from cachedet.store.codecs.codec import Codec
from cachedet.store.files.owner import Owner
from cachedet.store.reader import FeatureStore
from cachedet.store.writer import StoreWriter
from cachedet.structures import FeatureSpec, LevelSpec, Truth


@pytest.fixture
def whole(tmp_path: Path, truth: Truth, kit: Any) -> dict[str, bytes]:
    """Files of the store that each of these tests makes."""
    files: dict[str, bytes] = kit.files(kit.fill(tmp_path / "whole.zarr", truth))
    return files


def as_made(root: Path, kit: Any) -> dict[str, bytes]:
    """Its files without what was in the folder before."""
    return {key: content for key, content in kit.files(root).items() if "lost+found" not in key}


def test_in_the_current_folder(
    tmp_path: Path, truth: Truth, whole: Any, monkeypatch: pytest.MonkeyPatch, kit: Any
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    kit.fill(Path("."), truth)
    assert FeatureStore.open(Path(".")).missing_blocks() == []
    assert kit.files(place) == whole


@pytest.mark.parametrize("exists", [True, False])
def test_through_a_link(tmp_path: Path, truth: Truth, whole: Any, exists: bool, kit: Any) -> None:
    target = tmp_path / "disk" / "target"
    (target if exists else target.parent).mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(target)
    kit.fill(link, truth)
    assert link.is_symlink()
    assert kit.files(target) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"whole.zarr", "disk", "link"}


def test_in_an_empty_mount_point(tmp_path: Path, truth: Truth, whole: Any, kit: Any) -> None:
    """A volume of Docker's; on a disk of its own it has lost+found."""
    place = tmp_path / "volume"
    place.mkdir()
    with kit.mounted(place, "-t tmpfs -o size=2m none"):
        (place / "lost+found").mkdir()
        kit.fill(place, truth)
        assert as_made(place, kit) == whole


def test_beside_names_that_look_like_patterns(tmp_path: Path, truth: Truth, kit: Any) -> None:
    place = tmp_path / "s[1]*.zarr"
    dead = Owner.me().token.replace(f"~{Owner.me().pid}~", f"~{2**22 + 1}~")
    (tmp_path / f".{place.name}.{dead}.creating").mkdir()
    kit.fill(place, truth)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_creation_can_be_repeated_in_the_same_process(
    tmp_path: Path, truth: Truth, whole: Any, exists: bool, kit: Any
) -> None:
    place = tmp_path / "s.zarr"
    if exists:
        place.mkdir()
    giant = FeatureSpec((LevelSpec(name="C4", channels=10**12, stride=16),))
    with pytest.raises(StoreError, match="are still to be written"):
        kit.open_writer(place, truth, spec=giant)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kit.at_call("sync_directory", interrupt):
        kit.open_writer(place, truth)
    assert {path.name for path in tmp_path.iterdir()} <= {"whole.zarr", "s.zarr"}
    kit.fill(place, truth)
    assert kit.files(place) == whole


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
    tmp_path: Path, truth: Truth, whole: Any, exists: bool, moment: str, kit: Any
) -> None:
    place = tmp_path / "s.zarr"
    if exists:
        place.mkdir()
    with kit.at_call(moment, lambda: kit.fill(place, truth)):
        writer = kit.open_writer(place, truth)
    assert writer.missing_blocks() == []
    assert kit.files(place) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"whole.zarr", "s.zarr"}


def test_a_codec_is_learnt_while_another_makes_the_store(
    tmp_path: Path, truth: Truth, kit: Any
) -> None:
    place = tmp_path / "s.zarr"
    manifest = kit.make_manifest(truth, codec="snr12")

    def learn_slowly(codec: Codec) -> Codec:
        kit.fill(place, truth, kit.noise_of, codec="snr12")
        fitted: Codec = kit.fit(codec)
        return fitted

    writer = StoreWriter.open(
        place, manifest=manifest, truth=truth, contents=kit.contents_of(truth), fit=learn_slowly
    )
    assert writer.missing_blocks() == []


DIE_IN_PLACE = """
def make(own):
    kit.open_writer(own, truth, views=("base",))
print(kit.die_at_each_step(root, lambda own: own.mkdir(parents=True), make))
"""


def test_dead_at_each_step_of_making_it_in_place(
    tmp_path: Path, truth_of: Callable[..., Truth], kit: Any
) -> None:
    blank = truth_of([(96, 128)] * 2, [[] for _ in range(2)])
    made = kit.files(kit.open_writer(tmp_path / "whole.zarr", blank, views=("base",)).root)
    with kit.start(tmp_path / "in place" / "s.zarr", DIE_IN_PLACE, pictures=2) as process:
        output, errors = process.communicate()
    steps = int(output or 0)
    assert steps > 30, errors
    for step in range(1, steps + 1):
        place = tmp_path / "in place" / str(step)
        if (place / "manifest.json").exists():
            FeatureStore.open(place)
        else:
            with pytest.raises(StoreError, match="is not a feature store"):
                FeatureStore.open(place)
        kit.open_writer(place, blank, views=("base",))
        assert kit.files(place) == made, step
        shutil.rmtree(place)


def test_four_start_in_one_empty_folder(tmp_path: Path, truth: Truth, whole: Any, kit: Any) -> None:
    root = tmp_path / "s.zarr"
    root.mkdir()
    with ThreadPoolExecutor(4) as pool:
        writers = list(pool.map(lambda _: kit.open_writer(root, truth), range(4)))
    assert all(len(writer.missing_blocks()) == 6 for writer in writers)
    kit.fill(root, truth)
    assert kit.files(root) == whole


def test_an_unfinished_creation_is_told_from_other_folders(
    tmp_path: Path, truth: Truth, kit: Any
) -> None:
    """Somebody's own zarr group is nothing that we began."""
    place = tmp_path / "s.zarr"
    (place / "base").mkdir(parents=True)
    (place / "zarr.json").write_text("{}")
    before = kit.files(place)
    with pytest.raises(StoreError, match=r"exists and is not a feature store \(it has no manifest"):
        kit.open_writer(place, truth)
    assert kit.files(place) == before
