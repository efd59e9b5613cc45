"""The street of a scene: where its strips lie, and all that is flat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from ensdistill.stages.demo.canvas import NEAR, Canvas, Span
from ensdistill.stages.demo.colours import mixed, shaded
from ensdistill.stages.demo.styles import ROAD, SIDEWALK, TERRAIN

FAR: Final = 95.0  # metres; where the street is closed

Item: TypeAlias = tuple[float, Callable[[], None]]  # distance in metres, how to paint it


@dataclass(frozen=True)
class Street:
    """Where the strips of the street lie, metres from the camera; [0] is left, [1] right."""

    kerbs: Span
    walks: Span  # outer edges of the sidewalks
    fronts: Span  # lines of the houses

    def kerb(self, side: int) -> float:
        """Return x of the kerb on a side, -1 or 1."""
        return self.kerbs[side > 0]

    def walk(self, side: int) -> float:
        """Return x of the sidewalk's outer edge on a side."""
        return self.walks[side > 0]

    def front(self, side: int) -> float:
        """Return x of the houses on a side."""
        return self.fronts[side > 0]


def ordered(one: float, other: float) -> Span:
    """Return both, the smaller one first."""
    return (one, other) if one < other else (other, one)


def plan_street(c: Canvas) -> Street:
    """Return a street as wide as the style's layout says."""
    layout = c.style.layout
    width = c.uniform(*layout.road)
    left = -width * c.uniform(0.55, 0.66)
    kerbs = (left, left + width)
    walks = (kerbs[0] - c.uniform(*layout.sidewalk), kerbs[1] + c.uniform(*layout.sidewalk))
    strips = [c.uniform(1.5, 5.0) if c.chance(0.75) else 0.0 for _ in range(2)]
    return Street(kerbs, walks, (walks[0] - strips[0], walks[1] + strips[1]))


def paint_ground(c: Canvas, street: Street) -> None:
    """Paint clouds, then everything that is flat: terrain, sidewalks, road, markings."""
    if c.chance(0.6):
        cloud = mixed(c.style.light.haze_colour, (255, 255, 255), 0.5)
        for _ in range(c.count(4)):
            middle = (c.colours.width * c.uniform(0, 1), c.horizon * c.uniform(0.05, 0.8))
            wide = c.colours.width * c.uniform(0.04, 0.14)
            c.ellipse(None, middle, (wide, wide * 0.18), cloud)
    reach = (NEAR, FAR * 4)
    c.ground(TERRAIN, (-400.0, 400.0), reach, c.colour(TERRAIN))
    pavement = c.colour(SIDEWALK)
    c.ground(SIDEWALK, street.walks, reach, pavement)
    for side in (-1, 1):  # joints between slabs, then the kerb stone
        strip = ordered(street.kerb(side), street.walk(side))
        for z in (5.0, 7.0, 9.5, 12.5, 16.0, 20.0):
            c.ground(None, strip, (z, z + 0.12), shaded(pavement, 0.86))
    road = c.colour(ROAD)
    c.ground(ROAD, street.kerbs, reach, road)
    for side in (-1, 1):
        kerb = street.kerb(side)
        c.ground(None, ordered(kerb, kerb + 0.22 * side), reach, shaded(pavement, 1.14))
        c.ground(None, ordered(kerb, kerb - 0.35 * side), reach, shaded(road, 0.86))
    for _ in range(c.count(2)):  # patches of newer asphalt
        x, z = c.uniform(*street.kerbs), c.uniform(6.0, 25.0)
        x = min(x, street.kerbs[1] - 1.5)
        c.ground(None, (x, x + 1.5), (z, z + c.uniform(2.0, 6.0)), shaded(road, 0.92))
    paint = mixed(road, (226, 226, 220), 0.75)
    lane = (street.kerbs[0] + street.kerbs[1]) / 2
    offset = c.uniform(3.0, 9.0)
    for k in range(12):
        z = offset + k * 6.0
        c.ground(None, (lane - 0.08, lane + 0.08), (z, z + 3.0), paint)
    if c.chance(0.3):  # zebra crossing
        z = c.uniform(9.0, 22.0)
        x = street.kerbs[0] + 0.5
        while x < street.kerbs[1] - 0.5:
            c.ground(None, (x, x + 0.5), (z, z + 3.0), paint)
            x += 1.0
    c.haze_ground()
