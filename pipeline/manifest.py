"""Manifests: the record that turns a folder into an artifact, and proves itself unharmed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import CorruptError
from ensdistill.pipeline.fingerprint import HEX, Json, digest
from ensdistill.pipeline.journal import Record, numbered_lines

MANIFEST: Final = "manifest.json"
ITEMS: Final = "items.jsonl"
FORMAT: Final = 1
SHORT: Final = 12  # hex digits of the fingerprint in a folder's name
REPAIR: Final = "`ensdistill verify --repair` makes it good"

_FIELD: Final = re.compile(rb'^ "(\w+)": ', re.MULTILINE)
_END: Final = b"\n}\n"
_WHOLE: Final = re.compile(rb',\n "check": "([0-9a-f]{16})"\n\}\n\Z')


@dataclass(frozen=True)
class Manifest:
    """What was made, from what, how, and the digests that prove it.

    Attributes
    ----------
    node, stage, version, fingerprint, recipe, inputs
        What was made, and from what; `recipe` and `inputs` are what the fingerprint hashes.
    made_from : dict
        Role to the `content` of the upstream artifact that was read. It differs from the upstream's
        only if that was made again and came out different.
    result : dict
        The stage's small result; policy and certainty enter their downstream by it.
    content : str
        Digest of the result and of what the items, or else the files, hold.
    files : dict
        Every file but the manifest and those of the items, to its bytes and sha256.
    runtime : dict
        Device, workers and paths: recorded, never hashed.
    provenance : dict
        Versions, platform, git state and peak memory of the session that published; its command,
        when that began and what was said while the node was made.
    seconds : float
        Wall time of the session that published; earlier, killed ones are not counted.
    disk_bytes : int
        Of all files but the manifest.
    written, reused : int
        Items computed, and taken from other artifacts, in the session that published.
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
    made_from: dict[str, str] = field(default_factory=dict)
    content: str = ""
    files: dict[str, list[Any]] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    disk_bytes: int = 0
    written: int = 0
    reused: int = 0
    finished: str = ""
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """Return the file's bytes: the fields, a checksum of each, and one of all bytes before."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        checks = {name: _check(value) for name, value in values.items()}
        body = atomic.json_bytes(values | {"checks": checks}, indent=1)[: -len(_END)]
        return body + b',\n "check": "' + _sum(body) + b'"' + _END


# What a manifest can lose without anything else becoming doubtful.
RECORDED: Final = (
    "runtime",
    "provenance",
    "seconds",
    "disk_bytes",
    "written",
    "reused",
    "finished",
)


class SpoiltManifestError(CorruptError):
    """A manifest that does not prove itself.

    Attributes
    ----------
    spoilt : list of str
        The fields that do not fit their checksums, where the file can be read so far.
    found : Manifest or None
        What can be read, where only such fields are spoilt that nothing depends on (`RECORDED`,
        emptied here).
    """

    def __init__(self, text: str, spoilt: list[str], found: Manifest | None = None):
        super().__init__(text)
        self.spoilt = spoilt
        self.found = found


class ForeignManifestError(SpoiltManifestError):
    """A whole manifest of another version: nothing to repair."""


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of an artifact's folder.

    Raises
    ------
    SpoiltManifestError
        If any byte of the file is not what was written; the text names file and field.
    FileNotFoundError
        If there is none: the folder is a draft.
    """
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SpoiltManifestError(f"{file}: cannot be read ({error.strerror})", []) from error
    end = _WHOLE.search(raw)
    if end is None or _sum(raw[: end.start()]) != end[1]:
        raise _spoilt(file, raw)
    values = json.loads(raw)
    for name in ("checks", "check"):
        del values[name]
    if values["format"] != FORMAT:
        raise ForeignManifestError(
            f"{file}: format {values['format']}, expected {FORMAT}; it was made by another version "
            "of ensdistill",
            ["format"],
        )
    return Manifest(**values)


def _spoilt(file: Path, raw: bytes) -> SpoiltManifestError:
    """Find out which fields of a manifest are not what was written."""
    values = _value(raw)
    if not isinstance(values, dict):  # read each field alone
        values = {name: _value(text) for name, text in _field_texts(raw).items()}
    checks = values.get("checks")
    known = [f.name for f in fields(Manifest)]
    if isinstance(checks, dict):
        spoilt = [k for k in known if k not in values or checks.get(k) != _safe_check(values[k])]
        spoilt += [k for k in values if k not in (*known, "checks", "check")]
        spoilt += [f"checks.{k}" for k in checks if k not in known]
        spoilt += [] if "check" in values else ["check"]
    else:
        spoilt = ["checks"]
    found = None
    if all(name in RECORDED for name in spoilt):
        found = Manifest(**{k: values[k] for k in known if k not in spoilt})
    if not spoilt:  # the same values in another spelling
        assert found is not None
        pairs: Iterable[tuple[int, int]] = zip(raw, found.to_bytes(), strict=False)
        at = next((k for k, (a, b) in enumerate(pairs) if a != b), len(raw))
        before = [m[1].decode() for m in _FIELD.finditer(found.to_bytes()) if m.start() <= at]
        spoilt = [before[-1] if before else "its beginning"]
    return SpoiltManifestError(
        f"{file}: {', '.join(spoilt)} not what was written; {REPAIR}", spoilt, found
    )


def _field_texts(raw: bytes) -> dict[str, bytes]:
    """Return the text of each top-level field: each begins on a line of its own."""
    starts = list(_FIELD.finditer(raw))
    ends = [m.start() for m in starts[1:]] + [len(raw)]
    return {
        m[1].decode(): raw[m.end() : end].rstrip(b" \n,")
        for m, end in zip(starts, ends, strict=False)
    }


class _Unreadable:
    """Stands for a value that is no JSON: equal to nothing that was written."""


def _value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _Unreadable()


def _safe_check(value: Any) -> str | None:
    try:
        return _check(value)
    except (TypeError, ValueError):
        return None


def _check(value: Json) -> str:
    return digest(value)[:HEX]


def _sum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:HEX].encode()


@dataclass(frozen=True)
class Artifact:
    """A published artifact: never edited."""

    path: Path
    manifest: Manifest

    @cached_property
    def items(self) -> list[Record]:
        """The item index: one record an item, in stored order; empty without items.

        Raises
        ------
        CorruptError
            If a line is not what was written.
        """
        if ITEMS not in self.manifest.files:
            return []
        file = self.path / ITEMS
        try:
            lines = list(numbered_lines(file))
        except OSError as error:
            raise CorruptError(f"{file}: cannot be read ({error}); {REPAIR}") from error
        for number, _, record in lines:
            if record is None:
                raise CorruptError(f"{file}: line {number} is not what was written; {REPAIR}")
        return [record for _, _, record in lines if record is not None]
