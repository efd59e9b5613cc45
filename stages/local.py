"""What a stage needs to run and no fingerprint contains: paths, devices, numbers of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ensdistill.data.classes import ClassTable
from ensdistill.data.splits import Picture
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.fingerprint import file_digest
from ensdistill.pipeline.node import AnyWork

PIXELS: Final = ".pixels"  # below the workspace
PIXELS_MARK: Final = "pixels"


@dataclass(frozen=True)
class Factory:
    """A function that returns a network.

    Attributes
    ----------
    root : Path
        The folder that its modules are imported from.
    function : str
        ``"package.module:function"``.
    kwargs : mapping
        Its arguments; files by their absolute paths.
    """

    root: Path
    function: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Local:
    """Paths and runtime that a stage needs and that no fingerprint contains.

    Attributes
    ----------
    pictures : tuple of Picture
        The images of the node's split, sorted by id; their `labels` are the ground truth.
    classes : ClassTable
        The experiment's classes.
    digests : mapping
        Path to sha256, for every image, prediction and label file: what the plan was made for, and
        so what a reader has to find.
    predictions : mapping
        Image id to the path of its PNG, for ground truth and a teacher given by its predictions.
    network, init, state_dict : Path or None
        Folder or file of a network; file of initial weights; of a frozen network's weights.
    trusted : bool
        Whether code that comes with the network may run.
    factory : Factory or None
        What makes the network, where its own code does.
    to_target : mapping
        Teacher's id (or raw value of a PNG) to train id or 255.
    weights : mapping
        Path to sha256 of every file of a network that was not made here.
    device, workers, threads, batch_size, channels_last, max_pixels
        See `experiment.Runtime`.
    checkpoint_every, keep_checkpoints, tensorboard
        See `experiment.Runtime`.
    watch : tuple of Picture
        Labelled images that training watches.
    palette : bool
        Whether raw values are packed colours.
    pixels : Path or None
        Where decoded images are kept; None where they are not.
    """

    pictures: tuple[Picture, ...]
    classes: ClassTable
    device: str
    workers: int
    threads: int | None
    checkpoint_every: int
    keep_checkpoints: int
    digests: Mapping[str, str]
    weights: Mapping[str, str] = field(default_factory=dict)
    predictions: Mapping[str, str] = field(default_factory=dict)
    network: Path | None = None
    init: Path | None = None
    state_dict: Path | None = None
    trusted: bool = False
    factory: Factory | None = None
    to_target: Mapping[int, int] = field(default_factory=dict)
    palette: bool = False
    batch_size: int = 1
    channels_last: bool = True
    max_pixels: int | None = None
    watch: tuple[Picture, ...] = ()
    tensorboard: Path | None = None
    pixels: Path | None = None

    def require_weights(self) -> None:
        """Refuse weights that are not those that the plan was made for, whatever their date says.

        Raises
        ------
        DataError
            If the bytes of a file are others.
        """
        for path, sha256 in self.weights.items():
            if file_digest(path) != sha256:
                raise DataError(
                    f"{path}: changed since this command looked at it; run it again (with --rehash "
                    "if the file's date was kept)"
                )


def local_of(work: AnyWork) -> Local:
    """Return what the work of a stage needs to run."""
    assert isinstance(work.local, Local)
    return work.local
