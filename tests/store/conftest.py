"""A small store by hand: two levels, five images, two buckets, two views."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.store.codecs.codec import Codec, state_digest
from cachedet.store.codecs.statistics import FeatureStatistics
from cachedet.store.files.names import truth_key
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import Block
from cachedet.store.format.manifest import (
    NO_ROWS,
    Manifest,
    digest_json,
    images_digest,
    load_manifest,
    truth_digest,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.store.writer import StoreWriter
from cachedet.structures import Annotations, Features, FeatureSpec, LevelSpec, Preprocessing

SPEC = FeatureSpec(
    (LevelSpec(name="C4", channels=3, stride=16), LevelSpec(name="C5", channels=2, stride=32))
)


def contents_of(annotations: Annotations) -> np.ndarray:
    return np.arange(len(annotations), dtype=np.uint64) + 1


def features_of(block: Block) -> Features:
    """Recognisable maps: image, view and level in every value."""
    flip = 100.0 if block.view == "hflip" else 0.0
    return {
        level: torch.stack([torch.full(shape, row + flip + index * 0.5) for row in block.rows])
        for index, (level, shape) in enumerate(SPEC.map_shapes(block.bucket).items())
    }


def noise_of(block: Block) -> Features:
    """Random maps, the same for the same block in every process."""
    seed = sum(map(ord, block.name))
    generator = torch.Generator().manual_seed(seed)
    return {
        level: torch.randn(len(block.rows), *shape, generator=generator)
        for level, shape in SPEC.map_shapes(block.bucket).items()
    }


def fit(codec: Codec) -> Codec:
    """On random maps of both signs."""
    seen = FeatureStatistics()
    for level in SPEC:
        maps = torch.randn(4, level.channels, 6, 8, generator=torch.Generator().manual_seed(3))
        seen.add({level.name: maps})
    return codec.fit(seen.levels)


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(bytes(content))


@contextlib.contextmanager
def at_call(name: str, action: Callable[[], object]) -> Iterator[None]:
    """When a function of this name is called next, `action` comes first: as another process may."""

    def watch(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == name:
            sys.setprofile(None)
            action()

    sys.setprofile(watch)
    try:
        yield
    finally:
        assert sys.getprofile() is None, f"{name} was not called"


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Where mounting is not allowed the test is skipped."""
    if os.geteuid() != 0 or os.system(f"mount {options} {folder} 2>/dev/null") != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        assert os.system(f"umount --lazy {folder}") == 0  # a store may still be open there


@contextlib.contextmanager
def read_only(root: Path) -> Iterator[None]:
    """For root a read-only mount: it may write whatever the permissions say."""
    if os.geteuid() == 0:
        with mounted(root, f"--bind {root}"):
            assert os.system(f"mount -o remount,ro,bind {root}") == 0
            yield
        return
    paths = [root, *root.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & 0o555)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)


def die_at(step: int) -> None:
    """Kill this process at its `step`-th operation that could change files, just before it.

    At step 0 it lives, and prints a line for each.
    """
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            count += 1
            if step == 0:
                os.write(1, f"{count} {event} {Path(str(arguments[0])).name}\n".encode())
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def act_and_die(folder: Path, act: Callable[[Path], object], step: int) -> int:
    """The exit status of a child process; see `die_at`."""
    child = os.fork()
    if child == 0:
        die_at(step)
        act(folder)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def die_at_each_step(
    root: Path, prepare: Callable[[Path], object], act: Callable[[Path], object], *, every: int = 1
) -> int:
    """For step 1, 1 + every, ...: prepare a folder beside `root`, `act` there and die at that step.

    Returns the first step that `act` no longer has: it ran to its end.
    """
    status, step = None, 1 - every
    while status != 0:
        step += every
        folder = root.parent / str(step)
        prepare(folder)
        status = act_and_die(folder, act, step)
        assert status in (0, signal.SIGKILL), status
    return step


SCRIPT = """
import importlib.util, json, os, signal, sys, time
from pathlib import Path
def load(name):
    path = Path({tests!r}) / (name + ".py")
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
kit = load("store/conftest").Kit(None, load("conftest").make_annotations).blank({images})
root = Path({root!r})
{body}
"""


@dataclass(frozen=True)
class Kit:
    """What tests of the store share; tests cannot import a conftest."""

    nursery: Any
    annotations_of: Any
    annotations: Annotations | None = None  # what its stores are of
    spec = SPEC
    contents_of = staticmethod(contents_of)
    features_of = staticmethod(features_of)
    noise_of = staticmethod(noise_of)
    fit = staticmethod(fit)
    flip_bit = staticmethod(flip_bit)
    at_call = staticmethod(at_call)
    mounted = staticmethod(mounted)
    read_only = staticmethod(read_only)
    act_and_die = staticmethod(act_and_die)
    die_at_each_step = staticmethod(die_at_each_step)

    def of(self, annotations: Annotations) -> Kit:
        return replace(self, annotations=annotations)

    def blank(self, images: int) -> Kit:
        """For stores of so many images without boxes."""
        return self.of(self.annotations_of([(96, 128)] * images))

    def make_manifest(self, **changes: object) -> Manifest:
        assert self.annotations is not None
        manifest = Manifest(
            spec=SPEC,
            preprocessing=Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic"),
            backbone="test_resnet",
            weights="random",
            weights_digest="d" * 64,
            image_size=128,
            views=("base", "hflip"),
            codec="fp16",
            block_size=2,
            batch_size=2,
            images_digest=images_digest(self.annotations, contents_of(self.annotations)),
            truth_digest=truth_digest(self.annotations),
            categories=self.annotations.categories,
            skipped=(("bad.jpg", "truncated"),),
            versions={"torch": "2"},
            network=SPEC,
        )
        whole = {"network": changes.get("spec", SPEC), **changes}
        return replace(manifest, **whole)  # type: ignore[arg-type]

    def open_writer(
        self,
        root: Path,
        *,
        fit: Callable[[Codec], Codec] = fit,
        contents: np.ndarray | None = None,
        withdrawn: np.ndarray = NO_ROWS,
        **changes: object,
    ) -> StoreWriter:
        """With another images' content, or some taken out, digests must be changed too."""
        assert self.annotations is not None
        return StoreWriter.open(
            root,
            manifest=self.make_manifest(**changes),
            annotations=self.annotations,
            contents=contents_of(self.annotations) if contents is None else contents,
            fit=fit,
            withdrawn=withdrawn,
        )

    def fill(
        self, root: Path, make: Callable[[Block], Features] = features_of, **changes: object
    ) -> Path:
        """Write every block that is missing."""
        writer = self.open_writer(root, **changes)
        for block in writer.missing_blocks():
            writer.write(block, make(block))
        return root

    def start(
        self, root: Path, body: str, *, images: int = 20, file_limit: int | None = None
    ) -> Any:
        """Another process that runs `body` with `kit`, `annotations` and `root` at hand."""
        tests = str(Path(__file__).parents[1])
        script = SCRIPT.format(tests=tests, root=str(root), images=images, body=body)
        if file_limit is not None:
            script = self.nursery.limit_files(file_limit) + script
        return self.nursery.start(script)

    def run(self, root: Path, body: str, **options: Any) -> tuple[str, str]:
        """To the end of it: what it wrote to its output and to its error output."""
        with self.start(root, body, **options) as process:
            output, errors = process.communicate()
        return output, errors

    @staticmethod
    def truth(root: Path) -> Path:
        """The file of the boxes the store has now."""
        return root / truth_key(load_manifest(LocalFiles(root)).truth_digest)

    @staticmethod
    def files(root: Path) -> dict[str, bytes]:
        """Everything in a folder, by relative path."""
        paths = (path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in paths}

    @staticmethod
    def read_json(path: Path) -> dict[str, object]:
        values: dict[str, object] = json.loads(path.read_text())
        return values


NO_IDENTITY = ("weights", "skipped", "versions", "metadata_digest", "fingerprint", "checksum")


@dataclass(frozen=True)
class Forger:
    """Changes a store as a hostile author would: with digests and checksums that fit."""

    @staticmethod
    def seal(path: Path, values: dict[str, Any]) -> None:
        """A manifest or record of these values, whatever they are."""
        body = {key: value for key, value in values.items() if key != "checksum"}
        path.write_text(json.dumps({**body, "checksum": digest_json(body)}))

    @classmethod
    def write_manifest(cls, root: Path, values: dict[str, Any]) -> None:
        fingerprint = digest_json({k: v for k, v in values.items() if k not in NO_IDENTITY})
        cls.seal(root / "manifest.json", {**values, "fingerprint": fingerprint})

    @classmethod
    def manifest(cls, root: Path, **changes: object) -> None:
        """Change fields (None: leave out)."""
        values = json.loads((root / "manifest.json").read_bytes()) | changes
        cls.write_manifest(root, {k: v for k, v in values.items() if v is not None})

    @classmethod
    def state(cls, root: Path, state: dict[str, np.ndarray]) -> None:
        """As if its codec had always learnt this."""
        (root / "codec.npz").write_bytes(dump_arrays(state))
        cls.manifest(root, codec_digest=state_digest(state))
        fingerprint = load_manifest(LocalFiles(root)).block_fingerprint()
        for path in (root / "commits").glob("*.json"):
            cls.seal(path, json.loads(path.read_bytes()) | {"fingerprint": fingerprint})

    @staticmethod
    def read_state(root: Path) -> dict[str, np.ndarray]:
        with np.load(root / "codec.npz") as arrays:
            return dict(arrays)


@pytest.fixture
def forger() -> Forger:
    return Forger()


@pytest.fixture
def fitted(tmp_path_factory: pytest.TempPathFactory, kit: Kit) -> Path:
    """A store whose codec keeps a state, made once: to be copied, never changed."""
    path = tmp_path_factory.getbasetemp() / "fitted.zarr"
    return path if path.exists() else kit.fill(path, noise_of, codec="snr12")


@pytest.fixture
def kit(nursery: Any, annotations_of: Any, annotations: Annotations) -> Kit:
    return Kit(nursery, annotations_of, annotations)


@pytest.fixture
def annotations(annotations_of: Any) -> Annotations:
    boxes = [[[1, 2, 30, 40, 1, 0]], [], [[5, 5, 9, 9, 0, 1]], [], [[0, 0, 50, 60, 2, 0]]]
    return annotations_of([(96, 128), (96, 128), (128, 96), (96, 128), (90, 128)], boxes)


@pytest.fixture
def root(tmp_path: Path, kit: Kit) -> Path:
    return kit.fill(tmp_path / "s.zarr")
