from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cachedet.data.backbone_input import make_input
from cachedet.data.images import (
    MAX_NBYTES,
    DecodedImage,
    decode_bytes,
    decode_image,
    decoded,
    image_suffixes,
    read_sizes,
)
from cachedet.data.views import make_geometry, view_named
from cachedet.errors import BadImageError
from cachedet.progress import show_progress
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


def test_decode_image_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    with pytest.raises(BadImageError, match=r"page.jpg: not an image of a format that is read"):
        decode_image(tmp_path / "page.jpg")
    with pytest.raises(BadImageError, match=r"missing.jpg: No such file"):
        decode_image(tmp_path / "missing.jpg")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.jpg", "it is a folder, pipe or device, not a file"),
        ("folder.jpg", "it is a folder, pipe or device, not a file"),
        ("device.jpg", "it is a folder, pipe or device, not a file"),
        ("loop.jpg", "Too many levels of symbolic links"),
        ("sparse.jpg", "bytes are more than the limit of 536,870,912"),
        ("a" * 300, "File name too long"),
        ("half\ud83d.jpg", "no file can have this name"),
        ("nul\0.jpg", "no file can have this name"),
        ("page.jpg/x.jpg", "Not a directory"),
    ],
)
def test_what_is_no_file_of_a_sensible_size_is_refused_unread(
    tmp_path: Path, name: str, message: str
) -> None:
    """None of these may block, crash, or fill the memory."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "page.jpg").touch()
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(MAX_NBYTES + 1)
    with pytest.raises(BadImageError, match=message):
        decode_image(tmp_path / name)


PROGRAMS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n",
    "PDF": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "compound file": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
    "AppleDouble": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_only_formats_of_pictures_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Pillow starts Ghostscript for EPS; here it would leave a file behind."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(BadImageError, match="not an image of a format that is read"):
        decode_bytes(PROGRAMS[kind])
    assert not (tmp_path / "started").exists()


def test_endings_are_those_of_the_formats_that_are_read() -> None:
    wanted = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2"}
    assert wanted <= image_suffixes()
    assert not image_suffixes() & {".eps", ".pdf", ".wmf", ".mpg", ".h5", ".fpx"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Failed to decode frame 0: Decoding failed"), "RuntimeError: Failed to"),
        (NotImplementedError("not yet"), "NotImplementedError: not yet"),
        (MemoryError(), "there is not enough memory to decode it"),
        (struct.error("unpack requires 4 bytes"), "error: unpack requires 4 bytes"),
        (KeyError("x"), "KeyError: 'x'"),
        (ZeroDivisionError(), "ZeroDivisionError: it cannot be decoded"),
        (OSError("broken\nmore"), "^broken$"),
    ],
)
def test_whatever_a_decoder_raises_is_a_bad_image(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def load(self: object) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", load)
    with pytest.raises(BadImageError, match=message):
        decode_bytes(encoded(quadrants(), "PNG"))


def test_an_interrupt_is_no_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", load)
    with pytest.raises(KeyboardInterrupt):
        decode_bytes(encoded(quadrants(), "PNG"))


def ramp(dtype: str, low: float, high: float) -> Image.Image:
    return Image.fromarray(np.array([[low, (low + high) / 2, high]], dtype=dtype))


@pytest.mark.parametrize(
    ("image", "kind", "values", "note"),
    [
        (ramp("f4", 0, 1), "TIFF", [0, 128, 255], "its floats, 0 to 1, are multiplied by 255"),
        (ramp("f4", 0, 1), "PPM", [0, 128, 255], "its floats, 0 to 1, are multiplied by 255"),
        (ramp("f4", 0, 255), "TIFF", [0, 128, 255], "its floats, 0 to 255, are taken as 0 to 255"),
        (ramp("i4", 0, 65535), "TIFF", [0, 127, 255], "32-bit integers, 0 to 65535, are taken as"),
        (ramp("u2", 0, 4095), "PNG", [0, 8, 16], "only 12 of its 16 bits are used (up to 4095"),
        (ramp("u2", 0, 1023), "TIFF", [0, 2, 4], "only 10 of its 16 bits are used"),
        (ramp("u2", 0, 65535), "PNG", [0, 127, 255], None),
        (ramp("u2", 0, 65535), "PPM", [0, 127, 255], None),
        (ramp("u2", 0, 0), "PNG", [0, 0, 0], None),
    ],
)
def test_deep_pixels_by_the_stated_rule(
    image: Image.Image, kind: str, values: list[int], note: str | None
) -> None:
    pixels, noticed = decode_bytes(encoded(image, kind))
    np.testing.assert_array_equal(pixels, np.repeat(np.array(values)[None, :, None], 3, axis=2))
    assert (noticed is None) == (note is None)
    assert note is None or note in str(noticed)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ramp("f4", -1, 1), "its floats range from -1 to 1, expected 0 to 1 or 0 to 255"),
        (ramp("f4", 0, 1.5), "its floats range from 0 to 1.5"),
        (ramp("f4", 0, 1000), "its floats range from 0 to 1000"),
        (ramp("f4", 0, float("nan")), "its floats range from nan to nan"),
        (ramp("f4", 0, float("inf")), "its floats range from 0 to inf"),
        (ramp("i4", 0, 2**31 - 1), "its integers range from 0 to 2147483647, expected 16 bits"),
        (ramp("i4", -5, 100), "its integers range from -5 to 100"),
    ],
)
def test_deep_pixels_without_a_rule_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(BadImageError, match=message):
        decode_bytes(encoded(image, "TIFF"))


@pytest.mark.parametrize(
    ("image", "values", "note"),
    [
        (ramp("u2", 0, 65535), [255, 128, 0], "0 is white in it, so that it was inverted"),
        (ramp("u2", 0, 4095), [255, 247, 239], "so that it is bright; 0 is white in it"),
        (ramp("f4", 0, 1), [255, 128, 0], "are multiplied by 255; 0 is white in it"),
        (ramp("f4", 0, 255), [255, 128, 0], "are taken as 0 to 255; 0 is white in it"),
        (ramp("u1", 0, 254), [0, 127, 254], None),  # Pillow inverts it, also when it is written
        (ramp("u1", 0, 255).convert("1", dither=Image.Dither.NONE), [0, 0, 255], None),
    ],
)
def test_no_tiff_becomes_its_negative(
    image: Image.Image, values: list[int], note: str | None
) -> None:
    pixels, noticed = decode_bytes(encoded(image, "TIFF", tiffinfo={262: 0}))
    np.testing.assert_array_equal(pixels[0, :, 0], values)
    assert (noticed is None) == (note is None)
    assert note is None or note in str(noticed)


def test_how_few_bits_are_used_is_said_of_32_bit_integers_too() -> None:
    pixels, note = decode_bytes(encoded(ramp("i4", 0, 200), "TIFF"))
    assert pixels.max() == 1
    assert "taken as 16 bits (divided by 257); only 8 of its 16 bits are used" in str(note)


def test_12_bits_in_16_are_noticed_in_colours_too() -> None:
    """Pillow keeps the upper 8 bits of such a PNG."""
    rows = (b"\0" + struct.pack(">9H", 4095, 0, 0, 0, 4095, 0, 7, 7, 7)) * 2
    pixels, note = decode_bytes(png(3, 2, rows, bits=16))
    assert pixels.max() == 15
    assert note is not None
    assert note.startswith("only 12 of its 16 bits are used")


def png(width: int, height: int, rows: bytes, *, bits: int = 8, colours: int = 2) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK", "I;16", "F"])
def test_strips_give_the_pixels_of_the_whole(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    noise = Image.effect_noise((40, 30), 60)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(noise).astype(np.uint16) * 257)
    else:
        image = noise.convert(mode)
    content = encoded(image, "TIFF")
    whole, _ = decode_bytes(content)
    monkeypatch.setattr("cachedet.data.bit_depth._STRIP_PIXELS", 40 * 7)
    np.testing.assert_array_equal(decode_bytes(content)[0], whole)


def test_giants_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images that together have more pixels than may be decoded at once."""
    monkeypatch.setattr("cachedet.data.images.MAX_PIXELS", 40)
    content = encoded(quadrants(), "PNG")  # 32 pixels
    second = threading.Event()

    def decode() -> None:
        with decoded(content):
            second.set()

    with decoded(content):
        other = threading.Thread(target=decode)
        other.start()
        assert not second.wait(0.2)
    other.join(60)
    assert second.is_set()


def test_a_giant_takes_some_bytes_a_pixel() -> None:
    """40 million pixels: 4 bytes each in Pillow and 3 as an array, not 27 as before."""
    resource = pytest.importorskip("resource")
    content = encoded(Image.new("RGB", (8000, 5000), "navy"), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels, _ = decode_bytes(content)
    assert pixels.shape == (5000, 8000, 3)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 10 * 40e6


def test_sizes_of_headers_are_those_of_upright_images(tmp_path: Path) -> None:
    """Of PNG too, whose orientation may stand behind the pixels; what is no image has none."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = Image.new("RGB", (20, 10)), Image.new("RGB", (30, 10))
    turned.save(tmp_path / "a.jpg", exif=exif)
    turned.save(tmp_path / "b.png", exif=exif)
    plain.save(tmp_path / "c.png")
    plain.save(tmp_path / "d.webp", exif=exif)
    content = (tmp_path / "b.png").read_bytes()
    at = content.index(b"eXIf") - 4
    chunk = content[at : at + 12 + int.from_bytes(content[at : at + 4], "big")]
    end = content.index(b"IEND") - 4
    late = content[:at] + content[at + len(chunk) : end] + chunk + content[end:]
    (tmp_path / "e.png").write_bytes(late)
    (tmp_path / "f.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    os.mkfifo(tmp_path / "g.jpg")
    names = ("a.jpg", "b.png", "c.png", "d.webp", "e.png", "f.png", "g.jpg", "none.jpg", "a\0b")
    sizes = read_sizes([tmp_path / name for name in names])
    assert sizes == [(20, 10), (20, 10), (10, 30), (30, 10), (20, 10), None, None, None, None]
    for name, size in zip(names[:5], sizes[:5], strict=True):
        assert decode_image(tmp_path / name).shape[:2] == size


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Soft colours with some texture, as cameras give."""
    rng = np.random.default_rng(width * height)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    soft = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    texture = rng.integers(-6, 7, (height, width, 1))
    pixels = (np.asarray(soft).astype(int) + texture).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def reduced_by(content: bytes, image_size: int | None) -> int:
    with decoded(content, image_size=image_size) as image:
        height, width = image.image_hw
        factor = height // image.pixels.shape[0]
        assert image.pixels.shape == (height // factor, width // factor, 3)
        assert image.is_reduced == (factor > 1)
    return factor


@pytest.mark.parametrize(
    ("size", "image_size", "factor"),
    [
        ((640, 480), 320, 1),  # at least twice the base view is kept
        ((640, 480), 160, 2),
        ((640, 480), 161, 1),
        ((640, 480), 80, 4),
        ((480, 640), 40, 8),
        ((640, 480), 1, 8),
        ((644, 480), 40, 4),  # 644 is no multiple of 8
        ((642, 480), 40, 2),
        ((641, 480), 40, 1),
        ((640, 480), None, 1),
    ],
)
def test_a_jpeg_is_decoded_at_a_fraction_that_divides_its_sides(
    size: tuple[int, int], image_size: int | None, factor: int
) -> None:
    assert reduced_by(encoded(photograph(*size), "JPEG"), image_size) == factor


def test_other_formats_are_decoded_whole() -> None:
    for kind in ("PNG", "TIFF", "BMP", "WEBP", "JPEG2000"):
        assert reduced_by(encoded(photograph(320, 240), kind), 40) == 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("view", ["base", "hflip", "scale-1.5", "jitter-1.2-1.9-s0"])
def test_views_of_a_reduced_jpeg_are_nearly_those_of_all_its_pixels(
    mode: str, progressive: bool, view: str
) -> None:
    content = encoded(photograph(640, 480, mode), "JPEG", progressive=progressive, quality=92)
    geometry = make_geometry(
        view_named(view), image_hw=(480, 640), image_id=3, image_size=80, pad_multiple=32
    )
    with decoded(content, image_size=80) as image:
        assert image.pixels.shape == (120, 160, 3)
        assert image.suffices(geometry)
        reduced = make_input(image.pixels, geometry, PLAIN)
    whole = make_input(decode_bytes(content)[0], geometry, PLAIN)
    difference = (255 * (reduced - whole)).abs()
    assert difference.mean() < 1.5
    assert difference.max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photograph(320, 160), "JPEG", exif=exif)
    with decoded(content, image_size=40) as image:
        assert image.image_hw == ((320, 160) if orientation >= 5 else (160, 320))
        assert image.pixels.shape[:2] == tuple(side // 4 for side in image.image_hw)
        small = Image.fromarray(decode_bytes(content)[0]).reduce(4)
        assert np.abs(image.pixels.astype(int) - np.asarray(small)).mean() < 3


def test_a_view_with_more_detail_wants_all_pixels() -> None:
    whole = DecodedImage(pixels=np.zeros((480, 640, 3), np.uint8), image_hw=(480, 640))
    reduced = DecodedImage(pixels=np.zeros((120, 160, 3), np.uint8), image_hw=(480, 640))
    for scale, suffices in ((1, True), (2, True), (2.1, False)):
        geometry = make_geometry(
            view_named(f"scale-{scale}" if scale != 1 else "base"),
            image_hw=(480, 640),
            image_id=1,
            image_size=80,
            pad_multiple=32,
        )
        assert reduced.suffices(geometry) is suffices
        assert whole.suffices(geometry)


@pytest.mark.parametrize(
    ("progressive", "share"),
    [(False, 0.3), (False, 0.9), (False, 0.99), (True, 0.3), (True, 0.6)],
)
def test_a_half_jpeg_is_found_where_it_is_reduced(progressive: bool, share: float) -> None:
    """Also one that was given an end: libjpeg fills the rest with grey."""
    content = encoded(photograph(640, 480), "JPEG", progressive=progressive)
    half = content[: int(share * len(content))]
    for damaged in (half, half + b"\xff\xd9"):
        with pytest.raises(BadImageError, match="truncated"), decoded(damaged, image_size=80):
            pass


@pytest.fixture
def heic() -> bytes:
    assert ".heic" in image_suffixes()  # the extra is there
    return encoded(photograph(96, 64), "HEIF", quality=95)


def test_a_heic_photo_is_read_by_its_content(heic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.JPG"  # as some phones name it
    path.write_bytes(heic)
    pixels = decode_image(path)
    assert np.abs(pixels.astype(int) - np.asarray(photograph(96, 64))).mean() < 8
    assert read_sizes([path]) == [(64, 96)]


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_half_heic_photo_is_refused(heic: bytes, share: float) -> None:
    with pytest.raises(BadImageError, match="damaged or truncated|Unexpected end of file"):
        decode_bytes(heic[: int(share * len(heic))])


def test_a_heic_photo_without_the_extra_names_it(heic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(heic)
    result = run_without("pillow_heif", f"decode_image(Path({str(path)!r}))")
    assert f"{path}: a HEIC image: reading it needs pip install 'cachedet[heif]'" in result


def run_without(module: str, expression: str) -> str:
    """What a fresh Python that lacks a module prints when it ends with an error."""
    code = (
        "import sys; from pathlib import Path; "
        f"sys.modules[{module!r}] = None; "  # as if it were not installed
        f"from cachedet.data.images import decode_image; {expression}"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    return result.stderr


def test_a_line_tells_of_many_headers(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress():
        assert read_sizes([Path("nowhere.jpg")] * 1000) == [None] * 1000
        read_sizes([Path("nowhere.jpg")] * 10)
    assert capsys.readouterr().err.count("read sizes") == 1
