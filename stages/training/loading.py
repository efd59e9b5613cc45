"""Batches that worker processes prepare, and what is said when one of these is no more."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from ensdistill.pipeline.errors import EnsdistillError
from ensdistill.stages.networks.foreign import device_failure, reason
from ensdistill.stages.training.samples import AnySample
from ensdistill.stages.work.items import die_with_parent, no_interrupt, portable
from ensdistill.stages.work.warned import are_heard, speak_alone

_SHARED: Final = "/dev/shm"  # where samples lie on their way here
_AGAIN: Final = "run again (checkpoints are kept)"
_DYING: Final = 1.0  # seconds that it is waited for the end of a process that does not answer
_DONE: Final = 0.05  # seconds from the end of its connections to its own


def load_batches(
    samples: Dataset[AnySample],
    numbers: Sampler[list[int]],
    *,
    workers: int,
    pin: bool,
    name: str,
) -> Iterator[AnySample]:
    """Yield the samples of each step, stacked; who loads them changes nothing.

    With 0 workers they are loaded here; `pin` lays them where a GPU reads them.

    Raises
    ------
    EnsdistillError
        If a worker process was killed or could not be started, or its samples do not arrive; and
        whatever loading a sample raises, as it was.
    """
    loader: DataLoader[Any] = DataLoader(
        _Stacked(samples),
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        generator=torch.Generator(),  # else the loader draws from the global stream
        worker_init_fn=partial(_begin, are_heard()),
    )
    started = _Started()
    try:
        with started.while_starting():
            batches = iter(loader)
    except (OSError, RuntimeError) as error:
        why = reason(error)
        _forget(error)
        raise EnsdistillError(
            f"{name}: the processes that load samples cannot be started ({why}); set fewer "
            "`runtime.workers`, or 0"
        ) from None
    try:
        with started.heard_alone():
            while (found := _next(batches)) is not None:
                if isinstance(found, _LostError):
                    why = found.of_gpu or started.fate(str(found))
                    raise EnsdistillError(f"{name}: {why}")
                if isinstance(found, Exception):
                    raise _told(name, found)
                yield found
    finally:
        del batches  # which ends its processes at once; in a cycle of garbage it would take 5 s


class _LostError(Exception):
    """No samples arrive any more.

    `of_gpu` is what a GPU reports: it is heard of where samples are laid ready for it.
    """

    def __init__(self, error: Exception):
        super().__init__(reason(error))
        self.of_gpu = device_failure(error)


def _next(batches: Iterator[Any]) -> AnySample | Exception | None:
    """Return what comes next, None after the last, without the frames that hold `batches`."""
    try:
        found: AnySample | Exception | None = next(batches, None)
    except Exception as error:
        return _LostError(error)
    return found


def _forget(error: BaseException) -> None:
    """Let go of what is half started, which knows no way to end without complaints."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        error.__traceback__ = None
    finally:
        sys.unraisablehook = before


class _Stacked(Dataset[Any]):
    """Several samples at a time, or what loading them raised: torch would tell it as a text."""

    def __init__(self, samples: Dataset[AnySample]):
        self._samples = samples

    def __getitem__(self, numbers: Sequence[int]) -> AnySample | Exception:
        return self.__getitems__(numbers)

    def __getitems__(self, numbers: Sequence[int]) -> AnySample | Exception:
        try:
            stacked: AnySample = default_collate([self._samples[k] for k in numbers])
        except Exception as error:
            return error if get_worker_info() is None else portable(error)
        return stacked


def _begin(heard: bool, worker: int) -> None:
    """Begin a worker process, which dies with its parent and leaves it to that one to speak."""
    # of connections that nobody needs any more
    sys.excepthook = lambda *_: None
    threading.excepthook = lambda _: None
    die_with_parent()
    if heard:
        speak_alone(worker)


def _as_it_is(found: Any) -> Any:
    return found


def _told(name: str, error: Exception) -> Exception:
    """Return what is to be raised for an error of a worker process."""
    if isinstance(error, MemoryError):
        return EnsdistillError(
            f"{name}: there is no memory to load a sample; {_AGAIN}, with fewer `runtime.workers`"
        )
    if isinstance(error, RuntimeError) and "/torch_" in str(error):  # a file in shared memory
        return EnsdistillError(f"{name}: a sample cannot be handed on ({reason(error)}); {_room()}")
    return error


class _Started:
    """The processes and threads that torch starts to load samples."""

    def __init__(self) -> None:
        self._processes: set[BaseProcess] = set()
        self._threads: set[threading.Thread] = set()

    @contextmanager
    def while_starting(self) -> Iterator[None]:
        """Remember what is started meanwhile; Ctrl-C and the death of a child are for us.

        torch would raise an error for a dead worker wherever the main thread happens to be, such as
        in the code of a network or in the middle of writing a checkpoint. It is noticed soon enough
        where its samples are waited for.
        """
        processes, threads = set(active_children()), set(threading.enumerate())
        here = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD)
        try:
            with no_interrupt():
                yield
        finally:
            if here and before is not None:
                signal.signal(signal.SIGCHLD, before)
            self._processes = set(active_children()) - processes
            self._threads = set(threading.enumerate()) - threads

    @contextmanager
    def heard_alone(self) -> Iterator[None]:
        """Keep what the threads say when they end meanwhile: `fate` is what there is to say."""
        before = threading.excepthook

        def hook(ended: threading.ExceptHookArgs) -> None:
            if ended.thread not in self._threads:
                before(ended)

        threading.excepthook = hook
        try:
            yield
        finally:
            threading.excepthook = before

    def fate(self, why: str) -> str:
        """Say why no samples arrive any more."""
        wait([process.sentinel for process in self._processes], _DYING)
        for process in self._processes:
            process.join(_DONE)
        codes = [process.exitcode for process in self._processes if process.exitcode is not None]
        if not codes:
            return (
                f"the samples of its worker processes do not arrive ({why}); {_AGAIN}, "
                "with fewer `runtime.workers`, or 0, if it happens again"
            )
        who = "a worker process that loads samples"
        if codes[0] >= 0:
            return f"{who} ended with {codes[0]}; {_AGAIN}"
        name = signal.Signals(-codes[0]).name
        if name == "SIGBUS":
            return f"{who} was killed ({name}), as where there is no shared memory left; {_room()}"
        cause = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return (
            f"{who} was killed ({name}){cause}; {_AGAIN}, with fewer `runtime.workers` if it "
            "happens again"
        )


def _room() -> str:
    """Say how much shared memory there is, and what to do about it."""
    try:
        found = f" (it has {shutil.disk_usage(_SHARED).total / 1e6:.3g} MB)"
    except OSError:
        found = ""
    return (
        f"give {_SHARED} more room{found}, in a container by `--shm-size`, or set fewer "
        f"`runtime.workers`, or 0, and {_AGAIN}"
    )
