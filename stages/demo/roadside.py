"""What stands beside the street: houses, gardens, trees, posts."""

from __future__ import annotations

from ensdistill.data.classes import Colour
from ensdistill.stages.demo.canvas import NEAR, Canvas
from ensdistill.stages.demo.colours import shaded
from ensdistill.stages.demo.street import FAR, Item, Street, ordered
from ensdistill.stages.demo.styles import BUILDING, FENCE, LIGHT, POLE, SIGN, VEGETATION, WALL


def plan_skyline(c: Canvas) -> list[Item]:
    """Return what closes the street far away: a row of houses and trees."""
    items: list[Item] = []
    x = -60.0
    while x < 60.0:
        wide, tall = c.uniform(8.0, 16.0), c.uniform(6.0, 15.0)
        if c.chance(0.5):
            items.append(_far_house(c, x, wide, tall))
        else:
            items.append(_blob(c, x + wide / 2, tall * 0.35, FAR, wide * 0.6, tall * 0.5))
        x += wide
    return items


def plan_roadside(c: Canvas, street: Street, side: int) -> list[Item]:
    """Return houses and the gardens between them along one side of the street."""
    items: list[Item] = []
    front = street.front(side)
    z = c.uniform(-6.0, 2.0)
    while z < FAR - 5.0:
        end = z + c.uniform(9.0, 20.0)
        near = max(z, NEAR)
        if end > NEAR + 0.5:
            if c.chance(c.style.layout.built):
                items.append(_house(c, front, side, z, end))
            else:
                items += _garden(c, front, side, near, end)
        z = end
    return items


def plan_furniture(c: Canvas, street: Street) -> list[Item]:
    """Return what stands on the sidewalks: trees, lamps, signs, lights, railings."""
    layout = c.style.layout
    items: list[Item] = []
    for _ in range(c.count(layout.trees)):
        side = c.side()
        near_front = 0.5 * (street.walk(side) + street.front(side))
        items.append(_tree(c, near_front + 0.4 * side, c.uniform(9.0, 55.0)))
    for k in range(c.count(layout.posts)):
        side = c.side()
        x = street.kerb(side) + c.uniform(0.35, 0.7) * side
        items.append(_post(c, x, side, c.uniform(6.5, 34.0), ("sign", "lamp", "light")[k % 3]))
    if c.chance(0.3):
        side = c.side()
        near = c.uniform(7.0, 20.0)
        x = street.kerb(side) + 0.25 * side
        items.append(_fence(c, x, near, near + c.uniform(6.0, 14.0), c.uniform(0.8, 1.0)))
    return items


def _far_house(c: Canvas, x: float, wide: float, tall: float) -> Item:
    tint = c.colour(BUILDING)
    return FAR, lambda: c.across(BUILDING, (x, x + wide), (0.0, tall), FAR, tint)


def _blob(c: Canvas, x: float, y: float, z: float, wide: float, tall: float) -> Item:
    """Return a bush or a crown: overlapping clumps, lighter ones on top."""
    base = c.colour(VEGETATION)
    crude = c.chance(c.style.crude.land)
    clumps = [
        (c.uniform(-0.6, 0.6), c.uniform(-0.5, 0.5), c.uniform(0.4, 0.62), c.uniform(0.8, 1.15))
        for _ in range(0 if crude else 6 if z < 30.0 else 3)
    ]

    def paint() -> None:
        scale = c.focal / max(z, NEAR)
        centre = c.at(x, y, z)
        c.ellipse(VEGETATION, centre, (wide * 0.8 * scale, tall * 0.8 * scale), c.hazed(base, z))
        for right, up, size, shade in sorted(clumps, key=lambda clump: clump[1]):
            middle = c.at(x + right * wide, y + up * tall, z)
            tint = shaded(base, shade + 0.25 * up)
            radii = (wide * size * scale, tall * size * scale)
            c.ellipse(VEGETATION, middle, radii, c.hazed(tint, z))

    return z, paint


def _house(c: Canvas, front: float, side: int, z: float, end: float) -> Item:
    storeys = int(c.rng.integers(c.style.layout.storeys[0], c.style.layout.storeys[1] + 1))
    tall = storeys * 3.0 + 1.2
    wall = c.colour(BUILDING)
    glass = c.choice(((58, 64, 72), (84, 94, 104), (42, 44, 50)))
    ground_floor = shaded(wall, c.uniform(0.7, 0.95))
    spacing = c.uniform(2.4, 3.4)
    crude = c.chance(c.style.crude.built)
    near = max(z, NEAR)
    seen = max(near, abs(front) * c.focal / (0.56 * c.colours.width) - 1.2)
    back = front + 11.0 * side
    across = ordered(front, back)

    def paint() -> None:
        shade = c.lit(front)
        pieces = max(1, round((end - near) / 8.0)) if near < 40.0 else 1
        for k in reversed(range(pieces)):  # pieces, so that haze grows along the wall
            piece = (near + (end - near) * k / pieces, near + (end - near) * (k + 1) / pieces)
            c.along(BUILDING, front, (0.0, tall), piece, shaded(wall, shade))
            if not crude:
                c.along(None, front, (0.0, 3.0), piece, shaded(ground_floor, shade))
                c.along(None, front, (tall - 0.5, tall), piece, shaded(wall, shade * 0.75))
        if z >= NEAR:
            c.across(BUILDING, across, (0.0, tall), z, shaded(wall, 0.9))
        if crude:
            return
        for floor in range(storeys):
            low = 0.9 + 3.0 * floor
            if z >= NEAR and c.visible(z, 1.2, 1.2):
                x = front + 1.0 * side
                while abs(x) < abs(back):
                    c.across(None, (x, x + 1.2 * side), (low, low + 1.6), z, glass)
                    x += spacing * side
            w = z + 0.9
            while w < end - 1.2 and w < 42.0:
                if w > seen:
                    c.along(None, front, (low, low + 1.6), (w, w + 1.2), glass)
                w += spacing

    return end, paint


def _garden(c: Canvas, front: float, side: int, near: float, end: float) -> list[Item]:
    """Return bushes behind a wall, a fence or nothing."""
    items: list[Item] = []
    w = end
    while w > near:
        wide, tall = c.uniform(1.8, 3.2), c.uniform(1.4, 3.6)
        if c.chance(0.85) and w > near + 1.5:
            x = front + (wide + c.uniform(0.8, 4.0)) * side
            items.append(_blob(c, x, tall * 0.6, w, wide, tall))
        w -= c.uniform(2.5, 5.0) + 0.06 * w  # sparser where they hide each other
    kind = c.rng.random()
    if kind < 0.38:
        items.append(_wall(c, front, near, end, c.uniform(1.3, 2.4)))
    elif kind < 0.80:
        items.append(_fence(c, front, near, end, c.uniform(1.1, 1.7)))
    return items


def _wall(c: Canvas, x: float, near: float, end: float, tall: float) -> Item:
    tint = c.colour(WALL)
    crude = c.chance(c.style.crude.built)

    def paint() -> None:
        shade = c.lit(x)
        c.along(WALL, x, (0.0, tall), (near, end), shaded(tint, shade))
        if crude:
            return
        c.along(None, x, (tall - 0.2, tall), (near, end), shaded(tint, shade * 1.2))
        for course in range(1, int(tall / 0.4)):
            y = course * 0.4
            c.along(None, x, (y, y + 0.06), (near, end), shaded(tint, shade * 0.84))

    return near + 0.3, paint


def _fence(c: Canvas, x: float, near: float, end: float, tall: float) -> Item:
    tint = c.colour(FENCE)
    crude = c.chance(c.style.crude.thin)

    def paint() -> None:
        c.along(FENCE, x, (0.0, tall), (near, end), tint if crude else None)
        if crude:
            return
        w = end
        while w > near:
            width = 0.07 * c.focal / max(w, NEAR)
            colour = c.hazed(tint, w)
            c.line(None, [c.at(x, 0.0, w), c.at(x, tall, w)], width, colour)
            w -= 0.45 if w < 20.0 else 0.9
        for y in (0.15, tall - 0.08):
            c.along(None, x, (y, y + 0.1), (near, end), tint)

    return near + 0.3, paint


def _tree(c: Canvas, x: float, z: float) -> Item:
    trunk = c.choice(((86, 72, 58), (74, 66, 56)))
    height, wide = c.uniform(2.2, 3.2), c.uniform(1.3, 2.2)
    _, crown = _blob(c, x, height + wide * 0.7, z, wide, wide * 0.95)

    def paint() -> None:
        c.across(VEGETATION, (x - 0.15, x + 0.15), (0.0, height), z, trunk)
        crown()

    return z, paint


def _post(c: Canvas, x: float, side: int, z: float, kind: str) -> Item:
    """Return a pole: a "lamp", or one that carries a "sign" or a traffic "light"."""
    crude = c.chance(c.style.crude.thin)
    tint, head = c.colour(POLE), c.colour(SIGN if kind == "sign" else LIGHT)
    shape = int(c.rng.integers(3))
    lamp = int(c.rng.integers(3))
    tall = {"lamp": c.uniform(5.0, 7.5), "sign": c.uniform(2.5, 3.2), "light": c.uniform(3.3, 4.0)}[
        kind
    ]
    thick = (0.34 if crude else 0.15) * (1.2 if kind == "lamp" else 1.0)
    arm = c.uniform(1.2, 2.4)

    def paint() -> None:
        scale = c.focal / z
        pole = c.hazed(tint, z)
        c.line(POLE, [c.at(x, 0.0, z), c.at(x, tall, z)], thick * scale, pole)
        if kind == "lamp":
            if not crude:
                tip = c.at(x - arm * side, tall + 0.15, z)
                c.line(POLE, [c.at(x, tall, z), tip], 0.1 * scale, pole)
                c.ellipse(POLE, tip, (0.35 * scale, 0.12 * scale), c.hazed(tint, z))
            return
        if kind == "sign":
            _sign(c, x, tall, z, 3 if crude else shape, head)
            return
        c.across(LIGHT, (x - 0.2, x + 0.2), (tall - 0.55, tall + 0.5), z, head)
        if not crude:
            y = tall + 0.3 - 0.32 * lamp
            lit = ((236, 60, 44), (244, 180, 60), (70, 220, 130))[lamp]
            c.ellipse(None, c.at(x, y, z), (0.15 * scale, 0.15 * scale), lit)

    return z, paint


def _sign(c: Canvas, x: float, y: float, z: float, shape: int, tint: Colour) -> None:
    scale = c.focal / z
    colour, inner = c.hazed(tint, z), c.hazed((232, 232, 228), z)
    if shape == 0:
        c.ellipse(SIGN, c.at(x, y, z), (0.42 * scale, 0.42 * scale), colour)
        c.ellipse(None, c.at(x, y, z), (0.24 * scale, 0.24 * scale), inner)
    elif shape == 1:
        for size, train_id, fill in ((0.5, SIGN, colour), (0.25, None, inner)):
            corners = ((-size, -0.8 * size), (size, -0.8 * size), (0.0, size))
            c.polygon(train_id, [c.at(x + u, y + v, z) for u, v in corners], fill)
    else:
        c.across(SIGN, (x - 0.4, x + 0.4), (y - 0.45, y + 0.45), z, tint)
        if shape == 2:
            c.across(None, (x - 0.24, x + 0.24), (y - 0.1, y + 0.15), z, (232, 232, 228))
