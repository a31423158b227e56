from __future__ import annotations

import math

import pytest

from cachedet.errors import InputError
from cachedet.evaluation.metrics import ClassScore
from cachedet.evaluation.strata import parse_edges, stratify


def score(category_id: int, ap: float) -> ClassScore:
    return ClassScore(
        name=str(category_id), category_id=category_id, num_boxes=1, ap=ap, ap50=ap / 2
    )


SCORES = [score(1, 0.2), score(2, 0.4), score(3, math.nan), score(4, 0.6), score(5, 0.8)]
COUNTS = {1: 0, 2: 9, 3: 10, 4: 99, 5: 1000}


def test_default_bins() -> None:
    strata = stratify(SCORES, COUNTS)
    assert [stratum.name for stratum in strata] == ["0-9", "10-99", "100-999", "1000+"]
    assert [stratum.category_ids for stratum in strata] == [(1, 2), (3, 4), (), (5,)]
    assert strata[0].ap == pytest.approx(0.3)
    assert strata[0].ap50 == pytest.approx(0.15)
    assert (strata[1].ap, strata[1].num_classes, strata[1].num_scored) == (0.6, 2, 1)
    assert math.isnan(strata[2].ap)
    values = strata[2].to_json()
    assert (values["name"], values["ap"], values["high"]) == ("100-999", None, 1000)
    assert strata[3].to_json()["high"] is None


def test_bins_of_the_user() -> None:
    strata = stratify(SCORES, COUNTS, edges=(0, 10))
    assert [stratum.category_ids for stratum in strata] == [(1, 2), (3, 4, 5)]
    assert sum(stratum.num_classes for stratum in stratify(SCORES, COUNTS, edges=(0,))) == 5


@pytest.mark.parametrize("edges", [(), (1, 10), (0, 10, 10), (0, 100, 10)])
def test_bins_that_are_none(edges: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="edges that rise from 0, such as 0,10,100,1000, got"):
        stratify(SCORES, COUNTS, edges=edges)


def test_another_data_set() -> None:
    with pytest.raises(InputError, match=r"does not know category id 5 \(1 of 5 classes"):
        stratify(SCORES, {1: 0, 2: 0, 3: 0, 4: 0})


def test_bins_as_a_user_writes_them() -> None:
    assert parse_edges("0,10, 500") == (0, 10, 500)
    with pytest.raises(InputError, match="need whole numbers and commas, .* got '0;10'"):
        parse_edges("0;10")
    with pytest.raises(InputError, match="edges that rise from 0, .* got 5,10"):
        parse_edges("5,10")
