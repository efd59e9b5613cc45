"""The training loop of probes and students: small, and exact on resume.

All randomness is a function of seed, step and sample number. A run killed at any step and resumed
from its last checkpoint therefore equals the uninterrupted one bit for bit (same machine, CPU,
same number of threads and ranks; on a GPU where torch is told to use deterministic algorithms).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ensdistill.data.decoded import Pixels
from ensdistill.pipeline.errors import DataError, EnsdistillError
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.node import Job, Progress, Told
from ensdistill.stages.functional.augmentation import blurred, recolour
from ensdistill.stages.labelmaps import LabelMaps
from ensdistill.stages.local import Learning
from ensdistill.stages.networks.answers import probabilities
from ensdistill.stages.networks.backbones import BACKBONES, STRIDES, backbone_of
from ensdistill.stages.networks.deeplab import EncoderDecoder
from ensdistill.stages.networks.features import Encoder, prepare_features
from ensdistill.stages.networks.folders import hf_preprocessing
from ensdistill.stages.networks.foreign import blaming_device, device_failure, reason
from ensdistill.stages.networks.frozen import (
    LAYOUT_ADVICE,
    FrozenNetwork,
    asks_for_layout,
    describe,
    load_student,
    pick_device,
    platform_facts,
    save_network,
    set_threads,
)
from ensdistill.stages.networks.initial import describe_initial, initial_network
from ensdistill.stages.networks.preprocessing import Preprocessing
from ensdistill.stages.networks.reads import Reads
from ensdistill.stages.training.checkpoints import last_checkpoint, save_checkpoint
from ensdistill.stages.training.loading import load_batches
from ensdistill.stages.training.losses import PixelLoss
from ensdistill.stages.training.optimizers import (
    NORMS,
    Average,
    build_optimizer,
    freeze_norms,
    learning_rate,
)
from ensdistill.stages.training.ranks import Ranks, give, meet, own_device, require_parts
from ensdistill.stages.training.records import Log, Pace, Settling
from ensdistill.stages.training.samples import (
    AnySample,
    Batches,
    FeatureSample,
    FeatureSamples,
    Samples,
)
from ensdistill.stages.training.watching import watched_miou
from ensdistill.stages.work.items import Silence
from ensdistill.stages.work.pixels import prepare

_LOG_EVERY: Final = 20  # steps
_FOLDS: Final = ". These are all but one of its `folds`: `probe: {folds: 1}` trains on all images"
_ALIKE: Final = 1e-3  # of the largest score, by which answers of one network may be apart
_TYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Order:
    """What a training is made of; the same at every rank.

    `recipe` is what changes the numbers, `local` what does not. Of the `inputs` ``pixel_weights``
    is there where pixels count differently.
    """

    node: str
    recipe: Mapping[str, Any]
    local: Learning
    inputs: Mapping[str, Artifact]
    pixels: Pixels


def train(job: Job[Told, Learning]) -> dict[str, Any]:
    """Train the recipe's network on the upstream label maps.

    Returns
    -------
    dict
        ``steps``, ``loss`` (mean of the last logged window), and with a watched split ``watched``:
        its last and best mIoU in percent, and which of the two the network is.

    Raises
    ------
    DataError
        If no pixel has a label, or the network or its settings do not go.
    """
    pictures, labels = job.work.local.pictures, LabelMaps(job.inputs["labels"])
    if not any(any(labels.records[picture.id]["labels"]) for picture in pictures):
        raise DataError(
            f"{job.node.id}: none of the pixels of its {len(pictures)} label maps has a label; "
            f"there is nothing to train on{_FOLDS if 'fold' in job.work.recipe.to_json() else ''}"
        )
    recipe, local = job.work.recipe.to_json(), job.work.local
    # a frozen backbone sees an image once: that is not worth keeping its pixels
    again = replace(local, pictures=()) if _backbone_frozen(recipe) else local
    pixels = prepare(again, job.node.id, job.progress)
    order = Order(job.node.id, recipe, local, job.inputs, pixels)
    give(order)
    training = Training(order, job.progress, job.draft.path)
    result = training.run()
    job.ran_on.update(training.facts())
    return result


def follow(order: Order) -> None:
    """Keep step with rank 0 in a training."""
    Training(order, Silence(), None).run()


class Training:
    """One training, at one rank: of `ranks` or else all processes that were started together.

    The `folder` is the draft, None for a rank that writes nothing.

    Raises
    ------
    DataError
        If the network, its first weights or its optimizer cannot be made.
    """

    def __init__(
        self, order: Order, progress: Progress, folder: Path | None, ranks: Ranks | None = None
    ):
        recipe, local = order.recipe, order.local
        local.require_weights()
        set_threads(local.threads)
        self.order = order
        self.recipe = recipe
        self.local = local
        self.progress = progress
        self.folder = folder
        self.device = own_device(pick_device(local.device))
        # Crops are all of one size, so a search pays. What is fastest differs from time to time.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        self.ranks: Ranks = meet(self.device) if ranks is None else ranks
        self.preprocessing = Preprocessing.from_settings(
            _own_normalisation(recipe["network"], local.network),
            recipe["preprocess"],
            {"size": recipe["input_size"]},
        )
        reads = None
        if local.factory is not None:
            reads = Reads(local.weights, local.factory.root)
        try:
            with reads or nullcontext():  # it is also tried there
                self.network, self.initialised = initial_network(recipe, local)
            self._placed(self.network)
            self.learner = self._of_learner(self.network)
            if _backbone_frozen(recipe):
                self.network.eval().backbone.requires_grad_(False)
            self._training_mode()
            self.optimizer = build_optimizer(self.network, recipe)
        except DataError as error:
            raise DataError(f"{order.node}.{error}") from error
        self.read = None if reads is None else reads.remark()
        self.doubt: str | None = None
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=recipe["precision"] == "float16"
        )
        self.average = Average(self.learner, recipe["ema"]) if recipe["ema"] else None
        self.loss_of = PixelLoss(
            len(local.classes),
            recipe["class_balance"],
            recipe["often_balance"],
            recipe["hard_share"],
            self.device,
            self.ranks.total,
            STRIDES[0] ** 2 if _backbone_frozen(recipe) else 1,
        )
        self.log = Log(folder, local.tensorboard)
        self.best_weights: dict[str, Tensor] = {}
        self.pace = Pace(recipe["batch_size"])
        self.settling = Settling(recipe.get("settle"))
        self.done = 0  # steps

    def samples(self) -> Samples:
        """Return all samples of the training, by number."""
        inputs = self.order.inputs
        given = (
            self.local,
            LabelMaps(inputs["labels"]),
            self.recipe,
            self.preprocessing.mean_pixel(),
            self.order.pixels,
            LabelMaps(inputs["pixel_weights"]) if "pixel_weights" in inputs else None,
        )
        if not _backbone_frozen(self.recipe):
            return Samples(*given)
        store, order = None, self.order
        if self.folder is not None:  # rank 0 alone computes
            store = prepare_features(
                self.encoder(), self.local, order.pixels, order.node, self.progress
            )
        return FeatureSamples(*given, features=self.ranks.share(store))

    def encoder(self) -> Encoder:
        """Return the frozen backbone."""
        assert isinstance(self.network, EncoderDecoder)
        return Encoder.of(self.network, self.recipe["network"], self.preprocessing, self.device)

    def run(self) -> dict[str, Any]:
        """Train from the last checkpoint to the end, and write the network."""
        recipe, steps, size = self.recipe, self.recipe["steps"], self.recipe["batch_size"]
        require_parts(self.order.node, recipe, self.ranks.count)
        self.done = self._restore()
        start = steps if self.settling.settled else self.done
        if self.initialised is not None and start == 0:
            self._say(describe_initial(self.initialised, self.local))
        if self.read is not None:
            self._say(self.read)
        if _backbone_frozen(recipe) and self.local.init is None:
            self._say(
                "`init: none`: the backbone is random, and `train: decoder` leaves it so; little "
                "can be learnt from its features"
            )
        samples = self.samples()
        self.progress.start(steps, start, "steps")
        watch = recipe.get("watch")
        step_of = self.stepper()
        epoch = len(self.local.pictures)
        with closing(self.batches(samples, start)) as batches:
            for step, batch in enumerate(batches, start):
                self.done = done = step + 1
                ends_epoch = done * size // epoch > step * size // epoch
                with self._blaming_network(done):
                    loss, rate = step_of(step, batch)
                self.log.losses.append(loss)
                said = self.settling.step_done(loss, ends_epoch=ends_epoch)
                last = done == steps or self.settling.settled
                logs = done % _LOG_EVERY == 0 or last
                saves = done % self.local.checkpoint_every == 0 or last
                watches = watch is not None and (done % watch["every"] == 0 or last)
                if logs or saves or watches:
                    with blaming_device(f"{self.order.node}: by step {done} "):
                        self._require_finite(done)
                if logs:
                    self.log.window(done, rate)
                if watches:
                    with self._blaming_network(done):
                        self._watch(done)
                if saves:
                    self._save(done)
                self.pace.step_done()
                if self.pace.steps == 5 and done < steps:
                    self._say(self.pace.estimate(steps - done))
                if ends_epoch:
                    self.pace.epoch_done()
                self.progress.advance(1, self.log.note(self.pace))
                if said is not None:
                    self._say(f"{said}; {done} of at most {steps} steps")
                    self.progress.start(done, done, "steps")
                    break
        if recipe.get("settle") is not None and not self.settling.settled:
            self._say(f"it has not settled in {steps} steps; raise `steps`, or `settle`")
        with self._blaming_network(self.done):
            return self._finish()

    @contextmanager
    def _blaming_network(self, done: int) -> Iterator[None]:
        """Name the network whose code, or a library's about it, fails at a step."""
        try:
            yield
        except (EnsdistillError, OSError):
            raise
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"{self.order.node}: there is no memory on {self.device} for step {done}; lower "
                "`batch_size` or `crop`, or raise `accumulate`, which takes a batch in parts"
            ) from error
        except Exception as error:
            if (text := device_failure(error)) is not None:
                raise DataError(f"{self.order.node}: at step {done} {text}") from error
            advice = f". {LAYOUT_ADVICE}" if asks_for_layout(error) else ""
            raise DataError(
                f"{self.order.node}.network: {_name(self.recipe, self.local)} fails at step {done} "
                f"of {self.recipe['steps']} ({reason(error)}); checkpoints are kept, `ensdistill "
                f"-v` shows where{advice}"
            ) from error

    def rehearse(self, batch: AnySample) -> float:
        """Take two steps on one batch, write the network and read it back.

        Returns
        -------
        float
            The seconds that the second step took.

        Raises
        ------
        DataError
            If the loss is no number, or the network that is read back is another one.
        """
        step_of, seconds = self.stepper(), 0.0
        for step in range(2):
            begin = time.perf_counter()
            loss, _ = step_of(step, batch)
            self.log.losses.append(loss)
            self._require_finite(step + 1)  # which waits for the device
            seconds = time.perf_counter() - begin
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._write(Path(folder))
                again, _ = load_student(Path(folder), {}, self.local)
        except Exception as error:
            why = str(error) if isinstance(error, EnsdistillError) else reason(error)
            raise DataError(
                f"{self.order.node}.network: it cannot be written and read back, as all that uses "
                f"it does: {why}"
            ) from error
        self._require_same(again, batch)
        return seconds

    @torch.inference_mode()
    def _require_same(self, again: nn.Module, batch: AnySample) -> None:
        """Refuse a network that is another one when it was written and read back."""
        inputs = self._input(type(batch)(*(x.to(self.device) for x in batch)), slice(None))
        networks = (self._of_learner(self._placed(n)) for n in (self._trained(), again))
        answers = [learner.eval()(*inputs).float() for learner in networks]
        if (alike := probabilities(answers[0])) is not None:
            self.doubt = (
                f"{alike}: they look like probabilities, of which the loss takes a softmax again; "
                "return logits"
            )
        apart = (answers[0] - answers[1]).abs().max() / answers[0].abs().max()
        if apart > _ALIKE:
            raise DataError(
                f"{self.order.node}.network: what was trained answers otherwise when it was "
                f"written and read back (by {100 * apart:.2g} %): part of what it computes with is "
                "not in its `state_dict`, or it answers differently every time. Keep its tensors "
                "by `register_buffer`, and let dropout rest in evaluation"
            )

    def facts(self) -> dict[str, Any]:
        """Return what decided the last bits of the result, and how fast it was made."""
        return platform_facts(self.device) | {"ranks": self.ranks.count} | self.pace.facts()

    def stepper(self) -> Callable[[int, AnySample], tuple[Tensor, float]]:
        """Return what does a step: from its number and batch to its loss and learning rate."""
        recipe, device, ranks = self.recipe, self.device, self.ranks
        network = self._distributed()
        parts, size = recipe["accumulate"], recipe["batch_size"]
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        as_type = _TYPES.get(recipe["precision"])
        self._training_mode()

        def alone(part: int) -> AbstractContextManager[Any]:
            """Gradients of all parts but the last one stay with their rank."""
            last = part == parts - 1
            return nullcontext() if last or ranks.count == 1 else network.no_sync()

        def step_of(step: int, batch: AnySample) -> tuple[Tensor, float]:
            rate = self.begin_step(step)
            batch = type(batch)(*(x.to(device, non_blocking=True) for x in batch))
            label = batch.label.long()
            weights = batch.weight if batch.weight.numel() else None
            self.loss_of.begin(label, weights, size)
            self.optimizer.zero_grad(set_to_none=True)
            share = len(label) // parts
            for part in range(parts):
                cut = slice(part * share, (part + 1) * share)
                inputs = self._input(batch, cut)
                with alone(part):
                    with torch.autocast(device.type, as_type, enabled=as_type is not None):
                        logits = network(*inputs)
                    lost = self.loss_of.part(
                        logits, label[cut], None if weights is None else weights[cut]
                    )
                    # DDP takes the mean over the ranks, and the loss is a sum
                    self.scaler.scale(lost * ranks.count).backward()  # type: ignore[no-untyped-call]
            loss, correction = self.loss_of.end()
            self.scaler.unscale_(self.optimizer)
            if correction is not None:
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.mul_(correction)
            if recipe["clip"] is not None:
                nn.utils.clip_grad_norm_(parameters, recipe["clip"])
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average is not None:
                self.average.update(self.learner, step + 1)
            return loss, rate

        return step_of

    def begin_step(self, step: int) -> float:
        """Set what a step has from its number: torch's seed and the learning rate, returned."""
        # dropout draws from torch's own stream: tie that to the step as well
        torch.manual_seed(_mix(self.recipe["seed"], step, self.ranks.rank))
        rate = learning_rate(self.recipe, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        return rate

    def _placed(self, network: nn.Module) -> nn.Module:
        """Return a network on the device, where its tensors lie as they are wanted."""
        network.to(self.device)
        if self.local.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def _training_mode(self) -> None:
        self.learner.train()
        if self.recipe["batch_norm"] == "frozen":
            freeze_norms(self.learner)

    def _input(self, batch: AnySample, part: slice) -> list[Tensor]:
        """Return what the learner gets of a part of a batch: (n, C, h, w) float32.

        The images, or their low- and high-level features.
        """
        if isinstance(batch, FeatureSample):
            found = [x[part].permute(0, 3, 1, 2).float() for x in (batch.low, batch.high)]
        else:
            found = [self._images(batch.image[part], batch.look[part])]
        return found if self.local.channels_last else [x.contiguous() for x in found]

    def _images(self, image: Tensor, look: Tensor) -> Tensor:
        """Return (n, 3, h, w) float32 network input of (n, h, w, 3) uint8 crops."""
        images = image.permute(0, 3, 1, 2)  # channels last, as it lies
        if self.recipe["colour"] or self.recipe["blur"]:
            images = images.float()
        if self.recipe["colour"]:
            images = recolour(images, look)
        if self.recipe["blur"]:
            images = blurred(images, look)
        return self.preprocessing.normalise(images)

    def _distributed(self) -> Any:
        """Return the network as the loop calls it, wrapped where several ranks train it."""
        if self.ranks.count == 1:
            return self.learner
        if self.recipe["batch_norm"] == "sync" and any(
            isinstance(m, NORMS) for m in self.learner.modules()
        ):
            if self.device.type == "cpu":
                raise DataError(
                    f"{self.order.node}: `batch_norm: sync` needs GPUs where several ranks train; "
                    "use `frozen` or `local`"
                )
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
            convert(self.learner, self.ranks.group)  # what is below it
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            self.learner,
            device_ids=ids,
            process_group=self.ranks.group,
            gradient_as_bucket_view=True,
        )

    def batches(self, samples: Samples, start: int) -> Generator[AnySample]:
        """Yield this rank's samples of each step from `start` on; loader workers change nothing."""
        recipe, ranks = self.recipe, self.ranks
        steps, size = recipe["steps"], recipe["batch_size"]
        loaded = load_batches(
            samples,
            Batches(start, steps, size, ranks.rank, ranks.count),
            workers=self.local.workers,
            pin=self.device.type == "cuda",
            name=self.order.node,
        )
        return self.pace.waited(loaded)

    def _require_finite(self, done: int) -> None:
        """Bring the losses to the host, and stop before anything spoilt is kept."""
        for step, value in enumerate(self.log.settle(), done - len(self.log.losses) + 1):
            if not math.isfinite(value):
                raise DataError(
                    f"{self.order.node}: the loss is {value} at step {step} of "
                    f"{self.recipe['steps']}; lower `lr` (it is {self.recipe['lr']}) or look at "
                    "the images and labels"
                )

    def _restore(self) -> int:
        """Restore the last checkpoint and return the number of steps done, 0 without one."""
        found = None
        if self.folder is not None:
            found = last_checkpoint(self.folder, self._say)
        found = self.ranks.share(found)
        if found is None:
            return 0
        self.learner.load_state_dict(found["network"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.scaler.load_state_dict(found["scaler"])
        if self.average is not None:
            self.average.network.load_state_dict(found["average"])
        self.loss_of.absence.copy_(found["absence"])
        self.log.metrics, self.log.losses = found["metrics"], found["losses"]
        self.best_weights = found["best_weights"]
        self.pace.load(found["pace"])
        if "settling" in found:  # else it is of an earlier version
            self.settling.load(found["settling"])
        step: int = found["step"]
        return step

    def _save(self, step: int) -> None:
        if self.folder is None:
            return
        state = {
            "network": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": {} if self.average is None else self.average.network.state_dict(),
            "absence": self.loss_of.absence,
            "metrics": self.log.metrics,
            "losses": self.log.losses,
            "best_weights": self.best_weights,
            "pace": self.pace.state(),
            "settling": self.settling.state(),
        }
        save_checkpoint(self.folder, step, state, self.local.keep_checkpoints)

    def _trained(self) -> nn.Module:
        """Return the whole network, with what was trained of it or that one's average."""
        if self.average is None:
            return self.network
        if _backbone_frozen(self.recipe):
            return EncoderDecoder(self.network.backbone, self.average.network)  # type: ignore[arg-type]
        return self.average.network

    def _of_learner(self, network: nn.Module) -> nn.Module:
        """Return what is trained of a network, or would be: all of it, or its decoder."""
        return network.get_submodule("decoder") if _backbone_frozen(self.recipe) else network

    def _watch(self, step: int) -> None:
        """Log the mIoU on the watched split, and keep the weights if it is the best so far."""
        try:
            network, layout = self._trained(), self.local.channels_last
            frozen = FrozenNetwork(network, self.preprocessing, self.device, channels_last=layout)
            miou = watched_miou(frozen, self.local, self.order.pixels, self.ranks)
        except DataError as error:
            raise DataError(f"{self.order.node}.watch: {error}") from error
        self._training_mode()
        earlier = [m["miou"] for m in self.log.metrics if "miou" in m]
        self.log.write({"step": step, "miou": miou})
        if not earlier or miou > max(earlier):
            weights = self._of_learner(self._trained()).state_dict()
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights.items()}

    def _finish(self) -> dict[str, Any]:
        watch, network = self.recipe.get("watch"), self._trained()
        if watch is not None and watch["checkpoint"] == "best":
            self._of_learner(network).load_state_dict(self.best_weights)
        result: dict[str, Any] = {"steps": self.done, "loss": self.log.last_loss()}
        if self.initialised is not None:
            result["init"] = self.initialised
        if watch is not None:
            scores = [m["miou"] for m in self.log.metrics if "miou" in m]
            result["watched"] = {
                "last": scores[-1],
                "best": max(scores),
                "kept": watch["checkpoint"],
            }
        if self.folder is not None:
            self.log.rewrite()  # a power loss may have taken what no step is going to write again
            self._write(self.folder)
        return result

    def _write(self, folder: Path) -> None:
        """Write the network that was trained."""
        network, names = self._trained(), list(self.local.classes.classes)
        description = describe(network, self.recipe["network"], names, self.preprocessing)
        save_network(folder, network, description)

    def _say(self, text: str) -> None:
        self.progress.message(f"{self.order.node}: {text}")


def _backbone_frozen(recipe: Mapping[str, Any]) -> bool:
    """Whether a training freezes its backbone."""
    return recipe.get("train") == "decoder"


def _name(recipe: Mapping[str, Any], local: Learning) -> str:
    """Return what a network is called, and where it is from."""
    if local.factory is not None:
        return f"{local.factory.function} of {local.factory.root}"
    return str(recipe["network"] if local.network is None else local.network)


def _own_normalisation(architecture: Any, folder: Path | None) -> Mapping[str, Any]:
    """Return how a backbone or a transformers folder wants its pixels.

    Sizes are the training's own.
    """
    if (backbone := backbone_of(architecture)) is not None:
        return BACKBONES[backbone].seen
    if folder is None:
        return {}
    found = hf_preprocessing(folder, {"size": "image", "interpolation": "bilinear"})
    return {k: v for k, v in found.items() if k in ("mean", "std", "scale", "channels")}


def _mix(seed: int, step: int, rank: int) -> int:
    """Return a torch seed for a step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
