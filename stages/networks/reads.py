"""Files that a network's own code reads and that are no part of its key."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from ensdistill.stages.networks.state_dicts import some_of

# What opens files out of Python's sight, by the modules that know it.
_NATIVE: Final = (
    ("safetensors", "safe_open"),
    ("safetensors.torch", "safe_open"),
    ("transformers.modeling_utils", "safe_open"),
    ("torch.jit", "load"),
    ("torch.export", "load"),
)
# Below these lies what belongs to the system, to Python, or is made of other files.
_SYSTEM: Final = (
    "/bin",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
)
_OF_PYTHON: Final = ("bin", "etc", "include", "lib", "lib64", "share", "ssl")
_OF_HOME: Final = (
    ".config",
    ".fonts",
    ".local/share/fonts",
    ".cache/fontconfig",
    ".cache/matplotlib",
    ".cache/huggingface/token",
    ".cache/torch/kernels",
    ".cache/torch_extensions",
    ".nv",
    ".triton",
)
# The last holds transformers' copies of a folder's own modules, which are hashed there.
_PACKAGES: Final = {"site-packages", "dist-packages", "__pycache__", "transformers_modules"}
_OURS: Final = [
    os.path.realpath(Path(__file__).parents[2] / name)
    for name in ("cli", "data", "pipeline", "stages")
]
_GRAIN: Final = 0.05  # seconds by which a file may seem older than it is


class Reads:
    """Notes the files that are opened for reading within `with reads:`, of a network's own code.

    It sees what Python opens, compiled code that is loaded, and what safetensors and torch read by
    themselves; not what other compiled libraries do.

    Parameters
    ----------
    hashed : iterable of str
        The files that are part of the network's key.
    root : Path
        The folder of the code. All that lies there counts; elsewhere only what belongs neither to
        the system nor to an installed package, and in the temporary folder what was there before.
    """

    def __init__(self, hashed: Iterable[str], root: Path):
        self._hashed = {os.path.realpath(path) for path in hashed}
        self._root = os.path.realpath(root)
        self._begin = time.time() - _GRAIN
        # of these the sources may be read to show where something was called
        self._loaded: set[str | None] = {
            getattr(module, "__file__", None) for module in [*sys.modules.values()]
        }
        self._opened: dict[str, None] = {}
        self._others: set[threading.Thread] = set()
        self._patched = ExitStack()

    def __enter__(self) -> Reads:
        """Begin to note what this thread opens, and those that it starts."""
        _install()
        self._others = {*threading.enumerate()} - {threading.current_thread()}
        for module, name in _NATIVE:
            if module in sys.modules:
                original = getattr(sys.modules[module], name)
                setattr(sys.modules[module], name, _told(original))
                self._patched.callback(setattr, sys.modules[module], name, original)
        _noting.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Note nothing more."""
        _noting.remove(self)
        self._patched.close()

    def note(self, file: Any) -> None:
        """Note a file that is about to be opened for reading."""
        named = isinstance(file, (str, bytes, os.PathLike))
        if named and threading.current_thread() not in self._others:
            with suppress(OSError):  # of the working folder, where it is gone
                self._opened[os.path.abspath(os.fsdecode(file))] = None  # noqa: PTH100

    def unhashed(self) -> list[str]:
        """Return the files that were read and are not part of the key, code last."""
        found = {_source(path) for path in self._opened} - self._loaded
        return sorted(filter(self._counts, found), key=lambda p: (p.endswith((".py", ".so")), p))

    def remark(self) -> str | None:
        """Return what is to be said about them, None if there are none."""
        found = self.unhashed()
        if not found:
            return None
        return (
            "its code reads files that are not part of its key, so that a change of them goes "
            f"unnoticed: {', '.join(some_of(found))}. A `factory` gets such files by its `files:`, "
            "and code from below its `root`"
        )

    def _counts(self, path: str) -> bool:
        real = os.path.realpath(path)
        if real in self._hashed or not Path(real).is_file() or _PACKAGES & set(Path(real).parts):
            return False
        if Path(real).is_relative_to(self._root):
            return True
        if any(Path(real).is_relative_to(folder) for folder in _OURS):  # perhaps a temporary clone
            return False
        if Path(real).is_relative_to(os.path.realpath(tempfile.gettempdir())):
            return Path(real).stat().st_ctime < self._begin
        return not any(Path(real).is_relative_to(folder) for folder in _system())


_noting: list[Reads] = []


@functools.cache
def _install() -> None:
    sys.addaudithook(_hear)  # for as long as the process lives


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _noting:
        return
    if event == "open" and len(arguments) == 3:
        file, _, flags = arguments
        fresh = os.O_TRUNC | os.O_EXCL | os.O_APPEND
        if flags & os.O_ACCMODE == os.O_WRONLY or flags & fresh:
            return
    elif event == "ctypes.dlopen":
        (file,) = arguments
    elif event == "import":  # of compiled modules it has the file
        file = arguments[1]
    else:
        return
    for reads in _noting:
        reads.note(file)


def _told(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that opens files, and says so before."""

    @functools.wraps(original)
    def call(*arguments: Any, **more: Any) -> Any:
        for file in (*arguments, *more.values()):
            if isinstance(file, (str, os.PathLike)):
                sys.audit("open", file, "r", os.O_RDONLY)
        return original(*arguments, **more)

    return call


def _source(path: str) -> str:
    """Return the source of a compiled module, of which Python may open that alone."""
    if path.endswith(".pyc"):
        with suppress(ValueError):
            return importlib.util.source_from_cache(path)
    return path


@functools.cache
def _system() -> list[str]:
    """Return the folders of the system and of Python."""
    prefixes = [
        Path(prefix) / name for prefix in (sys.prefix, sys.base_prefix) for name in _OF_PYTHON
    ]
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    folders: list[Any] = [*_SYSTEM, *prefixes, *python]
    folders += [os.path.expanduser(f"~/{name}") for name in _OF_HOME]  # noqa: PTH111 - or none
    return [os.path.realpath(folder) for folder in folders]
