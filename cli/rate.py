"""How fast the units of a bar are done: arithmetic alone, the times are given."""

from __future__ import annotations

from typing import Final

_TOGETHER: Final = 0.1  # seconds in which the rest of the first unit's batch comes
_SHORTEST: Final = 1.0  # seconds that tell a speed


class Rate:
    """The speed at which units are done, from the first one on.

    The first one takes loading and compiling with it, so neither its time nor what comes together
    with it, as the rest of a batch does, is measured.

    Parameters
    ----------
    now : float
        When it begins, in seconds of a clock that never goes back; so are all times.

    Attributes
    ----------
    last : float
        When the last unit was done; the beginning while there is none.
    """

    def __init__(self, now: float):
        self.last = now
        self._first: float | None = None
        self._since = now
        self._count = 0

    def add(self, count: int, now: float) -> None:
        """`count` units were done until `now`."""
        if self._first is None:
            self._first = now
        if now <= self._first + _TOGETHER:
            self._since = now
        else:
            self._count += count
        self.last = now

    @property
    def seconds_each(self) -> float | None:
        """What a unit takes, in seconds; None while it cannot be told."""
        measured = self.last - self._since
        return measured / self._count if self._count and measured >= _SHORTEST else None

    def left(self, units: int, now: float) -> float | None:
        """Return the seconds that further units will take; None while it cannot be told."""
        each = self.seconds_each
        if each is None:
            return None
        return max(0.0, units * each - min(now - self.last, each))
