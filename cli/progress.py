"""Progress on stderr: a bar with rate and remaining time, or a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LOG_SECONDS = 15.0


class _Rate(ProgressColumn):
    """Units a second over the last seconds."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while it is unknown."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields['unit']}/s")


class Bar:
    """One node's progress (see `pipeline.node.Progress`).

    Parameters
    ----------
    display : Display
        Where it is shown.
    name : str
        What stands before the bar.
    """

    def __init__(self, display: Display, name: str):
        self._display = display
        self._name = name
        self._lock = threading.Lock()
        self._total = self._done = self._first = 0
        self._unit = ""
        self._begin = self._said = time.monotonic()
        self._task: int | None = None

    def start(self, total: int, done: int, unit: str) -> None:
        """Begin: `done` of `total` units exist already."""
        self._total, self._done, self._first, self._unit = total, done, done, unit
        self._begin = self._said = time.monotonic()
        bars = self._display.bars
        if bars is not None:
            self._task = bars.add_task(self._name, total=total, completed=done, unit=unit, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` further units are done."""
        with self._lock:
            self._done += count
            bars = self._display.bars
            if bars is not None and self._task is not None:
                bars.update(self._task, advance=count, note=note)  # type: ignore[arg-type]
            elif time.monotonic() - self._said >= _LOG_SECONDS:
                self._said = time.monotonic()
                rate = (self._done - self._first) / (self._said - self._begin)
                left = (self._total - self._done) / rate
                self._display.say(
                    f"{self._name}: {self._done}/{self._total} {self._unit}, "
                    f"{rate:.1f}/s, {left:.0f} s left {note}".rstrip()
                )

    def message(self, text: str) -> None:
        """Say something once."""
        self._display.say(text)


class Display:
    """Where all progress goes.

    Attributes
    ----------
    bars : rich Progress or None
        None where stderr is no terminal.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self.bars: Progress | None = None

    def say(self, text: str) -> None:
        """Write one line."""
        if self.bars is not None:
            self._console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def bar(self, name: str) -> Bar:
        """Return a new bar."""
        return Bar(self, name)


@contextmanager
def display() -> Iterator[Display]:
    """Show progress while the block runs."""
    shown = Display()
    if not shown._console.is_terminal:
        yield shown
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=shown._console) as shown.bars:
        yield shown
