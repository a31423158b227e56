"""Images in a bucket: what a folder of them gives, whatever the server does meanwhile."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cachedet.cli import app
from cachedet.data.image_files import ImageFolder
from cachedet.data.survey import scan_images
from cachedet.errors import BadImageError, ConfigError, DatasetError, RemoteStoreError
from cachedet.extract import extract, open_dataset
from cachedet.extraction.image_bucket import ImageBucket, open_images
from cachedet.store.files.depot import open_depot

pytest.importorskip("obstore", reason="pip install 'cachedet[remote]'")

ODD = ("ä ü.png", "a%20b.png", "a#b?c.png", "a\\b.png", "e\u0301+&=.png", "deep/er/x.png")


@pytest.fixture
def bucket(tiny: Any, s3: Any) -> str:
    """The generated images below a prefix."""
    url: str = s3.new_url("photos")
    upload(tiny.paths.images, url)
    s3.forget()
    return url


def upload(folder: Path, url: str) -> None:
    files = {name: (folder / name).read_bytes() for name in ImageFolder(folder).names()}
    open_depot(url).put(files)  # type: ignore[union-attr]


def files_of(kit: Any, root: Path) -> dict[str, bytes]:
    return {k: v for k, v in kit.files(root).items() if not k.startswith("leases/")}


def failure_of(tiny: Any, images: str, **changes: Any) -> str:
    with pytest.raises((BadImageError, DatasetError, RemoteStoreError)) as caught:
        extract(tiny.extract_config(Path("never.zarr"), images=images, **changes))
    assert "S3CRET" not in str(caught.value)
    return str(caught.value)


def test_the_store_is_that_of_a_folder(
    tiny: Any, s3: Any, bucket: str, store_kit: Any, tmp_path: Path
) -> None:
    """Each image is read once for the check; the folder's store needs nothing from the bucket."""
    extract(tiny.extract_config(tmp_path / "s.zarr", images=bucket))
    assert files_of(store_kit, tmp_path / "s.zarr") == files_of(store_kit, tiny.train)
    got = Counter(key for method, key in s3.requests if method == "GET" and key.endswith(".jpg"))
    assert len(got) == 8
    assert set(got.values()) == {1}  # what was decoded is kept
    assert extract(tiny.extract_config(tmp_path / "s.zarr")).blocks_written == 0
    shutil.copytree(tiny.train, tmp_path / "t.zarr")
    report = extract(tiny.extract_config(tmp_path / "t.zarr", images=bucket, views="scale=0.5"))
    assert (report.images_added, report.views_kept) == (0, ("base", "hflip"))


def test_images_are_read_again_for_views_that_are_not_kept(
    tiny: Any, s3: Any, bucket: str, store_kit: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Ahead, and of the bytes that were checked; one answer of ten fails or is lost."""
    monkeypatch.setattr(sys.modules["cachedet.extract"], "_KEPT_NBYTES", 0)
    monkeypatch.setattr("cachedet.extraction.image_bucket._AHEAD", 3)
    count = itertools.count(1)
    s3.before = lambda method, key: (503, "SlowDown") if next(count) % 10 == 0 else None
    s3.after = lambda method, key: (500, "InternalError") if next(count) % 10 == 5 else None
    extract(tiny.extract_config(tmp_path / "s.zarr", images=bucket))
    assert files_of(store_kit, tmp_path / "s.zarr") == files_of(store_kit, tiny.train)


def test_an_image_that_is_replaced_meanwhile_is_refused(
    tiny: Any, s3: Any, bucket: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys.modules["cachedet.extract"], "_KEPT_NBYTES", 0)
    dataset, seen = open_dataset(tiny.extract_config(tmp_path / "s.zarr", images=bucket)), set()
    name, other = dataset.annotations.file_names[:2]

    def replaced(method: str, key: str) -> None:
        if key.endswith(other) and key not in seen:
            seen.add(key)
            content = (tiny.paths.images / name).read_bytes()
            s3.after = lambda *_: None
            open_depot(bucket).put({other: content})  # type: ignore[union-attr]

    s3.after = replaced
    with pytest.raises(BadImageError, match=f"{bucket}/{other}: its bytes are not those"):
        extract(tiny.extract_config(tmp_path / "s.zarr", images=bucket))


def test_what_is_read_ahead_is_bounded_and_found(s3: Any, monkeypatch: Any) -> None:
    """Also what nobody opens, what was not announced, and objects of many requests."""
    monkeypatch.setattr("cachedet.extraction.image_bucket._AHEAD", 2)
    monkeypatch.setattr("cachedet.store.files.remote._REQUEST_NBYTES", 5)
    url = s3.new_url("photos")
    contents = {name: name.encode() * n for n, name in enumerate(ODD)}
    open_depot(url).put(contents)  # type: ignore[union-attr]
    files = open_images(url)
    assert isinstance(files, ImageBucket)
    assert sorted(files.names()) == sorted(ODD)
    files.expect(ODD)
    assert len(files._begun) == 2
    for name in (*reversed(ODD), *ODD):
        with files.opened(name) as content:
            assert content == contents[name]
        assert len(files._begun) <= 2
    assert not files._wanted
    assert files.has("deep/er/x.png")
    assert not files.has("deep/er")


def test_bad_images_are_listed_at_once_and_skipped_alike(
    tiny: Any, s3: Any, store_kit: Any, tmp_path: Path
) -> None:
    """Missing, cut, damaged, empty: in the words, and the store, of a folder."""
    folder, url = tmp_path / "photos", s3.new_url("photos")
    shutil.copytree(tiny.paths.images, folder)
    names = open_dataset(tiny.extract_config(tmp_path)).annotations.file_names
    content = (folder / names[1]).read_bytes()
    (folder / names[0]).rename(folder / names[0].upper())
    (folder / names[1]).write_bytes(content[: len(content) // 2])
    (folder / names[2]).write_bytes(b"<!doctype html>")
    (folder / names[3]).write_bytes(b"")
    upload(folder, url)
    message = failure_of(tiny, url)
    assert message == failure_of(tiny, str(folder)).replace(str(folder), url)
    assert message.count(url) == 4
    assert f"nearest: '{names[0].upper()}'" in message
    for store, images in (("a.zarr", folder), ("b.zarr", url)):
        config = tiny.extract_config(tmp_path / store, images=images, on_bad_image="skip")
        assert len(extract(config).skipped) == 4
    found = [files_of(store_kit, tmp_path / name) for name in ("a.zarr", "b.zarr")]
    assert found[0] == found[1]


def test_names_that_no_object_has(tiny: Any, s3: Any, bucket: str, tmp_path: Path) -> None:
    odd = ["\ud800.jpg", "x" * 1100, "a\tb.jpg", "none.jpg"]

    def rename(content: dict[str, Any]) -> None:
        for image, name in zip(content["images"], odd, strict=False):
            image["file_name"] = name

    path = tiny.change(tiny.paths.train, tmp_path / "a.json", rename)
    config = tiny.extract_config(tmp_path, images=bucket, annotations=path)
    scan = scan_images(open_dataset(config), workers=2)
    assert [row for row, _ in scan.bad] == [0, 1, 2, 3]
    assert (scan.missing, scan.misnamed) == ({3}, {0, 1, 2})
    odd[0] = "../x.jpg"
    path = tiny.change(path, tmp_path / "b.json", rename)
    message = failure_of(tiny, bucket, annotations=path)
    assert f"file names that leave the folder {bucket}" in message


def test_places_that_cannot_be_read(tiny: Any, s3: Any, bucket: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("CACHEDET_REMOTE_PATIENCE", "0.5")
    assert "there is no such bucket (404" in failure_of(tiny, "s3://no-such-bucket/photos")
    assert "is empty: there is no object below it" in failure_of(tiny, bucket + "/none")
    assert "read from a folder, s3://, gs:// and az://" in failure_of(tiny, "https://a:b@x.org/p")
    s3.before = lambda *_: (403, "AccessDenied")
    assert "refuses the credentials (AccessDenied)" in failure_of(tiny, bucket)
    s3.before = lambda *_: (503, "SlowDown")
    message = failure_of(tiny, bucket)
    assert "cannot be fetched: the server answered SlowDown (tried" in message
    assert "A read is tried for 0.5 s" in message
    with pytest.raises(DatasetError, match="only `extract` takes images in a bucket"):
        ImageFolder(Path(bucket)).require_some()


def test_credentials_that_expire_half_way(
    tiny: Any, s3: Any, bucket: str, store_kit: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """One message; what was committed stays, and the same command goes on."""
    monkeypatch.setattr(sys.modules["cachedet.extract"], "_KEPT_NBYTES", 0)
    count = itertools.count()
    s3.before = lambda method, key: (
        (400, "ExpiredToken") if key.endswith(".jpg") and next(count) > 20 else None
    )
    config = tiny.extract_config(tmp_path / "s.zarr", images=bucket, block_size=1)
    with pytest.raises(RemoteStoreError, match=r"ExpiredToken.*\. What was committed is safe"):
        extract(config)
    s3.forget()
    report = extract(config)
    assert 0 < report.blocks_written < report.blocks_total


def test_formats_that_look_into_the_folder_are_refused(
    tiny: Any, bucket: str, exports: Any, tmp_path: Path
) -> None:
    path = exports.write_cvat(tmp_path / "a.xml")
    message = failure_of(tiny, bucket, annotations=path)
    assert f"{path} is not COCO or LVIS JSON" in message
    assert "`cachedet convert`" in message
    message = failure_of(tiny, bucket, annotations=f"{bucket}/train.json")
    assert "train.json. Annotations are read from this machine: copy them from the" in message


def test_other_commands_want_a_folder(tiny: Any, bucket: str, tmp_path: Path) -> None:
    config = tiny.extract_config(tmp_path / "s.zarr", images=bucket)
    with pytest.raises(ConfigError, match="images must be a folder here, got s3://"):
        config.require_image_folder()
    with pytest.raises(DatasetError, match="only `extract` reads them there"):
        open_dataset(config).images  # noqa: B018


def test_the_command_notes_images_that_nobody_names(tiny: Any, bucket: str, tmp_path: Path) -> None:
    open_depot(bucket).put({"more/extra.jpg": b"x", ".hid/y.jpg": b"x"})  # type: ignore[union-attr]
    values = tiny.extract_config(tmp_path / "s.zarr", images=bucket).model_dump(mode="json")
    names = ("images", "annotations", "store", "backbone", "weights", "image_size", "device")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(values[name]))]
    result = CliRunner().invoke(app, ["extract", *words, "--views", "base", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 8
    noted = " ".join(result.stderr.split())
    assert f"in {bucket} 5 images are not named by train.json" in noted
