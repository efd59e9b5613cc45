"""From photographs to network input; declared as data, the same for teachers and students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ensdistill.data.pictures import UInt8


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
        Height and width to which the image is resized, None for its own.
    interpolation : str
        How it is resized.
    align_corners : bool
        How the network's logits are to be resized to the image.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 255.0
    channels: Literal["rgb", "bgr"] = "rgb"
    size: tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    align_corners: bool = False

    @classmethod
    def from_settings(cls, *settings: Mapping[str, Any]) -> Preprocessing:
        """Return the defaults with each of `settings` laid over them in turn."""
        merged: dict[str, Any] = {}
        for layer in settings:
            merged |= layer
        if merged.get("size") == "image":
            merged["size"] = None
        for key in ("mean", "std", "size"):
            if merged.get(key) is not None:
                merged[key] = tuple(merged[key])
        return cls(**merged)

    def to_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def resize(self, image: UInt8) -> UInt8:
        """Return (H, W, 3) uint8 at the declared size."""
        if self.size is None or image.shape[:2] == self.size:
            return image
        height, width = self.size
        method = Image.Resampling[self.interpolation.upper()]
        resized = Image.fromarray(image).resize((width, height), method)
        return np.asarray(resized)

    def normalise(self, images: Tensor) -> Tensor:
        """Return (N, 3, H, W) uint8 RGB as float32 network input, on the same device."""
        x = images.to(torch.float32)
        if self.channels == "bgr":
            x = x.flip(1)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=x.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=x.device)
        return (x / self.scale - mean[:, None, None]) / std[:, None, None]

    def mean_pixel(self) -> tuple[int, int, int]:
        """Return the RGB pixel nearest to the mean: what images are padded with."""
        red, green, blue = (min(255, max(0, round(v * self.scale))) for v in self.mean)
        return (red, green, blue) if self.channels == "rgb" else (blue, green, red)
