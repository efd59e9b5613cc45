"""Reading photographs and label files with Pillow, each only as what it may be.

Pillow opens more than 40 formats, some of them by other programs, and makes of every pixel what
looks right. A photograph may look right; an id has to be the number that was written.
"""

from __future__ import annotations

import hashlib
import io
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from ensdistill.data import png
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.opening import NotRegularError, open_regular, read_regular, what_instead

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]

STEPS: Final = 250  # of a confidence: 0 to 1 stay below what stands for an unwritten map
# Whoever opens an image says how large it may be. Pillow's own limit would be that of every program
# in this process, and can neither be told from damage nor be raised for one experiment.
Image.MAX_IMAGE_PIXELS = None
_uncompiled = 0  # pixels that this process read without numba

_LOADING: Final = 1 << 26  # pixels that are read without numba in the time that loading it takes
_UNKNOWN = 254  # never a legal label
_ORIENTATION = 0x0112  # EXIF
_BITS_PER_SAMPLE, _PLANES = 258, 284  # of TIFF
_PHOTO_MODES = ("RGB", "RGBA", "L", "P", "CMYK", "YCbCr")
_ID_MODES = ("L", "P", "1", "I", "I;16", "I;16B")
_COLOUR_MODES = ("RGB", "RGBA", "LA")  # ids as well, where all channels are equal
# of 16 bits a channel Pillow keeps the upper 8 and says nothing
_DEEP = ("RGB;16", "RGBA;16", "RGBa;16", "RGBX;16", "LA;16", "CMYK;16")
# and of values that do not use all bits it makes the largest white
_STRETCHED = ("L;2", "L;4", "L;0..", "I;0..", "RGB;0..", "BGR;15", "BGR;16")
_LOSSLESS = (  # compressions of TIFF
    "raw",
    "tiff_raw_16",
    "packbits",
    "tiff_lzw",
    "tiff_deflate",
    "tiff_adobe_deflate",
    "lzma",
    "zstd",
    "tiff_ccitt",
    "group3",
    "group4",
)


class _Role(NamedTuple):
    """What a file is read as: the formats that it may have, and what is said of another."""

    formats: tuple[str, ...]
    expected: str


_PHOTOGRAPH: Final = _Role(
    ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"),
    "expected JPEG, PNG, WebP, BMP, TIFF or PPM; convert it",
)
_VALUES: Final = _Role(
    ("PNG", "BMP", "TIFF", "PPM"),
    "expected PNG, BMP, TIFF or PPM, and no lossy compression, which changes the values of "
    "pixels. Save them as PNG again from where they came from: converting this file does not bring "
    "them back",
)


@contextmanager
def _opened(
    path: Path | str, role: _Role, content: bytes | None = None, most: int | None = None
) -> Iterator[ImageFile.ImageFile]:
    """Open a file, or what it holds, as a format of its role; only its header is decoded.

    It has `most` pixels at most. What Pillow trips over, in the block as well, is raised as a
    refusal.
    """
    with _refused(path), open_regular(path) if content is None else io.BytesIO(content) as file:
        try:
            image = Image.open(file, formats=role.formats)
        except UnidentifiedImageError as error:  # whose text names a buffer
            file.seek(0)
            raise _unidentified(path, file.read(16), role) from error
        with image:
            if most is not None:
                _require_within(path, image, most)
            _require_plain(path, image, role)
            yield image


@contextmanager
def _refused(path: Path | str) -> Iterator[None]:
    """Raise what reading or decoding a file trips over as a refusal."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except NotRegularError as error:
        raise DataError(f"{path}: cannot be read as an image: it is {error.strerror}") from error
    except Exception as error:  # a spoilt file makes it raise almost anything
        raise DataError(
            f"{path}: cannot be read as an image ({error}); replace the file"
        ) from error


def _unidentified(path: Path | str, start: bytes, role: _Role) -> DataError:
    """Return the refusal of a file that is none of its role's formats, by its first bytes."""
    Image.init()  # all formats there are; their tests look at these bytes alone
    tests = {name: Image.OPEN[name][1] for name in Image.ID}
    found = next((n for n, fits in tests.items() if len(start) == 16 and fits and fits(start)), "")
    if found and found not in role.formats:
        return DataError(f"{path}: its content is {found}; {role.expected}")
    if (instead := what_instead(path)) is not None:
        return DataError(f"{path}: cannot be read as an image: it {instead}")
    why = f"a damaged {found}, or an unknown kind of it" if found else "an unknown kind of file"
    return DataError(f"{path}: cannot be read as an image ({why}); replace the file")


def _require_within(path: Path | str, image: Image.Image, most: int) -> None:
    pixels = image.width * image.height
    if pixels > most:
        raise DataError(
            f"{path}: {image.height}x{image.width} pixels (height x width) are more than the limit "
            f"of {most}; if it is meant to be so large, and there is memory for it, raise the "
            f"limit: `runtime: {{max_pixels: {pixels}}}`"
        )


def _require_plain(path: Path | str, image: ImageFile.ImageFile, role: _Role) -> None:
    """Refuse a file of several images, and values that were compressed with losses.

    The second picture in a phone's JPEG (MPO) is another view for other programs.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise DataError(
            f"{path}: holds more than one image; save the one that is meant as a file of its own"
        )
    compression = image.info.get("compression")
    if role is _VALUES and image.format == "TIFF" and compression not in _LOSSLESS:
        raise DataError(f"{path}: its content is TIFF compressed as {compression}; {role.expected}")


def _content(path: Path | str, sha256: str | None) -> bytes:
    """Return the bytes of a file, which must be what was planned for."""
    with _refused(path):
        content = read_regular(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{path}: changed since this command looked at it; run it again (with --rehash if "
            "the file's date was kept)"
        )
    return content


def _open(
    path: Path | str,
    role: _Role,
    content: bytes,
    *,
    fits: Callable[[tuple[int, int]], object] | None = None,
) -> tuple[Image.Image, str]:
    """Return a decoded image and how its file holds the pixels (see `_layout`).

    `fits` is asked about its height and width before it is decoded, and raises if they are wrong.
    """
    with _opened(path, role, content) as image:
        if fits is not None:
            fits((image.height, image.width))
        if _is_misread(image, content):
            raise DataError(
                f"{path}: {image.format} of samples that would not be read right; save it as PNG"
            )
        layout = _layout(image)
        if image.format != "TIFF":  # which load() turns, and takes the tag away
            image.load()  # Pillow is lazy: a truncated file shows itself only here
        # some programs turn such an image and some do not: labels would lie across it
        orientation = _orientation(image)
        if orientation in range(2, 9):  # 0, as some cameras write it, turns nothing
            raise DataError(
                f"{path}: EXIF orientation {orientation}; turn the pixels themselves and remove "
                f"the tag, as `mogrify -auto-orient {shlex.quote(str(path))}` of ImageMagick does, "
                "or `exiftran -ai` with a JPEG"
            )
        image.load()
        return image, layout


def _layout(image: ImageFile.ImageFile) -> str:
    """Return how a file that was not decoded yet holds its pixels.

    Its mode, or more: ``L;4`` are grey values of 4 bits, ``RGB;16B`` are channels of 16, and in
    ``L;0..99`` 99 is white.
    """
    if not image.tile:  # of WebP
        return image.mode
    codec, _, _, args = image.tile[0]
    raw: Any = args[0] if isinstance(args, tuple) else args
    if codec in ("ppm", "ppm_plain") and isinstance(args, tuple):
        white = 65535 if image.mode == "I" else 255
        return image.mode if args[-1] == white else f"{image.mode};0..{args[-1]}"
    return raw if isinstance(raw, str) and ";" in raw else image.mode


def _is_misread(image: ImageFile.ImageFile, content: bytes) -> bool:
    """Whether Pillow takes for bytes what are smaller or larger samples.

    It does of a BMP whose palette is grey, and of a TIFF that holds channels one after the other.
    """
    if not image.tile or image.tile[0][0] != "raw":
        return False
    if image.format == "BMP" and image.mode in ("1", "L"):
        at = 24 if content[14] == 12 else 28  # OS/2's header is shorter
        return int.from_bytes(content[at : at + 2], "little") != (1 if image.mode == "1" else 8)
    tags = getattr(image, "tag_v2", {})
    return tags.get(_PLANES) == 2 and 8 not in tags.get(_BITS_PER_SAMPLE, ())


def read_image(path: Path | str, sha256: str | None = None) -> UInt8:
    """Return a photograph as (H, W, 3) uint8 RGB.

    With `sha256`, its bytes must have that: the plan being carried out was made for these.

    Raises
    ------
    DataError
        If the file is no whole 8-bit image, or another one than was planned for.
    """
    image = _photograph(path, sha256)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _photograph(path: Path | str, sha256: str | None) -> Image.Image:
    image, layout = _open(path, _PHOTOGRAPH, _content(path, sha256))
    if image.mode not in _PHOTO_MODES or layout.startswith(_DEEP):
        raise DataError(
            f"{path}: pixel mode {layout}; expected an 8-bit image in grey, RGB or RGBA"
        )
    return image


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # spoilt EXIF raises whatever it trips over, and turns nothing
        return None


def image_size(path: Path, most: int | None = None) -> tuple[int, int]:
    """Return height and width in pixels of a photograph, from its file's header alone.

    Raises
    ------
    DataError
        If it is no image, or one of more than `most` pixels.
    """
    with _opened(path, _PHOTOGRAPH, most=most) as image:
        return image.height, image.width


def values_size(path: Path, most: int | None = None) -> tuple[int, int]:
    """Return height and width in pixels of a label file, as `image_size`."""
    with _opened(path, _VALUES, most=most) as image:
        return image.height, image.width


def inspect_image(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Decode a photograph once and return its ``height`` and ``width`` in pixels."""
    image = _photograph(path, sha256)
    return {"height": image.height, "width": image.width}


def require_same(path: Path | str, own: tuple[int, ...], size: tuple[int, int]) -> None:
    """Refuse a label file that has not its image's height and width."""
    if own != size:
        raise DataError(
            f"{path}: {own[0]}x{own[1]} pixels (height x width), its image has "
            f"{size[0]}x{size[1]}; resize the files of its folder to the images, by nearest "
            "neighbour"
        )


def read_values(
    path: Path | str,
    sha256: str | None = None,
    *,
    palette: bool,
    size: tuple[int, int] | None = None,
) -> Int64 | UInt8:
    """Return the raw values of a label file, (H, W).

    Parameters
    ----------
    path : Path or str
        A PNG, BMP, TIFF or PPM of one channel, whose pixels (of a palette image: indices) are
        ids, or of several that are equal; or of colours where `palette` is set. Alpha is opaque.
    sha256 : str, optional
        What its bytes must be.
    palette : bool
        Colours stand for classes; values are packed as ``red << 16 | green << 8 | blue``.
    size : (int, int), optional
        Height and width that it must have; another one is refused before it is decoded.

    Returns
    -------
    values
        (H, W) uint8 where all of the file are, else int64.

    Raises
    ------
    DataError
        If the file is unreadable, another one than was planned for, of a format or a compression
        that changes values, turned by a tag, or holds colours where ids are expected.
    """
    fits = None if size is None else lambda own: require_same(path, own, size)
    content = _content(path, sha256)
    if not palette and (quick := _quick_ids(content, fits)) is not None:
        return quick
    image, layout = _open(path, _VALUES, content, fits=fits)
    if image.mode not in (*_ID_MODES, *_COLOUR_MODES):
        raise DataError(
            f"{path}: pixel mode {layout}; expected whole numbers in one channel, or RGB; save the "
            "ids as a grey PNG of 8 or 16 bits"
        )
    values = _colours(path, image, layout) if palette else _ids(path, image, layout)
    if image.mode in ("RGBA", "LA"):
        _require_opaque(path, image)
    return values


def _quick_ids(content: bytes, fits: Callable[[tuple[int, int]], object] | None) -> UInt8 | None:
    """Return the ids of a usual PNG, (H, W), without Pillow; None if it has to read the file."""
    found = png.unpack(content)
    if found is None or not _is_compiled(found.size):
        return None
    if fits is not None:
        fits(found.size)
    return found.pixels()


def _is_compiled(size: tuple[int, int]) -> bool:
    """Whether compiled loops are there, or so much was read without that loading them is worth it.

    Then they cost at most what was spent for want of them.
    """
    global _uncompiled  # noqa: PLW0603  (what it costs is a process's)
    if "numba" in sys.modules or _uncompiled >= _LOADING:
        return True
    _uncompiled += size[0] * size[1]
    return False


def _require_opaque(path: Path | str, image: Image.Image) -> None:
    alpha = np.asarray(image.getchannel("A"))
    if (at := _first(alpha != 255)) is not None:
        raise DataError(
            f"{path}: pixel mode {image.mode} with alpha {alpha[at]} of 255 at row {at[0]}, column "
            f"{at[1]}: a pixel has a label or none; save it without alpha, and what has none with "
            "the value that stands for it"
        )


def _colours(path: Path | str, image: Image.Image, layout: str) -> Int64:
    """Return colours, (H, W) packed."""
    if image.mode.startswith("I") or layout.startswith(_DEEP):
        raise DataError(
            f"{path}: pixel mode {layout} holds no 8-bit colours "
            "(declare `ids: train_ids` or `ids: label_ids` if pixels are ids)"
        )
    rgb = np.asarray(image.convert("RGB")).astype(np.int64)
    return np.asarray(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])


def _ids(path: Path | str, image: Image.Image, layout: str) -> Int64 | UInt8:
    """Return ids, (H, W), of one channel or of equal ones."""
    if layout.startswith(_DEEP):
        raise DataError(
            f"{path}: pixel mode {layout}, of whose channels only the upper 8 bits can be read; "
            "save the ids in one channel, as a grey PNG of 8 or 16 bits"
        )
    if layout.startswith(_STRETCHED):
        raise DataError(
            f"{path}: pixel mode {layout}, whose values Pillow stretches until the largest is "
            "white; save the ids as a grey PNG of 8 or 16 bits"
        )
    pixels = np.asarray(image)
    values = pixels[..., 0] if image.mode in _COLOUR_MODES else pixels
    if image.mode in ("RGB", "RGBA"):
        at = _first((values != pixels[..., 1]) | (values != pixels[..., 2]))
        if at is not None:
            raise DataError(
                f"{path}: pixel mode {image.mode} holds colours, the first {pixels[at].tolist()} "
                f"at row {at[0]}, column {at[1]}; expected one channel of ids, or equal ones "
                "(declare `ids: palette` if colours stand for classes)"
            )
    return values if values.dtype == np.uint8 else values.astype(np.int64)


def _first(found: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
    """Return row and column of the first pixel that was found, None if none was."""
    at = int(found.argmax())
    return divmod(at, found.shape[1]) if found.flat[at] else None


def inspect_values(path: Path, sha256: str | None = None, *, palette: bool) -> dict[str, Any]:
    """Return ``height``, ``width`` and ``values``: every raw value (as text) with its pixels."""
    raw = read_values(path, sha256, palette=palette)
    if raw.dtype == np.uint8:  # faster than sorting the pixels
        every = _histogram(np.asarray(raw, np.uint8))
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


def _histogram(raw: UInt8) -> Int64:
    """Return how often each value stands there, (256,)."""
    if "numba" not in sys.modules:
        return np.array(Image.fromarray(raw).histogram(), np.int64)

    from ensdistill.data.loops import as_words, count_values

    every = np.zeros(256, np.int64)
    count_values(*as_words(raw), every)
    return every


def read_confidence(path: Path | str, size: tuple[int, int], sha256: str | None = None) -> UInt8:
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
    steps = _read_steps(path, sha256, lambda own: times_larger(path, own, size))
    factor = times_larger(path, steps.shape, size)
    return steps.repeat(factor, axis=0).repeat(factor, axis=1)


def inspect_confidence(path: Path | str, sha256: str | None = None) -> dict[str, Any]:
    """Decode a PNG of confidences once and return its ``height`` and ``width`` in pixels."""
    height, width = _read_steps(path, sha256).shape
    return {"height": height, "width": width}


def times_larger(path: Path | str, own: tuple[int, ...], size: tuple[int, int]) -> int:
    """Return how many times larger an image is than the PNG of its confidences.

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


def _read_steps(
    path: Path | str,
    sha256: str | None,
    fits: Callable[[tuple[int, int]], object] | None = None,
) -> UInt8:
    image, layout = _open(path, _VALUES, _content(path, sha256), fits=fits)
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
        self._table = np.array([legal.get(value, _UNKNOWN) for value in range(256)], np.uint8)

    def read(
        self, path: Path | str, sha256: str | None = None, size: tuple[int, int] | None = None
    ) -> UInt8:
        """Return a label file as (H, W) uint8 train ids, 255 where ignored.

        Raises
        ------
        DataError
            If it cannot be read, is not what `sha256` says, has not the `size` of its image or
            holds a value outside the table.
        """
        return self.count(path, sha256, size)[0]

    def count(
        self, path: Path | str, sha256: str | None = None, size: tuple[int, int] | None = None
    ) -> tuple[UInt8, Int64]:
        """Return what `read` does, and (256,) how often each train id stands there."""
        from ensdistill.data.loops import as_words, count_values, look_up

        raw = read_values(path, sha256, palette=self._palette, size=size)
        counts = np.zeros(256, np.int64)
        if raw.dtype == np.uint8:
            ids = np.empty(raw.shape, np.uint8)
            look_up(*as_words(np.asarray(raw, np.uint8)), self._table, ids.reshape(-1), counts)
        else:
            at = np.searchsorted(self._keys, raw).clip(max=len(self._keys) - 1)
            ids = np.where(self._keys[at] == raw, self._ids[at], np.uint8(_UNKNOWN))
            count_values(*as_words(ids), counts)
        if counts[_UNKNOWN]:
            value = int(raw[ids == _UNKNOWN][0])
            shown = f"colour #{value:06x}" if self._palette else f"value {value}"
            raise DataError(f"{path}: {shown} is outside the declared classes")
        return ids, counts
