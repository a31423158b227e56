"""Fault F11: foreign and damaged metadata ends in a StoreError that names file and remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import LocalStore

from cachedet.errors import CorruptBlockError, MissingFeatureError, StoreError
from cachedet.store.files.names import MANIFEST, most_nbytes
from cachedet.store.files.source import LocalFiles
from cachedet.store.format.manifest import encode_manifest, image_arrays, truth_arrays
from cachedet.store.format.npz import dump_arrays
from cachedet.store.prune import prune_store
from cachedet.store.reader import FeatureStore
from cachedet.store.verify import verify_store

RECORD = "commits/base-b96x128-000000.json"
SHARD = "base/b96x128/C4/nibbles/c/0/0/0"
ZARR = "base/b96x128/C4/nibbles/zarr.json"
METADATA = ("manifest.json", "images.npz", "codec.npz", "zarr.json", "base/zarr.json", ZARR)
Json = dict[str, Any]


@pytest.fixture
def root(tmp_path: Path, fitted: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "s.zarr"))


def level(**changes: object) -> list[Json]:
    return [{"name": "C4", "channels": 3, "stride": 16} | changes]


MANIFESTS: list[tuple[Json, str]] = [
    ({"views": [["base"]]}, r"views must be str, got \['base'\]"),
    ({"views": []}, r"views must name each view once, got \(\)"),
    ({"views": ["base", "base"]}, "views must name each view once"),
    ({"views": ["x" * 1000]}, "a name of 1,000 characters, xxx"),
    ({"codec": 5}, "codec must be str, got 5"),
    ({"codec": "x" * 1000}, "a name of 1,000 characters, xxx"),
    ({"backbone": [1]}, r"backbone must be str, got \[1\]"),
    ({"weights": None}, "it lacks 'weights'"),
    ({"image_size": True}, "image_size must be int, got True"),
    ({"image_size": 96.5}, "image_size must be int, got 96.5"),
    ({"image_size": 10**12}, "image_size must be a whole number from 1 to 65536"),
    ({"block_size": -1}, "block_size must be a whole number from 1 to 256, got -1"),
    ({"batch_size": 0}, "batch_size must be a whole number from 1 to 65536, got 0"),
    ({"versions": {"torch": 2}}, "versions.*torch.* must be str, got 2"),
    ({"skipped": [["a.jpg"]]}, "not enough values to unpack"),
    ({"skipped": {}}, "was altered"),
    ({"surprise": 1}, "was altered: its fields do not give its own checksum"),
    ({"categories": 7}, "is not a manifest of cachedet"),
    ({"categories": {"ids": [2**70], "names": ["a"]}}, "ids must fit into 64 bits, got 118"),
    ({"categories": {"ids": [[]], "names": ["a"]}}, "unhashable"),
    ({"preprocessing": {"mean": [0, 0], "std": [1, 1, 1], "interpolation": "x"}}, "mean must be"),
    (
        {"preprocessing": {"mean": [float("nan"), 0, 0], "std": [1, 1, 1], "interpolation": "x"}},
        "mean must be finite, got nan",
    ),
    ({"spec": 7}, "not iterable"),
    ({"spec": [7]}, "must be a mapping"),
    ({"spec": level(name="..")}, "the name of a level must be 1 to 100 of .* got '..'"),
    ({"spec": level(name="../../victim/base/b96x128/C4")}, "the name of a level must be"),
    ({"spec": level(name="a\0b")}, "the name of a level must be"),
    ({"spec": level(name="x" * 5000)}, "the name of a level must be"),
    ({"spec": level(name=5)}, "the name of a level must be .* got 5"),
    ({"spec": level(channels=1.5)}, "channels and stride must be whole numbers >= 1, got ch.*1.5"),
    ({"spec": level(stride=True)}, "channels and stride must be whole numbers"),
    ({"spec": level(stride=10**30)}, "stride must fit into 64 bits"),
    ({"spec": level(stride=2**40)}, "strides must have a common multiple of at most 1048576"),
    ({"spec": level(channels=10**15)}, "more than the limit of"),
    ({"spec": level(channels=2**40)}, "one image of .* pixels would take .* the limit of"),
    ({"spec": [*level(), *level(stride=32)]}, "at most 64 levels, each of another name"),
    ({"format_version": [2] * 1000}, r"has store format \[2, 2, .*\.\.\.\], cachedet"),
]


@pytest.mark.parametrize(("changes", "message"), MANIFESTS)
def test_forged_manifests(root: Path, changes: Json, message: str, forger: Any) -> None:
    forger.manifest(root, **changes)
    with pytest.raises(StoreError, match=rf"{root}/manifest.json.*{message}"):
        FeatureStore.open(root)
    with pytest.raises(StoreError, match=message):
        verify_store(root, deep=False)


def test_a_codec_nobody_knows(root: Path, forger: Any) -> None:
    forger.manifest(root, codec="../codec")
    with pytest.raises(StoreError, match="unknown codec '../codec'.*upgrade"):
        FeatureStore.open(root)


def test_fields_for_people_may_be_anything(root: Path, forger: Any) -> None:
    expected = FeatureStore.open(root).read(0, "base")["C4"]
    forger.manifest(root, weights="\ud800", skipped=[["..", "x"]], versions={"": ""})
    assert FeatureStore.open(root).read(0, "base")["C4"].equal(expected)


def test_a_forged_manifest_is_not_said_to_be_repaired_by_extract(
    root: Path, kit: Any, forger: Any
) -> None:
    forger.manifest(root, codec=5)
    remedy = "cachedet writes no such file: fetch the store again .* or extract into a new --store"
    for act in (FeatureStore.open, lambda root: kit.open_writer(root, codec="snr12")):
        with pytest.raises(StoreError, match=remedy):
            act(root)


def test_levels_cannot_lead_out_of_the_store(
    root: Path, tmp_path: Path, kit: Any, forger: Any
) -> None:
    victim = kit.fill(tmp_path / "victim")
    before = kit.files(victim)
    forger.manifest(root, spec=level(name="../../../victim/base/b96x128/C4"))
    for act in (FeatureStore.open, lambda root: prune_store(root, dry_run=False)):
        with pytest.raises(StoreError, match="the name of a level must be"):
            act(root)
    assert kit.files(victim) == before


REMEDY = {
    "manifest.json": "Copy it from a backup, or delete this store or choose a new --store, and ext",
    "images.npz": "The same `cachedet extract` again writes it anew",
    "codec.npz": "The same `cachedet extract` again learns it anew and keeps that where it comes",
    **dict.fromkeys(
        METADATA[3:], "The same `cachedet extract` again writes the zarr.json files anew"
    ),
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "its checksum does not fit its fields. Copy it from a backup"),
        ('{"format_version": 2, "checksum": "x"}', "its checksum does not fit its fields"),
        ("[]", "it is not JSON \\(expected a JSON object\\)"),
        ("", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"checksum": ' + "1" * 5000 + "}", "it is not JSON"),
    ],
)
def test_manifests_that_are_none(root: Path, content: str, message: str) -> None:
    (root / MANIFEST).write_text(content)
    with pytest.raises(StoreError, match=rf"{root}/manifest.json is damaged: {message}"):
        FeatureStore.open(root)


def flip(path: Path) -> None:
    """A bit of what matters: the values of an array file, an early field of a JSON file."""
    content = bytearray(path.read_bytes())
    content[-700 if path.suffix == ".npz" else 20] ^= 1
    path.write_bytes(bytes(content))


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "huge": lambda path: os.truncate(path, 20 << 30),
    "pipe": replace_by(os.mkfifo),
    "device": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "loop": replace_by(lambda path: path.symlink_to(path)),
    "elsewhere": replace_by(lambda path: path.symlink_to(__file__)),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metadata_is_named_with_a_remedy_that_works(
    root: Path, name: str, damage: str, kit: Any
) -> None:
    whole = kit.files(root)
    DAMAGES[damage](root / name)
    for open_it in (FeatureStore.open, lambda root: verify_store(root, deep=True)):
        with pytest.raises(StoreError, match=rf"{root}/{name} .*{REMEDY[name]}"):
            open_it(root)
    if name == MANIFEST:  # nothing else says what the store holds
        left = kit.files(root) if damage != "huge" else None
        with pytest.raises(StoreError, match=REMEDY[name]):
            kit.open_writer(root, codec="snr12")
        assert left is None or kit.files(root) == left
        return
    kit.open_writer(root, codec="snr12")
    assert kit.files(root) == whole
    assert FeatureStore.open(root).read(0, "base")["C4"].isfinite().all()


@pytest.mark.parametrize("name", METADATA)
def test_a_folder_in_the_place_of_metadata(root: Path, name: str) -> None:
    (root / name).unlink()
    (root / name).mkdir()
    with pytest.raises(StoreError, match=rf"{root}/{name} .*it is a folder, pipe or device"):
        FeatureStore.open(root)


@pytest.mark.parametrize("name", [*METADATA, RECORD])
def test_what_cannot_be_read_now_is_not_called_damaged(root: Path, name: str) -> None:
    (root / name).unlink()
    (root / name).symlink_to("x" * 300)
    message = rf"{root}/{name} cannot be read: File name too long\. Tha"
    with pytest.raises(StoreError, match=message):
        FeatureStore.open(root)


def test_a_folder_that_cannot_be_listed() -> None:
    source = LocalFiles(Path("x" * 300))
    with pytest.raises(StoreError, match="cannot list xxx.*/commits: File name too long; look aft"):
        source.names("commits")


@pytest.mark.parametrize("name", [*METADATA, RECORD])
def test_huge_files_of_a_zarr_storage_are_not_fetched(root: Path, name: str) -> None:
    os.truncate(root / name, 20 << 30)
    with pytest.raises(StoreError, match=rf"{name}.*it has .* bytes, which such a file never has"):
        FeatureStore.open(LocalStore(root, read_only=True))


def test_zarr_files_of_another_zarr_version_are_not_blamed_one_by_one(
    root: Path, forger: Any
) -> None:
    forger.manifest(root, metadata_digest="0" * 64)
    with pytest.raises(StoreError, match=rf"one of the \d+ zarr.json files of {root}/? is not"):
        FeatureStore.open(root)


@pytest.mark.parametrize("damage", ["huge", "pipe", "device", "loop"])
def test_what_lies_in_the_place_of_a_record_or_shard(root: Path, damage: str) -> None:
    DAMAGES[damage](root / SHARD)
    with pytest.raises(CorruptBlockError, match=rf"{root}/{SHARD} "):
        FeatureStore.open(root).read(0, "base")
    DAMAGES[damage](root / RECORD)
    with pytest.raises(CorruptBlockError, match=rf"{root}/{RECORD}"):
        FeatureStore.open(root)
    assert [bad.path for bad in verify_store(root, deep=True).bad] == [str(root / RECORD)]
    with pytest.raises(MissingFeatureError):
        FeatureStore.open(root).read(0, "base")


def test_links_out_of_the_store_give_what_was_committed_or_an_error(
    root: Path, tmp_path: Path
) -> None:
    expected = FeatureStore.open(root).read(0, "base")["C4"]
    (root / "base").rename(tmp_path / "other disk")
    (root / "base").symlink_to(tmp_path / "other disk")
    assert FeatureStore.open(root).read(0, "base")["C4"].equal(expected)
    secret = tmp_path / "secret"
    secret.write_bytes((root / SHARD).read_bytes()[:-5] + b"12345")
    (root / SHARD).unlink()
    (root / SHARD).symlink_to(secret)
    with pytest.raises(CorruptBlockError, match=SHARD):
        FeatureStore.open(root).read(0, "base")


def test_a_file_in_the_place_of_the_records(root: Path, kit: Any) -> None:
    for path in (root / "commits").iterdir():
        path.unlink()
    (root / "commits").rmdir()
    (root / "commits").touch()
    with pytest.raises(MissingFeatureError, match="is unfinished: 6 of 6 blocks"):
        FeatureStore.open(root).require_complete()


def floats(*shape: int, value: float = 0.0) -> np.ndarray:
    return np.full(shape, value, np.float32)


STATES: list[tuple[str, np.ndarray | None, str]] = [
    ("C4/basis", floats(10**9, 0), r"as float32 \(1000000000, 0\) instead of float32 \(any, 3\)"),
    ("C4/basis", floats(4, 3), "4 components of 3 channels in 'C4/basis'"),
    ("C4/basis", floats(0, 3), "0 components of 3 channels"),
    ("C4/basis", np.zeros((2, 3), "S3"), r"entry C4/basis.npy holds \|S3, not plain numbers"),
    ("C4/wide", np.array(10**12), "1000000000000 of . wide"),
    ("C4/wide", np.array(-1), "-1 of . wide"),
    ("C4/step", floats(3), r"'C4/step' as float32 \(3,\) instead of float32 \(\)"),
    ("C4/step", floats(), "has step 0.0"),
    ("C4/step", floats(value=np.inf), "values in 'C4/step' that are not finite"),
    ("C4/mean", floats(7), r"\(7,\) instead of float32 \(3,\)"),
    ("C5/mean", None, "lacks 'C5/mean'"),
    ("C6/mean", floats(7), "entry 'C6/mean.npy' does not belong there"),
]


@pytest.mark.parametrize(("name", "value", "message"), STATES)
def test_forged_codec_states(
    root: Path, name: str, value: np.ndarray | None, message: str, forger: Any
) -> None:
    state = forger.read_state(root) | {name: value}
    forger.state(root, {name: array for name, array in state.items() if array is not None})
    with pytest.raises(StoreError, match=rf"{root}/codec.npz is .*damaged: .*{message}"):
        FeatureStore.open(root)


def test_forged_states_of_the_other_codecs(tmp_path: Path, kit: Any, forger: Any) -> None:
    for codec, name, value, message in [
        ("int8", "C4/nonnegative", np.zeros(2, bool), r"as bool \(2,\) instead of bool \(\)"),
        ("pca2+int8", "C4/basis", np.zeros((3, 3), np.float32), "has 3 components in 'C4/basis'"),
    ]:
        root = kit.fill(tmp_path / codec, kit.noise_of, codec=codec)
        forger.state(root, forger.read_state(root) | {name: value})
        with pytest.raises(StoreError, match=message):
            FeatureStore.open(root)


ANNOTATION_FILES: list[tuple[str, np.ndarray | None, str]] = [
    ("boxes", None, "it lacks 'boxes'"),
    ("image_ids", np.array(7), r"image_ids is int64 \(\), not int64 \(1,\)"),
    ("labels", np.array(0), r"boxes is .*\(3, 4\), not float64 \(1"),
    ("file_names", np.full(10_000, 10, np.uint8), "there are 10001 file names for 5 images"),
    ("file_names", np.array([10, 10, 10, 10, 255], np.uint8), "invalid start byte"),
    ("file_names", np.full(10, 10), "file_names is int64"),
    ("extra", np.zeros(3), "entry 'extra.npy' does not"),
    ("boxes", np.full((3, 4), np.inf), "boxes must be finite"),
    (
        "image_ids",
        np.zeros((1 << 24) + 1, np.int64),
        "16,777,217 images are more than a store may hold, 16,777,216",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), ANNOTATION_FILES)
def test_forged_annotations(
    root: Path, name: str, value: np.ndarray | None, message: str, kit: Any
) -> None:
    arrays = image_arrays(kit.annotations, kit.contents_of(kit.annotations))
    path = root / "images.npz"
    if name not in arrays:
        arrays, path = truth_arrays(kit.annotations), kit.truth(root)
    arrays = {k: array for k, array in (arrays | {name: value}).items() if array is not None}
    path.write_bytes(dump_arrays(arrays))
    with pytest.raises(StoreError, match=rf"{path} is .*damaged: .*{message}"):
        FeatureStore.open(root)


def test_no_manifest_is_written_that_no_reader_takes(kit: Any) -> None:
    many = tuple((f"{n:0990}.jpg", "truncated") for n in range(34_000))
    with pytest.raises(StoreError, match="34,000 images were skipped, 3 categories exist; repair"):
        encode_manifest(kit.make_manifest(skipped=many))
    fitting = encode_manifest(kit.make_manifest(skipped=many[:30_000]))
    assert len(fitting) < most_nbytes(MANIFEST)
