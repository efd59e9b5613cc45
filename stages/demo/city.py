"""A small generated city in Cityscapes layout, for the demo and for tests.

A scene is a street in perspective, laid out in metres and painted from far to near, so that thin
things (poles, signs, riders) are as thin as geometry makes them. Everything that decides how it
looks is data: a `Style` holds one `Look` per class, the `Light`, the `Layout` and the groups of
classes that are drawn with crude shapes.

`TARGET` is the city whose labels are not to be used in training. Each of `SOURCES` is a simulator
that somebody could have trained a teacher on: realistic for some classes, wrong for others, one
wrong for nearly all. The handicap of a teacher lies in the pictures it is trained on and nowhere
else; labels are exact in every style.

A scene depends on (seed, style name, index) alone: the same numbers give the same arrays.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

__all__ = [
    "CLASSES",
    "IGNORE",
    "LABEL_IDS",
    "SOURCES",
    "TARGET",
    "Crude",
    "Layout",
    "Light",
    "Look",
    "Style",
    "draw_scene",
    "scene_index",
    "write_city",
]

RGB = tuple[int, int, int]
Point = tuple[float, float]

CLASSES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""The 19 Cityscapes classes in the order of their train ids."""

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The Cityscapes label id of each class of `CLASSES`."""

IGNORE = 255
"""The train id of pixels without a class: here the hood of the car that carries the camera."""

_EGO_VEHICLE = 1  # label id of the hood
_FRAME = 19  # Cityscapes labels the 20th frame of each 30-frame snippet
_OVERSAMPLING = 2  # colours are painted at twice the size and averaged: smooth edges
_MIN_SIDE = 16
_NEAR = 2.2  # metres; everything nearer is behind the lens
_FAR = 95.0
_GLASS: RGB = (52, 60, 68)
_TYRE: RGB = (26, 26, 28)
_SKIN: tuple[RGB, ...] = ((206, 164, 138), (168, 122, 94), (112, 80, 62))
(
    _ROAD,
    _SIDEWALK,
    _BUILDING,
    _WALL,
    _FENCE,
    _POLE,
    _LIGHT,
    _SIGN,
    _VEGETATION,
    _TERRAIN,
    _SKY,
    _PERSON,
    _RIDER,
    _CAR,
    _TRUCK,
    _BUS,
    _TRAIN,
    _MOTORCYCLE,
    _BICYCLE,
) = range(len(CLASSES))


@dataclass(frozen=True)
class Look:
    """Colour and texture of one class.

    Parameters
    ----------
    colours : tuple of RGB
        What an object of the class picks its colour from, 0..255 each.
    grain, blotch, stripes : float
        Strength, in grey levels, of pixel-sized noise, of smooth noise some pixels wide, and of
        a regular diagonal pattern.
    """

    colours: tuple[RGB, ...]
    grain: float = 4.0
    blotch: float = 3.0
    stripes: float = 0.0


@dataclass(frozen=True)
class Light:
    """The light over a scene and the camera that takes it.

    Parameters
    ----------
    brightness, gamma : float
        Factor on, and exponent of, intensities in 0..1.
    cast : tuple of float
        Factor for red, green and blue.
    haze : float
        Distance in metres at which 63 % of the colour is the haze's.
    haze_colour : RGB
        Colour of far things and of the sky at the horizon.
    blur : float
        Radius in pixels.
    noise : float
        Standard deviation of the sensor noise in grey levels.
    contrast : float
        How much the shady side of the street is darker, as a fraction.
    """

    brightness: float = 1.0
    gamma: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 110.0
    haze_colour: RGB = (206, 212, 216)
    blur: float = 0.4
    noise: float = 3.0
    contrast: float = 0.25


@dataclass(frozen=True)
class Layout:
    """How many things stand in a scene, on average, and how wide the street is.

    Parameters
    ----------
    road, sidewalk : (low, high)
        Widths in metres.
    built : float
        Share of the roadside taken by buildings, a fraction; the rest is gardens behind walls,
        fences or hedges.
    storeys : (low, high)
        Floors of a building.
    trees, posts, persons, riders, parked, driving : float
        Expected numbers per scene: street trees, lamps and signs and traffic lights, people on
        foot, people on two wheels, cars at the kerb, vehicles in the lanes.
    large : float
        Probability that a driving vehicle is a truck, bus or tram, a fraction.
    """

    road: tuple[float, float] = (7.0, 10.5)
    sidewalk: tuple[float, float] = (2.0, 3.6)
    built: float = 0.55
    storeys: tuple[int, int] = (2, 5)
    trees: float = 4.0
    posts: float = 7.0
    persons: float = 5.0
    riders: float = 1.8
    parked: float = 4.5
    driving: float = 2.2
    large: float = 0.4


@dataclass(frozen=True)
class Crude:
    """Share of the objects of each group that are drawn with few, simple shapes, a fraction.

    Parameters
    ----------
    land, built, thin, actors : float
        Bushes and trees; houses and walls; fences, poles, lights and signs; people and vehicles.
    """

    land: float = 0.0
    built: float = 0.0
    thin: float = 0.0
    actors: float = 0.0


@dataclass(frozen=True)
class Style:
    """How scenes look: one simulator, or the target city.

    Parameters
    ----------
    name : str
        Lower-case letters; part of every scene's random stream and of the city's name.
    looks : tuple of Look
        One for each class of `CLASSES`, in that order.
    light : Light
    layout : Layout
    crude : Crude

    Raises
    ------
    ValueError
        If `looks` does not have one entry for each class, or the name is not lower-case letters.
    """

    name: str
    looks: tuple[Look, ...]
    light: Light = field(default_factory=Light)
    layout: Layout = field(default_factory=Layout)
    crude: Crude = field(default_factory=Crude)

    def __post_init__(self) -> None:
        if len(self.looks) != len(CLASSES):
            raise ValueError(
                f"style needs one look for each of {len(CLASSES)} classes, got {len(self.looks)}"
            )
        if not (self.name.isascii() and self.name.isalpha() and self.name.islower()):
            raise ValueError(f"style name must be lower-case letters, got {self.name!r}")


class _Canvas:
    """Colours and labels painted side by side, and the camera that projects metres to pixels.

    x runs to the right of the camera, y up from the road, z forward, in metres.
    """

    def __init__(self, rng: np.random.Generator, style: Style, size: tuple[int, int]) -> None:
        self.rng = rng
        self.style = style
        self.height, self.width = size
        rows, columns = size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING
        self.horizon = rows * self.uniform(0.40, 0.47)
        self.centre = columns * self.uniform(0.46, 0.54)
        # The longer lens of the two keeps very wide and very tall pictures sensible.
        self.focal = min(columns * 1.02, rows * 2.04)
        self.camera_height = self.uniform(1.35, 1.6)
        self.sun = 1 if self.chance(0.5) else -1  # which side of the street is lit
        self.colours = Image.fromarray(self._backdrop(rows, columns))
        self.labels = Image.new("L", (columns, rows), _SKY)
        self._colour_pen = ImageDraw.Draw(self.colours)
        self._label_pen = ImageDraw.Draw(self.labels)

    # Chance -------------------------------------------------------------------------------

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        return float(self.rng.random()) < probability

    def side(self) -> int:
        return 1 if self.chance(0.5) else -1

    def count(self, mean: float) -> int:
        """Return a number within half of `mean`: calmer than Poisson, so no scene is empty."""
        return int(self.uniform(0.5, 1.5) * mean + self.uniform(0.0, 1.0))

    def choice(self, colours: Sequence[RGB], jitter: float = 0.08) -> RGB:
        colour = colours[int(self.rng.integers(len(colours)))]
        return _shaded(colour, self.uniform(1.0 - jitter, 1.0 + jitter))

    def colour(self, train_id: int) -> RGB:
        return self.choice(self.style.looks[train_id].colours)

    # Geometry -----------------------------------------------------------------------------

    def at(self, x: float, y: float, z: float) -> Point:
        scale = self.focal / max(z, _NEAR)
        return self.centre + x * scale, self.horizon + (self.camera_height - y) * scale

    def hazed(self, colour: RGB, z: float) -> RGB:
        light = self.style.light
        return _mixed(colour, light.haze_colour, 1.0 - math.exp(-z / light.haze))

    def visible(self, z: float, pixels: float, metres: float) -> bool:
        """Whether `metres` at distance z span at least `pixels` of the finished picture."""
        return metres * self.focal / (z * _OVERSAMPLING) >= pixels

    # Paint --------------------------------------------------------------------------------

    def polygon(self, train_id: int | None, points: Sequence[Point], colour: RGB | None) -> None:
        """Paint a polygon given in canvas pixels; None leaves labels or colours as they are."""
        if colour is not None:
            self._colour_pen.polygon(points, fill=colour)
        if train_id is not None:
            self._label_pen.polygon(points, fill=train_id)

    def ellipse(
        self,
        train_id: int | None,
        middle: Point,
        radii: Point,
        colour: RGB | None,
        ring: float = 0.0,
    ) -> None:
        """Paint an ellipse; with `ring`, only a rim that wide is coloured, all is labelled."""
        (x, y), (a, b) = middle, radii
        bounds = (x - a, y - b, x + a, y + b)
        if colour is not None and ring:
            self._colour_pen.ellipse(bounds, outline=colour, width=max(1, round(ring)))
        elif colour is not None:
            self._colour_pen.ellipse(bounds, fill=colour)
        if train_id is not None:
            self._label_pen.ellipse(bounds, fill=train_id)

    def line(
        self, train_id: int | None, points: Sequence[Point], width: float, colour: RGB | None
    ) -> None:
        # Below the width of one finished pixel a line would have colours but no label.
        pixels = max(_OVERSAMPLING, round(width))
        if colour is not None:
            self._colour_pen.line(points, fill=colour, width=pixels)
        if train_id is not None:
            self._label_pen.line(points, fill=train_id, width=pixels)

    def across(
        self,
        train_id: int | None,
        x: tuple[float, float],
        y: tuple[float, float],
        z: float,
        colour: RGB | None,
    ) -> None:
        """Paint a rectangle that faces the camera."""
        corners = [
            self.at(u, v, z) for u, v in ((x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]))
        ]
        self.polygon(train_id, corners, None if colour is None else self.hazed(colour, z))

    def along(
        self,
        train_id: int | None,
        x: float,
        y: tuple[float, float],
        z: tuple[float, float],
        colour: RGB | None,
    ) -> None:
        """Paint a rectangle that runs along the street."""
        corners = [
            self.at(x, v, w) for v, w in ((y[0], z[0]), (y[0], z[1]), (y[1], z[1]), (y[1], z[0]))
        ]
        middle = 0.7 * z[0] + 0.3 * z[1]
        self.polygon(train_id, corners, None if colour is None else self.hazed(colour, middle))

    def ground(
        self,
        train_id: int | None,
        x: tuple[float, float],
        z: tuple[float, float],
        colour: RGB | None,
    ) -> None:
        """Paint a rectangle that lies on the road."""
        corners = [
            self.at(u, 0.0, w) for u, w in ((x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1]))
        ]
        self.polygon(train_id, corners, colour)

    def box(
        self,
        train_id: int,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: RGB,
    ) -> None:
        """Paint the faces of a box that the camera sees: the near end and the inner side."""
        if x[1] < 0.0 or x[0] > 0.0:
            inner = x[1] if x[1] < 0.0 else x[0]
            self.along(train_id, inner, y, z, _shaded(colour, self.lit(inner)))
        self.across(train_id, x, y, z[0], _shaded(colour, 0.92))

    def lit(self, x: float) -> float:
        """Brightness of a wall on side x of the street that faces the street."""
        contrast = self.style.light.contrast
        return 1.0 + 0.3 * contrast if x * self.sun > 0 else 1.0 - contrast

    # Develop ------------------------------------------------------------------------------

    def _backdrop(self, rows: int, columns: int) -> npt.NDArray[np.uint8]:
        """Return the sky, paler towards the horizon: (rows, columns, 3) uint8."""
        top = np.asarray(self.colour(_SKY), dtype=np.float32)
        low = np.asarray(self.style.light.haze_colour, dtype=np.float32)
        share = np.linspace(0.0, 1.0, rows, dtype=np.float32) * (rows / self.horizon)
        share = np.minimum(share, 1.0)[:, None] ** 2 * np.float32(0.7)
        sky = (top * (1.0 - share) + low * share).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(sky[:, None, :], (rows, columns, 3)))

    def haze_ground(self) -> None:
        """Blend the ground painted so far into the haze, row by row."""
        rows = np.arange(self.colours.height, dtype=np.float32)
        below = np.maximum(rows - np.float32(self.horizon), 1.0)
        distance = self.focal * self.camera_height / below
        share = 1.0 - np.exp(-distance / self.style.light.haze)
        share[rows < self.horizon] = 0.0
        mask = np.broadcast_to((share * 255.0).astype(np.uint8)[:, None], self.labels.size[::-1])
        self.colours.paste(self.style.light.haze_colour, mask=Image.fromarray(mask.copy()))

    def develop(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return the finished image (H, W, 3) uint8 and labels (H, W) uint8."""
        looks, light = self.style.looks, self.style.light
        step = _OVERSAMPLING
        label = np.asarray(self.labels)[step - 1 :: step, step - 1 :: step].copy()
        image = np.asarray(self.colours.reduce(step), dtype=np.float32)
        table = np.zeros((3, 256), dtype=np.float32)
        table[:, : len(looks)] = np.transpose([(k.grain, k.blotch, k.stripes) for k in looks])
        grain, blotch, stripes = (row[label] for row in table)
        rows = np.arange(self.height, dtype=np.float32)[:, None]
        columns = np.arange(self.width, dtype=np.float32)[None, :]
        texture = grain * self.rng.standard_normal(label.shape, dtype=np.float32)
        texture += blotch * self._smooth_noise(5) * 1.6
        texture += stripes * np.sign(np.sin(columns * 1.1 + rows * 0.7))
        # Multiplied, not added: texture must not turn black things grey.
        image *= 1.0 + texture[:, :, None] / 110.0
        exposure = light.brightness * self.uniform(0.92, 1.08)
        image = np.clip(image * (exposure / 255.0), 0.0, 1.0) ** np.float32(light.gamma)
        image *= np.asarray(light.cast, dtype=np.float32) * np.float32(255.0)
        if light.blur > 0.0:
            soft = Image.fromarray(np.clip(image, 0.0, 255.0).astype(np.uint8))
            soft = soft.filter(ImageFilter.GaussianBlur(light.blur))
            image = np.asarray(soft, dtype=np.float32)
        noise = self.rng.standard_normal(image.shape, dtype=np.float32)
        image = image + np.float32(light.noise) * noise
        return np.clip(np.rint(image), 0.0, 255.0).astype(np.uint8), label

    def _smooth_noise(self, pixels: int) -> npt.NDArray[np.float32]:
        """Return noise of about unit strength whose blobs are `pixels` wide, (H, W) float32."""
        shape = (self.height // pixels + 2, self.width // pixels + 2)
        small = Image.fromarray(self.rng.standard_normal(shape, dtype=np.float32))
        large = small.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(large, dtype=np.float32)


def _shaded(colour: RGB, factor: float) -> RGB:
    # Written out: the innermost call of the painter, twice as fast as a loop.
    return (
        min(255, int(colour[0] * factor + 0.5)),
        min(255, int(colour[1] * factor + 0.5)),
        min(255, int(colour[2] * factor + 0.5)),
    )


def _ordered(one: float, other: float) -> tuple[float, float]:
    return (one, other) if one < other else (other, one)


def _mixed(colour: RGB, other: RGB, share: float) -> RGB:
    rest = 1.0 - share
    return (
        int(colour[0] * rest + other[0] * share + 0.5),
        int(colour[1] * rest + other[1] * share + 0.5),
        int(colour[2] * rest + other[2] * share + 0.5),
    )


# The street ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Street:
    """Where the strips of the street lie, metres from the camera; [0] is left, [1] right."""

    kerbs: tuple[float, float]
    walks: tuple[float, float]  # outer edges of the sidewalks
    fronts: tuple[float, float]  # lines of the houses

    def kerb(self, side: int) -> float:
        return self.kerbs[side > 0]

    def walk(self, side: int) -> float:
        return self.walks[side > 0]

    def front(self, side: int) -> float:
        return self.fronts[side > 0]


_Item = tuple[float, Callable[[], None]]  # distance in metres, how to paint it


def _plan_street(c: _Canvas) -> _Street:
    layout = c.style.layout
    width = c.uniform(*layout.road)
    left = -width * c.uniform(0.55, 0.66)
    kerbs = (left, left + width)
    walks = (kerbs[0] - c.uniform(*layout.sidewalk), kerbs[1] + c.uniform(*layout.sidewalk))
    strips = [c.uniform(1.5, 5.0) if c.chance(0.75) else 0.0 for _ in range(2)]
    return _Street(kerbs, walks, (walks[0] - strips[0], walks[1] + strips[1]))


def _paint_ground(c: _Canvas, street: _Street) -> None:
    """Paint clouds, then everything that is flat: terrain, sidewalks, road, markings."""
    if c.chance(0.6):
        cloud = _mixed(c.style.light.haze_colour, (255, 255, 255), 0.5)
        for _ in range(c.count(4)):
            middle = (c.colours.width * c.uniform(0, 1), c.horizon * c.uniform(0.05, 0.8))
            wide = c.colours.width * c.uniform(0.04, 0.14)
            c.ellipse(None, middle, (wide, wide * 0.18), cloud)
    reach = (_NEAR, _FAR * 4)
    c.ground(_TERRAIN, (-400.0, 400.0), reach, c.colour(_TERRAIN))
    pavement = c.colour(_SIDEWALK)
    c.ground(_SIDEWALK, street.walks, reach, pavement)
    for side in (-1, 1):  # joints between slabs, then the kerb stone
        for z in (5.0, 7.0, 9.5, 12.5, 16.0, 20.0):
            c.ground(
                None,
                _ordered(street.kerb(side), street.walk(side)),
                (z, z + 0.12),
                _shaded(pavement, 0.86),
            )
    road = c.colour(_ROAD)
    c.ground(_ROAD, street.kerbs, reach, road)
    for side in (-1, 1):
        kerb = street.kerb(side)
        c.ground(None, _ordered(kerb, kerb + 0.22 * side), reach, _shaded(pavement, 1.14))
        c.ground(None, _ordered(kerb, kerb - 0.35 * side), reach, _shaded(road, 0.86))
    for _ in range(c.count(2)):  # patches of newer asphalt
        x, z = c.uniform(*street.kerbs), c.uniform(6.0, 25.0)
        x = min(x, street.kerbs[1] - 1.5)
        c.ground(None, (x, x + 1.5), (z, z + c.uniform(2.0, 6.0)), _shaded(road, 0.92))
    paint = _mixed(road, (226, 226, 220), 0.75)
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


def _plan_skyline(c: _Canvas) -> list[_Item]:
    """Return what closes the street far away: a row of houses and trees."""
    items: list[_Item] = []
    x = -60.0
    while x < 60.0:
        wide, tall = c.uniform(8.0, 16.0), c.uniform(6.0, 15.0)
        if c.chance(0.5):
            items.append(_far_house(c, x, wide, tall))
        else:
            items.append(_blob(c, x + wide / 2, tall * 0.35, _FAR, wide * 0.6, tall * 0.5))
        x += wide
    return items


def _far_house(c: _Canvas, x: float, wide: float, tall: float) -> _Item:
    tint = c.colour(_BUILDING)
    return _FAR, lambda: c.across(_BUILDING, (x, x + wide), (0.0, tall), _FAR, tint)


def _blob(c: _Canvas, x: float, y: float, z: float, wide: float, tall: float) -> _Item:
    """Return a bush or a crown: overlapping clumps, lighter ones on top."""
    base = c.colour(_VEGETATION)
    crude = c.chance(c.style.crude.land)
    clumps = [
        (c.uniform(-0.6, 0.6), c.uniform(-0.5, 0.5), c.uniform(0.4, 0.62), c.uniform(0.8, 1.15))
        for _ in range(0 if crude else 6 if z < 30.0 else 3)
    ]

    def paint() -> None:
        scale = c.focal / max(z, _NEAR)
        centre = c.at(x, y, z)
        c.ellipse(_VEGETATION, centre, (wide * 0.8 * scale, tall * 0.8 * scale), c.hazed(base, z))
        for right, up, size, shade in sorted(clumps, key=lambda clump: clump[1]):
            middle = c.at(x + right * wide, y + up * tall, z)
            tint = _shaded(base, shade + 0.25 * up)
            radii = (wide * size * scale, tall * size * scale)
            c.ellipse(_VEGETATION, middle, radii, c.hazed(tint, z))

    return z, paint


def _plan_roadside(c: _Canvas, street: _Street, side: int) -> list[_Item]:
    """Return houses and the gardens between them along one side of the street."""
    items: list[_Item] = []
    front = street.front(side)
    z = c.uniform(-6.0, 2.0)
    while z < _FAR - 5.0:
        end = z + c.uniform(9.0, 20.0)
        near = max(z, _NEAR)
        if end > _NEAR + 0.5:
            if c.chance(c.style.layout.built):
                items.append(_house(c, front, side, z, end))
            else:
                items += _garden(c, front, side, near, end)
        z = end
    return items


def _house(c: _Canvas, front: float, side: int, z: float, end: float) -> _Item:
    storeys = int(c.rng.integers(c.style.layout.storeys[0], c.style.layout.storeys[1] + 1))
    tall = storeys * 3.0 + 1.2
    wall = c.colour(_BUILDING)
    glass = c.choice(((58, 64, 72), (84, 94, 104), (42, 44, 50)))
    ground_floor = _shaded(wall, c.uniform(0.7, 0.95))
    spacing = c.uniform(2.4, 3.4)
    crude = c.chance(c.style.crude.built)
    near = max(z, _NEAR)
    seen = max(near, abs(front) * c.focal / (0.56 * c.colours.width) - 1.2)
    back = front + 11.0 * side
    across = _ordered(front, back)

    def paint() -> None:
        shade = c.lit(front)
        pieces = max(1, round((end - near) / 8.0)) if near < 40.0 else 1
        for k in reversed(range(pieces)):  # pieces, so that haze grows along the wall
            piece = (near + (end - near) * k / pieces, near + (end - near) * (k + 1) / pieces)
            c.along(_BUILDING, front, (0.0, tall), piece, _shaded(wall, shade))
            if not crude:
                c.along(None, front, (0.0, 3.0), piece, _shaded(ground_floor, shade))
                c.along(None, front, (tall - 0.5, tall), piece, _shaded(wall, shade * 0.75))
        if z >= _NEAR:
            c.across(_BUILDING, across, (0.0, tall), z, _shaded(wall, 0.9))
        if crude:
            return
        for floor in range(storeys):
            low = 0.9 + 3.0 * floor
            if z >= _NEAR and c.visible(z, 1.2, 1.2):
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


def _garden(c: _Canvas, front: float, side: int, near: float, end: float) -> list[_Item]:
    """Return bushes behind a wall, a fence or nothing."""
    items: list[_Item] = []
    w = end
    while w > near:
        wide, tall = c.uniform(1.8, 3.2), c.uniform(1.4, 3.6)
        if c.chance(0.85) and w > near + 1.5:
            items.append(
                _blob(c, front + (wide + c.uniform(0.8, 4.0)) * side, tall * 0.6, w, wide, tall)
            )
        w -= c.uniform(2.5, 5.0) + 0.06 * w  # sparser where they hide each other
    kind = c.rng.random()
    if kind < 0.38:
        items.append(_wall(c, front, near, end, c.uniform(1.3, 2.4)))
    elif kind < 0.80:
        items.append(_fence(c, front, near, end, c.uniform(1.1, 1.7)))
    return items


def _wall(c: _Canvas, x: float, near: float, end: float, tall: float) -> _Item:
    tint = c.colour(_WALL)
    crude = c.chance(c.style.crude.built)

    def paint() -> None:
        shade = c.lit(x)
        c.along(_WALL, x, (0.0, tall), (near, end), _shaded(tint, shade))
        if crude:
            return
        c.along(None, x, (tall - 0.2, tall), (near, end), _shaded(tint, shade * 1.2))
        for course in range(1, int(tall / 0.4)):
            c.along(
                None,
                x,
                (course * 0.4, course * 0.4 + 0.06),
                (near, end),
                _shaded(tint, shade * 0.84),
            )

    return near + 0.3, paint


def _fence(c: _Canvas, x: float, near: float, end: float, tall: float) -> _Item:
    tint = c.colour(_FENCE)
    crude = c.chance(c.style.crude.thin)

    def paint() -> None:
        c.along(_FENCE, x, (0.0, tall), (near, end), tint if crude else None)
        if crude:
            return
        w = end
        while w > near:
            width = 0.07 * c.focal / max(w, _NEAR)
            colour = c.hazed(tint, w)
            c.line(None, [c.at(x, 0.0, w), c.at(x, tall, w)], width, colour)
            w -= 0.45 if w < 20.0 else 0.9
        for y in (0.15, tall - 0.08):
            c.along(None, x, (y, y + 0.1), (near, end), tint)

    return near + 0.3, paint


def _tree(c: _Canvas, x: float, z: float) -> _Item:
    trunk = c.choice(((86, 72, 58), (74, 66, 56)))
    height, wide = c.uniform(2.2, 3.2), c.uniform(1.3, 2.2)
    _, crown = _blob(c, x, height + wide * 0.7, z, wide, wide * 0.95)

    def paint() -> None:
        c.across(_VEGETATION, (x - 0.15, x + 0.15), (0.0, height), z, trunk)
        crown()

    return z, paint


def _post(c: _Canvas, x: float, side: int, z: float, kind: str) -> _Item:
    """Return a pole: a "lamp", or one that carries a "sign" or a traffic "light"."""
    crude = c.chance(c.style.crude.thin)
    tint, head = c.colour(_POLE), c.colour(_SIGN if kind == "sign" else _LIGHT)
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
        c.line(_POLE, [c.at(x, 0.0, z), c.at(x, tall, z)], thick * scale, pole)
        if kind == "lamp":
            if not crude:
                tip = c.at(x - arm * side, tall + 0.15, z)
                c.line(_POLE, [c.at(x, tall, z), tip], 0.1 * scale, pole)
                c.ellipse(_POLE, tip, (0.35 * scale, 0.12 * scale), c.hazed(tint, z))
            return
        if kind == "sign":
            _sign(c, x, tall, z, 3 if crude else shape, head)
            return
        c.across(_LIGHT, (x - 0.2, x + 0.2), (tall - 0.55, tall + 0.5), z, head)
        if not crude:
            y = tall + 0.3 - 0.32 * lamp
            lit = ((236, 60, 44), (244, 180, 60), (70, 220, 130))[lamp]
            c.ellipse(None, c.at(x, y, z), (0.15 * scale, 0.15 * scale), lit)

    return z, paint


def _sign(c: _Canvas, x: float, y: float, z: float, shape: int, tint: RGB) -> None:
    scale = c.focal / z
    colour, inner = c.hazed(tint, z), c.hazed((232, 232, 228), z)
    if shape == 0:
        c.ellipse(_SIGN, c.at(x, y, z), (0.42 * scale, 0.42 * scale), colour)
        c.ellipse(None, c.at(x, y, z), (0.24 * scale, 0.24 * scale), inner)
    elif shape == 1:
        for size, train_id, fill in ((0.5, _SIGN, colour), (0.25, None, inner)):
            corners = ((-size, -0.8 * size), (size, -0.8 * size), (0.0, size))
            c.polygon(train_id, [c.at(x + u, y + v, z) for u, v in corners], fill)
    else:
        c.across(_SIGN, (x - 0.4, x + 0.4), (y - 0.45, y + 0.45), z, tint)
        if shape == 2:
            c.across(None, (x - 0.24, x + 0.24), (y - 0.1, y + 0.15), z, (232, 232, 228))


# Who is on the street -----------------------------------------------------------------------


def _person(c: _Canvas, x: float, z: float) -> _Item:
    tall = c.uniform(1.55, 1.9)
    top, legs = c.colour(_PERSON), _shaded(c.colour(_PERSON), 0.75)
    skin, hair = c.choice(_SKIN), c.choice(((50, 38, 30), (26, 24, 24), (120, 92, 60)))
    stride = c.uniform(0.05, 0.32)
    crude = c.chance(c.style.crude.actors)

    def paint() -> None:
        scale = c.focal / z
        _shadow(c, x, z, 0.45)
        if crude:
            c.across(_PERSON, (x - 0.3, x + 0.3), (0.0, tall), z, top)
            return
        hip = c.at(x, tall * 0.5, z)
        for foot in (-stride, stride):
            c.line(_PERSON, [hip, c.at(x + foot, 0.0, z)], 0.17 * scale, c.hazed(legs, z))
        c.across(_PERSON, (x - 0.23, x + 0.23), (tall * 0.46, tall * 0.84), z, top)
        for arm in (-0.27, 0.27):
            ends = [c.at(x + arm * 0.8, tall * 0.82, z), c.at(x + arm * 1.15, tall * 0.5, z)]
            c.line(_PERSON, ends, 0.11 * scale, c.hazed(_shaded(top, 0.85), z))
        head = c.at(x, tall * 0.92, z)
        c.ellipse(_PERSON, head, (0.115 * scale, 0.14 * scale), c.hazed(skin, z))
        c.ellipse(None, c.at(x, tall * 0.96, z), (0.115 * scale, 0.085 * scale), c.hazed(hair, z))

    return z, paint


def _two_wheeler(c: _Canvas, x: float, z: float, train_id: int, ridden: bool) -> _Item:
    """Return a bicycle or motorcycle seen at an angle, with its rider above it."""
    frame, jacket, trousers = (
        c.colour(train_id),
        c.colour(_RIDER),
        c.choice(((44, 46, 58), (70, 66, 62))),
    )
    skin, helmet = c.choice(_SKIN), c.colour(_RIDER)
    facing = c.side()
    half = c.uniform(0.34, 0.52) * facing
    crude = c.chance(c.style.crude.actors)
    motor = train_id == _MOTORCYCLE

    def paint() -> None:
        scale = c.focal / z
        hazed = c.hazed(frame, z)
        _shadow(c, x, z, 0.7)
        if crude:
            c.across(train_id, (x - 0.55, x + 0.55), (0.0, 0.8), z, frame)
            if ridden:
                c.across(_RIDER, (x - 0.28, x + 0.28), (0.8, 1.75), z, jacket)
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
        c.line(
            _RIDER,
            [hip, c.at(x + half * 0.3, 0.75, z), c.at(x, 0.3, z)],
            0.17 * scale,
            c.hazed(trousers, z),
        )
        c.line(_RIDER, [hip, neck], 0.36 * scale, c.hazed(jacket, z))
        c.line(_RIDER, [neck, bar], 0.11 * scale, c.hazed(_shaded(jacket, 0.85), z))
        c.ellipse(
            _RIDER, c.at(x + half * 0.3, 1.66, z), (0.13 * scale, 0.15 * scale), c.hazed(skin, z)
        )
        c.ellipse(
            None, c.at(x + half * 0.28, 1.73, z), (0.14 * scale, 0.1 * scale), c.hazed(helmet, z)
        )

    return z, paint


def _shadow(c: _Canvas, x: float, z: float, wide: float) -> None:
    scale = c.focal / z
    middle = c.at(x, 0.0, z)
    road = c.style.looks[_ROAD].colours[0]
    c.ellipse(None, middle, (wide * scale, 0.1 * scale), c.hazed(_shaded(road, 0.7), z))


_VEHICLES: Mapping[int, tuple[float, float, float]] = MappingProxyType(
    {
        _CAR: (1.8, 1.48, 4.2),
        _TRUCK: (2.4, 3.3, 7.5),
        _BUS: (2.5, 3.1, 10.5),
        _TRAIN: (2.5, 3.5, 17.0),
    }
)
"""Width, height and length in metres."""


def _vehicle(c: _Canvas, x: float, z: float, train_id: int, oncoming: bool) -> _Item:
    wide, tall, long = _VEHICLES[train_id]
    tall *= c.uniform(0.94, 1.1)
    tint = c.colour(train_id)
    crude = c.chance(c.style.crude.actors)
    span = (x - wide / 2, x + wide / 2)
    inner = span[1] if x < 0 else span[0]
    lamp = (244, 240, 214) if oncoming else (170, 34, 30)
    beside = span[1] < 0.0 or span[0] > 0.0

    def paint() -> None:
        c.ground(
            None,
            (span[0] - 0.15, span[1] + 0.15),
            (z - 0.15, z + long),
            c.hazed(_shaded(c.style.looks[_ROAD].colours[0], 0.5), z),
        )
        if crude:
            c.box(train_id, span, (0.1, tall), (z, z + long), tint)
            return
        if train_id == _CAR:
            _paint_car(c, span, tall, z, long, tint)
        else:
            _paint_large(c, train_id, span, tall, z, long, tint)
        scale = c.focal / z
        if beside:
            for w in (z + 0.18 * long, z + 0.8 * long):
                size = 0.34 * c.focal / w
                narrow = size * min(0.8, max(0.12, abs(inner) / w))  # seen from ahead
                c.ellipse(train_id, c.at(inner, 0.34, w), (narrow, size), c.hazed(_TYRE, z))
        for edge in (span[0], span[1] - 0.24):
            c.across(train_id, (edge, edge + 0.24), (0.05, 0.4), z, _TYRE)
        y = 0.72 if train_id == _CAR else 0.9
        for edge in (span[0] + 0.2, span[1] - 0.2):
            c.ellipse(None, c.at(edge, y, z), (0.15 * scale, 0.1 * scale), c.hazed(lamp, z))
        c.across(None, (x - 0.26, x + 0.26), (0.5, 0.62), z, (222, 222, 214))

    return z, paint


def _paint_car(
    c: _Canvas, span: tuple[float, float], tall: float, z: float, long: float, tint: RGB
) -> None:
    left, right = span
    c.box(_CAR, span, (0.16, 0.92), (z, z + long), tint)
    roof = (left + 0.22, right - 0.22)
    near, far = z + 0.5, z + 0.72 * long
    # The cabin narrows towards the roof: a trapezium in front of the side glass.
    if right < 0.0 or left > 0.0:
        low, high = (right, roof[1]) if right < 0.0 else (left, roof[0])
        corners = [
            c.at(low, 0.92, near - 0.3),
            c.at(low, 0.92, far + 0.5),
            c.at(high, tall, far),
            c.at(high, tall, near),
        ]
        c.polygon(_CAR, corners, c.hazed(_shaded(tint, c.lit(low)), z))
        inset = [
            c.at(low, 0.98, near + 0.1),
            c.at(low, 0.98, far + 0.1),
            c.at(high, tall - 0.1, far - 0.2),
            c.at(high, tall - 0.1, near + 0.2),
        ]
        c.polygon(None, inset, c.hazed(_GLASS, z))
    for rim, train_id, colour in ((0.0, _CAR, tint), (0.1, None, _GLASS)):
        corners = [
            c.at(left + rim, 0.92 + rim * 0.4, z + 0.2),
            c.at(right - rim, 0.92 + rim * 0.4, z + 0.2),
            c.at(roof[1] - rim, tall - rim, near),
            c.at(roof[0] + rim, tall - rim, near),
        ]
        c.polygon(train_id, corners, c.hazed(colour, z))
    c.across(_CAR, span, (0.16, 0.44), z, _shaded(tint, 0.62))


def _paint_large(
    c: _Canvas,
    train_id: int,
    span: tuple[float, float],
    tall: float,
    z: float,
    long: float,
    tint: RGB,
) -> None:
    left, right = span
    c.box(train_id, span, (0.3, tall), (z, z + long), tint)
    inner = right if right < 0.0 else left
    beside = right < 0.0 or left > 0.0
    if train_id == _TRUCK:
        c.across(None, (left + 0.12, right - 0.12), (1.0, tall - 0.12), z, _shaded(tint, 0.82))
        c.across(
            None,
            ((left + right) / 2 - 0.03, (left + right) / 2 + 0.03),
            (1.0, tall - 0.12),
            z,
            _shaded(tint, 0.5),
        )
        c.across(None, (left, right), (0.3, 0.9), z, (60, 60, 64))
        return
    c.across(None, (left + 0.15, right - 0.15), (1.5, tall - 0.35), z, _GLASS)
    if train_id == _TRAIN:
        c.across(None, (left, right), (tall - 0.3, tall), z, (222, 222, 216))
    if beside:
        w = z + 0.5
        while w < z + long - 1.3:
            c.along(None, inner, (1.4, tall - 0.6), (w, w + 1.2), _GLASS)
            w += 1.5


def _plan_furniture(c: _Canvas, street: _Street) -> list[_Item]:
    """Return what stands on the sidewalks: trees, lamps, signs, lights, railings."""
    layout = c.style.layout
    items: list[_Item] = []
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


def _plan_traffic(c: _Canvas, street: _Street) -> list[_Item]:
    """Return people, two-wheelers and vehicles."""
    layout = c.style.layout
    items: list[_Item] = []
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
        motor = c.chance(0.3)
        items.append(
            _two_wheeler(
                c, x, c.uniform(6.5, 24.0), _MOTORCYCLE if motor else _BICYCLE, ridden=True
            )
        )
    if c.chance(0.5):  # parked at the wall
        side = c.side()
        x = street.walk(side) - 0.5 * side
        kind = _MOTORCYCLE if c.chance(0.25) else _BICYCLE
        items.append(_two_wheeler(c, x, c.uniform(7.0, 16.0), kind, ridden=False))
    taken: list[tuple[int, float]] = []
    for _ in range(c.count(layout.parked)):
        side, slot = c.side(), float(c.rng.integers(1, 8))
        if (side, slot) in taken:
            continue
        taken.append((side, slot))
        x = street.kerb(side) - 1.05 * side
        items.append(_vehicle(c, x, 2.5 + slot * 5.6 + c.uniform(-0.4, 0.4), _CAR, side < 0))
    for _ in range(c.count(layout.driving)):
        oncoming = c.chance(0.5)
        x = middle + (-1.6 if oncoming else 1.4) + c.uniform(-0.3, 0.3)
        kind = _CAR
        if c.chance(layout.large):
            kind = (_TRUCK, _BUS, _TRAIN)[int(c.rng.integers(3))]
        items.append(
            _vehicle(c, x, c.uniform(11.0 if kind == _CAR else 16.0, 50.0), kind, oncoming)
        )
    return items


def _paint_hood(c: _Canvas) -> None:
    rows, columns = c.colours.height, c.colours.width
    tall = rows * c.uniform(0.05, 0.08)
    middle = (columns * 0.5, float(rows))
    c.ellipse(IGNORE, middle, (columns * 0.42, tall), (34, 36, 40))
    c.ellipse(None, (middle[0], middle[1]), (columns * 0.34, tall * 0.6), (58, 62, 68))


def draw_scene(
    seed: int, index: int, style: Style, size: tuple[int, int] = (96, 192)
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one street scene with its exact labels.

    Parameters
    ----------
    seed : int
        The city.
    index : int
        The scene in that city; see `scene_index` for the scenes of a split.
    style : Style
        How it looks. Styles of different names draw different scenes.
    size : (int, int)
        Height and width in pixels, at least 16 each.

    Returns
    -------
    image : (H, W, 3) uint8
        RGB.
    label : (H, W) uint8
        Train ids 0..18, 255 where there is no class (the hood of the own car).

    Raises
    ------
    ValueError
        If a side of `size` is too small.
    """
    _check_size(size)
    digest = hashlib.sha256(f"{seed}/{style.name}/{index}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    canvas = _Canvas(rng, style, size)
    street = _plan_street(canvas)
    _paint_ground(canvas, street)
    items = _plan_skyline(canvas)
    for side in (-1, 1):
        items += _plan_roadside(canvas, street, side)
    items += _plan_furniture(canvas, street)
    items += _plan_traffic(canvas, street)
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint()
    _paint_hood(canvas)
    return canvas.develop()


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < _MIN_SIDE:
        raise ValueError(f"size (height, width) must be at least {_MIN_SIDE} pixels, got {size}")


def scene_index(split: str, number: int) -> int:
    """Return the index for `draw_scene` of scene `number` (from 0) of a split.

    Splits have ranges of their own, so no scene of one is ever drawn in another.
    """
    return (zlib.crc32(split.encode()) << 32) + number


def write_city(
    root: Path,
    seed: int,
    style: Style,
    scenes: Mapping[str, int],
    size: tuple[int, int] = (96, 192),
) -> None:
    """Write a city of generated scenes in Cityscapes layout.

    For scene 3 of split `val` in the style `harbour` these two files are written (the cities of
    two splits have different names, as in Cityscapes, so image ids are unique):

    - `leftImg8bit/val/harbour-val/harbour-val_000003_000019_leftImg8bit.png`, RGB;
    - `gtFine/val/harbour-val/harbour-val_000003_000019_gtFine_labelIds.png`, Cityscapes label ids
      (not train ids), 1 (ego vehicle) where a pixel is ignored.

    Parameters
    ----------
    root : Path
        Created if missing; files of the same names are replaced.
    seed : int
        The city.
    style : Style
        How it looks.
    scenes : mapping of str to int
        Number of scenes of each split, such as ``{"train": 48, "val": 16}``.
    size : (int, int)
        Height and width in pixels, at least 16 each.

    Raises
    ------
    ValueError
        If a number of scenes is negative, a split's name cannot be a folder's, or `size` is too
        small.
    """
    for split, count in scenes.items():
        if count < 0:
            raise ValueError(f"number of scenes of split {split!r} must be at least 0, got {count}")
        if not split.replace("_", "").isalnum():
            raise ValueError(f"split name must be letters, digits and underscores, got {split!r}")
    _check_size(size)
    table = np.zeros(256, dtype=np.uint8)
    table[: len(LABEL_IDS)] = LABEL_IDS
    table[IGNORE] = _EGO_VEHICLE
    for split, count in scenes.items():
        city = f"{style.name}-{split.replace('_', '-')}"
        images, labels = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, label = draw_scene(seed, scene_index(split, number), style, size)
            stem = f"{city}_{number:06d}_{_FRAME:06d}"
            Image.fromarray(image).save(images / f"{stem}_leftImg8bit.png")
            Image.fromarray(table[label]).save(labels / f"{stem}_gtFine_labelIds.png")


# The styles ---------------------------------------------------------------------------------

_TARGET_LOOKS: tuple[Look, ...] = (
    Look(((94, 94, 98), (86, 87, 90)), grain=4.0, blotch=3.0),
    Look(((146, 138, 134), (136, 130, 128)), grain=4.0, blotch=3.0),
    Look(((146, 130, 114), (124, 112, 106), (168, 154, 134), (118, 100, 92)), grain=3.0),
    Look(((132, 116, 104), (116, 112, 106)), grain=5.0, blotch=4.0),
    Look(((76, 84, 82), (96, 98, 96)), grain=3.0),
    Look(((76, 82, 82), (60, 64, 66)), grain=2.0, blotch=1.0),
    Look(((34, 36, 36),), grain=2.0, blotch=0.0),
    Look(((188, 48, 44), (44, 78, 156), (220, 176, 60)), grain=2.0, blotch=0.0),
    Look(((66, 88, 50), (80, 100, 56), (56, 76, 46)), grain=12.0, blotch=10.0),
    Look(((116, 120, 76), (124, 116, 82)), grain=9.0, blotch=6.0),
    Look(((170, 190, 208), (188, 198, 206)), grain=0.5, blotch=1.0),
    Look(((58, 60, 74), (90, 52, 50), (52, 52, 54), (108, 100, 92)), grain=3.0),
    Look(((180, 72, 48), (60, 110, 150), (196, 190, 60), (70, 130, 84)), grain=3.0),
    Look(((46, 48, 52), (150, 154, 158), (120, 34, 34), (44, 62, 104), (196, 198, 198)), grain=2.0),
    Look(((206, 202, 192), (70, 96, 136)), grain=2.0),
    Look(((186, 150, 52), (166, 56, 48)), grain=2.0),
    Look(((60, 110, 96), (196, 186, 160)), grain=2.0),
    Look(((60, 60, 66), (110, 36, 34)), grain=2.0),
    Look(((60, 66, 72), (96, 48, 48), (48, 72, 96)), grain=2.0),
)

TARGET: Style = Style("harbour", _TARGET_LOOKS)
"""The city to adapt to."""


def _dressed(*wardrobes: tuple[Mapping[int, Look], float]) -> tuple[Look, ...]:
    """Return the target's looks, those of some classes moved towards other looks.

    Each wardrobe comes with the share of the way to go: 0 stays at the target, 1 arrives.
    """
    looks = list(_TARGET_LOOKS)
    for wardrobe, share in wardrobes:
        for train_id, other in wardrobe.items():
            own = _TARGET_LOOKS[train_id]
            count = max(len(own.colours), len(other.colours))
            pairs = zip(_repeated(own.colours, count), _repeated(other.colours, count), strict=True)
            looks[train_id] = Look(
                tuple(_mixed(a, b, share) for a, b in pairs),
                grain=own.grain + (other.grain - own.grain) * share,
                blotch=own.blotch + (other.blotch - own.blotch) * share,
                stripes=own.stripes + (other.stripes - own.stripes) * share,
            )
    return tuple(looks)


def _repeated(colours: tuple[RGB, ...], count: int) -> tuple[RGB, ...]:
    return tuple(colours[k % len(colours)] for k in range(count))


# Looks that some simulators have instead of the target's.
_ARCADE_LAND: Mapping[int, Look] = {
    _ROAD: Look(((126, 112, 98),), grain=0.0, blotch=0.0, stripes=3.0),
    _SIDEWALK: Look(((178, 164, 130),), grain=0.0, blotch=0.0, stripes=4.0),
    _VEGETATION: Look(((52, 124, 56), (70, 140, 60)), grain=2.0, blotch=2.0),
    _TERRAIN: Look(((96, 150, 74),), grain=2.0, blotch=0.0, stripes=5.0),
    _SKY: Look(((128, 168, 218),), grain=0.0, blotch=0.0),
}
_AUTUMN_LAND: Mapping[int, Look] = {
    _ROAD: Look(((122, 116, 106), (82, 84, 94)), grain=5.0, blotch=8.0),
    _SIDEWALK: Look(((100, 102, 116),), grain=5.0, blotch=8.0),
    _VEGETATION: Look(((128, 112, 44), (142, 94, 46)), grain=5.0, blotch=4.0),
    _TERRAIN: Look(((150, 128, 84),), grain=4.0, blotch=3.0),
    _SKY: Look(((222, 202, 196),), grain=0.0, blotch=0.0),
}
_BRICK_BUILT: Mapping[int, Look] = {
    _BUILDING: Look(((172, 98, 78), (150, 82, 70)), grain=1.0, stripes=10.0),
    _WALL: Look(((190, 180, 160),), grain=1.0, stripes=6.0),
}
_PASTEL_BUILT: Mapping[int, Look] = {
    _BUILDING: Look(((176, 190, 200), (196, 180, 196), (188, 198, 170)), grain=0.0, blotch=0.0),
    _WALL: Look(((96, 84, 120),), grain=0.0, blotch=0.0),
}
_PAINTED_THIN: Mapping[int, Look] = {
    _FENCE: Look(((156, 112, 74),), grain=6.0, stripes=8.0),
    _POLE: Look(((182, 168, 84),), grain=0.0),
    _LIGHT: Look(((206, 170, 52),), grain=0.0),
    _SIGN: Look(((60, 140, 80), (226, 226, 220)), grain=0.0),
}
_TOY_ACTORS: Mapping[int, Look] = {
    _PERSON: Look(((220, 110, 150), (110, 200, 200)), grain=0.0),
    _RIDER: Look(((230, 230, 230), (150, 90, 190)), grain=0.0),
    _CAR: Look(((120, 190, 70), (230, 150, 50), (140, 90, 170)), grain=0.0),
    _TRUCK: Look(((70, 130, 190),), grain=0.0),
    _BUS: Look(((90, 180, 180),), grain=0.0),
    _TRAIN: Look(((200, 90, 140),), grain=0.0),
    _MOTORCYCLE: Look(((200, 200, 60),), grain=0.0),
    _BICYCLE: Look(((220, 120, 60),), grain=0.0),
}

_STYLES: tuple[Style, ...] = (
    Style(
        "daylight",
        _dressed((_BRICK_BUILT, 0.4), (_PAINTED_THIN, 0.4), (_TOY_ACTORS, 0.3)),
        Light(brightness=1.02, haze=120.0, noise=2.5),
        crude=Crude(built=0.3, thin=0.5, actors=0.35),
    ),
    Style(
        "blueprint",
        _dressed((_ARCADE_LAND, 0.4), (_TOY_ACTORS, 0.35)),
        Light(gamma=1.05, cast=(0.98, 1.0, 1.02), noise=4.0),
        crude=Crude(land=0.5, actors=0.4),
    ),
    Style(
        "parade",
        _dressed((_AUTUMN_LAND, 0.45), (_PASTEL_BUILT, 0.6), (_PAINTED_THIN, 0.35)),
        Light(brightness=0.97, cast=(1.02, 1.0, 0.98), blur=0.5),
        Layout(persons=6.0, riders=2.5, driving=3.0, large=0.5),
        crude=Crude(land=0.4, built=0.6, thin=0.4),
    ),
    Style(
        "nocturne",
        _dressed(
            (_ARCADE_LAND, 0.4), (_BRICK_BUILT, 0.4), (_PAINTED_THIN, 0.4), (_TOY_ACTORS, 0.4)
        ),
        Light(brightness=0.8, gamma=1.15, cast=(0.94, 0.97, 1.06), noise=6.0, blur=0.7),
        crude=Crude(land=0.5, built=0.5, thin=0.5, actors=0.5),
    ),
)

SOURCES: Mapping[str, Style] = MappingProxyType({style.name: style for style in _STYLES})
"""The simulators, by name: one for each teacher of the demo.

`daylight` is close to the target in what lies on the ground and grows, and in the sky;
`blueprint` in houses, walls and all thin things; `parade` in people and vehicles. `nocturne` is
close in nothing and dark besides.
"""
