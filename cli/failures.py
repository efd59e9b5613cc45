"""What ends a command, in a sentence: the file and the cause, and what to do."""

from __future__ import annotations

import errno
import os
from typing import Final

from ensdistill.pipeline.errors import EnsdistillError
from ensdistill.pipeline.escaping import in_a_line

_KEPT: Final = "finished work is kept"
_REMEDIES: Final = {
    errno.ENOSPC: "make room there and run the same command again",
    errno.EDQUOT: "make room there and run the same command again",
    errno.EACCES: "ask for access, or name another place",
    errno.EPERM: "ask for access, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.EMFILE: "allow this process more open files (`ulimit -n 4096`) or take fewer workers",
    errno.ENFILE: "this machine has too many files open",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "its links lead in a circle",
}
_LONGEST: Final = 400  # characters of what a library says


def told(error: BaseException) -> list[str]:
    """Return the lines that say why a command ended."""
    if isinstance(error, EnsdistillError):
        first, *others = map(str, error.args or ("failed",))
        return [f"error: {first}", *others]
    if isinstance(error, OSError):
        return [f"error: {_of_system(error)}; {_KEPT}"]
    # that of torch is known by its name: to import it takes seconds
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return [
            f"error: memory ran out{_says(error)}; take fewer workers or jobs (`runtime`), or a "
            f"smaller batch_size; {_KEPT}"
        ]
    if isinstance(error, RecursionError):
        return [
            "error: something that was read lies too deep in itself, as lists in lists of a YAML "
            f"or JSON file do; {_KEPT}"
        ]
    return [
        f"error: {type(error).__name__}{_says(error)}; nobody foresaw this, and it may be a fault "
        f"of ensdistill: please report it with what `ensdistill -v ...` prints; {_KEPT}"
    ]


def _of_system(error: OSError) -> str:
    """Say what the operating system refused, and of which file."""
    names = (error.filename, error.filename2)
    files = [os.fsdecode(name) for name in names if isinstance(name, str | bytes)]
    where = f"{' -> '.join(files)}: " if files else ""
    remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
    return f"{where}{error.strerror or str(error) or type(error).__name__}{remedy}"


def _says(error: BaseException) -> str:
    """Return what an error says, shortened, after a colon."""
    text = in_a_line(str(error).strip())
    return f": {text[:_LONGEST]}{'...' * (len(text) > _LONGEST)}" if text else ""
