"""Where an export goes, and what it may be made from."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ensdistill.pipeline.errors import ConfigError, CorruptError, NotReadyError
from ensdistill.pipeline.manifest import REPAIR, Artifact
from ensdistill.pipeline.plan import Decision, State
from ensdistill.pipeline.verify import damaged_files


class Written(NamedTuple):
    """A file that was written; `name` is its path below the exported folder, or beside the file."""

    name: str
    bytes: int
    sha256: str


def write(folder: Path, name: str, content: bytes) -> Written:
    """Write a file below a folder, and the folders on its way."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return summed(name, content)


def summed(name: str, content: bytes) -> Written:
    """Return what is said of a file that holds this."""
    return Written(name, len(content), hashlib.sha256(content).hexdigest())


def require_absent(*paths: Path) -> None:
    """Refuse to write where something lies.

    Raises
    ------
    ConfigError
        If anything has one of these names, be it a broken link.
    """
    for path in paths:
        if os.path.lexists(path):
            raise ConfigError(f"{path} exists, and nothing is overwritten; give another name")


@contextmanager
def drafted(*paths: Path) -> Iterator[Path]:
    """Yield a new folder beside `paths`; what lies in it gets their names in the end, in order.

    A process that is killed leaves only that hidden folder; one that fails or is interrupted
    leaves nothing.
    """
    require_absent(*paths)
    parent = paths[-1].absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{paths[-1]}: {error.filename} is no folder; name another") from error
    draft = parent / f".{paths[-1].name}.draft-{os.urandom(4).hex()}"
    draft.mkdir()
    try:
        yield draft
        require_absent(*paths)  # it may have taken long
        for path in paths:
            (draft / path.name).rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_fresh(decisions: Mapping[str, Decision], node_id: str) -> Artifact:
    """Return the artifact of a node, all files of which but its items' are whole.

    Raises
    ------
    NotReadyError
        If it is not fresh.
    CorruptError
        If it is damaged.
    """
    decision = decisions[node_id]
    if decision.state is State.CORRUPT:
        raise CorruptError(decision.reason)
    if decision.state is not State.FRESH:
        raise NotReadyError(
            f"{node_id} is {decision.state} ({decision.reason}), and an export computes nothing; "
            f"run `ensdistill {decision.node.command}` first"
        )
    assert decision.artifact is not None
    damage = next(damaged_files(decision.artifact), None)
    if damage is not None:
        raise CorruptError(f"{damage}; {REPAIR}")
    return decision.artifact


def as_json(artifact: Artifact, written: Sequence[Written], **more: Any) -> dict[str, Any]:
    """Return what an export says of itself: what it was made from, and each file."""
    return {
        "node": artifact.manifest.node,
        "fingerprint": artifact.manifest.fingerprint,
        **more,
        "bytes": sum(one.bytes for one in written),
        "files": {w.name: {"bytes": w.bytes, "sha256": w.sha256} for w in sorted(written)},
    }
