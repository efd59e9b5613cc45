"""What a scene is painted on: colours and labels side by side, and a camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from ensdistill.data.classes import Colour
from ensdistill.stages.demo.colours import mixed, shaded
from ensdistill.stages.demo.styles import SKY, Style

Point: TypeAlias = tuple[float, float]  # pixels of the canvas
Span: TypeAlias = tuple[float, float]  # metres, from and to

NEAR: Final = 2.2  # metres; everything nearer is behind the lens
_OVERSAMPLING: Final = 2  # colours are painted at twice the size and averaged: smooth edges


def inner_side(span: Span) -> float | None:
    """Return x of the side that the camera sees of what stands beside it, None if it is ahead."""
    return span[1] if span[1] < 0.0 else span[0] if span[0] > 0.0 else None


class Canvas:
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
        self.labels = Image.new("L", (columns, rows), SKY)
        self._colour_pen = ImageDraw.Draw(self.colours)
        self._label_pen = ImageDraw.Draw(self.labels)

    # Chance -------------------------------------------------------------------------------

    def uniform(self, low: float, high: float) -> float:
        """Return a number from low to high."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        """Return True that often."""
        return float(self.rng.random()) < probability

    def side(self) -> int:
        """Return -1, the left of the street, or 1."""
        return 1 if self.chance(0.5) else -1

    def count(self, mean: float) -> int:
        """Return a number within half of `mean`: calmer than Poisson, so no scene is empty."""
        return int(self.uniform(0.5, 1.5) * mean + self.uniform(0.0, 1.0))

    def choice(self, colours: Sequence[Colour], jitter: float = 0.08) -> Colour:
        """Return one of the colours, a little brighter or darker."""
        colour = colours[int(self.rng.integers(len(colours)))]
        return shaded(colour, self.uniform(1.0 - jitter, 1.0 + jitter))

    def colour(self, train_id: int) -> Colour:
        """Return the colour of an object of a class."""
        return self.choice(self.style.looks[train_id].colours)

    # Geometry -----------------------------------------------------------------------------

    def at(self, x: float, y: float, z: float) -> Point:
        """Return where the camera sees a point given in metres."""
        scale = self.focal / max(z, NEAR)
        return self.centre + x * scale, self.horizon + (self.camera_height - y) * scale

    def hazed(self, colour: Colour, z: float) -> Colour:
        """Return what is left of a colour at distance z."""
        light = self.style.light
        return mixed(colour, light.haze_colour, 1.0 - math.exp(-z / light.haze))

    def visible(self, z: float, pixels: float, metres: float) -> bool:
        """Whether `metres` at distance z span at least `pixels` of the finished picture."""
        return metres * self.focal / (z * _OVERSAMPLING) >= pixels

    # Paint --------------------------------------------------------------------------------

    def polygon(self, train_id: int | None, points: Sequence[Point], colour: Colour | None) -> None:
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
        colour: Colour | None,
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
        self, train_id: int | None, points: Sequence[Point], width: float, colour: Colour | None
    ) -> None:
        """Paint a line, its width in pixels of the canvas."""
        # Below the width of one finished pixel a line would have colours but no label.
        pixels = max(_OVERSAMPLING, round(width))
        if colour is not None:
            self._colour_pen.line(points, fill=colour, width=pixels)
        if train_id is not None:
            self._label_pen.line(points, fill=train_id, width=pixels)

    def across(
        self, train_id: int | None, x: Span, y: Span, z: float, colour: Colour | None
    ) -> None:
        """Paint a rectangle that faces the camera."""
        corners = [
            self.at(u, v, z) for u, v in ((x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]))
        ]
        self.polygon(train_id, corners, None if colour is None else self.hazed(colour, z))

    def along(
        self, train_id: int | None, x: float, y: Span, z: Span, colour: Colour | None
    ) -> None:
        """Paint a rectangle that runs along the street."""
        corners = [
            self.at(x, v, w) for v, w in ((y[0], z[0]), (y[0], z[1]), (y[1], z[1]), (y[1], z[0]))
        ]
        middle = 0.7 * z[0] + 0.3 * z[1]
        self.polygon(train_id, corners, None if colour is None else self.hazed(colour, middle))

    def ground(self, train_id: int | None, x: Span, z: Span, colour: Colour | None) -> None:
        """Paint a rectangle that lies on the road."""
        corners = [
            self.at(u, 0.0, w) for u, w in ((x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1]))
        ]
        self.polygon(train_id, corners, colour)

    def box(self, train_id: int, x: Span, y: Span, z: Span, colour: Colour) -> None:
        """Paint the faces of a box that the camera sees: the near end and the inner side."""
        if (inner := inner_side(x)) is not None:
            self.along(train_id, inner, y, z, shaded(colour, self.lit(inner)))
        self.across(train_id, x, y, z[0], shaded(colour, 0.92))

    def lit(self, x: float) -> float:
        """Brightness of a wall on side x of the street that faces the street."""
        contrast = self.style.light.contrast
        return 1.0 + 0.3 * contrast if x * self.sun > 0 else 1.0 - contrast

    # Develop ------------------------------------------------------------------------------

    def _backdrop(self, rows: int, columns: int) -> npt.NDArray[np.uint8]:
        """Return the sky, paler towards the horizon: (rows, columns, 3) uint8."""
        top = np.asarray(self.colour(SKY), dtype=np.float32)
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
