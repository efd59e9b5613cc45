"""The folder of artifacts: published ones with a manifest, drafts without."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ensdistill.pipeline import atomic
from ensdistill.pipeline.draft import JOURNALS, REPAIR_BEGUN, Draft, is_begun, progress_of
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.pipeline.journal import numbered_lines, without_cycles
from ensdistill.pipeline.locks import Locks
from ensdistill.pipeline.manifest import (
    ITEMS,
    MANIFEST,
    REPAIR,
    SHORT,
    Artifact,
    Form,
    SpoiltManifestError,
    form_of,
    is_manifest,
    read_manifest,
)
from ensdistill.pipeline.ownership import cut_links, is_own, own, require_no_link
from ensdistill.pipeline.spares import Spare

Key: TypeAlias = tuple[str, str]  # stage and short fingerprint


@dataclass(frozen=True)
class Snapshot:
    """What a workspace holds at one moment."""

    published: Mapping[str, Artifact]  # by fingerprint
    drafts: Mapping[Key, Path]
    corrupt: Mapping[Key, str]  # what is wrong with the manifest
    busy: Mapping[Key, str] = field(default_factory=dict)  # of drafts, the process that fills it

    def progress(self, key: Key) -> int:
        """Return how many items a draft has journalled."""
        return progress_of(self.drafts[key])

    def of_node(self, node_id: str) -> list[Artifact]:
        """Return the published artifacts of a node, whatever their fingerprint, the last first."""
        found = [a for a in self.published.values() if a.manifest.node == node_id]
        return sorted(found, key=lambda a: a.manifest.finished, reverse=True)


class Workspace:
    """The folder that holds all artifacts of an experiment.

    By `forms` a stage has the types of its results and records; of others nothing is known.
    """

    def __init__(
        self,
        root: Path,
        locks: Locks | None = None,
        forms: Mapping[str, Form] | None = None,
    ):
        self.root = root
        self.locks = locks or Locks(root / ".locks")
        self.forms = forms or {}

    def folders(self, stage: str = "*", short: str = "[0-9a-f]" * SHORT) -> Iterator[Path]:
        """Yield the folders of all artifacts and drafts; others may be called as ours are."""
        for folder in sorted(self.root.glob(f"{stage}/*-{short}")):
            if not folder.parent.name.startswith(".") and (
                is_own(folder, mark_of(folder)) or is_manifest(folder) or is_begun(folder)
            ):
                yield folder

    def is_linked(self, folder: Path) -> bool:
        """Whether an artifact's folder lies behind a link, where it is read and never changed."""
        return folder.is_symlink() or folder.parent.is_symlink()

    def own(self, folder: Path) -> None:
        """Make an artifact's folder, or what is left of one, ours to change (see `ownership.own`).

        Raises
        ------
        DataError
            If it lies behind a link.
        """
        require_no_link(folder.parent)
        own(folder, mark_of(folder))

    def scan(self) -> Snapshot:
        """Read all manifests, each checked against itself."""
        self._require_readable()
        published: dict[str, Artifact] = {}
        drafts: dict[Key, Path] = {}
        corrupt: dict[Key, str] = {}
        for folder in self.folders():
            key = key_of(folder)
            found = self._read(folder)
            if found is None:
                drafts[key] = folder
            elif isinstance(found, str):
                corrupt[key] = found
            else:
                published[found.manifest.fingerprint] = found
        who = {key: self.locks.busy("-".join(key)) for key in drafts}
        busy = {key: name for key, name in who.items() if name is not None}
        return Snapshot(published, drafts, corrupt, busy)

    def published(self, stage: str, fingerprint: str) -> Artifact | None:
        """Read the one manifest of a fingerprint; None if nothing whole is published under it."""
        found = map(self._read, self.folders(stage, fingerprint[:SHORT]))
        whole = (a for a in found if isinstance(a, Artifact))
        return next((a for a in whole if a.manifest.fingerprint == fingerprint), None)

    def _read(self, folder: Path) -> Artifact | str | None:
        """Return what a folder holds, or what is wrong with its manifest; None if it is a draft."""
        try:
            manifest = read_manifest(folder, self.forms)
        except FileNotFoundError:
            return None
        except SpoiltManifestError as error:
            return str(error)
        # of `os`: it raises nothing, whatever the names are
        there = os.path.exists
        gone = next((n for n in manifest.files if not there(folder / n)), None)
        if gone is not None:
            return f"{folder / gone}: is gone; {REPAIR}"
        short = manifest.fingerprint[:SHORT]
        if (manifest.stage, short) != key_of(folder):
            return (
                f"{folder}: holds {manifest.stage} {short}, not what the folder is named for; "
                "rename or delete it"
            )
        return Artifact(folder, manifest, form_of(manifest, self.forms))

    def _require_readable(self) -> None:
        """Refuse what is no folder, or cannot be listed: it would look like an empty workspace."""
        try:
            os.listdir(self.root)  # noqa: PTH208
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise ConfigError(f"workspace: {self.root} is a file; expected a folder") from None
        except OSError as error:
            raise DataError(f"workspace: {self.root} cannot be read ({error.strerror})") from error

    def kept(self) -> AbstractContextManager[object]:
        """Keep all that is there while the block runs, for who reads it (see `Locks.needing`)."""
        return self.locks.needing() if self.root.exists() else nullcontext()

    def draft(
        self,
        stage: str,
        name: str,
        fingerprint: str,
        keys: Mapping[str, str] | None = None,
        made_from: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Draft:
        """Return the draft for a fingerprint (see `Draft`), an earlier one if there is one.

        Raises
        ------
        DataError
            If its folder is a link.
        """
        short = fingerprint[:SHORT]
        path = next(self.folders(stage, short), self.root / stage / f"{name}-{short}")
        self.own(path)
        cut_links(path)
        atomic.sync_folder(path.parent)
        return Draft(path, keys, made_from, self.forms.get(stage))

    def spares(self, stage: str, wanted: Mapping[str, str], but: Path | None) -> dict[str, Spare]:
        """Return finished items of all artifacts and drafts of a stage but one that is asking.

        Of `wanted`, item id to key, those are found of which there is an item with the same key,
        in what was published last first. What is being made good takes nothing that was not read.
        """
        form = self.forms.get(stage)
        found: dict[str, Spare] = {}
        by_key: dict[str, list[str]] = {}
        for item_id, key in wanted.items():
            by_key.setdefault(key, []).append(item_id)
        repairs = but is not None and (but / REPAIR_BEGUN).exists()
        lenders = {f: self._published_at(f) for f in self.folders(stage) if f != but}
        for folder in sorted(lenders, key=lambda f: lenders[f] or 0, reverse=True):
            if not by_key:
                break
            published = None if repairs else lenders[folder]
            for index in (folder / ITEMS, *sorted(folder.glob(JOURNALS))):
                # published, or cleared away, meanwhile
                with suppress(OSError), without_cycles():
                    for _, line, record in numbered_lines(index, by_key):
                        if (
                            record is None
                            or record["key"] not in by_key
                            or (form is not None and form.record(record) is not None)
                        ):
                            continue
                        when = published if index.name == ITEMS else None
                        spare = Spare(folder, record, line + b"\n", when)
                        if spare.is_whole():
                            found.update(dict.fromkeys(by_key.pop(record["key"]), spare))
        return found

    def _published_at(self, folder: Path) -> int | None:
        """Return the time of a whole manifest (ns); None of a draft."""
        with suppress(OSError):
            found = (folder / MANIFEST).lstat().st_mtime_ns
            return found if isinstance(self._read(folder), Artifact) else None
        return None


def key_of(folder: Path) -> Key:
    """Return what tells the folder of an artifact or a draft from all others."""
    return folder.parent.name, folder.name[-SHORT:]


def mark_of(folder: Path) -> str:
    """Return what the mark of an artifact's folder says; a copy in another place says the same."""
    return " ".join(key_of(folder))


def lock_name(stage: str, fingerprint: str) -> str:
    """Return what the lock of an artifact is called."""
    return f"{stage}-{fingerprint[:SHORT]}"


def now() -> str:
    """Return the time in UTC, in ISO form to the microsecond."""
    return datetime.datetime.now(datetime.UTC).isoformat()
