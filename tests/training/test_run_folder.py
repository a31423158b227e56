from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachedet.errors import CheckpointError
from cachedet.structures import CategoryMap
from cachedet.training.run_folder import RunFolder, TrainingData, count_annotations

DATA = TrainingData(
    store="s3://bucket/train.zarr",
    fingerprint="f00",
    images=7,
    categories=CategoryMap(ids=(0, 90), names=("cat", "<b>dog</b>")),
    boxes={0: 12, 90: 0},
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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"store": 1}', None])
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
