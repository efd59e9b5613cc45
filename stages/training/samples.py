"""Training samples: random crops whose randomness is a function of seed and number alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import UInt8
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.functional.augmentation import draw_look, mix_classes
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.local import Learning
from ensdistill.stages.networks.backbones import STRIDES
from ensdistill.stages.networks.features import FeatureStore

_ORDER: Final = 0
_CROP: Final = 1
_LOOK: Final = 2
_MIX: Final = 3
_RARE: Final = 4
_FINE: Final = STRIDES[0]
_TORCH: Final = {"uint8": torch.uint8, "float16": torch.float16}


class Sample(NamedTuple):
    """One sample, or several stacked along a first axis.

    Attributes
    ----------
    image : (h, w, 3) uint8
        RGB.
    label : (h, w) uint8
        Train ids, 255 where ignored.
    weight : (h, w) uint8
        How much each pixel counts, in percent; (0, 0) where all count alike.
    look : (5,) float32
        See `augmentation.draw_look`.
    """

    image: Tensor
    label: Tensor
    weight: Tensor
    look: Tensor


class FeatureSample(NamedTuple):
    """What stands for a `Sample` where the backbone has seen the image before.

    Attributes
    ----------
    low, high : (h / 4, w / 4, C) and (h / 16, w / 16, C') float16
        Features.
    label, weight : (h / 4, w / 4) uint8
        As of a `Sample`, in the middle of each low-level feature; weight (0, 0) where none counts.
    """

    low: Tensor
    high: Tensor
    label: Tensor
    weight: Tensor


AnySample = Sample | FeatureSample


class _Cut(NamedTuple):
    """The first three of a sample, as arrays."""

    image: UInt8
    label: UInt8
    weight: UInt8


@dataclass(eq=False)
class Samples(Dataset[AnySample]):
    """Sample number k of a training, for any k.

    Epoch k // N is a permutation of the N images drawn from (seed, epoch); scale, crop, flip, look
    and what it is mixed with are drawn from (seed, k). So a resumed training, with any number of
    loader workers and of ranks, sees the same samples.

    Attributes
    ----------
    local : Learning
        The images, sorted by id.
    labels : LabelMaps
        A label map for each.
    recipe : mapping
        `crop`, `input_size`, `scale`, `flip`, `colour`, `blur`, `class_mix`,
        `rare_class_temperature`, `seed`, `steps` and `batch_size` of a `Training`.
    pad : (int, int, int)
        RGB where a crop reaches beyond its image; labels are 255 there.
    pixels : Pixels
        What reads the images.
    weights : LabelMaps, optional
        Of each image, how much its pixels count, in percent.
    """

    local: Learning
    labels: LabelMaps
    recipe: Mapping[str, Any]
    pad: tuple[int, int, int]
    pixels: Pixels
    weights: LabelMaps | None = None

    def __len__(self) -> int:
        length: int = self.recipe["steps"] * self.recipe["batch_size"]
        return length

    def __getitem__(self, k: int) -> AnySample:
        recipe = self.recipe
        seed = recipe["seed"]
        cut = self._cut(*self._choose(k), _stream(seed, _CROP, k))
        if (
            recipe["class_mix"]
            and (mixing := _stream(seed, _MIX, k)).random() < recipe["class_mix"]
        ):
            other = self._cut(int(mixing.integers(len(self.local.pictures))), None, mixing)
            pasted = mix_classes(mixing, other.label, cut.label, IGNORE_INDEX)
            cut = _Cut(*(plane.copy() for plane in cut))  # it may be a part of what was read
            for taker, giver in zip(cut, other, strict=True):
                if giver.size:
                    taker[pasted] = giver[pasted]
        look = draw_look(_stream(seed, _LOOK, k), recipe["colour"], recipe["blur"])
        return Sample(*(torch.from_numpy(array) for array in (*cut, look)))

    def _choose(self, k: int) -> tuple[int, int | None]:
        """Return the image of a sample, and the class that its crop is to hold."""
        seed, count = self.recipe["seed"], len(self.local.pictures)
        if self.recipe["rare_class_temperature"] is None:
            epoch, position = divmod(k, count)
            return int(_order(seed, epoch, count)[position]), None
        random = _stream(seed, _RARE, k)
        chances, holders = self._rare
        wanted = int(random.choice(len(chances), p=chances))
        return int(random.choice(holders[wanted])), wanted

    @cached_property
    def _rare(self) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.intp]]]:
        """Chance of each class, and the images that hold it (DAFormer, Hoyer et al., eq. 4)."""
        records = (self.labels.records[p.id] for p in self.local.pictures)
        counts = np.array([record["labels"] for record in records], np.int64)
        total = counts.sum(axis=0)
        if not total.any():
            raise DataError(
                "rare_class_temperature: no pixel of the training images is labelled; look at the "
                "labels, or leave it out"
            )
        share = total / max(1, total.sum())
        # the largest exponent is taken out, or a low temperature would overflow
        chances = np.where(total > 0, (1 - share) / self.recipe["rare_class_temperature"], -np.inf)
        chances = np.exp(chances - chances.max())
        return chances / chances.sum(), [np.flatnonzero(column) for column in counts.T]

    def _cut(self, index: int, wanted: int | None, random: np.random.Generator) -> _Cut:
        """Scale an image by a random factor, cut a random window, and flip it by chance."""
        picture = self.local.pictures[index]
        whole = self.pixels.read(picture.image, self.local.digests[str(picture.image)])
        labels = self.labels.read(picture.id)
        (crop_h, crop_w), (low, high) = self.recipe["crop"], self.recipe["scale"]
        height, width = self.recipe["input_size"] or labels.shape
        factor = float(random.uniform(low, high))
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
        h, w = min(crop_h, height), min(crop_w, width)
        down, across = labels.shape[0] / height, labels.shape[1] / width
        tops, lefts = (0, height - h), (0, width - w)
        if wanted is not None:
            # a pixel of the class, and then any window that holds it
            y, x = divmod(int(random.choice(np.flatnonzero(labels == wanted))), labels.shape[1])
            tops = _around(int((y + 0.5) / down), h, height)
            lefts = _around(int((x + 0.5) / across), w, width)
        top = int(random.integers(tops[0], tops[1] + 1))
        left = int(random.integers(lefts[0], lefts[1] + 1))
        box = (left * across, top * down, (left + w) * across, (top + h) * down)
        flip = self.recipe["flip"] and random.random() < 0.5

        def cut(plane: UInt8, method: Image.Resampling, pad: Any) -> UInt8:
            found = _resized(plane, box, (h, w), method)
            padded = (h, w) != (crop_h, crop_w)
            # else a part of what was read will do: it is copied when samples are collated
            if padded or not found.flags.writeable:
                out = np.empty((crop_h, crop_w, *plane.shape[2:]), np.uint8)
                if padded:
                    out[:] = pad
                out[:h, :w] = found
                found = out
            # six times as fast as NumPy's
            return torch.from_numpy(found).flip(1).numpy() if flip else found

        weight = np.empty((0, 0), np.uint8)
        if self.weights is not None:
            weight = cut(self.weights.read(picture.id), Image.Resampling.NEAREST, 0)
        return _Cut(
            cut(whole, Image.Resampling.BILINEAR, self.pad),
            cut(labels, Image.Resampling.NEAREST, IGNORE_INDEX),
            weight,
        )


@dataclass(eq=False)
class FeatureSamples(Samples):
    """Samples of a training that sees stored features, cut on the grid of the high-level ones.

    A window begins at a multiple of 16 pixels of the image, which is mirrored by chance before; it
    may so reach beyond it. Features are 0 there. Labels are those in the middle of each low-level
    feature, where logits are: resizing these to all pixels would take most of a step.

    Attributes
    ----------
    features : FeatureStore
        What reads them.
    """

    features: FeatureStore = field(kw_only=True)

    @cached_property
    def crop(self) -> tuple[int, int]:
        """The windows' height and width in pixels."""
        if (given := self.recipe["crop"]) is not None:
            return given[0], given[1]
        sizes = [self.labels.size(picture.id) for picture in self.local.pictures]
        return largest_window([self.recipe["input_size"]] if self.recipe["input_size"] else sizes)

    def __getitem__(self, k: int) -> FeatureSample:
        recipe = self.recipe
        index, wanted = self._choose(k)
        random = _stream(recipe["seed"], _CROP, k)
        picture = self.local.pictures[index]
        labels = self.labels.read(picture.id)
        size, crop = recipe["input_size"] or labels.shape, self.crop
        flip = recipe["flip"] and random.random() < 0.5
        at = None
        if wanted is not None:
            # a pixel of the class, and then any window that holds it
            y, x = divmod(int(random.choice(np.flatnonzero(labels == wanted))), labels.shape[1])
            down, across = labels.shape[0] / size[0], labels.shape[1] / size[1]
            y, x = int((y + 0.5) / down), int((x + 0.5) / across)
            at = (y, size[1] - 1 - x if flip else x)
        top, left = (
            _on_grid(random, side, part, None if at is None else at[axis])
            for axis, (side, part) in enumerate(zip(size, crop, strict=True))
        )
        stored = self.features.read(self.local.digests[str(picture.image)])
        seen = stored.mirrored if flip else stored.plain
        low, high = (
            _window(plane, top // stride, left // stride, [side // stride for side in crop], 0)
            for plane, stride in zip(seen, STRIDES, strict=True)
        )

        def cut(plane: UInt8, pad: int) -> Tensor:
            resized = _resized(plane, (0, 0, *plane.shape[::-1]), size, Image.Resampling.NEAREST)
            turned = resized[:, ::-1] if flip else resized
            middle = turned[_FINE // 2 :: _FINE, _FINE // 2 :: _FINE]
            fine = [side // _FINE for side in crop]
            return _window(middle, top // _FINE, left // _FINE, fine, pad)

        weight = torch.empty((0, 0), dtype=torch.uint8)
        if self.weights is not None:
            weight = cut(self.weights.read(picture.id), 0)
        return FeatureSample(low, high, cut(labels, IGNORE_INDEX), weight)


def largest_window(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return height and width on the grid of features that images of all these sizes fill.

    One cell of the grid where none is filled.
    """
    grid = STRIDES[-1]
    height, width = (max(grid, min(sides) // grid * grid) for sides in zip(*sizes, strict=True))
    return height, width


class Batches(Sampler[list[int]]):
    """The sample numbers of a rank, from step `start` on; `size` is that of all ranks together."""

    def __init__(self, start: int, steps: int, size: int, rank: int = 0, ranks: int = 1):
        self._steps = range(start, steps)
        self._size = size
        self._share = size // ranks
        self._first = rank * self._share

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            first = step * self._size + self._first
            yield list(range(first, first + self._share))

    def __len__(self) -> int:
        return len(self._steps)


def _around(at: int, size: int, length: int) -> tuple[int, int]:
    """Return the first and last start of a window of `size` in 0..length that holds `at`."""
    return max(0, at - size + 1), min(at, length - size)


def _resized(
    array: UInt8,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    method: Image.Resampling,
) -> UInt8:
    """Return what a box of an array (left, top, right, bottom) looks like in `size` pixels."""
    left, top = box[:2]
    right, bottom = min(box[2], array.shape[1]), min(box[3], array.shape[0])  # but for rounding
    height, width = size
    if (right - left, bottom - top) == (width, height):
        return array[round(top) : round(bottom), round(left) : round(right)]
    # only what the filter reaches: Pillow would copy the whole photograph
    margin = 2 + math.ceil(max((right - left) / width, (bottom - top) / height))
    x, y = max(0, math.floor(left) - margin), max(0, math.floor(top) - margin)
    part = array[y : math.ceil(bottom) + margin, x : math.ceil(right) + margin]
    moved = (left - x, top - y, right - x, bottom - y)
    found = Image.fromarray(np.ascontiguousarray(part)).resize((width, height), method, moved)
    return np.asarray(found)


def _on_grid(random: np.random.Generator, side: int, part: int, at: int | None) -> int:
    """Return where a window of `part` pixels begins, which holds the pixel `at` if one is given.

    At the end of a side it may reach beyond it, by less than a cell of the grid.
    """
    grid = STRIDES[-1]
    first, last = 0, -(-max(0, side - part) // grid)
    if at is not None:
        first, last = -(-max(0, at - part + 1) // grid), min(last, at // grid)
    return grid * int(random.integers(first, last + 1))


def _window(plane: npt.NDArray[Any], top: int, left: int, size: Sequence[int], pad: int) -> Tensor:
    """Return a window of (H, W, ...), with `pad` where it reaches beyond."""
    found = plane[top : top + size[0], left : left + size[1]]
    out = torch.full((*size, *plane.shape[2:]), pad, dtype=_TORCH[plane.dtype.name])
    out.numpy()[: found.shape[0], : found.shape[1]] = found
    return out


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return _stream(seed, _ORDER, epoch).permutation(count)


def _stream(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Return a random stream of its own for each purpose and number."""
    # as uint64: NumPy would turn a list of large integers into floats, and streams would collide
    key = np.array([seed, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, purpose]))
