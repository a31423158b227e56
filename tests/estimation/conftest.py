"""Figures by hand that every formula is tested with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cachedet.estimation.disk import DiskRates
from cachedet.estimation.measured import CodecFigures, Cut, Measured, Memory, Phase, Training


def make_measured(**changes: Any) -> Measured:
    """100 images in 2 views, 2 GB as int8; B = 30 s, H = 18 s an epoch."""
    memory = Memory(resting=0.7e9, working=0.3e9)
    measured = Measured(
        images=100,
        views=("base", "hflip"),
        showings=100,
        read_share=1.0,
        epoch_share=0.5,
        epochs=20,
        codec="int8",
        codecs={
            "int8": CodecFigures(nbytes=2e9, unpacked=2e9, encode_seconds=10.0),
            "fp16": CodecFigures(nbytes=4e9, unpacked=4e9, encode_seconds=5.0),
            "int4": CodecFigures(nbytes=1e9, unpacked=1e9, encode_seconds=30.0),
        },
        scan=Phase(seconds=5.0, stages={"decode": 5.0}),
        fit=Phase(seconds=0.0, stages={"backbone": 0.0}),
        extract=Phase(
            seconds=240.0, stages={"decode": 40.0, "backbone": 200.0, "encode": 20.0, "write": 10.0}
        ),
        start=2.0,
        trainings={
            "cached": Training(
                phase=Phase(seconds=20.0, stages={"heads": 18.0, "read": 4.0}), memory=memory
            ),
            "live": Training(
                phase=Phase(seconds=50.0, stages={"backbone and heads": 48.0, "decode": 10.0}),
                memory=memory,
            ),
            "tuned": Training(
                phase=Phase(seconds=110.0, stages={"backbone and heads": 108.0, "decode": 10.0}),
                memory=Memory(resting=0.7e9, working=1.3e9),
            ),
        },
        backbone_seconds=30.0,
        heads_seconds=18.0,
        backbone_flops=3e13,
        disk=DiskRates(write=1e8, read=5e8, is_cold=True),
        free_disk=5e9,
        free_ram=8e9,
        free_device=None,
        residency="auto",
        cuts={},
        uncut="it is made of one piece",
        freeze_at=None,
        stored_to=None,
    )
    return replace(measured, **changes)


def make_measured_cut(**changes: Any) -> Measured:
    """The same, which can be cut at C4: 4/5 of B lie below it, and 4/5 of the bytes."""
    whole = make_measured()
    cut = Cut(
        trunk=0.8,
        codecs={name: figures.times(0.8) for name, figures in whole.codecs.items()},
        read_share=0.8,
        epoch_share=0.4,
    )
    partial = Training(
        phase=Phase(seconds=26.0, stages={"stages and heads": 24.0, "read": 4.0}),
        memory=Memory(resting=0.7e9, working=0.5e9),
    )
    trainings = {**whole.trainings, "partial_C4": partial}
    return replace(whole, **{"trainings": trainings, "cuts": {"C4": cut}, "uncut": "", **changes})


@pytest.fixture
def measured_cut_of() -> Callable[..., Measured]:
    """The function `make_measured_cut`."""
    return make_measured_cut


@pytest.fixture
def measured_of() -> Callable[..., Measured]:
    """The function `make_measured`; tests cannot import a conftest."""
    return make_measured
