"""The student: as a folder of transformers, as ONNX, or as plain tensors; each with its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.escaping import as_utf8
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.export.card import card
from ensdistill.stages.export.target import as_json, drafted, require_absent, require_fresh, summed
from ensdistill.stages.local import Learning
from ensdistill.stages.networks.answers import Reading
from ensdistill.stages.networks.folders import WEIGHTS, read_description
from ensdistill.stages.networks.frozen import load_student
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import HfSegmentation, Padded, hf_segmentation, quiet
from ensdistill.stages.reading.outputs import require_outside_artifacts

Form = Literal["hf", "onnx", "state-dict"]

_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
_TOLERANCE = 1e-4  # of the largest logit
_INSTEAD = "export it `--as state-dict`, or `--as hf` if it is of transformers"


@dataclass(frozen=True)
class Order:
    """The student that is to be exported, and all `paths` that are to be made, the target last."""

    experiment: Experiment
    decisions: Mapping[str, Decision]
    artifact: Artifact
    form: Form
    paths: tuple[Path, ...]

    @property
    def target(self) -> Path:
        """The folder or file that was asked for."""
        return self.paths[-1]

    @property
    def local(self) -> Learning:
        """Paths and runtime of the student."""
        work = self.decisions["student"].work
        assert work is not None and isinstance(work.local, Learning)
        return work.local

    @property
    def summary(self) -> dict[str, Any]:
        """What is said of it before anything is written."""
        return {"target": str(self.target), "form": self.form}


@dataclass(frozen=True)
class Student:
    """A student to be exported.

    Attributes
    ----------
    network : nn.Module
        (N, 3, H, W) float32 to (N, C, h, w) logits, for H and W that are multiples of `divisor`.
    divisor : int
        What images are to be padded to, at the bottom and right and with zeros.
    preprocessing : Preprocessing
        From photographs to its input.
    """

    network: nn.Module
    divisor: int
    preprocessing: Preprocessing


def order(
    experiment: Experiment, decisions: Mapping[str, Decision], target: Path, form: Form
) -> Order:
    """Return what is to be exported, after refusing what cannot be.

    The target is a folder (``hf``) or a file, whose name gets the form's ending if it has not got
    it.

    Raises
    ------
    ConfigError
        If something of that name exists, or it is among artifacts.
    NotReadyError
        If the student is not published and fresh.
    DataError
        If it cannot be had in this form.
    """
    if form == "onnx":
        _require_onnx()
    endings = {
        "hf": (),
        "onnx": (".onnx.md", ".onnx"),
        "state-dict": (".safetensors.md", ".json", ".safetensors"),
    }
    own = endings[form]
    base = target.with_suffix("") if own and target.suffix == own[-1] else target
    paths = tuple(base.with_name(base.name + ending) for ending in own) or (target,)
    require_absent(*paths)
    require_outside_artifacts(paths[-1], experiment)
    artifact = require_fresh(decisions, "student")
    description = read_description(artifact.path)
    if form == "hf":
        _require_expressible(description)
    return Order(experiment, decisions, artifact, form, paths)


def _require_expressible(description: Mapping[str, Any]) -> None:
    """Refuse a student that no folder of transformers can say."""
    architecture = description["architecture"]
    other = "export it `--as onnx` or `--as state-dict`"
    if not _of_transformers(architecture):
        name = architecture if isinstance(architecture, str) else architecture["factory"]
        raise DataError(f"the student's network, {name}, is none of transformers; {other}")
    if description["preprocessing"]["channels"] != "rgb":
        raise DataError(
            "the student sees BGR, which no image processor of transformers for segmentation "
            f"gives it; {other}"
        )


def _of_transformers(architecture: Any) -> bool:
    if isinstance(architecture, str):
        return architecture == "mobilenetv2-deeplabv3plus"
    return "hf_config" in architecture


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"ONNX needs packages that are not there ({error}); pip install 'ensdistill[onnx]'"
        ) from error


def export(given: Order, progress: Progress) -> dict[str, Any]:
    """Write an export and return what was written, as JSON-able data.

    Raises
    ------
    DataError
        If the network cannot be exported, or what was exported does not say the same.
    """
    progress.start(3, 0, "steps")
    description = read_description(given.artifact.path)
    *others, target = given.paths
    with drafted(*given.paths) as draft:
        made = draft / target.name
        if given.form == "state-dict":
            _write_tensors(given, description, made, draft / others[-1].name)
            progress.advance(2)
        else:
            student = open_student(given)
            progress.advance()
            if given.form == "hf":
                _write_folder(student, description["classes"], made)
                again: nn.Module = hf_segmentation(made)
            else:
                again = _write_onnx(given, student, description["classes"], made)
            progress.advance()
            require_same(student, again, target)
        text = card(
            given.experiment, given.decisions, given.artifact, description, given.form, target.name
        )
        place = made / "README.md" if given.form == "hf" else draft / others[0].name
        place.write_bytes(as_utf8(text))
        progress.advance()
        for path in draft.rglob("*.safetensors"):
            shutil.copymode(place, path)  # its library lets nobody else read it
        root = made if given.form == "hf" else draft
        written = [
            summed(path.relative_to(root).as_posix(), path.read_bytes())
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        ]
    return as_json(given.artifact, written, **given.summary)


def open_student(given: Order) -> Student:
    """Return the student without what only this package puts around a network."""
    if given.local.factory is not None:
        given.local.require_weights()
    module, declared = load_student(given.artifact.path, {}, given.local)
    seen = Preprocessing.from_settings(declared)
    module.eval()
    if isinstance(module, Padded):
        return Student(module.model, module.divisor, seen)
    return Student(module, 1, seen)


def _write_folder(student: Student, classes: list[str], folder: Path) -> None:
    """Write what ``from_pretrained`` reads."""
    assert isinstance(student.network, HfSegmentation)
    model: Any = student.network.model
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: k for k, name in enumerate(classes)}
    with quiet():
        model.save_pretrained(folder)
    seen = student.preprocessing
    processor: dict[str, Any] = {
        # the plainest one: nothing but what follows
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": seen.size is not None,
        "resample": _RESAMPLE[seen.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / seen.scale,
        "do_normalize": True,
        "image_mean": list(seen.mean),
        "image_std": list(seen.std),
        "do_reduce_labels": False,
    }
    if seen.size is not None:
        processor["size"] = {"height": seen.size[0], "width": seen.size[1]}
    atomic.write_json(folder / "preprocessor_config.json", processor, indent=2)


def _write_tensors(given: Order, description: Mapping[str, Any], file: Path, about: Path) -> None:
    """Write the tensors by the names that the network's own code has for them."""
    tensors = load_file(given.artifact.path / WEIGHTS)
    ours = (description.get("divisor", 1) > 1) + _of_transformers(description["architecture"])
    prefix = "model." * ours  # of `Padded` and `HfSegmentation`
    save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, file)
    made = given.artifact.manifest
    facts = {"fingerprint": made.fingerprint, "digest": made.content}
    colours = [list(colour) for colour in given.experiment.classes.colours]
    atomic.write_json(about, {**description, "colours": colours, **facts}, indent=1)


def _write_onnx(given: Order, student: Student, classes: list[str], file: Path) -> nn.Module:
    """Write the network as ONNX and return what onnxruntime makes of the file."""
    from ensdistill.stages.export.onnx import write_onnx
    from ensdistill.stages.networks.onnx import onnx_network

    seen, made = student.preprocessing, given.artifact.manifest
    side = _side(student.divisor)
    with torch.inference_mode():
        found: Tensor = student.network(torch.zeros(1, 3, 4 * side, 4 * side))
    metadata: dict[str, Any] = {
        "classes": classes,
        "stride": 4 * side / found.shape[-1],
        "divisor": student.divisor,
        "fingerprint": made.fingerprint,
        "digest": made.content,
        **seen.to_json(),
    }
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    try:
        write_onnx(student.network, file, torch.zeros(2, 3, 3 * side, 4 * side), texts)
    except Exception as error:  # the exporter's own have no common kind
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{given.target.name}: torch cannot export this network with sizes left open "
            f"({type(error).__name__}: {reason}); {_INSTEAD}"
        ) from error
    return onnx_network(file, torch.device("cpu"), given.local.threads)


def _side(divisor: int) -> int:
    """Return a small number of pixels that is a multiple of a divisor."""
    return divisor * -(-32 // divisor)


def require_same(student: Student, again: nn.Module, target: Path) -> None:
    """Refuse an export that does not return the student's logits.

    At two sizes and for a batch of two; where its divisor allows, also at a size that no stride
    divides. Logits that differ by so little have the same argmax, but where the two largest are
    as near to each other.

    Raises
    ------
    DataError
        If one of them differs by more than 1e-4 of the largest.
    """
    side = _side(student.divisor)
    odd = (3 * side + 1, 4 * side + 3) if student.divisor == 1 else (4 * side, 3 * side)
    again.eval()
    generator = torch.Generator().manual_seed(0)
    for size in ((2 * side, 3 * side), odd):
        images = torch.randn(2, 3, *size, generator=generator)
        with torch.inference_mode():
            expected: Tensor = student.network(images)
            try:
                found = Reading().read(again(images), len(images))
            except Exception as error:
                reason = str(error).strip().split("\n")[0]
                raise DataError(_differs(target, size, f"fails ({reason})")) from error
        if found.shape != expected.shape:
            shapes = f"{tuple(found.shape)} and not {tuple(expected.shape)}"
            raise DataError(_differs(target, size, f"returns {shapes}"))
        apart = float((found - expected).abs().max())
        if not apart <= _TOLERANCE * float(expected.abs().max()):
            raise DataError(_differs(target, size, f"returns logits that differ by {apart:.2g}"))


def _differs(target: Path, size: tuple[int, int], what: str) -> str:
    return (
        f"{target.name}: what was exported {what} for images of {size[0]}x{size[1]}, and is not "
        f"kept; this network cannot be had in this form with sizes left open: {_INSTEAD}"
    )
