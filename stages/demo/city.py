"""A small generated city in Cityscapes layout, for the demo and for tests."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from ensdistill.data.classes import IGNORE_INDEX
from ensdistill.stages.demo.scene import draw_scene, require_size
from ensdistill.stages.demo.styles import LABEL_IDS, Style

_EGO_VEHICLE: Final = 1  # label id of the hood
_FRAME: Final = 19  # Cityscapes labels the 20th frame of each 30-frame snippet


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
    require_size(size)
    table = np.zeros(256, dtype=np.uint8)
    table[: len(LABEL_IDS)] = LABEL_IDS
    table[IGNORE_INDEX] = _EGO_VEHICLE
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
