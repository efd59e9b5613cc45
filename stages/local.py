"""What a stage needs to run and no fingerprint contains: paths, devices, numbers of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from ensdistill.data.classes import ClassTable
from ensdistill.data.splits import Picture
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.fingerprint import file_digest
from ensdistill.pipeline.node import AnyWork

PIXELS: Final = ".pixels"  # below the workspace
PIXELS_MARK: Final = "pixels"
FEATURES: Final = ".features"  # below the workspace
FEATURES_MARK: Final = "features"


@dataclass(frozen=True)
class Factory:
    """A function that returns a network: ``"package.module:function"``, imported from `root`.

    Of its arguments files are absolute paths.
    """

    root: Path
    function: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Local:
    """What every stage needs.

    Attributes
    ----------
    pictures : tuple of Picture
        The images of the node's split, sorted by id; their `labels` are the ground truth.
    classes : ClassTable
        The experiment's classes.
    digests : mapping
        Path to sha256, for every image, prediction and label file: what the plan was made for, and
        so what a reader has to find.
    device, workers, threads, batch_size, channels_last, max_pixels
        See `schema.Runtime`.
    pixels : Path or None
        Where decoded images are kept; None where they are not.
    """

    pictures: tuple[Picture, ...]
    classes: ClassTable
    digests: Mapping[str, str]
    device: str
    workers: int
    threads: int | None
    batch_size: int = 1
    channels_last: bool = True
    max_pixels: int | None = None
    pixels: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LabelFiles(Local):
    """What reading PNGs of labels, or of confidences, needs.

    Attributes
    ----------
    predictions : mapping
        Image id to the path of its PNG.
    to_target : mapping
        Raw value to train id or 255.
    palette : bool
        Whether raw values are packed colours.
    """

    predictions: Mapping[str, str]
    to_target: Mapping[int, int] = field(default_factory=dict)
    palette: bool = False


@dataclass(frozen=True, kw_only=True)
class Running(Local):
    """What running a network needs.

    Attributes
    ----------
    network : Path or None
        Its folder or file; None where it is an artifact, or code makes it.
    state_dict : Path or None
        The file of its weights, where they lie elsewhere.
    trusted : bool
        Whether code that comes with it may run.
    factory : Factory or None
        What makes it, where its own code does.
    weights : mapping
        Path to sha256 of every file of a network that was not made here.
    to_target : mapping
        The network's own id to train id or 255.
    features : Path or None
        Where its features of images are kept; None where its backbone is trained as well.
    """

    network: Path | None = None
    state_dict: Path | None = None
    trusted: bool = False
    factory: Factory | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    to_target: Mapping[int, int] = field(default_factory=dict)
    features: Path | None = None

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


@dataclass(frozen=True, kw_only=True)
class Learning(Running):
    """What training a network needs; `to_target` is of the ground truth that it watches.

    Attributes
    ----------
    checkpoint_every, keep_checkpoints, tensorboard
        See `schema.Runtime`.
    init : Path or None
        The file of its first weights.
    watch : tuple of Picture
        Labelled images that it watches.
    palette : bool
        Whether raw values of their labels are packed colours.
    """

    checkpoint_every: int
    keep_checkpoints: int
    tensorboard: Path | None = None
    init: Path | None = None
    watch: tuple[Picture, ...] = ()
    palette: bool = False


LocalT = TypeVar("LocalT", bound=Local)


def local_of(work: AnyWork, kind: type[LocalT]) -> LocalT:
    """Return what the work of a stage needs to run."""
    assert isinstance(work.local, kind)
    return work.local
