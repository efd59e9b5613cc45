"""Networks in files that carry their own code: exported programs and TorchScript.

Both are read with pickle or hold programs, so that whoever wrote such a file runs code here: the
caller loads only what the user trusts.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.networks.foreign import Fixed, refusing, run_as_fixed
from ensdistill.stages.networks.whole import require_whole


class Program(nn.Module):
    """A network that is what it was when it was written: training or evaluating is decided.

    It answers with `program` to images of the sizes and type that it was written for.
    """

    def __init__(
        self,
        program: nn.Module,
        file: Path,
        fixed: Fixed = Fixed(),  # noqa: B008 - it is immutable
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.program = program
        self._file = file
        self._fixed = fixed
        self._dtype = dtype

    def train(self, mode: bool = True) -> Program:
        """Change nothing: an exported program knows no modes."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Any:
        """Return what it answers to (N, 3, H, W) float32 images."""
        return run_as_fixed(self._answer, images.to(self._dtype), self._fixed, self._file)

    def _answer(self, images: Tensor) -> Any:
        return self.program(images)


def exported_network(file: Path, device: torch.device) -> Program:
    """Load what `torch.export.save` wrote, also for another device. The file can run any code.

    Raises
    ------
    DataError
        If it is no such file, takes something else than images, or was written in training mode.
    """
    require_whole(file)
    remedy = "; expected what `torch.export.save` writes"
    silent = _silent(logging.getLogger("torch.export"))
    with silent, refusing(f"{file} holds no exported program", remedy):
        program = move_to_device_pass(torch.export.load(file), device)
        module = program.module()
    for name in _training(program):
        raise DataError(
            f"{file} was exported in training mode: its {name} answers differently every time; "
            "call `model.eval()` before `torch.export.export`"
        )
    taken = [
        node.meta.get("val")
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in program.graph_signature.user_inputs
    ]
    if len(taken) != 1 or not isinstance(taken[0], Tensor) or taken[0].ndim != 4:
        what = [list(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in taken]
        raise DataError(f"{file} takes {what}; expected one tensor of (N, 3, H, W) images")
    batch, channels, height, width = (s if isinstance(s, int) else None for s in taken[0].shape)
    if channels not in (None, 3):
        raise DataError(f"{file} takes images of {channels} channels; expected 3")
    return Program(module, file, Fixed(batch, height, width), taken[0].dtype)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Let torch not log the traceback of each way in which it fails to read a file."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def torchscript_network(file: Path, device: torch.device) -> Program:
    """Load what `torch.jit.save` wrote, a program of its own; DataError if the file is none."""
    require_whole(file)
    remedy = "; expected what `torch.jit.save` writes"
    with warnings.catch_warnings(), refusing(f"{file} holds no TorchScript", remedy):
        # the file is there, whatever torch would rather have been given
        warnings.filterwarnings("ignore", ".torch.jit.load. is", DeprecationWarning)
        module = torch.jit.load(file, map_location=device)  # type: ignore[no-untyped-call]
    return _Script(module.eval(), file)


class _Script(Program):
    def _answer(self, images: Tensor) -> Any:
        # else it is rewritten after the first images, and the last bits depend on their number
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return super()._answer(images)


def _training(program: ExportedProgram) -> Iterator[str]:
    """Yield the operators of a program that behave as in training."""
    for module in program.graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            schema = getattr(node.target, "_schema", None)
            for position, argument in enumerate(schema.arguments if schema else ()):
                value = node.args[position] if position < len(node.args) else None
                value = node.kwargs.get(argument.name, value)
                if argument.name in ("training", "train", "dropout_p") and value:
                    yield str(node.target)
