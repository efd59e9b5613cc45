"""What training does to images: colours, blur, and mixing two by class. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

UInt8 = npt.NDArray[np.uint8]

LOOKS: Final = 5  # numbers that `draw_look` draws
_SIGMA: Final = (0.15, 1.15)  # pixels, as in DAFormer (Hoyer et al., CVPR 2022)
_RADIUS: Final = 4  # pixels: more than three times the widest sigma
_HUE: Final = 0.25  # of a turn, at a strength of 1
_GREY: Final = (0.299, 0.587, 0.114)  # BT.601, as is the rotation of hue below
# RGB to luma and the two chroma axes in which hue is an angle
_YIQ: Final = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def draw_look(random: np.random.Generator, colour: float, blur: float) -> npt.NDArray[np.float32]:
    """Draw how an image is to look: what `recolour` and `blurred` take.

    Parameters
    ----------
    random : numpy Generator
        Six numbers are taken from it, whatever the settings.
    colour : float
        Strength, 0 to 1.
    blur : float
        Probability of blur.

    Returns
    -------
    (5,) float32
        Factors of brightness, contrast and saturation, the angle of hue in radians, and the
        blur's sigma in pixels (0: none).
    """
    brightness, contrast, saturation, hue = random.uniform(-colour, colour, 4)
    sigma, chance = random.uniform(*_SIGMA), random.random()
    turned = 2 * np.pi * _HUE * hue
    look = (1 + brightness, 1 + contrast, 1 + saturation, turned, sigma if chance < blur else 0)
    return np.array(look, np.float32)


def recolour(images: Tensor, looks: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, each image in its own way.

    Images are (N, 3, H, W) float32 RGB, 0 to 255, before and after; looks are (N, 5), each as of
    `draw_look`.
    """
    brightness, contrast, saturation, hue, _ = looks.unbind(1)
    # made here and sent: a GPU is not waited for, as it is where it inverts or is given a list
    to_yiq = torch.tensor(_YIQ)
    grey, yiq, rgb = (
        x.to(images.device, non_blocking=True)
        for x in (torch.tensor(_GREY), to_yiq, torch.linalg.inv(to_yiq))
    )
    one, none = torch.ones_like(hue), torch.zeros_like(hue)
    cos, sin = hue.cos(), hue.sin()
    turn = torch.stack([one, none, none, none, cos, -sin, none, sin, cos], 1).view(-1, 3, 3)
    # towards grey, turned around the grey axis, brighter: one matrix
    colours = rgb @ turn @ yiq
    drained = torch.lerp(
        grey.expand(3, 3), torch.eye(3, device=images.device), saturation[:, None, None]
    )
    matrix = brightness[:, None, None] * (colours @ drained)
    changed = torch.einsum("nij,njhw->nihw", matrix, images)
    middle = torch.einsum("i,nihw->n", grey, changed) / (images.shape[2] * images.shape[3])
    return torch.lerp(middle[:, None, None, None], changed, contrast[:, None, None, None]).clamp(
        0, 255
    )


def blurred(images: Tensor, looks: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own sigma; edges are continued.

    Arrays are those of `recolour`, but images may be of any range.
    """
    sigma = looks[:, 4]
    count, channels, height, width = images.shape
    at = torch.arange(-_RADIUS, _RADIUS + 1, device=images.device)
    kernel = torch.exp(-(at**2) / (2 * sigma.clamp(min=1e-3)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    x = images.reshape(1, count * channels, height, width)
    x = functional.pad(x, (_RADIUS,) * 4, mode="replicate")
    x = functional.conv2d(x, kernel[:, None, :, None], groups=count * channels)
    x = functional.conv2d(x, kernel[:, None, None, :], groups=count * channels)
    return x.reshape(images.shape)


def mix_classes(
    random: np.random.Generator, label: UInt8, onto: UInt8, ignore_index: int
) -> npt.NDArray[np.bool_]:
    """Return which pixels of one image are pasted onto another: those of half of its classes.

    ClassMix (Olsson et al., WACV 2021). Ignored pixels are never pasted.

    Parameters
    ----------
    random : numpy Generator
        Chooses the classes.
    label, onto : (H, W) uint8
        Train ids of the image that gives and of the one that takes.
    ignore_index : int
        No class.

    Returns
    -------
    (H, W) bool
        True where the pixel of the first image is taken.

    Raises
    ------
    ValueError
        If the two differ in size.
    """
    if label.shape != onto.shape:
        raise ValueError(f"label maps of {label.shape} and {onto.shape}; expected the same size")
    counts: npt.NDArray[Any] = np.bincount(label.ravel(), minlength=256)
    counts[ignore_index] = 0
    present = np.flatnonzero(counts)
    given = np.zeros(256, bool)
    given[random.permutation(present)[: (len(present) + 1) // 2]] = True
    return np.asarray(given[label])
