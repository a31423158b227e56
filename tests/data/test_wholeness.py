"""Halves of images that pretend to be whole, and whole ones that look like halves."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from cachedet.data.images import decode_bytes
from cachedet.errors import BadImageError

NOISE = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
PHOTO = Image.fromarray(NOISE.repeat(4, axis=0).repeat(4, axis=1))
GREY = Image.new("RGB", (64, 48), (128, 128, 128))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart rows": {"restart_marker_rows": 1},
    "restart blocks": {"restart_marker_blocks": 1},
    "no subsampling": {"quality": 95, "subsampling": 0},
    "rgb": {"keep_rgb": True},
}
MODES = {"RGB": PHOTO, "L": PHOTO.convert("L"), "CMYK": PHOTO.convert("CMYK")}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_and_ended_is_a_bad_image(kind: str, mode: str, share: float) -> None:
    if kind == "rgb" and mode != "RGB":
        pytest.skip("a file of colours")
    whole = encoded(MODES[mode], "JPEG", **JPEGS[kind])
    if kind == "progressive" and mode == "L" and share == 0.75:
        pytest.skip("all but the last bit of some details is there")
    cut = whole[: int(len(whole) * share)].rstrip(b"\xff") + b"\xff\xd9"
    with pytest.raises(BadImageError, match="truncated"):
        decode_bytes(cut)


@pytest.mark.parametrize("image", [PHOTO, GREY, GREY.convert("L"), GREY.convert("CMYK")])
@pytest.mark.parametrize("kind", JPEGS)
def test_whole_jpegs_pass(kind: str, image: Image.Image) -> None:
    """Grey to the last pixel too, and with rubbish or further images behind the end."""
    if kind == "rgb" and image.mode != "RGB":
        pytest.skip("a file of colours")
    whole = encoded(image, "JPEG", **JPEGS[kind])
    pixels, note = decode_bytes(whole)
    assert note is None
    for more in (b"rubbish" * 9, whole, b"\xff\xd9", bytes(99)):
        np.testing.assert_array_equal(decode_bytes(whole + more)[0], pixels)


def test_several_images_in_one_jpeg_pass() -> None:
    whole = encoded(PHOTO, "MPO", save_all=True, append_images=[GREY])
    np.testing.assert_array_equal(decode_bytes(whole)[0], decode_bytes(encoded(PHOTO, "JPEG"))[0])


def test_a_jpeg_without_one_of_its_colours_is_a_bad_image() -> None:
    """The scans of a progressive file one by one: the first two have no chroma details."""
    whole = encoded(PHOTO, "JPEG", progressive=True)
    starts = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    with pytest.raises(BadImageError, match="its 2 scans do not hold all of its details"):
        decode_bytes(whole[: starts[2]] + b"\xff\xd9")


def png(size: tuple[int, int], rows: int, bits: int, colour: int, fill: bytes) -> bytes:
    """A PNG of `rows` rows, which says it has more."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + fill * ((size[0] * bits * channels + 7) // 8)
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    data = chunk(b"IDAT", zlib.compress(row * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("fill", [b"\xff", b"\0"])
@pytest.mark.parametrize(
    ("bits", "colour"),
    [(8, 2), (16, 2), (8, 6), (16, 6), (8, 0), (16, 0), (1, 0), (8, 4), (8, 3), (4, 3)],
)
def test_a_png_of_too_few_rows_is_a_bad_image(bits: int, colour: int, fill: bytes) -> None:
    """Black ones pass where all rows are there."""
    with pytest.raises(BadImageError, match="truncated"):
        decode_bytes(png((65, 48), 24, bits, colour, fill))
    with pytest.raises(BadImageError, match="truncated"):
        decode_bytes(png((65, 48), 47, bits, colour, fill))
    assert decode_bytes(png((65, 48), 48, bits, colour, fill))[0].shape == (48, 65, 3)


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        ((1, 1), [1]),
        ((3, 2), [1, 1, 1, 3]),
        ((8, 8), [1, 1, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8]),
    ],
)
def test_an_interlaced_png_needs_all_of_its_passes(
    size: tuple[int, int], widths: list[int]
) -> None:
    """`widths` are those of the rows of all passes."""
    data = [b"\0" + b"\x80" * (3 * width) for width in widths]

    def interlaced(content: bytes) -> bytes:
        plain = bytearray(png(size, 1, 8, 2, b"\x80"))
        plain[28] = 1
        plain[29:33] = struct.pack(">I", zlib.crc32(plain[12:29]))
        packed = zlib.compress(content)
        end = plain.index(b"IDAT") - 4
        idat = b"IDAT" + packed
        chunk = struct.pack(">I", len(packed)) + idat + struct.pack(">I", zlib.crc32(idat))
        return bytes(plain[:end]) + chunk + bytes(plain[-12:])

    pixels, _ = decode_bytes(interlaced(b"".join(data)))
    np.testing.assert_array_equal(pixels, np.full((size[1], size[0], 3), 128))
    with pytest.raises(BadImageError, match="truncated"):
        decode_bytes(interlaced(b"".join(data[:-1])))


def taller(content: bytes) -> bytes:
    """A TIFF whose header says twice as many rows as it has strips for."""
    changed = bytearray(content)
    start = struct.unpack("<I", content[4:8])[0]
    for entry in range(struct.unpack_from("<H", content, start)[0]):
        at = start + 2 + 12 * entry
        tag, kind, _, height = struct.unpack_from("<HHII", content, at)
        if tag == 257:
            struct.pack_into("<I" if kind == 4 else "<H", changed, at + 8, 2 * height)
    return bytes(changed)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_tiff_of_too_few_strips_is_a_bad_image(
    monkeypatch: pytest.MonkeyPatch, compression: str | None, capfd: Any
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 4096)
    whole = encoded(PHOTO, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode_bytes(whole)[0], np.asarray(PHOTO))
    with pytest.raises(BadImageError):
        decode_bytes(taller(whole))


def with_counts(content: bytes, divisor: int) -> bytes:
    """A TIFF whose later strips have fewer bytes: a share of them, or none (0)."""
    changed = bytearray(content)
    start = struct.unpack("<I", content[4:8])[0]
    for entry in range(struct.unpack_from("<H", content, start)[0]):
        tag, kind, number, at = struct.unpack_from("<HHII", content, start + 2 + 12 * entry)
        if tag == 279:
            counts = f"<{number}{'I' if kind == 4 else 'H'}"
            few = [
                count if row < number // 2 else divisor and count // divisor
                for row, count in enumerate(struct.unpack_from(counts, content, at))
            ]
            struct.pack_into(counts, changed, at, *few)
    return bytes(changed)


@pytest.mark.parametrize(
    ("mode", "compression", "divisors"),
    [
        *[("RGB", kind, (0, 2)) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")],
        ("L", "jpeg", (0, 2)),
        ("1", "group4", (0,)),  # of half a strip libtiff makes white rows
        ("1", "group3", (0,)),
    ],
)
def test_a_tiff_whose_strips_lack_bytes_is_a_bad_image(
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    mode: str,
    compression: str,
    divisors: tuple[int, ...],
) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 512)
    whole = encoded(PHOTO.convert(mode), "TIFF", compression=compression)
    assert decode_bytes(whole)[1] is None
    for divisor in divisors:
        with pytest.raises(BadImageError):
            decode_bytes(with_counts(whole, divisor))


TILES: list[dict[str, Any]] = [
    {},
    {"tile_size": (64, 64)},
    {"tile_size": (50, 37), "tile_offset": (0, 0), "offset": (3, 5)},
    {"tile_size": (64, 64), "quality_layers": [40, 10], "irreversible": True},
]


def tile_parts(content: bytes) -> list[tuple[int, int]]:
    """Where each lies in the file."""
    at, parts = content.index(b"\xff\x90\x00\x0a"), []
    while content[at : at + 2] == b"\xff\x90":
        parts.append((at, struct.unpack_from(">I", content, at + 6)[0]))
        at += parts[-1][1]
    return parts


@pytest.mark.parametrize("options", TILES)
@pytest.mark.parametrize("no_jp2", [True, False])
def test_whole_jpeg_2000_pass(options: dict[str, Any], no_jp2: bool) -> None:
    whole = encoded(PHOTO, "JPEG2000", no_jp2=no_jp2, **options)
    pixels, note = decode_bytes(whole)
    assert (pixels.shape, note) == ((120, 160, 3), None)
    last = tile_parts(whole)[-1][0]
    to_the_end = whole[: last + 6] + bytes(4) + whole[last + 10 :]
    np.testing.assert_array_equal(decode_bytes(to_the_end)[0], pixels)
    if not no_jp2:
        box = whole.index(b"jp2c") - 4
        endless = whole[:box] + bytes(4) + whole[box + 4 :]
        length = struct.pack(">Q", len(whole) - box + 8)
        long = whole[:box] + b"\0\0\0\x01jp2c" + length + whole[box + 8 :]
        for other in (endless, long):
            np.testing.assert_array_equal(decode_bytes(other)[0], pixels)


@pytest.mark.parametrize("number", [0, 2, -1])
@pytest.mark.parametrize("no_jp2", [True, False])
def test_a_jpeg_2000_without_one_of_its_tiles_is_a_bad_image(number: int, no_jp2: bool) -> None:
    whole = encoded(PHOTO, "JPEG2000", no_jp2=no_jp2, tile_size=(64, 64))
    start, nbytes = tile_parts(whole)[number]
    cut = whole[:start] + whole[start + nbytes :]
    if not no_jp2:
        box = whole.index(b"jp2c") - 4
        cut = cut[:box] + struct.pack(">I", len(cut) - box) + cut[box + 4 :]
    with pytest.raises(BadImageError, match="is truncated: it holds 5 of 6 tiles"):
        decode_bytes(cut)


def test_a_tile_of_a_jpeg_2000_may_come_in_parts() -> None:
    """The second part of the first tile, after the other tiles, holds nothing."""
    whole = bytearray(encoded(PHOTO, "JPEG2000", no_jp2=True, tile_size=(64, 64)))
    for start, _ in tile_parts(bytes(whole)):
        whole[start + 11] = 0  # so many parts: not known
    empty = struct.pack(">HHHIBBH", 0xFF90, 10, 0, 14, 1, 2, 0xFF93)
    parts = bytes(whole[:-2]) + empty + bytes(whole[-2:])
    np.testing.assert_array_equal(decode_bytes(parts)[0], decode_bytes(bytes(whole))[0])


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP", "AVIF"])
def test_half_of_any_other_file_is_a_bad_image(kind: str) -> None:
    whole = encoded(PHOTO, kind)
    decode_bytes(whole)
    with pytest.raises(BadImageError):
        decode_bytes(whole[: len(whole) // 2])
