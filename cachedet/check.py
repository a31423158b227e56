"""What is wrong with a data set, before hours of work: images, boxes, classes, sizes, leaks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachedet.config.run import (
    ALL_CLASSES,
    ClassChoice,
    ExtractConfig,
    Rotated,
    make_class_choice,
)
from cachedet.data.annotation_formats import dataset_of, read_sections
from cachedet.data.coco import CocoDataset
from cachedet.device import default_workers
from cachedet.errors import InputError
from cachedet.extraction.image_bucket import open_images
from cachedet.inspection.annotated_set import AnnotatedSet, annotated_of, read_annotated
from cachedet.inspection.box_faults import box_findings
from cachedet.inspection.box_readings import reading_findings
from cachedet.inspection.class_faults import ClassCount, class_findings, count_classes
from cachedet.inspection.finding import Finding, most_important_first
from cachedet.inspection.finding_sheet import draw_sheet
from cachedet.inspection.image_faults import (
    ImageLook,
    image_findings,
    leak_findings,
    look_at_images,
)
from cachedet.inspection.object_sizes import ObjectSizes, measure_objects, size_findings
from cachedet.inspection.unnamed_images import unnamed_findings
from cachedet.outputs import Kind, require_file, write_file
from cachedet.progress import StageProgress


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check came to."""

    findings: tuple[Finding, ...]  # most important first
    classes: tuple[ClassCount, ...]  # of each set, the most frequent first
    counts: dict[str, dict[str, int]]  # by set: images, boxes, and what is mended and dropped
    sizes: ObjectSizes | None  # of the objects of train
    sheet: Path | None

    @property
    def stops(self) -> bool:
        """Whether extract would refuse this, or training on it would be wrong."""
        return any(finding.rank == "stops" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "stops": self.stops,
            "findings": [finding.to_json() for finding in self.findings],
            "classes": [one.to_json() for one in self.classes],
            "counts": self.counts,
            "sizes": None if self.sizes is None else self.sizes.to_json(),
            "sheet": None if self.sheet is None else str(self.sheet),
        }


def check(
    *,
    images: Path | str,
    annotations: Path | str,
    val: Path | str | None = None,
    val_images: Path | str | None = None,
    image_size: int = 512,
    rotated: Rotated = "refuse",
    follow_links: bool = False,
    choose: ClassChoice | Mapping[str, Any] = ALL_CLASSES,
    workers: int = 0,
    out: Path | str | None = None,
) -> CheckReport:
    """Look at all annotations and images as `extract` would take them, and change nothing.

    Args:
        images: folder of the images.
        annotations: of any format that `extract` takes; a split stands behind a colon.
        val: what is to be scored on, likewise.
        val_images: folder of its images; None: the same.
        image_size: long side in pixels, at which sizes of objects are measured.
        rotated: "refuse", or "outer": upright boxes around rotated ones.
        follow_links: whether links may lead out of the folder of the images.
        choose: which classes of both, as for `extract`.
        workers: threads that read and decode images; 0: one per core.
        out: PNG to write with the images of the findings and their boxes.

    Raises:
        InputError: `out` is somebody's file, lies among the images or cannot be written; a number
            out of range.
        ConfigError: `choose` has keys that do not exist.

    What is wrong with the data is no error but a finding.

    Examples:
        >>> report = cachedet.check(images="photos", annotations="train.json", val="val.json")
        >>> report.stops, report.findings[0].text
    """
    if image_size < 1 or workers < 0:
        raise InputError(
            f"check expects an image_size of 1 or more and workers of 0 or more, got {image_size} "
            f"and {workers}"
        )
    choose = make_class_choice(choose, where="choose")
    sheet = None if out is None else Path(out)
    if sheet is not None:
        _require_place(sheet, [Path(folder) for folder in (images, val_images) if folder])
    places = {"train": (images, annotations), "val": (val_images or images, val)}
    sets = [
        read_annotated(
            name,
            annotations=Path(of_set),
            images=Path(folder),
            rotated=rotated,
            follow_links=follow_links,
            choose=choose,
        )
        for name, (folder, of_set) in places.items()
        if of_set is not None
    ]
    looks = _look(sets, workers=workers or default_workers())
    wrong = [row for look in looks if look.annotated is sets[0] for row in look.other_sizes]
    sizes = measure_objects(sets[0], image_size=image_size, without=wrong)
    findings = most_important_first(_all_findings(sets, looks, sizes))
    if sheet is not None:
        write_file(sheet, draw_sheet(findings, sets), kind=Kind.SHEET)
    return CheckReport(
        findings=findings,
        classes=tuple(count for one in sets for count in count_classes(one)),
        counts={one.name: one.dataset.counts for one in sets if one.dataset is not None},
        sizes=sizes,
        sheet=sheet,
    )


def _require_place(sheet: Path, folders: Sequence[Path]) -> None:
    """Raises InputError."""
    require_file(sheet, kind=Kind.SHEET)
    for folder in folders:
        if Path(os.path.realpath(sheet)).is_relative_to(os.path.realpath(folder)):
            raise InputError(
                f"--out {sheet} lies in the folder of the images, where it would be taken for one "
                "of them; choose another place"
            )


def _look(sets: Sequence[AnnotatedSet], *, workers: int) -> list[ImageLook]:
    """Read the images of all sets, once each."""
    total = sum(len(one.dataset.annotations) for one in sets if one.dataset is not None)
    with StageProgress("check images", total=total, unit="images") as progress:
        looks = [look_at_images(one, workers=workers, on_progress=progress.advance) for one in sets]
    return [look for look in looks if look is not None]


_OF_READINGS = ("outside", "partly outside")  # follow from numbers that mean something else


def _all_findings(
    sets: Sequence[AnnotatedSet], looks: Sequence[ImageLook], sizes: ObjectSizes | None
) -> Iterator[Finding]:
    """Within a rank the first are the most important."""
    train, *others = sets
    for one in sets:
        yield from one.refusals
    yield from class_findings(train, others[0] if others else None)
    if len(looks) == 2:
        yield from leak_findings(*looks)
    for look in looks:
        yield from image_findings(look)
    for one in sets:
        of_other_size = [row for look in looks if look.annotated is one for row in look.other_sizes]
        readings = list(reading_findings(one, without=of_other_size))
        yield from readings
        told = _OF_READINGS if readings else ()
        yield from (found for found in box_findings(one) if found.kind not in told)
    yield from unnamed_findings(sets)
    if sizes is not None:
        yield from size_findings(train.name, sizes)
    for one in sets:
        yield from one.notes


@dataclass(frozen=True, kw_only=True)
class QuickLook:
    """What the annotations of an extraction show before it begins; no image is read for it."""

    dataset: CocoDataset
    to_look_at: tuple[str, ...]  # most important first
    unnamed: str | None = None  # images of the folder that the annotations do not name


def look_before(config: ExtractConfig) -> QuickLook:
    """Read what is to be extracted, once, and look at it. Raises DatasetError as `extract` does."""
    images = open_images(config.images)
    sections = read_sections(
        config.annotations, images=images, rotated=config.rotated, choose=config.choose
    )
    dataset = dataset_of(
        sections,
        annotations=config.annotations,
        images=images,
        follow_links=config.follow_links,
        background=config.choose.background,
    )
    annotated = annotated_of(config.annotations.name, sections, dataset)
    sizes = measure_objects(annotated, image_size=config.image_size)
    found = most_important_first(_all_findings([annotated], [], sizes))
    unnamed = [finding.text for finding in found if finding.kind == "unnamed"]
    return QuickLook(
        dataset=dataset,
        to_look_at=tuple(finding.text for finding in found if finding.rank != "fine"),
        unnamed=unnamed[0] if unnamed else None,
    )
