"""Images that cannot be used, are turned, occur twice, or in both sets.

Two images look alike where their thumbnails of 16 x 16 greys do: copies that were encoded or sized
again, and frames of a film in which little moves. Letters: N images, S = 256 greys.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cachedet.data.coco import CocoDataset
from cachedet.data.file_names import NearestFiles
from cachedet.data.images import DecodedImage
from cachedet.data.repairs import reach_beyond
from cachedet.data.survey import Scan, scan_images
from cachedet.inspection.annotated_set import AnnotatedSet
from cachedet.inspection.finding import Finding, Place, Rank, count_words
from cachedet.structures import SizeHW

_SIDE = 16  # of a thumbnail
_DECODED = 32  # long side of a view that images are decoded for, as JPEGs are quicker so
_LEAST_CONTRAST = 2.0  # standard deviation of its greys; flatter ones say nothing
_ALIKE = 0.97  # correlation of two thumbnails; strong JPEG at a third of the size keeps it
_SAME_SHAPE = 1.03  # of the ratios of their sides
_ROWS_AT_ONCE = 256

Thumbnails = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageLook:
    """What one reading of the images of a set showed."""

    annotated: AnnotatedSet
    scan: Scan
    thumbnails: Thumbnails  # (N, S) of length 1; zeros of flat images and bad ones
    sizes: dict[int, SizeHW] = field(default_factory=dict)  # of upright files, by row
    turned: frozenset[int] = frozenset()  # rows that EXIF turns

    @property
    def other_sizes(self) -> list[int]:
        """Rows of images that can be read, and have another size than annotated."""
        return [row for row, _ in self.scan.bad if row in self.sizes]


def look_at_images(
    annotated: AnnotatedSet, *, workers: int, on_progress: Callable[[int], None]
) -> ImageLook | None:
    """Read each image once, decoded as small as can be; None where none are known."""
    if annotated.dataset is None:
        return None
    thumbnails = np.zeros((len(annotated.dataset.annotations), _SIDE**2), dtype=np.float32)
    sizes: dict[int, SizeHW] = {}
    turned: set[int] = set()

    def look(row: int, image: DecodedImage) -> None:
        thumbnails[row] = _thumbnail(image.pixels)
        sizes[row] = image.image_hw
        if image.is_turned:
            turned.add(row)

    scan = scan_images(
        annotated.dataset,
        workers=workers,
        image_size=_DECODED,
        on_image=look,
        on_progress=on_progress,
    )
    return ImageLook(
        annotated=annotated,
        scan=scan,
        thumbnails=thumbnails,
        sizes=sizes,
        turned=frozenset(turned),
    )


def _thumbnail(pixels: NDArray[np.uint8]) -> Thumbnails:
    """(S,) greys around 0, of length 1; zeros where the image is flat."""
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float32).ravel()
    values = values - values.mean()
    length = float(np.sqrt((values**2).sum()))
    if length < _LEAST_CONTRAST * _SIDE:
        return np.zeros_like(values)
    result: Thumbnails = values / length
    return result


def image_findings(look: ImageLook) -> Iterator[Finding]:
    """Images of one set that cannot be used, are turned, odd, or there more than once."""
    annotated, total = look.annotated, len(look.thumbnails)
    bad = dict(look.scan.bad)
    missing = [row for row in bad if row in look.scan.missing]
    misnamed = [row for row in bad if row in look.scan.misnamed]
    resized = look.other_sizes
    known = {*missing, *misnamed, *resized}
    broken = [row for row in bad if row not in known]
    for kind, rows, what, advice in (
        ("missing", missing, "are not there", _advise_on_missing(annotated, missing)),
        ("bad names", misnamed, "have names that cannot be used", _RENAME + _SKIP),
        ("broken", broken, "cannot be decoded", "Repair or remove them; " + _SKIP),
        ("other size", resized, "have another size than annotated", _advise_on_sizes(look)),
    ):
        if rows:
            places = annotated.places_of_images(rows, [bad[row] for row in rows])
            yield _of_images(look, "stops", kind, rows, what, advice, places)
    turned = sorted(look.turned - bad.keys())
    if turned:
        advice = "Boxes are taken to be drawn on the upright image, as the sheet shows them."
        yield _of_images(look, "look at", "EXIF turn", turned, "are turned by EXIF", advice)
    odd = [(row, note) for row, note in look.scan.notes if row not in bad]
    if odd:
        rows = [row for row, _ in odd]
        places = annotated.places_of_images(rows, [note for _, note in odd])
        yield _of_images(look, "look at", "odd", rows, "are unusual inside", "", places)
    yield from _repeated(look)
    if not bad:
        text = f"{annotated.name}: all of {total:,} images can be read"
        yield Finding(rank="fine", kind="images", text=text)


_RENAME = "Rename the files, and their entries: no control characters, at most 255 bytes; "
_SKIP = "extract leaves them out with --on-bad-image skip."


def _of_images(
    look: ImageLook,
    rank: Rank,
    kind: str,
    rows: Sequence[int],
    what: str,
    advice: str,
    places: Sequence[Place] | None = None,
) -> Finding:
    words = count_words(len(rows), len(look.thumbnails), "images", what)
    return Finding(
        rank=rank,
        kind=kind,
        text=f"{look.annotated.name}: {words}",
        advice=advice,
        count=len(rows),
        places=tuple(look.annotated.places_of_images(rows) if places is None else places),
    )


def _advise_on_missing(annotated: AnnotatedSet, rows: Sequence[int]) -> str:
    """Which change of --images or of the names would find most of them."""
    assert annotated.dataset is not None
    nearest, names = NearestFiles(annotated.files.names()), annotated.dataset.annotations.file_names
    deeper, shorter, other = Counter[str](), Counter[str](), 0
    for row in rows:
        name, found = names[row], nearest.find(names[row])
        if found is None:
            continue
        if found.endswith(f"/{name}"):
            deeper[found.removesuffix(f"/{name}")] += 1
        elif name.endswith(f"/{found}"):
            shorter[name.removesuffix(found)] += 1
        else:
            other += 1
    if deeper.total() > len(rows) / 2:
        folder = PurePosixPath(annotated.images, deeper.most_common(1)[0][0])
        return f"Most are below another folder: give --images {folder}."
    if shorter.total() > len(rows) / 2:
        prefix = shorter.most_common(1)[0][0]
        return f"Most are there without {prefix!r}: take it out of the names."
    if other > len(rows) / 2:
        return "There are files of nearly the same names: rename them, or the entries."
    return "Bring the files, or take them out of the annotations; " + _SKIP


def _advise_on_sizes(look: ImageLook) -> str:
    """By kinds of images: lying ones that EXIF turns, sizes that are swapped, any other."""
    dataset = look.annotated.dataset
    assert dataset is not None
    differ = look.other_sizes
    swapped = [row for row in differ if look.sizes[row] == dataset.annotations.size_of(row)[::-1]]
    lying = [row for row in swapped if row in look.turned]
    others = [row for row in swapped if row not in look.turned]
    parts = []
    if lying:
        what = "Annotated lying, and turned upright by EXIF"
        parts.append(_advise_on_swapped(look, lying, what, _TURN))
    if others:
        what = "Width and height swapped"
        parts.append(_advise_on_swapped(look, others, what, _EXCHANGE))
    if len(swapped) < len(differ):
        rest = "They" if not swapped else "The others"
        parts.append(
            f"{rest} were resized or cropped after they were annotated: scale their boxes, too."
        )
    return " ".join(parts)


_EXCHANGE = "Exchange the two in their entries"
_TURN = "Turn their boxes, or write the images upright"


def _advise_on_swapped(look: ImageLook, rows: Sequence[int], what: str, usual: str) -> str:
    """Whether the boxes are drawn on the file as it is, or on one that lies on its side."""
    columns, advice, shown = look.annotated.columns, usual, ""
    if columns is not None and (of_rows := np.isin(columns.rows, rows)).any():
        xywh, its = columns.xywh[of_rows], columns.rows[of_rows]
        upright = np.array([look.sizes[row] for row in its.tolist()], dtype=np.int64)
        beyond = [int(reach_beyond(xywh, sizes).sum()) for sizes in (upright, upright[:, ::-1])]
        shown = f" ({len(its) - beyond[0]:,} of their {len(its):,} boxes lie inside the upright "
        shown += f"files, {len(its) - beyond[1]:,} inside the stated sizes)"
        if beyond[0] != beyond[1]:
            advice = _EXCHANGE if beyond[0] < beyond[1] else _TURN
    return f"{what}: {len(rows):,}{shown}. {advice}."


def _repeated(look: ImageLook) -> Iterator[Finding]:
    """Equal files, and images that look alike, within one set."""
    contents = look.scan.contents
    _, first, inverse = np.unique(contents, return_index=True, return_inverse=True)
    is_copy = (contents != 0) & (first[inverse] != np.arange(len(contents)))
    copies = [(int(row), int(first[inverse[row]])) for row in np.flatnonzero(is_copy)]
    if copies:
        advice = "Keep one of each: a copy counts twice, and its boxes may be others."
        yield _of_pairs(look, look, "copies", copies, "are copies of another one", advice)
    alike = [
        (row, other)
        for row, other in find_alike(look, look)
        if not is_copy[row] and contents[row] != contents[other]
    ]
    if alike:
        advice = "Copies that were encoded again, or frames of one film: keep them in one set."
        yield _of_pairs(look, look, "look alike", alike, "look alike", advice)


def leak_findings(train: ImageLook, val: ImageLook) -> Iterator[Finding]:
    """Images that are in both sets: scores on them say nothing."""
    assert train.annotated.dataset is not None
    assert val.annotated.dataset is not None
    row_of = {int(content): row for row, content in enumerate(train.scan.contents) if content}
    found = dict(files_in_both(val.annotated.dataset, train.annotated.dataset))
    for row, content in enumerate(val.scan.contents.tolist()):
        if content in row_of:
            found.setdefault(row, row_of[content])
    same = sorted(found.items())
    alike = [pair for pair in find_alike(val, train) if pair[0] not in found]
    if same:
        advice = "Take them out of one of the two: scores on them are too good."
        yield _of_pairs(val, train, "in both", same, "are in train, too", advice)
    if alike:
        advice = "Look at the pairs: copies or frames of one film make scores too good."
        yield _of_pairs(val, train, "alike in both", alike, "look like one of train", advice)
    if not same and not alike:
        yield Finding(rank="fine", kind="leaks", text="no image of val is in train, or looks alike")


def files_in_both(dataset: CocoDataset, other: CocoDataset) -> list[tuple[int, int]]:
    """Rows of `dataset` whose file is one of `other`, by its path, with the row there."""
    row_of = {path: row for row, path in enumerate(_paths(other))}
    return [(row, row_of[path]) for row, path in enumerate(_paths(dataset)) if path in row_of]


def _paths(dataset: CocoDataset) -> list[str]:
    folder = os.path.realpath(dataset.images)
    return [os.path.normpath(os.path.join(folder, one)) for one in dataset.annotations.file_names]


def _of_pairs(
    look: ImageLook,
    other: ImageLook,
    kind: str,
    pairs: Sequence[tuple[int, int]],
    what: str,
    advice: str,
) -> Finding:
    """Each place names both; the sheet shows the other one beside it."""
    assert other.annotated.dataset is not None
    names, set_name = other.annotated.dataset.annotations.file_names, other.annotated.name
    rows = [row for row, _ in pairs]
    reasons = [f"like {names[row]}" for _, row in pairs]
    places = [
        replace(place, like=(set_name, row))
        for place, (_, row) in zip(
            look.annotated.places_of_images(rows, reasons), pairs, strict=False
        )
    ]
    return _of_images(look, "look at", kind, rows, what, advice, places)


def find_alike(look: ImageLook, other: ImageLook) -> list[tuple[int, int]]:
    """Rows of `look` with the row of `other` that looks most like each, where one does.

    Within one set only earlier rows count.
    """
    ratios, others = _ratios(look), _ratios(other)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(look.thumbnails), _ROWS_AT_ONCE):
        stop = start + _ROWS_AT_ONCE
        known = other.thumbnails[: stop if look is other else None]
        likeness = look.thumbnails[start:stop] @ known.T
        rows, columns = np.nonzero(likeness >= _ALIKE)
        kept = np.abs(ratios[start + rows] - others[columns]) < np.log(_SAME_SHAPE)
        if look is other:
            kept &= columns < start + rows
        rows, columns = rows[kept], columns[kept]
        best = np.lexsort((-likeness[rows, columns], rows))
        firsts = best[np.unique(rows[best], return_index=True)[1]]
        pairs += zip((start + rows[firsts]).tolist(), columns[firsts].tolist(), strict=True)
    return pairs


def _ratios(look: ImageLook) -> NDArray[np.float32]:
    """(N,) logarithm of height / width; 0 of bad images, which have no thumbnail."""
    ratios = np.zeros(len(look.thumbnails), dtype=np.float32)
    for row, (height, width) in look.sizes.items():
        ratios[row] = np.log(height / width)
    return ratios
