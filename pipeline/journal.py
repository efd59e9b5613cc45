"""Records of finished items, one JSON object a line, each with its own checksum.

A journal grows by one line an item and is what makes a killed run resume; the index of a published
artifact has the same lines in stored order. So a torn or flipped line is told from a whole one
without anything else to compare it with.
"""

from __future__ import annotations

import gc
import json
import os
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline.fingerprint import checksum
from ensdistill.pipeline.opening import is_inner, parse_json, read_regular

Record = dict[str, Any]

_LARGEST: Final = 4 * 10**9  # bytes: five million records
_MOST: Final = 2**62
_FEW: Final = 16  # keys that are looked for one by one
_CHECK: Final = re.compile(rb', "check": "([0-9a-f]{16})"\}\Z')
_CHECK_BYTES: Final = len(b', "check": "0123456789abcdef"}')
_KEY: Final = re.compile(rb'\{"id": (?:null|"(?:[^"\\]|\\.)*"), "key": "([0-9a-f]+)"')
_ID: Final = re.compile(rb'^\{"id": ("(?:[^"\\]|\\.)*")', re.MULTILINE)


def seal(record: Record) -> bytes:
    """Return a record as one line that ends with a checksum of all that stands before it."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    body = text.encode(errors="surrogatepass")
    return body[:-1] + f', "check": "{checksum(body)}"}}\n'.encode()


def unseal(line: bytes) -> Record | None:
    """Return the record of a line without its newline, None if the line is not whole."""
    found = _CHECK.match(line, max(0, len(line) - _CHECK_BYTES))
    if found is None:
        return None
    body = line[: found.start()] + b"}"
    if checksum(body) != found[1].decode():
        return None
    try:
        record = parse_json(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _is_record(found: Record) -> bool:
    """Whether a record has what every record of an item has: stages write more.

    A checksum is no proof of that: whoever writes the line writes it as well.
    """
    get = found.get
    made_from = get("made_from")
    return (
        isinstance(get("id"), str)
        and isinstance(get("key"), str)
        and isinstance(get("content"), str)
        and isinstance(made_from, dict)
        and all(isinstance(part, str) for part in made_from.values())
        and ("file" not in found or _is_file(found["file"]))
    )


def _is_file(found: Any) -> bool:
    """Whether a JSON value is name, length and digest of a file."""
    if not isinstance(found, list) or len(found) != 3:
        return False
    name, size, sha256 = found
    return is_inner(name) and is_count(size) and isinstance(sha256, str)


def is_count(found: Any) -> bool:
    """Whether a JSON value is a whole number, not below 0, that anything can be counted by."""
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found < _MOST


class Journal:
    """One writer's journal, each record appended by a single write.

    A kill in the middle of a write can tear the last line only; the next writer of the same file
    starts on a fresh line, and `read_journal` drops what is not whole.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(self._file).st_size
        self._torn = bool(size) and os.pread(self._file, 1, size - 1) != b"\n"

    def append(self, record: Record) -> None:
        """Add one record."""
        self.write(seal(record))

    def write(self, lines: bytes) -> None:
        """Add records by a single write: lines that `seal` returned, one after another."""
        with self._lock:
            if self._torn:
                os.write(self._file, b"\n")
            self._torn = True
            try:
                written = os.write(self._file, lines)
            except OSError as error:
                error.filename = str(self._path)
                raise
            if written != len(lines):  # a full disk takes a part
                raise OSError(
                    f"{self._path}: only {written} of {len(lines)} journal bytes could be written"
                )
            self._torn = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_journal(path: Path) -> list[Record]:
    """Return all whole records of a journal or item index."""
    return [record for _, _, record in numbered_lines(path) if record is not None]


@contextmanager
def without_cycles() -> Iterator[None]:
    """Look for no garbage in cycles: records have none, and thousands are looked at for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def numbered_lines(
    path: Path, keys: Collection[str] | None = None
) -> Iterator[tuple[int, bytes, Record | None]]:
    """Yield line number (from 1), raw line and its record (None if that is none, or not whole).

    With `keys`, no line is left out that tells one of them.
    """
    content = read_regular(path, _LARGEST)
    if keys is not None and len(keys) <= _FEW and not any(k.encode() in content for k in keys):
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        other = keys is not None and (key := _KEY.match(line)) and key[1].decode() not in keys
        if line and not other:
            record = unseal(line)
            yield number, line, record if record is not None and _is_record(record) else None


def count_items(path: Path) -> set[str]:
    """Return the ids that stand in a journal, without checking its lines: quick, for display."""
    found = (_text(match[1]) for match in _ID.finditer(read_regular(path, _LARGEST)))
    return {item_id for item_id in found if item_id is not None}


def item_of(line: bytes) -> str | None:
    """Return the item id that stands in a line, whole or not."""
    found = _ID.match(line)
    return None if found is None else _text(found[1])


def _text(quoted: bytes) -> str | None:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return None
