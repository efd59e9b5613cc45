"""Reading images and label files with Pillow."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ensdistill.pipeline.errors import DataError

UInt8 = npt.NDArray[np.uint8]

STEPS: Final = 250  # of a certainty: 0 to 1 stay below what stands for an unwritten map
_UNKNOWN = 254  # never a legal label
_ORIENTATION = 0x0112  # EXIF
_COLOUR_MODES = ("RGB", "RGBA")
_DEEP = ("RGB;16", "RGBA;16", "RGBX;16")  # Pillow keeps the upper 8 bits and says nothing
_ID_MODES = ("L", "P", "1", "I", "I;16")


def _open(path: Path | str, sha256: str | None) -> tuple[Image.Image, str]:
    """Return a decoded image and how its file holds the pixels: its mode, or more, as ``L;4``."""
    try:
        content = Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(
                f"{path}: changed since this command looked at it; run it again (with --rehash if "
                "the file's date was kept)"
            )
        with Image.open(io.BytesIO(content)) as image:
            layout: Any = image.tile[0].args if image.tile else ""
            if isinstance(layout, tuple):
                layout = layout[0]
            image.load()  # Pillow is lazy: a truncated file shows itself only here
            return image, layout if isinstance(layout, str) and ";" in layout else image.mode
    except DataError:
        raise
    except UnidentifiedImageError as error:  # whose text names a buffer
        raise DataError(
            f"{path}: cannot be read as an image (cannot identify the kind of file); replace the "
            "file"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); replace the file"
        ) from error


def read_image(path: Path | str, sha256: str | None = None) -> UInt8:
    """Return a photograph as (H, W, 3) uint8 RGB.

    Parameters
    ----------
    path : Path or str
        The file.
    sha256 : str, optional
        What its bytes must be: the plan that is being carried out was made for these.

    Raises
    ------
    DataError
        If the file is no whole 8-bit image, or another one than was planned for.
    """
    image, layout = _open(path, sha256)
    if image.mode not in (*_COLOUR_MODES, "L", "P", "CMYK", "YCbCr") or layout.startswith(_DEEP):
        raise DataError(
            f"{path}: pixel mode {layout}; expected an 8-bit image in grey, RGB or RGBA"
        )
    # some programs turn such an image and some do not: predictions would lie across it
    orientation = _orientation(image)
    if orientation in range(2, 9):  # 0, as some cameras write it, turns nothing
        raise DataError(
            f"{path}: EXIF orientation {orientation}; turn the pixels themselves and remove the tag"
        )
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # spoilt EXIF raises whatever it trips over, and turns nothing
        return None


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width in pixels, from the file's header alone."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def inspect_image(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Decode a photograph once and return its ``height`` and ``width`` in pixels."""
    height, width, _ = read_image(path, sha256).shape
    return {"height": height, "width": width}


def read_values(
    path: Path | str, sha256: str | None = None, *, palette: bool
) -> npt.NDArray[np.int64] | UInt8:
    """Return the raw values of a label file, (H, W).

    Parameters
    ----------
    path : Path or str
        A PNG of mode L, P, I or I;16, whose pixels (of P: indices) are ids; or of any colour
        mode where `palette` is set.
    sha256 : str, optional
        What its bytes must be.
    palette : bool
        Colours stand for classes; values are packed as ``red << 16 | green << 8 | blue``.

    Raises
    ------
    DataError
        If the file is unreadable, another one than was planned for, or holds colours where ids
        are expected.
    """
    image, layout = _open(path, sha256)
    if palette:
        if image.mode.startswith(("I", "F")) or layout.startswith(_DEEP):
            raise DataError(
                f"{path}: pixel mode {layout} holds no 8-bit colours "
                "(declare `ids: train_ids` or `ids: label_ids` if pixels are ids)"
            )
        rgb = np.asarray(image.convert("RGB")).astype(np.int64)
        return np.asarray(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])
    if image.mode not in _ID_MODES:
        raise DataError(
            f"{path}: pixel mode {image.mode} holds colours; expected one channel of ids "
            "(declare `ids: palette` if colours stand for classes)"
        )
    if layout in ("L;2", "L;4"):
        raise DataError(
            f"{path}: grey of {layout[2]} bits, which Pillow stretches to 0..255; "
            "save the ids with 8 bits"
        )
    values = np.asarray(image)
    return values if values.dtype == np.uint8 else values.astype(np.int64)


def inspect_values(path: Path, sha256: str | None = None, *, palette: bool) -> dict[str, Any]:
    """Return ``height``, ``width`` and ``values``: every raw value (as text) with its pixels."""
    raw = read_values(path, sha256, palette=palette)
    if raw.dtype == np.uint8:  # seven times as fast as sorting the pixels
        every = np.bincount(raw.ravel(), minlength=256)
        values = np.flatnonzero(every)
        counts = every[values]
    else:
        values, counts = np.unique(raw, return_counts=True)
    height, width = raw.shape
    return {
        "height": height,
        "width": width,
        "values": {str(v): int(n) for v, n in zip(values.tolist(), counts, strict=True)},
    }


def read_certainty(path: Path | str, size: tuple[int, int], sha256: str | None = None) -> UInt8:
    """Return how sure somebody is at every pixel, (H, W) uint8 in steps of 1/250.

    Parameters
    ----------
    path : Path or str
        A grey PNG, of 8 or 16 bits; the largest value of that depth stands for 1. Of the image's
        height and width, or of a whole fraction of both: then each value is that of a square.
    size : (int, int)
        Height and width of the image.
    sha256 : str, optional
        What its bytes must be.

    Raises
    ------
    DataError
        If the file is unreadable, another one than was planned for, or not such a PNG.
    """
    steps = _read_steps(path, sha256)
    factor = times_larger(path, steps.shape, size)
    return steps.repeat(factor, axis=0).repeat(factor, axis=1)


def inspect_certainty(path: Path | str, sha256: str | None = None) -> dict[str, Any]:
    """Decode a PNG of certainties once and return its ``height`` and ``width`` in pixels."""
    height, width = _read_steps(path, sha256).shape
    return {"height": height, "width": width}


def times_larger(path: Path | str, own: tuple[int, ...], size: tuple[int, int]) -> int:
    """Return how many times larger an image is than the PNG of its certainties.

    Raises
    ------
    DataError
        If it is not a whole number of times, the same in height and width.
    """
    factor = size[0] // own[0]
    if (own[0] * factor, own[1] * factor) != size:
        raise DataError(
            f"{path}: {own[0]}x{own[1]} pixels (height x width), its image has "
            f"{size[0]}x{size[1]}; expected the same, or a whole fraction of both"
        )
    return factor


def _read_steps(path: Path | str, sha256: str | None) -> UInt8:
    image, layout = _open(path, sha256)
    most = {"L": 255, "I;16": 65535, "I;16B": 65535}.get(layout)
    if most is None:
        raise DataError(f"{path}: pixel mode {layout}; expected a grey PNG of 8 or 16 bits")
    return np.asarray(np.round(np.asarray(image) * (STEPS / most)), np.uint8)


class Decoder:
    """Turns raw values into train ids by table look-up.

    Parameters
    ----------
    legal : mapping
        Raw value to train id or 255, for every value that may occur.
    palette : bool
        Whether raw values are packed colours.
    """

    def __init__(self, legal: Mapping[int, int], *, palette: bool):
        self._palette = palette
        self._keys = np.array(sorted(legal), dtype=np.int64)
        self._ids = np.array([legal[k] for k in sorted(legal)], dtype=np.uint8)
        # the fastest look-up there is, in Python or NumPy
        self._table = bytes(legal.get(value, _UNKNOWN) for value in range(256))

    def read(self, path: Path | str, sha256: str | None = None) -> UInt8:
        """Return a label file as (H, W) uint8 train ids, 255 where ignored.

        Raises
        ------
        DataError
            If it cannot be read, is not what `sha256` says or holds a value outside the table.
        """
        raw = read_values(path, sha256, palette=self._palette)
        if raw.dtype == np.uint8:
            ids = np.frombuffer(raw.tobytes().translate(self._table), np.uint8).reshape(raw.shape)
            known = ids != _UNKNOWN
        else:
            at = np.searchsorted(self._keys, raw).clip(max=len(self._keys) - 1)
            known, ids = self._keys[at] == raw, self._ids[at]
        if not known.all():
            value = int(raw[~known][0])
            shown = f"colour #{value:06x}" if self._palette else f"value {value}"
            raise DataError(f"{path}: {shown} is outside the declared classes")
        return np.asarray(ids)
