"""Opening what somebody else may have written: regular files only, by names that stay inside."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json

_SPECIAL: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_LONGEST: Final = 255  # bytes of a name
DEEPEST: Final = 50  # values within each other: whoever walks them must not run out of stack
_TOO_DEEP: Final = f"its values lie too deep in each other, more than {DEEPEST}"
_START: Final = 512  # bytes that tell what a file is
_PAGES: Final = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_ARCHIVES: Final = {
    b"PK\x03\x04": "a zip archive (or a file of torch.save)",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
}


class NotRegularError(OSError):
    """What is no regular file may never end, may wait for somebody, or may act when it is read."""


class TooLongError(OSError):
    """A file longer than what it is called may be."""


class StrayNameError(ValueError):
    """A recorded name that does not stay inside its folder."""


def open_regular(path: Path | str) -> BufferedReader:
    """Open a regular file for reading, and nothing else.

    Raises
    ------
    NotRegularError
        If it is a pipe, a device or a socket; its `strerror` says which.
    OSError
        As `open`.
    """
    _require_regular(os.stat(path), path)  # noqa: PTH116 - to open a device may set it going
    return open(path, "rb", opener=_opened)


def _opened(path: str, flags: int) -> int:
    # not to wait for the other end of a pipe that took the file's place
    opened = os.open(path, flags | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(opened), path)
    except BaseException:
        os.close(opened)
        raise
    return opened


def read_regular(path: Path | str, most: int | None = None) -> bytes:
    """Return the bytes of a regular file, `most` at most (see `open_regular`).

    Raises
    ------
    OSError
        As `open_regular`, and if it is longer: a file with holes may seem to hold a terabyte.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            text = f"holds {size:,} bytes, expected {most:,} at most"
            raise TooLongError(errno.EFBIG, text, os.fspath(path))
        return file.read()


def read_json(path: Path | str, most: int | None = None) -> Any:
    """Return the content of a JSON file of `most` bytes, of whatever type it is.

    Raises
    ------
    OSError
        As `open_regular`.
    ValueError
        If it is no JSON, or too deep in itself.
    """
    return parse_json(read_regular(path, most))


def parse_json(
    text: bytes | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Return the value of a JSON text; `pairs`, if given, makes its objects of keys and values.

    Raises
    ------
    ValueError
        If it is no JSON, or too deep in itself.
    """
    try:
        found = _loads(text) if pairs is None else json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _opened_brackets(text) >= DEEPEST and _is_deep(found):
        raise ValueError(_TOO_DEEP)
    return found


def _loads(text: bytes | str) -> Any:
    try:
        return from_json(text)  # in half the time
    except ValueError:  # of what is no UTF-8 too, such as the names of some files
        return json.loads(text)


def _opened_brackets(text: bytes | str) -> int:
    if isinstance(text, str):
        return text.count("[") + text.count("{")
    return text.count(b"[") + text.count(b"{")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
        if not level:
            return False
    return True


def _require_regular(found: os.stat_result, path: Path | str) -> None:
    mode = found.st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    what = next((name for fits, name in _SPECIAL if fits(mode)), "something special")
    raise NotRegularError(errno.EINVAL, f"{what}, not a regular file", os.fspath(path))


def real_path(path: Path | str) -> Path:
    """Return a path without links; of links in a circle, which `Path.resolve` raises at, itself."""
    return Path(os.path.realpath(path))


def is_inner(name: object) -> bool:
    """Whether a recorded name is a relative path that never goes up, in its plain spelling."""
    if not isinstance(name, str) or "\0" in name:
        return False
    try:
        parts = os.fsencode(name).split(b"/")
    except UnicodeEncodeError:  # no file can be called so
        return False
    return all(part not in (b"", b".", b"..") and len(part) <= _LONGEST for part in parts)


def inner(folder: Path, name: object) -> Path:
    """Return the path that a recorded name stands for: the one way from a record to a path.

    Parameters
    ----------
    folder : Path
        The folder of the artifact, draft or network whose record it is; may be a link itself.
    name : object
        What the record says: text, ``/`` between its parts. Nothing need be there.

    Raises
    ------
    StrayNameError
        If it is no relative path that stays inside, or a link on the way leads out of `folder`.
    """
    if not is_inner(name):
        raise StrayNameError(f"the name {name!r} leads out of {folder}")
    here = os.fspath(folder)
    for part in str(name).split("/"):
        here = os.path.join(here, part)  # noqa: PTH118 - of `os`: asked for every item
        # links are rare: only then all of the way is looked at
        if os.path.islink(here):  # noqa: PTH114
            real = os.path.realpath(path := folder / str(name))
            if not Path(real).is_relative_to(os.path.realpath(folder)):
                raise StrayNameError(f"{path}: a link leads out of {folder}")
            return path
    return Path(here)


def what_instead(path: Path | str) -> str | None:
    """Say what a file is that is not what it is called, and what to do, from its first bytes.

    Returns
    -------
    str or None
        Continues a sentence that begins with the file's name, such as ``"is empty; copy it
        again"``; None where its beginning tells nothing.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_START)
    except NotRegularError as error:
        return f"is {error.strerror}"
    except OSError:
        return None
    if not size:
        return "is empty (0 bytes); copy or download it again"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer and not the file itself; run `git lfs pull` in its repository"
    if b"/annex/objects/" in start and size < _START:
        return "is a git-annex pointer and not the file itself; run `git annex get` on it"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return (
            "is a web page (HTML or XML), as a download leaves it that was answered by a login or "
            "an error; open it to see which, and download the file itself"
        )
    if not start.strip(b"\0"):
        return "begins with zeros only, as a copy leaves it that was cut off; copy it again"
    for begin, kind in _ARCHIVES.items():
        if start.startswith(begin):
            return f"is {kind}; unpack it, or name the file that is meant"
    return None
