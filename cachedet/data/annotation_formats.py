"""Which format `--annotations` is of, by its content, and the data set in it.

COCO and LVIS JSON, YOLO, Pascal VOC and CVAT for images are read; each becomes the sections of a
COCO file (sections.py), which are checked and repaired in one place (coco.py). A split is named
behind a colon, as in ``data.yaml:train``.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cachedet.config.run import ALL_CLASSES, ClassChoice, Rotated
from cachedet.data import cvat, voc, yolo
from cachedet.data.class_choice import with_chosen, without_background
from cachedet.data.coco import CocoDataset, annotations_of, load_annotations
from cachedet.data.file_names import require_inside, without_prefix
from cachedet.data.image_files import ImageFiles, ImageFolder, as_files, was_url
from cachedet.data.repairs import Findings
from cachedet.data.sections import Sections, choose_split, listed
from cachedet.data.unknown_annotations import LABELME, describe_file, describe_folder, is_labelme
from cachedet.data.xml_files import root_name
from cachedet.data.yolo_folders import SPLITS, has_names, is_bare_folder, yaml_in
from cachedet.errors import DatasetError, ForeignFileError
from cachedet.structures import Annotations
from cachedet.text import printable

_log = logging.getLogger(__name__)

_SPLIT = re.compile(r"(?P<source>.+):(?P<split>[A-Za-z0-9_.-]+)", re.DOTALL)
_JSON_NAMES = ("_annotations.coco.json", "result.json")  # of Roboflow and Label Studio
_YAML_SUFFIXES = (".yaml", ".yml")
KNOWN = (
    "COCO or LVIS JSON, the data.yaml of a YOLO data set, a folder of Pascal VOC XML, or the XML "
    "of CVAT for images 1.1; what `datumaro` or `labelformat` can read, they write as COCO"
)

_Read = Callable[..., Sections]


def with_split(source: Path, split: str | None) -> Path:
    """``data.yaml`` and ``train`` as one name, which every option takes."""
    return source if split is None else Path(f"{source}:{split}")


def read_dataset(
    *,
    annotations: Path,
    images: Path | ImageFiles,
    follow_links: bool = False,
    rotated: Rotated = "refuse",
    choose: ClassChoice = ALL_CLASSES,
) -> CocoDataset:
    """A data set on disk. Of the image files at most the headers are read here.

    Labels follow the order of category ids. Crowd boxes are kept and flagged, images without
    boxes are kept as negatives. Boxes of negative width or height are turned round. Boxes without
    area, with NaN or Inf, or wholly outside their image are dropped; a box whose mask cannot be
    used stays, without a mask. All of that is counted and noted.

    Raises DatasetError: no format that is known, what it holds cannot be used, a missing folder,
    no images at all, a class of `choose` that is not there, or a path that leaves the image folder
    (by a link only where `follow_links` does not allow it).
    """
    sections = read_sections(annotations, images=images, rotated=rotated, choose=choose)
    return dataset_of(
        sections,
        annotations=annotations,
        images=images,
        follow_links=follow_links,
        background=choose.background,
    )


def dataset_of(
    sections: Sections,
    *,
    annotations: Path,
    images: Path | ImageFiles,
    follow_links: bool,
    background: bool = True,
) -> CocoDataset:
    """What `read_dataset` makes of sections that have been read. Raises DatasetError."""
    described, found = describe_sections(sections, background=background)
    files = as_files(images)
    require_inside(
        described.file_names,
        files.location,
        annotations,
        follow_links=follow_links,
        known=None if isinstance(files, ImageFolder) else files.names(),
    )
    notes = (*sections.notes, *found.notes)
    return CocoDataset(files=files, annotations=described, counts=found.counts, notes=notes)


def describe_sections(sections: Sections, *, background: bool) -> tuple[Annotations, Findings]:
    """What can be trained on. Raises DatasetError."""
    described, found = annotations_of(_with_sizes(sections), where=sections.source)
    if not background:
        described, found = without_background(
            described, found, unread=set(sections.unread), where=sections.source
        )
    return described, Findings(counts={**found.counts, **sections.counts}, notes=found.notes)


def read_sections(
    annotations: Path,
    *,
    images: Path | ImageFiles | None = None,
    rotated: Rotated = "refuse",
    choose: ClassChoice = ALL_CLASSES,
) -> Sections:
    """What a file or folder holds, of whatever format; one line is logged that says which.

    `images` is the folder that file names are to start from; without it the source says. Of
    `choose` the classes are applied here. Raises DatasetError.
    """
    files = None if images is None else as_files(images)
    if files is not None:
        files.require_some()
    reference, split = _parse(annotations)
    read, source = _recognise(reference, split)
    folder = None if files is None else _folder_for(read, files, source)
    sections = read(source, split=split, images=folder, rotated=rotated)
    if images is not None or sections.are_ids_ours:  # a JSON file to score against is no surprise
        _log.info("%s", printable(sections.describe()))
    sections = with_chosen(sections, choose)
    return sections if files is None else _with_names_there(sections, files)


def _folder_for(read: _Read, files: ImageFiles, source: Path) -> Path | None:
    """Where a format looks at image files itself; COCO does not. Raises DatasetError."""
    if isinstance(files, ImageFolder):
        return files.folder
    if read is not _read_coco:
        raise DatasetError(
            f"--annotations {source} is not COCO or LVIS JSON, and other formats look into a "
            f"folder of the images, which lie in {files.location}. Write it as COCO where they "
            "are in a folder (`cachedet convert`), or mount or copy the images"
        )
    return None


def is_annotations(reference: Path) -> bool:
    """Whether something is there that can be read as annotations; a store cannot."""
    source, _ = _parse(reference)
    if not os.path.isdir(source):
        return os.path.exists(source)
    try:
        return bool(_recognise_folder(source))
    except DatasetError:
        return False


def _parse(reference: Path) -> tuple[Path, str | None]:
    """The file or folder, and the split named behind it."""
    match = _SPLIT.fullmatch(str(reference))
    if match is None or os.path.exists(reference):
        return reference, None
    return Path(match["source"]), match["split"]


def _read_coco(
    source: Path, *, split: str | None, images: Path | None, rotated: Rotated
) -> Sections:
    """A file of COCO or LVIS, or those of an exported folder; its boxes are upright."""
    by_split = _jsons_in(source) if os.path.isdir(source) else {"": source}
    if list(by_split) == [""]:
        choose_split(split, [], source)
    else:
        split = choose_split(split, list(by_split), source)
    path = by_split[split or ""]
    try:
        content = load_annotations(path)
    except ForeignFileError as error:
        with suppress(OSError):
            if described := describe_file(path):
                raise DatasetError(f"--annotations {path} is not read: {described}") from error
        raise DatasetError(f"{error}. --annotations takes {KNOWN}") from error
    except DatasetError as error:
        if not is_labelme(path):
            raise
        raise DatasetError(f"{error}: it is {LABELME}") from error
    categories, notes = _without_placeholder(content)
    return Sections(
        content={**content, "categories": categories},
        source=path,
        kind=_kind_of(content),
        split=split,
        notes=notes,
    )


def _jsons_in(folder: Path) -> dict[str, Path]:
    """The COCO files of a folder by split, as Roboflow, Label Studio, CVAT and COCO lay them."""
    for name in _JSON_NAMES:
        if (folder / name).is_file():
            return {"": folder / name}
    of_splits = {name: folder / name / _JSON_NAMES[0] for name in SPLITS}
    found = {name: path for name, path in of_splits.items() if path.is_file()}
    of_coco = sorted((folder / "annotations").glob("instances_*.json"))
    return found or {path.stem.removeprefix("instances_"): path for path in of_coco}


def _kind_of(content: dict[str, Any]) -> str:
    is_lvis = any("neg_category_ids" in image for image in content["images"][:1])
    return "LVIS JSON" if is_lvis else "COCO JSON"


def _without_placeholder(content: dict[str, Any]) -> tuple[list[Any], tuple[str, ...]]:
    """Roboflow's category 0 is the name of the project, which no object is of."""
    categories: list[dict[str, Any]] = content["categories"]
    zero = next((one for one in categories if one.get("id") == 0), {})
    others = [one for one in categories if one is not zero]
    is_above = zero.get("supercategory") == "none" and all(
        one.get("supercategory") == zero.get("name") for one in others
    )
    if not is_above or not others:
        return categories, ()
    if any(one.get("category_id") == 0 for one in content["annotations"]):
        return categories, ()
    note = f"category 0, {zero.get('name')!r}, is Roboflow's placeholder without objects; left out"
    return others, (note,)


def _recognise(source: Path, split: str | None) -> tuple[_Read, Path]:
    """How to read it, by its content, and which file. Raises DatasetError."""
    if os.path.isdir(source):
        return _recognise_folder(source)
    name = root_name(source)
    if name == "annotations":
        return cvat.read_cvat, source
    if name == "annotation":
        raise DatasetError(
            f"--annotations {source} is one XML file of Pascal VOC: give the folder of them all, "
            f"{source.parent}"
        )
    if name is not None and name.lower() != "html":
        raise DatasetError(f"--annotations {source} is XML of <{name}>. Expected {KNOWN}")
    is_yaml = source.suffix.lower() in _YAML_SUFFIXES
    if not os.path.exists(source):
        of_split = "" if split is None else f" (of which {split} is a split)"
        if was_url(source):
            of_split = ". Annotations are read from this machine: copy them from the bucket"
        raise DatasetError(f"there is no file {source}{of_split}; expected {KNOWN}")
    if is_yaml or has_names(source):
        return yolo.read_yolo, source
    return _read_coco, source


def _recognise_folder(folder: Path) -> tuple[_Read, Path]:
    try:
        if yaml_in(folder) is not None:
            return yolo.read_yolo, folder
        if (folder / "annotations.xml").is_file():
            return cvat.read_cvat, folder / "annotations.xml"
        if _jsons_in(folder):
            return _read_coco, folder
        if voc.is_voc(folder):
            return voc.read_voc, folder
        if is_bare_folder(folder):
            return yolo.read_yolo, folder
        inside = sorted(path.name for path in folder.iterdir())
        described = describe_folder(folder)
    except OSError as error:
        raise DatasetError(f"--annotations {folder} cannot be read: {error.strerror}") from error
    if described:
        raise DatasetError(f"--annotations {folder} is not read: {described}")
    raise DatasetError(
        f"--annotations {folder} is a folder without annotations that are known; it holds "
        f"{listed(inside) or 'nothing'}. Expected {KNOWN}"
    )


def _with_sizes(sections: Sections) -> dict[str, Any]:
    """Images whose files give no size get some: the look at all images will refuse them."""
    if not sections.unread or not sections.are_ids_ours:
        return sections.content
    rows = [
        row if row["width"] else {**row, "width": 1, "height": 1}
        for row in sections.content["images"]
    ]
    return {**sections.content, "images": rows}


def _with_names_there(sections: Sections, files: ImageFiles) -> Sections:
    """Names that are there only below a split's folder, or without Label Studio's prefix."""
    folder = ""
    if isinstance(files, ImageFolder):
        beside = os.path.relpath(sections.source.parent, files.folder).replace(os.sep, "/")
        folder = "" if beside.startswith("..") else posixpath.normpath(beside)
    rows, changed = [], []
    taken = {str(row.get("file_name")) for row in sections.content["images"]}
    for row in sections.content["images"]:
        name = row.get("file_name")
        found = _found_as(name, files, folder) if isinstance(name, str) else None
        if found is not None and found not in taken:
            taken.add(found)
            changed.append(f"{name} is {found}")
            row = {**row, "file_name": found}
        rows.append(row)
    if not changed:
        return sections
    note = f"images found by another form of their names: {len(changed)} ({listed(changed)})"
    content = {**sections.content, "images": rows}
    return replace(sections, content=content, notes=(*sections.notes, note))


def _found_as(name: str, files: ImageFiles, folder: str) -> str | None:
    """The name of the file that is there; None where it is the name as it stands, or none is."""
    given = posixpath.normpath(name.replace("\\", "/"))
    places = [name, without_prefix(name), given, without_prefix(given)]
    last = posixpath.basename(given)
    if last != without_prefix(last) or posixpath.isabs(given):  # folders are those of its server
        places += [last, without_prefix(last)]
    places += [posixpath.normpath(posixpath.join(folder, place)) for place in places]
    forms = [place for place in dict.fromkeys(places) if place != name]
    if not forms or files.has(name):
        return None
    return next((form for form in forms if files.has(form)), None)
