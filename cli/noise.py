"""What others write while progress is shown: libraries, the user's own code, other processes.

Nothing of it gets between the bars or into results on stdout, or is said again for every image.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Final

from ensdistill.pipeline.escaping import plain
from ensdistill.stages.work.warned import Warned, heard_by, write

Say = Callable[[str], object]

_ROOM: Final = 1 << 20  # bytes that may wait to be read, where the system grants them
_LONGEST: Final = 1 << 16  # bytes of a line
_MOMENT: Final = 0.02  # seconds that what comes is left to `_REST`: an abort follows its reason
_END: Final = b"\0the end\0"
# Waits until this process has ended, or is done with the pipe, and passes on what was not read: the
# last that a library writes before it aborts is why, and what was started meanwhile may go on.
_REST: Final = """
import os, signal, sys, time
done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(True))
while os.getppid() == int(sys.argv[1]) and not done:
    time.sleep(0.2)
while left := os.read(0, 65536):
    os.write(2, left)
"""


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Send what is printed meanwhile to stderr, by this process and by those it starts."""
    with redirect_stdout(sys.stderr):
        if sys.__stdout__ is None or sys.__stderr__ is None:
            yield  # one was closed from the start, and its number may be that of any file
            return
        before = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            os.dup2(before, 1)
            os.close(before)


@contextmanager
def relayed(say: Say) -> Iterator[None]:
    """Hand each line that is written to stderr meanwhile to `say`, which must write elsewhere.

    File descriptor 2 becomes a pipe that a thread reads, so that this holds for C libraries and for
    processes that are started, too. A line that comes again and again is said once, and counted.
    """
    sys.stderr.flush()
    before = os.dup(2)
    out, into = os.pipe()
    with suppress(AttributeError, OSError):  # not every system can
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _ROOM)
    rest = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _REST, str(os.getpid())],
        stdin=out,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt is for us
    )
    reader = threading.Thread(target=_relay, args=(out, sys.stderr.encoding, say), daemon=True)
    reader.start()
    os.dup2(into, 2)
    try:
        yield
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os.dup2(before, 2)
        os.write(into, _END + b"\n")
        reader.join()
        for end in (before, out, into):
            os.close(end)
        rest.terminate()
        threading.Thread(target=rest.wait, daemon=True).start()


def _relay(out: int, encoding: str, say: Say) -> None:
    last, again = "", 0
    for lines in _lines(out):
        shown = []
        for line in lines:
            # as a terminal shows it: what follows the last carriage return is on top
            text = line.rstrip(b"\r").rpartition(b"\r")[2].decode(encoding, "backslashreplace")
            text = plain(text)
            if text and text == last:
                again += 1
                continue
            if again:
                shown.append(_more(again))
            shown.append(text)
            last, again = text, 0
        if shown:
            _try(say, "\n".join(shown))
    if again:
        _try(say, _more(again))


def _try(say: Say, text: str) -> None:
    with suppress(Exception):  # without a reader all who write would wait for ever
        say(text)


def _lines(out: int) -> Iterator[list[bytes]]:
    """Yield the lines that come out of a pipe, some at a time, up to one that ends with `_END`."""
    rest = b""
    coming = select.poll()
    coming.register(out, select.POLLIN)
    while True:
        coming.poll()
        time.sleep(_MOMENT)
        *lines, rest = (rest + os.read(out, _ROOM)).split(b"\n")
        if len(rest) > _LONGEST:
            lines.append(rest[: -len(_END)])
            rest = rest[-len(_END) :]
        for k, line in enumerate(lines):
            if line.endswith(_END):  # and perhaps others go on
                last = line.removesuffix(_END)
                yield [*lines[:k], last] if last else lines[:k]
                return
        yield lines


@contextmanager
def each_once(say: Say) -> Iterator[None]:
    """Say each warning once meanwhile, in one line, and at the end how often it came again.

    One that differs in numbers alone is the same one.
    """
    told = _Told(say)
    try:
        with heard_by(told.hear):
            yield
    finally:
        told.end()


class _Told:
    """Warnings that were said, and how often each came."""

    def __init__(self, say: Say):
        self._say = say
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, int]] = {}

    def hear(self, warned: Warned) -> None:
        """Say a warning that is new, unless only a library's authors can do anything about it."""
        if warned.is_noise:
            return
        # in a fork the bars are another's, and a thread that is not there may hold the lock
        forked = os.getpid() != self._process
        with nullcontext() if forked else self._lock:
            text, times = self._found.get(warned.alike, (str(warned), 0))
            self._found[warned.alike] = (text, times + 1)
        if not times:
            with suppress(OSError):  # whoever warns goes on
                (write if forked else self._say)(text)

    def end(self) -> None:
        """Say how often each came again."""
        for text, times in self._found.values():
            if times > 1:
                with suppress(OSError):  # what else there is to say matters more
                    self._say(f"{text} {_more(times - 1)}")


def _more(times: int) -> str:
    return f"... {times} more time{'s' * (times > 1)}"
