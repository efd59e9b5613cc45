"""Networks over many photographs: decoding, copying, running and reading back overlap."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import STEPS
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.functional.unify import Unified
from ensdistill.stages.networks.answers import Reading
from ensdistill.stages.networks.foreign import blaming_device

# What is wanted of each photograph, as (H, W) arrays: its labels as uint8; how sure the network is
# of them as uint8; its softmax at the network's stride as (C * h, w) uint8; or its labels and, as
# float32, how sure it is.
Want = Literal["labels", "confidence", "soft", "both"]

_AHEAD: Final = 4  # batches that are decoded before they are needed


class Request(NamedTuple):
    """A photograph: its file, and what the file must hold."""

    image: str
    sha256: str


@dataclass
class Clock:
    """Where the time goes, in seconds.

    Attributes
    ----------
    network : float
        The network, and what turns its scores into labels, were at work.
    decode, write : float
        It was waited for photographs to be decoded, or for label maps to be written.
    """

    network: float = 0.0
    decode: float = 0.0
    write: float = 0.0

    @contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Add what the block takes."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, on, getattr(self, on) + time.perf_counter() - begin)

    def shares(self, seconds: float) -> dict[str, float]:
        """Return the shares of a time as fractions; what is neither is waiting."""
        rest = max(0.0, seconds - self.network)
        # a GPU may have been at work meanwhile
        idle = min(1.0, rest / ((self.decode + self.write) or 1.0))
        parts = {"network": self.network, "decode": idle * self.decode, "write": idle * self.write}
        parts["wait"] = max(0.0, seconds - sum(parts.values()))
        return {name: round(part / seconds, 3) for name, part in parts.items()}


class Seeing(Protocol):
    """What is asked of a network: see `frozen.FrozenNetwork`, which is the one there is."""

    at_once: int | None
    device: torch.device
    reading: Reading

    def remarks(self) -> list[str]:
        """Return what there is to say after the first answer, once."""

    def read(self, pixels: Pixels, request: Request) -> tuple[tuple[int, int], list[Tensor]]:
        """Return height and width of a photograph, and what the network sees of it."""

    def to_device(self, photographs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return what `read` returned of some, on the device."""

    def unified(
        self, size: tuple[int, int], inputs: Sequence[Tensor], *, confidence: bool = True
    ) -> list[Unified]:
        """Return their labels, and how sure they are."""

    def soft(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return their softmax."""


class _Decoded(NamedTuple):
    """A photograph as the network sees it at each scale, and its own height and width."""

    request: Request
    size: tuple[int, int]
    inputs: list[Tensor]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [self.size, *(tuple(x.shape) for x in self.inputs)]


class _Launched(NamedTuple):
    """What a device is working on: the results, whether they are numbers, and when they are there.

    The times are events of CUDA.
    """

    requests: list[Request]
    results: list[tuple[Tensor, ...]]
    sound: list[Tensor]
    times: tuple[Any, Any] | None


def stream(
    network: Seeing,
    batches: Sequence[Sequence[Request]],
    want: Want,
    *,
    pixels: Pixels,
    workers: int,
    clock: Clock,
    say: Callable[[str], object],
) -> Generator[list[tuple[npt.NDArray[Any], ...]]]:
    """Yield for each batch what is wanted of each of its photographs.

    Threads decode what comes next; on a GPU the results of a batch are read back while the next one
    runs. Photographs of one batch whose sizes differ run one after another.

    Parameters
    ----------
    batches : sequence of sequence of Request
        What runs at once. Without memory for it halves do, from then on.
    pixels : Pixels
        What reads the photographs, in `workers` threads.
    clock : Clock
        Gets the times.
    say : callable
        Gets messages.

    Raises
    ------
    DataError
        If a file is unreadable or another one than was planned for, the network's output is not
        what was declared or not a number, or there is no memory for half a batch.
    """
    pool = ThreadPoolExecutor(max(1, workers), "decode")
    coming: deque[list[Future[_Decoded]]] = deque()
    later = iter(batches)

    def fetch() -> None:
        for batch in later:
            coming.append([pool.submit(_decode, network, pixels, request) for request in batch])
            if len(coming) >= max(_AHEAD, workers):
                break

    before: list[_Launched] = []
    try:
        fetch()
        while coming:
            with clock.spent("decode"):
                batch = [decoded.result() for decoded in coming.popleft()]
            fetch()
            launched = _launch(network, batch, want, clock, say)
            for text in network.remarks():
                say(text)
            if network.device.type == "cpu":
                yield _finish(network, launched, clock)
                continue
            if before:
                yield _finish(network, before, clock)
            before = launched
        if before:
            yield _finish(network, before, clock)
    finally:
        pool.shutdown(cancel_futures=True)


@blaming_device()  # for memory that it reads
def _decode(network: Seeing, pixels: Pixels, request: Request) -> _Decoded:
    return _Decoded(request, *network.read(pixels, request))


def _launch(
    network: Seeing, batch: list[_Decoded], want: Want, clock: Clock, say: Callable[[str], object]
) -> list[_Launched]:
    """Let the network run over a batch, in as many parts as sizes and memory ask for."""
    launched = []
    for _, same in groupby(batch, key=lambda decoded: decoded.shapes):
        part = list(same)
        while part:
            now = part[: network.at_once]
            try:
                launched.append(_run(network, now, want, clock))
            except torch.OutOfMemoryError as error:
                if network.at_once is not None or len(now) == 1:
                    raise DataError(
                        f"there is no memory for {len(now)} images at once; set `runtime: "
                        "{batch_size: 1}`, or let the network see parts: `preprocess: {tiles: "
                        "{size: [HEIGHT, WIDTH]}}`, or `precision: bfloat16` on the network"
                    ) from error
                network.at_once = (len(now) + 1) // 2
                if network.device.type == "cuda":
                    torch.cuda.empty_cache()
                say(
                    f"no memory for {len(now)} images at once: {network.at_once} from now on "
                    "(`runtime: {batch_size: ...}`)"
                )
            else:
                part = part[len(now) :]
    return launched


@blaming_device()
def _run(network: Seeing, batch: list[_Decoded], want: Want, clock: Clock) -> _Launched:
    times = None
    if network.device.type == "cuda":
        begin = _mark(network.device)
        found = _find(network, batch, want)
    else:
        with clock.spent("network"):
            found = _find(network, batch, want)
    results, sound = [], []
    for tensors, numbers in found:
        results.append(tuple(t.to("cpu", non_blocking=True) for t in tensors))
        sound.append(numbers.to("cpu", non_blocking=True))
    if network.device.type == "cuda":
        times = begin, _mark(network.device)
    return _Launched([decoded.request for decoded in batch], results, sound, times)


def _mark(device: torch.device) -> Any:
    """Return an event of CUDA that comes when a device has done all that it was given so far."""
    event: Any = torch.cuda.Event
    mark = event(enable_timing=True)
    # of this device: left out, it would be the first one's queue, in which nothing may be waiting
    mark.record(torch.cuda.current_stream(device))
    return mark


def _find(
    network: Seeing, batch: list[_Decoded], want: Want
) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Return what is wanted of each photograph, and whether it is a number."""
    inputs = network.to_device([decoded.inputs for decoded in batch])
    if want == "soft":
        soft = network.soft(inputs)
        return [((_in_steps(one.flatten(0, 1)),), one.isfinite().all()) for one in soft]
    found = network.unified(batch[0].size, inputs, confidence=want != "labels")
    if want == "labels":
        return [((one.labels,), one.sound) for one in found]
    if want == "both":
        return [((one.labels, _given(one.confidence)), one.sound) for one in found]
    return [((_in_steps(_given(one.confidence)),), one.sound) for one in found]


def _in_steps(confidence: Tensor) -> Tensor:
    """Return fractions as uint8 in steps of 1/250."""
    return (confidence * STEPS).round_().to(torch.uint8)


def _given(confidence: Tensor | None) -> Tensor:
    assert confidence is not None
    return confidence


@blaming_device()
def _finish(
    network: Seeing, launched: list[_Launched], clock: Clock
) -> list[tuple[npt.NDArray[Any], ...]]:
    """Wait for results and return them."""
    found = []
    for requests, results, sound, times in launched:
        if times is not None:
            times[1].synchronize()
            clock.network += times[0].elapsed_time(times[1]) / 1000
        for request, tensors, numbers in zip(requests, results, sound, strict=True):
            if not bool(numbers):
                below = ", or below 0" if network.reading.output == "probabilities" else ""
                raise DataError(f"the network's output for {request.image} is not a number{below}")
            found.append(tuple(np.asarray(t.numpy()) for t in tensors))
    return found
