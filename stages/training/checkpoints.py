"""Checkpoints: published in one step, the last few kept, each proving itself."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from ensdistill.pipeline import atomic

_NAME: Final = re.compile(r"draft-checkpoint-(\d{8})\.pt")  # draft-*: goes at publishing


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a draft by the number of steps done, the last first."""
    found = ((_NAME.fullmatch(p.name), p) for p in folder.glob("draft-checkpoint-*"))
    return dict(sorted(((int(m[1]), p) for m, p in found if m), reverse=True))


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint, and forget all but the last `keep`."""
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    content = buffer.getvalue()
    # torch does not notice a flipped bit in a tensor
    sha256 = hashlib.sha256(content).hexdigest().encode()
    atomic.write_bytes(folder / f"draft-checkpoint-{step:08}.pt", sha256 + content)
    for path in list(checkpoints(folder).values())[keep:]:
        path.unlink(missing_ok=True)


def last_checkpoint(folder: Path, say: Callable[[str], object]) -> dict[str, Any] | None:
    """Return the last checkpoint that is whole; None if there is none.

    One that is not what was written is left out, and `say` is told.
    """
    for step, path in checkpoints(folder).items():
        content = path.read_bytes()
        sha256, content = content[:64], content[64:]
        if hashlib.sha256(content).hexdigest().encode() == sha256:
            found: dict[str, Any] = torch.load(io.BytesIO(content), "cpu", weights_only=True)
            return found
        say(f"{path}: the checkpoint of step {step} is damaged and left out")
    return None
