"""The folder of a comparison: one comparison, one process at a time, results that are kept."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.compare import extract_stores
from cachedet.comparison.folder import ComparisonFolder, Extracted, ExtractionLog, require_known
from cachedet.comparison.results import CellKey, CellResult, ClassFigure
from cachedet.errors import InputError
from cachedet.extract import open_dataset
from cachedet.store.files.durable import temporary_path
from cachedet.store.files.owner import Owner
from cachedet.store.reader import FeatureStore

KEY = CellKey(heads="small", mode="cached", seed=0)


def settings(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "epochs": 3,
        "train": {"image_size": 384},
        "heads": {"small": {"a": 1}},
    }
    return values | changes


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    return ComparisonFolder(tmp_path / "out")


def test_the_same_settings_go_on_and_heads_may_be_added(folder: ComparisonFolder) -> None:
    with folder.owned():
        folder.require_same(settings())
        folder.require_same(settings())
        folder.require_same(settings(heads={"large": {"a": 2}}))
    kept = json.loads((folder.root / "settings.json").read_text())
    assert kept == settings(heads={"small": {"a": 1}, "large": {"a": 2}})


@pytest.mark.parametrize("is_done", [True, False])
def test_heads_with_a_cell_that_is_done_or_under_way_stay(
    folder: ComparisonFolder, is_done: bool
) -> None:
    with folder.owned():
        folder.require_same(settings())
        folder.cell(KEY).mkdir(parents=True)
        if is_done:
            CellResult(key=KEY).write(folder.cell(KEY) / "cell.json")
        failed = replace(KEY, seed=1)
        folder.cell(failed).mkdir()
        CellResult(key=failed, error="no memory").write(folder.cell(failed) / "cell.json")
        message = r"heads.small.a was 1, is 5. .* a changed config another name"
        with pytest.raises(InputError, match=message):
            folder.require_same(settings(heads={"small": {"a": 5}}))
        assert folder.cell(failed).exists()


def test_heads_that_only_failed_may_be_changed(folder: ComparisonFolder) -> None:
    """What they left is kept, but nothing goes on from it."""
    other = replace(KEY, heads="small-er")
    with folder.owned():
        folder.require_same(settings(heads={"small": {"a": 1}, "small-er": {"a": 3}}))
        for key in (KEY, other):
            folder.cell(key).mkdir(parents=True)
            CellResult(key=key, error="no memory").write(folder.cell(key) / "cell.json")
        for number in range(2):
            folder.require_same(settings(heads={"small": {"a": 5 + number}}))
            assert [cell.key for cell in folder.results()] == [other]
            folder.cell(KEY).mkdir()
            CellResult(key=KEY, error="again").write(folder.cell(KEY) / "cell.json")
        kept = sorted(path.name for path in (folder.root / "failed").iterdir())
        assert kept == ["0-small-cached-0", "1-small-cached-0"]
        folder.require_same(settings(heads={"small": {"a": 6}}))  # the same: it is tried again
        assert folder.cell(KEY).exists()


def test_other_settings_are_refused_by_name(folder: ComparisonFolder) -> None:
    with folder.owned():
        folder.require_same(settings())
        with pytest.raises(InputError, match="another comparison: train.image_size was 384, is 9"):
            folder.require_same(settings(train={"image_size": 9}))


def test_files_may_be_moved_but_not_replaced_by_other_weights(folder: ComparisonFolder) -> None:
    before = {"images": "photos", "annotations": "a.json", "weights": "w.pth"}
    with folder.owned():
        folder.require_same(settings(train=before, val=before))
        moved = {"images": "/data/photos", "annotations": "/a.json", "weights": "/w.pth"}
        folder.require_same(settings(train=moved, val=moved))
        with pytest.raises(InputError, match="train.weights was a file, is none. Give the same"):
            folder.require_same(settings(train=moved | {"weights": "none"}, val=moved))


def test_settings_that_were_cut_off_are_no_other_thing(folder: ComparisonFolder) -> None:
    folder.root.mkdir()
    temporary_path(folder.root / "settings.json").write_text("{")
    with folder.owned():
        folder.require_same(settings())
    assert json.loads((folder.root / "settings.json").read_text()) == settings()


def test_a_folder_with_other_things_is_refused(folder: ComparisonFolder) -> None:
    folder.root.mkdir()
    (folder.root / "thesis.tex").write_text("")
    with folder.owned(), pytest.raises(InputError, match=r"other things .*\(thesis.tex\)"):
        folder.require_same(settings())
    assert (folder.root / "thesis.tex").exists()


def test_damaged_settings_are_named(folder: ComparisonFolder) -> None:
    with folder.owned():
        folder.require_same(settings())
        (folder.root / "settings.json").write_text("{")
        with pytest.raises(InputError, match="settings.json is damaged"):
            folder.require_same(settings())


@pytest.mark.parametrize(
    "text", ['{"theme": "dark"}', "[]", "null", '{"heads": []}', '{"heads": {"a": 1}, "train": {}}']
)
def test_settings_of_something_else(folder: ComparisonFolder, text: str) -> None:
    folder.root.mkdir()
    (folder.root / "settings.json").write_text(text)
    match = r"out holds other things than a comparison: settings.json is not of cachedet's; choose"
    with pytest.raises(InputError, match=match), folder.undone_if_refused(), folder.owned():
        raise AssertionError
    assert [path.name for path in folder.root.iterdir()] == ["settings.json"]
    assert (folder.root / "settings.json").read_text() == text


def test_two_comparisons_in_one_folder(folder: ComparisonFolder) -> None:
    already = pytest.raises(InputError, match=f"process {os.getpid()} on .* already")
    with folder.owned(), already, folder.owned():
        pass
    with folder.owned():  # the first one has left
        pass


@pytest.fixture
def dead(nursery: Any) -> str:
    """The token of a process that has ended."""
    script = "from cachedet.store.files.owner import Owner; print(Owner.me().token)"
    with nursery.start(script) as process:
        token: str = process.communicate()[0].strip()
    return token


def test_the_lock_of_a_dead_process_is_taken_over(folder: ComparisonFolder, dead: str) -> None:
    folder.root.mkdir()
    (folder.root / "compare.lock").write_text(dead)
    with folder.owned():
        assert (folder.root / "compare.lock").read_text() == Owner.me().token


def test_one_of_many_takes_over_a_dead_lock(folder: ComparisonFolder, dead: str) -> None:
    """Each clears the lock it has read, which by then may be that of a faster one."""
    folder.root.mkdir()
    start, inside = threading.Barrier(8), threading.Semaphore()

    def is_alone(_: int) -> bool:
        start.wait()
        try:
            with folder.owned():
                if not inside.acquire(blocking=False):
                    return False
                time.sleep(0.05)
                inside.release()
        except InputError:
            pass
        return True

    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            (folder.root / "compare.lock").write_text(dead.strip())
            assert all(threads.map(is_alone, range(8)))


def test_a_lock_that_says_nothing_is_left_to_the_user(folder: ComparisonFolder) -> None:
    folder.root.mkdir()
    (folder.root / "compare.lock").write_text("")
    with (
        pytest.raises(InputError, match="somebody compares in .* remove .*compare.lock"),
        folder.owned(),
    ):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot make the folder .* choose another --out"),
        ComparisonFolder(tmp_path / "file" / "out").owned(),
    ):
        pass


def test_failed_cells_are_tried_again(folder: ComparisonFolder) -> None:
    path = folder.cell(KEY)
    path.mkdir(parents=True)
    CellResult(key=KEY, error="no memory").write(path / "cell.json")
    assert folder.result_of(KEY) is None
    assert [cell.error for cell in folder.results()] == ["no memory"]
    done = CellResult(key=KEY, ap=0.5, classes=(ClassFigure(name="a", boxes=3, ap=0.5),))
    done.write(path / "cell.json")
    result = folder.result_of(KEY)
    assert result.to_json() == done.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "should hold an object, got list"),
        ("{}", "is not the result of a cell"),
        (
            json.dumps({"key": {"heads": "a", "mode": "b", "seed": 0}, "classes": [], "bins": []}),
            "is not the result of a cell .*mode 'b'",
        ),
    ],
)
def test_damaged_results_are_named(folder: ComparisonFolder, text: str, message: str) -> None:
    path = folder.cell(KEY)
    path.mkdir(parents=True)
    (path / "cell.json").write_text(text)
    with pytest.raises(InputError, match=message):
        folder.results()


SECOND = 10**9


@pytest.fixture
def log(tmp_path: Path) -> ExtractionLog:
    return ExtractionLog(path=tmp_path / "seconds.json", store=tmp_path / "train.zarr")


def commit(log: ExtractionLog, count: int, *, after: float, apart: float) -> None:
    """As a call that was begun leaves commit records, some seconds after that."""
    begun = log.path.stat().st_mtime_ns
    for number in range(count):
        path = log.store / "commits" / f"base-b{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        at = begun + round((after + number * apart) * SECOND)
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


def test_a_call_that_was_cut_off_is_timed_by_its_blocks(log: ExtractionLog) -> None:
    log.begin()
    commit(log, 6, after=5.0, apart=2.0)  # and was killed before it could say what it took
    assert math.isnan(log.seconds_of(6))
    log.begin()
    assert log.seconds_of(6) == pytest.approx(12.0)
    log.end(seconds=7.0, blocks=1)
    log.begin()  # what was settled is not counted again
    assert log.seconds_of(6) == pytest.approx(5 * 2.0 + 7.0)


def test_blocks_from_before_do_not_count(log: ExtractionLog) -> None:
    log.begin()
    commit(log, 6, after=-60.0, apart=1.0)
    log.begin()
    assert math.isnan(log.seconds_of(6))


@pytest.mark.parametrize("text", ["{", "[]", '{"train": 12.0}', '{"train": "much"}'])
def test_a_damaged_file_is_named(log: ExtractionLog, text: str) -> None:
    log.path.write_text(text)
    with pytest.raises(InputError, match=r"seconds.json is damaged .*; remove it, and that is not"):
        log.begin()


def test_only_the_views_asked_for_are_charged(tiny: Any, folder: ComparisonFolder) -> None:
    log = folder.extraction
    shutil.copytree(tiny.train, folder.train)  # base,hflip
    blocks = len(FeatureStore.open(log.store).blocks)
    log.path.write_text(json.dumps({"train": 12.0, "blocks": blocks, "is_open": False}))
    train, val = tiny.extract_config(log.store, views="hflip"), tiny.extract_config(tiny.train)
    extracted = extract_stores((train, open_dataset(train)), (val, open_dataset(val)), folder)
    assert extracted.views == ("hflip",)
    assert extracted.seconds == pytest.approx(6.0)
    require_known(extracted, store=log.store, is_own=True)


def test_a_budget_needs_to_know_what_extraction_took(tmp_path: Path) -> None:
    unknown = Extracted(views=("base",), seconds=math.nan)
    with pytest.raises(
        InputError,
        match=r"--budget has to pay .*train.zarr took is not known: .*Remove it .* --epochs",
    ):
        require_known(unknown, store=tmp_path / "train.zarr", is_own=True)
    with pytest.raises(
        InputError, match="is not known: it was .* comparison. Compare with --epochs, or leave --tr"
    ):
        require_known(unknown, store=tmp_path / "train.zarr", is_own=False)


class _RefusedError(Exception):
    pass


def tree(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


@pytest.mark.parametrize("out", ["out", "a/b/out", "begun", "."])
def test_a_comparison_that_is_refused_leaves_nothing_behind(tmp_path: Path, out: str) -> None:
    (tmp_path / "there" / "begun" / "features").mkdir(parents=True)
    before = tree(tmp_path)
    folder = ComparisonFolder(tmp_path / "there" / out if out != "." else tmp_path / "here")
    if out == ".":
        folder.root.mkdir()
        before = tree(tmp_path)

    def refuse() -> None:
        with folder.undone_if_refused(), folder.owned():
            folder.require_same(settings())
            folder.extraction.begin()
            raise _RefusedError

    for _ in range(2):
        with pytest.raises(_RefusedError):
            refuse()
    left = {path for path in tree(tmp_path) if "leases" not in path}
    assert left == before.keys()


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for out, message in (
        (photos, "holds other things than a comparison"),
        (
            photos / "a.jpg",
            "cannot make the folder .*a.jpg: is a file, not a folder; choose another --out",
        ),
        (tmp_path / "dangling", "dangling: is a link to nowhere, which is not there"),
    ):
        folder = ComparisonFolder(out)
        with (
            pytest.raises(InputError, match=message),
            folder.undone_if_refused(),
            folder.owned(),
        ):
            pass
    assert [path.name for path in photos.iterdir()] == ["a.jpg"]


def test_cells_on_given_stores_are_not_lost(folder: ComparisonFolder) -> None:
    """Then there are no features of its own in the folder."""

    def train() -> None:
        with folder.undone_if_refused(), folder.owned():
            folder.require_same(settings())
            (folder.root / "cells" / "a-cached-0").mkdir(parents=True)
            raise _RefusedError

    with pytest.raises(_RefusedError):
        train()
    assert (folder.root / "settings.json").exists()


def test_a_comparison_that_goes_on_loses_nothing(folder: ComparisonFolder) -> None:
    with folder.undone_if_refused(), folder.owned():
        folder.require_same(settings())
    before = tree(folder.root)
    with pytest.raises(_RefusedError), folder.undone_if_refused(), folder.owned():
        raise _RefusedError
    assert tree(folder.root) == before
