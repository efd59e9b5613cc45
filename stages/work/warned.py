"""Warnings of Python, and what libraries log, as a user should meet them.

Other processes keep theirs and hand them back with their results. They are issued again in the
process that runs the command, so that one place decides what is shown, and nothing is said by each
of eight workers.
"""

from __future__ import annotations

import builtins
import logging
import os
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from ensdistill.pipeline.escaping import in_a_line

_INSTALLED: Final = ("site-packages", "dist-packages")
_PYTHON: Final = Path(sysconfig.get_path("stdlib"))
_OURS: Final = [
    Path(__file__).resolve().parents[2] / p for p in ("cli", "data", "pipeline", "stages")
]
# what these say is addressed to whoever wrote the code that is named
_TO_AUTHORS: Final = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


class Warned(NamedTuple):
    """A warning, as it travels between processes, and the code that it is about.

    Its category is the nearest built-in class of warnings, or the level of what was logged.
    """

    text: str
    category: str
    file: str
    line: int

    @classmethod
    def of(cls, message: Warning | str, category: type[Warning], file: str, line: int) -> Warned:
        """Return a warning as Python describes it."""
        kind = next(c for c in category.__mro__ if c.__module__ == "builtins")
        return cls(str(message), kind.__name__, file, line)

    @property
    def package(self) -> str | None:
        """The library whose code it is about; None for code of the user's own."""
        path = Path(self.file)
        for k, part in enumerate(path.parts[:-1]):
            if part in _INSTALLED:
                return path.parts[k + 1].removesuffix(".py")
        if any(path.is_relative_to(ours) for ours in _OURS):
            return "ensdistill"
        if path.is_relative_to(_PYTHON):
            return path.relative_to(_PYTHON).parts[0].removesuffix(".py")
        return None

    @property
    def is_noise(self) -> bool:
        """Whether only the authors of a library can do anything about it."""
        kind = getattr(builtins, self.category, Warning)
        return issubclass(kind, _TO_AUTHORS) and self.package is not None

    @property
    def alike(self) -> str:
        """What it has in common with the same warning about another image: all but numbers."""
        return re.sub(r"\d+", "0", str(self))

    def __str__(self) -> str:
        kind = "warning" if hasattr(builtins, self.category) else self.category.lower()
        where = self.package or f"{self.file}:{self.line}"
        return f"{kind}: {' '.join(self.text.split())} ({where})"


@contextmanager
def heard_by(hear: Callable[[Warned], object]) -> Iterator[None]:
    """Give every warning to a function meanwhile, in whatever thread, instead of printing it.

    Filters hold, but Python itself would give a warning only where its text is new. Of what is
    logged it is that for which nobody set up anything.
    """
    last_resort = logging.lastResort
    with warnings.catch_warnings():
        warnings.simplefilter("always", append=True)
        warnings.showwarning = _hook(hear)
        logging.lastResort = _Unhandled(hear, last_resort)
        try:
            yield
        finally:
            logging.lastResort = last_resort


@contextmanager
def kept() -> Iterator[Counter[Warned]]:
    """Count the warnings that are given meanwhile."""
    found: Counter[Warned] = Counter()
    with heard_by(lambda warned: found.update([warned])):
        yield found


def taken(found: Counter[Warned]) -> list[tuple[Warned, int]]:
    """Take all out of a counter that other threads may add to."""
    return [(warned, found.pop(warned)) for warned in list(found)]


def issue(found: Iterable[tuple[Warned, int]]) -> None:
    """Give warnings of another process in this one, each as often as it was given there."""
    for (text, category, file, line), times in found:
        kind = getattr(builtins, category, None)
        logged = {"msg": text, "levelname": category, "pathname": file, "lineno": line}
        for _ in range(times):
            if kind is not None:
                warnings.warn_explicit(text, kind, file, line)
            elif logging.lastResort is not None:
                logging.lastResort.handle(logging.makeLogRecord(logged))


def are_heard() -> bool:
    """Whether warnings are given to a function, and not printed as Python does."""
    return warnings.showwarning.__module__ != warnings.__name__


def speak_alone(worker: int) -> None:
    """Let the first of several that do the same give each warning, once and in a line."""
    said: set[str] = set()

    def hear(warned: Warned) -> None:
        if worker == 0 and not warned.is_noise and warned.alike not in said:
            said.add(warned.alike)
            write(str(warned))

    warnings.showwarning = _hook(hear)


def write(line: str) -> None:
    """Write a line on stderr, from a process whose `sys.stderr` may be another's."""
    os.write(2, in_a_line(line).encode() + b"\n")


def _hook(hear: Callable[[Warned], object]) -> Any:
    """Return what may take the place of `warnings.showwarning`."""
    return lambda message, category, file, line, *_: hear(Warned.of(message, category, file, line))


class _Unhandled(logging.Handler):
    """Stands for the last resort of `logging`; errors with a traceback still go there."""

    def __init__(self, hear: Callable[[Warned], object], last_resort: logging.Handler | None):
        super().__init__(logging.WARNING)
        self._hear = hear
        self._last_resort = last_resort

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on what is logged."""
        try:
            if not record.exc_info:
                text = record.getMessage()
                self._hear(Warned(text, record.levelname, record.pathname, record.lineno))
            elif self._last_resort is not None:
                self._last_resort.handle(record)
        except Exception:
            self.handleError(record)  # whoever logs goes on
