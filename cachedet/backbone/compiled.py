"""A frozen backbone as torch compiles it: fewer kernels, and on CUDA one launch for all of them.

Its maps differ from the plain network's as those of another processor do, by rounding. So a store
does not say which of the two computed it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cachedet.backbone.frozen import FrozenBackbone
from cachedet.compiler import compiling
from cachedet.errors import BackboneError
from cachedet.structures import Features

_log = logging.getLogger("cachedet.extract")

Compiler = str | Callable[..., Any]
_COMPILER = "inductor"
_OTHERWISE = "leave --compile out: the features are the same within rounding"


class CompiledBackbone(nn.Module):
    """Compiled with its first batch, for one size of batch and images of any size.

    A smaller batch is filled up, as it would be compiled for anew. Images of a second size make it
    compile once more, for all sizes.
    """

    def __init__(
        self, backbone: FrozenBackbone, *, batch_size: int, compiler: Compiler = _COMPILER
    ) -> None:
        super().__init__()
        device = next(backbone.parameters()).device
        # torch before 2.14 records graphs of CUDA in the main thread only
        is_main = threading.current_thread() is threading.main_thread()
        self._has_graphs = device.type == "cuda" and is_main and compiler == _COMPILER
        model: Any = torch.compile(
            backbone.model,
            backend=compiler,
            options={"triton.cudagraphs": True} if self._has_graphs else None,
        )
        self._batch_size = batch_size
        self._network = FrozenBackbone(
            name=backbone.name,
            model=model,
            spec=backbone.spec,
            is_nhwc=backbone.is_nhwc,
            preprocessing=backbone.preprocessing,
            weights=backbone.weights,
            digest=backbone.digest,
        )
        _log.info("the backbone is compiled with its first images, which may take minutes")

    def forward(self, images: Tensor) -> Features:
        """As of the plain network. Raises BackboneError where it cannot be compiled."""
        count = len(images)
        whole = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self._batch_size - count))
        if self._has_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with compiling(self._network.name, error=BackboneError, otherwise=_OTHERWISE):
            features = self._network(whole)
        maps = {name: each[:count] for name, each in features.items()}
        # the next batch overwrites what a graph gave
        return {k: v.clone() for k, v in maps.items()} if self._has_graphs else maps
