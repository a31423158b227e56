"""From a config to a detector."""

from __future__ import annotations

from typing import assert_never

from torch import nn

from cachedet.config.detector import (
    AnchorConfig,
    BottleneckAdapterConfig,
    BuiltDetectorConfig,
    CascadeRCNNConfig,
    CustomDetectorConfig,
    DetectorConfig,
    FasterRCNNConfig,
    FPNConfig,
    NASFPNConfig,
    NeckConfig,
    RetinaNetConfig,
    RPNConfig,
    SimplePyramidConfig,
    TapPyramidConfig,
)
from cachedet.config.run import TrainConfig
from cachedet.detector.adapters import Adapters
from cachedet.detector.anchors import AnchorGenerator
from cachedet.detector.boxes import Postprocess
from cachedet.detector.fpn import FPN
from cachedet.detector.layers import LayerStyle
from cachedet.detector.mask_head import MaskBranch, MaskHead
from cachedet.detector.matching import MatchRule
from cachedet.detector.nasfpn import NASFPN
from cachedet.detector.rcnn import RCNN, paper_stages
from cachedet.detector.retinanet import RetinaNet, RetinaNetHead
from cachedet.detector.roi_align import PyramidRoIAlign
from cachedet.detector.roi_head import RoIHead
from cachedet.detector.rpn import RPN, ProposalCounts, RPNHead
from cachedet.detector.simple_pyramid import SimplePyramid
from cachedet.detector.tap_pyramid import StackedNeck, TapPyramid
from cachedet.errors import ConfigError
from cachedet.store.format.manifest import Manifest
from cachedet.structures import FeatureSpec

Neck = FPN | NASFPN | SimplePyramid | TapPyramid | StackedNeck


def choose_levels(config: DetectorConfig, spec: FeatureSpec) -> FeatureSpec:
    """The levels of `spec` the detector uses: those it names, else the deepest of each stride.

    Taps are all used, and a `tap_pyramid` uses all maps.

    Raises ConfigError on one the store lacks, or of tokens, which are no map.
    """
    if config.levels is None:
        joins = isinstance(config, BuiltDetectorConfig) and config.neck.kind == "tap_pyramid"
        return spec.maps if joins else spec.pyramid
    for name in config.levels:
        if name in spec.names and name not in spec.maps.names:
            raise ConfigError(
                f"detector.levels asks for {name!r}, which holds tokens: expected maps, "
                f"{', '.join(spec.maps.names)}"
            )
        if name not in spec.names:
            raise ConfigError(
                f"detector.levels asks for {name!r}, the store holds {', '.join(spec.names)}; "
                "change detector.levels or extract that level into a new store"
            )
    return FeatureSpec(tuple(level for level in spec if level.name in config.levels))


def choose_read_levels(config: TrainConfig, manifest: Manifest) -> tuple[str, ...]:
    """The levels of a store that batches of a run need, fine to coarse.

    Without `freeze_at` they are those of the heads; with it the heads' below the cut, and the cut
    with its tokens.

    Raises ConfigError: the store lacks one of them, or nothing lies behind the cut.
    """
    cut, held, network = config.freeze_at, manifest.spec, manifest.network
    if cut is None:
        if config.detector.levels is None and held != network:
            last = held.maps.names[-1]
            raise ConfigError(
                f"the store was extracted with --freeze-at {last} and lacks "
                f"{', '.join(network.names[len(held) :])}: train the stages behind it with "
                f"freeze_at: {last} (`--set freeze_at={last}`), or name detector.levels"
            )
        return choose_levels(config.detector, held).names
    below = [level.name for level in network.maps.levels[:-1] if not level.tap]
    cuts = [name for name in below if name in held.names]
    if cut not in cuts:
        hint = "extract with --freeze-at names a level that the store lacks"
        if any(level.tap for level in network):
            hint = "it holds taps: these are normed, and no block goes on from them"
        raise ConfigError(
            "freeze_at expects a level of the store that has stages behind it "
            f"({', '.join(cuts) or 'this one has none'}), got {cut!r}; {hint}"
        )
    wanted = {*choose_levels(config.detector, network).names, *network.with_tokens(cut)}
    return tuple(name for name in network.up_to(cut).names if name in wanted)


def build_detector(
    config: DetectorConfig, *, spec: FeatureSpec, num_classes: int
) -> RetinaNet | RCNN:
    """Make the detector for features of `spec` and `num_classes` foreground classes.

    Raises:
        ConfigError: the neck cannot work on the levels there are, or the config only names a
            detector that was given as an object.

    Examples:
        >>> config = cachedet.load_config("retinanet_fpn_tiny")
        >>> head = cachedet.build_detector(
        ...     config.detector, spec=store.spec, num_classes=store.num_classes
        ... )
    """
    if isinstance(config, CustomDetectorConfig):
        raise ConfigError(
            f"detector {config.name!r} was given as an object and cannot be made from a config; "
            "call cachedet.train, cachedet.evaluate or cachedet.predict with detector=..."
        )
    if isinstance(config, RetinaNetConfig):
        return _build_retinanet(config, spec=spec, num_classes=num_classes)
    return _build_rcnn(config, spec=spec, num_classes=num_classes)


def build_neck(config: BuiltDetectorConfig, spec: FeatureSpec) -> Neck:
    """The neck alone, for the levels that the detector uses. Raises ConfigError."""
    try:
        return _make_neck(config.neck, choose_levels(config, spec), config)
    except ValueError as error:
        raise ConfigError(f"detector.neck {config.neck.kind!r}: {error}") from error


def _make_neck(neck: NeckConfig, levels: FeatureSpec, config: BuiltDetectorConfig) -> Neck:
    """Raises ValueError where it cannot work on these levels."""
    match neck:
        case FPNConfig() | NASFPNConfig():
            return _make_fpn(neck, levels, config)
        case SimplePyramidConfig():
            return SimplePyramid(
                levels, channels=neck.channels, num_levels=neck.num_levels, norm=config.norm
            )
        case TapPyramidConfig():
            pyramid = TapPyramid(
                levels,
                channels=neck.channels,
                num_levels=neck.num_levels,
                join=neck.join,
                style=_style(config, separable=neck.separable),
            )
            if neck.top is None:
                return pyramid
            return StackedNeck(pyramid, _make_fpn(neck.top, pyramid.spec, config))
        case _:
            assert_never(neck)


def _make_fpn(
    neck: FPNConfig | NASFPNConfig, levels: FeatureSpec, config: BuiltDetectorConfig
) -> FPN | NASFPN:
    style = _style(config, separable=neck.separable)
    if isinstance(neck, NASFPNConfig):
        return NASFPN(levels, channels=neck.channels, repeats=neck.repeats, style=style)
    return FPN(levels, channels=neck.channels, num_levels=neck.num_levels, style=style)


def _width(pyramid: FeatureSpec) -> int:
    """Channels of the levels that a neck gives."""
    return pyramid.levels[0].channels


def build_adapters(config: BuiltDetectorConfig, spec: FeatureSpec) -> nn.Module:
    """What stands between the cached levels and the neck."""
    adapters = config.adapters
    if adapters is None:
        return nn.Identity()
    ratio = adapters.ratio if isinstance(adapters, BottleneckAdapterConfig) else 1.0
    levels = choose_levels(config, spec)
    return Adapters(levels, kind=adapters.kind, ratio=ratio, style=_style(config))


def _style(config: BuiltDetectorConfig, *, separable: bool = False) -> LayerStyle:
    return LayerStyle(norm=config.norm, activation=config.activation, separable=separable)


def _build_retinanet(config: RetinaNetConfig, *, spec: FeatureSpec, num_classes: int) -> RetinaNet:
    neck = build_neck(config, spec)
    anchors = _make_anchors(config.anchors, neck.spec)
    head = RetinaNetHead(
        in_channels=_width(neck.spec),
        channels=config.channels or _width(neck.spec),
        num_levels=len(neck.spec),
        num_anchors=anchors.num_anchors,
        num_classes=num_classes,
        num_convs=config.num_convs,
        style=_style(config, separable=config.separable),
        norm_per_level=config.norm_per_level,
    )
    return RetinaNet(
        adapters=build_adapters(config, spec),
        neck=neck,
        head=head,
        anchors=anchors,
        postprocess=Postprocess(**config.postprocess.model_dump()),
        match_rule=_make_match_rule(config.anchors),
        focal_alpha=config.focal_alpha,
        focal_gamma=config.focal_gamma,
        huber_delta=config.huber_delta,
        box_weight=config.box_weight,
    )


def _build_rcnn(
    config: FasterRCNNConfig | CascadeRCNNConfig, *, spec: FeatureSpec, num_classes: int
) -> RCNN:
    neck = build_neck(config, spec)
    if isinstance(config, CascadeRCNNConfig):
        ious, class_agnostic = config.stage_ious, True
    else:
        ious, class_agnostic = (config.foreground_iou,), config.class_agnostic
    roi_head = config.roi_head
    heads = [
        RoIHead(
            in_channels=_width(neck.spec),
            resolution=roi_head.resolution,
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            num_convs=roi_head.num_convs,
            conv_channels=roi_head.conv_channels,
            num_fcs=roi_head.num_fcs,
            fc_channels=roi_head.fc_channels,
            style=_style(config, separable=roi_head.separable),
        )
        for _ in ious
    ]
    return RCNN(
        adapters=build_adapters(config, spec),
        neck=neck,
        rpn=_build_rpn(config, neck.spec),
        roi_align=PyramidRoIAlign(
            strides=[level.stride for level in neck.spec], resolution=roi_head.resolution
        ),
        heads=heads,
        stages=paper_stages(ious),
        postprocess=Postprocess(**config.postprocess.model_dump()),
        samples=roi_head.samples,
        positive_fraction=roi_head.positive_fraction,
        huber_delta=roi_head.huber_delta,
        box_weight=roi_head.box_weight,
        mask_branch=_build_mask_branch(config, neck.spec, num_classes),
    )


def _build_mask_branch(
    config: FasterRCNNConfig | CascadeRCNNConfig, pyramid: FeatureSpec, num_classes: int
) -> MaskBranch | None:
    mask_head = config.mask_head
    if mask_head is None:
        return None
    head = MaskHead(
        in_channels=_width(pyramid),
        num_classes=num_classes,
        num_convs=mask_head.num_convs,
        channels=mask_head.channels,
        style=_style(config, separable=mask_head.separable),
    )
    strides = [level.stride for level in pyramid]
    roi_align = PyramidRoIAlign(strides=strides, resolution=mask_head.resolution)
    return MaskBranch(head=head, roi_align=roi_align)


def _build_rpn(config: FasterRCNNConfig | CascadeRCNNConfig, pyramid: FeatureSpec) -> RPN:
    rpn = config.rpn
    anchors = _make_anchors(rpn, pyramid)
    head = RPNHead(
        in_channels=_width(pyramid),
        channels=rpn.channels or _width(pyramid),
        num_levels=len(pyramid),
        num_anchors=anchors.num_anchors,
        num_convs=rpn.num_convs,
        style=_style(config, separable=rpn.separable),
    )
    return RPN(
        head=head,
        anchors=anchors,
        match_rule=_make_match_rule(rpn),
        samples=rpn.samples,
        positive_fraction=rpn.positive_fraction,
        class_weight=rpn.class_weight,
        huber_delta=rpn.huber_delta,
        box_weight=rpn.box_weight,
        nms_iou=rpn.nms_iou,
        train_counts=ProposalCounts(pre_nms=rpn.train_pre_nms, post_nms=rpn.train_post_nms),
        test_counts=ProposalCounts(pre_nms=rpn.test_pre_nms, post_nms=rpn.test_post_nms),
    )


def _make_anchors(config: AnchorConfig | RPNConfig, pyramid: FeatureSpec) -> AnchorGenerator:
    return AnchorGenerator(
        strides=[level.stride for level in pyramid],
        size_factor=config.size_factor,
        scales_per_octave=config.scales_per_octave,
        aspect_ratios=config.aspect_ratios,
    )


def _make_match_rule(config: AnchorConfig | RPNConfig) -> MatchRule:
    return MatchRule(
        foreground_iou=config.foreground_iou,
        background_iou=config.background_iou,
        allow_low_quality=config.allow_low_quality,
    )
