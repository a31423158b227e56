"""The .npz files of a store: few named arrays, kept as they are one after the other.

The format is read here and not by numpy because a foreign file may list entries that overlap or
claim any size. Walked from its beginning nothing can overlap, and nothing is larger than the file.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachedet.errors import StoreError
from cachedet.store.files.source import ByteSource
from cachedet.store.format.shards import altered, proves_damage, unreadable

_ENTRY = struct.Struct("<4s2xHH8xIIHH")  # flags, method, sizes twice, lengths of name and extra
_SIZES = struct.Struct("<HHQQ")  # the extra field that holds the sizes in 64 bits
_END = struct.Struct("<4s6xH10x")
_VERDICT = "is missing or damaged: "
_MOST_HEADER_NBYTES = 10_010  # numpy itself refuses longer ones


def load_arrays(
    source: ByteSource, key: str, *, wanted: Collection[str], remedy: str
) -> dict[str, NDArray[Any]]:
    """The arrays, of these names at most, of an .npz file that `dump_arrays` wrote.

    Raises StoreError where it is missing, damaged (the message ends with `remedy`), holds anything
    else or cannot be read now.
    """
    where = source.describe(key)
    try:
        return dict(_arrays(source.read(key), wanted))
    except OSError as error:
        if isinstance(error, FileNotFoundError) or proves_damage(error):
            raise altered(where, str(error.strerror), remedy=remedy, verdict=_VERDICT) from error
        raise unreadable(where, error) from error
    except MemoryError as error:
        raise StoreError(
            f"{where} does not fit into the memory that this process may take; open the store on a "
            "larger machine, or fetch it again if it is foreign"
        ) from error
    except StoreError:  # a server's answer, which says nothing about the file
        raise
    except Exception as error:  # numpy raises a different type for each malformed header
        raise altered(where, str(error), remedy=remedy, verdict=_VERDICT) from error


def dump_arrays(arrays: dict[str, NDArray[Any]]) -> bytes:
    """The content of an .npz file."""
    stored = io.BytesIO()
    entries: dict[str, Any] = arrays
    np.savez(stored, **entries)
    return stored.getvalue()


def _arrays(content: bytes, wanted: Collection[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Raises ValueError or struct.error where it is not such a file."""
    seen: set[str] = set()
    for entry, stored in _entries(memoryview(content)):
        name = entry.removesuffix(".npy")
        if name not in wanted or name in seen:
            raise ValueError(f"entry {entry[:100]!r} does not belong there, or is there twice")
        seen.add(name)
        yield name, _parse_array(stored, entry)
    signature, count = _END.unpack(content[-_END.size :])
    if signature != b"PK\x05\x06" or count != len(seen):
        raise ValueError("its end is cut off")


def _entries(content: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Name and bytes of each entry, by the header in front of it."""
    start = 0
    while bytes(content[start : start + 4]) == b"PK\x03\x04":
        _, flags, method, packed, nbytes, *lengths = _ENTRY.unpack_from(content, start)
        named = start + _ENTRY.size
        extra = named + lengths[0]
        begin = extra + lengths[1]
        name = bytes(content[named:extra]).decode()
        if packed == 0xFFFFFFFF:
            _, _, nbytes, packed = _SIZES.unpack_from(content[extra:begin])
        if flags or method or packed != nbytes or nbytes > len(content) - begin:
            raise ValueError(f"entry {name[:100]} is compressed or larger than the file")
        yield name, content[begin : begin + nbytes]
        start = begin + nbytes


def _parse_array(stored: memoryview, entry: str) -> NDArray[Any]:
    header = io.BytesIO(stored[:_MOST_HEADER_NBYTES])
    version = np.lib.format.read_magic(header)
    if version != (1, 0):
        raise ValueError(f"entry {entry} has npy version {version}")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype.kind not in "biuf":  # bytes of a file must never become pointers to objects
        raise ValueError(f"entry {entry} holds {dtype}, not plain numbers")
    values = stored[header.tell() :]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"entry {entry} claims to be of shape {shape}")
    order: Any = "F" if is_fortran else "C"
    return np.ndarray(shape, dtype, buffer=values, order=order).copy(order="K")
