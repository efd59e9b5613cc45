"""Which folders of a workspace are ours: those that bear our mark, and nothing else is deleted.

A workspace may be a folder in which others keep things too, and a name alone proves nothing: a
recording may be called ``drive-202611271430``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.opening import read_regular

MARK: Final = ".ensdistill"


def own(folder: Path, what: str) -> None:
    """Make a folder and leave our mark in it.

    Parameters
    ----------
    folder : Path
        The folder, which may be there.
    what : str
        What it is, and of what: the mark of a copy elsewhere says that it is none of ours.

    Raises
    ------
    DataError
        If it is a link: what it leads to is somebody else's.
    """
    require_no_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not is_own(folder, what):
        atomic.write_bytes(folder / MARK, _mark(what))


def is_own(folder: Path, what: str) -> bool:
    """Whether a folder bears the mark that `own` leaves."""
    try:
        mark = _mark(what)
        return not folder.is_symlink() and read_regular(folder / MARK, len(mark)) == mark
    except OSError:
        return False


def require_no_link(folder: Path) -> None:
    """Refuse a link where a folder of ours has to be."""
    if folder.is_symlink():
        raise DataError(
            f"{folder}: is a link to {folder.readlink()}, and nothing is written or deleted behind "
            "it; remove the link (to have all on another disk, name a `workspace` there)"
        )


def cut_links(folder: Path) -> None:
    """Remove the links in a folder of ours: writing would follow them out of it."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (link := Path(parent) / name).is_symlink():
                link.unlink()


def _mark(what: str) -> bytes:
    return f"ensdistill {what}\n".encode()
