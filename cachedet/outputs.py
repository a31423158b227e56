"""What may be written: the one place that decides it for files and folders that users name.

A file that is there is replaced only where its content says that cachedet made it, for the same
purpose (`Kind`). Everything else (images, weights, annotation files, what another command wrote) is
somebody's, and refused by name before any work. A link is followed, and what it leads to is judged.
The files of runs, stores and comparisons belong to these, whatever is in them.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from cachedet.errors import InputError
from cachedet.store.files.durable import (
    TEMPORARY_SUFFIX,
    sync_directory,
    temporary_path,
    write_durably,
    write_synced,
)
from cachedet.store.files.locations import shown
from cachedet.store.files.names import (
    CODEC_STATE,
    IMAGES,
    MANIFEST,
    METADATA,
    STAGES,
    holds_records,
)
from cachedet.store.files.places import find_obstacle, make_folder

DRAWING_COMMENT = b"drawn by cachedet"  # a JPEG keeps it
SHEET_COMMENT = b"drawn by cachedet check"  # a PNG keeps it
CROP_COMMENT = b"cut out by cachedet"
YAML_COMMENT = "# classes of labels/, written by cachedet, which replaces it when it is asked to"
COCO_IMAGES_DESCRIPTION = "Images of `cachedet predict`, of coco_results.json beside it"
TABLE_COLUMNS = ("file", "frame", "time", "name", "category_id", "score", "x1", "y1", "x2", "y2")
MODEL_COMMENT = b"written by cachedet export"  # a zip file keeps it
MODEL_WEIGHTS_MARK = b"\nweights written by cachedet, sha256 "
CARD_COMMENT = b"<!-- written by `cachedet export`, which replaces it when it is asked to -->"
MARKDOWN_COMMENT = b"<!-- written by cachedet, which replaces it when it is asked to -->"
_PNG_COMMENT = rb"\A\x89PNG\r\n\x1a\n.{4}IHDR.{17}.{4}tEXtComment\x00"
_URL = re.compile(r"[A-Za-z][\w+.-]+:/")
_LOOKED_AT = 4096  # bytes of the start and of the end of a file
_LONGEST_NAME = 255  # bytes
# With six digits in each number, and a score: neither annotations nor other tools' labels.
_LABEL_LINE = rb"(?:\d+(?: \d\.\d{6}){4} \d\.\d{4}\n)"


class Kind(Enum):
    """What a file is for, with what its start and its end must look like."""

    PAGE = (
        "a page of cachedet's",
        rb'\A\s*<!DOCTYPE html>\s*<html lang="en">\s*<head>\s*<meta charset="utf-8">\s*'
        rb'<meta name="generator" content="cachedet .*</script>\s*</body>\s*</html>\s*\Z',
    )
    MARKDOWN = (
        "Markdown of cachedet's",
        rb"\A" + MARKDOWN_COMMENT + rb"\n.*\nWritten \d{4}-\d\d-\d\d by cachedet \S+\.\s*\Z",
    )
    REPORT = (
        "the JSON of a report",
        rb'\A\s*\{\s*"cachedet":\s*"[^"]*",\s*"resamples":.*\}\s*\Z',
    )
    COMPARISON = (
        "the JSON of a comparison",
        rb'\A\s*\{\s*"cachedet":\s*"[^"]*",\s*"settings":.*\}\s*\Z',
    )
    SCORES = (
        "scores of `eval`",
        rb'\A\s*\{\s*"ap":\s*(null|-?[\d.e-]+),\s*"ap50":.*[\]}"el\d],\s*'
        rb'"evaluator":\s*"cachedet, [^"]*",\s*"cachedet":\s*"[^"]*"\s*\}\s*\Z',
    )
    RESULTS = (
        "COCO results",
        rb'\A\s*\[\s*(\]\s*\Z|\{\s*"image_id":\s*-?\d+,\s*"category_id":.*\}\s*\]\s*\Z)',
    )
    FOUND = (
        "detections of `predict`",
        rb'\A\s*\[\s*(\]\s*\Z|\{\s*"file":\s*"(?:[^"\\]|\\.)*",\s*"drawing":.*\}\s*\]\s*\Z)',
    )
    FOUND_COCO = (
        "COCO results of `predict`",
        rb'\A\[(\]\Z|\{"image_id": \d+, "score": [\d.e-]+, "category_id": .*\}\]\Z)',
    )
    FOUND_IMAGES = (
        "a list of images of `predict`",
        rb'\A\{\s*"info":\s*\{\s*"description":\s*"'
        + COCO_IMAGES_DESCRIPTION.encode()
        + rb'".*\}\s*\Z',
    )
    CLASSES = ("a list of classes of `predict`", rb"\A" + re.escape(YAML_COMMENT.encode()) + rb"\n")
    LABELS = (
        "labels of `predict`",
        rb"\A(?:\n|" + _LABEL_LINE + rb"+|" + _LABEL_LINE + rb"{9}.*" + _LABEL_LINE + rb"{9})\Z",
    )
    TABLE = ("a table of `predict`", rb"\A" + ",".join(TABLE_COLUMNS).encode() + rb"\n")
    CROP = ("a crop of `predict`", rb"\A\xff\xd8.*\xff\xfe.." + CROP_COMMENT)
    DRAWING = ("a drawing of `predict`", rb"\A\xff\xd8.*\xff\xfe.." + DRAWING_COMMENT)
    SHEET = ("a sheet of `check`", _PNG_COMMENT + SHEET_COMMENT)
    ANNOTATIONS = (
        "annotations of `convert`",
        rb'\A\s*\{\s*"info":\s*\{\s*"description":\s*"Written by `cachedet convert`.*'
        rb"\}\s*\]\s*\}\s*\Z",
    )
    MODEL = ("a model of `export`", rb"\A\x08.\x12\x08cachedet")  # an ONNX file names its maker
    MODEL_GRAPH = ("a model of `export`", rb'\A<\?xml [^>]*>\s*<net name="cachedet"')
    MODEL_WEIGHTS = (
        "the weights of a model of `export`",
        re.escape(MODEL_WEIGHTS_MARK) + rb"[0-9a-f]{64}\Z",
    )
    MODEL_PROGRAM = ("a model of `export`", rb"\APK.*" + re.escape(MODEL_COMMENT) + rb"\Z")
    CARD = (
        "a model card of `export`",
        rb"\A" + CARD_COMMENT + rb"\n.*\nWritten \d{4}-\d\d-\d\d by cachedet \S+\.\s*\Z",
    )
    SCRIPT = (
        "a script of `export`",
        rb'\A"""Detect in images with a model of `cachedet export`: .*'
        rb"\n    sys\.exit\(main\(\)\)\s*\Z",
    )
    FORECAST = (
        "a forecast of `estimate`",
        rb'\A\s*\{\s*"store":\s*\{\s*"backbone":.*"peak_memory":\s*[^,{}]*,\s*'
        rb'"version":\s*"[^"]*"\s*\}\s*\Z',
    )

    def __init__(self, words: str, pattern: bytes) -> None:
        self.words = words
        self.pattern = re.compile(pattern, re.DOTALL)


def require_file(path: Path, *, kind: Kind) -> None:
    """Refuse, before the work, a file that may not or cannot be written. Raises InputError."""
    require_local(path)
    for place in (path, Path(os.path.realpath(path))):  # a link, and what it leads to
        owner = owner_of(place.parent)
        if owner is not None and place.name in _FILES_OF[owner]:
            raise InputError(
                f"{place} belongs to the {owner} {place.parent}, whose files other commands do "
                "not write; choose another name"
            )
    require_ours(path, kind=kind)
    obstacle = find_obstacle(Path(os.path.realpath(path)).parent)
    if obstacle is not None:
        raise _cannot_write(obstacle, path)


def require_ours(path: Path, *, kind: Kind) -> None:
    """Refuse to replace what is there, unless it is of this kind. Raises InputError."""
    require_local(path)
    target = _target(path)
    if target.exists() and not _is_of(target, kind):
        raise InputError(
            f"{path} is there already and is not {kind.words}: what cachedet did not make for this "
            "is never replaced. Move it away, or choose another --out"
        )


def require_all_ours(folder: Path, names: Iterable[str], *, kind: Kind) -> None:
    """`require_ours` of each name in a folder; thousands cost one look at what it holds.

    Raises InputError.
    """
    try:
        held = set(map(_folded, os.listdir(folder)))
    except OSError:  # not there, or what `require_folder` says
        return
    for name in names:
        if _folded(name) in held:
            require_ours(folder / name, kind=kind)


def write_file(path: Path, content: bytes, *, kind: Kind) -> None:
    """Write the whole file or nothing, with the folders on the way; looks again before.

    Raises InputError.
    """
    require_ours(path, kind=kind)
    try:
        target = Path(os.path.realpath(path))
        make_folder(target.parent)
        write_durably(target, content)
    except OSError as error:
        raise _cannot_write(error, path) from error


def write_pair(first: tuple[Path, bytes, Kind], second: tuple[Path, bytes, Kind]) -> None:
    """Write both files or none; where the first, which names the other, is there, both are new.

    Raises InputError.
    """
    written: list[tuple[Path, Path]] = []
    path = first[0]
    try:
        for path, content, kind in (second, first):
            require_ours(path, kind=kind)
            target = Path(os.path.realpath(path))
            make_folder(target.parent)
            temporary = temporary_path(target)
            write_synced(temporary, [content])
            written.append((temporary, target))
        target.unlink(missing_ok=True)
        while written:
            temporary, target = written[0]
            temporary.replace(target)
            sync_directory(target.parent)
            del written[0]
    except OSError as error:
        raise _cannot_write(error, path) from error
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)


def require_folder(folder: Path, *, inputs: Iterable[Path] = ()) -> None:
    """Refuse, before the work, a folder that belongs to something else or cannot be written.

    `inputs` are the folders and files that are read: what is written among them would be read the
    next time.

    Raises InputError.
    """
    require_local(folder)
    obstacle = find_obstacle(folder)
    if obstacle is not None:
        raise _cannot_write(obstacle, folder)
    owner = owner_of(folder)
    if owner is not None:
        raise InputError(
            f"--out {folder} is a {owner}, whose files belong to it; choose another folder, "
            f"such as {folder / 'drawn'}"
        )
    for path in inputs:
        held = path if path.is_dir() else path.parent
        if held.is_dir() and folder.is_dir() and os.path.samefile(held, folder):
            raise InputError(
                f"--out {folder} is also a folder of images: what is written there would be "
                f"among them; choose another folder, such as {folder / 'drawn'}"
            )


def require_local(place: Path | str, *, option: str = "--out") -> None:
    """Refuse a URL where something is written: it would become a folder. Raises InputError."""
    text = str(place)
    if _URL.match(text):  # a Path has one slash where the URL had two
        url = shown(text if "://" in text else text.replace(":/", "://", 1))
        raise InputError(f"{option} expects a place on this machine, a local folder; got {url}")


def require_outside_stores(place: Path | str, *, option: str = "--out") -> None:
    """Refuse a URL, and a folder for runs inside a feature store. Raises InputError."""
    require_local(place, option=option)
    target = Path(os.path.realpath(place))
    for folder in (target, *target.parents):
        if owner_of(folder) == "feature store":
            raise InputError(
                f"{option} {place} lies inside the feature store {folder}, which holds features "
                f"alone; choose another {option}"
            )


def require_empty_folder(folder: Path) -> None:
    """Refuse a folder in which something lies, or that cannot be written. Raises InputError."""
    require_local(folder)
    obstacle = find_obstacle(folder)
    if obstacle is not None:
        raise _cannot_write(obstacle, folder)
    try:
        is_empty = not folder.exists() or not os.listdir(folder)
    except OSError as error:
        raise _cannot_write(error, folder) from error
    if not is_empty:
        raise InputError(
            f"{folder} exists already and is not empty; remove it or choose another --out"
        )


def distinct_names(wanted: Sequence[str]) -> list[str]:
    """File names, none of which a file system could take for another: ``a.jpg``, ``A-2.jpg``.

    Those that differ in capitals or in the Unicode form of an accent count as one; names that are
    too long are cut.
    """
    taken: set[str] = set()
    names = []
    for name in wanted:
        stem, suffix = os.path.splitext(name)
        tail, number = suffix, 1
        while True:
            candidate = _cut(stem, _LONGEST_NAME - len(os.fsencode(tail))) + tail
            key = _folded(candidate)
            if key not in taken:
                break
            number += 1
            tail = f"-{number}{suffix}"
        taken.add(key)
        names.append(candidate)
    return names


def _folded(name: str) -> str:
    """The same for names that some file system could take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _cut(text: str, nbytes: int) -> str:
    while len(os.fsencode(text)) > nbytes:
        text = text[:-1]
    return text


_FILES_OF = {
    "run folder": (
        "config.yaml",
        "training.json",
        "results.json",
        "detections.json",
        "metrics.csv",
        "metrics.csv.damaged",
        "config.yaml.damaged",
        "train.lock",
        "log.txt",
        "steps.json",
        "costs.json",
        "cell.json",
    ),
    "feature store": (MANIFEST, METADATA, f"{IMAGES}.npz", CODEC_STATE, STAGES),
    "comparison": ("settings.json", "comparison.html", "comparison.md", "comparison.json"),
    "sweep": ("settings.json", "study.journal", "sweep.json", "sweep.lock"),
}


def owner_of(folder: Path) -> str | None:
    """What the folder is, where its files are not for other commands to write."""
    if os.path.isfile(folder / "config.yaml") and os.path.isdir(folder / "weights"):
        return "run folder"
    if os.path.isfile(folder / MANIFEST) or holds_records(folder):
        return "feature store"
    if os.path.isfile(folder / "settings.json") and os.path.isdir(folder / "features"):
        return "comparison"
    if os.path.isfile(folder / "settings.json") and os.path.isdir(folder / "trials"):
        return "sweep"
    return None


def _target(path: Path) -> Path:
    """Where the bytes would come to lie. Raises InputError on what is no regular file."""
    if path.name in ("", ".."):
        raise InputError(f"--out expects a file, got {str(path)!r}")
    target = Path(os.path.realpath(path))
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which is not there; remove the "
                "link, or choose another --out"
            ) from None
        return target
    except (OSError, ValueError) as error:
        raise _cannot_write(error, path) from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise InputError(f"--out expects a file, and {path} is {what}; choose another")
    return target


def _is_of(path: Path, kind: Kind) -> bool:
    """Whether cachedet made it for this; a file that cannot be read is not known to be ours."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
            file.seek(max(len(start), os.fstat(file.fileno()).st_size - _LOOKED_AT))
            return kind.pattern.search(start + file.read(_LOOKED_AT)) is not None
    except OSError:
        return False


def _cannot_write(error: OSError | ValueError, path: Path) -> InputError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    where = error.filename if isinstance(error, OSError) else None
    if where and str(where) != str(path) and not str(where).endswith(TEMPORARY_SUFFIX):
        why = f"{where}: {why}"
    return InputError(f"cannot write {path}: {why}; repair the cause, or choose another --out")
