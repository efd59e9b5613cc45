"""Where exported images and label maps go."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

_SAME: Final = {".jpeg": ".jpg", ".tiff": ".tif"}  # suffixes of one format


class Layout(NamedTuple):
    """Folders below the exported one, and what follows an image's id in the names of files.

    Each city has a folder of its own (`by_city`), or others are below these (`nested`), as images
    are called alike.
    """

    images: str
    labels: str
    image_suffix: str
    label_suffix: str
    by_city: bool
    nested: bool = False

    def place(self, image_id: str) -> str:
        """Return the folder and the beginning of the file names of an image."""
        return f"{image_id.split('_')[0]}/{image_id}" if self.by_city else image_id

    def takes(self, image: Path) -> bool:
        """Whether an image is of the format that its name here would say."""
        same = kind_of(image.suffix) == kind_of(self.image_suffix)
        return same or image.name.endswith(self.image_suffix)


def kind_of(suffix: str) -> str:
    """Return one suffix for all of a format."""
    return _SAME.get(suffix.lower(), suffix.lower())
