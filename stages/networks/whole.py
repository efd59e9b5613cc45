"""Whether files of weights are what they are called, and all there, before a library opens them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from ensdistill.pipeline.config import Foreign, described
from ensdistill.pipeline.errors import DataError, shortened
from ensdistill.pipeline.opening import open_regular, parse_json, what_instead

SAVED: Final = (".safetensors", ".pth", ".pt", ".pkl", ".ckpt", ".bin")  # as weights are called
_LONGEST: Final = 100_000_000  # bytes of a header, by safetensors' own rule
_ZIP: Final = b"PK\x03\x04"  # of whatever torch saves, and of numpy.savez
_PICKLE: Final = b"\x80"  # of torch.save in older versions

Count = Annotated[int, Field(ge=0)]


class _Tensor(Foreign):
    shape: list[Count]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


class _Header(Foreign):
    """The header of a safetensors file."""

    tensors: dict[str, _Tensor]


def require_whole(file: Path) -> None:
    """Refuse a file of weights, of whatever kind, that is none or was copied in part.

    Raises
    ------
    DataError
        If its first bytes are those of something else, its header those of a longer file, or its
        end is missing.
    """
    if file.suffix == ".safetensors":
        tensor_shapes(file)
        return
    start, size = _start_of(file)
    if start.startswith(_ZIP):
        try:
            zipfile.ZipFile(file).close()  # the list of what is in it stands at its end
        except Exception as error:
            raise DataError(
                f"{file}: was copied in part, or written over: {size:,} bytes are there of an "
                f"archive without its end ({shortened(str(error))}); copy it again"
            ) from error
    elif not start.startswith(_PICKLE):
        _require_itself(file)


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Return the shapes of a safetensors file's tensors by name, from its header alone.

    DataError if it is no such file, or not all of it.
    """
    start, size = _start_of(file)
    _require_itself(file)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST):
        raise DataError(
            f"{file}: is no safetensors file, or the beginning of one: its header would have "
            f"{length:,} bytes, and the file has {size:,}; copy or save it again"
        )
    with open_regular(file) as opened:
        opened.seek(8)
        content = opened.read(length)
    try:
        header = parse_json(content)
    except ValueError as error:
        raise DataError(
            f"{file}: is no safetensors file: its header is no JSON ({shortened(str(error))}); "
            "copy or save it again"
        ) from error
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    found = described(file, {"tensors": header}, _Header).tensors
    whole = 8 + length + max((of.data_offsets[1] for of in found.values()), default=0)
    if whole != size:
        raise DataError(
            f"{file}: by its header it has {whole:,} bytes, and {size:,} are there: it was copied "
            "in part, or written over; copy it again"
        )
    _require_readable(file)
    return {name: of.shape for name, of in found.items()}


def _require_readable(file: Path) -> None:
    from safetensors import safe_open  # not for those who only plan

    try:
        with safe_open(file, framework="numpy"):
            pass  # types, shapes and places of all tensors have been compared
    except Exception as error:
        raise DataError(
            f"{file}: is no whole safetensors file ({shortened(str(error))}); copy or save it again"
        ) from error


def _require_itself(file: Path) -> None:
    if (instead := what_instead(file)) is not None:
        raise DataError(f"{file}: {instead}")


def _start_of(file: Path) -> tuple[bytes, int]:
    """Return the first eight bytes of a file, and how many it has."""
    try:
        with open_regular(file) as opened:
            return opened.read(8), os.fstat(opened.fileno()).st_size
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
