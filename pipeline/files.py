"""Digests of input files, remembered by size, modification time and inode."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError


class FileCache:
    """Content digests, and facts that follow from content alone, without reading a file twice.

    No key ever contains a modification time: the stat only decides whether the remembered digest
    may still be used. Losing the cache costs time, never correctness.

    Parameters
    ----------
    path : Path
        The JSON file it lives in; a missing or unreadable one is an empty cache.
    rehash : bool
        Ignore remembered digests and read every file again.
    """

    def __init__(self, path: Path, *, rehash: bool = False):
        self._path = path
        self._lock = threading.Lock()
        self._dirty = False
        try:
            stored = json.loads(path.read_bytes())
            self._stats: dict[str, list[Any]] = dict(stored["stats"])
            self._facts: dict[str, Any] = dict(stored["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            self._stats, self._facts = {}, {}
        if rehash:
            self._stats = {}

    def known(self, path: Path) -> str | None:
        """Return the sha256 of `path` if it is remembered and the file has not changed since.

        The file is never opened, only its stat is read.
        """
        try:
            stat = path.stat()
        except OSError:
            return None
        entry = self._stats.get(str(path))
        if entry is not None and entry[:3] == [stat.st_size, stat.st_mtime_ns, stat.st_ino]:
            return str(entry[3])
        return None

    def digest(self, path: Path) -> str:
        """Return the sha256 of the file's bytes, 64 hex digits.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        known = self.known(path)
        if known is not None:
            return known
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        with self._lock:
            self._stats[str(path)] = [stat.st_size, stat.st_mtime_ns, stat.st_ino, found]
            self._dirty = True
        return found

    def fact(
        self, path: Path, kind: str, find: Callable[[Path], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Return ``find(path)``, remembered by `kind` and the file's content.

        Parameters
        ----------
        path : Path
            The file.
        kind : str
            What is found out; change it when `find` changes.
        find : callable
            Returns a JSON-able mapping; what it raises is not remembered.
        """
        key = f"{kind}:{self.digest(path)}"
        if key not in self._facts:
            found = dict(find(path))
            with self._lock:
                self._facts[key] = found
                self._dirty = True
        fact: Mapping[str, Any] = self._facts[key]
        return fact

    def save(self) -> None:
        """Write the cache if anything was learnt. The last of several writers wins.

        Where it cannot be written, as in a read-only workspace, what was learnt is forgotten.
        """
        if self._dirty:
            with suppress(OSError), self._lock:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_json(self._path, {"stats": self._stats, "facts": self._facts})
                self._dirty = False
