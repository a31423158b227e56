"""The licence of a backbone's weights, as far as those who give them away say it."""

from __future__ import annotations

import importlib.metadata

from timm.models import get_pretrained_cfg

from cachedet.backbone.weights import PACKAGES


def licence_of(name: str, *, weights: str) -> str:
    """In words, for weights that are described as `FrozenBackbone.weights` does.

    Examples:
        >>> licence_of("resnet50", weights="timm hub")
        'apache-2.0, as timm says'
    """
    if weights == "random":
        return "none needed: the weights are random"
    if weights.startswith("package ") and name in PACKAGES:
        return _of_package(PACKAGES[name].distribution)
    if weights != "timm hub":
        return "not known: ask where the weights come from"
    config = get_pretrained_cfg(name, allow_unregistered=True)
    stated = config.license if config is not None else None
    return f"{stated}, as timm says" if stated else "not stated by timm"


def _of_package(distribution: str) -> str:
    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        return f"not known: the package {distribution} is not installed"
    stated = _field(metadata, "License-Expression") or _field(metadata, "License")
    if stated in ("", "UNKNOWN"):
        home = _field(metadata, "Home-page") or "its page on the registry"
        return f"not stated by the package {distribution}; see {home}"
    return f"{stated}, as the package {distribution} says"


def _field(metadata: importlib.metadata.PackageMetadata, name: str) -> str:
    """Its first line: some packages give the whole licence."""
    values = metadata.get_all(name) or [""]
    return str(values[0]).strip().split("\n")[0]
