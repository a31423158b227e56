"""From a config to a detector."""

from __future__ import annotations

from cachedet.config import DetectorConfig
from cachedet.detector.anchors import AnchorGenerator
from cachedet.detector.necks import FPN
from cachedet.detector.retinanet import RetinaNet, RetinaNetHead
from cachedet.errors import ConfigError
from cachedet.structures import FeatureSpec


def choose_levels(config: DetectorConfig, spec: FeatureSpec) -> FeatureSpec:
    """The levels of `spec` the detector uses. Raises ConfigError on one the store lacks."""
    if config.levels is None:
        return spec
    for name in config.levels:
        if name not in spec.names:
            raise ConfigError(
                f"detector.levels asks for {name!r}, the store holds {', '.join(spec.names)}; "
                "change detector.levels or extract that level into a new store"
            )
    return FeatureSpec(tuple(level for level in spec if level.name in config.levels))


def build_detector(config: DetectorConfig, *, spec: FeatureSpec, num_classes: int) -> RetinaNet:
    """Make the detector for features of `spec` and `num_classes` foreground classes."""
    neck = FPN(
        choose_levels(config, spec),
        channels=config.channels,
        num_levels=config.num_levels,
        norm=config.norm,
    )
    anchors = AnchorGenerator(
        strides=tuple(level.stride for level in neck.spec),
        size_factor=config.anchors.size_factor,
        scales_per_octave=config.anchors.scales_per_octave,
        aspect_ratios=config.anchors.aspect_ratios,
    )
    head = RetinaNetHead(
        channels=config.channels,
        num_levels=len(neck.spec),
        num_anchors=anchors.num_anchors,
        num_classes=num_classes,
        num_convs=config.num_convs,
        norm=config.norm,
        activation=config.activation,
    )
    return RetinaNet(
        neck=neck,
        head=head,
        anchors=anchors,
        foreground_iou=config.anchors.foreground_iou,
        background_iou=config.anchors.background_iou,
        focal_alpha=config.focal_alpha,
        focal_gamma=config.focal_gamma,
        huber_delta=config.huber_delta,
        box_weight=config.box_weight,
        score_threshold=config.score_threshold,
        pre_nms=config.pre_nms,
        nms_iou=config.nms_iou,
        max_detections=config.max_detections,
    )
