"""What caches of photographs share: whose a folder is, and what of it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ensdistill.data.cached import Cache
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.ownership import is_own, own
from ensdistill.stages.work.items import for_each

_TRIES: Final = 10
_PAUSE: Final = 0.05  # seconds


def opened(cache: Cache[Any], mark: str) -> set[str]:
    """Open a cache in a folder of ours, and return the digests of what lies there.

    Raises
    ------
    DataError
        If the folder is a link.
    OSError
        If it cannot be made, or is somebody else's.
    """
    tries = 0
    while not is_own(cache.folder, mark) and not cache.is_free():
        if (tries := tries + 1) > _TRIES:
            raise OSError("it holds files of others")
        time.sleep(_PAUSE)  # another process may be about to leave our mark
    own(cache.folder, mark)
    return cache.open()


def whole_of(
    cache: Cache[Any],
    present: Sequence[str],
    workers: int,
    progress: Progress,
    say: Callable[[str], object],
    what: str,
    again: str,
) -> set[str]:
    """Return what is whole of what is present, and say what is not."""
    found: dict[str, str | None] = {}
    progress.start(len(present), 0, what)
    for_each(present, cache.fault, found.__setitem__, workers=workers, progress=progress)
    faults = {sha256: fault for sha256, fault in found.items() if fault is not None}
    if faults:
        sha256 = min(faults)
        say(
            f"{len(faults)} of {len(present)} {what} are not used, such as "
            f"{cache.file(sha256)} ({faults[sha256]}); {again}"
        )
    return found.keys() - faults.keys()
