"""Finished items that an artifact or a draft can lend to another, and how their files get there."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ensdistill.pipeline.journal import Record
from ensdistill.pipeline.opening import StrayNameError, inner, read_regular

_OPEN: Final = 16  # folders: of many lenders a process could not open all at once


@dataclass(frozen=True)
class Spare:
    """A finished item of another artifact or draft, with the same key."""

    folder: Path
    record: Record  # as it is there
    line: bytes  # that it is journalled by
    # when its publication ended, by its file system's clock (ns); None of a draft
    published: int | None = None

    def file(self) -> bytes | None:
        """Return the bytes of the item's file, None if they are not what was written."""
        return whole_file(self.folder, self.record)

    def is_whole(self) -> bool:
        """Whether the item's file is what was written.

        One that is as its publication left it is not read for that.
        """
        if "file" not in self.record:
            return True
        with suppress(OSError):
            # where folders lead `Links` sees to
            if self.is_as_published(os.lstat(f"{self.folder}/{self.record['file'][0]}")):
                return True
        return self.file() is not None

    def is_as_published(self, found: os.stat_result) -> bool:
        """Whether its publication forced a file to the disk that has not been changed since.

        What a stat does not tell, such as bytes that a disk lost, is told when the file is read.
        """
        return (
            self.published is not None
            and stat.S_ISREG(found.st_mode)
            and found.st_size == self.record["file"][1]
            and found.st_mtime_ns < self.published
        )


def whole_file(folder: Path, record: Record) -> bytes | None:
    """Return the bytes of the file that a record names, None if they are not what was written."""
    try:
        name, size, expected = record["file"]
        content = read_regular(inner(folder, name), size)
    except (OSError, KeyError, StrayNameError):
        return None
    return content if hashlib.sha256(content).hexdigest() == expected else None


class Links:
    """Links the files of published items into a draft, while it is open and the system does so.

    Folders stay open meanwhile, a few, and are reached through no link: nothing that takes their
    place leads elsewhere.
    """

    def __init__(self, draft: Path):
        self._draft = draft
        self._works = os.link in os.supports_follow_symlinks
        self._opened: dict[tuple[Path, str], int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, spare: Spare, name: str) -> int | None:
        """Link the file of a spare to a name in the draft, if it is as its publication left it.

        Returns
        -------
        int or None
            Its inode; None if it is to be copied, if anything.
        """
        if not self._works or spare.published is None:
            return None
        if len(self._opened) > _OPEN:
            self._stack.close()
            self._opened.clear()
        try:
            there, old = self._folder(spare.folder, spare.record["file"][0])
            here, new = self._folder(self._draft, name)
            try:
                os.link(old, new, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
            except FileExistsError:  # of a session that was killed
                os.unlink(new, dir_fd=here)
                os.link(old, new, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
            found = os.stat(new, dir_fd=here, follow_symlinks=False)
            # what belongs to somebody else may become unreadable, or change, at any time
            if spare.is_as_published(found) and found.st_uid == os.geteuid():
                return found.st_ino
            os.unlink(new, dir_fd=here)
        except (FileNotFoundError, KeyError):  # it is gone, or its record names none
            pass
        except OSError:  # another file system, one without links, or a file with too many
            self._works = False
        return None

    def _folder(self, folder: Path, name: str) -> tuple[int, str]:
        """Return the open folder that a recorded name lies in, and its name there."""
        above, _, last = name.rpartition("/")
        opened = self._opened.get((folder, above))
        if opened is None:
            flags = os.O_RDONLY | os.O_DIRECTORY
            opened = self._open(os.fspath(folder), flags)
            for part in above.split("/") if above else ():
                opened = self._open(part, flags | os.O_NOFOLLOW, opened)
            self._opened[folder, above] = opened
        return opened, last

    def _open(self, path: str, flags: int, above: int | None = None) -> int:
        opened = os.open(path, flags, dir_fd=above)
        self._stack.callback(os.close, opened)
        return opened
