"""From photographs to network input; declared as data, the same for teachers and students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ensdistill.data.decoding import UInt8

_LEAST = 0.02  # of the largest pixel value, below which no mean or deviation of photographs is
_OF_TEACHERS = ("factor", "flip", "scales", "tiles")  # left out of a student's own description


@dataclass(frozen=True)
class Preprocessing:
    """``x = (pixel / scale - mean) / std``, channel by channel.

    Attributes
    ----------
    mean, std : tuple of float
        Per channel, in the order of `channels`.
    scale : float
        What 8-bit values are divided by.
    channels : str
        ``"rgb"`` or ``"bgr"``.
    size : (int, int) or None
        Height and width to which the image is resized, None for its own times `factor`.
    factor : float
        See `size`.
    interpolation : str
        How it is resized.
    align_corners : bool
        How the network's scores are to be resized to the image.
    scales : tuple of float
        Multiples of that size at which the network sees the image.
    flip : bool
        Whether it also sees it mirrored.
    tiles : dict or None
        ``size`` and ``overlap`` of the parts that it sees one by one, height and width in pixels.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 255.0
    channels: Literal["rgb", "bgr"] = "rgb"
    size: tuple[int, int] | None = None
    factor: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    align_corners: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    tiles: Mapping[str, tuple[int, int]] | None = None

    @classmethod
    def from_settings(cls, *settings: Mapping[str, Any]) -> Preprocessing:
        """Return the defaults with each of `settings` laid over them in turn."""
        merged: dict[str, Any] = {}
        for layer in settings:
            if "factor" in layer:  # of the image, whatever size the layers below say
                merged.pop("size", None)
            merged |= layer
        if merged.get("size") == "image":
            merged["size"] = None
        for key in ("mean", "std", "size", "scales"):
            if merged.get(key) is not None:
                merged[key] = tuple(merged[key])
        return cls(**merged)

    def to_json(self) -> dict[str, Any]:
        """Return all fields that a trained network needs."""
        return {k: v for k, v in asdict(self).items() if k not in _OF_TEACHERS}

    def sizes(self, image: UInt8) -> list[tuple[int, int]]:
        """Return height and width of what the network sees, for each of `scales`."""
        size = self.size or tuple(self.factor * side for side in image.shape[:2])
        return [(max(1, round(s * size[0])), max(1, round(s * size[1]))) for s in self.scales]

    def resize(self, image: UInt8) -> list[UInt8]:
        """Return (h, w, 3) uint8 at each of `sizes`."""
        method = Image.Resampling[self.interpolation.upper()]
        return [
            image
            if image.shape[:2] == (height, width)
            else np.asarray(Image.fromarray(image).resize((width, height), method))
            for height, width in self.sizes(image)
        ]

    def normalise(self, images: Tensor) -> Tensor:
        """Return (N, 3, H, W) uint8 RGB as float32 network input, on the same device."""
        x = images.to(torch.float32)
        if self.channels == "bgr":
            x = x.flip(1)
        mean, std = _channels(self.mean, x.device), _channels(self.std, x.device)
        return (x / self.scale - mean) / std

    def doubt(self) -> str | None:
        """Return why `mean` and `std` look like those of another `scale`; None if they do not.

        Both are of pixels divided by `scale`, which are up to 1 (scale 255) or 255 (scale 1).
        """
        most = 255.0 / self.scale
        of_other = [
            f"`{key}: {list(values)}`"
            for key, values in (("mean", self.mean), ("std", self.std))
            if set(values) not in ({0.0}, {1.0})
            and not _LEAST * most <= max(map(abs, values)) <= most
        ]
        if not of_other:
            return None
        return (
            f"{' and '.join(of_other)} of pixels divided by {self.scale:g}, which are up to "
            f"{most:g}: is this the scale that they were measured at? (`scale: 255` is that of "
            "values up to 1, `scale: 1` that of values up to 255)"
        )

    def mean_pixel(self) -> tuple[int, int, int]:
        """Return the RGB pixel nearest to the mean: what images are padded with."""
        red, green, blue = (min(255, max(0, round(v * self.scale))) for v in self.mean)
        return (red, green, blue) if self.channels == "rgb" else (blue, green, red)


@lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return (C, 1, 1) float32; moved to a device once, since each time it would wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
