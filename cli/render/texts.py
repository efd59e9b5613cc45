"""How numbers are written."""

from __future__ import annotations


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with so many digits after its point, or a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Return a difference with its sign and two digits, or a dash for none."""
    return "-" if value is None else f"{value:+.2f}"
