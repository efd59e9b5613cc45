"""Drafts: artifacts being filled, and the finished items that others can lend them."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.fingerprint import digest, file_digest
from ensdistill.pipeline.journal import Journal, Record, count_items, read_journal, seal
from ensdistill.pipeline.manifest import ITEMS, MANIFEST, Artifact, Form, Manifest
from ensdistill.pipeline.opening import (
    NotRegularError,
    StrayNameError,
    TooLongError,
    inner,
    is_inner,
    read_regular,
)

JOURNALS: Final = "journal-*.jsonl"
REPAIR_BEGUN: Final = "repair-begun"  # an artifact that was withdrawn to be made good
_PASSING: Final = (JOURNALS, "draft-*", REPAIR_BEGUN)  # goes when the draft is published
_INPUTS: Final = "draft-inputs.json"
_NO_JOURNAL: Final = (FileNotFoundError, IsADirectoryError, NotRegularError, TooLongError)
_LONGEST: Final = 1_000_000  # bytes of it
_HALF_WRITTEN: Final = "*.partial"


class UnfinishedError(LookupError):
    """Items are missing: other parts of the work are not done yet."""


@dataclass(frozen=True)
class Spare:
    """A finished item of another artifact or draft, with the same key."""

    folder: Path
    record: Record  # as it is there

    def file(self) -> bytes | None:
        """Return the bytes of the item's file, None if they are not what was written."""
        return _whole_file(self.folder, self.record)


class Draft:
    """An artifact being filled, found again by the next run under the same name.

    Parameters
    ----------
    path : Path
        Its folder.
    keys : mapping
        Item id to the key of what the item is made from, in stored order. A record counts only
        under its key, and only if the file it speaks of is whole: nothing was forced to the disk
        before a power loss, and nobody knows what became of a draft since.
    made_from : mapping
        Item id to `Item.made_from`, kept in the records so that a later change can be named.
    form : Form, optional
        What records are: another one does not count.
    """

    def __init__(
        self,
        path: Path,
        keys: Mapping[str, str] | None = None,
        made_from: Mapping[str, Mapping[str, str]] | None = None,
        form: Form | None = None,
    ):
        self.path = path
        self._form = form
        self.keys = keys or {}
        self._made_from = made_from or {}
        self.written = 0
        self.reused = 0
        self.guard: Callable[[], None] = lambda: None  # raises when the draft is not ours any more
        self._closed = False
        self._journal: Journal | None = None
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self.reload()

    def reload(self) -> None:
        """Read the records of all sessions, those of other processes included."""
        for record in self._stored() if self.keys else ():
            item_id = str(record.get("id"))
            if (
                item_id in self.keys
                and item_id not in self._records
                and self.keys[item_id] == record.get("key")
                and (self._form is None or self._form.record(record) is None)
                and ("file" not in record or _whole_file(self.path, record) is not None)
            ):
                self._records[item_id] = record

    def _stored(self) -> Iterator[Record]:
        for pattern in (JOURNALS, ITEMS):
            for path in sorted(self.path.glob(pattern)):
                # published meanwhile by another process, or no journal of ours
                with suppress(*_NO_JOURNAL):
                    yield from read_journal(path)

    def bind(self, made_from: Mapping[str, str]) -> None:
        """Forget what was begun from other content: a checkpoint does not say what it has seen.

        `made_from` is role to the content digest of each upstream artifact.
        """
        file, content = self.path / _INPUTS, atomic.json_bytes(dict(sorted(made_from.items())))
        was = None
        with suppress(OSError):
            was = read_regular(file, _LONGEST)
        if was != content:
            for pattern in (JOURNALS, "draft-*", ITEMS):
                for begun in self.path.glob(pattern):
                    begun.unlink()
            atomic.write_bytes(file, content)

    def records(self) -> dict[str, Record]:
        """Return the finished items by id."""
        return dict(self._records)

    def complete(self) -> list[Record]:
        """Return the record of every item, in stored order.

        Raises
        ------
        UnfinishedError
            If one is missing; the text says how many.
        """
        missing = [i for i in self.keys if i not in self._records]
        if missing:
            raise UnfinishedError(f"{len(missing)} items, the first is {missing[0]}")
        return [self._records[i] for i in self.keys]

    def record(self, item_id: str, *, file: str | None = None, **fields: Any) -> None:
        """Journal one finished item, and the file below `path` that holds it, already written.

        Of `fields`, ``content`` is the digest of what it holds, made from the others where none is
        given.
        """
        if file is not None:
            whole = read_regular(inner(self.path, file))
            found = hashlib.sha256(whole).hexdigest()
            if "content" not in fields:
                fields["content"] = digest({**fields, "file": found})  # wherever it lies
            fields["file"] = [file, len(whole), found]
        if "content" not in fields:
            fields["content"] = digest(fields)
        made_from = dict(self._made_from.get(item_id, {}))
        self._append({"id": item_id, "key": self.keys[item_id], "made_from": made_from, **fields})
        with self._lock:
            self.written += 1

    def adopt(
        self, item_id: str, spare: Spare, *, file: str | None = None, written: bool = False
    ) -> None:
        """Take a finished item over, unless its file is not what it was.

        `file` is the name that its file gets here; `written`, that it is here, encoded anew.
        """
        record = spare.record | {"id": item_id}
        if file is not None:
            content = read_regular(inner(self.path, file)) if written else spare.file()
            if content is None:
                return
            if not written:
                atomic.write_bytes(self.path / file, content, sync=False)
            record["file"] = [file, len(content), hashlib.sha256(content).hexdigest()]
        self._append(record)
        with self._lock:
            self.reused += 1

    def _append(self, record: Record) -> None:
        self.guard()
        with self._lock:
            if self._closed:  # a thread that outlived an error must not write without the lock
                raise RuntimeError(f"{self.path} is closed")
            if self._journal is None:
                self._journal = Journal(self.path / f"journal-{os.urandom(6).hex()}.jsonl")
            self._journal.append(record)
            self._records[record["id"]] = record

    def flush(self) -> None:
        """Let other machines see what was journalled: a network file system sends it at closing."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def close(self) -> None:
        """Journal nothing more."""
        self.flush()
        self._closed = True

    def publish(self, manifest: Manifest) -> Artifact:
        """Turn the draft into an artifact: item index, then the manifest by rename.

        Before the manifest stands, everything it speaks of has reached the disk. Journals, and
        files that a stage named ``draft-*``, go last; left behind by a kill they are harmless.
        What a kill left of a write is swept away first, so that equal artifacts are equal folders.
        """
        self.close()
        for path in self.path.rglob(_HALF_WRITTEN):
            path.unlink(missing_ok=True)  # a worker that lost its parent may be about to rename it
        records = self.complete()
        if records:
            atomic.write_bytes(self.path / ITEMS, b"".join(seal(r) for r in records))
        of_items = {r["file"][0] for r in records if "file" in r}
        passing = {p for pattern in _PASSING for p in self.path.glob(pattern)}
        files: dict[str, list[Any]] = {}
        folders = {self.path.parent.parent, self.path.parent, self.path}
        for path in sorted(self.path.rglob("*")):
            hidden = path.name.startswith(".")  # such as .nfs0123 or .DS_Store
            begun = path.match(_HALF_WRITTEN)
            if path in passing or hidden or begun or path == self.path / MANIFEST:
                continue
            if path.is_dir():
                folders.add(path)
                continue
            name = path.relative_to(self.path).as_posix()
            if name not in of_items:
                files[name] = [path.stat().st_size, file_digest(path)]
            atomic.sync_file(path)
        for folder in folders:
            atomic.sync_folder(folder)
        content_of: Any = [[r["id"], r["content"]] for r in records] or [
            [name, entry[1]] for name, entry in files.items()
        ]
        manifest = replace(
            manifest,
            content=digest([manifest.result, content_of]),
            files=files,
            disk_bytes=sum(size for size, _ in files.values())
            + sum(r["file"][1] for r in records if "file" in r),
            written=self.written,
            reused=self.reused,
        )
        atomic.write_bytes(self.path / MANIFEST, manifest.to_bytes())
        for path in passing:
            path.unlink(missing_ok=True)
        return Artifact(self.path, manifest)


def _whole_file(folder: Path, record: Record) -> bytes | None:
    try:
        name, size, expected = record["file"]
        content = read_regular(inner(folder, name), size)
    except (OSError, KeyError, StrayNameError):
        return None
    return content if hashlib.sha256(content).hexdigest() == expected else None


def is_begun(folder: Path) -> bool:
    """Whether a folder holds what a draft does: those of earlier versions bear no mark."""
    begun = (folder / name for name in (_INPUTS, REPAIR_BEGUN))
    return any(file.exists() for file in begun) or any(folder.glob(JOURNALS))


def progress_of(folder: Path) -> int:
    """Return how many items a draft has journalled, unchecked: quick, for display."""
    found: set[str] = set()
    for path in (*folder.glob(JOURNALS), *folder.glob(ITEMS)):
        with suppress(*_NO_JOURNAL):
            found |= count_items(path)
    return len(found)


def unpublish(path: Path, bad_files: Sequence[str] = ()) -> None:
    """Turn an artifact back into a draft, without the files named.

    The manifest goes first: from then on nothing trusts the folder, and what is left is checked
    item by item when the draft is filled again.
    """
    (path / MANIFEST).unlink(missing_ok=True)
    atomic.sync_folder(path)
    for name in bad_files:
        _remove(path, name)


def _remove(folder: Path, name: str) -> None:
    """Remove what a record names: nothing that lies outside, and no more than a link to it."""
    here = folder
    for part in name.split("/") if is_inner(name) else ():
        here = here / part
        if here.is_symlink():  # what it leads to is not ours
            break
    if here != folder:
        with suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(here) if here.is_dir() and not here.is_symlink() else here.unlink()
