"""Append-only journals of finished items: what makes a killed run resume per image."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


class Journal:
    """One writer's journal: a JSON object a line, each appended by a single write.

    A kill in the middle of a write can tear the last line only; the next writer of the same file
    starts on a fresh line, and `read_journal` drops what does not parse.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def append(self, record: dict[str, Any]) -> None:
        """Add one record."""
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        line = text.encode(errors="surrogatepass") + b"\n"
        with self._lock:
            written = os.write(self._file, line)
            if written != len(line):  # a full disk writes a part; end the torn line
                os.write(self._file, b"\n")
                raise OSError(f"only {written} of {len(line)} journal bytes could be written")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return all whole records of `path`, torn lines left out."""
    records = []
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records
