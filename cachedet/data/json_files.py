"""JSON files of users: read whole or refused with the likely cause."""

from __future__ import annotations

import codecs
import json
import os
import re
import reprlib
import stat
from pathlib import Path
from typing import Any

from cachedet.errors import DatasetError, ForeignFileError

_HEAD_NBYTES = 4096
_LEAST_COPIES = 3  # of a file in memory while it is parsed: its bytes, its text, its values
_BEGINNINGS = re.compile(rb'[\s{\["\-0-9tfnNI]')  # of JSON, as Python reads it
_WIDE = (
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
    b"{\0",
    b"[\0",
    b"\0{",
    b"\0[",
    b"\0\0",
)
_KINDS = (
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS; `git lfs pull` fetches the file",
    ),
    (rb"PK\x03\x04|\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc", "compressed; unpack it first"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF", "an image"),
    (rb"(?i)\s*<(!doctype html|html)", "a web page: was a download refused?"),
    (rb"\s*<", "XML, such as Pascal VOC"),
    (rb"---|%YAML|[A-Za-z_][\w ]*:(\s|$)", "YAML"),
    (rb"[^\n{\[]*[,;\t][^\n]*(\n|$)", "CSV or another table"),
    (rb"[\d.]+( [-\d.]+){4}", "a label file of YOLO, whose data set has a data.yaml"),
)


def load_json(path: Path, *, option: str, what: str) -> Any:
    """What a JSON file of the user's holds. Raises DatasetError, which names `option`."""
    try:
        text = _decoded(_read(path, option=option, what=what), path)
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        is_foreign = error.doc.lstrip()[:1] not in ("{", "[", "")
        kind = ForeignFileError if is_foreign else DatasetError
        raise kind(f"{path} is not JSON in UTF-8: {error}{_cause(error)}") from error
    except RecursionError as error:
        raise DatasetError(f"{path} is not JSON in UTF-8: it is nested too deeply") from error
    except MemoryError as error:
        raise DatasetError(f"{path} does not fit into memory") from error
    except DatasetError:
        raise
    except ValueError as error:  # a key twice, or a number of more digits than Python reads
        raise DatasetError(f"{path} is not JSON in UTF-8: {error}") from error


def _read(path: Path, *, option: str, what: str) -> bytes:
    """Only of a regular file: others may have no end, or wait for ever."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DatasetError(f"{option} expects {what}; {path} is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise DatasetError(f"{option} expects {what}; {path} is no regular file")
        if status.st_size * _LEAST_COPIES > _memory():
            raise DatasetError(
                f"{path} does not fit into memory: it has {status.st_size:,} bytes, and takes "
                "several times as many"
            )
        with path.open("rb") as file:
            head = file.read(_HEAD_NBYTES)
            _require_text(head, path)
            return head + file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"{option} expects {what}; there is no file {path}") from error
    except OSError as error:
        raise DatasetError(f"{option} {path} cannot be read: {error.strerror}") from error


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _require_text(head: bytes, path: Path) -> None:
    """Raises DatasetError where the beginning is not one of JSON in UTF-8."""
    if head.startswith(_WIDE):
        raise DatasetError(
            f"{path} is not JSON in UTF-8: it is UTF-16 or has zero bytes; save it as UTF-8"
        )
    start = head.removeprefix(codecs.BOM_UTF8)
    if not start.strip():
        raise DatasetError(f"{path} is not JSON in UTF-8: it is empty")
    if not _BEGINNINGS.match(start):
        raise ForeignFileError(f"{path} is not JSON in UTF-8: it seems to be {_kind_of(start)}")


def _kind_of(start: bytes) -> str:
    named = (kind for pattern, kind in _KINDS if re.match(pattern, start))
    return next(named, f"something else; it begins with {reprlib.repr(start[:20])}")


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is not JSON in UTF-8: byte {error.start:,} is {error.object[error.start]:#x}; "
            "save it as UTF-8, which Latin-1 and Windows-1252 are not"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one key the first would be lost in silence."""
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"one object holds the key {reprlib.repr(twice)} more than once")
    return made


def _cause(error: json.JSONDecodeError) -> str:
    """What a person would look for, as the end of a message."""
    rest = error.doc[error.pos : error.pos + _HEAD_NBYTES].lstrip()
    if not rest or error.msg.startswith("Unterminated string"):
        return "; it ends too early: was a copy or download cut off?"
    if error.msg == "Extra data" and rest[0] in "{[":
        return "; it holds several values, as JSON Lines does; expected one"
    if rest[0] == "'":
        return "; names and texts stand in double quotes in JSON"
    start = error.doc[:_HEAD_NBYTES].encode(errors="replace")
    if start[:1] not in b"{[":
        return f"; it seems to be {_kind_of(start)}"
    return ""
