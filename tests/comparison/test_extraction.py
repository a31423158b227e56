"""What extraction of a comparison's stores took, also where calls were cut off."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cachedet.compare import extract_stores
from cachedet.comparison.folder import Extracted, ExtractionLog, require_known
from cachedet.errors import InputError
from cachedet.store.reader import FeatureStore

SECOND = 10**9


@pytest.fixture
def log(tmp_path: Path) -> ExtractionLog:
    return ExtractionLog(path=tmp_path / "seconds.json", store=tmp_path / "train.zarr")


def commit(log: ExtractionLog, count: int, *, after: float, apart: float) -> None:
    """As a call that was begun leaves commit records, some seconds after that."""
    begun = log.path.stat().st_mtime_ns
    for place in range(count):
        path = log.store / "commits" / f"base-b{place}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        at = begun + round((after + place * apart) * SECOND)
        os.utime(path, ns=(at, at))


def test_calls_add_up_to_the_pace_of_a_block(log: ExtractionLog) -> None:
    assert math.isnan(log.seconds_of(6))
    log.begin()
    log.end(seconds=2.5, blocks=2)
    log.begin()
    log.end(seconds=1.5, blocks=2)
    log.begin()
    log.end(seconds=9.0, blocks=0)  # only looked
    assert log.seconds_of(4) == 4
    assert log.seconds_of(6) == 6


def test_a_call_that_was_cut_off_is_told_by_its_blocks(log: ExtractionLog) -> None:
    log.begin()
    commit(log, 6, after=5.0, apart=2.0)  # and was killed before it could say what it took
    assert math.isnan(log.seconds_of(6))
    log.begin()
    assert log.seconds_of(6) == pytest.approx(12.0)
    log.end(seconds=7.0, blocks=1)
    log.begin()  # what was settled is not counted again
    assert log.seconds_of(6) == pytest.approx(5 * 2.0 + 7.0)


def test_blocks_from_before_tell_nothing(log: ExtractionLog) -> None:
    log.begin()
    commit(log, 6, after=-60.0, apart=1.0)
    log.begin()
    assert math.isnan(log.seconds_of(6))


def test_a_file_without_blocks_is_of_all_there_were(log: ExtractionLog) -> None:
    log.path.write_text('{"train": 12.0}')
    commit(log, 6, after=0.0, apart=0.0)
    assert log.seconds_of(6) == 12


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"train": "much"}'])
def test_a_damaged_file_is_named(log: ExtractionLog, text: str) -> None:
    log.path.write_text(text)
    with pytest.raises(InputError, match=r"seconds.json is damaged .*; remove it, and that is not"):
        log.begin()


def test_only_the_views_asked_for_are_charged(tiny: Any, log: ExtractionLog) -> None:
    shutil.copytree(tiny.train, log.store)  # base,hflip
    blocks = len(FeatureStore.open(log.store).blocks)
    log.path.write_text(json.dumps({"train": 12.0, "blocks": blocks}))
    train, val = tiny.extract_config(log.store, views="hflip"), tiny.extract_config(tiny.train)
    found = extract_stores(train, val, log)
    assert found.views == ("hflip",)
    assert found.seconds == pytest.approx(6.0)
    require_known(found, store=log.store)


def test_a_budget_needs_to_know_what_extraction_took(tmp_path: Path) -> None:
    unknown = Extracted(views=("base",), seconds=math.nan)
    with pytest.raises(
        InputError,
        match=r"--budget has to pay .*train.zarr took is not known: .*Remove it .* --epochs",
    ):
        require_known(unknown, store=tmp_path / "train.zarr")
