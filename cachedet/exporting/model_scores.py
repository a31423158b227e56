"""The scores of an exported file itself, on images and annotations as `extract` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cachedet.data.annotation_formats import read_dataset, read_sections
from cachedet.data.coco import CocoDataset
from cachedet.data.images import decode_file
from cachedet.errors import ExportError
from cachedet.evaluation.analysis import Analysis, analyse, require_resamples
from cachedet.evaluation.detection_table import has_masks, read_results, tabulate
from cachedet.evaluation.files import read_counts
from cachedet.evaluation.lvis import read_federated
from cachedet.evaluation.strata import DEFAULT_EDGES, check_edges
from cachedet.exporting.exported_model import ExportedModel
from cachedet.progress import StageProgress
from cachedet.structures import CategoryMap, Detections

_AHEAD = 8  # images decoded while the model works


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
) -> Analysis:
    """Detect in every image, and score it.

    Raises:
        ExportError: a model that `export` did not write, or of other classes.
        DatasetError, BadImageError: annotations or images that cannot be used.
        InputError: `against` without resamples, or what does not fit the annotations.
    """
    require_resamples(resamples, comparing=against is not None)
    check_edges(edges)
    exported = model if isinstance(model, ExportedModel) else ExportedModel.open(model)
    dataset = read_dataset(annotations=annotations, images=images)
    truth = dataset.annotations
    require_classes(exported.categories, truth.categories, where=annotations)
    federated = None
    if lvis:
        federated = read_federated(read_sections(annotations).content, truth, where=annotations)
    detections = _detect(exported, dataset)
    return analyse(
        truth,
        tabulate(truth, detections, with_masks=has_masks(detections)),
        federated=federated,
        other=None if against is None else read_results(against, truth, option="--against"),
        counts=None if training is None else read_counts(training, truth.categories),
        edges=edges,
        resamples=resamples,
        notes=[f"{annotations}: {note}" for note in dataset.notes],
    )


def require_classes(ours: CategoryMap, theirs: CategoryMap, *, where: Path) -> None:
    """Raises ExportError where the classes of annotations are not those of the model."""
    if ours != theirs:
        raise ExportError(
            f"{where} has other classes than the model: "
            f"{theirs.unlike(ours, where='in the model')}; give the data set it was trained for"
        )


def _detect(model: ExportedModel, dataset: CocoDataset) -> list[Detections]:
    """Of each row, in its order; images are decoded ahead."""
    image_ids = dataset.annotations.image_ids.tolist()
    paths = [dataset.path_of(row) for row in range(len(image_ids))]
    decode = partial(decode_file, image_size=model.image_size)
    found = []
    with (
        ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder,
        StageProgress("eval", total=len(paths), unit="images") as progress,
    ):
        waiting = [decoder.submit(decode, path) for path in paths[:_AHEAD]]
        for row, image_id in enumerate(image_ids):
            image = waiting.pop(0).result()
            if row + _AHEAD < len(paths):
                waiting.append(decoder.submit(decode, paths[row + _AHEAD]))
            found.append(model.of_image(image, image_id=image_id))
            progress.advance()
    return found
