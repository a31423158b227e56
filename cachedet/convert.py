"""Any annotations that are read, as the COCO file that was understood."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.config.run import ALL_CLASSES, ClassChoice, Rotated, make_class_choice
from cachedet.data.annotation_formats import describe_sections, read_sections
from cachedet.data.file_names import leaves, require_inside
from cachedet.data.sections import listed
from cachedet.errors import DatasetError, InputError
from cachedet.evaluation.metrics import ground_truth_json
from cachedet.outputs import Kind, require_file, write_file


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What one call of `convert` did."""

    out: Path
    source: Path
    kind: str  # the format that was recognised
    split: str | None
    images: Path | None  # the folder that file names start from; None: as the source has it
    counts: dict[str, int]  # read, mended and dropped, by name
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        places = {"out": str(self.out), "source": str(self.source)}
        images = None if self.images is None else str(self.images)
        return {**vars(self), **places, "images": images, "notes": list(self.notes)}


def convert(
    source: Path | str,
    out: Path | str,
    *,
    images: Path | str | None = None,
    rotated: Rotated = "refuse",
    choose: ClassChoice | Mapping[str, Any] = ALL_CLASSES,
) -> ConvertReport:
    """Write annotations of any format as COCO JSON: what `extract` would take of them.

    File names start from `images`, without it from the folder that the source says. `choose` says
    which classes, as for `extract`.

    Raises:
        DatasetError: they cannot be used, or an image that gives their scale cannot be read.
        InputError: `out` is somebody's file, or cannot be written.
        ConfigError: `choose` has keys that do not exist.

    Examples:
        >>> report = cachedet.convert("zoo/data.yaml:train", "train.json")
        >>> report.kind, report.counts["boxes"]
    """
    source, out, images = Path(source), Path(out), None if images is None else Path(images)
    choose = make_class_choice(choose, where="choose")
    if os.path.realpath(source) == os.path.realpath(out):
        raise InputError(f"{out} is the source itself; name another file")
    require_file(out, kind=Kind.ANNOTATIONS)
    sections = read_sections(source, images=images, rotated=rotated, choose=choose)
    if sections.are_ids_ours and sections.unread:
        raise DatasetError(
            f"{source}: images whose size is not known: {len(sections.unread)} "
            f"({listed(sections.unread)}). COCO needs it: bring or repair the files, or leave "
            "them and their annotations out"
        )
    annotations, found = describe_sections(sections, background=choose.background)
    if images is not None:  # only named here: links may lead anywhere
        require_inside(annotations.file_names, images, source, follow_links=True)
    description = f"Written by `cachedet convert` from {sections.kind}"
    content = {**ground_truth_json(annotations), "info": {"description": description}}
    ordered = {key: content[key] for key in ("info", "images", "annotations", "categories")}
    write_file(out, json.dumps(ordered).encode(), kind=Kind.ANNOTATIONS)
    return ConvertReport(
        out=out,
        source=sections.source,
        kind=sections.kind,
        split=sections.split,
        images=images or sections.root,
        counts=found.counts,
        notes=(*sections.notes, *found.notes, *_note_leaving(annotations.file_names)),
    )


def _note_leaving(file_names: Sequence[str]) -> list[str]:
    """Names that no folder of images can have, where none was given to hold them against."""
    outside = [name for name in file_names if leaves(name)]
    if not outside:
        return []
    return [
        f"file names that leave the folder they start from: {len(outside)} ({listed(outside)}); "
        "`extract` refuses them: with --images DIR the files that are there are found"
    ]
