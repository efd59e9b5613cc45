"""Times, speeds, sizes and lists as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Return a time in seconds with the two units that matter, such as ``3 min 07 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest:02} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} days {rest} h"


def speed(seconds_each: float, units: str) -> str:
    """Return how fast units are done: what one takes where that is a second or more.

    Parameters
    ----------
    seconds_each : float
        What one unit takes, in seconds; more than 0.
    units : str
        What they are, in the plural: ``images`` make ``12.3 images/s`` and ``4.2 s an image``.
    """
    if units == "bytes":
        return f"{size(round(1 / seconds_each))}/s"
    if seconds_each < 1:
        each_second = 1 / seconds_each
        return f"{each_second:.{int(each_second < 99.95)}f} {units}/s"
    article = "an" if units[0] in "aeiou" else "a"
    return f"{duration(seconds_each)} {article} {units.removesuffix('s')}"


def size(count: int) -> str:
    """Return a number of bytes, such as ``12 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
