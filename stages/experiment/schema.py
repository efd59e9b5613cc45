"""The experiment file: what may stand in it, and what is meant where nothing does.

Light on purpose: `status` reads it, and must answer before torch would be imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, create_model, field_validator, model_validator

from ensdistill.data.classes import Ids
from ensdistill.pipeline.config import Section
from ensdistill.pipeline.errors import shown
from ensdistill.pipeline.fingerprint import canonical_json
from ensdistill.stages.experiment.presets import PAPER, PRESETS
from ensdistill.stages.functional import MAX_FUSED
from ensdistill.stages.fusions import LABEL_MODEL, METHODS
from ensdistill.stages.networks.kinds import KINDS, SETTINGS, kind_of

Positive = Annotated[int, Field(gt=0, lt=2**31)]
PositiveReal = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Positive, Positive]  # height, width in pixels

TRAIN = "train"
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
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


class Tiles(Section):
    """Parts of an image that a network sees one by one, each `size`, sharing `overlap` pixels."""

    size: Size
    overlap: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)

    @model_validator(mode="after")
    def _moves_on(self) -> Tiles:
        if self.overlap[0] >= self.size[0] or self.overlap[1] >= self.size[1]:
            raise ValueError(f"overlap is {self.overlap}; expected less than size, {self.size}")
        return self


class Preprocess(Section):
    """How an image becomes a network's input; a field left out takes the network's own value.

    ``x = (pixel / scale - mean) / std``, channel by channel, in the order of `channels`. Before,
    the image is resized to `size` (``image`` leaves it as it is), or by `factor`. With `scales` the
    network sees it at each of these multiples of that, with `flip` also mirrored, with `tiles` in
    parts; what it says is averaged.
    """

    preset: Literal["imagenet", "caffe"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[PositiveReal, PositiveReal, PositiveReal] | None = None
    scale: PositiveReal | None = None
    channels: Literal["rgb", "bgr"] | None = None
    size: Size | Literal["image"] | None = None
    factor: PositiveReal | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    align_corners: bool | None = None
    flip: bool | None = None
    scales: Annotated[tuple[PositiveReal, ...], Field(min_length=1)] | None = None
    tiles: Tiles | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("preset") in [*PRESETS]:  # or unhashable
            own = {k: v for k, v in given.items() if k != "preset"}
            return {**PRESETS[given["preset"]], **own}
        return given

    @model_validator(mode="after")
    def _one_size(self) -> Preprocess:
        if self.size is not None and self.factor is not None:
            raise ValueError("expected one of size and factor")
        return self


def _listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them."""
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _output_name(given: Any) -> str:
    """Return the name or position of a network's output as a text."""
    if isinstance(given, str) and given:
        return given
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return str(given)
    raise ValueError(f"expected the name or the position (0, 1, ...) of an output, found {given!r}")


def _output_weight(key: Any, given: Any) -> float:
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not number or not 0 < abs(given) <= sys.float_info.max:
        raise ValueError(f"the weight of {key!r} is {given!r}; expected a number other than 0")
    return float(given)


def _require_trust(network: Built, trust: str, where: str) -> None:
    if (code := network.code) is not None and trust != "code":
        raise ValueError(
            f"{code} is code that would run here with your rights; if you trust it, "
            f"say `trust: code` on {where}"
        )


class Built(Section):
    """What a network is built from: a folder of transformers or a function.

    `factory` names a function of modules below `root`; it gets `kwargs`, and the paths of `files`,
    and returns a `torch.nn.Module` that turns images into logits. Its code and its files are part
    of the network's key. Images are padded at the bottom and right to a multiple of `divisor`.
    """

    kinds: ClassVar[tuple[str, ...]] = tuple(kind.key for kind in KINDS if kind.trainable)

    hf: str | None = None
    factory: str | None = None
    root: str | None = None
    kwargs: Mapping[str, Any] = {}
    files: Mapping[str, str] = {}
    divisor: Positive = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(given := self._given) > 1:
            raise ValueError(f"expected one of {_listed(self.kinds)}, found {given}")
        if self.factory is not None and not _FUNCTION.fullmatch(self.factory):
            raise ValueError(f"factory is {self.factory!r}; expected package.module:function")
        if (self.factory is None) != (self.root is None):
            raise ValueError("`factory` and `root`, the folder its modules are in, go together")
        if self.factory is None and (self.kwargs or self.files):
            raise ValueError("`kwargs` and `files` go with `factory`")
        try:
            canonical_json(dict(self.kwargs))
        except (TypeError, ValueError) as error:
            raise ValueError(f"kwargs: {error}; expected what JSON can say") from None
        if twice := set(self.kwargs) & set(self.files):
            raise ValueError(f"{min(twice)!r} is in both `kwargs` and `files`")
        return self

    @property
    def _given(self) -> list[str]:
        return [k for k in self.kinds if getattr(self, k) is not None]

    @property
    def kind(self) -> str:
        """Which of `kinds` it is."""
        return self._given[0]

    @property
    def path(self) -> str:
        """The folder or file that it is, or is built from, as written in the file."""
        return self.root if self.root is not None else str(getattr(self, self.kind))

    @property
    def code(self) -> str | None:
        """What of it runs code that came with it, as written in the file."""
        codes = [kind.key for kind in KINDS if kind.runs_code and kind.key in self._given]
        return getattr(self, codes[0]) if codes else None

    @property
    def paths(self) -> list[str]:
        """The folders and files it is made from, as written in the file."""
        return [p for p in (self.hf, self.root, *self.files.values()) if p is not None]


BuiltT = TypeVar("BuiltT", bound=Built)


def _with_kinds(section: type[BuiltT]) -> type[BuiltT]:
    """Return a section with a field, the path, for each of its kinds that it does not spell out."""
    fields: dict[str, Any] = {
        key: (str | None, None) for key in section.kinds if key not in section.model_fields
    }
    return create_model(
        section.__name__,
        __base__=section,
        __doc__=section.__doc__,
        __module__=section.__module__,
        **fields,
    )


@_with_kinds
class Network(Built):
    """A frozen network, of whatever kind.

    `student` is the folder of one trained here, `onnx`, `exported` (.pt2) and `torchscript` are
    files. `state_dict` holds the weights where `hf` or `factory` gives the architecture alone; keys
    that match a pattern of `ignore_keys` may be on one side only. `hf` may also be a hub's
    ``owner/name`` with the `revision`, 40 hex digits. `output` says what it returns, for each of
    its channels but the `void_channels`; where it returns several outputs, `take` which of them, by
    name or position (``1``, ``out``, ``aux/0``), or the weights of those whose sum is meant.
    """

    kinds: ClassVar[tuple[str, ...]] = tuple(kind.key for kind in KINDS)

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    state_dict: str | None = None
    ignore_keys: tuple[str, ...] = ()
    output: Literal["logits", "probabilities", "ids"] = "logits"
    void_channels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    take: str | Mapping[str, float] | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @field_validator("take", mode="before")
    @classmethod
    def _one_form(cls, given: Any) -> Any:
        """Return names as texts and weights as numbers: `1` and `"1"` are one."""
        if given is None:
            return None
        if not isinstance(given, Mapping):
            return _output_name(given)
        weights = {_output_name(key): _output_weight(key, value) for key, value in given.items()}
        if len(weights) != len(given) or not given:
            raise ValueError(f"expected the weight of each output once, found {dict(given)}")
        return weights

    @model_validator(mode="after")
    def _one_kind(self) -> Network:
        if not self._given:
            raise ValueError(f"expected one of {_listed(self.kinds)}, found none")
        for key in SETTINGS:
            used = getattr(self, key) != type(self).model_fields[key].default
            if used and key not in kind_of(self.kind).settings:
                raise ValueError(f"`{key}` does not go with `{self.kind}`")
        if self.ignore_keys and self.state_dict is None:
            raise ValueError("`ignore_keys` goes with `state_dict`")
        for key, given in (
            ("void_channels", bool(self.void_channels)),
            ("divisor", self.divisor != 1),
            ("take: {...}", isinstance(self.take, Mapping)),
        ):
            if self.output == "ids" and given:
                raise ValueError(f"`{key}` is for scores; a network whose output is `ids` has none")
        return self

    @property
    def paths(self) -> list[str]:
        """The folders and files it is made from, as written in the file."""
        more = [self.state_dict] if self.state_dict is not None else []
        return [self.path, *self.files.values(), *more]


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
        _require_trust(self.network, self.trust, "this teacher")
        ways = [k for k in ("flip", "scales", "tiles") if getattr(self.preprocess, k) is not None]
        if self.network.output == "ids" and (ways or self.keep):
            raise ValueError("a network whose output is `ids` has no scores to average or to keep")
        if "soft" in self.keep and {"scales", "tiles"} & set(ways):
            raise ValueError("`keep: [soft]` needs the scores of whole images at one scale")
        return self


class StudentNetwork(Built):
    """What a probe or student is built from; it may also be an architecture of ours."""

    kinds: ClassVar[tuple[str, ...]] = ("arch", *Built.kinds)

    arch: Literal["mobilenetv2-deeplabv3plus", "tiny"] | None = None

    @property
    def architecture(self) -> str:
        """The architecture of ours, where nothing else is given."""
        return self.arch or "mobilenetv2-deeplabv3plus"


def _ends_in_a_dot(text: str) -> str:
    """Return the beginning of dotted names as names have it."""
    if not (plain := text.strip(".")):
        raise ValueError(f"expected what names begin with, such as encoder, found {text!r}")
    return f"{plain}."


Prefix = Annotated[str, AfterValidator(_ends_in_a_dot)]


class Init(Section):
    """The first weights of a training, from a file.

    All tensors of the network are what the file holds, or with `into` those whose names begin with
    it; the others stay as they were made, and so does the head, unless it is to `keep` what the
    file has for it. With `strip` only names of the file that begin with it count, without it.
    """

    file: str
    into: Prefix | None = None
    strip: Prefix | None = None
    head: Literal["new", "keep"] = "new"


class Training(Section):
    """How a probe or a student is trained. Sizes are height, width in pixels.

    `preset: paper` stands for the settings of `presets.PAPER`; whatever is given beside it holds.
    `head` are patterns (``decoder.*``) of the names that are the network's head, without the
    prefixes of wrappers; left out, it is what is called ``head``, ``decode_head``,
    ``auxiliary_head``, ``segmentation_head`` or ``classifier``.
    """

    preset: Literal["paper"] | None = None
    network: StudentNetwork = StudentNetwork()
    trust: Literal["none", "code"] = "none"
    init: Init | None = None
    head: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    steps: Positive
    batch_size: Annotated[int, Field(ge=2)] = 8
    accumulate: Positive = 1
    input_size: Size | None = None
    crop: Size = (256, 512)
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
        if isinstance(given, Mapping) and given.get("preset") == "paper":
            return {**{k: setting.value for k, setting in PAPER.items()}, **given}
        return given

    @field_validator("init", mode="before")
    @classmethod
    def _file_alone(cls, given: Any) -> Any:
        if given is None or isinstance(given, Mapping | Init):
            return given
        if isinstance(given, str):
            return {"file": given}
        raise ValueError(f"expected a file, or {{file: FILE, into: NAME, ...}}, found {given!r}")

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
        _require_trust(self.network, self.trust, "this section")
        return self


class Probe(Training):
    """The small identical student that measures each teacher (paper, section 3.2)."""

    steps: Positive = 800  # what shorter ones cost: stages/DESIGN.md, "How long a probe"


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
