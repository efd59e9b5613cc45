"""Manifests: the record that turns a folder into an artifact, and proves itself unharmed."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import CorruptError, shown
from ensdistill.pipeline.fingerprint import Json, canonical_json, checksum, fingerprint
from ensdistill.pipeline.journal import Record, is_count, item_of, numbered_lines, without_cycles
from ensdistill.pipeline.opening import (
    StrayNameError,
    inner,
    is_inner,
    open_regular,
    parse_json,
    read_regular,
)

MANIFEST: Final = "manifest.json"
ITEMS: Final = "items.jsonl"
FORMAT: Final = 2  # of the file; no key has it (see `fingerprint.KEYS`)
SHORT: Final = 12  # hex digits of the fingerprint in a folder's name
REPAIR: Final = "`ensdistill verify --repair` makes it good"

_FIELD: Final = re.compile(rb'^ "(\w+)": ', re.MULTILINE)
_MOST: Final = 1e12  # seconds
_LONGEST: Final = 100_000_000  # bytes of a manifest: the items are not in it
_BEGIN: Final = b'{\n "node": '
_END: Final = b"\n}\n"
_WHOLE: Final = re.compile(rb',\n "check": "([0-9a-f]{16})"\n\}\n\Z')


@dataclass(frozen=True)
class Form:
    """What a stage's result, and the records of its items, are by type."""

    version: int  # of the stage that writes them so; of others nothing is known
    result: Callable[[Manifest], str | None]  # returns what does not fit, None if all does
    record: Callable[[object], str | None]


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
    called : dict
        Role to what a person called it, such as a teacher's name, when it was made.
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
    called: dict[str, str] = field(default_factory=dict)
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

    @property
    def count(self) -> int:
        """How many items there are; 0 without any."""
        items = self.recipe.get("items")
        count: Any = items.get("count") if isinstance(items, dict) else None
        return count if is_count(count) else 0

    def to_bytes(self) -> bytes:
        """Return the file's bytes: the fields, a checksum of each, and one of all bytes before."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        checks = {name: _check(value) for name, value in values.items()}
        body = atomic.json_bytes(values | {"checks": checks}, indent=1)[: -len(_END)]
        return body + f',\n "check": "{checksum(body)}"'.encode() + _END


def _is_text(found: Any) -> bool:
    return isinstance(found, str)


def _is_time(found: Any) -> bool:
    """Whether it is empty or a time in ISO form."""
    try:
        return found == "" or bool(datetime.datetime.fromisoformat(found))
    except (TypeError, ValueError):
        return False


def _is_mapping(found: Any) -> bool:
    return isinstance(found, dict)


def _are_texts(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _are_files(found: Any) -> bool:
    return isinstance(found, dict) and all(_is_file(*entry) for entry in found.items())


def _is_file(name: str, entry: Any) -> bool:
    return (
        is_inner(name)
        and name != MANIFEST
        and isinstance(entry, list)
        and len(entry) == 2
        and is_count(entry[0])
        and isinstance(entry[1], str)
    )


_TOLD: Final = ("command", "begun", "host", "platform", "python")


def _is_provenance(found: Any) -> bool:
    """Whether what is shown of it, where it is there, can be."""
    if not isinstance(found, dict):
        return False
    git, packages = found.get("git"), found.get("packages")
    messages, memory = found.get("messages", []), found.get("peak_memory", 0)
    return (
        all(isinstance(found.get(key), str | None) for key in _TOLD)
        and _is_time(found.get("begun") or "")
        and (
            git is None
            or (isinstance(git, dict) and _is_text(git.get("commit")) and "changed" in git)
        )
        and (packages is None or isinstance(packages, dict))
        and isinstance(messages, list)
        and all(isinstance(text, str) for text in messages)
        and is_count(memory)
    )


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < _MOST


# What each field is, and how that is called: the checksums prove that a manifest is what somebody
# wrote, and not who.
_FORMS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "node": (_is_text, "text"),
    "stage": (_is_text, "text"),
    "version": (is_count, "a whole number"),
    "fingerprint": (_is_text, "text"),
    "recipe": (_is_mapping, "keys and values"),
    "inputs": (_are_texts, "texts by name"),
    "result": (_is_mapping, "keys and values"),
    "made_from": (_are_texts, "texts by name"),
    "called": (_are_texts, "texts by name"),
    "content": (_is_text, "text"),
    "files": (_are_files, "length and digest of files below its folder"),
    "runtime": (_is_mapping, "keys and values"),
    "provenance": (_is_provenance, "what is known of how it was made"),
    "seconds": (_is_number, "a number"),
    "disk_bytes": (is_count, "a whole number"),
    "written": (is_count, "a whole number"),
    "reused": (is_count, "a whole number"),
    "finished": (_is_time, "a time in ISO form"),
    "format": (is_count, "a whole number"),
}

# What a manifest can lose without anything else becoming doubtful.
RECORDED: Final = (
    "called",
    "runtime",
    "provenance",
    "seconds",
    "disk_bytes",
    "written",
    "reused",
    "finished",
)


class SpoiltManifestError(CorruptError):
    """A manifest that does not prove itself."""

    def __init__(self, text: str, spoilt: list[str], found: Manifest | None = None):
        super().__init__(text)
        self.spoilt = spoilt  # fields that do not fit their checksums, if it can be read so far
        # where only such are spoilt that nothing depends on (`RECORDED`, emptied here)
        self.found = found


class ForeignManifestError(SpoiltManifestError):
    """A whole manifest of another version: nothing to repair."""


def read_manifest(path: Path, forms: Mapping[str, Form] | None = None) -> Manifest:
    """Return the manifest of an artifact's folder; `forms` says what results are, by stage.

    Raises
    ------
    SpoiltManifestError
        If any byte of the file is not what was written, or a field is not of its type; the text
        names file and field.
    FileNotFoundError
        If there is none: the folder is a draft.
    """
    file = path / MANIFEST
    try:
        raw = read_regular(inner(path, MANIFEST), _LONGEST)
    except FileNotFoundError:
        raise
    except StrayNameError as error:
        raise SpoiltManifestError(str(error), []) from error
    except OSError as error:
        raise SpoiltManifestError(f"{file}: cannot be read ({error.strerror})", []) from error
    end = _WHOLE.search(raw)
    if end is None or checksum(raw[: end.start()]) != end[1].decode():
        raise _spoilt(file, raw)
    values = _value(raw)
    if not isinstance(values, dict):
        raise SpoiltManifestError(f"{file}: is no JSON; {REPAIR}", [])
    for name in ("checks", "check"):
        values.pop(name, None)
    if _FORMS["format"][0](values.get("format")) and values["format"] != FORMAT:
        raise ForeignManifestError(
            f"{file}: format {values['format']}, expected {FORMAT}; it was made by another version "
            "of ensdistill",
            ["format"],
        )
    _require_forms(file, values)
    manifest = Manifest(**{name: values[name] for name in _FORMS})  # later versions write more
    form = form_of(manifest, forms or {})
    misfit = None if form is None else _misfit(manifest, form)
    if misfit is not None:
        name, why = misfit
        raise SpoiltManifestError(f"{file}: {name}{why}; {REPAIR}", [name])
    return manifest


def _misfit(manifest: Manifest, form: Form) -> tuple[str, str] | None:
    """Return which field does not go with the others, and why; None if all do."""
    why = form.result(manifest)
    if why is not None:
        return "result", f": {why}"
    hashed = manifest.stage, manifest.version, manifest.recipe, manifest.inputs
    if fingerprint(*hashed) != manifest.fingerprint:
        return "fingerprint", ": is not that of recipe and inputs"
    if manifest.count and ITEMS not in manifest.files:
        return "files", f": {ITEMS} is missing"
    return None


def form_of(manifest: Manifest, forms: Mapping[str, Form]) -> Form | None:
    """Return what the result and the records of an artifact are; None if that is not known."""
    form = forms.get(manifest.stage)
    return form if form is not None and form.version == manifest.version else None


def is_manifest(path: Path) -> bool:
    """Whether the file of a manifest's name in a folder is one, by its beginning; whole or not."""
    try:
        with open_regular(path / MANIFEST) as file:
            return file.read(len(_BEGIN)) == _BEGIN
    except OSError:
        return False


def _require_forms(file: Path, values: dict[str, Any]) -> None:
    """Refuse fields that are missing or of another type."""
    spoilt = [name for name in _FORMS if not _fits(name, values)]
    if not spoilt:
        return
    name = spoilt[0]
    value = values.get(name)
    if name == "files" and isinstance(value, dict):  # of thousands the one that is meant
        value = next({n: e} for n, e in value.items() if not _is_file(n, e))
    found = f"found {shown(value)}" if name in values else "it is missing"
    why = f"{name}: expected {_FORMS[name][1]}, {found}"
    raise SpoiltManifestError(f"{file}: {why}; {REPAIR}", spoilt, _without(values, spoilt))


def _fits(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a field is there and of its type, and can be hashed: no NaN, not too deep."""
    is_one = _FORMS[name][0]
    return name in values and is_one(values[name]) and _safe_check(values[name]) is not None


def _without(values: Mapping[str, Any], spoilt: Iterable[str]) -> Manifest | None:
    """Return the manifest without its spoilt fields, None where others depend on one of them."""
    if not set(spoilt) <= set(RECORDED):
        return None
    return Manifest(**{n: v for n, v in values.items() if n in _FORMS and n not in spoilt})


def _spoilt(file: Path, raw: bytes) -> SpoiltManifestError:
    """Find out which fields of a manifest are not what was written."""
    values = _value(raw)
    if not isinstance(values, dict):  # read each field alone
        values = {name: _value(text) for name, text in _field_texts(raw).items()}
    checks = values.get("checks")
    known = list(_FORMS)
    if isinstance(checks, dict):
        more = [k for k in values if k not in (*known, "checks", "check")]
        spoilt = [
            k
            for k in (*known, *more)
            if (k in known and not _fits(k, values)) or checks.get(k) != _safe_check(values[k])
        ]
        spoilt += [f"checks.{k}" for k in checks if k not in (*known, *more)]
        spoilt += [] if "check" in values else ["check"]
    else:
        spoilt = ["checks"]
    found = _without(values, spoilt)
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
        return parse_json(text)
    except ValueError:
        return _Unreadable()


def _safe_check(value: Any) -> str | None:
    try:
        return _check(value)
    except (TypeError, ValueError, RecursionError):
        return None


def _check(value: Json) -> str:
    return checksum(canonical_json(value))


class Line(NamedTuple):
    """One line of an item index."""

    number: int  # from 1
    record: Record | None  # None if the line is not whole
    why: str | None  # what is wrong with it, None if nothing is
    item: str | None  # the id that stands in it


@dataclass(frozen=True)
class Artifact:
    """A published artifact: never edited."""

    path: Path
    manifest: Manifest
    form: Form | None = None  # what its records are

    @cached_property
    def lines(self) -> list[Line]:
        """The lines of the item index, as they were when they were first asked for.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        with without_cycles():
            return [self._line(*found) for found in numbered_lines(self.path / ITEMS)]

    def _line(self, number: int, text: bytes, record: Record | None) -> Line:
        if record is None:
            return Line(number, None, "is not what was written", item_of(text))
        why = None if self.form is None else self.form.record(record)
        return Line(number, record, why, record["id"])

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
            lines = self.lines
        except OSError as error:
            raise CorruptError(f"{file}: cannot be read ({error}); {REPAIR}") from error
        for line in lines:
            if line.why is not None:
                told = f" {line.why}" if line.record is None else f": {line.why}"
                raise CorruptError(f"{file}: line {line.number}{told}; {REPAIR}")
        records = [line.record for line in lines if line.record is not None]
        if self.form is not None and len({r["id"] for r in records}) != self.manifest.count:
            raise CorruptError(
                f"{file}: does not hold {self.manifest.count} items, each once; {REPAIR}"
            )
        return records
