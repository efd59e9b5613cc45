"""Networks that a user's own code builds, in this process.

Training needs autograd, so a probe's or a student's code cannot live in a process of its own, as a
teacher's does (`factory`). Our modules have no bare names, so `model`, `utils` and `data` of theirs
meet only those of another root: each call begins by forgetting the modules of the last one.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import chdir, redirect_stdout
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from torch import nn

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.local import Factory

_INSTALLED: Final = "site-packages"  # of an environment that lies below a root


def build_from_code(factory: Factory) -> nn.Module:
    """Call a user's function and return its network.

    Its modules are imported anew from their sources, in their own folder. They stay importable, as
    a network may import more when it runs, until the next call.

    Raises
    ------
    DataError
        If it cannot be imported or called, or returns something else.
    """
    _forget()
    _require_visible(factory.root)
    importlib.invalidate_caches()
    sys.meta_path.insert(sys.meta_path.index(PathFinder), _Finder(factory.root))
    name, function = factory.function.split(":")
    try:
        # what it prints must not get between our results
        with chdir(factory.root), redirect_stdout(sys.stderr):
            found = getattr(importlib.import_module(name), function)(**factory.kwargs)
    except (Exception, SystemExit) as error:  # a script's parser of arguments ends the process
        raise DataError(
            f"{factory.root}: {factory.function} failed ({type(error).__name__}: {error})"
        ) from error
    return require_network(found, factory.function)


def require_network(found: object, function: str) -> nn.Module:
    """Return what a user's function returned; DataError if it is no network."""
    if not isinstance(found, nn.Module):
        raise DataError(
            f"{function} returned {type(found).__name__}; expected a torch.nn.Module from "
            "(N, 3, H, W) images to (N, C, h, w) logits"
        )
    return found


class _Finder(MetaPathFinder):
    """Finds modules below one root before all others, and remembers which it found."""

    def __init__(self, root: Path):
        self.root = root
        self.found: set[str] = set()
        self.path = list(sys.path)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a module of the root; also where its code extended `sys.path`."""
        places = [str(self.root), *sys.path] if path is None else path
        spec = PathFinder.find_spec(name, places, target)
        if spec is None or not self._owns(spec):
            return None
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _FromSource(name, spec.loader.path)
        self.found.add(name)
        return spec

    def _owns(self, spec: ModuleSpec) -> bool:
        places = [spec.origin] if spec.has_location else spec.submodule_search_locations or []
        return any(p is not None and _below(p, self.root) for p in places)


class _FromSource(SourceFileLoader):
    """Reads no compiled file: those go by seconds and size, and may be another code's."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _forget() -> None:
    """Drop the modules of earlier roots, and what their code put on the path."""
    for finder in [f for f in sys.meta_path if isinstance(f, _Finder)]:
        sys.meta_path.remove(finder)
        for name in finder.found:
            sys.modules.pop(name, None)
        sys.path[:] = [p for p in sys.path if p in finder.path or not _below(p, finder.root)]


def _require_visible(root: Path) -> None:
    """Refuse a root one of whose modules would silently be another that is imported already."""
    names = {p.stem for p in root.iterdir() if p.suffix in (".py", ".so") or p.is_dir()}
    for name in sorted(names & sys.modules.keys() - sys.stdlib_module_names):
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and not _below(file, root):
            raise DataError(
                f"{root}: its module {name!r} is hidden by {file}, which this process uses; "
                "rename it, or move it out of that folder"
            )


def _below(path: str, root: Path) -> bool:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - links lead to code of the root
    if not absolute.is_relative_to(root):
        return False
    return _INSTALLED not in absolute.relative_to(root).parts
