"""The trial extraction writes a real store, and its rates are worked out as stated."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.data.annotation_formats import read_dataset
from cachedet.data.coco import CocoDataset
from cachedet.data.views import parse_views
from cachedet.errors import BadImageError, InputError
from cachedet.estimation.trial import (
    Trial,
    collect_statistics,
    existing_folder,
    read_seconds,
    split_start,
    take_sample,
    trial_folder,
    write_trial,
)
from cachedet.store.codecs.registry import make_codec
from cachedet.store.reader import FeatureStore


@pytest.fixture
def backbone(tiny: Any) -> FrozenBackbone:
    return load_backbone("test_resnet", weights=str(tiny.weights), image_size=128)


@pytest.fixture
def dataset(tiny: Any) -> CocoDataset:
    return read_dataset(annotations=tiny.paths.train, images=tiny.paths.images)


@pytest.fixture
def write(tiny: Any, dataset: CocoDataset, backbone: FrozenBackbone, tmp_path: Path) -> Any:
    """Writes a trial of six images."""

    def make(*, codec: str = "int8+zstd", seconds: float = 60.0) -> Trial:
        config = tiny.extract_config(tmp_path / "x.zarr", codec=codec)
        sample = take_sample(dataset, range(6), config, backbone)
        fit = collect_statistics(sample, backbone, view="base", count=3)
        options = {"config": config, "views": parse_views("base,hflip"), "seconds": seconds}
        return write_trial(tmp_path, sample, backbone, fit, stages=None, **options)

    return make


def test_it_is_a_whole_store_with_the_same_features(tiny: Any, write: Any) -> None:
    trial = write(codec="fp32")
    store, whole = FeatureStore.open(trial.store), FeatureStore.open(tiny.train)
    store.require_complete()
    assert trial.views == ("base", "hflip")
    assert len(store) == 6
    for level, maps in store.read(3, "hflip").items():
        torch.testing.assert_close(maps, whole.read(3, "hflip")[level], rtol=1e-5, atol=1e-6)


def test_what_it_reports(backbone: FrozenBackbone, write: Any) -> None:
    trial = write()
    shards = [path for path in trial.store.rglob("*") if path.is_file() and "/c/" in str(path)]
    assert trial.nbytes == sum(path.stat().st_size for path in shards)
    assert 0.1 < trial.stored_share < 1.0
    assert trial.unpacked > trial.nbytes * 0.9
    assert sum(len(keys) for keys in trial.keys.values()) == 12
    assert trial.seconds_per_pixel > 0
    assert trial.start_seconds >= 0
    assert set(trial.stages) == {"decode", "backbone", "encode", "write"}
    assert all(seconds > 0 for seconds in trial.stages.values())
    assert read_seconds(trial, backbone.spec.names) > 0


def test_out_of_time_it_ends_after_a_whole_view(write: Any) -> None:
    trial = write(seconds=-1.0)
    assert trial.views == ("base",)
    store = FeatureStore.open(trial.store)
    store.require_complete(["base"])
    assert all(view == 0 for keys in trial.keys.values() for view, _ in keys.tolist())


def test_start_and_rate_by_hand() -> None:
    """Commits of 10 pixels at 5, 7, 9 s: 5 pixels a second, and 3 s of starting."""
    assert split_start([(5.0, 10), (7.0, 10), (9.0, 10)], 1) == (3.0, 0.2)
    assert split_start([(5.0, 10), (7.0, 10), (9.0, 10)], 2) == (3.0, 0.2)
    assert split_start([(5.0, 10)], 1) == (0.0, 0.5)
    start, _ = split_start([(1.0, 10), (7.0, 10)], 1)  # a later stretch that was disturbed
    assert start == 0.0


def test_fitting_is_what_extract_does(
    tiny: Any, dataset: CocoDataset, backbone: FrozenBackbone, tmp_path: Path
) -> None:
    sample = take_sample(dataset, range(8), tiny.extract_config(tmp_path / "x"), backbone)
    fit = collect_statistics(sample, backbone, view="base", count=4)
    assert fit.seconds > 0
    assert fit.fitted(make_codec("fp32")) == make_codec("fp32")
    state = fit.fitted(make_codec("pca8+int8")).state()
    assert any(name.startswith("C3/") for name in state)


def test_a_bad_image_in_the_sample(
    tiny: Any, dataset: CocoDataset, backbone: FrozenBackbone, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(dataset.images, images)
    name = dataset.annotations.file_names[2]
    content = (images / name).read_bytes()
    (images / name).write_bytes(content[: len(content) // 2])
    damaged = read_dataset(annotations=tiny.paths.train, images=images)
    with pytest.raises(BadImageError, match="1 of 8 images cannot be used") as error:
        take_sample(damaged, range(8), tiny.extract_config(tmp_path / "x"), backbone)
    assert name in str(error.value)
    config = tiny.extract_config(tmp_path / "x", on_bad_image="skip")
    sample = take_sample(damaged, range(8), config, backbone)
    assert len(sample.annotations) == 7
    assert [file for file, _ in sample.skipped] == [name]
    assert len(sample.scan.contents) == 7


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
