"""What the command line may ask a comparison for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachedet.commands.comparisons import (
    load_heads,
    parse_batch_norm,
    parse_modes,
    parse_seconds,
    parse_seeds,
)
from cachedet.errors import ConfigError, InputError


def test_modes() -> None:
    assert parse_modes("tuned, cached") == ("tuned", "cached")
    with pytest.raises(InputError, match="unknown mode 'tunned'; nearest: 'tuned'; known"):
        parse_modes("cached,tunned")
    assert parse_modes("cached,partial", freeze_at="C4,C3") == (
        "cached",
        "partial_C4",
        "partial_C3",
    )
    with pytest.raises(InputError, match="--freeze-at expects levels such as C4 or C4,C3, got no"):
        parse_modes("partial", freeze_at="")


def test_seeds() -> None:
    assert parse_seeds("0, 1,7") == (0, 1, 7)
    for text in ("", "-1", "1.5", "a", "²"):
        with pytest.raises(InputError, match="--seeds expects whole numbers from 0"):
            parse_seeds(text)
    assert parse_seeds(str(2**63 - 1)) == (2**63 - 1,)
    for seed in (str(2**63), "9" * 5000):
        with pytest.raises(InputError, match=r"--seeds expects numbers up to .*, got 9\d+; give"):
            parse_seeds(f"0,{seed}")


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("90s", 90), ("1.5h", 5400), ("600", 600), (" 2 M", 120)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "0s", "5d", "nan", "1e3", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--budget expects a time such as 10m"):
        parse_seconds(text)


def test_batch_norms() -> None:
    assert parse_batch_norm("trained") == "trained"
    with pytest.raises(InputError, match="--batch-norm expects frozen or trained, got 'free'"):
        parse_batch_norm("free")


def test_heads_are_called_by_their_files(tmp_path: Path) -> None:
    mine, other = tmp_path / "one.yaml", tmp_path / "other" / "one.yaml"
    other.parent.mkdir()
    for path in (mine, other):
        path.write_text("seed: 3")
    heads = load_heads([str(mine), "retinanet_fpn_tiny"], ["schedule.epochs=2"])
    assert [(name, config.seed) for name, config in heads.items()] == [
        ("one", 3), ("retinanet_fpn_tiny", 0),
    ]  # fmt: skip
    assert all(config.schedule.epochs == 2 for config in heads.values())
    with pytest.raises(InputError, match="two configs are named one: .* rename one"):
        load_heads([str(mine), str(other)], [])
    with pytest.raises(ConfigError, match="nearest: 'retinanet_fpn_tiny'"):
        load_heads(["retinanet_fpn_tinny"], [])
