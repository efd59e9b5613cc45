"""The menu of the kinds of networks: what belongs to each, and how it is opened.

Light: `status` reads it. What is heavy is imported where a network is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.local import Running
from ensdistill.stages.networks.files import (
    DigestOf,
    Hashed,
    Source,
    hash_code,
    hash_file,
    hash_folder,
    require_module,
)
from ensdistill.stages.networks.folders import (
    hf_preprocessing,
    network_classes,
    onnx_data_files,
    require_trusted_code,
)
from ensdistill.stages.networks.whole import SAVED, require_whole

if TYPE_CHECKING:
    import torch

    from ensdistill.stages.networks.factory import FactoryNetwork
    from ensdistill.stages.networks.frozen import FrozenNetwork, Loaded

    Opened = FrozenNetwork | FactoryNetwork

Recipe = Mapping[str, Any]

SETTINGS: Final = ("divisor", "revision", "state_dict", "precision")
"""What does not go with every kind of network; see `experiment.networks.Network`."""


class NetworkKind:
    """A kind of network; what is said here holds of a file of weights that runs no code.

    Attributes
    ----------
    key : str
        What it is called in the experiment file, and in recipes.
    package : str
        What runs it.
    extra : str or None
        The optional dependencies that bring the package.
    runs_code : bool
        Whether code that came with it runs here, whatever it holds; it then needs `trust: code`.
    settings : tuple of str
        Those of `SETTINGS` that go with it.
    folder : bool
        Whether it is given by a folder, not by a file.
    recorded : bool
        Whether it was recorded for tensors that lie in one way (see `experiment.Runtime`).
    trainable : bool
        Whether a probe or student may be built from it.
    """

    key: ClassVar[str]
    package: ClassVar[str] = "torch"
    extra: ClassVar[str | None] = None
    runs_code: ClassVar[bool] = False
    settings: ClassVar[tuple[str, ...]] = ("divisor", "precision")
    folder: ClassVar[bool] = False
    recorded: ClassVar[bool] = False
    trainable: ClassVar[bool] = False

    def hash(self, source: Source, digest: DigestOf) -> Hashed:
        """Return its files that can change what it says; raises as `hashed`."""
        return hash_folder(source, digest) if self.folder else hash_file(source, digest)

    def inspect(self, source: Source) -> list[str] | int | None:
        """Refuse, with DataError, what shows to be wrong without loading it.

        Returns the names of its classes, their number where it gives no names, or None where only
        its answers tell.
        """
        if not source.path.is_file():
            raise DataError(f"{source.key}: {source.path} is no file")
        require_whole(source.path)
        return None

    def load(self, path: Path, recipe: Recipe, local: Running, device: torch.device) -> Loaded:
        """Return a network that is run in this process, and the preprocessing it comes with.

        Takes and raises what `open_network` does; the network may lie on another device than that
        on which it is to run.
        """
        raise NotImplementedError

    def open(self, path: Path | None, recipe: Recipe, local: Running) -> Opened:
        """Return the network as it is run (see `open_network`)."""
        from ensdistill.stages.networks.frozen import open_here

        assert path is not None
        return open_here(self.load, path, recipe, local, recorded=self.recorded)


class Hf(NetworkKind):
    """A folder of transformers, of this machine or of a hub."""

    key = "hf"
    package = "transformers"
    settings = SETTINGS
    folder = True
    trainable = True

    def inspect(self, source: Source) -> list[str] | int:
        """Return its classes by `id2label`, without the void channels."""
        found = _classes(source)
        if isinstance(found, list) and len({*found}) != len(found):
            twice = next(name for name in found if found.count(name) > 1)
            raise DataError(
                f"{source.key}: {source.path}/config.json has {twice!r} twice in `id2label`; "
                "expected each class once, and `void_channels` for the channels that are none"
            )
        require_trusted_code(source.path, trusted=source.trusted)
        hf_preprocessing(source.path, source.preprocess)
        return found

    def load(self, path: Path, recipe: Recipe, local: Running, device: torch.device) -> Loaded:
        """Return it, its weights from its folder or a checkpoint."""
        from ensdistill.stages.networks.state_dicts import load_weights
        from ensdistill.stages.networks.universal import hf_teacher

        network = hf_teacher(path, trusted=local.trusted, weights=local.state_dict is None)
        if local.state_dict is not None:
            ignore = recipe.get("ignore_keys", ())
            load_weights(network, local.state_dict, trusted=local.trusted, ignore=ignore)
        return network, hf_preprocessing(path, recipe["preprocess"])


class Student(NetworkKind):
    """The folder of a probe or student that was trained here."""

    key = "student"
    settings = ("precision",)
    folder = True

    def inspect(self, source: Source) -> list[str] | int:
        """Return the classes that it was trained for, without the void channels."""
        return _classes(source)

    def load(self, path: Path, recipe: Recipe, local: Running, device: torch.device) -> Loaded:
        """Return it as it was trained."""
        from ensdistill.stages.networks.frozen import load_student

        return load_student(path, recipe, local)


class Onnx(NetworkKind):
    """An ONNX model."""

    key = "onnx"
    package = "onnxruntime"
    extra = "onnx"
    settings = ("divisor",)
    recorded = True

    def hash(self, source: Source, digest: DigestOf) -> Hashed:
        """Return the model, and the files beside it that may hold its weights."""
        return hash_file(source, digest, onnx_data_files(source.path))

    def load(self, path: Path, recipe: Recipe, local: Running, device: torch.device) -> Loaded:
        """Return a session of onnxruntime."""
        from ensdistill.stages.networks.onnx import onnx_network

        return onnx_network(path, device, local.threads), {}


class Exported(NetworkKind):
    """What `torch.export.save` wrote."""

    key = "exported"
    runs_code = True
    recorded = True

    def load(self, path: Path, recipe: Recipe, local: Running, device: torch.device) -> Loaded:
        """Return the program."""
        from ensdistill.stages.networks.exported import exported_network

        return exported_network(path, device), {}


class TorchScript(NetworkKind):
    """What `torch.jit.save` wrote."""

    key = "torchscript"
    runs_code = True
    recorded = True

    def load(self, path: Path, recipe: Recipe, local: Running, device: torch.device) -> Loaded:
        """Return the program."""
        from ensdistill.stages.networks.exported import torchscript_network

        return torchscript_network(path, device), {}


class Code(NetworkKind):
    """A function of a user's modules, which runs in a process of its own."""

    key = "factory"
    runs_code = True
    settings = ("divisor", "state_dict", "precision")
    folder = True
    trainable = True

    def hash(self, source: Source, digest: DigestOf) -> Hashed:
        """Return the function, its arguments, all modules below its folder, and its files."""
        return hash_code(source, digest)

    def inspect(self, source: Source) -> None:
        """Refuse a function without its module, and files of weights that are not whole."""
        require_module(source)
        for file in source.files.values():
            if file.suffix in SAVED and file.is_file():
                require_whole(file)

    def open(self, path: Path | None, recipe: Recipe, local: Running) -> FactoryNetwork:
        """Return it in its process."""
        from ensdistill.stages.networks.factory import FactoryNetwork

        assert local.factory is not None
        local.require_weights()
        return FactoryNetwork(local.factory, recipe, local)


KINDS: tuple[NetworkKind, ...] = (Hf(), Student(), Onnx(), Exported(), TorchScript(), Code())
"""In the order in which they are named to a user."""


def kind_of(key: str) -> NetworkKind:
    """Return a kind of network by its key."""
    return next(kind for kind in KINDS if kind.key == key)


def hashed(source: Source, digest: DigestOf) -> Hashed:
    """Return what a network is made from.

    Raises
    ------
    DataError
        If a file is missing, or the network would read others than those that are hashed.
    CorruptError
        If a network that was trained here is not what was written.
    """
    recipe, digests = kind_of(source.kind).hash(source, digest)
    file = source.state_dict
    if file is None:
        return Hashed(recipe, digests)
    if not file.is_file():
        raise DataError(f"{source.where}.state_dict: {file} is no file")
    return Hashed(recipe | {"state_dict": digest(file)}, digests | {str(file): digest(file)})


def open_network(path: Path | None, recipe: Recipe, local: Running) -> Opened:
    """Open a teacher, probe or student.

    Parameters
    ----------
    path : Path or None
        The network's folder or file, or an artifact of the stages `probe` and `student`; nobody
        asks for that of a network that code makes.
    recipe : mapping
        ``source``, the kind of network, and what else of a teacher's recipe says how to run it.
    local : Running
        Device and threads, and the code of a network that this experiment makes by code.

    Raises
    ------
    DataError
        If there is no such network, or its files have changed since they were hashed.
    """
    return kind_of(recipe["source"]).open(path, recipe, local)


def _classes(source: Source) -> list[str] | int:
    """Return the classes of a folder's network, without the void channels."""
    weights = source.state_dict is None
    found = network_classes(source.path, source.kind, source.key, weights=weights)
    if isinstance(found, int):
        return found - len(source.void_channels)
    return [name for k, name in enumerate(found) if k not in source.void_channels]
