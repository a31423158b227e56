from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import CheckpointError, InputError
from cachedet.store.files.owner import Owner
from cachedet.structures import CategoryMap
from cachedet.training.metrics_file import MetricsLog, repair
from cachedet.training.run_folder import RunFolder, TrainingData, count_annotations

DATA = TrainingData(
    store="s3://bucket/train.zarr",
    fingerprint="f00",
    truth="aa",
    images=7,
    categories=CategoryMap(ids=(0, 90), names=("cat", "<b>dog</b>")),
    boxes={0: 12, 90: 0},
    validation="bb",
    validation_store="/before/val.zarr",
    run="/before/runs/1",
    relabelled=((5, "cc"),),
)


def test_crowds_do_not_count(annotations_of: Any) -> None:
    """By category id, so the order of classes may differ between training and scoring."""
    boxes = [[[0, 0, 9, 9, 0, 0], [0, 0, 9, 9, 2, 0]], [[0, 0, 9, 9, 2, 0], [0, 0, 9, 9, 2, 1]]]
    assert count_annotations(annotations_of([(10, 10)] * 2, boxes)) == {2: 1, 5: 0, 90: 2}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert TrainingData.read(folder) is None
    DATA.write(folder)
    assert TrainingData.read(folder) == DATA
    before = folder.training.read_bytes()
    DATA.write(folder)
    assert folder.training.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]


def test_the_validation_store_of_a_moved_run_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "1")
    folder.root.mkdir(parents=True)
    assert DATA.find_validation(folder) == "/before/val.zarr"  # as noted: it lies nowhere else
    (tmp_path / "val.zarr").mkdir()
    assert DATA.find_validation(folder) == str(tmp_path / "val.zarr")
    old = {name: value for name, value in DATA.to_json().items() if name != "run"}
    del old["validation_store"]
    folder.training.write_text(json.dumps(old))
    read = TrainingData.read(folder)
    assert read == replace(DATA, validation_store="", run="")
    assert read.find_validation(folder) == ""


def test_the_history_of_labels() -> None:
    now = replace(DATA, truth="dd", relabelled=(), boxes={0: 13, 90: 0})
    assert now.after(None, step=7) == now
    assert now.after(DATA, step=0) == now  # nothing was learnt before
    assert now.after(DATA, step=7).relabelled == ((5, "cc"), (7, "aa"))
    assert DATA.after(DATA, step=9) == DATA
    assert now.changes_since(DATA) == "cat: 12 boxes then, 13 now"
    assert DATA.changes_since(DATA).startswith("each class has as many boxes")
    assert now.changes_since(None) == "what it had before is not recorded"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"store": 1}', "\0\0", "[" * 99_999, None])
def test_damaged(tmp_path: Path, content: str | None) -> None:
    folder = RunFolder(tmp_path)
    whole = DATA.to_json()
    whole["classes"][1]["boxes"] = "many"
    folder.training.write_text(json.dumps(whole) if content is None else content)
    with pytest.raises(CheckpointError, match=r"training.json is damaged .* with --training"):
        TrainingData.read(folder)


def test_a_line_of_the_log_is_one_line_of_utf8(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log("reads caf\udce9\n\x1b[31m")
    folder.log("goes on")
    first, second = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert first.endswith(r" reads caf\xe9\n\x1b[31m")
    assert second.endswith(" goes on")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_second_process_is_refused_by_name(folder: RunFolder) -> None:
    """Whether it wants to begin or to go on; the first one's lock stays."""
    with folder.owned():
        for _ in range(2):
            match = rf"process {os.getpid()} on .* trains in .*run already; .* remove .*train.lock"
            with pytest.raises(InputError, match=match), folder.owned():
                pass
            assert Owner.parse(folder.lock.read_text()) == Owner.me()
    assert not folder.root.exists()  # it was made for the lock alone


def test_the_lock_of_a_dead_process_is_taken_over(folder: RunFolder, nursery: Any) -> None:
    """Also where it died of a kill in the middle of a training."""
    script = (
        "import os, signal\nfrom pathlib import Path\n"
        "from cachedet.training.run_folder import RunFolder\n"
        f"with RunFolder(Path({str(folder.root)!r})).owned():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with nursery.start(script) as process:
        assert process.wait() == -9
    assert folder.lock.exists()
    with folder.owned():
        assert Owner.parse(folder.lock.read_text()) == Owner.me()


def test_a_lock_of_another_machine_is_left_to_the_user(folder: RunFolder) -> None:
    folder.root.mkdir()
    folder.lock.write_text(Owner(host="elsewhere", pid=7, start=1).token)
    with pytest.raises(InputError, match="process 7 on elsewhere trains in"), folder.owned():
        pass
    assert folder.lock.exists()


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    match = "cannot make the run folder .*: Not a directory; choose another --run"
    with pytest.raises(CheckpointError, match=match), RunFolder(tmp_path / "file" / "run").owned():
        pass


def test_only_a_start_that_saved_nothing_is_begun_again(folder: RunFolder) -> None:
    RunFolder.create(folder.root)
    RunFolder.create(folder.root)  # killed before its first line
    folder.log("started; store fingerprint 48")
    folder.write_config("a: 1")
    RunFolder.create(folder.root)
    assert folder.is_begun()
    for extra in ("weights/best.pt", "weights/last.pt.damaged", "thesis.tex"):
        (folder.root / extra).write_text("")
        with pytest.raises(CheckpointError, match="is not empty; choose another --run$"):
            RunFolder.create(folder.root)
        assert not folder.is_begun()
        (folder.root / extra).unlink()
    folder.last.write_text("")
    with pytest.raises(CheckpointError, match="another --run, or continue it with --resume$"):
        RunFolder.create(folder.root)


@pytest.mark.parametrize(
    ("metrics", "is_begun"),
    [
        ("", True),
        ("step,epoch,lr\n1,0,0.1\n20,0,0.1\n4", True),  # killed in a row
        ("step,epoch,lr\n1,0,0.1\n70,1,0.1\n", False),  # it had a checkpoint once
        ("my notes\n", False),
    ],
)
def test_a_run_killed_in_its_first_epoch_is_begun_again(
    folder: RunFolder, metrics: str, is_begun: bool
) -> None:
    RunFolder.create(folder.root)
    folder.log("started; store fingerprint 48")
    folder.metrics.write_text(metrics)
    assert folder.is_begun() == folder.is_unused() == is_begun


LOG = "2026-11-28 16:00:00 started; store fingerprint 48\n"


@pytest.mark.parametrize("log", ["", LOG])
@pytest.mark.parametrize(
    "file", ["plots/training.png", "tensorboard/notes.txt", "weights/mine.tmp", "weights/a/b"]
)
def test_files_in_the_folders_of_a_start_are_somebodys(
    folder: RunFolder, file: str, log: str
) -> None:
    path = folder.root / file
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    if log:
        (folder.root / "log.txt").write_text(log)
    with pytest.raises(CheckpointError, match="exists already and is not empty"):
        RunFolder.create(folder.root)
    path.unlink()
    for name in ("plots", "weights", "log.txt", "config.yaml"):  # a link leads elsewhere
        (folder.root / name).unlink() if (folder.root / name).is_file() else None
        if not (folder.root / name).exists():
            (folder.root / name).symlink_to(folder.root.parent)
            assert not folder.is_unused()
            (folder.root / name).unlink()


@pytest.mark.parametrize(
    "log",
    [
        "Monday: the run stopped before the first step\n",
        "my notes\n" + LOG,
        "my notes\n2026-11-28 16:00:00 stopped before the first step: SIGTERM\n",
    ],
)
def test_a_log_is_ours_by_its_first_line(folder: RunFolder, log: str) -> None:
    folder.root.mkdir()
    (folder.root / "log.txt").write_text(log)
    assert not folder.is_unused()
    (folder.root / "log.txt").write_text(LOG)
    (folder.root / "training.json").write_text('{"mine": 1}')
    assert not folder.is_unused()
    DATA.write(folder)
    assert folder.is_begun()


def test_links_are_not_followed_to_append(folder: RunFolder) -> None:
    folder.root.mkdir()
    mine = folder.root.parent / "mine.txt"
    mine.write_text("mine")
    for name in ("log.txt", "metrics.csv.damaged"):
        (folder.root / name).symlink_to(mine)
    with pytest.raises(CheckpointError, match=r"log.txt: it is a link, which is not followed; re"):
        folder.log("line")
    folder.metrics.write_text("no header\n")
    with pytest.raises(CheckpointError, match=r"metrics.csv: it is a link, which is not follow"):
        repair(folder.metrics, until_step=1, until_epoch=1)
    folder.metrics.unlink()
    table = folder.root.parent / "table.csv"
    table.write_text("step,epoch\n")
    folder.metrics.symlink_to(table)
    with pytest.raises(CheckpointError, match=r"metrics.csv: it is a link, which is not follow"):
        MetricsLog(folder.metrics, ["step", "epoch"])
    assert mine.read_text() == "mine"


def test_a_line_that_was_cut_off_is_ended(folder: RunFolder) -> None:
    folder.root.mkdir()
    (folder.root / "log.txt").write_bytes(b"2026-01-01 10:00:00 hal\xff\x00")
    folder.log("whole")
    lines = (folder.root / "log.txt").read_bytes().split(b"\n")
    assert lines[0].endswith(b"hal\xff\x00")
    assert lines[1].endswith(b" whole")


def test_a_folder_that_cannot_be_read(folder: RunFolder) -> None:
    """A file in its place, and a loop of links."""
    folder.root.write_text("")
    with pytest.raises(CheckpointError, match="cannot read .*run: Not a directory; nothing was"):
        folder.is_unused()
    folder.root.unlink()
    folder.root.symlink_to(folder.root)
    with pytest.raises(CheckpointError, match="cannot read .*run: .*; nothing was changed"):
        folder.is_unused()


def test_a_log_that_cannot_be_written(folder: RunFolder) -> None:
    (folder.root / "log.txt").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"cannot write .*log.txt: Is a directory; the stat"):
        folder.log("line")


def test_a_lock_that_is_empty_or_of_somebody_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock.write_text("my notes")
    with pytest.raises(InputError, match="is no lock of cachedet's; move it away"), folder.owned():
        pass
    assert folder.lock.read_text() == "my notes"
    folder.lock.write_text("")  # just made: its owner may be about to write
    with pytest.raises(InputError, match=r"somebody trains in .* already"), folder.owned():
        pass
    os.utime(folder.lock, (1, 1))
    with folder.owned():
        assert folder.lock.read_text()
    assert not folder.lock.exists()
