"""The errors a user can meet: each says what was expected, what came, where, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Final

_FEW: Final = 3  # problems of one cause that are said one by one
_VALUE: Final = 200  # characters that say what a value is
_MESSAGE: Final = 1000


class EnsdistillError(Exception):
    """Base of all refusals; the command line prints its text and ends with `exit_code`.

    Each argument is a line, whatever names it holds.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigError(EnsdistillError, ValueError):
    """The experiment file, or an option, says something that cannot be meant."""

    exit_code = 2


class DataError(EnsdistillError, ValueError):
    """An input file is missing, unreadable or not what the experiment file says it is."""


class NotReadyError(EnsdistillError, LookupError):
    """An upstream artifact is missing and the command was not asked to make it."""


class LockedError(EnsdistillError, RuntimeError):
    """Another process is filling the same artifact."""


class CorruptError(EnsdistillError, ValueError):
    """A published artifact does not hold what its manifest says."""


def raise_all(problems: Sequence[str], error: type[EnsdistillError]) -> None:
    """Raise `error` with every problem at once, so that one round of mending is enough.

    Problems are texts complete in themselves; nothing happens when there are none.
    """
    if len(problems) == 1:
        raise error(problems[0])
    if problems:
        shown = [f"  {problem}" for problem in problems[:20]]
        more = [f"  ... and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise error(f"{len(problems)} problems:", *shown, *more)


def grouped(problems: Iterable[tuple[Hashable, str]]) -> list[str]:
    """Return lines for problems of which many share a cause, so that none hides another.

    A cause is what is mended in one go, such as a folder and the kind of finding. In order: of each
    cause all texts where they are few, else the first, with how many more there are.
    """
    listed = list(problems)
    counts = Counter(cause for cause, _ in listed)
    said: set[Hashable] = set()
    lines = []
    for cause, text in listed:
        if counts[cause] <= _FEW:
            lines.append(text)
        elif cause not in said:
            said.add(cause)
            lines.append(f"{text} (and {counts[cause] - 1} more like it)")
    return lines


def shown(value: object) -> str:
    """Return a value as messages show it, of whatever size it is."""
    try:
        return shortened(repr(value), _VALUE)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists
        return f"a long {type(value).__name__}"


def shortened(text: str, most: int = _MESSAGE) -> str:
    """Return a text without its middle where it is long: messages begin and end with what counts.

    It may hold what was found in a file; `most` is in characters.
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
