"""Tiny detectors with a backbone, exported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from cachedet.backbone.frozen import FrozenBackbone, load_backbone
from cachedet.backbone.split import split_backbone
from cachedet.config.detector import DetectorConfig
from cachedet.detector.boxes import Postprocess
from cachedet.detector.build import build_detector, choose_levels
from cachedet.detector.end_to_end import EndToEndDetector, heads_of
from cachedet.detector.protocol import run_detector
from cachedet.exporting.detection_graph import DetectionGraph, Outputs, Preprocess
from cachedet.exporting.exported_model import ExportedModel
from cachedet.exporting.file_maker import make_file
from cachedet.exporting.model_facts import ModelFacts
from cachedet.exporting.model_file import Format, ModelFile
from cachedet.exporting.onnx_file import OPSET
from cachedet.structures import CategoryMap, Detections, SizeHW

SIDE = 128
_PLACE = Path(__file__).parents[1] / "detector" / "conftest.py"


class Exported:
    """A detector and the file of it."""

    def __init__(self, graph: DetectionGraph, file: ModelFile) -> None:
        self.graph, self.file = graph, file
        self.content = file.content
        self.model = ExportedModel(file, where="the file", threads=1)

    def reference(self, images: torch.Tensor, sizes_hw: list[SizeHW]) -> list[Detections]:
        maps = self.graph.backbone(images)
        features = {name: maps[name] for name in self.graph.levels}
        return run_detector(
            self.graph.detector, features, sizes_hw=sizes_hw, image_ids=range(len(sizes_hw))
        )


class ExportKit:
    """Makes detectors whose predictors say something, as after training."""

    def __init__(self) -> None:
        spec = importlib.util.spec_from_file_location("tests_detector_kit", _PLACE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.detectors = module.Kit()

    def config(self, kind: str, neck: str, changes: dict[str, Any]) -> Any:
        values = self.detectors.config(kind, "fpn", **changes).model_dump()
        necks = {
            "fpn": {"kind": "fpn", "channels": 16, "num_levels": 3},
            "long fpn": {"kind": "fpn", "channels": 16},
            "nasfpn": {"kind": "nasfpn", "channels": 16, "repeats": 1},
            "simple": {"kind": "simple", "channels": 16, "num_levels": 4},
        }
        adapter: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)
        return adapter.validate_python(values | {"neck": necks[neck]})

    def graph(
        self,
        kind: str,
        neck: str = "fpn",
        *,
        backbone: str = "test_resnet",
        cut: str | None = None,
        outputs: Outputs = "detections",
        preprocess: Preprocess = "inside",
        **changes: Any,
    ) -> DetectionGraph:
        network = load_backbone(backbone, weights="none", cut=cut, image_size=SIDE)
        config = self.config(kind, neck, changes)
        torch.manual_seed(3)
        heads: Any = build_detector(config, spec=network.spec, num_classes=3).eval()
        levels = choose_levels(config, network.spec).names
        for name, parameter in heads.named_parameters():
            if any(part in name for part in ("class_logits", "objectness", "box_deltas")):
                torch.nn.init.normal_(parameter, std=0.2)
        if cut is not None:
            network, heads, levels = self._cut(network, heads, levels, cut)
        return DetectionGraph(
            backbone=network,
            detector=heads,
            levels=levels,
            preprocessing=network.preprocessing,
            preprocess=preprocess,
            outputs=outputs,
        )

    def _cut(
        self, network: FrozenBackbone, heads: Any, levels: tuple[str, ...], cut: str
    ) -> tuple[FrozenBackbone, Any, tuple[str, ...]]:
        from cachedet.backbone.split import freeze_trunk

        stages = split_backbone(network, cut).stages
        partial = EndToEndDetector(
            backbone=stages,
            heads=heads,
            levels=levels,
            learns=True,
            lr_scale=1.0,
            sources=[level.name for level in stages.inputs],
        )
        return freeze_trunk(network, cut), partial.eval(), network.spec.up_to(cut).names

    def export(self, graph: DetectionGraph, format: Format = "onnx") -> Exported:
        heads: Any = heads_of(graph.detector)
        has_masks = bool(getattr(heads, "trains_masks", False))
        spec = heads.neck.spec
        multiple = max(32, graph.backbone.spec.pad_multiple)
        facts = ModelFacts(
            outputs=graph.outputs,
            preprocess=graph.preprocess,
            has_masks=has_masks,
            categories=CategoryMap(ids=(1, 2, 7), names=("a", "b", "c")),
            image_size=SIDE,
            pad_multiple=multiple,
            preprocessing=graph.backbone.preprocessing,
            postprocess=Postprocess(**vars(heads.postprocess)),
            opset=OPSET,
            provenance={},
        )
        strides = [level.stride for level in spec]
        return Exported(graph, make_file(graph, facts, format, strides=strides))


@pytest.fixture(scope="session")
def kit() -> ExportKit:
    return ExportKit()
