"""A network as ONNX, for batches and images of any size."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return what `nn.AdaptiveAvgPool2d` does, (N, C, *size) of (N, C, h, w).

    As two products with matrices: torch exports the original for the traced image's size alone,
    and UperNet has a pyramid of them.
    """
    rows, columns = (_shares(n, k) for n, k in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _shares(size: int, cells: int) -> Tensor:
    """Return how much each of `size` pixels counts in each cell, (cells, size) float32."""
    cell = torch.arange(cells)
    first = cell * size // cells
    end = ((cell + 1) * size + cells - 1) // cells
    at = torch.arange(size)[None]
    inside = (at >= first[:, None]) & (at < end[:, None])
    return inside.float() / (end - first)[:, None]


def write_onnx(
    network: nn.Module, file: Path, example: Tensor, metadata: Mapping[str, str]
) -> None:
    """Write a network as one ONNX file, input ``image``, output ``logits``.

    Parameters
    ----------
    network : nn.Module
        (N, 3, H, W) float32 to (N, C, h, w); N, H and W are left open.
    file : Path
        The file to write.
    example : Tensor
        Images to trace it with, at least two.
    metadata : mapping
        What the file says of itself.
    """
    import onnx

    traced = copy.deepcopy(network)
    for module in traced.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            size: Any = module.output_size
            pair = size if isinstance(size, tuple) else (size, size)
            # in its place: UperNet also keeps it in a list of its own
            module.forward = partial(pooled, size=pair)  # type: ignore[method-assign]
    open_sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # says that torchvision's operators are not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's exporter's own, of torch
            program: Any = torch.onnx.export(
                traced,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=(open_sizes,),
            )
    finally:
        registration.setLevel(level)
    model = program.model_proto
    for node in (*model.graph.node, *(n for f in model.functions for n in f.node)):
        del node.metadata_props[:]  # where in whose files each operator is from
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save_model(model, file)
