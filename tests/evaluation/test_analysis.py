from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from cachedet.data.masks import encode_bitmap
from cachedet.errors import InputError
from cachedet.evaluation.analysis import analyse
from cachedet.evaluation.curves import draw_curves
from cachedet.evaluation.detection_table import DetectionTable, count_oddities, tabulate
from cachedet.evaluation.error_kinds import analyse_errors
from cachedet.evaluation.lvis import Federated, score_lvis
from cachedet.evaluation.metrics import score_table
from cachedet.evaluation.significance import bootstrap, compare_runs
from cachedet.evaluation.strata import stratify
from cachedet.progress import show_progress
from cachedet.structures import Annotations, Detections, MaskCodes

Tabulated = tuple[Annotations, DetectionTable]


@pytest.fixture
def drawn(scene: Any) -> Tabulated:
    annotations, detections = scene(images=8).draw(8)
    return annotations, tabulate(annotations, detections)


def test_every_part_is_the_function_of_its_own(drawn: Tabulated) -> None:
    annotations, table = drawn
    counts = {0: 3, 3: 30, 6: 4}
    report = analyse(annotations, table, counts=counts, edges=(0, 5), resamples=15, seed=2)
    values = report.to_json()
    scores = score_table(annotations, table)
    assert {name: values[name] for name in scores.to_json()} == scores.to_json()
    assert values["errors"] == analyse_errors(annotations, table).to_json()
    assert values["intervals"] == bootstrap(annotations, table, resamples=15, seed=2).to_json()
    strata = stratify(scores.per_class, counts, edges=(0, 5))
    assert values["strata"]["bins"] == [stratum.to_json() for stratum in strata]
    assert values["strata"]["training_boxes"] == {"0": 3, "3": 30, "6": 4}
    assert values["oddities"] == count_oddities(annotations, table)
    assert values["curves"] == draw_curves(annotations, table).to_json()
    assert not {"masks", "lvis", "lvis_masks", "comparison"} & values.keys()
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_another_run_is_compared(drawn: Tabulated) -> None:
    annotations, table = drawn
    other = table.keep(np.arange(0, len(table), 2))
    report = analyse(annotations, table, other=other, resamples=15)
    values = report.to_json()["comparison"]
    expected = compare_runs(annotations, table, other, resamples=15, seed=0)
    assert values == expected.to_json()
    assert report.intervals is None  # they are part of the comparison
    assert values["first"]["ap"]["value"] == pytest.approx(report.scores.ap)
    assert values["tells_apart"] is expected.difference.ap.excludes_zero
    with pytest.raises(InputError, match="comparisons of runs need resamples .* 1000, got 0"):
        analyse(annotations, table, other=other)
    with pytest.raises(InputError, match="intervals need resamples .* got -1"):
        analyse(annotations, table, resamples=-1)
    with pytest.raises(InputError, match="edges that rise from 0"):
        analyse(annotations, table, edges=(3,))


def test_resampling_tells_how_far_it_is(
    drawn: Tabulated, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, table = drawn
    analyse(annotations, table)
    assert capsys.readouterr() == ("", "")
    with show_progress():
        analyse(annotations, table, resamples=3)
    assert "resample: 3/3" in capsys.readouterr().err
    with show_progress():
        analyse(annotations, table, other=table, resamples=3)
    out, err = capsys.readouterr()
    assert "resample: 6/6" in err
    assert out == ""


def test_a_run_against_itself_is_no_difference(drawn: Tabulated) -> None:
    annotations, table = drawn
    report = analyse(annotations, table, other=table, resamples=15)
    assert report.comparison.difference.ap.value == 0
    assert report.to_json()["comparison"]["tells_apart"] is False


def test_lvis_and_masks_where_they_are(drawn: Tabulated) -> None:
    annotations, table = drawn
    bitmap = np.zeros((200, 200), dtype=np.bool_)
    bitmap[10:60, 20:90] = True
    masked = dataclasses.replace(
        annotations, masks=MaskCodes.join([encode_bitmap(bitmap)] * len(annotations.labels))
    )
    detections = [
        Detections(
            image_id=image_id,
            boxes=torch.tensor([[20.0, 10, 90, 60]]),
            scores=torch.tensor([0.5]),
            labels=torch.tensor([0]),
            masks=torch.ones(1, 4, 4),
        )
        for image_id in annotations.image_ids.tolist()
    ]
    nothing = np.zeros(0, dtype=np.int64)
    federated = Federated(negative=nothing, not_exhaustive=nothing, frequencies=("r", "c", "f"))
    with_masks = tabulate(masked, detections, with_masks=True)
    report = analyse(masked, with_masks, federated=federated)
    values = report.to_json()
    assert values["masks"] == score_table(masked, with_masks, of="segm").to_json()
    assert values["lvis"] == score_lvis(masked, federated, with_masks).to_json()
    expected = score_lvis(masked, federated, with_masks, of="segm")
    assert values["lvis_masks"] == expected.to_json()
    assert analyse(masked, table).mask_scores is None
    assert analyse(annotations, with_masks).mask_scores is None
