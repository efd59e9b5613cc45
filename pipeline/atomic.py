"""Writing a file so that a reader sees the old bytes or the new ones, never a mixture."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with `content` in one step (temporary file beside it, then rename)."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Replace `path` with `value` as JSON, keys in the order given."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    # a file's name need not be UTF-8; `json.loads` reads its bytes back as they were
    write_bytes(path, text.encode(errors="surrogatepass") + b"\n")
