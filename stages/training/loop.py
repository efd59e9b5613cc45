"""The training loop of probes and students: small, and exact on resume.

All randomness is a function of seed, step and sample number. A run killed at any step and resumed
from its last checkpoint therefore equals the uninterrupted one bit for bit (same machine, CPU,
same number of threads).
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ensdistill.data.pictures import Decoder, read_image
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.node import Job
from ensdistill.stages.functional.scores import confusion, iou, mean_iou
from ensdistill.stages.functional.unify import unify
from ensdistill.stages.graph import Local
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.networks.folders import hf_preprocessing
from ensdistill.stages.networks.frozen import (
    FrozenNetwork,
    describe,
    pick_device,
    platform_facts,
    save_network,
    set_threads,
)
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.students import build_student, in_head
from ensdistill.stages.training.losses import PixelLoss
from ensdistill.stages.training.samples import Samples

CHECKPOINT = "draft-checkpoint.pt"  # goes when the artifact is published
METRICS = "metrics.jsonl"
_LOG_EVERY = 20  # steps


def train(job: Job) -> dict[str, Any]:
    """Train the recipe's network on the upstream label maps.

    Returns
    -------
    dict
        ``steps``, ``loss`` (mean of the last logged window), and with a watched split ``watched``:
        its last and best mIoU in percent.
    """
    local: Local = job.work.local
    recipe: dict[str, Any] = job.work.recipe
    local.require_weights()
    device = pick_device(local.device)
    set_threads(local.threads)
    job.ran_on.update(platform_facts(device))
    preprocessing = Preprocessing.from_settings(
        _own_normalisation(local.network),
        recipe["preprocess"],
        {"size": recipe["input_size"]},
    )
    labels = LabelMaps(job.inputs["labels"])
    network, initialised = _build(recipe, local)
    network.to(device)
    optimizer = _optimizer(network, recipe)
    loss_of = PixelLoss(len(local.classes), recipe["rare_weight"], recipe["hard_share"], device)
    state = _State(job.draft.path, network, optimizer, loss_of)
    steps = recipe["steps"]
    samples = Samples(local, labels, recipe, preprocessing.mean_pixel())
    start = state.load()
    if start == 0 and (job.draft.path / CHECKPOINT).exists():
        job.progress.message(f"{job.node.id}: its checkpoint is damaged; beginning anew")
    if initialised is not None:
        job.progress.message(f"{job.node.id}: {initialised['loaded']} tensors of {local.init}")
    job.progress.start(steps, start, "steps")
    if start < steps:
        seconds = _step_cost(network, loss_of, samples, preprocessing, recipe, local)
        height, width = recipe["crop"]
        job.progress.message(
            f"{job.node.id}: {seconds:.2f} s a step (batch {recipe['batch_size']} of "
            f"{height}x{width} on {device}), {steps - start} steps: "
            f"about {_duration(seconds * (steps - start))}"
        )
    watch = recipe.get("watch")
    network.train()
    for step, (images, target) in _batches(samples, start, recipe, local):
        # dropout draws from torch's own stream: tie that to the step as well
        torch.manual_seed(_mix(recipe["seed"], step))
        rate = _poly(recipe, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        logits = network(preprocessing.normalise(images.to(device)))
        loss = loss_of(logits, target.to(device, torch.int64))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(
                f"{job.node.id}: the loss is {value} at step {step + 1} of {steps}; lower `lr` "
                f"(it is {recipe['lr']}) or look at the images and labels"
            )
        state.losses.append(value)
        done = step + 1
        if done % _LOG_EVERY == 0 or done == steps:
            state.log({"step": done, "loss": float(np.mean(state.losses)), "lr": rate})
            state.losses.clear()
        if watch is not None and (done % watch["every"] == 0 or done == steps):
            state.watched(done, _watched_miou(network, preprocessing, device, local))
        if done % local.checkpoint_every == 0 or done == steps:
            state.save(done)
        job.progress.advance(1, f"loss {value:.3f}")
    if watch is not None and watch["keep"] == "best":
        network.load_state_dict(state.best_weights)
    state.write_metrics()  # a power loss may have taken what no step is going to write again
    description = describe(network, recipe["network"], list(local.classes.classes), preprocessing)
    save_network(job.draft.path, network, description)
    losses = [m["loss"] for m in state.metrics if "loss" in m]
    result: dict[str, Any] = {"steps": steps, "loss": losses[-1]}
    if initialised is not None:
        result["init"] = initialised
    if watch is not None:
        scores = [m["miou"] for m in state.metrics if "miou" in m]
        result["watched"] = {"last": scores[-1], "best": max(scores)}
    return result


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; None if there is none or it is not what was written."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    sha256, content = content[:64], content[64:]
    if hashlib.sha256(content).hexdigest().encode() != sha256:
        return None
    found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return found


class _State:
    """All that a checkpoint holds: weights, optimizer, loss state, metrics and the best weights."""

    def __init__(
        self,
        folder: Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_of: PixelLoss,
    ):
        self._folder = folder
        self._network = network
        self._optimizer = optimizer
        self._loss_of = loss_of
        self.metrics: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.best_weights: dict[str, Tensor] = {}

    def load(self) -> int:
        """Restore the last checkpoint and return the number of steps done, 0 without one."""
        found = read_checkpoint(self._folder / CHECKPOINT)
        if found is None:
            return 0
        self._network.load_state_dict(found["network"])
        self._optimizer.load_state_dict(found["optimizer"])
        self._loss_of.absence.copy_(found["absence"])
        self.metrics, self.losses = found["metrics"], found["losses"]
        self.best_weights = found["best_weights"]
        step: int = found["step"]
        return step

    def save(self, step: int) -> None:
        """Replace the checkpoint in one step."""
        buffer = io.BytesIO()
        torch.save(
            {
                "step": step,
                "network": self._network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "absence": self._loss_of.absence,
                "metrics": self.metrics,
                "losses": self.losses,
                "best_weights": self.best_weights,
            },
            buffer,
        )
        content = buffer.getvalue()
        # torch does not notice a flipped bit in a tensor
        sha256 = hashlib.sha256(content).hexdigest().encode()
        atomic.write_bytes(self._folder / CHECKPOINT, sha256 + content)

    def log(self, record: dict[str, Any]) -> None:
        """Add a record to the metrics file, rewritten whole so that a resume leaves no doubles."""
        self.metrics.append(record)
        self.write_metrics()

    def write_metrics(self) -> None:
        """Write the metrics file."""
        text = "".join(json.dumps(m) + "\n" for m in self.metrics)
        atomic.write_bytes(self._folder / METRICS, text.encode(), sync=False)

    def watched(self, step: int, miou: float) -> None:
        """Log a watched mIoU and keep the weights if it is the best so far."""
        earlier = [m["miou"] for m in self.metrics if "miou" in m]
        self.log({"step": step, "miou": miou})
        if not earlier or miou > max(earlier):
            weights = self._network.state_dict()
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights.items()}


def _build(recipe: Mapping[str, Any], local: Local) -> tuple[nn.Module, dict[str, Any] | None]:
    """Build the network; with `init`, load the weights of its body from there."""
    network = build_student(recipe["network"], len(local.classes), local.network, recipe["seed"])
    if local.init is None:
        return network, None
    try:
        if local.init.suffix == ".safetensors":
            found = load_file(local.init)
        else:
            found = torch.load(local.init, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model"):
                found = found.get(key, found)
        found = {k.removeprefix("module."): v for k, v in found.items()}
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError, SafetensorError) as error:
        raise DataError(f"student.init: {local.init} holds no weights ({error})") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"student.init: {local.init} holds more than weights; save its state_dict alone"
        ) from error
    body = {k: v for k, v in network.state_dict().items() if not in_head(k)}
    loaded = {}
    for name, own in body.items():
        # transformers saves its models without the prefix of our wrapper
        other = found.get(name, found.get(name.removeprefix("model.")))
        if other is not None and other.shape == own.shape:
            loaded[name] = other
    # a counter that only cumulative BatchNorm reads, absent from old checkpoints
    missing = [k for k in body if k not in loaded and not k.endswith("num_batches_tracked")]
    if missing:
        raise DataError(
            f"student.init: {local.init} lacks {len(missing)} of the {len(body)} tensors of the "
            f"network's body in their shapes, such as {missing[0]}; it holds "
            f"{', '.join(list(found)[:3])}, ..."
        )
    network.load_state_dict(loaded, strict=False)
    return network, {"loaded": len(loaded), "head": "made anew"}


def _own_normalisation(folder: Path | None) -> dict[str, Any]:
    """Return how a transformers folder wants its pixels; sizes are the training's own."""
    if folder is None:
        return {}
    found = hf_preprocessing(folder, {"size": "image", "interpolation": "bilinear"})
    return {k: v for k, v in found.items() if k in ("mean", "std", "scale", "channels")}


def _optimizer(network: nn.Module, recipe: Mapping[str, Any]) -> torch.optim.Optimizer:
    named = list(network.named_parameters())
    body, head = ([p for n, p in named if in_head(n) is is_head] for is_head in (False, True))
    groups = [
        {"params": body, "lr_factor": 1.0},
        {"params": head, "lr_factor": recipe["head_lr_factor"]},
    ]
    if recipe["optimizer"] == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe["lr"],
            momentum=recipe["momentum"],
            nesterov=recipe["nesterov"],
            weight_decay=recipe["weight_decay"],
        )
    return torch.optim.AdamW(groups, lr=recipe["lr"], weight_decay=recipe["weight_decay"])


def _batches(
    samples: Samples, start: int, recipe: Mapping[str, Any], local: Local
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """Yield step number and batch from step `start` on; loader workers change nothing."""
    size = recipe["batch_size"]
    loader = DataLoader(
        samples,
        batch_size=size,
        sampler=range(start * size, recipe["steps"] * size),
        num_workers=local.workers,
        generator=torch.Generator(),  # else the loader draws from the global stream
    )
    yield from enumerate(loader, start)


def _poly(recipe: Mapping[str, Any], step: int) -> float:
    """Return the learning rate of a step: lr (1 - step / steps) ^ power."""
    rate: float = recipe["lr"] * (1 - step / recipe["steps"]) ** recipe["power"]
    return rate


def _step_cost(
    network: nn.Module,
    loss_of: PixelLoss,
    samples: Samples,
    preprocessing: Preprocessing,
    recipe: Mapping[str, Any],
    local: Local,
) -> float:
    """Return the seconds of one step, measured on copies so that the training is untouched."""
    network, loss_of = copy.deepcopy(network).train(), copy.deepcopy(loss_of)
    device = loss_of.absence.device
    begin = time.perf_counter()
    batch = [samples[k] for k in range(recipe["batch_size"])]
    load = (time.perf_counter() - begin) / max(1, local.workers)
    images = torch.stack([image for image, _ in batch])
    target = torch.stack([label for _, label in batch])
    compute = 0.0
    for _ in range(2):  # the first one pays for allocations
        begin = time.perf_counter()
        logits = network(preprocessing.normalise(images.to(device)))
        loss = loss_of(logits, target.to(device, torch.int64))
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the device
        compute = time.perf_counter() - begin
    return max(load, compute) if local.workers else load + compute


def _watched_miou(
    network: nn.Module, preprocessing: Preprocessing, device: torch.device, local: Local
) -> float:
    """Return the mIoU in percent on the watched split, and leave the network in training mode."""
    frozen = FrozenNetwork(network, preprocessing, device)
    decoder = Decoder(local.to_target, palette=local.palette)
    size = len(local.classes)
    confmat = np.zeros((size, size + 1), np.int64)
    for picture in local.watch:
        assert picture.labels is not None
        target = decoder.read(picture.labels, local.digests[str(picture.labels)])
        height, width = target.shape
        image = read_image(picture.image, local.digests[str(picture.image)])
        labels, _ = unify(frozen.logits(image), (height, width), align_corners=False)
        confmat += confusion(target, labels.cpu().numpy()[None], size)[0]
    network.train()
    miou = 100 * mean_iou(iou(confmat))
    if math.isnan(miou):
        raise DataError("student.watch: the watched split has no labelled pixel")
    return miou


def _mix(seed: int, step: int) -> int:
    """Return a torch seed for a step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
