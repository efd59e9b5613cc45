"""What a network is made from, and the digest of every file that can change what it says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ensdistill.pipeline.errors import CorruptError, DataError
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.manifest import MANIFEST, read_manifest
from ensdistill.pipeline.opening import real_path
from ensdistill.stages.local import Factory
from ensdistill.stages.networks.folders import require_own_files

DigestOf = Callable[[Path], str]
"""Returns the digest of a file."""


@dataclass(frozen=True)
class Source:
    """What the experiment file says that a network is made from, with whole paths.

    Attributes
    ----------
    where : str
        The key of the experiment file, for errors.
    kind : str
        Its key in `kinds.KINDS`.
    path : Path
        The folder or file that it is; of code, the folder that its modules are imported from.
    function : str or None
        ``"package.module:function"``, where code makes it.
    kwargs, files : mapping
        That function's arguments, and the files whose paths it gets besides.
    state_dict : Path or None
        The file of its weights, where they lie elsewhere.
    trusted : bool
        Whether code that comes with it may run.
    void_channels : tuple of int
        Channels of its output that are no class.
    preprocess : mapping
        The settings that override its own.
    """

    where: str
    kind: str
    path: Path
    function: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    state_dict: Path | None = None
    trusted: bool = False
    void_channels: tuple[int, ...] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key of `path` in the experiment file."""
        return f"{self.where}.{'root' if self.function is not None else self.kind}"

    @property
    def factory(self) -> Factory | None:
        """The function that makes it, where code does."""
        if self.function is None:
            return None
        paths = {key: str(path) for key, path in self.files.items()}
        return Factory(real_path(self.path), self.function, {**self.kwargs, **paths})


class Hashed(NamedTuple):
    """What a network is made from, by content: as it enters a recipe, and the digests of its paths.

    No path is part of the recipe.
    """

    recipe: dict[str, Json]
    digests: dict[str, str]


def hash_file(source: Source, digest: DigestOf, beside: Sequence[Path] = ()) -> Hashed:
    """Return the digest of a network's file, and of those beside it that belong to it.

    In the recipe these go by what follows the network's own name, which means nothing.
    """
    path = source.path
    if not path.is_file():
        raise DataError(f"{source.key}: {path} is no file")
    digests = {p: digest(p) for p in (path, *beside)}
    recipe: dict[str, Json] = {source.kind: digests[path]}
    recipe |= {p.name.removeprefix(path.name): digests[p] for p in beside}
    return Hashed(recipe, {str(p): found for p, found in digests.items()})


def hash_folder(source: Source, digest: DigestOf) -> Hashed:
    """Return the digest of every file of a network's folder that can change its output.

    Where code that comes with it may run, of its modules too.
    """
    folder = source.path
    if not folder.is_dir():
        raise DataError(f"{source.key}: {folder} is no folder")
    require_own_files(folder)
    suffixes = (".json", ".safetensors", ".txt", *([".py"] if source.trusted else []))
    found = sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file())
    if not found:
        raise DataError(f"{source.key}: {folder} holds no .json and .safetensors files")
    recipe: dict[str, Json] = {p.name: digest(p) for p in found if p.name != MANIFEST}
    if (folder / MANIFEST).exists():  # a student trained here says itself what it must be
        for name, (_, written) in read_manifest(folder).files.items():
            if recipe.get(name, written) != written:
                raise CorruptError(
                    f"{source.key}: {folder / name} is not what was written; "
                    "run `ensdistill verify --repair` where it was made"
                )
    return Hashed(recipe, {str(folder / name): str(sha256) for name, sha256 in recipe.items()})


def hash_code(source: Source, digest: DigestOf) -> Hashed:
    """Return the function that makes a network, its arguments, and digests of code and files.

    DataError if a file is missing, or an argument names one.
    """
    root, where = source.path, source.where
    if not root.is_dir():
        raise DataError(f"{source.key}: {root} is no folder")
    gone = [f"{key}: {path}" for key, path in source.files.items() if not path.is_file()]
    if gone:
        raise DataError(f"{where}.files.{gone[0]} is no file")
    code = _code_below(root)
    for key, text in _texts(dict(source.kwargs)):
        path = os.path.join(root, os.path.expanduser(text))  # noqa: PTH111, PTH118 - any text
        if os.path.isfile(path) and os.path.realpath(path) not in map(os.path.realpath, code):  # noqa: PTH113
            raise DataError(
                f"{where}.kwargs.{key}: {text!r} is a file, whose content would not be part of "
                "the network's key; give it in `files`, whose paths the function gets by name"
            )
    recipe: dict[str, Json] = {
        "factory": source.function,
        "kwargs": dict(source.kwargs),
        "files": {key: digest(path) for key, path in source.files.items()},
        "code": {p.relative_to(root).as_posix(): digest(p) for p in code},
    }
    return Hashed(recipe, {str(path): digest(path) for path in (*source.files.values(), *code)})


def require_module(source: Source) -> None:
    """Refuse, with DataError, a function without its module; whether it works shows later."""
    function = source.function or ""
    module = source.path / function.split(":")[0].replace(".", "/")
    if not module.with_suffix(".py").is_file() and not (module / "__init__.py").is_file():
        raise DataError(f"{source.where}.factory: {function} is in no module below {source.path}")


def _code_below(root: Path) -> list[Path]:
    """Return all modules below a folder, through links to folders too, as an import finds them."""
    found, seen = [], set()
    for parent, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        found += [Path(parent) / name for name in names if name.endswith((".py", ".so"))]
    return sorted(found)


def _texts(content: Json, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in a JSON value, with their keys."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, (dict, list, tuple)):
        for k, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _texts(value, f"{key}.{k}" if key else str(k))
