"""Several real processes train as one would: the weights after every step, and how it can fail."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from cachedet.config.detector import DetectorConfig
from cachedet.config.schedule import LearningRate
from cachedet.data.masks import encode_bitmap
from cachedet.detector.build import build_detector
from cachedet.distributed.collective import rank, single_process, world_size
from cachedet.distributed.data_parallel import (
    Launch,
    describe_ranks,
    find_launch,
    joined_ranks,
    of_ranks,
    sum_gradients,
)
from cachedet.errors import ConfigError, NonFiniteLossError
from cachedet.structures import Batch, FeatureSpec, LevelSpec, TargetMasks, Targets
from cachedet.training.trainer import Trainer

SPEC = FeatureSpec(
    (LevelSpec(name="C3", channels=4, stride=8), LevelSpec(name="C4", channels=6, stride=16))
)
SIZE = 64, 96
# images of each batch of each step: even and uneven shares, and fewer images than processes
STEPS = ((5,), (4,), (3, 1), (6, 2), (1,))
_TWO_STAGE = {
    "rpn": {"size_factor": 3.0, "samples": 32, "train_post_nms": 40},
    "roi_head": {"samples": 16, "num_convs": 1, "conv_channels": 8, "fc_channels": 24},
}
DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet group": {"kind": "retinanet", "num_convs": 1, "norm": "group"},
    "retinanet batch": {"kind": "retinanet", "num_convs": 1, "norm": "batch"},
    "cascade batch": {"kind": "cascade_rcnn", "norm": "batch", **_TWO_STAGE},
    "faster with masks": {
        "kind": "faster_rcnn",
        "norm": "group",
        "mask_head": {"resolution": 7, "num_convs": 1, "channels": 8},
        **_TWO_STAGE,
    },
}


def make_image(generator: torch.Generator, count: int) -> tuple[dict[str, Tensor], Targets]:
    """Features and `count` boxes with masks."""
    features = {
        level.name: torch.randn(
            level.channels, SIZE[0] // level.stride, SIZE[1] // level.stride, generator=generator
        )
        for level in SPEC
    }
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([60.0, 30.0])
    extent = torch.rand(count, 2, generator=generator) * 26 + 8
    bitmap = torch.rand(*SIZE, generator=generator).numpy() < 0.6
    targets = Targets(
        image_id=1,
        size_hw=SIZE,
        boxes=torch.cat([corner, corner + extent], dim=1),
        labels=torch.randint(3, (count,), generator=generator),
        crowd=torch.zeros(count, dtype=torch.bool),
        masks=TargetMasks(
            codes=(encode_bitmap(bitmap),) * count,
            image_hw=SIZE,
            scale_xy=(1.0, 1.0),
            origin_xy=(0.0, 0.0),
        ),
    )
    return features, targets


def make_share(
    images: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> Batch:
    """This rank's share of a global batch, as the loader deals it; images 0, 1, 2... boxes."""
    made = [make_image(generator, (3 * n) % 7) for n in range(images)]
    mine = made if images < world_size() else made[rank() :: world_size()]
    return Batch(
        features={
            name: torch.stack([features[name] for features, _ in mine]).to(dtype)
            for name in SPEC.names
        },
        targets=[replace(targets, boxes=targets.boxes.to(dtype)) for _, targets in mine],
        others=images - len(mine),
    )


def make_trainer_of(config: dict[str, Any], *, clip_norm: float = 5.0) -> Trainer:
    adapter: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
    values = {"neck": {"kind": "fpn", "channels": 16, "num_levels": 3}, **config}
    torch.manual_seed(3)
    detector = build_detector(adapter.validate_python(values), spec=SPEC, num_classes=3)
    return Trainer(
        detector=detector,
        optimizer=torch.optim.SGD(
            [{"params": detector.parameters(), "lr_scale": 1.0}], lr=0.02, momentum=0.9
        ),
        learning_rate=LearningRate(
            peak=0.02, total_steps=10, warmup_steps=0, kind="cosine", drops=(), warmup_from=0.0
        ),
        step_images=6,
        clip_norm=clip_norm,
        device=torch.device("cpu"),
    )


def train_steps(case: tuple[dict[str, Any], torch.dtype]) -> dict[str, Any]:
    config, dtype = case
    trainer = make_trainer_of(config)
    trainer.detector.to(dtype)
    generator = torch.Generator().manual_seed(11)
    rows, states = [], []
    for batches in STEPS:
        for images in batches:
            trainer.add_gradients(make_share(images, generator, dtype=dtype))
        rows.append(trainer.finish_step())
        states.append({k: v.clone() for k, v in trainer.detector.state_dict().items()})
    return {"rows": rows, "states": states, "random": torch.get_rng_state()}


def distances(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Of each tensor, relative to its norm; of those near zero to a thousandth of all."""
    norms = {key: float(value.double().norm()) for key, value in expected.items()}
    least = 1e-3 * math.hypot(*norms.values())
    return {
        key: float((state[key].double() - expected[key].double()).norm()) / max(norms[key], least)
        for key in state
    }


@pytest.mark.parametrize(
    ("dtype", "most"),
    [
        pytest.param(torch.float64, 1e-10, id="float64"),
        pytest.param(torch.float32, 1e-6, id="float32", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("name", DETECTORS)
def test_ranks_train_as_one_process_does(
    ranks: Any, name: str, dtype: torch.dtype, most: float
) -> None:
    """Weights, losses and random state after every step; the ranks among each other bit-equal."""
    case = DETECTORS[name], dtype
    one = ranks.run(train_steps, case, world=1)[0]
    for world in (2, 4):
        states = ranks.run(train_steps, case, world=world)
        for other in states[1:]:
            assert other["rows"] == states[0]["rows"]
            assert torch.equal(other["random"], states[0]["random"])
            for state, first in zip(other["states"], states[0]["states"], strict=True):
                assert all(torch.equal(state[key], first[key]) for key in state)
        assert torch.equal(states[0]["random"], one["random"])
        for step, expected in enumerate(one["states"]):
            apart = distances(states[0]["states"][step], expected)
            worst = max(apart, key=lambda key: apart[key])
            assert apart[worst] <= most, (world, step, worst, apart[worst])
        for row, wanted in zip(states[0]["rows"], one["rows"], strict=True):
            assert row == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def meet_a_nan(bad_rank: int) -> tuple[str, bool]:
    """A NaN in the features of one rank, in the second batch of a step; whether weights moved."""
    trainer = make_trainer_of(DETECTORS["retinanet batch"])
    before = {key: value.clone() for key, value in trainer.detector.named_parameters()}
    generator = torch.Generator().manual_seed(11)
    trainer.add_gradients(make_share(5, generator))
    batch = make_share(5, generator)
    if rank() == bad_rank:
        batch.features["C4"][0, 0, 0, 0] = math.nan
    try:
        trainer.add_gradients(batch)
    except NonFiniteLossError as error:
        after = dict(trainer.detector.named_parameters())
        return str(error), any(not torch.equal(after[key], before[key]) for key in before)
    return "", False


def test_a_nan_on_one_rank_stops_all_with_its_message(ranks: Any) -> None:
    """BatchNorm carries it to the losses of all ranks; only one has it in its features."""
    said = ranks.run(meet_a_nan, 1, world=2)
    assert said[0] == said[1]
    message, moved = said[0]
    assert not moved
    assert "rank 1: step 0: loss or gradient is not finite" in message
    assert message.count("the features of C4 are not finite") == 1


def overflow(_: Any) -> str:
    """Gradients that are finite on each rank, and Inf when they are summed."""
    trainer = make_trainer_of(DETECTORS["retinanet group"])
    trainer.add_gradients(make_share(4, torch.Generator().manual_seed(1)))
    for parameter in trainer.detector.parameters():
        parameter.grad = torch.full_like(parameter, 2e38)
    try:
        trainer.finish_step()
    except NonFiniteLossError as error:
        return str(error)
    return ""


def test_a_sum_that_overflows_stops_all(ranks: Any) -> None:
    first, second = ranks.run(overflow, world=2)
    assert first == second
    assert "rank 0: step 0: loss or gradient is not finite (gradient norm inf)" in first
    assert "rank 1: step 0" in first


def sum_some(_: Any) -> list[list[float] | None]:
    torch.manual_seed(rank())
    parameters = [nn.Parameter(torch.zeros(n)) for n in (3, 2**23, 2, 1, 4)]
    parameters[3] = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    parameters[4].requires_grad_(False)
    for number, parameter in enumerate(parameters[:4]):
        if number != 2 or rank() == 1:
            parameter.grad = torch.full_like(parameter, 10.0 * number + rank() + 1)
    sum_gradients(parameters)
    with single_process():
        sum_gradients(parameters)
    return [None if p.grad is None else [*p.grad[:2].tolist()] for p in parameters]


def test_gradients_are_summed_in_buckets(ranks: Any) -> None:
    """A rank without a gradient has zero; what is frozen has none; types are not mixed."""
    expected = [[3.0, 3.0], [23.0, 23.0], [22.0, 22.0], [63.0], None]
    assert ranks.run(sum_some, world=2) == [expected, expected]


def test_alone_gradients_stay() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    sum_gradients([parameter])
    assert parameter.grad is None
    assert of_ranks("as it is") == "as it is"


MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch()),
        ({"RANK": "1"}, Launch()),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Launch()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch()),
        ({"RANK": "1", "WORLD_SIZE": "2", **MEETING}, Launch(rank=1, world=2)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", **MEETING}
            | {"TORCHELASTIC_RESTART_COUNT": "2"},
            Launch(rank=5, world=8, local_world=4, restarts=2),
        ),
    ],
)
def test_what_torchrun_says(environment: dict[str, str], expected: Launch) -> None:
    assert find_launch(environment) == expected


def test_the_command_that_starts_as_many() -> None:
    assert Launch().command == ["cachedet"]
    several = Launch(rank=1, world=4, local_world=2)
    assert " ".join(several.command) == "torchrun --nproc-per-node 2 -m -- cachedet"
    assert not several.is_first


def test_launches_that_make_no_sense() -> None:
    two = {"WORLD_SIZE": "2", **MEETING}
    with pytest.raises(ConfigError, match=r"must be whole numbers, got RANK=a, WORLD_SIZE=2, LOCA"):
        find_launch({"RANK": "a", **two})
    with pytest.raises(ConfigError, match=r"RANK must be 0 to 1 for WORLD_SIZE=2, got 2; start wi"):
        find_launch({"RANK": "2", **two})
    with pytest.raises(ConfigError, match=r"WORLD_SIZE=2 without MASTER_ADDR and MASTER_PORT: the"):
        find_launch({"RANK": "1", "WORLD_SIZE": "2"})


@pytest.mark.parametrize("seconds", ["0", "-3", "soon", "inf", "nan"])
def test_timeouts_that_make_no_sense(seconds: str) -> None:
    launch = Launch(rank=0, world=2)
    with (
        pytest.raises(ConfigError, match=r"CACHEDET_RANK_TIMEOUT must be seconds above 0, such as"),
        joined_ranks(launch, device="cpu", environment={"CACHEDET_RANK_TIMEOUT": seconds}),
    ):
        pass


def test_one_rank_joins_nobody() -> None:
    with joined_ranks(Launch(), device="no such device"):
        assert world_size() == 1


def describe(sizes: tuple[int, ...]) -> list[str]:
    return [describe_ranks(size) for size in sizes]


def test_how_a_batch_is_shared_is_said(ranks: Any) -> None:
    assert ranks.run(describe, (8, 5, 2), world=4)[0] == [
        "4 processes share each batch of 8 images: 2 each",
        "4 processes share each batch of 5 images unevenly: some take 2, some 1, and those wait",
        "4 processes share each batch of 2 images: fewer images than processes, so each "
        "computes the whole batch",
    ]
