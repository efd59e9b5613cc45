"""How the cities of the demo look: all of it is data.

A `Style` holds one `Look` per class, the `Light`, the `Layout` and the groups of classes that are
drawn with crude shapes. `TARGET` is the city whose labels are not to be used in training. Each of
`SOURCES` is a simulator that somebody could have trained a teacher on: realistic for some classes,
wrong for others, one wrong for nearly all. The handicap of a teacher lies in the pictures it is
trained on and nowhere else; labels are exact in every style.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from ensdistill.data.classes import IGNORE_INDEX, TABLES, Colour
from ensdistill.stages.demo.colours import mixed

_TABLE: Final = TABLES["cityscapes19"]

CLASSES: Final = _TABLE.classes
"""The 19 Cityscapes classes in the order of their train ids."""

LABEL_IDS: Final = tuple(i for i, train_id in _TABLE.label_ids.items() if train_id != IGNORE_INDEX)
"""The Cityscapes label id of each class of `CLASSES`."""

(
    ROAD,
    SIDEWALK,
    BUILDING,
    WALL,
    FENCE,
    POLE,
    LIGHT,
    SIGN,
    VEGETATION,
    TERRAIN,
    SKY,
    PERSON,
    RIDER,
    CAR,
    TRUCK,
    BUS,
    TRAIN,
    MOTORCYCLE,
    BICYCLE,
) = range(len(CLASSES))


@dataclass(frozen=True)
class Look:
    """Colour and texture of one class; strengths are in grey levels."""

    colours: tuple[Colour, ...]  # what an object of the class picks its colour from, 0..255 each
    grain: float = 4.0  # strength of pixel-sized noise
    blotch: float = 3.0  # of smooth noise some pixels wide
    stripes: float = 0.0  # of a regular diagonal pattern


@dataclass(frozen=True)
class Light:
    """The light over a scene and the camera that takes it."""

    brightness: float = 1.0  # factor on intensities in 0..1
    gamma: float = 1.0  # exponent of these
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors for red, green and blue
    haze: float = 110.0  # distance in metres at which 63 % of the colour is the haze's
    haze_colour: Colour = (206, 212, 216)  # of far things and of the sky at the horizon
    blur: float = 0.4  # radius in pixels
    noise: float = 3.0  # standard deviation of the sensor noise in grey levels
    contrast: float = 0.25  # how much the shady side of the street is darker, as a fraction


@dataclass(frozen=True)
class Layout:
    """How many things stand in a scene, on average, and how wide the street is."""

    road: tuple[float, float] = (7.0, 10.5)  # from and to, in metres
    sidewalk: tuple[float, float] = (2.0, 3.6)  # likewise
    built: float = 0.55  # share of the roadside taken by buildings; the rest is gardens
    storeys: tuple[int, int] = (2, 5)  # of a building, from and to
    trees: float = 4.0  # in the street
    posts: float = 7.0  # lamps, signs and traffic lights
    persons: float = 5.0  # on foot
    riders: float = 1.8  # people on two wheels
    parked: float = 4.5  # cars at the kerb
    driving: float = 2.2  # vehicles in the lanes
    large: float = 0.4  # probability that one of these is a truck, bus or tram, a fraction


@dataclass(frozen=True)
class Crude:
    """Share of the objects of each group that are drawn with few, simple shapes, a fraction."""

    land: float = 0.0  # bushes and trees
    built: float = 0.0  # houses and walls
    thin: float = 0.0  # fences, poles, lights and signs
    actors: float = 0.0  # people and vehicles


@dataclass(frozen=True)
class Style:
    """How scenes look: one simulator, or the target city.

    Raises
    ------
    ValueError
        If `looks` does not have one entry for each class, or the name is not lower-case letters.
    """

    name: str  # lower-case letters; part of every scene's random stream and of the city's name
    looks: tuple[Look, ...]  # one for each class of `CLASSES`, in that order
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
                tuple(mixed(a, b, share) for a, b in pairs),
                grain=own.grain + (other.grain - own.grain) * share,
                blotch=own.blotch + (other.blotch - own.blotch) * share,
                stripes=own.stripes + (other.stripes - own.stripes) * share,
            )
    return tuple(looks)


def _repeated(colours: tuple[Colour, ...], count: int) -> tuple[Colour, ...]:
    return tuple(colours[k % len(colours)] for k in range(count))


# Looks that some simulators have instead of the target's.
_ARCADE_LAND: Mapping[int, Look] = {
    ROAD: Look(((126, 112, 98),), grain=0.0, blotch=0.0, stripes=3.0),
    SIDEWALK: Look(((178, 164, 130),), grain=0.0, blotch=0.0, stripes=4.0),
    VEGETATION: Look(((52, 124, 56), (70, 140, 60)), grain=2.0, blotch=2.0),
    TERRAIN: Look(((96, 150, 74),), grain=2.0, blotch=0.0, stripes=5.0),
    SKY: Look(((128, 168, 218),), grain=0.0, blotch=0.0),
}
_AUTUMN_LAND: Mapping[int, Look] = {
    ROAD: Look(((122, 116, 106), (82, 84, 94)), grain=5.0, blotch=8.0),
    SIDEWALK: Look(((100, 102, 116),), grain=5.0, blotch=8.0),
    VEGETATION: Look(((128, 112, 44), (142, 94, 46)), grain=5.0, blotch=4.0),
    TERRAIN: Look(((150, 128, 84),), grain=4.0, blotch=3.0),
    SKY: Look(((222, 202, 196),), grain=0.0, blotch=0.0),
}
_BRICK_BUILT: Mapping[int, Look] = {
    BUILDING: Look(((172, 98, 78), (150, 82, 70)), grain=1.0, stripes=10.0),
    WALL: Look(((190, 180, 160),), grain=1.0, stripes=6.0),
}
_PASTEL_BUILT: Mapping[int, Look] = {
    BUILDING: Look(((176, 190, 200), (196, 180, 196), (188, 198, 170)), grain=0.0, blotch=0.0),
    WALL: Look(((96, 84, 120),), grain=0.0, blotch=0.0),
}
_PAINTED_THIN: Mapping[int, Look] = {
    FENCE: Look(((156, 112, 74),), grain=6.0, stripes=8.0),
    POLE: Look(((182, 168, 84),), grain=0.0),
    LIGHT: Look(((206, 170, 52),), grain=0.0),
    SIGN: Look(((60, 140, 80), (226, 226, 220)), grain=0.0),
}
_TOY_ACTORS: Mapping[int, Look] = {
    PERSON: Look(((220, 110, 150), (110, 200, 200)), grain=0.0),
    RIDER: Look(((230, 230, 230), (150, 90, 190)), grain=0.0),
    CAR: Look(((120, 190, 70), (230, 150, 50), (140, 90, 170)), grain=0.0),
    TRUCK: Look(((70, 130, 190),), grain=0.0),
    BUS: Look(((90, 180, 180),), grain=0.0),
    TRAIN: Look(((200, 90, 140),), grain=0.0),
    MOTORCYCLE: Look(((200, 200, 60),), grain=0.0),
    BICYCLE: Look(((220, 120, 60),), grain=0.0),
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
