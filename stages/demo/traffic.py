"""Who is on the street: people, two-wheelers and vehicles."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ensdistill.data.classes import Colour
from ensdistill.stages.demo.canvas import Canvas, Span, inner_side
from ensdistill.stages.demo.colours import shaded
from ensdistill.stages.demo.street import Item, Street
from ensdistill.stages.demo.styles import (
    BICYCLE,
    BUS,
    CAR,
    MOTORCYCLE,
    PERSON,
    RIDER,
    ROAD,
    TRAIN,
    TRUCK,
)

_GLASS: Final = (52, 60, 68)
_TYRE: Final = (26, 26, 28)
_SKIN: Final = ((206, 164, 138), (168, 122, 94), (112, 80, 62))
_VEHICLES: Mapping[int, tuple[float, float, float]] = MappingProxyType(
    {CAR: (1.8, 1.48, 4.2), TRUCK: (2.4, 3.3, 7.5), BUS: (2.5, 3.1, 10.5), TRAIN: (2.5, 3.5, 17.0)}
)
"""Width, height and length in metres."""


def plan_traffic(c: Canvas, street: Street) -> list[Item]:
    """Return people, two-wheelers and vehicles."""
    layout = c.style.layout
    items: list[Item] = []
    middle = (street.kerbs[0] + street.kerbs[1]) / 2
    for _ in range(c.count(layout.persons)):
        side = c.side()
        if c.chance(0.8):
            x = c.uniform(street.kerb(side) + 0.4 * side, street.walk(side) - 0.3 * side)
        else:
            x = c.uniform(*street.kerbs)
        items.append(_person(c, x, c.uniform(6.5, 30.0)))
    for _ in range(c.count(layout.riders)):
        side = c.side()
        x = street.kerb(side) - c.uniform(1.9, 2.9) * side
        kind = MOTORCYCLE if c.chance(0.3) else BICYCLE
        items.append(_two_wheeler(c, x, c.uniform(6.5, 24.0), kind, ridden=True))
    if c.chance(0.5):  # parked at the wall
        side = c.side()
        x = street.walk(side) - 0.5 * side
        kind = MOTORCYCLE if c.chance(0.25) else BICYCLE
        items.append(_two_wheeler(c, x, c.uniform(7.0, 16.0), kind, ridden=False))
    taken: list[tuple[int, float]] = []
    for _ in range(c.count(layout.parked)):
        side, slot = c.side(), float(c.rng.integers(1, 8))
        if (side, slot) in taken:
            continue
        taken.append((side, slot))
        x = street.kerb(side) - 1.05 * side
        items.append(_vehicle(c, x, 2.5 + slot * 5.6 + c.uniform(-0.4, 0.4), CAR, side < 0))
    for _ in range(c.count(layout.driving)):
        oncoming = c.chance(0.5)
        x = middle + (-1.6 if oncoming else 1.4) + c.uniform(-0.3, 0.3)
        kind = CAR
        if c.chance(layout.large):
            kind = (TRUCK, BUS, TRAIN)[int(c.rng.integers(3))]
        items.append(_vehicle(c, x, c.uniform(11.0 if kind == CAR else 16.0, 50.0), kind, oncoming))
    return items


def _person(c: Canvas, x: float, z: float) -> Item:
    tall = c.uniform(1.55, 1.9)
    top, legs = c.colour(PERSON), shaded(c.colour(PERSON), 0.75)
    skin, hair = c.choice(_SKIN), c.choice(((50, 38, 30), (26, 24, 24), (120, 92, 60)))
    stride = c.uniform(0.05, 0.32)
    crude = c.chance(c.style.crude.actors)

    def paint() -> None:
        scale = c.focal / z
        _shadow(c, x, z, 0.45)
        if crude:
            c.across(PERSON, (x - 0.3, x + 0.3), (0.0, tall), z, top)
            return
        hip = c.at(x, tall * 0.5, z)
        for foot in (-stride, stride):
            c.line(PERSON, [hip, c.at(x + foot, 0.0, z)], 0.17 * scale, c.hazed(legs, z))
        c.across(PERSON, (x - 0.23, x + 0.23), (tall * 0.46, tall * 0.84), z, top)
        for arm in (-0.27, 0.27):
            ends = [c.at(x + arm * 0.8, tall * 0.82, z), c.at(x + arm * 1.15, tall * 0.5, z)]
            c.line(PERSON, ends, 0.11 * scale, c.hazed(shaded(top, 0.85), z))
        head = c.at(x, tall * 0.92, z)
        c.ellipse(PERSON, head, (0.115 * scale, 0.14 * scale), c.hazed(skin, z))
        c.ellipse(None, c.at(x, tall * 0.96, z), (0.115 * scale, 0.085 * scale), c.hazed(hair, z))

    return z, paint


def _two_wheeler(c: Canvas, x: float, z: float, train_id: int, ridden: bool) -> Item:
    """Return a bicycle or motorcycle seen at an angle, with its rider above it."""
    frame, jacket = c.colour(train_id), c.colour(RIDER)
    trousers = c.choice(((44, 46, 58), (70, 66, 62)))
    skin, helmet = c.choice(_SKIN), c.colour(RIDER)
    facing = c.side()
    half = c.uniform(0.34, 0.52) * facing
    crude = c.chance(c.style.crude.actors)
    motor = train_id == MOTORCYCLE

    def paint() -> None:
        scale = c.focal / z
        hazed = c.hazed(frame, z)
        _shadow(c, x, z, 0.7)
        if crude:
            c.across(train_id, (x - 0.55, x + 0.55), (0.0, 0.8), z, frame)
            if ridden:
                c.across(RIDER, (x - 0.28, x + 0.28), (0.8, 1.75), z, jacket)
            return
        for wheel in (-half, half):
            middle = c.at(x + wheel, 0.34, z)
            radii = (0.27 * scale, 0.34 * scale)
            tyre = c.hazed(_TYRE, z)
            c.ellipse(train_id, middle, radii, tyre, ring=(0.16 if motor else 0.08) * scale)
        saddle, bar = c.at(x - half * 0.5, 0.9, z), c.at(x + half * 0.8, 1.0, z)
        hub, back = c.at(x + half, 0.34, z), c.at(x - half, 0.34, z)
        crank = c.at(x, 0.36, z)
        if motor:
            c.polygon(train_id, [back, saddle, bar, hub, crank], hazed)
        else:
            for ends in (
                [saddle, crank],
                [crank, bar],
                [saddle, bar],
                [bar, hub],
                [back, saddle],
                [back, crank],
            ):
                c.line(train_id, ends, 0.09 * scale, hazed)
        if not ridden:
            return
        hip, neck = c.at(x - half * 0.45, 0.98, z), c.at(x + half * 0.15, 1.5, z)
        leg = [hip, c.at(x + half * 0.3, 0.75, z), c.at(x, 0.3, z)]
        c.line(RIDER, leg, 0.17 * scale, c.hazed(trousers, z))
        c.line(RIDER, [hip, neck], 0.36 * scale, c.hazed(jacket, z))
        c.line(RIDER, [neck, bar], 0.11 * scale, c.hazed(shaded(jacket, 0.85), z))
        face, crown = c.at(x + half * 0.3, 1.66, z), c.at(x + half * 0.28, 1.73, z)
        c.ellipse(RIDER, face, (0.13 * scale, 0.15 * scale), c.hazed(skin, z))
        c.ellipse(None, crown, (0.14 * scale, 0.1 * scale), c.hazed(helmet, z))

    return z, paint


def _shadow(c: Canvas, x: float, z: float, wide: float) -> None:
    scale = c.focal / z
    middle = c.at(x, 0.0, z)
    road = c.style.looks[ROAD].colours[0]
    c.ellipse(None, middle, (wide * scale, 0.1 * scale), c.hazed(shaded(road, 0.7), z))


def _vehicle(c: Canvas, x: float, z: float, train_id: int, oncoming: bool) -> Item:
    wide, tall, long = _VEHICLES[train_id]
    tall *= c.uniform(0.94, 1.1)
    tint = c.colour(train_id)
    crude = c.chance(c.style.crude.actors)
    span = (x - wide / 2, x + wide / 2)
    lamp = (244, 240, 214) if oncoming else (170, 34, 30)

    def paint() -> None:
        shadow = c.hazed(shaded(c.style.looks[ROAD].colours[0], 0.5), z)
        c.ground(None, (span[0] - 0.15, span[1] + 0.15), (z - 0.15, z + long), shadow)
        if crude:
            c.box(train_id, span, (0.1, tall), (z, z + long), tint)
            return
        if train_id == CAR:
            _paint_car(c, span, tall, z, long, tint)
        else:
            _paint_large(c, train_id, span, tall, z, long, tint)
        scale = c.focal / z
        if (inner := inner_side(span)) is not None:
            for w in (z + 0.18 * long, z + 0.8 * long):
                size = 0.34 * c.focal / w
                narrow = size * min(0.8, max(0.12, abs(inner) / w))  # seen from ahead
                c.ellipse(train_id, c.at(inner, 0.34, w), (narrow, size), c.hazed(_TYRE, z))
        for edge in (span[0], span[1] - 0.24):
            c.across(train_id, (edge, edge + 0.24), (0.05, 0.4), z, _TYRE)
        y = 0.72 if train_id == CAR else 0.9
        for edge in (span[0] + 0.2, span[1] - 0.2):
            c.ellipse(None, c.at(edge, y, z), (0.15 * scale, 0.1 * scale), c.hazed(lamp, z))
        c.across(None, (x - 0.26, x + 0.26), (0.5, 0.62), z, (222, 222, 214))

    return z, paint


def _paint_car(c: Canvas, span: Span, tall: float, z: float, long: float, tint: Colour) -> None:
    left, right = span
    c.box(CAR, span, (0.16, 0.92), (z, z + long), tint)
    roof = (left + 0.22, right - 0.22)
    near, far = z + 0.5, z + 0.72 * long
    # The cabin narrows towards the roof: a trapezium in front of the side glass.
    if (low := inner_side(span)) is not None:
        high = roof[1] if low < 0.0 else roof[0]
        corners = [
            c.at(low, 0.92, near - 0.3),
            c.at(low, 0.92, far + 0.5),
            c.at(high, tall, far),
            c.at(high, tall, near),
        ]
        c.polygon(CAR, corners, c.hazed(shaded(tint, c.lit(low)), z))
        inset = [
            c.at(low, 0.98, near + 0.1),
            c.at(low, 0.98, far + 0.1),
            c.at(high, tall - 0.1, far - 0.2),
            c.at(high, tall - 0.1, near + 0.2),
        ]
        c.polygon(None, inset, c.hazed(_GLASS, z))
    for rim, train_id, colour in ((0.0, CAR, tint), (0.1, None, _GLASS)):
        corners = [
            c.at(left + rim, 0.92 + rim * 0.4, z + 0.2),
            c.at(right - rim, 0.92 + rim * 0.4, z + 0.2),
            c.at(roof[1] - rim, tall - rim, near),
            c.at(roof[0] + rim, tall - rim, near),
        ]
        c.polygon(train_id, corners, c.hazed(colour, z))
    c.across(CAR, span, (0.16, 0.44), z, shaded(tint, 0.62))


def _paint_large(
    c: Canvas, train_id: int, span: Span, tall: float, z: float, long: float, tint: Colour
) -> None:
    left, right = span
    c.box(train_id, span, (0.3, tall), (z, z + long), tint)
    if train_id == TRUCK:
        c.across(None, (left + 0.12, right - 0.12), (1.0, tall - 0.12), z, shaded(tint, 0.82))
        gap = (left + right) / 2  # between the doors
        c.across(None, (gap - 0.03, gap + 0.03), (1.0, tall - 0.12), z, shaded(tint, 0.5))
        c.across(None, span, (0.3, 0.9), z, (60, 60, 64))
        return
    c.across(None, (left + 0.15, right - 0.15), (1.5, tall - 0.35), z, _GLASS)
    if train_id == TRAIN:
        c.across(None, span, (tall - 0.3, tall), z, (222, 222, 216))
    if (inner := inner_side(span)) is not None:
        w = z + 0.5
        while w < z + long - 1.3:
            c.along(None, inner, (1.4, tall - 0.6), (w, w + 1.2), _GLASS)
            w += 1.5
