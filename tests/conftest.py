"""Shared fixtures: a generated data set and stores of a tiny real backbone with random weights."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"  # threads of torch that spin keep other tests waiting

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cachedet.config.run import ExtractConfig
from cachedet.data.shapes import ShapesPaths, write_shapes
from cachedet.extract import extract
from cachedet.structures import Annotations, CategoryMap


@dataclass(frozen=True)
class TinyData:
    """Eight generated images and their stores."""

    paths: ShapesPaths
    train: Path
    val: Path
    weights: Path  # random, but the same for every store

    def extract_config(self, store: Path, **changes: object) -> ExtractConfig:
        values: dict[str, object] = {
            "images": self.paths.images,
            "annotations": self.paths.train,
            "store": store,
            "backbone": "test_resnet",
            "weights": str(self.weights),
            "image_size": 128,
            "views": "base,hflip",
            "codec": "fp32",
            "block_size": 3,
            "batch_size": 2,
            "device": "cpu",
        }
        return ExtractConfig.model_validate(values | changes)

    @property
    def stores(self) -> dict[str, Path]:
        """What `train` takes besides a config and a run folder."""
        return {"train_store": self.train, "val_store": self.val}

    @staticmethod
    def change(annotations: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
        """Writes the annotation file as `change` has changed it."""
        values = json.loads(annotations.read_text())
        change(values)
        to.write_text(json.dumps(values))
        return to


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="what is tried at some places: at all (slow)"
    )
    parser.addoption("--fuzz-seconds", type=float, default=0.0, help="new seeds for so long")
    parser.addoption("--fuzz-seed", type=int, help="this case of tests/fuzz only")


# The files that take longest come first: the last ones then end together on all workers.
SLOW_ROOMS = (
    "fuzz", "e2e", "store", "extraction", "exporting", "comparison", "estimation", "detector",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="takes 10 to 40 s: pytest --thorough"))

    def place_of(item: pytest.Item) -> int:
        room = item.path.parent.name
        return SLOW_ROOMS.index(room) if room in SLOW_ROOMS else len(SLOW_ROOMS)

    items.sort(key=place_of)


def pytest_configure() -> None:
    """While half a million objects are imported, nothing is garbage; see below."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What was imported is never searched for garbage: that took a tenth of the time."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--thorough"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """On small tensors threads only wait for each other; so do those of the processes we start."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Where a shell started us in the background, SIGINT is ignored, in our children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    import timm

    root = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(7)
    weights = root / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    paths = write_shapes(root / "shapes", train=8, val=4)
    data = TinyData(paths, root / "train.zarr", root / "val.zarr", weights)
    extract(data.extract_config(data.train))
    extract(data.extract_config(data.val, annotations=paths.val, views="base"))
    return data


def make_annotations(
    sizes_hw: list[tuple[int, int]],
    boxes: list[list[list[float]]] | None = None,
    *,
    ids: tuple[int, ...] = (2, 5, 90),
) -> Annotations:
    """Annotations by hand: boxes per image as [x1, y1, x2, y2, label, crowd]."""
    per_image = boxes or [[] for _ in sizes_hw]
    flat = [box for image in per_image for box in image]
    table: NDArray[np.float64] = np.array(flat, dtype=np.float64).reshape(-1, 6)
    return Annotations(
        image_ids=np.arange(len(sizes_hw), dtype=np.int64) * 10 + 7,
        file_names=tuple(f"image_{n}.jpg" for n in range(len(sizes_hw))),
        sizes_hw=np.array(sizes_hw, dtype=np.int64).reshape(-1, 2),
        offsets=np.cumsum([0, *(len(image) for image in per_image)]).astype(np.int64),
        boxes=table[:, :4],
        labels=table[:, 4].astype(np.int64),
        crowd=table[:, 5].astype(np.bool_),
        areas=(table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1]),
        categories=CategoryMap(ids=ids, names=tuple(f"class {i}" for i in ids)),
    )


@pytest.fixture
def annotations_of() -> object:
    """The function `make_annotations`; tests cannot import a conftest."""
    return make_annotations


def load_beside(name: str) -> ModuleType:
    """A file of the tests by its path, as they cannot import each other."""
    path = Path(__file__).parent / name
    spec = importlib.util.spec_from_file_location("tests_" + path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def exports() -> ModuleType:
    """exports.py: one data set as each tool writes it."""
    return load_beside("exports.py")


@pytest.fixture(scope="session")
def families() -> ModuleType:
    """families.py: tiny vision transformers that timm knows by name in this process."""
    return load_beside("families.py")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """In this process; those of the nursery have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """Starts processes that need not import anything; see forking.py."""
    opened = load_beside("forking.py").Nursery()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def ranks(nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """See ranks.py."""
    return load_beside("ranks.py").Ranks(nursery, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def store_kit(nursery: Any) -> Any:
    """The kit of tests/store/conftest.py, for other rooms."""
    return load_beside("store/conftest.py").Kit(nursery, make_annotations)


@pytest.fixture(scope="session")
def s3_session() -> Iterator[Any]:
    """An S3 server for all tests of this process; see buckets.py."""
    pytest.importorskip("obstore", reason="pip install 'cachedet[remote]'")
    pytest.importorskip("moto", reason="pip install 'moto[server]'")
    before = dict(os.environ)
    server = load_beside("buckets.py").S3Server()
    yield server
    server.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def s3(s3_session: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """It without faults; writes are given up soon."""
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "5")
    s3_session.forget()
    yield s3_session
    s3_session.forget()


@pytest.fixture(scope="session")
def contract() -> ModuleType:
    """What every detector must do; see detector/contract.py."""
    return load_beside("detector/contract.py")


@pytest.fixture(scope="session")
def fcos() -> ModuleType:
    """A head that knows nothing of cachedet's; see detector/fcos.py."""
    return load_beside("detector/fcos.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """What a test printed of halves of pairs is escaped: pytest-xdist sends nothing but UTF-8."""
    report = yield
    report.sections = [(name, _utf8(text)) for name, text in report.sections]
    if report.failed and (text := str(report.longrepr)) != _utf8(text):
        report.longrepr = _utf8(text)
    return report


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


@pytest.fixture(scope="session")
def write_video() -> Callable[..., None]:
    """Writes RGB frames (H, W, 3) as a video file."""
    av = pytest.importorskip("av")

    def write(path: Path, frames: list[NDArray[np.uint8]], *, rate: int = 10) -> None:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt, stream.bit_rate = "yuv420p", 10_000_000
            for pixels in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)

    return write
