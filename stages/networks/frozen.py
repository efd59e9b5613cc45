"""Networks that are only run: teachers, probes and students."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ensdistill.data.pictures import UInt8, read_image
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError
from ensdistill.stages.functional.unify import unify
from ensdistill.stages.graph import Factory, Local
from ensdistill.stages.networks.folders import (
    NETWORK,
    hf_preprocessing,
    read_description,
    require_no_code,
)
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import (
    HfSegmentation,
    Padded,
    build_student,
    hf_segmentation,
    pad_to_multiple,
)

WEIGHTS: Final = "model.safetensors"


class FrozenNetwork:
    """A network in evaluation mode, from one photograph to its logits.

    Parameters
    ----------
    module : nn.Module
        (N, 3, H, W) float32 to (N, C, h, w).
    preprocessing : Preprocessing
        What happens to the photograph before.
    device : torch.device
        Where it runs.
    classes : int, optional
        Channels that its logits must have.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        classes: int | None = None,
    ):
        self._classes = classes
        self.module = module.to(device).eval()
        self.preprocessing = preprocessing
        self.device = device

    @property
    def align_corners(self) -> bool:
        """How its logits are to be resized."""
        return self.preprocessing.align_corners

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the last bits of its results."""
        return platform_facts(self.device)

    def label(self, image: Path, sha256: str) -> UInt8:
        """Return the (H, W) uint8 argmax labels of one photograph, in the network's own ids.

        Raises
        ------
        DataError
            If the file is another one than was planned for, or the output is not a number.
        """
        photograph = read_image(image, sha256)
        height, width, _ = photograph.shape
        logits = self.logits(photograph)
        labels, sure = unify(logits, (height, width), align_corners=self.align_corners)
        if torch.isnan(sure).any():
            raise DataError(f"the network's output for {image} is not a number")
        return np.asarray(labels.cpu().numpy(), np.uint8)

    def close(self) -> None:
        """Nothing to do: it goes with this process."""

    def logits(self, image: UInt8) -> Tensor:
        """Return the (C, h, w) float32 logits of one (H, W, 3) uint8 RGB photograph."""
        resized = self.preprocessing.resize(image)
        batch = torch.tensor(resized).permute(2, 0, 1)[None].to(self.device)
        with torch.inference_mode():
            found = self.module(self.preprocessing.normalise(batch))
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise DataError(
                f"the network returned {type(found).__name__}; expected (N, C, h, w) logits"
            )
        if self._classes not in (None, found.shape[1]):
            raise DataError(
                f"the network has {found.shape[1]} classes, the declared table {self._classes}; "
                "declare the teacher's own `classes:`"
            )
        return found[0].float()


def pick_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA where there is one.

    Raises
    ------
    DataError
        If the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DataError(f"runtime.device: {name!r} is no device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"runtime.device: {name} was asked for, but torch sees no CUDA device")
    return device


def platform_facts(device: torch.device) -> dict[str, Any]:
    """Return what decides the last bits of a result, for the manifest."""
    return {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}


def set_threads(threads: int | None) -> None:
    """Set torch's threads; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def load_network(folder: Path | None, recipe: Mapping[str, Any], local: Local) -> FrozenNetwork:
    """Load a teacher, probe or student.

    Parameters
    ----------
    folder : Path
        A transformers folder, or an artifact of the stages `probe` and `student`.
    recipe : mapping
        ``source`` (``"hf"`` or ``"student"``) and the teacher's ``preprocess``, ``divisor`` and
        ``teacher_classes``, where declared.
    local : Local
        Device and threads, and the code of a network that this experiment makes by code.

    Raises
    ------
    DataError
        If the folder does not hold such a network, or its number of classes is another.
    """
    assert folder is not None
    local.require_weights()
    device = pick_device(local.device)
    set_threads(local.threads)
    declared = recipe.get("preprocess", {})
    if recipe["source"] == "hf":
        hf = hf_segmentation(folder)
        _require_classes(folder, hf.config.num_labels, recipe["teacher_classes"])
        settings = Preprocessing.from_settings(hf_preprocessing(folder, declared), declared)
        divisor = recipe.get("divisor", 1)
        padded = pad_to_multiple(hf, divisor, align_corners=settings.align_corners)
        return FrozenNetwork(padded, settings, device)
    description = read_description(folder)
    if local.factory is None:
        require_no_code(folder, description)
    if "teacher_classes" in recipe:
        _require_classes(folder, len(description["classes"]), recipe["teacher_classes"])
    module = _build(description, local.factory)
    try:
        module.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"{folder / WEIGHTS}: holds no weights of this network ({error})"
        ) from error
    settings = Preprocessing.from_settings(description["preprocessing"], declared)
    return FrozenNetwork(module, settings, device)


def save_network(folder: Path, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write what `load_network` reads: weights, and how to build the network around them."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    atomic.write_bytes(folder / WEIGHTS, save(tensors), sync=False)
    text = json.dumps(dict(description), indent=1, sort_keys=True) + "\n"
    atomic.write_bytes(folder / NETWORK, text.encode(), sync=False)


def describe(
    module: nn.Module, architecture: Any, classes: list[str], preprocessing: Preprocessing
) -> dict[str, Any]:
    """Return the content of ``network.json``."""
    more = {}
    if isinstance(module, Padded):
        more["divisor"] = module.divisor
        module = module.model
    if isinstance(module, HfSegmentation) and not isinstance(architecture, str):
        settings = module.config.to_dict()
        settings.pop("_name_or_path", None)  # the folder it came from: no part of what it is
        architecture = {"hf_config": settings}
    return {
        "format": 1,
        "architecture": architecture,
        "classes": classes,
        "preprocessing": preprocessing.to_json(),
        **more,
    }


def _build(description: Mapping[str, Any], factory: Factory | None) -> nn.Module:
    architecture, classes = description["architecture"], len(description["classes"])
    if isinstance(architecture, str) or "factory" in architecture:
        network = build_student(architecture, classes, None, 0, factory)
    else:
        from transformers import AutoConfig, AutoModelForSemanticSegmentation

        settings = dict(architecture["hf_config"])
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        network = HfSegmentation(AutoModelForSemanticSegmentation.from_config(config))
    return pad_to_multiple(network, description.get("divisor", 1))


def _require_classes(folder: Path, found: int, expected: list[str]) -> None:
    if found != len(expected):
        raise DataError(
            f"{folder}: the network has {found} classes, the declared table {len(expected)}; "
            "declare the teacher's own `classes:`"
        )
