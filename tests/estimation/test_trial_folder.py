"""The trial's folder is gone afterwards, whatever happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import InputError
from cachedet.estimation.trial import existing_folder, trial_folder


def test_it_lies_beside_the_store_and_is_removed(tmp_path: Path) -> None:
    with trial_folder(tmp_path / "train.zarr") as folder:
        assert folder.parent == tmp_path
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_it_is_removed_after_an_error(tmp_path: Path, kind: type[BaseException]) -> None:
    def fill_and_fail() -> None:
        with trial_folder(tmp_path / "train.zarr") as folder:
            (folder / "file").write_text("x")
            raise kind

    with pytest.raises(kind):
        fill_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_folders_on_the_way_are_not_made(tmp_path: Path) -> None:
    store = tmp_path / "a" / "b" / "train.zarr"
    with trial_folder(store) as folder:
        assert folder.parent == tmp_path
    assert existing_folder(store) == tmp_path
    assert not (tmp_path / "a").exists()


def test_what_a_dead_process_left_is_removed(nursery: Any, tmp_path: Path) -> None:
    store = tmp_path / "train.zarr"
    script = (
        "import os\nfrom pathlib import Path\n"
        "from cachedet.estimation.trial import trial_folder\n"
        f"with trial_folder(Path({str(store)!r})) as folder:\n"
        "    (folder / 'file').write_text('x')\n"
        "    os._exit(9)\n"
    )
    with nursery.start(script) as process:
        assert process.wait() == 9
    assert len(list(tmp_path.iterdir())) == 1
    with trial_folder(tmp_path / "other.zarr"):
        assert len(list(tmp_path.iterdir())) == 1  # our own
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with trial_folder(tmp_path / "a.zarr") as ours, trial_folder(tmp_path / "b.zarr"):
        assert ours.is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with (
            pytest.raises(InputError, match="nothing can be written in .*Permission denied"),
            trial_folder(tmp_path / "train.zarr"),
        ):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_place_where_nobody_can_write() -> None:
    with (
        pytest.raises(InputError, match=r"--store /proc/x\.zarr: nothing can be written in /proc"),
        trial_folder(Path("/proc/x.zarr")),
    ):
        pass
