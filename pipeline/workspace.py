"""The folder of artifacts: published ones with a manifest, drafts without."""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import CorruptError, LockedError
from ensdistill.pipeline.journal import Journal, read_journal

MANIFEST = "manifest.json"
ITEMS = "items.json"
SHORT = 12  # hex digits of the fingerprint in a folder's name


@dataclass(frozen=True)
class Manifest:
    """The record that turns a folder into an artifact.

    Attributes
    ----------
    node, stage, version, fingerprint, recipe, inputs
        What was made, and from what; `recipe` and `inputs` are what the fingerprint hashes.
    result : dict
        The stage's small result; policy and certainty enter their downstream by it.
    runtime : dict
        Device, workers and paths: recorded, never hashed.
    seconds : float
        Wall time of the session that published; earlier, killed ones are not counted.
    written : int
        Items computed in the session that published.
    finished : str
        ISO time in UTC.
    """

    node: str
    stage: str
    version: int
    fingerprint: str
    recipe: dict[str, Any]
    inputs: dict[str, str]
    result: dict[str, Any]
    runtime: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    written: int = 0
    finished: str = ""
    format: int = 1


@dataclass(frozen=True)
class Artifact:
    """A published artifact: never edited."""

    path: Path
    manifest: Manifest

    def items(self) -> list[dict[str, Any]]:
        """Return the item index: one record an item, in stored order."""
        try:
            records: list[dict[str, Any]] = json.loads((self.path / ITEMS).read_bytes())
        except (OSError, ValueError) as error:
            raise CorruptError(
                f"{self.path / ITEMS}: the item index cannot be read ({error}); "
                f"delete the folder {self.path} and run again"
            ) from error
        return records


class Draft:
    """An artifact being filled, found again by the next run under the same name."""

    def __init__(self, path: Path):
        self.path = path
        self.written = 0
        self._journal: Journal | None = None
        self._lock = threading.Lock()

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the journalled items of all sessions, by item id."""
        found = {}
        for path in sorted(self.path.glob("journal-*.jsonl")):
            with suppress(FileNotFoundError):  # published meanwhile by another process
                for record in read_journal(path):
                    found[record["id"]] = record
        return found

    def record(self, item_id: str, **fields: Any) -> None:
        """Journal one finished item; everything it stands for must be on disk before."""
        with self._lock:
            if self._journal is None:
                self._journal = Journal(self.path / f"journal-{os.getpid()}.jsonl")
            self._journal.append({"id": item_id, **fields})
            self.written += 1

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def publish(self, manifest: Manifest, items: list[dict[str, Any]]) -> Artifact:
        """Turn the draft into an artifact: item index, then the manifest by rename.

        Journals, and files that a stage named ``draft-*``, go last; left behind by a kill they are
        harmless. What a kill left of a write is swept away first, so that equal artifacts are
        equal folders.
        """
        self.close()
        for path in self.path.glob("*.partial"):
            path.unlink()
        if items:
            atomic.write_json(self.path / ITEMS, items)
        atomic.write_json(self.path / MANIFEST, asdict(manifest), indent=1)
        for pattern in ("journal-*.jsonl", "draft-*"):
            for path in self.path.glob(pattern):
                path.unlink()
        return Artifact(self.path, manifest)


@dataclass(frozen=True)
class Snapshot:
    """What a workspace holds at one moment.

    Attributes
    ----------
    published : dict
        Fingerprint to artifact.
    drafts : dict
        ``(stage, short fingerprint)`` to folder.
    corrupt : dict
        ``(stage, short fingerprint)`` to what is wrong with the manifest.
    """

    published: Mapping[str, Artifact]
    drafts: Mapping[tuple[str, str], Path]
    corrupt: Mapping[tuple[str, str], str]

    def progress(self, key: tuple[str, str]) -> int:
        """Return how many items a draft has journalled."""
        return len(Draft(self.drafts[key]).records())

    def latest(self, node_id: str) -> Artifact | None:
        """Return the last published artifact of a node, whatever its fingerprint."""
        of_node = [a for a in self.published.values() if a.manifest.node == node_id]
        return max(of_node, key=lambda a: a.manifest.finished, default=None)


class Workspace:
    """The folder that holds all artifacts of an experiment."""

    def __init__(self, root: Path):
        self.root = root

    def scan(self) -> Snapshot:
        """Read all manifests."""
        published: dict[str, Artifact] = {}
        drafts: dict[tuple[str, str], Path] = {}
        corrupt: dict[tuple[str, str], str] = {}
        for folder in _artifact_folders(self.root):
            key = (folder.parent.name, folder.name[-SHORT:])
            try:
                manifest = Manifest(**json.loads((folder / MANIFEST).read_bytes()))
            except FileNotFoundError:
                drafts[key] = folder
            except (OSError, ValueError, TypeError) as error:
                corrupt[key] = f"{folder / MANIFEST}: {error}"
            else:
                if manifest.fingerprint.startswith(key[1]):
                    published[manifest.fingerprint] = Artifact(folder, manifest)
                else:
                    corrupt[key] = (
                        f"{folder / MANIFEST}: fingerprint {manifest.fingerprint[:SHORT]} "
                        f"in a folder named for {key[1]}"
                    )
        return Snapshot(published, drafts, corrupt)

    def draft(self, stage: str, name: str, fingerprint: str) -> Draft:
        """Return the draft for a fingerprint, an earlier one if there is one."""
        short = fingerprint[:SHORT]
        for folder in _artifact_folders(self.root, stage):
            if folder.name.endswith(f"-{short}"):
                return Draft(folder)
        path = self.root / stage / f"{name}-{short}"
        path.mkdir(parents=True)
        return Draft(path)

    @contextmanager
    def lock(self, stage: str, fingerprint: str, node_id: str) -> Iterator[None]:
        """Hold the right to fill one artifact.

        Raises
        ------
        LockedError
            If another process holds it; the text names it and the way out.
        """
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stage}-{fingerprint[:SHORT]}.lock"
        holder = path.with_suffix(".json")
        try:
            with FileLock(path, timeout=0):
                atomic.write_json(
                    holder,
                    {"node": node_id, "pid": os.getpid(), "host": socket.gethostname()}
                    | {"since": now()},
                )
                yield
                holder.unlink(missing_ok=True)
        except Timeout:
            raise LockedError(_locked_by(node_id, holder)) from None


def now() -> str:
    """Return the time in UTC, in ISO form to the microsecond."""
    return datetime.datetime.now(datetime.UTC).isoformat()


def _artifact_folders(root: Path, stage: str = "*") -> Iterator[Path]:
    for folder in sorted(root.glob(f"{stage}/*-{'[0-9a-f]' * SHORT}")):
        if not folder.parent.name.startswith("."):
            yield folder


def _locked_by(node_id: str, holder: Path) -> str:
    try:
        who = json.loads(holder.read_bytes())
        text = f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError):
        text = "another process"
    return (
        f"{node_id} is being made by {text}; wait for it or stop it, then run again "
        "(its finished items are kept)"
    )
