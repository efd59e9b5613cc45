"""Work over many items: in this process while there is little, then in others too."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ensdistill.pipeline.errors import EnsdistillError
from ensdistill.pipeline.node import Progress

R = TypeVar("R")

_PARTITION: Final = 32  # items a task: dask takes 0.5 ms for one, and a kill loses one a worker
_MOST_TASKS: Final = 10_000  # more items make larger tasks instead: dask holds all of them
_TASKS: Final = 4  # fewest tasks a worker: none waits long for the last one
_TRIAL: Final = 0.25  # seconds that are worked here before it is asked how long the rest takes
_STARTING: Final = 2.0  # seconds that must be saved before processes are started
_THREADS: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_work: Callable[[str], Any]  # of a worker process


def for_each(
    ids: Sequence[str],
    work: Callable[[str], R],
    done: Callable[[str, R], None],
    *,
    workers: int,
    progress: Progress,
) -> None:
    """Call ``done(id, work(id))`` for every id.

    The first ids are worked on here. If the rest takes so long that it is worth starting worker
    processes, they do it, each with one thread, and hand what they return back to this process:
    only here is anything journalled.

    Parameters
    ----------
    ids : sequence of str
        Item ids; each is one call.
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
        If a worker process was killed; and whatever `work` and `done` raise.
    """
    begin = time.perf_counter()
    left = len(ids)
    for k, item_id in enumerate(ids):
        if k == 1:
            begin = time.perf_counter()  # the first one opens files and compiles
        done(item_id, work(item_id))
        progress.advance()
        left -= 1
        spent = time.perf_counter() - begin
        if workers > 1 and k and spent >= _TRIAL:
            saved = spent / k * left * (1 - 1 / workers)
            if saved >= _STARTING:
                break
    if left:
        _spread(ids[len(ids) - left :], work, done, workers, progress)


def _spread(
    ids: Sequence[str],
    work: Callable[[str], R],
    done: Callable[[str, R], None],
    workers: int,
    progress: Progress,
) -> None:
    import dask.bag
    from dask.callbacks import Callback

    size = min(_PARTITION, -(-len(ids) // (workers * _TASKS)))
    size = max(size, -(-len(ids) // _MOST_TASKS))
    bag = dask.bag.from_sequence(ids, partition_size=size).map_partitions(_do)

    def finished(key: Any, part: Any, *_: Any) -> None:
        for item_id, result in part:
            done(item_id, result)
            progress.advance()
        part.clear()  # dask keeps it until all is done

    with (
        _environment(dict.fromkeys(_THREADS, "1")),
        ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _become_worker, (work,)
        ) as pool,
    ):
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
            raise EnsdistillError(
                "a worker process was killed, perhaps for want of memory; run again (what was "
                "done is kept), with fewer `runtime.workers` if it happens again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _do(part: Sequence[str]) -> list[tuple[str, Any]]:
    return [(item_id, _work(item_id)) for item_id in part]


def _become_worker(work: Callable[[str], Any]) -> None:
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
