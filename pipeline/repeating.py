"""Calls that are made again and again while something else is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, call: Callable[[], object]) -> Iterator[None]:
    """Make a call every so many seconds in a thread while the block runs; after it there is none.

    A call that raises is the last one.
    """
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(seconds):
            call()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
