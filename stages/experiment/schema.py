"""The experiment file: what may stand in it, and what is meant where nothing does.

Light on purpose: `status` reads it, and must answer before torch would be imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ensdistill.data.classes import Ids
from ensdistill.pipeline.config import Section
from ensdistill.pipeline.errors import shown
from ensdistill.stages.experiment.networks import (
    Network,
    Positive,
    PositiveReal,
    Preprocess,
    Size,
    StudentNetwork,
    require_trust,
)
from ensdistill.stages.experiment.presets import LINEAR, PAPER
from ensdistill.stages.functional import MAX_FUSED
from ensdistill.stages.fusions import LABEL_MODEL, METHODS
from ensdistill.stages.networks import backbones

Share = Annotated[float, Field(ge=0, le=1)]

TRAIN = "train"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class Classes(Section):
    """The classes of the experiment: a built-in table or a YAML file."""

    table: str


class Split(Section):
    """Where images, and ground truth if there is any, come from.

    Exactly one of `images` (a glob), `cityscapes` (the root of a tree) and `list` (a file).
    `overlap` permits a split to be scored although some of its images are trained on.
    """

    images: str | None = None
    labels: str | None = None
    cityscapes: str | None = None
    split: str | None = None
    list: str | None = None
    ids: Ids | None = None
    overlap: tuple[Literal["train"], ...] = ()  # of splits

    @model_validator(mode="after")
    def _one_source(self) -> Split:
        given = [k for k in ("images", "cityscapes", "list") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected one of images, cityscapes and list, found {given or 'none'}"
            )
        if self.labels is not None and self.images is None:
            raise ValueError("`labels` goes with `images`")
        if (self.split is None) != (self.cityscapes is None):
            raise ValueError(
                "`split` goes with `cityscapes`, such as {cityscapes: ROOT, split: val}"
            )
        return self

    @property
    def encoding(self) -> Ids:
        """How the ground truth is encoded."""
        return self.ids or ("label_ids" if self.cityscapes else "train_ids")


class Teacher(Section):
    """A frozen teacher: its predictions as PNGs, or its network.

    `confidence` are folders of PNGs, by split, that say how sure it is of each label of `labels`:
    grey values, of which the largest of the file's depth stands for 1. With `keep` a network's
    largest softmax values (`confidence`), or all of them at the network's own stride (`soft`), are
    stored too.
    """

    name: str
    labels: Mapping[str, str] | None = None
    network: Network | None = None
    ids: Ids = "train_ids"
    confidence: Mapping[str, str] | None = None
    classes: str | None = None
    map: Mapping[str, str | None] = {}
    preprocess: Preprocess = Preprocess()
    trust: Literal["none", "code"] = "none"
    keep: tuple[Literal["confidence", "soft"], ...] = ()

    @field_validator("classes", mode="before")
    @classmethod
    def _a_table(cls, given: Any) -> Any:
        if not isinstance(given, str | None):
            raise ValueError(
                "expected the name of a class table, or of a YAML file that holds one: `classes: "
                "[{name: road, colour: [128, 64, 128]}, ...]`"
            )
        return given

    @field_validator("name")
    @classmethod
    def _legal_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot name a teacher; use letters, digits, '.', '_', '+' and '-'"
            )
        if name == "student" or name in (method.name for method in METHODS):
            raise ValueError(f"{name!r} is the name of a method in tables; choose another")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> Teacher:
        if (self.labels is None) == (self.network is None):
            raise ValueError("expected one of labels and network")
        given = self.model_fields_set
        if self.network is None:
            if wrong := {"preprocess", "keep"} & given:
                raise ValueError(f"`{min(wrong)}` is for networks")
            return self
        if "ids" in given:
            raise ValueError("`ids` is for predictions in files; a network's classes have no ids")
        if "confidence" in given:
            raise ValueError("`confidence` is for predictions in files; say `keep: [confidence]`")
        require_trust(self.network, self.trust, "this teacher")
        ways = [k for k in ("flip", "scales", "tiles") if getattr(self.preprocess, k) is not None]
        if self.network.output == "ids" and (ways or self.keep):
            raise ValueError("a network whose output is `ids` has no scores to average or to keep")
        if "soft" in self.keep and {"scales", "tiles"} & set(ways):
            raise ValueError("`keep: [soft]` needs the scores of whole images at one scale")
        return self


def _ends_in_a_dot(text: str) -> str:
    """Return the beginning of dotted names as names have it."""
    if not (plain := text.strip(".")):
        raise ValueError(f"expected what names begin with, such as encoder, found {text!r}")
    return f"{plain}."


Prefix = Annotated[str, AfterValidator(_ends_in_a_dot)]


class Init(Section):
    """The first weights of a training, from a file, or a folder with a ``model.safetensors``.

    For its path `imagenet` stands for the weights that are installed, and `none` for random ones.
    All tensors of the network are what the file holds, or with `into` those whose names begin with
    it; the others stay as they were made, and so does the head, unless it is to `keep` what the
    file has for it. With `strip` only names of the file that begin with it count, without it.
    """

    file: str
    into: Prefix | None = None
    strip: Prefix | None = None
    head: Literal["new", "keep"] = "new"

    @model_validator(mode="after")
    def _none_is_alone(self) -> Init:
        if self.file == "none" and self.model_fields_set != {"file"}:
            raise ValueError("random weights need no other key; say `init: none`")
        return self

    @property
    def path(self) -> str | None:
        """The file as written; None where it is none of the experiment's."""
        return None if self.file in ("imagenet", "none") else self.file


# what `train: decoder` leaves no choice of
STILL: Mapping[str, Any] = {"scale": (1.0, 1.0), "colour": 0.0, "blur": 0.0, "class_mix": 0.0}


class Training(Section):
    """How a probe or a student is trained. Sizes are height, width in pixels.

    `preset: paper` stands for the settings of `presets.PAPER`; whatever is given beside it holds.
    `init: none` stands for random weights, `imagenet` for those that are installed; that is what a
    `backbone` begins with where nothing is said. `head` are patterns (``decoder.*``) of the names
    that are the network's head, without the prefixes of wrappers; left out, it is what is called
    ``head``, ``decode_head``, ``auxiliary_head``, ``segmentation_head`` or ``classifier``, and with
    a `backbone` the decoder. With `settle` a training ends after the first epoch (of few
    steps, several) whose mean loss is not that share below that of the epoch before; `steps` are
    then the most. `train: decoder`
    leaves the backbone as it is: what it makes of an image, as it is and mirrored, is computed once
    and kept; with `crop: null` windows are as large as all images have them.
    """

    sees_pixels: ClassVar[str] = "say `train: all`"

    preset: Literal["paper"] | None = None
    network: StudentNetwork = StudentNetwork()
    trust: Literal["none", "code"] = "none"
    init: Init | None = None
    head: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    train: Literal["all", "decoder"] = "all"
    steps: Positive
    settle: Annotated[float, Field(gt=0, lt=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 8
    accumulate: Positive = 1
    input_size: Size | None = None
    crop: Size | None = (256, 512)
    scale: tuple[PositiveReal, PositiveReal] = (0.5, 1.5)
    flip: bool = True
    colour: Share = 0.0
    blur: Share = 0.0
    class_mix: Share = 0.0
    rare_class_temperature: PositiveReal | None = None
    preprocess: Preprocess = Preprocess()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveReal = 5e-4
    head_lr_factor: PositiveReal = 1.0
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    power: Annotated[float, Field(ge=0)] = 0.9
    warmup: Annotated[int, Field(ge=0)] = 0
    clip: PositiveReal | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_norm: Literal["sync", "local", "frozen"] = "sync"
    class_balance: Annotated[float, Field(ge=1)] = 1.0
    often_balance: Annotated[float, Field(ge=1)] = 1.0
    hard_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        paper = PAPER if given.get("preset") == "paper" else {}
        still = STILL if given.get("train") == "decoder" else {}
        return {**{k: setting.value for k, setting in paper.items()}, **still, **given}

    @field_validator("init", mode="before")
    @classmethod
    def _file_alone(cls, given: Any) -> Any:
        if given is None or isinstance(given, Mapping | Init):
            return given
        if isinstance(given, str):
            return {"file": given}
        raise ValueError(
            "expected a file, or {file: FILE, into: NAME, ...}, imagenet or none, found "
            f"{given!r}"
        )

    @property
    def begins_with(self) -> Init | None:
        """The first weights; None for those that the network is built with."""
        if self.init is None:
            return None if self.network.backbone is None else Init(file="imagenet")
        # of all that is built, only a folder of transformers may come with weights
        return None if self.init.file == "none" and self.network.hf is None else self.init

    @property
    def head_names(self) -> tuple[str, ...] | None:
        """The patterns of the head; None where its usual names are meant."""
        if self.head is None and self.network.backbone is not None:
            return ("decoder.*",)
        return self.head

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is {self.scale}; expected the smaller factor first")
        for key, instead in (
            ("size", "use `input_size`"),
            ("factor", "use `input_size`"),
            ("interpolation", "training resizes bilinearly"),
            ("align_corners", "logits are resized with align_corners false"),
            ("flip", "training flips by its own `flip`"),
            ("scales", "use `scale`"),
            ("tiles", "use `crop`"),
        ):
            if getattr(self.preprocess, key) is not None:
                raise ValueError(f"`preprocess.{key}` is for teachers; {instead}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("`nesterov` needs `optimizer: sgd` and a momentum above 0")
        if self.batch_size % self.accumulate or self.batch_size == self.accumulate:
            raise ValueError(
                f"batch_size is {self.batch_size} and accumulate {self.accumulate}; expected "
                "parts of equal size, of at least 2 images"
            )
        begin = self.begins_with
        if begin is not None and begin.file == "imagenet":
            backbones.require_package(self.network.backbone)
        if self.network.factory is not None and self.init is not None and self.init.file == "none":
            raise ValueError("`init: none`: the code that makes this network chooses its weights")
        if self.train == "decoder":
            self._require_still()
        elif self.crop is None:
            raise ValueError("`crop: null`, whole images, goes with `train: decoder`")
        require_trust(self.network, self.trust, "this section")
        return self

    def _require_still(self) -> None:
        """Refuse what needs more of an image than its features, computed once."""
        if self.network.backbone is None or self.network.divisor != 1:
            raise ValueError("`train: decoder` goes with a `backbone`, and without `divisor`")
        for key, value in STILL.items():
            if getattr(self, key) != value:
                raise ValueError(
                    f"{key} is {getattr(self, key)}; with `train: decoder` it is {value}, as what "
                    "the backbone makes of an image is computed once; leave it out, or "
                    f"{self.sees_pixels}"
                )
        if any(side % backbones.STRIDES[-1] for side in self.crop or ()):
            raise ValueError(
                f"crop is {self.crop}; with `train: decoder` expected multiples of "
                f"{backbones.STRIDES[-1]}, of which features are cut (images smaller than that are "
                f"padded); or {self.sees_pixels}"
            )


class Probe(Training):
    """The small identical student that measures each teacher (paper, section 3.2).

    Of several `folds` of the training images each is asked of a probe that was trained on the
    others; with one, the probe is asked of what it was trained on, as in the paper. Where no
    `network` is given, or `arch: linear`, `presets.LINEAR` stands for what is not said, unless a
    `preset` or `train: all` is.
    """

    sees_pixels: ClassVar[str] = (
        "say `network: {arch: tiny}` or another one: without, a probe is linear in stored features"
    )

    steps: Positive = 800
    folds: Positive = 1

    @model_validator(mode="before")
    @classmethod
    def _linear_unless_said(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("preset") is not None:
            return given
        network = given.get("network", LINEAR["network"])
        is_linear = isinstance(network, Mapping) and network.get("arch") == "linear"
        return {**LINEAR, **given} if is_linear and given.get("train") != "all" else given


class Student(Training):
    """The final student."""

    steps: Positive = 2000
    watch: str | None = None
    watch_every: Positive = 500
    checkpoint: Literal["last", "best"] = "last"
    pixel_weights: Literal["none", "posterior"] = "none"

    @model_validator(mode="after")
    def _best_needs_watch(self) -> Student:
        if self.checkpoint == "best" and self.watch is None:
            raise ValueError("`checkpoint: best` needs `watch: SPLIT` with a labelled split")
        return self


class Policy(Section):
    """Which teacher each class is taken from."""

    strategy: Literal["certainty", "reliability", "manual"] = "certainty"
    min_support: Share = 1e-5
    assign: Annotated[Mapping[str, str], Field(max_length=MAX_FUSED)] | None = None

    @model_validator(mode="after")
    def _assign_is_manual(self) -> Policy:
        if (self.assign is not None) != (self.strategy == "manual"):
            raise ValueError("`assign: {class: teacher}` and `strategy: manual` go together")
        return self


class Fusion(Section):
    """How label maps become one: by the label model, or as in the paper (section 3.3)."""

    method: str = LABEL_MODEL.name
    window: Positive = 35
    conflict: Literal["window", "certainty", "ignore"] = "window"
    holes: Literal["window", "ignore"] = "window"

    @field_validator("method", mode="before")
    @classmethod
    def _known(cls, method: object) -> object:
        known = [repr(m.name) for m in METHODS if m.is_own]
        if repr(method) not in known:
            raise ValueError(
                f"expected {', '.join(known[:-1])} or {known[-1]}, found {shown(method)}"
            )
        return method

    @field_validator("window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"expected an odd number of pixels, found {window}")
        return window


class LabelModel(Section):
    """What the label model is fitted to: the training images, or the split that is fused."""

    fit: Literal["train", "fused"] = "fused"


class Runtime(Section):
    """How the work is done. Recorded in manifests, never part of a fingerprint."""

    device: str = "auto"
    batch_size: Positive = 1  # of networks that are only run
    channels_last: bool = True
    workers: Annotated[int, Field(ge=0)] = 2
    threads: Positive | None = None
    checkpoint_every: Positive = 200
    cache: bool = True
    keep_checkpoints: Positive = 2
    tensorboard: str | None = None
    # of an image, for want of memory; kept out of manifests: it changes nothing that is made
    max_pixels: Annotated[int, Field(gt=0, exclude=True)] = 178_956_970
    jobs: Positive = 1  # probes at a time, each in a process of its own
    scheduler: str | None = None  # of dask, for several machines: its address, or its file

    @model_validator(mode="after")
    def _one_device_a_job(self) -> Runtime:
        if self.jobs > 1 and self.scheduler is not None:
            raise ValueError(
                "`jobs` are processes of this machine; with `scheduler` its workers are the jobs"
            )
        if self.device.startswith("cuda:") and (self.jobs > 1 or self.scheduler is not None):
            raise ValueError(
                f"device is {self.device}, but each of several jobs has a device of its own; say "
                "`device: cuda`, and which devices they share with CUDA_VISIBLE_DEVICES"
            )
        return self


class Config(Section):
    """The whole experiment file."""

    version: Literal[1]
    workspace: str = "work"
    classes: Classes
    target: Mapping[str, Split]
    teachers: tuple[Teacher, ...] = Field(min_length=1)
    probe: Probe = Probe()
    policy: Policy = Policy()
    fusion: Fusion = Fusion()
    label_model: LabelModel = LabelModel()
    student: Student = Student()
    runtime: Runtime = Runtime()
