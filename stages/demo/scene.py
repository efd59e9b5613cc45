"""A scene: a street in perspective, painted from far to near.

It is laid out in metres, so that thin things (poles, signs, riders) are as thin as geometry makes
them. It depends on (seed, style name, index) alone: the same numbers give the same arrays.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.stages.demo.canvas import Canvas
from ensdistill.stages.demo.roadside import plan_furniture, plan_roadside, plan_skyline
from ensdistill.stages.demo.street import paint_ground, plan_street
from ensdistill.stages.demo.styles import Style
from ensdistill.stages.demo.traffic import plan_traffic

_MIN_SIDE: Final = 16


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
    require_size(size)
    digest = hashlib.sha256(f"{seed}/{style.name}/{index}".encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    canvas = Canvas(rng, style, size)
    street = plan_street(canvas)
    paint_ground(canvas, street)
    items = plan_skyline(canvas)
    for side in (-1, 1):
        items += plan_roadside(canvas, street, side)
    items += plan_furniture(canvas, street)
    items += plan_traffic(canvas, street)
    for _, paint in sorted(items, key=lambda item: -item[0]):
        paint()
    _paint_hood(canvas)
    return canvas.develop()


def _paint_hood(c: Canvas) -> None:
    rows, columns = c.colours.height, c.colours.width
    tall = rows * c.uniform(0.05, 0.08)
    middle = (columns * 0.5, float(rows))
    c.ellipse(IGNORE_INDEX, middle, (columns * 0.42, tall), (34, 36, 40))
    c.ellipse(None, middle, (columns * 0.34, tall * 0.6), (58, 62, 68))


def require_size(size: tuple[int, int]) -> None:
    """Raise ValueError if a side, in pixels, is too small for a scene."""
    if min(size) < _MIN_SIDE:
        raise ValueError(f"size (height, width) must be at least {_MIN_SIDE} pixels, got {size}")
