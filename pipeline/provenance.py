"""How an artifact came about: recorded in its manifest, never hashed."""

from __future__ import annotations

import datetime
import resource
import shlex
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

_BEGUN: Final = datetime.datetime.now(datetime.UTC)
_PACKAGES: Final = ("ensdistill", "torch", "numpy", "zarr", "numba", "pillow", "transformers")


def facts(folder: Path) -> dict[str, Any]:
    """Return versions, platform, git state, the command and when it began.

    Parameters
    ----------
    folder : Path
        A folder of the user's repository, if there is one.
    """
    import platform

    return {
        "command": shlex.join(sys.argv),
        "begun": _BEGUN.isoformat(),
        "git": git_state(folder),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


@cache
def _version(name: str) -> str | None:
    import importlib.metadata  # half of what `status` could afford, and it needs none of it

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and whether files differ from it; None outside of a repository."""
    import subprocess

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def forget_peak_memory() -> None:
    """Begin to measure anew, where the system can (Linux); else the peak is the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes, without its children's."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
