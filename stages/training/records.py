"""What is recorded of a training: its losses and scores, and how fast it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from ensdistill.pipeline import atomic
from ensdistill.pipeline.figures import duration, speed
from ensdistill.stages.training import METRICS

T = TypeVar("T")


class Log:
    """What is known of a training's course: losses since the last record, and all records.

    Losses stay on the device until `settle`. The `folder` is where `METRICS` is kept, and a name
    for TensorBoard; None writes nothing.
    """

    def __init__(self, folder: Path | None, tensorboard: Path | None):
        self.metrics: list[dict[str, Any]] = []
        self.losses: list[Any] = []
        self._folder = folder
        self._board: Any = None
        if folder is not None and tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(tensorboard / folder.name))

    def settle(self) -> list[float]:
        """Bring the losses to the host and return them."""
        return _on_host(self.losses)

    def window(self, step: int, rate: float) -> None:
        """Record the mean loss since the last record."""
        self.write({"step": step, "loss": float(np.mean(self.losses)), "lr": rate})
        self.losses.clear()

    def write(self, record: dict[str, Any]) -> None:
        """Add a record to the file, rewritten whole so that a resume leaves no doubles."""
        self.metrics.append(record)
        self.rewrite()
        if self._board is not None:
            for name in record.keys() - {"step"}:
                self._board.add_scalar(name, record[name], record["step"])
            self._board.flush()

    def rewrite(self) -> None:
        """Write the file."""
        if self._folder is not None:
            text = "".join(json.dumps(m) + "\n" for m in self.metrics)
            atomic.write_bytes(self._folder / METRICS, text.encode(), sync=False)

    def last_loss(self) -> float | None:
        """Return the last recorded loss, None without one."""
        return next((float(m["loss"]) for m in reversed(self.metrics) if "loss" in m), None)

    def note(self, pace: Pace) -> str:
        """Return what is worth seeing beside the progress."""
        shown = "" if (loss := self.last_loss()) is None else f"loss {loss:.3f}, "
        return f"{shown}{100 * pace.waiting:.0f} % waiting for data"


_SHORT: Final = 16  # steps; the mean loss of a shorter epoch tells what was drawn in it
_TOGETHER: Final = 64  # steps that several such have to make


class Settling:
    """Whether a training has settled: in an epoch its mean loss fell by less than a `share`.

    None never does. Of epochs of less than 16 steps, as many as make 64 count as one. Losses stay
    on the device until then.
    """

    def __init__(self, share: float | None):
        self.settled = False
        self._share = share
        self._losses: list[Any] = []
        self._means: list[float] = []
        self._epochs = 0  # of these losses

    def step_done(self, loss: Tensor, *, ends_epoch: bool) -> str | None:
        """Count a step, and say in words that the training has settled."""
        if self._share is None:
            return None
        self._losses.append(loss)
        self._epochs += ends_epoch
        steps = len(self._losses)
        if not ends_epoch or (steps < _SHORT * self._epochs and steps < _TOGETHER):
            return None
        self._epochs = 0
        self._means.append(float(np.mean(_on_host(self._losses))))
        self._losses.clear()
        if len(self._means) == 1:
            return None
        before, mean = self._means[-2:]
        self.settled = mean > (1 - self._share) * before
        if not self.settled:
            return None
        return (
            f"settled: the mean loss of its last epoch, {mean:.4f}, is not {100 * self._share:g} % "
            f"below that of the one before, {before:.4f}"
        )

    def state(self) -> list[Any]:
        """Return what a checkpoint keeps."""
        return [self.settled, list(_on_host(self._losses)), list(self._means), self._epochs]

    def load(self, state: list[Any]) -> None:
        """Go on from a checkpoint."""
        self.settled, self._losses, self._means, self._epochs = state


def _on_host(losses: list[Any]) -> list[float]:
    """Bring losses to the host, in place."""
    pending = [x for x in losses if isinstance(x, Tensor)]
    if pending:
        losses[len(losses) - len(pending) :] = torch.stack(pending).tolist()
    return losses


class Pace:
    """How fast a training goes, and how much of it is waiting for data.

    `batch_size` is of all ranks, `steps` are those done in this process.
    """

    def __init__(self, batch_size: int):
        self.steps = 0
        self._here = 0.0  # seconds of all steps here but the first
        self._size = batch_size
        self._images = 0
        self._seconds = self._data = 0.0
        self._epochs: list[float] = []
        self._epoch_seconds = self._epoch_data = 0.0
        self._wait = 0.0
        self._last = 0.0

    def waited(self, batches: Iterable[T]) -> Generator[T]:
        """Yield from `batches`, and take the time that each one is waited for."""
        self._last = begin = time.perf_counter()
        for batch in batches:
            self._wait = time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def step_done(self) -> None:
        """Count a step."""
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        self.steps += 1
        if self.steps == 1:
            return  # starting loader workers, compiling, allocating: told of by no later step
        self._here += spent
        self._images += self._size
        self._seconds += spent
        self._data += self._wait
        self._epoch_seconds += spent
        self._epoch_data += self._wait

    def epoch_done(self) -> None:
        """Close the books of an epoch."""
        if self._epoch_seconds:
            self._epochs.append(round(self._epoch_data / self._epoch_seconds, 4))
        self._epoch_seconds = self._epoch_data = 0.0

    @property
    def waiting(self) -> float:
        """The share of the present epoch spent waiting for data, or of the last one."""
        if self._epoch_seconds:
            return self._epoch_data / self._epoch_seconds
        return self._epochs[-1] if self._epochs else 0.0

    def estimate(self, left: int) -> str:
        """Return how fast steps are done in this process, and what the `left` ones will take."""
        each = self._here / (self.steps - 1)
        return f"{speed(each, 'steps')}, about {duration(each * left)} left"

    def facts(self) -> dict[str, Any]:
        """Return images a second, and the share of waiting for data in all and by epoch."""
        if not self._seconds:
            return {}
        return {
            "images_per_second": round(self._images / self._seconds, 3),
            "data_time": round(self._data / self._seconds, 4),
            "data_time_by_epoch": self._epochs,
        }

    def state(self) -> list[Any]:
        """Return what a checkpoint keeps."""
        return [self._images, self._seconds, self._data, list(self._epochs)]

    def load(self, state: list[Any]) -> None:
        """Go on from a checkpoint."""
        self._images, self._seconds, self._data, self._epochs = state
