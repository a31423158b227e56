from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cachedet.data.coco import CocoDataset, read_coco
from cachedet.data.images import decode_bytes, decode_image, make_input
from cachedet.data.survey import require_good, scan_images
from cachedet.data.views import make_geometry, view_named
from cachedet.errors import BadImageError
from cachedet.structures import Preprocessing

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bicubic")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quadrants(mode: str = "RGB") -> Image.Image:
    """Red, green, blue and white corners, 8 wide and 4 high."""
    image = Image.new("RGB", (8, 4), "white")
    image.paste("red", (0, 0, 4, 2))
    image.paste("lime", (4, 0, 8, 2))
    image.paste("blue", (0, 2, 4, 4))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (quadrants(), "PNG"),
        (quadrants("P"), "PNG"),
        (quadrants("CMYK"), "TIFF"),
        (quadrants(), "GIF"),
    ],
)
def test_colours_survive(image: Image.Image, kind: str) -> None:
    pixels, note = decode_bytes(encoded(image, kind))
    assert note is None
    np.testing.assert_array_equal(pixels, np.asarray(quadrants()))


def test_cmyk_jpeg_is_not_inverted() -> None:
    pixels, _ = decode_bytes(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() < 12


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    pixels, _ = decode_bytes(encoded(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 128, 255])
    assert pixels.shape == (1, 4, 3)


def test_one_bit_and_grey() -> None:
    pixels, _ = decode_bytes(encoded(Image.new("1", (2, 2), 1), "PNG"))
    np.testing.assert_array_equal(pixels, np.full((2, 2, 3), 255))
    pixels, _ = decode_bytes(encoded(Image.new("L", (2, 2), 77), "PNG"))
    np.testing.assert_array_equal(pixels, np.full((2, 2, 3), 77))


def test_transparent_pixels_are_black() -> None:
    pixels, _ = decode_bytes(encoded(Image.new("RGBA", (2, 2), (200, 100, 50, 0)), "PNG"))
    np.testing.assert_array_equal(pixels, np.zeros((2, 2, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_shows_the_same_image(orientation: int) -> None:
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = quadrants()
    if orientation in inverse:
        stored = stored.transpose(inverse[orientation])
    pixels, note = decode_bytes(encoded(stored, "PNG", exif=exif))
    assert note is None
    np.testing.assert_array_equal(pixels, np.asarray(quadrants()))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_upright_and_reported(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, note = decode_bytes(encoded(quadrants(), "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, np.asarray(quadrants()))
    assert note == f"EXIF orientation {orientation} is invalid (1 to 8); taken as upright"


def test_make_input_normalises_flips_and_pads() -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, :40, 0] = 255
    geometry = make_geometry(
        view_named("hflip"), image_hw=(40, 80), image_id=7, image_size=80, pad_multiple=32
    )
    preprocessing = Preprocessing(
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5), interpolation="bilinear"
    )
    image = make_input(pixels, geometry, preprocessing)
    assert image.shape == (3, 64, 96)
    torch.testing.assert_close(image[0, :40, 40:80], torch.ones(40, 40))
    torch.testing.assert_close(image[0, :40, :40], -torch.ones(40, 40))
    torch.testing.assert_close(image[1, :40, :80], torch.full((40, 80), -2.0))
    torch.testing.assert_close(image[:, 40:], torch.zeros(3, 24, 96))
    torch.testing.assert_close(image[:, :, 80:], torch.zeros(3, 64, 16))


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    images = tmp_path / "images"
    images.mkdir()
    whole = encoded(Image.effect_noise((64, 48), 50).convert("RGB"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "good.jpg": whole,
        "truncated.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "page.jpg": b"<html>not found</html>",
        "turned.jpg": encoded(Image.new("RGB", (64, 48)), "JPEG", exif=exif),
    }
    for name, content in files.items():
        (images / name).write_bytes(content)
    (images / "folder.jpg").mkdir()
    entries = [
        {"id": number, "file_name": name, "width": 64, "height": 48}
        for number, name in enumerate([*files, "folder.jpg", "missing.jpg"])
    ]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_coco(annotations=tmp_path / "a.json", images=images)


def test_scan_finds_every_bad_file_at_once(dataset: CocoDataset) -> None:
    scan = scan_images(dataset, workers=2)
    assert [row for row, _ in scan.bad] == [1, 2, 3, 4, 5, 6]
    reasons = dict(scan.bad)
    assert "truncated" in reasons[1]
    assert reasons[2] == "the file is empty"
    assert reasons[3].startswith("not an image of a format that is read (AVIF, BMP")
    assert reasons[4] == "annotated as 64x48, the upright file is 48x64"
    assert scan.contents[0] != 0
    message = r"6 of 7 images cannot be used:(.|\n)*--on-bad-image skip"
    with pytest.raises(BadImageError, match=message):
        require_good(dataset, scan)


def test_decode_image_names_the_file(dataset: CocoDataset) -> None:
    with pytest.raises(BadImageError, match=r"page.jpg: not an image"):
        decode_image(dataset.path_of(3))
    with pytest.raises(BadImageError, match=r"missing.jpg: No such file"):
        decode_image(dataset.path_of(6))


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachedet.data.images.MAX_PIXELS", 31)
    with pytest.raises(BadImageError, match="8x4 pixels are more than the limit of 31"):
        decode_bytes(encoded(quadrants(), "PNG"))


def test_looked_up_values_are_the_computed_ones_to_the_bit() -> None:
    preprocessing = Preprocessing(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
    )
    pixels = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
    geometry = make_geometry(
        view_named("hflip"), image_hw=(16, 16), image_id=7, image_size=16, pad_multiple=24
    )
    made = make_input(pixels, geometry, preprocessing)
    values = torch.from_numpy(pixels[:, ::-1].copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    assert torch.equal(made[:, :16, :16], (values - mean) / std)
    assert not made[:, 16:].any()
    assert not made[:, :, 16:].any()
