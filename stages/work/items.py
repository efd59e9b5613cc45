"""Work over many items: in this process while there is little, then in others too."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ensdistill.pipeline.errors import EnsdistillError
from ensdistill.stages.work.warned import Warned, issue, kept, taken

T = TypeVar("T")
R = TypeVar("R")

TRIAL: Final = 0.25  # seconds that are worked here before it is asked how long the rest takes
STARTING: Final = 2.0  # seconds that must be saved before processes are started
_WAITING: Final = 8  # calls of a queue
_TASK: Final = 0.25  # seconds of work in a task: what an interruption loses of each worker
_PARTITION: Final = 32  # most items a task: dask takes 0.5 ms for one
_SPREAD: Final = 4  # fewest tasks a worker, so that none waits long for the last one
_MOST_TASKS: Final = 10_000  # more items make larger tasks instead: dask holds all of them
_THREADS: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_work: Callable[[Any], Any]  # of a worker process


class Steps(Protocol):
    """What is told of every item that is done, such as a `pipeline.node.Progress`."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` further items are done."""


class Silence:
    """Progress that reports nothing."""

    def start(self, total: int, done: int, unit: str) -> None:
        """Begin."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Go on."""

    def message(self, text: str) -> None:
        """Say nothing."""


class Queue:
    """Calls, one after another in a thread, while the caller goes on.

    Few wait at a time. Leaving the block waits for all of them; what one of them raised is raised
    by a later `put`, or there.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "queue")
        self._waiting: deque[Future[object]] = deque()

    def put(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have a call made, after waiting for an early one where too many are waiting."""
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(call, *arguments))

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for call in self._waiting:
                call.result()


def for_each(
    items: Sequence[T],
    work: Callable[[T], R],
    done: Callable[[T, R], object],
    *,
    workers: int,
    progress: Steps,
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
    progress : Steps
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
        if workers > 1 and k and spent >= TRIAL:
            left = items[k + 1 :]
            if spent / k * len(left) * (1 - 1 / workers) >= STARTING:
                most = max(1, min(_PARTITION, int(_TASK * k / max(spent, 1e-9))))
                share_out(left, work, done, workers, progress, most)
                return


def share_out(
    items: Sequence[T],
    work: Callable[[T], R],
    done: Callable[[T, R], object],
    workers: int,
    progress: Steps,
    most: int = _PARTITION,
) -> None:
    """Do what `for_each` does in worker processes alone, `most` items a task at most."""
    size = max(1, min(most, len(items) // (workers * _SPREAD)), -(-len(items) // _MOST_TASKS))
    answered = False

    def finished(first: int, part: _Part) -> None:
        nonlocal answered
        answered = True
        for k, result in enumerate(part.results, first):
            done(items[k], result)
            progress.advance()
        part.results.clear()  # dask keeps it until all is done
        issue(part.warned)
        if part.error is not None:
            raise part.error

    with processes(workers, 1, _hold, work) as pool:
        try:
            compute(items, _do, finished, pool=pool, size=size)
        except BrokenProcessPool as error:
            happened = "was killed, perhaps for want of memory" if answered else "could not start"
            raise EnsdistillError(
                f"a worker process {happened}; run again (what was done is kept), with fewer "
                "`runtime.workers` if it happens again"
            ) from error


def compute(
    items: Sequence[T],
    do: Callable[[Sequence[T]], R],
    finished: Callable[[int, R], object],
    *,
    pool: Executor,
    size: int = 1,
) -> None:
    """Call ``finished(k, do(items[k : k + size]))`` for every task of `size` items.

    Items can be pickled, and `do`, a function of a module, is called in the pool; `finished` in
    this process, in the order in which the tasks are finished.
    """
    import dask.bag
    from dask.callbacks import Callback

    bag = dask.bag.from_sequence(items, partition_size=size).map_partitions(do)

    def posttask(key: Any, result: R, *_: Any) -> None:
        if key[0] == bag.name:  # and not what gathers the results
            finished(key[1] * size, result)

    with Callback(posttask=posttask):
        # unoptimised, since that would make a second task of each partition's name
        bag.compute(scheduler="processes", pool=pool, chunksize=1, optimize_graph=False)


@contextmanager
def processes(
    count: int, threads: int, begin: Callable[..., object], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of new processes, which leave Ctrl-C to this one and die with it.

    Libraries start so many `threads` in each. `begin`, a function of a module, is called with
    `arguments` there before any work.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _become_worker, (begin, *arguments)) as pool:
        with _environment(dict.fromkeys(_THREADS, str(threads))), no_interrupt():
            for _ in range(count):
                pool.submit(_nothing)
        yield pool


class _Part(NamedTuple):
    """What came of a partition: the results of its items up to the one that failed, if any did.

    And the warnings that were given, each with how often.
    """

    results: list[Any]
    warned: list[tuple[Warned, int]]
    error: Exception | None


def _do(items: Sequence[Any]) -> _Part:
    results: list[Any] = []
    failed = None
    with kept() as warned:
        try:
            for item in items:
                results.append(_work(item))
        except Exception as error:
            failed = portable(error)
    return _Part(results, taken(warned), failed)


def portable(error: Exception) -> Exception:
    """Return an error as it was, with where it happened as a note, or in words if it can't go."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _nothing() -> None:
    """Only start a worker."""


def _hold(work: Callable[[Any], Any]) -> None:
    """Keep what there is to do with each item."""
    global _work  # noqa: PLW0603  (a process has one)
    _work = work


def _become_worker(begin: Callable[..., object], *arguments: Any) -> None:
    """Leave Ctrl-C to the parent and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    begin(*arguments)


def die_with_parent() -> None:
    """Let this process end when the one that started it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()  # at once where it has ended before this process came so far
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
def no_interrupt() -> Iterator[None]:
    """Put Ctrl-C off, for good in the processes that are started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
