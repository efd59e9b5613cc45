"""Canonical JSON and the digests made from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from ensdistill.pipeline.opening import open_regular

Json: TypeAlias = (
    "bool | int | float | str | list[Json] | tuple[Json, ...] | dict[str, Json] | None"
)

KEYS: Final = 1  # how keys are made: another number, and nothing that was made is found again
_NESTS: Final = (dict, list, tuple)
_HEX: Final = 16  # digits of a checksum that guards against accidents, not against forgery


def canonical_json(value: Json) -> bytes:
    """Encode `value` so that equal content gives equal bytes.

    Keys are sorted, separators are minimal and text is UTF-8.

    Raises
    ------
    TypeError
        For anything JSON has no form for, keys that are not text included: a fingerprint must not
        depend on a `repr`.
    ValueError
        For NaN and infinities, which JSON cannot carry.
    """
    _require_text_keys(value)
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode(errors="surrogatepass")  # a file's name need not be UTF-8


def _require_text_keys(value: object) -> None:
    """`json` would write the key 10 as "10" and sort it behind 9."""
    parts: Iterable[object] = value if isinstance(value, (list, tuple)) else ()
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is no text")
        parts = value.values()
    for part in parts:
        if isinstance(part, _NESTS):  # most are counts of pixels: a call of each would cost more
            _require_text_keys(part)


def file_digest(path: Path | str) -> str:
    """Return the sha256 of a regular file's bytes as 64 hex digits, read now and in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Json) -> str:
    """Return the sha256 of `value`'s canonical JSON as 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def checksum(content: bytes) -> str:
    """Return the checksum of bytes, as it is written beside them."""
    return hashlib.sha256(content).hexdigest()[:_HEX]


def fingerprint(
    stage: str, version: int, recipe: Mapping[str, Json], inputs: Mapping[str, str]
) -> str:
    """Return the name of an artifact, 64 hex digits, by all that determines its content.

    Parameters
    ----------
    stage, version : str, int
        The kind of node, such as ``"infer"``, and its version, raised when its numerics change.
    recipe : mapping
        All settings that change the numbers; device, paths and worker counts are not among them.
    inputs : mapping
        Role to fingerprint (or content digest) of each upstream artifact.
    """
    return digest(
        {
            "format": KEYS,
            "stage": stage,
            "version": version,
            "recipe": dict(recipe),
            "inputs": dict(inputs),
        }
    )
