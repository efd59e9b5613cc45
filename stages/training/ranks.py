"""Several processes that train one network together, started by ``torchrun``.

Rank 0 runs the command as if it were alone: it plans, holds the locks and writes. The others wait
for orders: each training that rank 0 begins is handed to them, and they keep step with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ensdistill.pipeline.errors import DataError

# Ranks wait for rank 0 while it does what only it does, such as inference.
_PATIENCE: Final = timedelta(days=30)
_STEP: Final = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """The processes that share a training; by default there is one, without a group of torch's."""

    rank: int = 0
    count: int = 1
    group: Any = None

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values, group=self.group)
        return values

    def share(self, value: Any) -> Any:
        """Return what rank 0 gives, at every rank."""
        return value if self.count == 1 else _of_rank_0(value)


def launched() -> bool:
    """Whether ``torchrun`` started this process, with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _joined() -> bool:
    """Whether this process is one of several; those it starts inherit what `launched` looks at."""
    return dist.is_available() and dist.is_initialized()


def together() -> int:
    """Return how many processes train together, this one among them."""
    return dist.get_world_size() if _joined() else 1


def join() -> int:
    """Meet the other processes and return this one's rank."""
    dist.init_process_group("gloo", timeout=_PATIENCE)
    return dist.get_rank()


def follow(train: Callable[[Any], object]) -> None:
    """Call `train` with every order of rank 0, until it has no more."""
    while (order := _of_rank_0(None)) is not None:
        train(order)
    _part()


def give(order: Any) -> None:
    """Hand a training to the other ranks, if there are any."""
    if _joined():
        _of_rank_0(order)


def dismiss() -> None:
    """Let the other ranks go."""
    _of_rank_0(None)
    _part()


def _part() -> None:
    """Leave together: a process that is left alone aborts in the threads of its connections."""
    dist.barrier()
    dist.destroy_process_group()


def meet(device: torch.device) -> Ranks:
    """Return the ranks of a training; all of them call it."""
    if not _joined():
        return Ranks()
    backend = "nccl" if device.type == "cuda" else "gloo"
    group = dist.new_group(backend=backend, timeout=_STEP)
    return Ranks(dist.get_rank(), dist.get_world_size(), group)


def own_device(device: torch.device) -> torch.device:
    """Return this rank's own device: of CUDA devices, the one that ``torchrun`` numbered.

    Raises
    ------
    DataError
        If there are fewer devices than processes on this machine, or one device was asked for.
    """
    if not _joined() or device.type != "cuda":
        return device
    if device != torch.device("cuda"):
        raise DataError(f"runtime.device: {device} cannot be that of several processes; use cuda")
    index, processes = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if processes > torch.cuda.device_count():
        raise DataError(
            f"torchrun started {processes} processes on this machine, which "
            f"has {torch.cuda.device_count()} CUDA devices; start one for each"
        )
    torch.cuda.set_device(index)  # or every rank would keep a context on the first device too
    return torch.device("cuda", index)


def require_parts(node: str, recipe: Mapping[str, Any], count: int) -> None:
    """Refuse, by a `DataError`, a batch that `count` processes cannot cut into equal parts."""
    share = recipe["accumulate"] * count
    if recipe["batch_size"] % share:
        raise DataError(
            f"{node}: batch_size is {recipe['batch_size']}; expected a multiple of {share}, for "
            f"{count} processes with `accumulate: {recipe['accumulate']}`"
        )


def _of_rank_0(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
