"""Fault F11: no metadata takes more memory than it may, and any of it is refused or reads right."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedet.errors import StoreError
from cachedet.store.files.names import MANIFEST, METADATA
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.layout import metadata_digest, metadata_keys
from cachedet.store.format.listing import with_listing
from cachedet.store.format.manifest import (
    image_arrays,
    images_digest,
    load_manifest,
    truth_arrays,
    truth_digest,
)
from cachedet.store.format.npz import dump_arrays
from cachedet.store.format.plan import StorePlan
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import describe_store
from cachedet.structures import Annotations

RECORD = "commits/base-b96x128-000000.json"
ZARR = "base/b96x128/C4/nibbles/zarr.json"
FILES = ("manifest.json", "images.npz", "codec.npz", "zarr.json", ZARR)
GIGABYTE = 1 << 30
Json = dict[str, Any]


@pytest.fixture
def root(tmp_path: Path, fitted: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "s.zarr"))


BOUNDED = """
import resource
from cachedet.errors import StoreError
from cachedet.store.reader import FeatureStore
for case, limit in {cases}:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, -1))
    try:
        FeatureStore.open(root.parent / case)
        print(case, "opened")
    except StoreError as error:
        print(case, str(error)[:400])
"""


def many_images(root: Path, kit: Any, forger: Any) -> None:
    """Annotations that fit its manifest, of more images than memory holds as objects."""
    count = 100_000
    annotations = Annotations(
        image_ids=np.arange(count),
        file_names=tuple(map(str, range(count))),
        sizes_hw=np.full((count, 2), 96),
        offsets=np.zeros(count + 1, np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        crowd=np.zeros(0, bool),
        areas=np.zeros(0),
        categories=load_manifest(LocalFiles(root)).categories,
    )
    contents = kit.contents_of(annotations)
    digests = {
        "images_digest": images_digest(annotations, contents),
        "truth_digest": truth_digest(annotations),
    }
    forger.manifest(root, **digests, block_size=1)
    (root / "images.npz").write_bytes(dump_arrays(image_arrays(annotations, contents)))
    kit.truth(root).write_bytes(dump_arrays(truth_arrays(annotations)))


def wide_manifest(root: Path, kit: Any, forger: Any) -> None:
    (root / MANIFEST).write_bytes(b'{"views": [' + b"[]," * 1_000_000 + b"[]]}")


def many_views(root: Path, kit: Any, forger: Any) -> None:
    values = json.loads((root / MANIFEST).read_bytes())
    forger.write_manifest(root, {**values, "views": ["base"] * 300_000})


def no_columns(root: Path, kit: Any, forger: Any) -> None:
    basis = np.zeros((10**9, 0), np.float32)
    forger.state(root, forger.read_state(root) | {"C4/basis": basis})


def sparse(name: str, nbytes: int) -> Callable[[Path, Any, Any], None]:
    return lambda root, kit, forger: os.truncate(root / name, nbytes)


BOMBS: dict[str, tuple[Callable[[Path, Any, Any], None], int, str]] = {
    **{
        f"sparse {Path(name).name} {number}": (
            sparse(name, 20 * GIGABYTE),
            GIGABYTE,
            rf"{name}.*it has 21,474,836,480 bytes, which such a file never has",
        )
        for number, name in enumerate((*FILES, RECORD))
    },
    "large ground truth": (
        sparse("images.npz", 3 * GIGABYTE),
        GIGABYTE,
        "images.npz does not fit into the memory that this process may take; open the store",
    ),
    "large codec": (
        sparse("codec.npz", GIGABYTE),
        GIGABYTE // 2,
        "codec.npz does not fit into the memory",
    ),
    "views": (many_views, GIGABYTE, "views must name each view once"),
    "wide JSON": (
        wide_manifest,
        GIGABYTE // 24,
        "needs more memory than this process may take; open it on a larger machine, or fetch"
        "|damaged",  # where the allocator finds room after all
    ),
    "images": (
        many_images,
        GIGABYTE // 32,
        "needs more memory than this process may take|damaged",  # any StoreError in bounds
    ),
    "no columns": (no_columns, GIGABYTE, r"'C4/basis' as float32 \(1000000000, 0\)"),
}


def test_no_file_takes_more_memory_than_it_may(
    fitted: Path, tmp_path: Path, kit: Any, forger: Any
) -> None:
    for case, (make, _, _) in BOMBS.items():
        make(Path(shutil.copytree(fitted, tmp_path / case)), kit, forger)
    cases = [(case, limit) for case, (_, limit, _) in BOMBS.items()]
    process = kit.start(tmp_path / "s.zarr", BOUNDED.format(cases=cases), images=1)
    out, err = process.communicate(timeout=120)
    lines = out.splitlines()
    assert process.returncode == 0, err
    assert len(lines) == len(BOMBS)
    for line, (_, _, message) in zip(lines, BOMBS.values(), strict=True):
        assert re.search(message, line), line


junk = st.one_of(
    st.sampled_from([None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -0.5]),
    st.sampled_from([float("nan"), float("inf"), [], {}, [[]], [1, 2], {"a": 1}]),
    st.sampled_from(["", "..", "../../x", "a\0b", "\ud800", "x" * 5000, "0" * 64]),
    st.integers(),
    st.floats(),
)
changes_of_json = st.lists(
    st.tuples(st.integers(0, 9999), st.sampled_from(["replace", "delete", "double"]), junk),
    min_size=1,
    max_size=3,
)
at_random = settings(derandomize=True, database=None, deadline=None)


def slots_of(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys: Any = values if isinstance(values, dict) else range(len(values))
    inner = [
        slot
        for key in keys
        if isinstance(values[key], dict | list)
        for slot in slots_of(values[key])
    ]
    return [(values, key) for key in keys] + inner


def mutate(values: Json, changes: list[tuple[int, str, Any]]) -> Json:
    for number, action, value in changes:
        if not values:
            break
        slots = slots_of(values)
        container, key = slots[number % len(slots)]
        if action == "replace":
            container[key] = value
        elif action == "delete":
            del container[key]
        elif isinstance(container, list):
            container.append(container[key])
        else:
            container[f"{key}2"] = container[key]
    return values


def read_all(root: Path) -> dict[str, np.ndarray]:
    store = FeatureStore.open(root)
    assert json.dumps(describe_store(root))
    maps = {
        f"{view} {row} {name}": values.numpy()
        for view in ("base", "hflip")
        for row in range(5)
        for name, values in store.read(row, view).items()
    }
    images = image_arrays(store.annotations, store.contents)
    return {**images, **truth_arrays(store.annotations), **maps}


def read_or_refuse(root: Path) -> dict[str, np.ndarray] | None:
    """None where the store is refused, with its name in the message."""
    try:
        return read_all(root)
    except StoreError as error:
        if str(root) not in str(error):
            raise
        return None


def forge_zarr(root: Path, forger: Any) -> None:
    plan = StorePlan.load(LocalFiles(root))
    keys = metadata_keys(plan.blocks, plan.layout)
    files = {key: (root / key).read_bytes() for key in keys}
    (root / METADATA).write_bytes(with_listing(files))
    digest = metadata_digest(files)
    forger.manifest(root, metadata_digest=digest)


@pytest.mark.parametrize("name", [MANIFEST, RECORD, ZARR])
def test_any_json_is_refused_or_reads_right(root: Path, name: str, forger: Any) -> None:
    content, manifest = (root / name).read_bytes(), (root / MANIFEST).read_bytes()
    expected = read_all(root)
    seen = set()

    @given(changes=changes_of_json, is_forged=st.booleans())
    @settings(at_random, max_examples=100)
    def check(changes: list[tuple[int, str, Any]], is_forged: bool) -> None:
        (root / MANIFEST).write_bytes(manifest)
        values = mutate(json.loads(content), changes)
        (root / name).write_text(json.dumps(values))
        if is_forged and name == MANIFEST:
            forger.write_manifest(root, values)
        elif is_forged and name == RECORD:
            forger.seal(root / name, values)
        elif is_forged:
            forge_zarr(root, forger)
        arrays = read_or_refuse(root)
        seen.add(arrays is None)
        if arrays is not None:
            assert arrays.keys() == expected.keys()
            for key, array in expected.items():
                np.testing.assert_array_equal(arrays[key], array)

    check()
    assert True in seen
    assert name == MANIFEST or False in seen


shapes = st.sampled_from([(), (0,), (1,), (2,), (3,), (10**6, 0), (2, 2), (2, 3), (3, 3), (1, 3)])
kinds = st.sampled_from(["<f4", "<f4", "<i8", "|b1", ">f4", "<f8", "<U2"])
numbers = st.sampled_from([0, 1, 2, 3, -1, 2**62, 0.25, 1e38, float("nan"), float("inf")])


@pytest.mark.parametrize("codec", ["snr12", "pca2+int8", "int8+zstd"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NaN as a whole number
def test_any_codec_state_is_refused_or_gives_maps_of_the_right_shape(
    fitted: Path, tmp_path: Path, codec: str, kit: Any, forger: Any
) -> None:
    root = tmp_path / "s.zarr"
    if codec == "snr12":
        shutil.copytree(fitted, root)
    else:
        kit.fill(root, kit.noise_of, codec=codec)
    paths = [root / MANIFEST, root / "codec.npz", *(root / "commits").glob("*.json")]
    whole = {path: path.read_bytes() for path in paths}
    expected = {name: array.shape for name, array in read_all(root).items()}
    names = sorted(forger.read_state(root))

    @given(
        name=st.sampled_from(names), shape=shapes, kind=kinds, number=numbers, is_new=st.booleans()
    )
    @settings(at_random, max_examples=60)
    def check(name: str, shape: tuple[int, ...], kind: str, number: float, is_new: bool) -> None:
        for path, content in whole.items():
            path.write_bytes(content)
        state = forger.read_state(root)
        array = np.full(shape, number, dtype=object if kind == "<U2" else None).astype(kind)
        state[f"{name}2" if is_new else name] = array
        forger.state(root, state)
        arrays = read_or_refuse(root)
        if arrays is not None:
            assert {name: array.shape for name, array in arrays.items()} == expected

    check()
