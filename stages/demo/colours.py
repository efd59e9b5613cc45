"""Colours, and what light does to them."""

from __future__ import annotations

from ensdistill.data.classes import Colour


def shaded(colour: Colour, factor: float) -> Colour:
    """Return a colour made darker or brighter, at most white in each channel."""
    # Written out: the innermost call of the painter, twice as fast as a loop.
    return (
        min(255, int(colour[0] * factor + 0.5)),
        min(255, int(colour[1] * factor + 0.5)),
        min(255, int(colour[2] * factor + 0.5)),
    )


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """Return a colour moved towards another: 0 stays, 1 arrives."""
    rest = 1.0 - share
    return (
        int(colour[0] * rest + other[0] * share + 0.5),
        int(colour[1] * rest + other[1] * share + 0.5),
        int(colour[2] * rest + other[2] * share + 0.5),
    )
