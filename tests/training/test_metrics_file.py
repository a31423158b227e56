"""metrics.csv, whole and as a crash leaves it."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cachedet.config.run import load_train_config
from cachedet.errors import CheckpointError
from cachedet.train import train
from cachedet.training.metrics_file import MetricsLog, read_table

COLUMNS = ("step", "epoch", "loss", "val_ap")


def test_a_resumed_log_has_no_row_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with closing(MetricsLog(path, COLUMNS)) as log:
        for step in (1, 20, 40):
            log.append({"step": step, "epoch": 0, "loss": step / 2})
    with closing(MetricsLog(path, COLUMNS, keep_until_step=20)) as log:
        log.append({"step": 40, "epoch": 0, "loss": 9.5})
        assert path.read_text().splitlines() == [
            "step,epoch,loss,val_ap", "1,0,0.5,", "20,0,10.0,", "40,0,9.5,",
        ]  # fmt: skip


def test_a_validation_that_will_be_made_again_is_dropped(tmp_path: Path) -> None:
    """Killed between the row of a validation and the checkpoint after it."""
    path = tmp_path / "metrics.csv"
    with closing(MetricsLog(path, COLUMNS)) as log:
        log.append({"step": 5, "epoch": 1, "val_ap": 0.25})
        log.append({"step": 10, "epoch": 2, "val_ap": 0.5})
    with closing(MetricsLog(path, COLUMNS, keep_until_step=10, keep_until_epoch=1)):
        assert path.read_text().splitlines()[1:] == ["5,1,,0.25"]


def test_unknown_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with closing(MetricsLog(path, COLUMNS)) as log, pytest.raises(ValueError, match="not in field"):
        log.append({"step": 1, "accuracy": 2})
    path.write_text("step,epoch\n1,0\n")
    with closing(MetricsLog(path, COLUMNS, keep_until_step=9)) as log:
        assert "has columns step, epoch, not step, epoch, loss, val_ap; set aside as" in log.note
    assert path.read_text().splitlines() == ["step,epoch,loss,val_ap"]
    assert path.with_name("metrics.csv.damaged").read_text() == "step,epoch\n1,0\n\n"


GOOD = b"step,epoch,loss,val_ap\r\n1,0,2.5,\r\n20,1,nan,0.25\r\n"
HEADER, FIRST, SECOND = GOOD.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("content", "steps", "aside"),
    [
        (b"", [], None),
        (GOOD, [1, 20], None),
        (GOOD.replace(b"\r", b""), [1, 20], None),
        (GOOD + bytes(200), [1, 20], bytes(200)),
        (GOOD + b"12,", [1, 20], b"12,"),
        (GOOD[:-4], [1], b"20,1,nan,0."),  # a number that was cut off is another number
        (HEADER + bytes(30) + b"\n" + SECOND, [20], bytes(30)),
        (HEADER + b"\xff\xfe,0,1,\n" + FIRST, [1], b"\xff\xfe,0,1,"),
        (HEADER + b'"1,0,2.5,\n' + FIRST, [1], b'"1,0,2.5,'),
        (HEADER + b"1,0,2.5,,7\n-1,0,2,\n1.5,0,2,\n1,0,two,\n", [], b"1,0,2.5,,7\n-1,"),
        (HEADER + b"9" * 5000 + b",0,1,\n", [], b"999"),
        (bytes(100), [], bytes(100)),
        ("\ufeff".encode() + GOOD, [], b"\xef\xbb\xbfstep"),
        (GOOD.decode().encode("utf-16"), [], b"\xff\xfe"),
        (b"loss,val_ap\n1,2\n", [], b"loss,val_ap"),
        (b"step,step,epoch\n1,1,0\n", [], b"step,step"),
    ],
)  # fmt: skip
def test_whatever_a_crash_left(
    tmp_path: Path, content: bytes, steps: list[int], aside: bytes | None
) -> None:
    """Whole rows stay, the rest is set aside, and the file is one that rows are added to."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with closing(MetricsLog(path, COLUMNS, keep_until_step=99, keep_until_epoch=9)) as log:
        log.append({"step": 100, "epoch": 2, "loss": 1.0})
    table = read_table(path)
    assert table.columns == COLUMNS
    assert [int(row["step"]) for row in table.rows] == [*steps, 100]
    assert table.damaged == []
    damaged = path.with_name("metrics.csv.damaged")
    assert damaged.exists() == (aside is not None) == bool(log.note)
    if aside is not None:
        assert damaged.read_bytes().startswith(aside)


def test_what_was_set_aside_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        MetricsLog(path, COLUMNS).close()
    assert path.with_name("metrics.csv.damaged").read_bytes() == b"one\ntwo\n"


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*metrics.csv: Is a directory; the"):
        MetricsLog(path, COLUMNS)


CHANGES = (
    "detector.neck.channels=8", "detector.levels=[C4,C5]", "detector.neck.num_levels=2",
    "schedule.epochs=2",
)  # fmt: skip


@pytest.fixture(scope="module", params=[3, 6])
def stopped(request: Any, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run: Path = tmp_path_factory.mktemp("stopped") / "run"
    changes = [*CHANGES, f"max_steps={request.param}"]
    train("retinanet_fpn_tiny", **tiny.stores, run=run, overrides=changes)
    return run


@pytest.mark.parametrize("content", [None, b"", bytes(300), b"tail", b"a,b\n1,2\n"])
def test_damage_never_keeps_a_run_from_going_on(
    tiny: Any, tmp_path: Path, content: bytes | None, stopped: Path
) -> None:
    """With steps to come, and at the end of a run, where nothing is added."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    path = run / "metrics.csv"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + bytes(99) if content == b"tail" else content)
    before = load_train_config(run / "config.yaml")
    for name in ("training.json", "plots/training.png", "config.yaml"):
        (run / name).write_bytes(content or b"torn\x00")
    with (run / "log.txt").open("ab") as log:
        log.write(b"2026-99-99 10:00:00 \xff\x00 torn")
    report = train("retinanet_fpn_tiny", **tiny.stores, run=run, overrides=CHANGES, resume=True)
    assert report.steps >= 6
    assert (run / "metrics.csv.damaged").exists() == bool(content)
    said = "set aside as metrics.csv.damaged" in (run / "log.txt").read_text(errors="replace")
    assert said == bool(content)
    assert read_table(path).damaged == []
    assert load_train_config(run / "config.yaml") == before
    assert (run / "config.yaml.damaged").exists()
