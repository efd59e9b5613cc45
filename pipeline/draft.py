"""Drafts: artifacts being filled, and the finished items that others can lend them."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.fingerprint import digest, file_digest
from ensdistill.pipeline.journal import (
    Journal,
    Record,
    count_items,
    numbered_lines,
    seal,
    without_cycles,
)
from ensdistill.pipeline.manifest import ITEMS, MANIFEST, Artifact, Form, Manifest
from ensdistill.pipeline.opening import (
    NotRegularError,
    TooLongError,
    inner,
    is_inner,
    read_regular,
)
from ensdistill.pipeline.spares import Links, Spare, whole_file

JOURNALS: Final = "journal-*.jsonl"
REPAIR_BEGUN: Final = "repair-begun"  # an artifact that was withdrawn to be made good
_PASSING: Final = (JOURNALS, "draft-*", REPAIR_BEGUN)  # goes when the draft is published
_INPUTS: Final = "draft-inputs.json"
_NO_JOURNAL: Final = (FileNotFoundError, IsADirectoryError, NotRegularError, TooLongError)
_LONGEST: Final = 1_000_000  # bytes of it
_HALF_WRITTEN: Final = ".partial"
_AT_ONCE: Final = 200  # items whose records are journalled by one write


class UnfinishedError(LookupError):
    """Items are missing: other parts of the work are not done yet."""


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
        self._lines: dict[str, bytes] = {}  # of each record, as it was journalled
        self._mine: set[Path] = set()  # journals of this session
        self._forced: dict[str, int] = {}  # name to inode of files that are on the disk already
        self.reload()

    def reload(self) -> None:
        """Read the records of all sessions, those of other processes included."""
        for line, record in self._stored() if self.keys else ():
            item_id = str(record.get("id"))
            if (
                item_id in self.keys
                and item_id not in self._records
                and self.keys[item_id] == record.get("key")
                and (self._form is None or self._form.record(record) is None)
                and ("file" not in record or whole_file(self.path, record) is not None)
            ):
                self._records[item_id] = record
                self._lines[item_id] = line

    def _stored(self) -> Iterator[tuple[bytes, Record]]:
        """Yield what others journalled, and earlier sessions, each with its line."""
        for pattern in (JOURNALS, ITEMS):
            for path in sorted({*self.path.glob(pattern)} - self._mine):
                # published meanwhile by another process, or no journal of ours
                with suppress(*_NO_JOURNAL):
                    for _, line, record in numbered_lines(path):
                        if record is not None:
                            yield line + b"\n", record

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
            entry = self._written(file)
            if "content" not in fields:
                fields["content"] = digest({**fields, "file": entry[-1]})  # wherever it lies
            fields["file"] = entry
        if "content" not in fields:
            fields["content"] = digest(fields)
        made_from = dict(self._made_from.get(item_id, {}))
        key = self.keys[item_id]
        record = {"id": item_id, "key": key, "made_from": made_from, **fields}
        self._append((record, seal(record)))
        with self._lock:
            self.written += 1

    def adopt(
        self,
        spares: Mapping[str, Spare],
        file: Callable[[str], str] | None = None,
        *,
        written: bool = False,
    ) -> None:
        """Take finished items over, by their ids, but for those whose file is not what it was.

        `file` returns the name that an item's file gets here; `written`, that it is here, encoded
        anew. A file that its publication forced to the disk, and that was not changed since, is
        linked: it is read when it is used, as it would be where it lies.
        """
        todo = iter(spares.items())
        with without_cycles(), Links(self.path) as links:
            while some := list(islice(todo, _AT_ONCE)):
                found = (self._taken(i, spare, file, links, written) for i, spare in some)
                taken = [one for one in found if one is not None]
                if taken:
                    self._append(*taken)
                    with self._lock:
                        self.reused += len(taken)

    def _taken(
        self,
        item_id: str,
        spare: Spare,
        file: Callable[[str], str] | None,
        links: Links,
        written: bool,
    ) -> tuple[Record, bytes] | None:
        """Return record and line of an item whose file was taken over, None if that is spoilt."""
        record = spare.record
        if file is not None:
            self.guard()  # before anything takes another's place
            name = file(item_id)
            entry = self._written(name) if written else self._brought(name, spare, links)
            if entry is None:
                return None
            if entry != record["file"]:
                record = record | {"file": entry}
        if record["id"] != item_id:
            record = record | {"id": item_id}
        return record, spare.line if record is spare.record else seal(record)

    def _written(self, name: str) -> list[Any]:
        """Return what a record says of a file: its name, length and digest."""
        whole = read_regular(inner(self.path, name))
        return [name, len(whole), hashlib.sha256(whole).hexdigest()]

    def _brought(self, name: str, spare: Spare, links: Links) -> list[Any] | None:
        """Bring a spare's file here, linked or copied; None if it is spoilt."""
        inode = links.take(spare, name)
        if inode is not None:
            self._forced[name] = inode
        else:
            content = spare.file()
            if content is None:
                return None
            atomic.write_bytes(self.path / name, content, sync=False)
        return [name, *spare.record["file"][1:]]

    def _append(self, *found: tuple[Record, bytes]) -> None:
        """Journal records, each with its line, by a single write."""
        self.guard()
        with self._lock:
            if self._closed:  # a thread that outlived an error must not write without the lock
                raise RuntimeError(f"{self.path} is closed")
            if self._journal is None:
                path = self.path / f"journal-{os.urandom(6).hex()}.jsonl"
                self._journal = Journal(path)
                self._mine.add(path)
            self._journal.write(b"".join(line for _, line in found))
            for record, line in found:
                self._records[record["id"]] = record
                self._lines[record["id"]] = line

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
        records = self.complete()
        if records:
            atomic.write_bytes(self.path / ITEMS, b"".join(self._lines[r["id"]] for r in records))
        of_items = {r["file"][0] for r in records if "file" in r}
        passing = {p for pattern in _PASSING for p in self.path.glob(pattern)}
        others: list[str] = []
        folders = [self.path]
        for name, entry in _below(self.path):
            if entry.name.endswith(_HALF_WRITTEN):
                # a worker that lost its parent may be about to rename it
                Path(entry).unlink(missing_ok=True)
            elif entry.name.startswith("."):  # such as .nfs0123 or .DS_Store
                continue
            elif entry.is_dir():
                folders.append(Path(entry))
            elif name in of_items:
                if self._forced.get(name) != entry.inode():
                    atomic.sync_file(Path(entry))
            elif name != MANIFEST and Path(entry) not in passing:
                others.append(name)
                atomic.sync_file(Path(entry))
        for folder in (*folders, self.path.parent, self.path.parent.parent):
            atomic.sync_folder(folder)
        files: dict[str, list[Any]] = {}
        for name in sorted(others, key=lambda name: name.split("/")):
            path = self.path / name
            files[name] = [path.stat().st_size, file_digest(path)]
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


def _below(folder: str | Path, before: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all that is below a folder by its relative name; thousands take no time."""
    with os.scandir(folder) as found:
        for entry in found:
            name = before + entry.name
            yield name, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path, f"{name}/")


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
