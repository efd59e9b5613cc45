"""Work over many items: in this process while there is little, then in others too."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

from ensdistill.pipeline.errors import EnsdistillError
from ensdistill.pipeline.node import Progress

T = TypeVar("T")
R = TypeVar("R")

_TRIAL: Final = 0.25  # seconds that are worked here before it is asked how long the rest takes
_STARTING: Final = 2.0  # seconds that must be saved before processes are started
_TASK: Final = 0.25  # seconds of work in a task: what an interruption loses of each worker
_PARTITION: Final = 32  # most items a task: dask takes 0.5 ms for one
_SPREAD: Final = 4  # fewest tasks a worker, so that none waits long for the last one
_MOST_TASKS: Final = 10_000  # more items make larger tasks instead: dask holds all of them
_ONE_THREAD: Final = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)

_work: Callable[[Any], Any]  # of a worker process


def for_each(
    items: Sequence[T],
    work: Callable[[T], R],
    done: Callable[[T, R], object],
    *,
    workers: int,
    progress: Progress,
) -> None:
    """Call ``done(item, work(item))`` for every item.

    The first items are worked on here. If the rest takes so long that it is worth starting worker
    processes, they do it, each with one thread, and hand what they return back to this process:
    only here is anything journalled.

    Parameters
    ----------
    items : sequence
        All that the work needs to know of each; can be pickled.
    work : callable
        Can be pickled, is sent to each worker once, and depends on nothing but its argument.
    done : callable
        Called in this process, in the order in which the work is finished.
    workers : int
        Processes; with 0 and 1 everything is done here.
    progress : Progress
        Advanced by every item that is done.

    Raises
    ------
    EnsdistillError
        If a worker process was killed or could not be started; and whatever `work` and `done`
        raise.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise EnsdistillError(
            "a worker process runs the whole program again: guard what starts the work by "
            '`if __name__ == "__main__":`, or set `runtime: {workers: 1}`'
        )
    begin = time.perf_counter()
    for k, item in enumerate(items):
        if k == 1:
            begin = time.perf_counter()  # the first one opens files and compiles
        done(item, work(item))
        progress.advance()
        spent = time.perf_counter() - begin
        if workers > 1 and k and spent >= _TRIAL:
            left = items[k + 1 :]
            if spent / k * len(left) * (1 - 1 / workers) >= _STARTING:
                most = max(1, min(_PARTITION, int(_TASK * k / max(spent, 1e-9))))
                _spread(left, work, done, workers, progress, most)
                return


def _spread(
    items: Sequence[T],
    work: Callable[[T], R],
    done: Callable[[T, R], object],
    workers: int,
    progress: Progress,
    most: int = _PARTITION,
) -> None:
    """Do what `for_each` does in worker processes alone, `most` items a task at most."""
    import dask.bag
    from dask.callbacks import Callback

    size = max(1, min(most, len(items) // (workers * _SPREAD)), -(-len(items) // _MOST_TASKS))
    bag = dask.bag.from_sequence(items, partition_size=size).map_partitions(_do)
    answered = False

    def finished(key: Any, part: Any, *_: Any) -> None:
        nonlocal answered
        if not isinstance(part, _Part):
            return
        answered = True
        first = key[1] * size
        for k, result in enumerate(part.results, first):
            done(items[k], result)
            progress.advance()
        part.results.clear()  # dask keeps it until all is done
        if part.error is not None:
            raise part.error

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _become_worker, (work,)) as pool:
        with _environment(_ONE_THREAD), _no_interrupt():
            for _ in range(workers):
                pool.submit(_nothing)
        try:
            with Callback(posttask=finished):
                # unoptimised, since that would make a second task of each partition's name
                bag.compute(
                    scheduler="processes",
                    pool=pool,
                    num_workers=workers,
                    chunksize=1,
                    optimize_graph=False,
                )
        except BrokenProcessPool as error:
            happened = "was killed, perhaps for want of memory" if answered else "could not start"
            raise EnsdistillError(
                f"a worker process {happened}; run again (what was done is kept), with fewer "
                "`runtime.workers` if it happens again"
            ) from error


class _Part(NamedTuple):
    """What came of a partition: the results of its items up to the one that failed, if any did."""

    results: list[Any]
    error: Exception | None


def _do(items: Sequence[Any]) -> _Part:
    results: list[Any] = []
    try:
        for item in items:
            results.append(_work(item))
    except Exception as error:
        return _Part(results, _portable(error))
    return _Part(results, None)


def _portable(error: Exception) -> Exception:
    """Return an error as it was, with where it happened as a note, or in words if it can't go."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _nothing() -> None:
    """Only start a worker."""


def _become_worker(work: Callable[[Any], Any]) -> None:
    """Hold what there is to do, leave Ctrl-C to the parent and die with it."""
    global _work  # noqa: PLW0603  (a process has one)
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Put Ctrl-C off, for good in the processes that are started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
