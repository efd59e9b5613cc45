"""Networks that are only run: teachers, probes and students."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ensdistill.data.decoded import Pixels
from ensdistill.data.decoding import UInt8
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.pipeline.fingerprint import Json
from ensdistill.stages.functional.unify import (
    Piece,
    Unified,
    View,
    mean_softmax,
    resize_ids,
    tile_boxes,
    unify,
)
from ensdistill.stages.local import Factory, Running
from ensdistill.stages.networks.answers import Reading, misshapen
from ensdistill.stages.networks.folders import (
    DESCRIBED,
    NETWORK,
    WEIGHTS,
    read_description,
    require_no_code,
)
from ensdistill.stages.networks.foreign import device_failure, reason, refusing
from ensdistill.stages.networks.onnx import OnnxNetwork
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.reads import Reads
from ensdistill.stages.networks.stream import Clock, Request, Want, stream
from ensdistill.stages.networks.students import (
    HfSegmentation,
    Padded,
    build_student,
    pad_to_multiple,
)
from ensdistill.stages.networks.universal import UniversalSegmentation
from ensdistill.stages.networks.whole import require_whole

LAYOUT_ADVICE: Final = (
    "It asks how its tensors lie in memory: say `runtime: {channels_last: false}`"
)
Loaded = tuple[nn.Module, Mapping[str, Any]]
"""A network, and the preprocessing that it comes with; the recipe's own holds."""

Load = Callable[[Path, Mapping[str, Any], Running, torch.device], Loaded]
_FLAT: Final = torch.contiguous_format
_DEVICE: Final = re.compile(r"cpu|cuda(:\d+)?|mps|xpu")


class FrozenNetwork:
    """A network in evaluation mode, from photographs to what it says of them.

    Parameters
    ----------
    module : nn.Module
        (N, 3, H, W) float32 to whatever it answers, which is read as `reading` says.
    divisor : int
        Images are padded to multiples of it.
    reads : Reads, optional
        Notes the files that it reads; it has seen how the module was made.
    workers : int
        Threads that decode photographs.
    about : mapping, optional
        What else decides the last bits of its results.

    Attributes
    ----------
    at_once : int or None
        Photographs that fit into memory; None while all that were asked for do.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        reading: Reading | None = None,
        *,
        divisor: int = 1,
        reads: Reads | None = None,
        channels_last: bool = True,
        workers: int = 1,
        about: Mapping[str, Any] | None = None,
    ):
        self._about = about or {}
        self.at_once: int | None = None
        self._workers = workers
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.preprocessing = preprocessing
        self.device = device
        self.reading = reading or Reading()
        align_corners = preprocessing.align_corners
        self._answer = _Answer(module, self.reading, reads, align_corners=align_corners)
        self._answer.remarks += filter(None, [preprocessing.doubt()])
        self.module = pad_to_multiple(self._answer, divisor, align_corners=align_corners)
        self.module = self.module.to(device).eval()
        if channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the last bits of its results, and what was taken of its answers."""
        halved = {} if self.at_once is None else {"batch_size": self.at_once}
        taken = {} if self._answer.taken is None else {"taken": self._answer.taken}
        return platform_facts(self.device) | dict(self._about) | halved | taken

    def remarks(self) -> list[str]:
        """Return what there is to say after the first answer, once."""
        said, self._answer.remarks = self._answer.remarks, []
        return said

    def close(self) -> None:
        """Nothing to do: it goes with this process."""

    def stream(
        self,
        batches: Sequence[Sequence[Request]],
        want: Want,
        pixels: Pixels,
        clock: Clock,
        say: Callable[[str], object],
    ) -> Generator[list[tuple[NDArray[Any], ...]]]:
        """Yield what is wanted of each photograph (see `stream.stream`)."""
        return stream(
            self, batches, want, pixels=pixels, workers=self._workers, clock=clock, say=say
        )

    def look(self, photograph: UInt8) -> Unified:
        """Return the labels of one (H, W, 3) uint8 photograph and how sure they are."""
        height, width, _ = photograph.shape
        inputs = self.to_device([self.on_host(photograph)])
        return self.unified((height, width), inputs)[0]

    def unified(
        self, size: tuple[int, int], inputs: Sequence[Tensor], *, confidence: bool = True
    ) -> list[Unified]:
        """Return labels, and how sure they are, of photographs of one size, on the device.

        `size` is theirs, height and width; `inputs` are all of them as the network sees them, one
        (N, 3, h, w) uint8 tensor for each of the scales.
        """
        if self.reading.output == "ids":
            return [
                Unified(resize_ids(ids, size), None, torch.tensor(True))
                for ids in self._run(inputs[0])
            ]
        return [
            unify(
                views,
                size,
                align_corners=self.preprocessing.align_corners,
                output=self.reading.output,
                confidence=confidence,
            )
            for views in zip(*self._views(inputs), strict=True)
        ]

    def soft(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the (C, h, w) float32 softmax of each photograph at the network's own stride."""
        assert self.reading.output != "ids"
        of_each = zip(*self._views(inputs), strict=True)
        return [mean_softmax(views, output=self.reading.output) for views in of_each]

    def read(self, pixels: Pixels, request: Request) -> tuple[tuple[int, int], list[Tensor]]:
        """Return height and width of a photograph, and it at each scale."""
        photograph = pixels.read(*request)
        height, width, _ = photograph.shape
        return (height, width), self.on_host(photograph)

    def on_host(self, photograph: UInt8) -> list[Tensor]:
        """Return a photograph at each scale, (h, w, 3) uint8, from where it is copied quickest."""
        pinned = self.device.type == "cuda"  # then nobody waits for the copy
        found = []
        for image in self.preprocessing.resize(photograph):
            held = torch.empty(image.shape, dtype=torch.uint8, pin_memory=pinned)
            held.numpy()[:] = image
            found.append(held)
        return found

    def to_device(self, photographs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return (N, 3, h, w) uint8 for each scale, of what `on_host` returned."""
        return [
            torch.stack([one.to(self.device, non_blocking=True) for one in images]).permute(
                0, 3, 1, 2
            )
            for images in zip(*photographs, strict=True)
        ]

    def _views(self, inputs: Sequence[Tensor]) -> list[list[View]]:
        """Return for each way of seeing the photographs what was said of each of them."""
        found = []
        for batch in inputs:
            for flipped in (False, True) if self.preprocessing.flip else (False,):
                found.append(self._view(batch.flip(3) if flipped else batch, flipped=flipped))
        return found

    def _view(self, batch: Tensor, *, flipped: bool) -> list[View]:
        size = (batch.shape[2], batch.shape[3])
        boxes = [(0, 0, *size)]
        if self.preprocessing.tiles is not None:
            tiles = self.preprocessing.tiles
            boxes = tile_boxes(size, tiles["size"], tiles["overlap"])
        pieces = []
        for box in boxes:
            top, left, height, width = box
            scores = self._scores(batch[:, :, top : top + height, left : left + width])
            pieces.append([Piece(one, box) for one in scores])
        return [View(of_one, size, flipped=flipped) for of_one in zip(*pieces, strict=True)]

    def _scores(self, batch: Tensor) -> Tensor:
        """Return (N, C, h, w) scores of the channels that stand for classes."""
        found = self._run(batch)
        return found[:, self.reading.channels(found.shape[1])] if self.reading.void else found

    def _run(self, batch: Tensor) -> Tensor:
        """Return what was read of the network's answer (see `Reading.read`)."""
        x = self.preprocessing.normalise(batch).contiguous(memory_format=self._layout)
        half = self.reading.precision
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, getattr(torch, half), enabled=half != "float32"),
            ):
                found: Tensor = self.module(x)
        except (EnsdistillError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if (text := device_failure(error)) is not None:
                raise DataError(text) from error
            if asks_for_layout(error):
                raise DataError(f"the network fails ({reason(error)}). {LAYOUT_ADVICE}") from error
            one = ", if it takes one image at a time, `runtime: {batch_size: 1}`"
            raise DataError(
                f"the network fails on images of {'x'.join(map(str, x.shape))} "
                f"({reason(error)}); if their sizes have to be multiples of a number, say "
                "`divisor` on the network, if it takes one size, `preprocess: {size: [HEIGHT, "
                f"WIDTH]}}`{one * (len(x) > 1)}"
            ) from error
        return found


class _Answer(nn.Module):
    """A network of which one tensor is read, whatever it answers.

    After its first answer `taken` is what was taken of it, where the experiment says which, and
    `remarks` what there is to say.
    """

    def __init__(
        self, module: nn.Module, reading: Reading, reads: Reads | None, *, align_corners: bool
    ):
        super().__init__()
        self.module = module
        self.taken: str | None = None
        self.remarks: list[str] = []
        self._new = True
        self._reading = reading
        self._reads = reads
        self._align_corners = align_corners

    def forward(self, images: Tensor) -> Tensor:
        """Return what `Reading.read` does."""
        with (self._reads if self._new else None) or nullcontext():
            if self._reading.take is not None and isinstance(self.module, HfSegmentation):
                answer = self.module.answer(images)
            else:
                answer = self.module(images)
        found = self._reading.read(answer, len(images), align_corners=self._align_corners)
        if self._new:
            self._new = False
            self._look(answer, found, images)
        return found

    def _look(self, answer: Any, found: Tensor, images: Tensor) -> None:
        if self._reading.take is not None:
            self.taken = self._reading.taken(answer)
        read = None if self._reads is None else self._reads.remark()
        sizes = [(x.shape[-2], x.shape[-1]) for x in (found, images)]
        self.remarks += filter(None, (read, self._reading.doubt(found), misshapen(*sizes)))


def asks_for_layout(error: Exception) -> bool:
    """Whether an error of torch is that of code which asks how its tensors lie in memory."""
    return "view size is not compatible" in str(error)


def pick_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA where there is one.

    Raises
    ------
    DataError
        If it is no device, or not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not _DEVICE.fullmatch(name):
        raise DataError(
            f"runtime.device: {name!r} is no device; expected auto, cpu, cuda, cuda:N, mps or xpu"
        )
    seen = _devices()
    if name not in seen:
        raise DataError(
            f"runtime.device: {name} was asked for, but torch sees no such device; it sees "
            f"{', '.join(seen)}"
        )
    return torch.device(name)


def _devices() -> list[str]:
    """Return the devices that torch sees here."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = ["cuda", *(f"cuda:{k}" for k in range(count))] if count else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    xpu = ["xpu"] if torch.xpu.is_available() else []
    return ["cpu", *cuda, *mps, *xpu]


def platform_facts(device: torch.device) -> dict[str, Any]:
    """Return what decides the last bits of a result, for the manifest."""
    return {
        "device": str(device),
        "hardware": _hardware(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _hardware(device: torch.device) -> str | None:
    """Return the model of a GPU, or the instructions of the CPU that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else None


def here(device: torch.device) -> list[Json]:
    """Return what decides whether a network runs, and how fast, beside what it is made from.

    The device, the threads, Python and all installed packages: what was found of a network is
    remembered by them too.
    """
    return [*platform_facts(device).values(), sys.version, *_installed()]


@cache
def _installed() -> list[str]:
    found = (d.metadata for d in distributions())  # read once: each of its names would read it
    return sorted(f"{of['Name']} {of['Version']}" for of in found)


def set_threads(threads: int | None) -> None:
    """Set torch's threads; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def open_here(
    load: Load, path: Path, recipe: Mapping[str, Any], local: Running, *, recorded: bool
) -> FrozenNetwork:
    """Open a network that `load` returns and that runs in this process (see `NetworkKind`)."""
    local.require_weights()
    device = pick_device(local.device)
    set_threads(local.threads)
    reads = None
    if local.trusted or local.factory is not None:
        known = [*local.weights, str(path / NETWORK), str(path / WEIGHTS)]
        reads = Reads(known, path if local.factory is None else local.factory.root)
    with reads or nullcontext():
        module, declared = load(path, recipe, local, device)
    channels_last = local.channels_last and not recorded
    runtime = {"channels_last": channels_last, "workers": local.workers}
    return freeze(module, declared, recipe, device, reads=reads, **runtime)


def freeze(
    module: nn.Module,
    declared: Mapping[str, Any],
    recipe: Mapping[str, Any],
    device: torch.device,
    **runtime: Any,
) -> FrozenNetwork:
    """Return a network to be run as a teacher's recipe says.

    Its own preprocessing is `declared`, and the recipe's holds; `runtime` is for `FrozenNetwork`.
    """
    settings = Preprocessing.from_settings(declared, recipe.get("preprocess", {}))
    reading = Reading.from_recipe(recipe)
    if isinstance(module, UniversalSegmentation):
        reading = replace(reading, output=module.output)
    about = module.facts if isinstance(module, OnnxNetwork) else None
    divisor = recipe.get("divisor", 1)
    return FrozenNetwork(module, settings, device, reading, divisor=divisor, about=about, **runtime)


def load_student(folder: Path, recipe: Mapping[str, Any], local: Running) -> Loaded:
    """Return a network that was trained here, and the preprocessing it was trained with."""
    description = read_description(folder)
    if local.factory is None:
        require_no_code(folder, description)
    expected = recipe.get("teacher_classes", description["classes"])
    if len(description["classes"]) != len(expected):
        raise DataError(
            f"{folder}: the network has {len(description['classes'])} classes, the declared table "
            f"{len(expected)}; declare the teacher's own `classes:`"
        )
    # of transformers, of a config of the wrong form
    with refusing(f"{folder / NETWORK}: no network can be built of its `architecture`"):
        module = _build(description, local.factory)
    require_whole(folder / WEIGHTS)
    with refusing(f"{folder / WEIGHTS}: holds no weights of this network"):
        module.load_state_dict(load_file(folder / WEIGHTS))
    return module, description["preprocessing"]


def save_network(folder: Path, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write what `load_student` reads: weights, and how to build the network around them.

    Raises
    ------
    DataError
        If the network's state holds something else than tensors.
    """
    state = module.state_dict()
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise DataError(
            f"its state_dict holds {others[0]!r}, which is no tensor and cannot be kept; expected "
            "a network whose `get_extra_state` returns tensors, or that has none"
        )
    # each on its own: a module that a network holds twice has its tensors twice
    tensors = {k: v.detach().cpu().clone(memory_format=_FLAT) for k, v in state.items()}
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
        "format": DESCRIBED,
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
        model = AutoModelForSemanticSegmentation.from_config(config, trust_remote_code=False)
        network = HfSegmentation(model)
    return pad_to_multiple(network, description.get("divisor", 1))
