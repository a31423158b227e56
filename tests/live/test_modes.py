"""The four ways of training: what each trains, and that they agree where they must."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from cachedet.config.run import TrainConfig, load_train_config
from cachedet.detector.end_to_end import PIXELS
from cachedet.errors import ConfigError, InputError
from cachedet.live.mode_names import MODES, cut_of, is_mode, mode_label, sort_modes
from cachedet.live.modes import BackboneTraining, TrainingMode, make_training_mode
from cachedet.store.reader import FeatureStore

CONFIG = Path(__file__).parents[2] / "configs" / "retinanet_fpn_tiny.yaml"


def make_config(*overrides: str) -> TrainConfig:
    small = ("detector.neck.channels=16", "detector.num_convs=1", "schedule.batch_size=2")
    return load_train_config(CONFIG, [*small, "device=cpu", *overrides])


def mode_of(
    tiny: Any, mode: Any, config: TrainConfig | None = None, **options: Any
) -> TrainingMode:
    values = {"images": tiny.paths.images, "weights": str(tiny.weights), "total_steps": 20}
    store = FeatureStore.open(tiny.train)
    return make_training_mode(mode, config or make_config(), store=store, **(values | options))


def losses_of(training_mode: TrainingMode, steps: int) -> list[float]:
    return [
        training_mode.trainer.take_step(batch)["loss"]
        for batch in islice(training_mode.loader.epoch(0), steps)
    ]


def backbone_of(training_mode: TrainingMode) -> dict[str, torch.Tensor]:
    backbone: Any = training_mode.trainer.detector
    return {name: value.clone() for name, value in backbone.backbone.state_dict().items()}


def test_live_losses_are_those_of_the_cache(tiny: Any) -> None:
    """Law L3, with flips as well: the store is lossless."""
    cached, live = (losses_of(mode_of(tiny, mode), 4) for mode in ("cached", "live"))
    torch.testing.assert_close(torch.tensor(live), torch.tensor(cached), rtol=1e-4, atol=1e-6)


MOVING = tuple(f"augment.{key}=0.5" for key in ("translate", "crop", "flip"))


def test_all_modes_move_images_alike(tiny: Any) -> None:
    """The same draws: cached maps and pixels cover the same, with the same boxes."""
    config = make_config(*MOVING, "schedule.batch_size=4", "seed=3")
    cached, live = (
        list(mode_of(tiny, mode, config).loader.epoch(0, until=3)) for mode in ("cached", "live")
    )
    stride = FeatureStore.open(tiny.train).manifest.spec.levels[-1].stride
    for maps, pixels in zip(cached, live, strict=True):
        coarsest = list(maps.features.values())[-1]
        assert pixels.features[PIXELS].shape[2:] == tuple(stride * s for s in coarsest.shape[2:])
        for one, other in zip(maps.targets, pixels.targets, strict=True):
            assert one.size_hw == other.size_hw
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.crowd, other.crowd)
    assert len({pixels.features[PIXELS].shape[2:] for pixels in live}) > 1  # some were cropped


def test_flipped_pixels_are_those_of_the_mirrored_image(tiny: Any) -> None:
    """Exact, where a flipped map is an approximation."""
    views = "views={base: 1}"
    always, never = (
        next(
            mode_of(tiny, "live", make_config(views, f"augment.flip={probability}")).loader.epoch(0)
        )
        for probability in (1.0, 0.0)
    )
    assert torch.equal(always.features[PIXELS], never.features[PIXELS].flip(-1))


def test_tuned_starts_where_the_cache_starts(tiny: Any) -> None:
    """The same weights everywhere: the first loss is the same, later ones are not."""
    config = make_config("schedule.warmup_steps=0", "schedule.lr=0.01")
    cached, tuned = (losses_of(mode_of(tiny, mode, config), 4) for mode in ("cached", "tuned"))
    assert tuned[0] == pytest.approx(cached[0], rel=1e-4)
    assert tuned[-1] != pytest.approx(cached[-1], rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns(tiny: Any, mode: str) -> None:
    config = make_config("schedule.warmup_steps=0", "schedule.lr=0.003")
    training_mode = mode_of(tiny, mode, config)
    batch = next(iter(training_mode.loader.epoch(0)))
    losses = [training_mode.trainer.take_step(batch)["loss"] for _ in range(6)]
    assert losses[-1] < losses[0]


def test_a_frozen_backbone_is_neither_trained_nor_saved(tiny: Any) -> None:
    """Law L7."""
    cached, live = mode_of(tiny, "cached").trainer, mode_of(tiny, "live").trainer
    names = set(live.detector.state_dict())
    assert names == {f"heads.{name}" for name in cached.detector.state_dict()}
    counts = [
        sum(p.numel() for group in one.optimizer.param_groups for p in group["params"])
        for one in (cached, live)
    ]
    assert counts[0] == counts[1]


def test_frozen_batch_norms_stay_and_the_rest_moves(tiny: Any) -> None:
    training_mode = mode_of(tiny, "tuned")
    before = backbone_of(training_mode)
    losses_of(training_mode, 2)
    after = backbone_of(training_mode)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert norms
    assert moved
    assert not moved & norms
    assert all(before[name].ndim > 1 for name in moved)  # kernels: no weight or bias of a norm


@pytest.mark.parametrize(
    ("mode", "training"), [("tuned", BackboneTraining(batch_norm="trained")), ("scratch", None)]
)
def test_trained_batch_norms_move(tiny: Any, mode: str, training: BackboneTraining | None) -> None:
    training_mode = mode_of(tiny, mode, backbone=training)
    before = backbone_of(training_mode)
    losses_of(training_mode, 2)
    after = backbone_of(training_mode)
    assert all(not torch.equal(before[name], after[name]) for name in before if "running" in name)


def test_the_backbone_learns_at_its_own_rate(tiny: Any) -> None:
    training_mode = mode_of(tiny, "tuned", backbone=BackboneTraining(lr_scale=0.25))
    losses_of(training_mode, 3)
    rates = [group["lr"] for group in training_mode.trainer.optimizer.param_groups]
    assert rates[0] == rates[1] == pytest.approx(training_mode.trainer.learning_rate.at(2))
    assert rates[2:] == pytest.approx([rates[0] / 4] * 2)


def test_scratch_has_new_weights_of_the_seed(tiny: Any) -> None:
    def weights(seed: int) -> torch.Tensor:
        state = backbone_of(mode_of(tiny, "scratch", make_config(f"seed={seed}")))
        return next(value for value in state.values() if value.ndim == 4)

    pretrained = torch.load(tiny.weights, weights_only=True)
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not any(torch.equal(weights(1), value) for value in pretrained.values())


def test_other_weights_than_the_store_are_refused(tiny: Any, tmp_path: Path) -> None:
    other = torch.load(tiny.weights, weights_only=True)
    torch.save({name: value + 1 for name, value in other.items()}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="their digests differ. Name the same --weights"):
        mode_of(tiny, "live", weights=str(tmp_path / "other.pth"))


def test_what_modes_cannot_share_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="init_from is 'somewhere': all modes start from the sam"):
        mode_of(tiny, "cached", make_config("init_from=somewhere"))


def test_names_of_modes() -> None:
    assert sort_modes(["tuned", "partial_C3", "cached", "partial_C4", "tuned"]) == (
        "cached", "partial_C4", "partial_C3", "tuned",
    )  # fmt: skip
    assert cut_of("partial_C4") == "C4"
    assert cut_of("partial") is cut_of("tuned") is None
    assert mode_label("partial_C4") == "last stages trained (from C4)"
    assert not is_mode("partial")
