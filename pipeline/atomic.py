"""Writing a file so that a reader sees the old bytes or the new ones, never a mixture."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Replace `path` with `content` in one step (temporary file beside it, then rename).

    With `sync`, both the file and its name have reached the disk when this returns.
    """
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a write does not say where it failed
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def update_bytes(path: Path, content: bytes) -> None:
    """Replace `path` unless it holds `content` already: a finished folder may be read-only.

    A link is replaced, and what it leads to left alone.
    """
    if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Replace `path` with `value` as JSON, keys in the order given."""
    write_bytes(path, json_bytes(value, indent=indent))


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """Return `value` as the bytes that `write_json` writes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    # a file's name need not be UTF-8; `json.loads` reads its bytes back as they were
    return text.encode(errors="surrogatepass") + b"\n"


def sync_file(path: Path) -> None:
    """Wait until the content of a file has reached the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder have reached the disk, where the file system can tell."""
    try:
        sync_file(path)
    except OSError as error:  # some network file systems know no fsync of a folder
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
