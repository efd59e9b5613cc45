"""What the experiment file may say of a network, and of what it sees.

Light on purpose, as all of the schema.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import Field, create_model, field_validator, model_validator

from ensdistill.pipeline.config import Section
from ensdistill.pipeline.fingerprint import canonical_json
from ensdistill.stages.experiment.presets import PRESETS
from ensdistill.stages.networks import backbones
from ensdistill.stages.networks.kinds import KINDS, SETTINGS, kind_of

Positive = Annotated[int, Field(gt=0, lt=2**31)]
PositiveReal = Annotated[float, Field(gt=0)]
Size = tuple[Positive, Positive]  # height, width in pixels

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


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


def require_trust(network: Built, trust: str, where: str) -> None:
    """Refuse, with ValueError, code of a network that is not trusted."""
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


class StudentNetwork(Built):
    """What a probe or student is built from; it may also be an architecture of ours.

    `backbone` is what `arch: deeplabv3plus` and `arch: linear` stand on.
    """

    kinds: ClassVar[tuple[str, ...]] = ("arch", *Built.kinds)

    arch: Literal["mobilenetv2-deeplabv3plus", "deeplabv3plus", "linear", "tiny"] | None = None
    backbone: backbones.Name | None = None

    @model_validator(mode="after")
    def _on_a_backbone(self) -> Self:
        if (self.backbone is None) == (self.arch in get_args(backbones.Decoding)):
            archs, names = (_listed(get_args(of)) for of in (backbones.Decoding, backbones.Name))
            raise ValueError(f"`backbone`, one of {names}, goes with `arch`: {archs}")
        return self

    @property
    def architecture(self) -> str:
        """The architecture of ours, where nothing else is given."""
        name = self.arch or "mobilenetv2-deeplabv3plus"
        return name if self.backbone is None else f"{name}-{self.backbone}"
