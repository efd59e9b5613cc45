"""Progress on stderr: a bar with speed and remaining time, or a line now and then in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from ensdistill.cli.noise import each_once, relayed, stdout_for_results
from ensdistill.cli.rate import Rate
from ensdistill.cli.screen import line
from ensdistill.pipeline.escaping import in_a_line
from ensdistill.pipeline.figures import duration, size, speed
from ensdistill.pipeline.repeating import every

_LOG_SECONDS: Final = 15.0  # between two lines of a log
_SILENCE: Final = 60.0  # seconds without a unit that a log tells of; the next time twice as many
_QUIET: Final = 10.0  # seconds without a unit after which there is no estimate


class Bar:
    """One node's progress (see `pipeline.node.Progress`); its name stands before the bar."""

    def __init__(self, display: Display, name: str):
        self.name = name
        self._display = display
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._begin(0, 0, "")

    def _begin(self, total: int, done: int, unit: str) -> None:
        self._total, self._done, self._unit, self._note = total, done, unit, ""
        self._rate = Rate(time.monotonic())
        self._said, self._patience = done, _SILENCE

    def start(self, total: int, done: int, unit: str) -> None:
        """Begin, perhaps anew with other units: `done` of `total` exist already."""
        with self._lock:
            self._begin(total, done, unit)
            self._task = self._display.show(self, self._task, total, done)

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` further units are done."""
        with self._lock:
            self._done += count
            self._note = note
            self._rate.add(count, time.monotonic())
            if self._task is not None and self._display.bars is not None:
                self._display.bars.advance(self._task, count)

    def message(self, text: str) -> None:
        """Say something once."""
        self._display.say(text)

    def counted(self) -> str:
        """Return how much is done of how much."""
        if self._unit == "bytes":
            return f"{size(self._done)} of {size(self._total)}"
        return f"{self._done}/{self._total} {self._unit}"

    def course(self) -> str:
        """Return speed and remaining time, as far as they are known, and the last note."""
        now, rate = time.monotonic(), self._rate
        each, silence, missing = rate.seconds_each, now - rate.last, self._total - self._done
        found = [] if each is None else [speed(each, self._unit)]
        if missing > 0 and silence > max(_QUIET, 3 * (each or 0)):
            found.append(f"nothing for {duration(silence)}")
        elif missing > 0 and (left := rate.left(missing, now)) is not None:
            found.append(f"{duration(left)} left")
        return ", ".join([*found, *filter(None, [self._note])])

    def news(self) -> str | None:
        """Return a line for a log: how far it is, or that nothing comes; None without either."""
        with self._lock:
            if self._done >= self._total:
                return None
            if self._done != self._said:
                self._said, self._patience = self._done, _SILENCE
            elif time.monotonic() - self._rate.last < self._patience:
                return None
            else:
                self._patience *= 2
            return f"{self.name}: {', '.join(filter(None, [self.counted(), self.course()]))}"


class _OfBar(ProgressColumn):
    """What a bar says of itself."""

    def __init__(self, text: Callable[[Bar], str], column: Column):
        super().__init__(column)
        self._text = text

    def render(self, task: Task) -> Text:
        """Return it for the bar of a task."""
        return Text(in_a_line(self._text(task.fields["bar"])), no_wrap=True, overflow="ellipsis")


class Display:
    """Where all progress goes; there are no `bars` where stderr is no terminal."""

    def __init__(self) -> None:
        self.bars: Progress | None = None
        self._console: Console | None = None
        self._all: list[Bar] = []

    def say(self, text: str) -> None:
        """Write one line, whatever is in it."""
        self._write(line(text))

    def _write(self, text: str) -> None:
        if self._console is not None:
            self._console.print(Text(text), soft_wrap=True)
        else:
            print(f"{text}\n", end="", file=sys.stderr, flush=True)  # whole, whoever else writes

    def bar(self, name: str) -> Bar:
        """Return a new bar."""
        bar = Bar(self, name)
        self._all.append(bar)
        return bar

    def show(self, bar: Bar, task: TaskID | None, total: int, done: int) -> TaskID | None:
        """Show a bar from its beginning, in the place where it was; None if there are no bars."""
        if self.bars is None:
            return None
        if task is not None:
            self.bars.reset(task, total=total, completed=done, visible=True)
            return task
        for old in self.bars.tasks:  # what does not fit is cut off below, where the work is
            seen = sum(of.visible for of in self.bars.tasks)
            if old.visible and old.finished and seen >= self.bars.console.height // 2:
                self.bars.update(old.id, visible=False)
        return self.bars.add_task(in_a_line(bar.name), total=total, completed=done, bar=bar)

    @contextmanager
    def at_terminal(self) -> Iterator[None]:
        """Show bars, and between them and whatever else is written no line that is torn."""
        encoding = sys.stderr.encoding
        with os.fdopen(os.dup(2), "w", encoding=encoding, errors="backslashreplace") as terminal:
            self._console = _console(terminal)
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _OfBar(Bar.counted, Column(no_wrap=True, justify="right")),
                _OfBar(Bar.course, Column()),  # gives way where the terminal is narrow
            )
            # what others write comes through `relayed`
            bars = Progress(
                *columns, console=self._console, redirect_stdout=False, redirect_stderr=False
            )
            try:
                with bars as self.bars, relayed(self._write):
                    yield
            finally:
                self.bars = self._console = None

    @contextmanager
    def in_log(self) -> Iterator[None]:
        """Write a line of each bar now and then."""

        def tell() -> None:
            for news in filter(None, [bar.news() for bar in self._all]):
                with suppress(OSError):
                    self.say(news)

        with every(_LOG_SECONDS, tell):
            yield


@contextmanager
def display() -> Iterator[Display]:
    """Show progress while the block runs.

    Meanwhile stdout leads to stderr, and warnings are said once, unless ``-v`` was given.
    """
    shown = Display()
    with ExitStack() as stack:
        stack.enter_context(shown.at_terminal() if _is_terminal() else shown.in_log())
        stack.enter_context(stdout_for_results())
        if not _verbose():
            stack.enter_context(each_once(shown.say))
        yield shown


def _is_terminal() -> bool:
    try:
        if sys.stderr.fileno() != 2:
            return False
    except (AttributeError, OSError, ValueError):  # there is none, or it is no file
        return False
    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


def _console(terminal: TextIO) -> Console:
    """Return a console that knows the size of its terminal.

    It asks for that of stdin first, and what stdout and stderr are meanwhile is none.
    """
    width = height = None
    if not os.isatty(0):
        with suppress(OSError):
            width, height = os.get_terminal_size(terminal.fileno())
    return Console(file=terminal, width=width or None, height=height or None, highlight=False)


def _verbose() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("verbose"))
