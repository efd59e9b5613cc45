"""How names and numbers are written."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with so many digits after its point, or a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Return a difference with its sign and two digits, or a dash for none."""
    return "-" if value is None else f"{value:+.2f}"
