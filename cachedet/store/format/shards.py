"""Shards: one file for a block's slots of one array, in zarr's `sharding_indexed` format.

Chunks one after the other, then an index of (offset, nbytes) per slot, then its crc32c; an unused
slot is marked with 2^64 - 1. Everything read is checked before it is believed: offsets against the
file, lengths against what a chunk can be, contents against their checksum.
"""

from __future__ import annotations

import errno
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from cachedet.errors import CorruptBlockError, CorruptMetadataError, StoreError
from cachedet.store.codecs.codec import ZSTD_LEVEL, Part

_UNUSED = 2**64 - 1
CHECKSUM_NBYTES = 4  # at the end of every chunk: a crc32c, or the content checksum of a zstd frame
_REPAIR = (
    "run `cachedet verify --deep STORE`, which withdraws the bad blocks, then the same "
    "`cachedet extract` again"
)
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EFBIG)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_zstd = Zstd(level=ZSTD_LEVEL, checksum=True)

Packed = list[bytes | memoryview]  # pieces of one chunk, to be written one after the other


def pack_chunk(values: NDArray[Any], part: Part) -> Packed:
    """One image's part as the bytes of its chunk."""
    array = np.ascontiguousarray(part.in_order(values))
    if part.packing == "zstd":
        return [bytes(_zstd.encode(array))]
    raw = raw_bytes(array)
    return [raw.data, _crc32c(raw)]


def chunk_checksum(packed: Packed) -> bytes:
    """The last bytes of a chunk."""
    return bytes(packed[-1][-CHECKSUM_NBYTES:])


def pack_index(lengths: list[int], *, slots: int) -> bytes:
    """The index of a shard whose first chunks have these lengths, with its checksum."""
    entries = np.full((slots, 2), _UNUSED, dtype="<u8")
    entries[: len(lengths), 1] = lengths
    entries[: len(lengths), 0] = np.cumsum([0, *lengths[:-1]])
    return entries.tobytes() + _crc32c(raw_bytes(entries))


def index_nbytes(slots: int) -> int:
    return 16 * slots + CHECKSUM_NBYTES


def parse_index(
    content: bytes, *, used: int, file_nbytes: int, part: Part, where: str
) -> NDArray[np.int64]:
    """(used, 2) offsets and lengths of the chunks.

    Raises CorruptBlockError: wrong checksum, a hole, a chunk longer than one of `part` can be, or
    chunks that do not fill the file one after the other in slot order.
    """
    entries, stored = content[:-CHECKSUM_NBYTES], content[-CHECKSUM_NBYTES:]
    if _crc32c(np.frombuffer(entries, dtype=np.uint8)) != stored:
        raise corrupt(where, "the checksum of its index does not match")
    table = np.frombuffer(entries, dtype="<u8").reshape(-1, 2)
    if (table[:used] == _UNUSED).any():
        raise corrupt(where, "its index marks a committed image as never written")
    if (table[used:] != _UNUSED).any():
        raise corrupt(where, "its index has more images than were committed")
    offsets, lengths = table[:used, 0], table[:used, 1]
    shortest = part.packed_nbytes if part.packing == "crc32c" else 1
    if (lengths > part.packed_nbytes).any() or (lengths < shortest).any():
        raise corrupt(where, f"its index has chunks that are not of {part.packed_nbytes} bytes")
    ends = np.cumsum(lengths)
    if (offsets != ends - lengths).any() or ends[-1] != file_nbytes - len(content):
        raise corrupt(where, "the chunks of its index do not fill the file one after the other")
    return table[:used].astype(np.int64)


def checksums_of(content: bytes, *, used: int, slots: int, part: Part, where: str) -> bytes:
    """The last bytes of every chunk of a whole shard, each of which was checked.

    Raises CorruptBlockError where it is not one of `used` images.
    """
    end = len(content) - index_nbytes(slots)
    if end < 0:
        raise corrupt(where, "the shard is shorter than its index")
    table = parse_index(content[end:], used=used, file_nbytes=len(content), part=part, where=where)
    found = []
    for offset, nbytes in table.tolist():
        packed = memoryview(content)[offset : offset + nbytes]
        if part.packing == "zstd":
            unpack_zstd(packed, part.empty(1)[0], where=where)
        else:
            raw = np.frombuffer(packed[:-CHECKSUM_NBYTES], dtype=np.uint8)
            check_crc32c(raw, packed[-CHECKSUM_NBYTES:], where=where)
        found.append(bytes(packed[-CHECKSUM_NBYTES:]))
    return b"".join(found)


def check_crc32c(raw: NDArray[np.uint8], stored: bytes | memoryview, *, where: str) -> None:
    """Raises CorruptBlockError where these bytes do not give the stored checksum."""
    if _crc32c(raw) != stored:
        raise corrupt(where, "the checksum of an image does not match")


def unpack_zstd(frame: bytes | memoryview, out: NDArray[Any], *, where: str) -> None:
    """Decompress one frame into exactly `out`. Raises CorruptBlockError on any other content."""
    declared = _frame_content(bytes(frame[:18]))
    if declared != out.nbytes:
        raise corrupt(where, f"a compressed image has {declared} bytes, not {out.nbytes}")
    try:
        _zstd.decode(frame, out=out)
    except (RuntimeError, ValueError) as error:
        raise corrupt(where, f"an image cannot be decompressed ({error})") from error


def raw_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of a contiguous array, without a copy."""
    return values.reshape(-1).view(np.uint8)


def corrupt(where: str, reason: str) -> CorruptBlockError:
    error = CorruptBlockError(f"{where}: {reason}; {_REPAIR}")
    error.finding = reason
    return error


def altered(where: str, reason: str, *, remedy: str, verdict: str = "is damaged: ") -> StoreError:
    """The error of metadata that is not what was written."""
    error = CorruptMetadataError(f"{where} {verdict}{reason}. {remedy}")
    error.finding = reason
    return error


def proves_damage(error: OSError) -> bool:
    """Whether no writer left this behind: a folder, a loop of links or a far too large file."""
    return error.errno in _NO_FILE


def unreadable(where: str, error: OSError) -> StoreError:
    """The error of a file that cannot be read: damage only where it cannot be a file."""
    if proves_damage(error):
        return corrupt(where, f"the file cannot be opened ({error.strerror})")
    return StoreError(
        f"{where} cannot be read: {error.strerror or error}. That proves no damage: look after the "
        "disk, the network share and the permissions, then try again"
    )


def _crc32c(content: NDArray[np.uint8]) -> bytes:
    checksum: int = google_crc32c.value(content)
    return checksum.to_bytes(CHECKSUM_NBYTES, "little")


def _frame_content(header: bytes) -> int | None:
    """Decompressed size a zstd frame declares (RFC 8878, 3.1.1.1); None without size or checksum.

    Known before anything is allocated: a frame that would expand to gigabytes is never started.
    """
    if header[:4] != _ZSTD_MAGIC or len(header) < 6:
        return None
    descriptor = header[4]
    single_segment, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    size_nbytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    dictionary_nbytes = (0, 1, 2, 4)[descriptor & 3]
    if not has_checksum or not size_nbytes or dictionary_nbytes:
        return None
    start = 5 if single_segment else 6
    size = int.from_bytes(header[start : start + size_nbytes], "little")
    return size + 256 if size_nbytes == 2 else size
