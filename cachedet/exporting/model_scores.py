"""The scores of an exported file itself, on images and annotations as `extract` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cachedet.config.run import ALL_CLASSES, ClassChoice
from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.data.coco import CocoDataset
from cachedet.data.images import decode_file
from cachedet.data.survey import scan_images
from cachedet.device import default_workers
from cachedet.errors import BadImageError, ExportError
from cachedet.evaluation.analysis import Analysis, analyse, require_resamples
from cachedet.evaluation.detection_table import has_masks, read_results, tabulate
from cachedet.evaluation.files import labels_in, note_unknown, read_counts, require_separate
from cachedet.evaluation.lvis import read_federated
from cachedet.evaluation.strata import DEFAULT_EDGES, check_edges
from cachedet.exporting.exported_model import ExportedModel
from cachedet.progress import StageProgress
from cachedet.structures import Annotations, Detections

_KEPT_NBYTES = 512 << 20  # of images between their check and the model
_LISTED = 5  # bad images in one message


def score_model(
    model: Path | ExportedModel,
    *,
    images: Path,
    annotations: Path,  # of any format that `extract` takes
    against: Path | None = None,  # a results file on the same images; needs resamples
    training: str | None = None,  # annotation file or store, for AP by number of annotations
    edges: Sequence[int] = DEFAULT_EDGES,  # of the bins of training annotations
    lvis: bool = False,
    resamples: int = 0,  # of the bootstrap; 0: no intervals
    choose: ClassChoice = ALL_CLASSES,  # of the annotations
    rows: Sequence[int] | None = None,  # of the annotations' images; None: all
) -> Analysis:
    """Detect in every image, and score it.

    Raises:
        ExportError: a model that `export` did not write, or of other classes.
        DatasetError, BadImageError: annotations or images that cannot be used.
        InputError: `against` without resamples, or what does not fit the annotations.
    """
    require_resamples(resamples, comparing=against is not None)
    check_edges(edges)
    require_separate(choose, lvis=lvis)
    exported = model if isinstance(model, ExportedModel) else ExportedModel.open(model)
    dataset = read_dataset(annotations=annotations, images=images, choose=choose)
    if rows is not None:
        dataset = replace(dataset, annotations=dataset.annotations.keep_rows(rows))
    truth, notes = _in_classes_of(exported, dataset.annotations, where=annotations)
    federated = None
    if lvis:
        content = read_sections(annotations, choose=choose).content
        federated = read_federated(content, truth, where=annotations)
    detections = _detect(exported, dataset)
    return analyse(
        truth,
        tabulate(truth, detections, with_masks=has_masks(detections)),
        federated=federated,
        other=None if against is None else read_results(against, truth, option="--against"),
        counts=None if training is None else read_counts(training, truth.categories, choose=choose),
        edges=edges,
        resamples=resamples,
        notes=[*notes, *(f"{annotations}: {note}" for note in dataset.notes)],
    )


def _in_classes_of(
    model: ExportedModel, described: Annotations, *, where: Path
) -> tuple[Annotations, tuple[str, ...]]:
    """The annotations in the model's classes, and a note of those that it does not know.

    Raises ExportError where they lack some of the model's.
    """
    ours, theirs = model.facts.categories, described.categories
    labels = labels_in(ours, theirs) or labels_in(ours, theirs, by_name=True)
    if labels is None:
        raise ExportError(
            f"{where} has other classes than the model: "
            f"{theirs.unlike(ours, where='in the model')}; give the data set it was trained for"
        )
    return described.with_classes(ours, labels), note_unknown(theirs, labels, str(where))


def _detect(model: ExportedModel, dataset: CocoDataset) -> list[Detections]:
    """Of each row, in its order. Raises BadImageError that lists the images that are bad."""
    truth, workers, on_images = dataset.annotations, default_workers(), model.on_images()
    with StageProgress("check images", total=len(truth), unit="images") as progress:
        scan = scan_images(
            dataset,
            workers=workers,
            image_size=on_images.image_size,
            keep_nbytes=_KEPT_NBYTES,
            on_progress=progress.advance,
        )
    if scan.bad:
        listed = [f"  {dataset.path_of(row)}: {fault}" for row, fault in scan.bad[:_LISTED]]
        raise BadImageError(f"{len(scan.bad)} of {len(truth)} images cannot be scored:", *listed)
    found = []
    with StageProgress("eval", total=len(truth), unit="images") as progress:
        for row, image_id in enumerate(truth.image_ids.tolist()):
            image = scan.images.get(row)
            if image is None:
                image = decode_file(dataset.path_of(row), image_size=on_images.image_size)
            found += on_images.detect([on_images.prepare([image], image_id=image_id)])
            progress.advance()
    return found
