"""Sides of a network's maps as shares of the input's, said to the exporter at every stride.

torch derives each layer's side from the side before it; a few strides deep, comparing two of them
takes it seconds. Where a layer gives maps of H / s x W / s, this says so; the file has none of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_NCHW, _NHWC = (2, 3), (1, 2)  # where the sides are


@torch.library.custom_op("cachedet::of_size", mutates_args=())
def of_size(maps: Tensor, shape: list[int]) -> Tensor:
    """The same maps, whose shape is said."""
    return maps.clone()


@of_size.register_fake
def _(maps: Tensor, shape: list[int]) -> Tensor:
    return maps.new_empty(shape)


@contextlib.contextmanager
def known_sizes(
    graph: nn.Module, inputs: tuple[Tensor, Tensor], *, multiple: int
) -> Iterator[None]:
    """Layers that change the size of maps say what it is, as one run on `inputs` has shown.

    Strides that do not divide `multiple`, of which sides are multiples, are left to torch.
    """
    side = {"input": inputs[0].shape}
    strides: dict[nn.Module, tuple[int, tuple[int, int]]] = {}
    at = _NHWC if inputs[0].dtype == torch.uint8 else _NCHW

    def note(module: nn.Module, given: Any, made: Any) -> None:
        found = _stride_of(given, made, [side["input"][axis] for axis in at])
        if found is not None and multiple % found[0] == 0:
            strides[module] = found

    def say(module: nn.Module, _: Any, made: Any) -> Any:
        stride, axes = strides[module]
        shape = list(made.shape)
        for axis, of_input in zip(axes, at, strict=True):
            shape[axis] = side["input"][of_input] // stride
        return of_size(made, shape)

    def begin(_: nn.Module, given: Any) -> None:
        side["input"] = given[0].shape

    leaves = [module for module in graph.modules() if not [*module.children()]]
    handles: list[RemovableHandle] = [graph.register_forward_pre_hook(begin)]
    try:
        noting = [leaf.register_forward_hook(note) for leaf in leaves]
        with torch.no_grad():
            graph(*inputs)
        for handle in noting:
            handle.remove()
        handles += [module.register_forward_hook(say) for module in strides]
        yield
    finally:
        for handle in (*noting, *handles):
            handle.remove()


def _stride_of(given: Any, made: Any, side: list[int]) -> tuple[int, tuple[int, int]] | None:
    """The stride of what a layer made, and where its sides are; None where it kept the size."""
    if not (isinstance(made, Tensor) and made.ndim == 4 and isinstance(given[0], Tensor)):
        return None
    for axes in (_NCHW, _NHWC):
        sides = [made.shape[axis] for axis in axes]
        stride = side[0] // max(sides[0], 1)
        fits = [each * stride for each in sides] == side and stride > 0
        if fits and (given[0].ndim != 4 or [given[0].shape[axis] for axis in axes] != sides):
            return stride, axes
    return None
