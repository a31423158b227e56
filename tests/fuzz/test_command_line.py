"""Whatever is given: no traceback, nothing of anybody's harmed, no more than 2 GB, an end in time.

`make test` runs some seeds of each kind, `make fuzz` others for five minutes. One again:

    pytest tests/fuzz -k images --fuzz-seed 17
"""

from __future__ import annotations

from typing import Any

import pytest

CASES = 4  # of each kind, in `make test`
KINDS = ("annotations", "results", "configs", "store", "images", "runs", "paths")
MOST_SHOWN = 5


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_harms(kind: str, fuzz: Any, pytestconfig: pytest.Config) -> None:
    faults: list[str] = []
    for number in fuzz.cases.seeds_of(pytestconfig, usual=CASES, share=1 / len(KINDS)):
        fault = fuzz.check(kind, number)
        faults += [] if fault is None else [fault]
    assert not faults, f"{len(faults)} faults\n\n" + "\n\n".join(faults[:MOST_SHOWN])


def test_all_kinds_are_tried(fuzz: Any) -> None:
    assert set(fuzz.cases.KINDS) == set(KINDS)
    assert len(fuzz.cases.ENCODINGS) >= 24
