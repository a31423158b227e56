"""A head that knows nothing of cachedet goes all the way: train, resume, ranks, eval, report."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cachedet
from cachedet.errors import CheckpointError, ConfigError, DetectorError, NonFiniteLossError
from cachedet.report import report
from cachedet.store.reader import FeatureStore
from cachedet.training.checkpoint import load_checkpoint

CONFIG = {
    "schedule": {
        "epochs": 2, "batch_size": 3, "lr": 1e-3, "optimizer": "adamw", "warmup_steps": 1,
        "ema_decay": 0.9, "weight_decay": 0.01,
    },
    "device": "cpu",
    "eval_every": 1,
    "seed": 4,
}  # fmt: skip


def make_head(store: Path) -> Any:
    """Loaded by its path, in ranks too, which have no fixtures."""
    path = Path(__file__).parents[1] / "detector" / "fcos.py"
    spec = importlib.util.spec_from_file_location("fcos", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    opened = FeatureStore.open(store)
    torch.manual_seed(11)
    return module.FCOSHead(opened.manifest.spec, len(opened.manifest.categories))


def options_of(tiny: Any, run: Path, **more: Any) -> dict[str, Any]:
    return {"config": CONFIG, **tiny.stores, "run": run, "detector": make_head(tiny.train), **more}


@pytest.fixture(scope="module")
def run(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign") / "run"
    cachedet.train(**options_of(tiny, root))
    return root


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_checkpoint(run / "weights" / "last.pt").heads
    return weights


def test_it_leaves_a_run_like_any_other(run: Path) -> None:
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert [name for name in columns if name.startswith("loss_")] == ["loss_class", "loss_box"]
    assert "kind: custom\n  name: FCOSHead" in (run / "config.yaml").read_text()
    assert (run / "plots" / "training.png").is_file()


def test_resuming_is_bit_exact(tiny: Any, run: Path, tmp_path: Path) -> None:
    stopped = cachedet.train(**options_of(tiny, tmp_path, overrides={"max_steps": 2}))
    assert stopped.reason == "max_steps"
    cachedet.train(**options_of(tiny, tmp_path, resume=True))
    assert (tmp_path / "metrics.csv").read_text().count("\n") > 2
    for name, value in weights_of(run).items():
        assert torch.equal(weights_of(tmp_path)[name], value), name


def train_in_ranks(options: dict[str, Any]) -> Any:
    head = MeanHead() if options.pop("head") == "mean" else make_head(options["train_store"])
    return cachedet.train(**options, detector=head).losses


class MeanHead(torch.nn.Module):
    """Its loss is a mean over images, so a rank's part of it is its share of the images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(192, 1, 1)

    def forward(self, features: Any, targets: Any) -> Any:
        per_image = self.conv(features["C4"]).flatten(1).square().mean(dim=1)
        return {"square": per_image.mean()}

    def detect(self, features: Any, **_: Any) -> Any:
        return []


@pytest.mark.parametrize("head", ["fcos", "mean"])
def test_two_ranks(tiny: Any, ranks: Any, tmp_path: Path, head: str) -> None:
    """Losses that are means over a rank's own images are weighted by their number."""
    schedule = {**CONFIG["schedule"], "batch_size": 3}  # type: ignore[dict-item]
    options = {"config": {**CONFIG, "schedule": schedule}, "train_store": tiny.train, "head": head}
    two, other = ranks.run(train_in_ranks, {**options, "run": tmp_path / "2"}, world=2)
    assert two == other
    assert all(torch.isfinite(torch.tensor(two)))
    if head == "mean":
        alone = train_in_ranks({**options, "run": tmp_path / "1"})
        assert two == pytest.approx(alone, rel=1e-5)


def test_it_is_scored_reported_and_predicts(tiny: Any, run: Path, tmp_path: Path) -> None:
    head = make_head(tiny.train)
    scored = cachedet.evaluate(run, tiny.val, detector=head)
    assert scored.ap == load_checkpoint(run / "weights" / "best.pt").best_ap
    assert json.loads((run / "results.json").read_text())["ap"] == scored.scores.to_json()["ap"]
    page = report([run], images=tiny.paths.images, out=tmp_path / "r.html", resamples=10)
    assert "FCOSHead (custom)" in page.html.read_text()
    settings = {"weights": str(tiny.weights), "min_score": 0.0, "out": tmp_path / "drawn"}
    image = tiny.paths.images / "val_00000.jpg"
    predicted = cachedet.predict(run, images=[image], detector=head, **settings)
    expected = scored.detections[0].scores
    scores = predicted.images[0].detections.scores
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_module_is_scored_as_it_is(tiny: Any, run: Path) -> None:
    head = make_head(tiny.train)
    head.load_state_dict(load_checkpoint(run / "weights" / "best.pt").scored_heads)
    scored = cachedet.evaluate(head, tiny.val)
    assert scored.ap == cachedet.evaluate(run, tiny.val, detector=make_head(tiny.train)).ap
    assert scored.results is None
    assert scored.to_json()["detector"] == "FCOSHead"
    assert head.training


def test_a_run_whose_detector_is_not_given(tiny: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'FCOSHead' was given as an object .*detector=\.\.\."):
        cachedet.evaluate(run, tiny.val)
    with pytest.raises(ConfigError, match="'FCOSHead' was given as an object"):
        cachedet.train(run / "config.yaml", train_store=tiny.train, run=tmp_path / "new")


def test_another_head_than_the_run_has(tiny: Any, run: Path) -> None:
    head = make_head(tiny.train)
    head.logits = torch.nn.Conv2d(16, 3, 3, padding=1)
    message = r"do not fit FCOSHead: .*logits.*give the detector that was trained"
    with pytest.raises(CheckpointError, match=message):
        cachedet.evaluate(run, tiny.val, detector=head)


class NaNHead(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, features: Any, targets: Any) -> Any:
        return {"loss": self.weight.sum() * float("nan")}

    def detect(self, features: Any, **_: Any) -> Any:
        return []


def test_what_breaks_the_contract_stops_the_run(tiny: Any, tmp_path: Path) -> None:
    options = options_of(tiny, tmp_path / "nan")
    with pytest.raises(NonFiniteLossError, match=r"loss or gradient is not finite \(losses loss n"):
        cachedet.train(**{**options, "detector": NaNHead()})
    with pytest.raises(DetectorError, match="Linear has no method detect"):
        cachedet.train(**{**options, "detector": torch.nn.Linear(1, 1), "run": tmp_path / "b"})
    assert not (tmp_path / "b").exists()
