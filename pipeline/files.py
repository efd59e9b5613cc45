"""Digests of input files, remembered by size, modification time and inode."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.opening import open_regular, read_json

_LARGEST: Final = 4 * 10**9  # bytes of such a file
_ENTRY: Final = re.compile(r"\d+ \d+ \d+ [0-9a-f]{64}")
_OLD_FACT: Final = re.compile(r".+:[0-9a-f]{64}")  # of earlier versions, without a checksum


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
        self._dirty: set[str] = set()
        # path to "size mtime_ns inode sha256": one text is read three times as fast as a list
        self._stats: dict[str, str] = {} if rehash else _load(path)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """Apart from the digests: planning needs none of them."""
        return _unsealed(_load(self._facts_path))

    @property
    def _facts_path(self) -> Path:
        return self._path.with_name(f"{self._path.stem}-facts.json")

    def known(self, path: Path | str) -> str | None:
        """Return the sha256 of `path` if it is remembered and the file has not changed since.

        The file is never opened, only its stat is read.
        """
        entry = self._stats.get(os.fspath(path))
        if not isinstance(entry, str):
            return None
        try:
            stamp = _stamp(os.stat(path))  # noqa: PTH116
        except OSError:
            return None
        return entry[len(stamp) :] if _is_digest(entry, stamp) else None

    def digest(self, path: Path | str) -> str:
        """Return the sha256 of the file's bytes, 64 hex digits.

        Raises
        ------
        DataError
            If it cannot be read, or is no regular file.
        """
        known = self.known(path)
        if known is not None:
            return known
        try:
            with open_regular(path) as file:
                stamp = _stamp(os.fstat(file.fileno()))
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        with self._lock:
            self._stats[os.fspath(path)] = stamp + found
            self._dirty.add("stats")
        return found

    def digests(self, paths: Sequence[str]) -> list[str]:
        """Return ``digest(path)`` of each: planning asks for tens of thousands."""
        known, stat, found = self._stats, os.stat, []
        for path in paths:
            entry = known.get(path)
            try:
                s = stat(path)
                stamp = f"{s.st_size} {s.st_mtime_ns} {s.st_ino} "
                if entry is not None and _is_digest(entry, stamp):
                    found.append(entry[len(stamp) :])
                    continue
            except (OSError, AttributeError, TypeError):
                pass
            found.append(self.digest(path))
        return found

    def recall(self, path: Path, kind: str) -> Mapping[str, Any] | None:
        """Return what was learnt of a file with this content, None if nothing was.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return self.recalled(self.digest(path), kind)

    def recalled(self, sha256: str, kind: str) -> Mapping[str, Any] | None:
        """Return what was learnt of content with this digest, None if nothing was."""
        fact = self._facts.get(f"{kind}:{sha256}")
        return fact if isinstance(fact, dict) else None

    def learn(self, sha256: str, kind: str, fact: Mapping[str, Any]) -> None:
        """Remember what follows from a file's content alone.

        `kind` is what was found out: another one when the way of finding it changes.
        """
        with self._lock:
            self._facts[f"{kind}:{sha256}"] = dict(fact)
            self._dirty.add("facts")

    def save(self) -> None:
        """Write what was learnt, beside what other processes did.

        Where it cannot be written, as in a read-only workspace, what was learnt is forgotten.
        """
        with suppress(OSError), self._lock:
            if self._dirty:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            # others may have learnt something meanwhile
            if "stats" in self._dirty and not _is_foreign(self._path):
                known = _load(self._path) | self._stats
                atomic.write_bytes(self._path, atomic.json_bytes(known), sync=False)
            if "facts" in self._dirty and not _is_foreign(self._facts_path):
                facts = _unsealed(_load(self._facts_path)) | self._facts
                sealed = {"check": _check(facts), "facts": facts}
                atomic.write_bytes(self._facts_path, atomic.json_bytes(sealed), sync=False)
            self._dirty.clear()


def _is_digest(entry: str, stamp: str) -> bool:
    return len(entry) == len(stamp) + 64 and entry.startswith(stamp)


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} "


def _check(facts: dict[str, Any]) -> str:
    return hashlib.sha256(atomic.json_bytes(facts)).hexdigest()


def _unsealed(found: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of their file; none unless all are as they were written.

    Nothing else would notice another one: of a wrong digest the bytes tell when they are read.
    """
    facts = found.get("facts")
    whole = isinstance(facts, dict) and found.get("check") == _check(facts)
    return facts if whole and facts is not None else {}


def _is_foreign(path: Path) -> bool:
    """Whether a file of our name holds what is none of ours, and is not to be replaced."""
    found = _load(path)
    of_facts = set(found) <= {"check", "facts", "stats"}
    return not of_facts and not all(
        _ENTRY.fullmatch(value) if isinstance(value, str) else _OLD_FACT.fullmatch(key)
        for key, value in found.items()
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, _LARGEST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
