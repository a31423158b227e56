from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cachedet.config.run import (
    TrainConfig,
    dump_config,
    load_train_config,
    make_extract_config,
    make_train_config,
)
from cachedet.demo import demo_config
from cachedet.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load(path: Path) -> None:
    config = load_train_config(path)
    assert make_train_config(yaml.safe_load(dump_config(config)), where="dump") == config


def test_the_paper_is_the_default() -> None:
    """configs/retinanet_fpn.yaml is PAPER 2.1 and 2.2; drops are rounded shares of 72."""
    shipped, default = load_train_config(CONFIGS / "retinanet_fpn.yaml"), TrainConfig()
    assert shipped.detector == default.detector
    same = {"drops": default.schedule.drops, "reference_batch": None}
    exact = shipped.schedule.model_copy(update=same)
    assert exact == default.schedule
    assert shipped.schedule.drops == pytest.approx(default.schedule.drops, abs=1e-4)


def test_the_demo_config_is_shipped() -> None:
    assert demo_config().detector.neck.channels == 64


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\ndetector: {kind: retinanet}\n")
    config = load_train_config(path, ["schedule.epochs=7", "detector.norm=group", "views=[base]"])
    assert (config.seed, config.schedule.epochs, config.views) == (3, 7, ("base",))
    assert config.detector.norm == "group"
    with pytest.raises(ConfigError, match=r"--set expects key=value, got 'seed'"):
        load_train_config(path, ["seed"])
    with pytest.raises(ConfigError, match="'seed' is a value, not a section"):
        load_train_config(path, ["seed.deep=1"])


def test_the_learning_rate_follows_the_batch(tmp_path: Path) -> None:
    path = CONFIGS / "cascade_rcnn_nasfpn.yaml"
    schedule = load_train_config(path, ["schedule.batch_size=16"]).schedule
    assert schedule.scaled_lr == pytest.approx(0.04)
    assert schedule.describe_lr() == (
        "learning rate 0.04 for steps of 16 images (0.16 belongs to 64, scaled linearly)"
    )
    plain = load_train_config(CONFIGS / "faster_rcnn_fpn_tiny.yaml", ["schedule.batch_size=8"])
    assert plain.schedule.describe_lr() == "learning rate 0.0015 for steps of 8 images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule: {epoch: 3}", r"unknown key 'schedule.epoch'; nearest: 'epochs'"),
        ("epochs: 3", r"unknown key 'epochs'; it is schedule.epochs$"),
        ("{photos: 1, zzzz: 2}", r"'photos'; known: detector, [^;]*; unknown key 'zzzz'$"),
        ("{seed:1}", r"unknown key 'seed:1'; a space after the colon is missing: seed: 1; known"),
        ("detecter: {}", r"unknown key 'detecter'; nearest: 'detector'"),
        (
            "detector: {kind: retinanet, anchors: {size: 3}}",
            r"key 'detector.anchors.size'; nearest: 'size_factor'",
        ),
        ("schedule: {epochs: 0}", r"schedule.epochs: expected at least 1, got 0"),
        (
            "detector: {kind: retinanet, norm: layer}",
            r"^[^:]*: detector.norm: expected batch, group or none",
        ),
        (
            "detector: {kind: retina}",
            r"detector.kind: expected retinanet, faster_rcnn, cascade_rcnn.*, got 'retina'; near",
        ),
        ("detector: {norm: batch}", r"detector: expected a section with `kind:`"),
        (
            "detector: {kind: faster_rcnn, neck: {kind: nasfpn, num_levels: 5}}",
            r"unknown key 'detector.neck.num_levels'; .*known: kind, channels, repeats",
        ),
        (
            "detector: {kind: faster_rcnn, rpn: {background_iou: 0.8}}",
            "detector.rpn: background_iou must be at most foreground_iou, got 0.8 and 0.7",
        ),
        (
            "detector: {kind: cascade_rcnn, stage_ious: [0.5]}",
            "detector.stage_ious: expected at least 2",
        ),
        (
            "detector: {kind: cascade_rcnn, stage_ious: [0.8, 0.5]}",
            "detector: stage_ious must rise from stage to stage",
        ),
        (
            "detector: {kind: faster_rcnn, foreground_iou: 0.0}",
            "foreground_iou: expected more than 0",
        ),
        (
            "detector: {kind: faster_rcnn, levels: []}",
            "detector.levels: expected at least 1 of them, got",
        ),
        (
            "detector: {kind: faster_rcnn, rpn: {aspect_ratios: []}}",
            "detector.rpn.aspect_ratios: expected at least 1 of them",
        ),
        ("detector: {kind: retinanet, mask_head: {}}", "unknown key 'detector.mask_head'"),
        ("detector: {kind: cascade_rcnn, class_agnostic: true}", "unknown key 'detector.class_ag"),
        ("schedule: {ema_decay: 1.0}", "schedule.ema_decay: expected less than 1, got 1.0"),
        ("schedule: {epochs: 9999999999999}", r"schedule.epochs: expected at most 100000"),
        ("schedule: {accumulate: 0}", "schedule.accumulate: expected at least 1, got 0"),
        ("early_stopping: {patience: 0}", "early_stopping.patience: expected at least 1, got 0"),
        ("early_stopping: {metrics: ap}", "unknown key 'early_stopping.metrics'; nearest: 'metri"),
        ("early_stopping: {metric: map}", "early_stopping.metric: expected ap, ap50, ap75 or loss"),
        (
            "{eval_every: 0, early_stopping: {metric: ap50}}",
            "early_stopping on ap50 needs validations, eval_every is 0; set eval_every: 1",
        ),
        ("augment: {mosaic: 0.5}", "unknown key 'augment.mosaic'"),
        ("trainable: classifier", "keeps everything else as it is, which needs weights: set init"),
        ("checkpoint_every_seconds: -1", "checkpoint_every_seconds: expected at least 0, got -1"),
        (
            "precision: fp8",
            "precision: expected fp32, bf16, fp16 or auto, got 'fp8'",
        ),
        ("views: []", "views must name at least one view"),
        ("- 1", "expected `key: value` lines, got list"),
        ("{", "is not YAML"),
    ],
)
def test_wrong_configs(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_train_config(tmp_path / "c.yaml")


def test_missing_config_and_wrong_extract_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*none.yaml: No such file"):
        load_train_config(tmp_path / "none.yaml")
    given = {"images": "a", "annotations": "b", "store": "c", "image_size": 8}
    with pytest.raises(ConfigError, match="^extract: image_size: expected at least 32, got 8$"):
        make_extract_config(given)
    engine = {"kind": "ray", "workers": 0, "cpus_per_worker": 0.0}
    typed = given | {"engine": engine, "precision": "fp16", "levels": [3]}
    with pytest.raises(ConfigError) as wrong:
        make_extract_config(typed, is_typed=True)
    assert sorted(str(wrong.value).split("; ")) == [
        "--cpus-per-worker: expected more than 0, got 0.0",
        "--image-size: expected at least 32, got 8",
        "--levels: expected a text, got 3",
        "--precision: expected fp32 or bf16, got 'fp16'",
        "--ray-workers: expected at least 1, got 0",
    ]
