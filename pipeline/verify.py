"""Finding damage in published artifacts, and making it good.

Every byte of an artifact is covered: the manifest proves itself field by field, names the digest of
every other file, and the item index names that of each item's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ensdistill.pipeline import atomic
from ensdistill.pipeline.draft import REPAIR_BEGUN, unpublish
from ensdistill.pipeline.fingerprint import file_digest
from ensdistill.pipeline.journal import Record
from ensdistill.pipeline.manifest import (
    ITEMS,
    MANIFEST,
    SHORT,
    Artifact,
    Form,
    Line,
    Manifest,
    SpoiltManifestError,
    form_of,
    read_manifest,
)
from ensdistill.pipeline.opening import StrayNameError, inner


@dataclass(frozen=True)
class Damage:
    """One thing that is not what was written."""

    folder: Path  # the artifact's
    file: str  # in it
    reason: str  # what was found
    item: str | None = None  # what is lost with it, such as an image
    field: str | None = None  # of the manifest

    def __str__(self) -> str:
        of = f" (item {self.item})" if self.item else f" (field {self.field})" if self.field else ""
        return f"{self.folder / self.file}{of}: {self.reason}"


def damages(
    folder: Path,
    checked: Callable[[int], None] = lambda _: None,
    forms: Mapping[str, Form] | None = None,
) -> list[Damage]:
    """Return all damage of a published artifact, or that its repair was not finished.

    `checked` is told the bytes that were read, file by file; for `forms` see `Workspace`.
    """
    forms = forms or {}
    try:
        manifest = read_manifest(folder, forms)
    except FileNotFoundError:
        if not (folder / REPAIR_BEGUN).exists():
            return []  # a draft: it is checked, item by item, when it is gone on with
        return [Damage(folder, MANIFEST, "was withdrawn by a repair that did not finish")]
    except SpoiltManifestError as error:
        names = error.spoilt or [""]
        found = [
            Damage(folder, MANIFEST, "is not what was written", field=name or None)
            for name in names
        ]
        if error.found is None:
            return found
        manifest = error.found
    else:
        found = []
        if not folder.name.endswith(f"-{manifest.fingerprint[:SHORT]}"):
            found = [Damage(folder, MANIFEST, "is that of another artifact", field="fingerprint")]
    artifact = Artifact(folder, manifest, form_of(manifest, forms))
    found += damaged_files(artifact, checked)
    return found + list(_damaged_items(artifact, checked))


def damaged_files(
    artifact: Artifact, checked: Callable[[int], None] = lambda _: None
) -> Iterator[Damage]:
    """Yield the damage of all files but the manifest and those of the items."""
    for name, (size, sha256) in artifact.manifest.files.items():
        reason = _damage(artifact.path, name, size, sha256)
        checked(size)
        # of forged lines the digest may be right
        lines = list(_damaged_lines(artifact)) if name == ITEMS else []
        if name == ITEMS and artifact.form is not None and not (lines or reason):
            found = len({record["id"] for record in whole_records(artifact)})
            if found != artifact.manifest.count:
                reason = f"holds {found} items, expected {artifact.manifest.count}"
        if lines:
            yield from lines
        elif reason is not None:
            yield Damage(artifact.path, name, reason)


def _damaged_lines(artifact: Artifact) -> Iterator[Damage]:
    for line in _lines(artifact):
        if line.why is not None:
            yield Damage(artifact.path, ITEMS, f"line {line.number} {line.why}", item=line.item)


def _lines(artifact: Artifact) -> list[Line]:
    try:
        return artifact.lines if ITEMS in artifact.manifest.files else []
    except OSError:
        return []


def _damaged_items(artifact: Artifact, checked: Callable[[int], None]) -> Iterator[Damage]:
    for record in whole_records(artifact):
        if "file" in record:
            name, size, sha256 = record["file"]
            reason = _damage(artifact.path, name, size, sha256)
            checked(size)
            if reason is not None:
                yield Damage(artifact.path, name, reason, item=record["id"])


def whole_records(artifact: Artifact) -> list[Record]:
    """Return the records of an item index that are what was written."""
    return [
        line.record for line in _lines(artifact) if line.record is not None and line.why is None
    ]


def _damage(folder: Path, name: str, size: int, sha256: str) -> str | None:
    try:
        path = inner(folder, name)
        found = path.stat().st_size
        if found != size and path.is_file():
            return f"holds {found} bytes, {size} were written"
        return None if file_digest(path) == sha256 else "its bytes are not what was written"
    except StrayNameError:
        return "is a link that leads out of the artifact"
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def withdraw(folder: Path, found: list[Damage], forms: Mapping[str, Form] | None = None) -> bool:
    """Take the damaged parts that `damages` found out of an artifact, under its lock.

    Return whether it is a draft now and has to be made good by a run; if only fields that nothing
    depends on were spoilt, it is published again without them.
    """
    manifest = readable_manifest(folder, forms)
    if manifest is not None and all(d.file == MANIFEST for d in found):
        _force(Artifact(folder, manifest, form_of(manifest, forms or {})))
        atomic.write_bytes(folder / MANIFEST, manifest.to_bytes())
        return False
    atomic.write_bytes(folder / REPAIR_BEGUN, b"")  # so that a killed repair is gone on with
    unpublish(folder, sorted({d.file for d in found} - {MANIFEST, ITEMS}))
    return True


def _force(artifact: Artifact) -> None:
    """Force what a manifest speaks of to the disk: what is older than it is linked unread."""
    of_items = (r["file"][0] for r in whole_records(artifact) if "file" in r)
    files = [artifact.path / name for name in (*artifact.manifest.files, *of_items)]
    for file in files:
        atomic.sync_file(file)
    for folder in {file.parent for file in files}:
        atomic.sync_folder(folder)


def readable_manifest(folder: Path, forms: Mapping[str, Form] | None = None) -> Manifest | None:
    """Return a manifest of which nothing else than `RECORDED` fields are spoilt, None without."""
    try:
        return read_manifest(folder, forms)
    except FileNotFoundError:
        return None
    except SpoiltManifestError as error:
        return error.found
