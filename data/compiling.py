"""What the compiled loops share: how they are compiled, and words of eight pixels."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.sigutils import normalize_signature
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

EACH: Final = np.uint64(0x0101010101010101)
"""Times a byte: a word of eight such bytes."""
BYTE: Final = np.uint64(255)
EIGHT: Final = np.uint64(8)

_F = TypeVar("_F", bound=Callable[..., Any])


_HOME: Final = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~"))  # noqa: PTH111


class _Places(CompileResultCacheImpl):  # type: ignore[misc]
    """Where numba looks for a place; without a home it would make a folder called `~` here."""

    _locator_classes: ClassVar = [
        locator
        for locator in CompileResultCacheImpl._locator_classes
        if os.path.isabs(_HOME) or "UserWide" not in locator.__name__  # noqa: PTH117
    ]


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's cache of a function, of which nothing need be there: it is compiled instead."""

    _impl_class = _Places

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for these types, None if it is not there or spoilt."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # a spoilt pickle raises whatever it trips over
            with suppress(Exception):
                self.flush()  # or it would stay as it is
            return None
        if found is None or found.signature.args != normalize_signature(sig)[0]:
            return None  # of two that were saved at the same moment one may lie under both names
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if that can be."""
        with suppress(Exception):  # a full disk, a folder that is gone
            super().save_overload(sig, data)


def jit(function: _F) -> _F:
    """Compile a function when it is first called, or load it as it was compiled before."""
    compiled = numba.njit(nogil=True)(function)
    if (cache := _cache(function)) is not None:
        compiled._cache = cache
    return cast(_F, compiled)


def cache_folder() -> str | None:
    """Return where compiled code is kept; None if each process has to compile it anew."""
    cache = _cache(cache_folder)
    return None if cache is None else str(cache.cache_path)


def _cache(function: Callable[..., Any]) -> _Cache | None:
    """Return the cache of a function, None where there is no place for one.

    Code is loaded from it, so that nobody else may write there. The installation's own folder needs
    no such test: Python loads code from it as well.
    """
    try:
        cache = _Cache(function)
    except (RuntimeError, OSError):  # neither NUMBA_CACHE_DIR, the installation nor the home
        return None
    folder = Path(cache.cache_path)
    if folder.parent == Path(function.__code__.co_filename).parent or _is_ours(folder):
        return cache
    return None


def _is_ours(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & stat.S_IWOTH
