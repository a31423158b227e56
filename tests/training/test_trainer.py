from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from cachedet.config.run import TrainConfig
from cachedet.errors import ConfigError, NonFiniteLossError
from cachedet.loading.loader import FeatureLoader
from cachedet.store.reader import FeatureStore
from cachedet.structures import Batch
from cachedet.training.trainer import StepStatistics, Trainer, make_trainer

RETINANET = {
    "kind": "retinanet", "levels": ["C4", "C5"], "norm": "group", "num_convs": 1,
    "neck": {"kind": "fpn", "channels": 8, "num_levels": 2},
}  # fmt: skip
CASCADE = {
    "kind": "cascade_rcnn", "levels": ["C4", "C5"],
    "neck": {"kind": "fpn", "channels": 8, "num_levels": 2},
    "rpn": {"samples": 16, "train_post_nms": 20, "test_post_nms": 20},
    "roi_head": {"samples": 8, "num_convs": 0, "fc_channels": 8},
}  # fmt: skip


def make_config(detector: dict[str, Any] | None = None, **schedule: Any) -> TrainConfig:
    defaults = {"batch_size": 3, "lr": 0.1, "momentum": 0.0, "warmup_steps": 0, "kind": "step"}
    return TrainConfig.model_validate(
        {
            "detector": detector or RETINANET,
            "schedule": {"weight_decay": 0.0, "drops": [], **defaults, **schedule},
            "device": "cpu",
        }
    )


def make(tiny: Any, config: TrainConfig) -> Trainer:
    torch.manual_seed(0)
    return make_trainer(config, manifest=FeatureStore.open(tiny.train).manifest, total_steps=9)


def read_batches(tiny: Any) -> list[Batch]:
    """Of all images, the largest first: 3 images, ..., 2 images."""
    store = FeatureStore.open(tiny.train)
    loader = FeatureLoader(store, views=("base",), levels=("C4", "C5"), batch_size=3, seed=5)
    batches = list(loader.epoch(0))
    return sorted(batches, key=lambda batch: -len(batch.targets))


def test_accumulated_batches_are_one_step_of_all_their_images(tiny: Any) -> None:
    """Against gradients summed by hand and one step of plain SGD; group norm sees no batch."""
    trainer = make(tiny, make_config(accumulate=2))
    oracle = copy.deepcopy(trainer.detector)
    batches = [read_batches(tiny)[index] for index in (0, 2)]
    assert [len(batch.targets) for batch in batches] == [3, 2]
    means: dict[str, float] = {}
    for batch in batches:
        losses = oracle(batch.features, batch.targets)
        (sum(losses.values()) * len(batch.targets) / 6).backward()
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + loss.item() * len(batch.targets) / 5
    for batch in batches:
        trainer.add_gradients(batch)
    row = trainer.finish_step()
    assert trainer.step == 1
    for name, mean in means.items():
        assert row[f"loss_{name}"] == pytest.approx(mean, rel=1e-5)
    moved = dict(trainer.detector.named_parameters())
    for name, parameter in oracle.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(moved[name].detach(), expected, rtol=1e-4, atol=1e-6)


def test_the_schedule_counts_optimiser_steps(tiny: Any) -> None:
    trainer = make(tiny, make_config(accumulate=3, warmup_steps=4))
    rates = []
    for _ in range(3):
        for batch in read_batches(tiny):
            trainer.add_gradients(batch)
        trainer.finish_step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == [trainer.learning_rate.at(step) for step in range(3)]


def test_a_warm_up_that_the_plan_cuts_short_is_not_forgotten(tiny: Any) -> None:
    """Of a budget only a guess at its steps is known when the trainer is made."""
    rate = make(tiny, make_config(warmup_steps=100)).learning_rate
    assert rate.at(4) == rate.peak  # of 9 steps
    assert rate.stretched(400).at(50) == pytest.approx(0.51 * rate.peak, rel=0.01)


def test_the_rate_follows_the_images_of_a_step() -> None:
    schedule = make_config(accumulate=4, reference_batch=6, lr=0.1).schedule
    assert schedule.step_images == 12
    assert schedule.scaled_lr == pytest.approx(0.2)
    assert schedule.describe_lr() == (
        "learning rate 0.2 for steps of 12 images in 4 batches (0.1 belongs to 6, scaled linearly)"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("detector", [RETINANET, CASCADE], ids=["retinanet", "cascade"])
def test_a_bad_second_batch_moves_nothing(
    tiny: Any, detector: dict[str, Any], value: float
) -> None:
    trainer = make(tiny, make_config(detector, accumulate=2))
    before = copy.deepcopy(trainer.detector.state_dict())
    first, second, *_ = read_batches(tiny)
    trainer.add_gradients(first)
    second.features["C5"][0, 0, 0, 0] = value
    ids = ", ".join(map(str, second.image_ids))
    message = rf"step 0: loss or gradient .* image ids \[{ids}\]; the features of C5 are not finite"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.add_gradients(second)
    after = trainer.detector.state_dict()
    moved = {name for name, old in before.items() if not torch.equal(after[name], old)}
    assert all("norm" in name for name in moved)  # a batch norm counts what it has seen
    assert not moved & dict(trainer.detector.named_parameters()).keys()
    assert detector is CASCADE or not moved


def test_a_gradient_that_is_not_finite(tiny: Any) -> None:
    trainer = make(tiny, make_config())
    batch = read_batches(tiny)[0]
    trainer.add_gradients(batch)
    trainer.detector.head.box_deltas.weight.grad[0] = float("inf")
    ids = ", ".join(map(str, batch.image_ids))
    message = rf"\(gradient norm inf\) on image ids \[{ids}\]; all features are finite, largest: C4"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.finish_step()
    assert trainer.step == 0


@pytest.mark.parametrize("detector", [RETINANET, CASCADE], ids=["retinanet", "cascade"])
def test_bf16_is_close_to_fp32_and_its_losses_are_float32(
    tiny: Any, detector: dict[str, Any]
) -> None:
    batch = read_batches(tiny)[0]
    losses = {}
    for precision in ("fp32", "bf16"):
        config = make_config(detector).model_copy(update={"precision": precision})
        trainer = make(tiny, config)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            computed = trainer.detector(batch.features, batch.targets)
        assert {loss.dtype for loss in computed.values()} == {torch.float32}
        torch.manual_seed(1)
        losses[precision] = trainer.take_step(batch)["loss"]
        assert all(p.dtype == torch.float32 for p in trainer.detector.parameters())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_fp16_leaves_out_steps_that_overflow_and_halves_the_scale(tiny: Any) -> None:
    """The scaler of fp16 works on a CPU too, where only `precision: fp16` is refused."""
    trainer = make(tiny, make_config())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(dict(trainer.detector.named_parameters()))
    batch = read_batches(tiny)[0]
    trainer.add_gradients(batch)
    trainer.detector.head.box_deltas.weight.grad[0] = float("inf")
    assert trainer.finish_step()["grad_norm"] == float("inf")
    assert trainer.step == 1
    assert trainer.scaler.get_scale() == 512.0
    for name, parameter in trainer.detector.named_parameters():
        assert torch.equal(parameter, before[name])
    trainer.take_step(batch)
    assert any(not torch.equal(p, before[n]) for n, p in trainer.detector.named_parameters())


def test_fp16_scaled_steps_equal_plain_ones(tiny: Any) -> None:
    plain, scaled = (make(tiny, make_config(clip_norm=0.1)) for _ in range(2))
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in read_batches(tiny):
        expected, row = plain.take_step(batch), scaled.take_step(batch)
        assert row == pytest.approx(expected, rel=1e-4)
    state = plain.detector.state_dict()
    for name, value in scaled.detector.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-6)


def test_fp16_that_overflows_unscaled_is_an_error(tiny: Any) -> None:
    trainer = make(tiny, make_config())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer.add_gradients(read_batches(tiny)[0])
    trainer.detector.head.box_deltas.weight.grad[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 0: gradients overflow fp16 even unscaled"):
        trainer.finish_step()


@pytest.mark.parametrize(
    ("detector", "names"),
    [
        ({**RETINANET, "norm": "batch"}, {"head.class_logits"}),
        (CASCADE, {f"heads.{n}.class_logits" for n in range(3)}),
    ],
    ids=["retinanet", "cascade"],
)
def test_only_the_classifier_learns(tiny: Any, detector: dict[str, Any], names: set[str]) -> None:
    """PAPER 1.7; running statistics of all norms stay too."""
    values = {**make_config(detector).model_dump(), "trainable": "classifier", "init_from": "x"}
    trainer = make(tiny, TrainConfig.model_validate(values))
    before = copy.deepcopy(trainer.detector.state_dict())
    for batch in read_batches(tiny):
        trainer.take_step(batch)
    after = trainer.detector.state_dict()
    moved = {
        name.rpartition(".")[0] for name in after if not torch.equal(after[name], before[name])
    }
    assert moved == names
    trained = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert trained == sum(
        p.numel() for n, p in trainer.detector.named_parameters() if p.requires_grad
    )


def test_the_average_follows_the_steps(tiny: Any) -> None:
    trainer = make(tiny, make_config({**RETINANET, "norm": "batch"}, ema_decay=0.99))
    expected = {k: v.clone().double() for k, v in trainer.detector.state_dict().items()}
    for step, batch in enumerate(read_batches(tiny), start=1):
        trainer.take_step(batch)
        kept = (1 + step) / (10 + step)
        for name, value in trainer.detector.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
    checkpoint = trainer.checkpoint(make_config(), FeatureStore.open(tiny.train).manifest)
    assert checkpoint.scored_heads is checkpoint.average
    for name, value in expected.items():
        if "num_batches" not in name:
            average = checkpoint.scored_heads[name].double()
            torch.testing.assert_close(average, value, rtol=1e-5, atol=1e-6)
    plain = trainer.detector.state_dict()["head.class_logits.weight"].clone()
    with trainer.scored_weights():
        inside = trainer.detector.state_dict()["head.class_logits.weight"]
        assert not torch.equal(inside, plain)
    assert torch.equal(trainer.detector.state_dict()["head.class_logits.weight"], plain)


def test_fp16_on_a_cpu_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="precision fp16 is not there on device cpu"):
        make(tiny, make_config().model_copy(update={"precision": "fp16"}))


def test_means_weigh_every_image_the_same() -> None:
    epoch = StepStatistics()
    epoch.merge(StepStatistics.of_step({"loss": 4.0}, images=8, seconds=2.0, waiting=0.5))
    epoch.merge(StepStatistics.of_step({"loss": 1.0}, images=2, seconds=0.5, waiting=0.0))
    assert epoch.means() == {"loss": pytest.approx(3.4)}
    assert epoch.images_per_second == pytest.approx(4.0)
    assert epoch.waiting_share == pytest.approx(0.2)


def test_nothing_yet() -> None:
    empty = StepStatistics()
    assert (empty.means(), empty.images_per_second, empty.waiting_share) == ({}, 0.0, 0.0)


def test_saved_and_continued() -> None:
    epoch = StepStatistics.of_step({"loss": 1.5}, images=3, seconds=1.0, waiting=0.25)
    again = StepStatistics(**epoch.state_dict())
    epoch.merge(epoch)
    assert again.state_dict() == {
        "images": 3, "seconds": 1.0, "waiting": 0.25, "loss_sums": {"loss": 4.5},
    }  # fmt: skip
