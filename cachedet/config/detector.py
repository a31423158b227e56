"""What a detector is made of, as a user writes it: one class for each kind of part.

Each kind has only the keys that mean something to it; `kind` chooses. Defaults are PAPER section 2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
IoU = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Depth = Annotated[int, Field(ge=0, le=16)]
Ratios = Annotated[tuple[Positive, ...], Field(min_length=1)]
Levels = Annotated[tuple[str, ...], Field(min_length=1)]
Norm = Literal["batch", "group", "none"]
Activation = Literal["relu", "silu"]
LowQuality = Literal["one", "ties"]
"""Of the anchors that a ground-truth box overlaps most: one, or all that tie."""


class Config(BaseModel):
    """Frozen; unknown keys are refused, and so are NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FPNConfig(Config):
    """arXiv 1612.03144, PAPER 2.4."""

    kind: Literal["fpn"] = "fpn"
    channels: Count = 256
    num_levels: Annotated[int, Field(ge=1, le=8)] = 5  # P3-P7 from C3-C5, P2-P6 from C2-C5
    separable: bool = False  # depthwise-separable 3x3 convolutions


class NASFPNConfig(Config):
    """arXiv 1904.07392, PAPER 2.3; five levels, P3-P7 from C3-C5."""

    kind: Literal["nasfpn"]
    channels: Count = 256
    repeats: Annotated[int, Field(ge=1, le=16)] = 5
    separable: bool = False


class SimplePyramidConfig(Config):
    """arXiv 2203.16527: from the one map of a plain ViT; strides s/2, s, 2s, 4s, ..."""

    kind: Literal["simple"]
    channels: Count = 256
    num_levels: Annotated[int, Field(ge=2, le=8)] = 4


Join = Literal["concatenate", "weighted"]
"""Of taps: side by side, or a mean by weights that each level that goes out learns."""


class TapPyramidConfig(Config):
    """From several maps of one stride, the taps of a plain ViT; strides s/2, s, 2s, 4s, ..."""

    kind: Literal["tap_pyramid"]
    channels: Count = 256
    num_levels: Annotated[int, Field(ge=2, le=8)] = 4  # P3-P6 from a stride of 16
    join: Join = "concatenate"
    separable: bool = False
    top: Annotated[FPNConfig | NASFPNConfig, Field(discriminator="kind")] | None = None


NeckConfig = Annotated[
    FPNConfig | NASFPNConfig | SimplePyramidConfig | TapPyramidConfig, Field(discriminator="kind")
]


class PointwiseAdapterConfig(Config):
    """x + Wx on each cached level."""

    kind: Literal["pointwise"]


class BottleneckAdapterConfig(Config):
    """x + up(conv3x3(down(x))) on each cached level."""

    kind: Literal["bottleneck"]
    ratio: Annotated[float, Field(gt=0, le=4)] = 0.25  # hidden channels, of the level's


AdapterConfig = Annotated[
    PointwiseAdapterConfig | BottleneckAdapterConfig, Field(discriminator="kind")
]


def _require_ordered(background_iou: float, foreground_iou: float) -> None:
    if background_iou > foreground_iou:
        raise ValueError(
            f"background_iou must be at most foreground_iou, got {background_iou} and "
            f"{foreground_iou}"
        )


class AnchorConfig(Config):
    """RetinaNet's, PAPER 2.2: 9 anchors per cell, the smallest 4 strides wide."""

    size_factor: Positive = 4.0  # side of the smallest square anchor, in strides of its level
    scales_per_octave: Count = 3
    aspect_ratios: Ratios = (0.5, 1.0, 2.0)  # height / width
    foreground_iou: IoU = 0.5
    background_iou: Fraction = 0.5
    allow_low_quality: LowQuality = "one"

    @model_validator(mode="after")
    def _ordered(self) -> AnchorConfig:
        _require_ordered(self.background_iou, self.foreground_iou)
        return self


class RPNConfig(Config):
    """PAPER 2.2: 3 anchors per cell, 8 strides wide."""

    size_factor: Positive = 8.0
    scales_per_octave: Count = 1
    aspect_ratios: Ratios = (0.5, 1.0, 2.0)
    foreground_iou: IoU = 0.7
    background_iou: Fraction = 0.3
    allow_low_quality: LowQuality = "one"
    channels: Count | None = None  # of its tower; None: the neck's
    num_convs: Depth = 1
    separable: bool = False
    samples: Count = 256
    positive_fraction: Fraction = 0.5
    class_weight: Positive = 0.5  # the paper's code divides by 512 instead of by `samples`
    huber_delta: Positive = 1 / 9
    box_weight: Positive = 1.0  # of the mean over coordinates; 9 is torchvision's smooth L1
    nms_iou: Fraction = 0.7
    train_pre_nms: Count = 2000  # of each level
    train_post_nms: Count = 1000  # of all levels
    test_pre_nms: Count = 1000
    test_post_nms: Count = 1000

    @model_validator(mode="after")
    def _ordered(self) -> RPNConfig:
        _require_ordered(self.background_iou, self.foreground_iou)
        return self


class RoIHeadConfig(Config):
    """PAPER 2.2, 2.5: 4 convolutions and 2 fully connected layers on 7 x 7 cells."""

    samples: Count = 512
    positive_fraction: Fraction = 0.25
    resolution: Annotated[int, Field(ge=1, le=28)] = 7
    num_convs: Depth = 4
    conv_channels: Count = 256
    num_fcs: Depth = 2
    fc_channels: Count = 1024
    separable: bool = False
    huber_delta: Positive = 1.0
    box_weight: Positive = 1.0  # of the mean over coordinates; 4 makes it their sum


class MaskHeadConfig(Config):
    """arXiv 1703.06870: 4 convolutions on 14 x 14 cells, masks of twice the side."""

    resolution: Annotated[int, Field(ge=1, le=56)] = 14
    num_convs: Depth = 4
    channels: Count = 256
    separable: bool = False


class PostprocessConfig(Config):
    """From scored boxes to detections, PAPER 2.2."""

    score_threshold: Fraction = 0.05
    pre_nms: Count = 5000
    nms_iou: Fraction = 0.5
    max_detections: Count = 100


class RetinaNetConfig(Config):
    """arXiv 1708.02002, PAPER 2.2 and 2.5."""

    kind: Literal["retinanet"] = "retinanet"
    levels: Levels | None = None  # backbone levels to use; None: all the store has
    norm: Norm = "batch"
    activation: Activation = "relu"
    adapters: AdapterConfig | None = None
    neck: NeckConfig = FPNConfig()
    anchors: AnchorConfig = AnchorConfig()
    channels: Count | None = None  # of the towers; None: the neck's
    num_convs: Depth = 4  # depth of each tower
    separable: bool = False
    norm_per_level: bool = True
    focal_alpha: Fraction = 0.25
    focal_gamma: Annotated[float, Field(ge=0)] = 1.5
    huber_delta: Positive = 0.1
    box_weight: Positive = 50.0
    postprocess: PostprocessConfig = PostprocessConfig()


class FasterRCNNConfig(Config):
    """arXiv 1506.01497, PAPER 2.2 and 2.5."""

    kind: Literal["faster_rcnn"]
    levels: Levels | None = None
    norm: Norm = "batch"
    activation: Activation = "silu"
    adapters: AdapterConfig | None = None
    neck: NeckConfig = FPNConfig()
    rpn: RPNConfig = RPNConfig()
    roi_head: RoIHeadConfig = RoIHeadConfig()
    mask_head: MaskHeadConfig | None = None  # needs masks in the store
    class_agnostic: bool = False  # one box for a RoI instead of one for each class
    foreground_iou: IoU = 0.5
    postprocess: PostprocessConfig = PostprocessConfig()


class CascadeRCNNConfig(Config):
    """arXiv 1712.00726, PAPER 2.6: class-agnostic boxes, one head a stage."""

    kind: Literal["cascade_rcnn"]
    levels: Levels | None = None
    norm: Norm = "batch"
    activation: Activation = "silu"
    adapters: AdapterConfig | None = None
    neck: NeckConfig = FPNConfig()
    rpn: RPNConfig = RPNConfig()
    roi_head: RoIHeadConfig = RoIHeadConfig()
    mask_head: MaskHeadConfig | None = None  # needs masks in the store
    stage_ious: Annotated[tuple[IoU, ...], Field(min_length=2)] = (0.5, 0.7, 0.8)
    postprocess: PostprocessConfig = PostprocessConfig()

    @model_validator(mode="after")
    def _rising(self) -> CascadeRCNNConfig:
        if list(self.stage_ious) != sorted(self.stage_ious):
            raise ValueError(f"stage_ious must rise from stage to stage, got {self.stage_ious}")
        return self


class CustomDetectorConfig(Config):
    """A detector that was given as an object: what a run notes of it besides its weights."""

    kind: Literal["custom"] = "custom"
    name: str  # of its class
    levels: Levels | None = None
    masks: bool = False  # whether it learns from masks
    postprocess: PostprocessConfig = PostprocessConfig()  # `eval` merges views like this


BuiltDetectorConfig = RetinaNetConfig | FasterRCNNConfig | CascadeRCNNConfig
"""What `build_detector` can make."""

DetectorConfig = Annotated[BuiltDetectorConfig | CustomDetectorConfig, Field(discriminator="kind")]


def trains_masks(config: DetectorConfig) -> bool:
    """Whether the detector needs masks to learn from."""
    if isinstance(config, CustomDetectorConfig):
        return config.masks
    return not isinstance(config, RetinaNetConfig) and config.mask_head is not None


def describe_detector(config: DetectorConfig) -> str:
    """Its kind in a few words, such as "retinanet, fpn"."""
    if isinstance(config, CustomDetectorConfig):
        return f"{config.name} (custom)"
    top = config.neck.top if isinstance(config.neck, TapPyramidConfig) else None
    return f"{config.kind}, {config.neck.kind}{f' with {top.kind}' if top else ''}"
