"""Training samples: random crops whose randomness is a function of seed and number alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.pictures import UInt8, read_image
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMaps

Sample = tuple[Tensor, Tensor]


_ORDER: Final = 0
_CROP: Final = 1


class Samples(Dataset[Sample]):
    """Sample number k of a training, for any k: (3, h, w) uint8 image and (h, w) uint8 label.

    Epoch k // N is a permutation of the N images drawn from (seed, epoch); scale, crop and flip
    are drawn from (seed, k). So a resumed training, with any number of loader workers, sees the
    same samples.

    Parameters
    ----------
    local : Local
        The images, sorted by id, and their digests.
    labels : LabelMaps
        A label map for each.
    recipe : mapping
        `crop`, `input_size`, `scale`, `flip`, `seed`, `steps` and `batch_size` of a `Training`.
    pad : (int, int, int)
        RGB where a crop reaches beyond its image; labels are 255 there.
    """

    def __init__(
        self,
        local: Local,
        labels: LabelMaps,
        recipe: Mapping[str, Any],
        pad: tuple[int, int, int],
    ):
        self._pictures = local.pictures
        self._digests = local.digests
        self._labels = labels
        self._recipe = recipe
        self._pad = pad

    def __len__(self) -> int:
        length: int = self._recipe["steps"] * self._recipe["batch_size"]
        return length

    def __getitem__(self, k: int) -> Sample:
        seed, count = self._recipe["seed"], len(self._pictures)
        epoch, position = divmod(k, count)
        order = _stream(seed, _ORDER, epoch).permutation(count)
        picture = self._pictures[order[position]]
        random = _stream(seed, _CROP, k)
        whole = read_image(picture.image, self._digests[str(picture.image)])
        image, label = self._crop(whole, self._labels.read(picture.id), random)
        if self._recipe["flip"] and random.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        return (
            torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1))),
            torch.tensor(np.ascontiguousarray(label)),
        )

    def _crop(self, image: UInt8, label: UInt8, random: np.random.Generator) -> tuple[UInt8, UInt8]:
        """Scale by a random factor and cut a random window, resizing the window only."""
        crop_h, crop_w = self._recipe["crop"]
        height, width = self._recipe["input_size"] or label.shape
        low, high = self._recipe["scale"]
        factor = float(random.uniform(low, high))
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
        h, w = min(crop_h, height), min(crop_w, width)
        top = int(random.integers(0, height - h + 1))
        left = int(random.integers(0, width - w + 1))
        down, across = label.shape[0] / height, label.shape[1] / width
        box = (left * across, top * down, (left + w) * across, (top + h) * down)
        out_image = np.full((crop_h, crop_w, 3), self._pad, np.uint8)
        out_label = np.full((crop_h, crop_w), IGNORE_INDEX, np.uint8)
        out_image[:h, :w] = np.asarray(
            Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR, box)
        )
        out_label[:h, :w] = np.asarray(
            Image.fromarray(label).resize((w, h), Image.Resampling.NEAREST, box)
        )
        return out_image, out_label


def _stream(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Return a random stream of its own for each purpose and number."""
    # as uint64: NumPy would turn a list of large integers into floats, and streams would collide
    key = np.array([seed, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, purpose]))
