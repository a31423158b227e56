"""Whether a decoded image is all of its file's picture: Pillow takes halves that end politely.

A PNG whose compressed stream ends early, or a JPEG that was cut and given an end marker, decode
without an error: the rest stays black or grey. A look at the end of the image finds the few files
that can be like this; only these are looked at more closely.
"""

from __future__ import annotations

import io
import operator
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cachedet.errors import BadImageError

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends compressed data of a JPEG
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_TABLES = (0xC4, 0xC8, 0xCC)  # among the numbers of frames
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # Huffman-coded frames
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
          (0, 1, 1, 2))  # x, y, step in x, step in y  # fmt: skip
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PIECE = 1 << 20
_CODESTREAM, _SIZE = b"\xff\x4f\xff\x51", b"\xff\x51"  # of JPEG 2000
_TILE_PART, _END_OF_STREAM = b"\xff\x90", b"\xff\xd9"  # the end is that of a JPEG too
_COMPRESSION, _OF_JPEGS = 259, 7  # a TIFF's tag
_PARTS = ((273, 279), (324, 325))  # tags: offsets and byte counts of strips, of tiles


def require_covered(image: ImageFile.ImageFile) -> None:
    """Before it is loaded. Raises BadImageError where a TIFF has strips for some of its rows only.

    Frames of a GIF may be smaller than the image.
    """
    corners = [tuple(extent[2:]) for _, extent, *_ in image.tile if extent]
    reached = tuple(map(max, zip(*corners, strict=True)))
    if image.format == "TIFF" and corners and any(map(operator.lt, reached, image.size)):
        raise BadImageError(
            f"the TIFF is truncated: its strips or tiles reach {reached[0]}x{reached[1]} of "
            f"{image.width}x{image.height} pixels"
        )


def require_whole(image: Image.Image, content: bytes) -> None:
    """Raises BadImageError where rows, scans or tiles of a loaded image are missing in its file.

    Of PNG, JPEG, JPEG 2000 and TIFFs that hold JPEGs.
    """
    if image.format == "PNG" and (image.info.get("interlace") or not _last_row(image).any()):
        _require_png_rows(content)
    if image.format in ("JPEG", "MPO"):
        _require_jpeg(image, content)
    if image.format == "JPEG2000":
        _require_tiles(content)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_COMPRESSION) == _OF_JPEGS:
        _require_ended(image, content)


def _last_row(image: Image.Image) -> NDArray[Any]:
    width, height = image.size
    return np.asarray(image.crop((0, height - 1, width, height)))


def _require_png_rows(content: bytes) -> None:
    """Pillow leaves rows black that the compressed stream does not hold."""
    header = content[16:29]  # of the first chunk
    width, height = (int.from_bytes(header[at : at + 4], "big") for at in (0, 4))
    bits = header[8] * _PNG_CHANNELS[header[9]]
    passes = _ADAM7 if header[12] else ((0, 0, 1, 1),)
    wanted = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        wanted += max(0, rows) * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
    stream = (piece for name, piece in _png_chunks(content) if name == b"IDAT")
    held = _inflated_nbytes(stream, most=wanted)
    if held < wanted:
        raise BadImageError(
            f"the PNG is truncated: its data ends after {held:,} of {wanted:,} bytes of pixels"
        )


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(content):
        nbytes = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + nbytes]
        at += 12 + nbytes


def _inflated_nbytes(stream: Iterator[bytes], *, most: int) -> int:
    """How many bytes the stream holds, counted in small pieces up to `most`."""
    inflater, held = zlib.decompressobj(), 0
    for compressed in stream:
        while compressed and held < most and not inflater.eof:
            held += len(inflater.decompress(compressed, _PIECE))
            compressed = inflater.unconsumed_tail
    return held


def _require_tiles(content: bytes) -> None:
    """OpenJPEG leaves tiles black that a JPEG 2000 codestream does not hold."""
    stream = _codestream(content)
    if stream[2:4] != _SIZE or len(stream) < 40:
        return
    right, bottom, _, _, width, height, x, y = struct.unpack_from(">8I", stream, 8)
    wanted = -(-(right - x) // width) * -(-(bottom - y) // height)
    held = _tiles_in(stream)
    if held is not None and len(held) < wanted:
        raise BadImageError(f"the JPEG 2000 is truncated: it holds {len(held)} of {wanted} tiles")


def _codestream(content: bytes) -> memoryview:
    """As it is, or in the first box of a JP2 that holds one; empty where there is none."""
    view, at = memoryview(content), 0
    if content.startswith(_CODESTREAM):
        return view
    while at + 16 <= len(content):
        nbytes = int.from_bytes(view[at : at + 4], "big")
        start = at + (16 if nbytes == 1 else 8)
        if nbytes == 1:
            nbytes = int.from_bytes(view[at + 8 : at + 16], "big")
        end = at + nbytes if nbytes else len(content)
        if content[at + 4 : at + 8] == b"jp2c":
            return view[start:end]
        at = max(start, end)
    return view[:0]


def _tiles_in(stream: memoryview) -> set[int] | None:
    """Numbers of the tiles that have a part; None where the parts do not follow each other."""
    at, tiles = 2, set[int]()
    while at + 4 <= len(stream) and stream[at : at + 2] != _END_OF_STREAM:
        if stream[at : at + 2] == _TILE_PART and at + 12 <= len(stream):
            number, nbytes = struct.unpack_from(">HI", stream, at + 4)
            tiles.add(number)
            if nbytes == 0:  # up to the end
                break
            at += max(12, nbytes)
        elif not tiles and stream[at] == 0xFF:  # the main header
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        else:
            return None
    return tiles


def _require_ended(image: TiffImageFile, content: bytes) -> None:
    """libtiff makes grey of what a strip or tile lacks that is a JPEG."""
    tags = image.tag_v2
    for offsets, counts in _PARTS:
        parts = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        for number, (start, nbytes) in enumerate(parts):
            if content.find(_END_OF_STREAM, start, start + nbytes) < 0:
                raise BadImageError(f"the TIFF is truncated: its strip or tile {number} has no end")


_Scan = tuple[tuple[int, ...], tuple[int, int, int]]  # components; first, last coefficient, bit


def _require_jpeg(image: Image.Image, content: bytes) -> None:
    """libjpeg makes grey of what is missing, and blurs where a progressive scan is."""
    frame, scans, data = _jpeg_layout(content)
    if frame is None or not scans:
        return
    kind, components = frame
    if components - {component for of_scan, _ in scans for component in of_scan}:
        raise BadImageError("the JPEG is truncated: it has no data of some of its colours")
    if kind == _PROGRESSIVE:
        _require_details(components, scans)
    if kind in _SEQUENTIAL and (len(scans) > 1 or _ends_grey(image)):
        _require_independent(image, content, data)


def _jpeg_layout(content: bytes) -> tuple[tuple[int, set[int]] | None, list[_Scan], slice]:
    """Kind and components of the frame, its scans, and where the data of the last one lies."""
    frame: tuple[int, set[int]] | None = None
    scans: list[_Scan] = []
    at, data, end = 2, 0, len(content)
    while (found := _MARKER.search(content, at)) is not None:
        marker, start = content[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            end = found.start()
            break
        at = start + max(2, int.from_bytes(content[start : start + 2], "big"))
        segment = content[start + 2 : at]
        if 0xC0 <= marker <= 0xCF and marker not in _TABLES and frame is None:
            frame = marker, set(segment[6::3])
        if marker == _START_OF_SCAN:
            rest = 1 + 2 * segment[0]
            first, last, bits = segment[rest : rest + 3]
            scans.append((tuple(segment[1:rest:2]), (first, last, bits & 15)))
            data = at
    return frame, scans, slice(data, end)


def _require_details(components: set[int], scans: list[_Scan]) -> None:
    """Every coefficient of a progressive JPEG must have come to its last bit."""
    missing = {(component, k) for component in components for k in range(64)}
    for of_scan, (first, last, bit) in scans:
        if bit == 0:
            missing -= {(component, k) for component in of_scan for k in range(first, last + 1)}
    if missing:
        raise BadImageError(
            f"the JPEG is truncated: its {len(scans)} scans do not hold all of its details"
        )


def _ends_grey(image: Image.Image) -> bool:
    """Whether the last pixel is what libjpeg makes of missing data: 128, or 127 inverted."""
    return bool(np.isin(_last_row(image)[0, -1], (127, 128)).all())


def _require_independent(image: Image.Image, content: bytes, data: slice) -> None:
    """What follows the data of a whole image changes nothing; a half one takes it for its data."""
    restart = bytes([0xFF, 0xD0 + len(_RESTART.findall(content[data])) % 8])
    filling = bytes(37 * k % 251 for k in range(512))
    longer = content[: data.stop] + filling + restart + filling + content[data.stop :]
    with Image.open(io.BytesIO(longer), formats=["JPEG"]) as other:
        other.draft(None, image.size)
        other.load()
        if not _are_equal(image, other):
            raise BadImageError("the JPEG is truncated: its data ends before its last rows")


def _are_equal(image: Image.Image, other: Image.Image) -> bool:
    """Compared in strips, as both may be giants."""
    width, height = image.size
    strips = [(0, y, width, min(y + 256, height)) for y in range(0, height, 256)]
    return all(
        np.array_equal(np.asarray(image.crop(strip)), np.asarray(other.crop(strip)))
        for strip in strips
    )
