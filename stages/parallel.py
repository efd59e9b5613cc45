"""Work over many items, through dask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dask.bag

from ensdistill.pipeline.node import Progress

_PARTITION = 16  # items a task: a task takes 0.1 to 1 s, and their number stays linear


def for_each(
    ids: Sequence[str], work: Callable[[str], None], *, workers: int, progress: Progress
) -> None:
    """Call `work` for every id, in partitions over `workers` threads.

    Parameters
    ----------
    ids : sequence of str
        Item ids; each is one call.
    work : callable
        Safe to be called from several threads.
    workers : int
        Threads; 0 and 1 run in the calling thread.
    progress : Progress
        Advanced once a partition.
    """
    if not ids:
        return
    size = max(1, min(_PARTITION, -(-len(ids) // max(workers, 1))))

    def task(part: Sequence[str]) -> list[int]:
        part = list(part)
        for item_id in part:
            work(item_id)
        progress.advance(len(part))
        return [len(part)]

    bag = dask.bag.from_sequence(ids, partition_size=size).map_partitions(task)
    bag.compute(scheduler="threads" if workers > 1 else "synchronous", num_workers=max(workers, 1))
