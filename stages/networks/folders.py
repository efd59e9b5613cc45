"""What the JSON files of a network's folder say; no torch needed."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from ensdistill.data.classes import MAX_CLASSES
from ensdistill.pipeline.config import Foreign, described, read_object
from ensdistill.pipeline.errors import DataError, shortened, shown
from ensdistill.pipeline.opening import what_instead
from ensdistill.stages.networks.backbones import ARCHITECTURES
from ensdistill.stages.networks.whole import require_whole, tensor_shapes

NETWORK: Final = "network.json"
DESCRIBED: Final = 1  # its `format`; later keys are read past
_OURS: Final = ["tiny", "mobilenetv2-deeplabv3plus", *ARCHITECTURES]
_INTERPOLATIONS: Final = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
INDEX: Final = "model.safetensors.index.json"
WEIGHTS: Final = "model.safetensors"
_FORMS: Final = (WEIGHTS, INDEX)
# The last layers of transformers' models: of one channel a class, and of one more for no object.
_HEAD: Final = re.compile(
    r"(decode_head\.classifier|segmentation_head\.classifier\.convolution|head\.head\.4"
    r"|decoder\.head)\.weight"
)
_HEAD_OF_QUERIES: Final = re.compile(
    r"(.*\.)?(class_predictor|class_embed|class_labels_classifier)\.weight"
)
_LAYERS: Final = re.compile("layers|depth|blocks|stages")
_MOST_LAYERS: Final = 1000
_MOST: Final = 10**7  # of any other whole number in a config
_ATTENTIONS: Final = ("eager", "flex_attention", "sdpa")
# Types of models whose `backbone` alone names a config elsewhere.
BACKBONES: Final = (
    "detr",
    "dpt",
    "mask2former",
    "maskformer",
    "oneformer",
    "tipsv2_dpt",
    "upernet",
)

Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Divisor = Annotated[float, Field(gt=1e-6, lt=1e6)]  # what other numbers are divided by
Side = Annotated[int, Field(gt=0, le=2**15)]  # of an image, in pixels
Channels = Field(min_length=3, max_length=3)


class _Labels(Foreign):
    """What a `config.json` says of the classes."""

    id2label: Annotated[dict[str, str | int], Field(min_length=1)] | None = None
    num_labels: Annotated[int, Field(gt=0)] | None = None


class _Index(Foreign):
    weight_map: Annotated[dict[str, Any], Field(min_length=1)]  # to names, looked at below


class _Processor(Foreign):
    """What is read of a `preprocessor_config.json`; the library writes null where nothing is."""

    do_normalize: bool | None = True
    image_mean: Annotated[list[Number], Channels] | None = None
    image_std: Annotated[list[Divisor], Channels] | None = None
    do_rescale: bool | None = True
    rescale_factor: Divisor | None = None
    do_flip_channel_order: bool | None = None
    do_resize: bool | None = True
    size: Any = None
    size_divisor: Annotated[int, Field(ge=0)] | None = None
    ensure_multiple_of: Annotated[int, Field(ge=0)] | None = None
    resample: int | None = 2

    @field_validator("size")
    @classmethod
    def _a_size(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for side, length in given.items():
                if length is None:  # of several ways to give a size
                    continue
                if type(length) is not int or not 0 < length <= 2**15:
                    raise ValueError(f"{side} is {shown(length)}; expected 1 to {2**15} pixels")
        return given

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.do_normalize and (self.image_mean is None) != (self.image_std is None):
            lacking = "image_mean" if self.image_mean is None else "image_std"
            raise ValueError(
                f"{lacking} is missing or null; expected image_mean and image_std, of three "
                "numbers each, or `do_normalize: false`"
            )
        return self


class _Preprocessing(Foreign):
    """How a student's images are prepared (see `preprocessing.Preprocessing`)."""

    model_config = ConfigDict(extra="forbid")

    mean: Annotated[list[Number], Channels]
    std: Annotated[list[Divisor], Channels]
    scale: Divisor
    channels: Literal["rgb", "bgr"]
    size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    align_corners: bool = False


class _HfConfig(Foreign):
    model_type: str


class _Architecture(Foreign):
    """What a student is built from, where that is none of ours: one of the two."""

    hf_config: _HfConfig | None = None
    factory: Any = None


class _Built(Foreign):
    architecture: _Architecture


class _Description(Foreign):
    """The content of a student's ``network.json``."""

    format: Annotated[int, Field(ge=1, le=DESCRIBED)] = DESCRIBED
    architecture: Any
    classes: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)]
    preprocessing: _Preprocessing
    divisor: Side = 1


def network_classes(
    folder: Path, kind: str, where: str, *, weights: bool = True
) -> list[str] | int:
    """Return the names of a network's classes, or only their number where it gives no names.

    Parameters
    ----------
    folder : Path
        A transformers folder, or that of a student trained here.
    kind : str
        ``"hf"`` or ``"student"``.
    where : str
        The key of the experiment file, for errors.
    weights : bool
        Whether weights must be there.

    Raises
    ------
    DataError
        If the folder does not hold such a network with weights as safetensors, or not all of it,
        or its head has another number of classes than its config.
    """
    if weights and not any((folder / name).is_file() for name in _FORMS):
        raise DataError(
            f"{where}: {folder} holds no {WEIGHTS}; expected a folder written by "
            + ("`model.save_pretrained(folder)`" if kind == "hf" else "`ensdistill train-student`")
        )
    try:
        return _classes_of(folder, kind, weights=weights)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _classes_of(folder: Path, kind: str, *, weights: bool) -> list[str] | int:
    if kind == "student":
        description = read_description(folder)
        require_no_code(folder, description)
        require_whole(folder / WEIGHTS)
        return list(description["classes"])
    require_own_files(folder)
    path = folder / "config.json"
    config = read_object(path)
    names = _label_names(config, path)
    count = names if isinstance(names, int) else len(names)
    shapes = [tensor_shapes(file) for file in weight_files(folder)] if weights else []
    head = _head(shapes) if "auto_map" not in config else None
    if head is not None and head[1] != count:
        raise DataError(
            f"{path} has {count} classes by its `id2label`, and the weights are of a head of "
            f"{head[1]} classes ({head[0]}); write all of them into `id2label`, in the order of "
            "the head's channels"
        )
    return names


def _label_names(config: Mapping[str, Any], path: Path) -> list[str] | int:
    """Return the names of the classes in a `config.json`, or their number where it has none."""
    given = described(path, config, _Labels)
    if given.id2label is None:  # transformers leaves out what equals its default of two
        return given.num_labels or 2
    count = len(given.id2label)
    try:
        named = {int(k): str(v) for k, v in given.id2label.items()}
    except ValueError as error:
        raise DataError(
            f"{path}: `id2label` has keys that are no numbers ({shortened(str(error))}); expected "
            f"each of 0 to {count - 1} once"
        ) from error
    if named.keys() != set(range(count)):
        why = f"lacks {min(set(range(count)) - named.keys())}"
        if named.keys() == set(range(1, count + 1)):
            why = "begins at 1"
        raise DataError(
            f"{path}: `id2label` {why}; expected each of 0 to {count - 1} once, as the channels "
            "of the head are counted"
        )
    if given.num_labels not in (None, count):
        raise DataError(
            f"{path}: `num_labels` is {given.num_labels}, and `id2label` names {count} "
            "classes; take `num_labels` away, or name all classes"
        )
    names = [named[i] for i in range(count)]
    return count if all(n == f"LABEL_{i}" for i, n in enumerate(names)) else names


def _head(files: Iterable[Mapping[str, list[int]]]) -> tuple[str, int] | None:
    """Return the last layer among the shapes of files of weights, and the number of its classes.

    None where no layer has a name that is known.
    """
    for shapes in files:
        for name, shape in shapes.items():
            if shape and (_HEAD.fullmatch(name) or _HEAD_OF_QUERIES.fullmatch(name)):
                return name, shape[0] - (_HEAD.fullmatch(name) is None)
    return None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a transformers folder (see `shards`)."""
    whole = folder / WEIGHTS
    return [whole] if whole.is_file() else [folder / name for name in shards(folder / INDEX)]


def shards(index: Path) -> list[str]:
    """Return the names of the files that hold the weights which an index lists, sorted.

    Raises
    ------
    DataError
        If it cannot be read, or names anything but safetensors files beside it: what lies
        elsewhere is part of no key.
    """
    names = list(described(index, read_object(index), _Index).weight_map.values())
    for name in names:
        beside = isinstance(name, str) and name == re.sub(r"[/\\\0]", "", name)
        if not beside or Path(name).suffix != ".safetensors":
            raise DataError(
                f"{index}: weight_map names {shown(name)}; expected safetensors files in the same "
                "folder, by their names without a folder: what lies elsewhere is not part of the "
                "network's key. Put them beside it"
            )
    return sorted({*names})


def require_own_files(folder: Path) -> None:
    """Refuse a transformers folder that would read files which are not those in it.

    Raises
    ------
    DataError
        If its files name weights, a base model, a backbone or a config that lie elsewhere, or
        weights that are not there, or a library would find what is no regular file.
    """
    _require_regular(folder)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        gone = [name for name in shards(index) if not (folder / name).is_file()]
        if gone and index == folder / INDEX and not (folder / WEIGHTS).is_file():
            raise DataError(
                f"{index}: weight_map names {gone[0]!r}, which is not there; expected all files "
                "that it names in the same folder"
            )
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        raise DataError(
            f"{adapter}: an adapter changes the weights of another model, where the package peft "
            "is installed; merge the two and save the whole: `model.merge_and_unload()"
            ".save_pretrained(FOLDER)`"
        )
    path = folder / "config.json"
    if path.exists():
        require_own_parts(path, read_object(path))


def _require_regular(folder: Path) -> None:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error
    for path in paths:
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise DataError(f"{path}: {what_instead(path)}; take it out of the folder")


def require_own_parts(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse, with DataError, a config of transformers that names files other than those beside it.

    And one with numbers that no network of this world has, of which a library would build layers,
    or fill memory, without end. `path` is the JSON file that it is from.
    """
    for key, number in _leaves(config):
        most = _MOST_LAYERS if _LAYERS.search(key) else _MOST
        if isinstance(number, int) and number > most:
            raise DataError(f"{path}: {key} is {shown(number)}; expected at most {most:,}")
    if config.get("transformers_weights") not in (None, *_FORMS):
        raise DataError(
            f"{path}: transformers_weights names {shown(config['transformers_weights'])}; expected "
            f"weights in {WEIGHTS}: rename them, and take that key away"
        )
    if config.get("configuration_files"):
        raise DataError(
            f"{path}: configuration_files names {shown(config['configuration_files'])}, of which "
            "one would be read in its place; write the one that is meant into config.json"
        )
    for key, name in _attentions(config):
        raise DataError(
            f"{path}: {key} is {shown(name)}, whose code would be asked of a hub; write "
            f"{' or '.join(map(repr, sorted(_ATTENTIONS)))}, or take the key away"
        )
    for name in _backbones(config):
        raise DataError(
            f"{path}: backbone is {shown(name)} and there is no backbone_config, so that its "
            "settings would be asked of a hub; write them into backbone_config, as "
            "`model.save_pretrained` of transformers 5 does, and take backbone and "
            "use_pretrained_backbone away"
        )


def _attentions(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield how a config, or one in it, computes attention, where not by torch itself.

    Kernels of others, flash attention too, are code that transformers gets from a hub where the
    package `kernels` is installed.
    """
    for found in _objects(config):
        for key in ("attn_implementation", "_attn_implementation"):
            named = found.get(key)
            for name in named.values() if isinstance(named, dict) else [named]:
                if name is not None and name not in _ATTENTIONS:
                    yield key, name


def _backbones(config: Any) -> Iterator[Any]:
    """Yield the backbones that a config, or one in it, gives by name alone."""
    for found in _objects(config):
        kind = found.get("model_type")
        named = kind in BACKBONES and found.get("backbone_config") is None
        # of timm it is a name for code, and its weights are among the others
        of_timm = kind == "detr" and found.get("use_timm_backbone", True)
        if named and not (of_timm and not found.get("backbone_kwargs")):
            yield from filter(None, [found.get("backbone")])


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in a JSON value, each before those in it."""
    if isinstance(content, dict):
        yield content
        content = list(content.values())
    for value in content if isinstance(content, list) else ():
        yield from _objects(value)


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a JSON value holds beside objects and lists, with the keys that it is under."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _leaves(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _leaves(value, key)
    else:
        yield key, content


def hf_preprocessing(folder: Path, declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing that a transformers folder declares.

    Parameters
    ----------
    folder : Path
        Its ``preprocessor_config.json`` is read; without one nothing is declared.
    declared : mapping
        The experiment's own `preprocess`, which a setting that cannot be followed must override.

    Raises
    ------
    DataError
        If it asks for what this package does not do, rather than to do something else in silence.
    """
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return {}
    content = read_object(path)
    given = described(path, content, _Processor)
    settings: dict[str, Any] = {}
    if not given.do_normalize:
        settings |= {"mean": [0, 0, 0], "std": [1, 1, 1]}
    elif given.image_mean is not None:
        settings |= {"mean": given.image_mean, "std": given.image_std}
    if not given.do_rescale:
        settings["scale"] = 1
    elif given.rescale_factor is not None:
        settings["scale"] = 1 / given.rescale_factor
    if given.do_flip_channel_order:
        settings["channels"] = "bgr"
        for key in ("mean", "std"):  # there they follow the flip
            settings.setdefault(key, {"mean": [0, 0, 0], "std": [1, 1, 1]}[key])
    own_size = {"size", "factor"} & declared.keys()  # which overrides all that changes the shape
    size = given.size
    divisor = given.size_divisor or given.ensure_multiple_of or 1
    whole = isinstance(size, dict) and None not in (size.get("height"), size.get("width"))
    if whole and size["height"] % divisor == size["width"] % divisor == 0:
        divisor = 1  # then it asks for nothing
    unknown = ("do_center_crop", "keep_aspect_ratio", "do_pad", "do_split_image")
    asked = {k: content.get(k) for k in unknown} | {
        "size_divisor": divisor if divisor > 1 else None
    }
    for key, value in asked.items():
        if value and not own_size:
            raise DataError(
                f"{path}: {key} is {shown(value)}, which is not supported; say how the images are "
                "to be resized: `preprocess: {size: [HEIGHT, WIDTH]}` or `{size: image}` on the "
                "teacher, and `divisor` on its network if their sizes have to be multiples of a "
                "number"
            )
    if given.do_resize and size is not None:
        if whole:
            settings["size"] = (size["height"], size["width"])
        elif not own_size:
            raise DataError(
                f"{path}: size is {shown(size)}; expected height and width. Say how the images "
                "are to be resized: `preprocess: {size: [HEIGHT, WIDTH]}` or `{size: image}` on "
                "the teacher"
            )
        if given.resample in _INTERPOLATIONS:
            settings["interpolation"] = _INTERPOLATIONS[given.resample]
        elif "interpolation" not in declared:
            raise DataError(
                f"{path}: resample is {given.resample}; set "
                "`preprocess: {interpolation: bilinear}`"
            )
    return settings


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of a trained student's ``network.json``.

    Raises
    ------
    DataError
        If it is missing, or does not say what a network is built from and for.
    """
    path = folder / NETWORK
    found = read_object(path)
    architecture = described(path, found, _Description).architecture
    if architecture in _OURS:
        return found
    if isinstance(architecture, str):
        raise DataError(
            f"{path}: architecture is {shown(architecture)}; expected {', '.join(_OURS)}, "
            "hf_config or factory"
        )
    built = described(path, found, _Built).architecture
    if (built.hf_config is None) == (built.factory is None):
        raise DataError(f"{path}: architecture: expected one of hf_config and factory")
    if built.hf_config is not None:
        require_own_parts(path, architecture["hf_config"])
    return found


def require_no_code(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse, with DataError, a trained student made by code, which its folder does not hold."""
    architecture = description["architecture"]
    if isinstance(architecture, dict) and "factory" in architecture:
        function = shortened(str(architecture["factory"]))
        raise DataError(
            f"{folder}: its network is made by {function}, and that code is not in the folder. "
            "Give it as `network: {factory: ..., root: ...}` with a function "
            f"that loads {WEIGHTS}, and that file in `files`; {NETWORK} says which "
            "`preprocess` it needs"
        )


def onnx_data_files(file: Path) -> list[Path]:
    """Return the files that may hold the weights of an ONNX model, sorted.

    Those beside it whose names begin with its own: ``model.onnx.data``, ``model.onnx_data``.
    """
    beside = file.parent.iterdir() if file.parent.is_dir() else ()
    return sorted(
        p for p in beside if p.name.startswith(file.name) and p.name != file.name and p.is_file()
    )


def require_trusted_code(folder: Path, *, trusted: bool) -> None:
    """Refuse a transformers folder that brings code of its own, unless it is trusted.

    Its ``config.json`` and ``tokenizer_config.json`` are read, where there are any.

    Raises
    ------
    DataError
        If an ``auto_map`` names code and it is not trusted, or names that of another repository.
    """
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        named = sorted(_code_in(read_object(path))) if path.exists() else []
        if named and not trusted:
            raise DataError(
                f"{path}: its `auto_map` names code ({', '.join(named)}) that would run here with "
                "your rights; if you trust where the folder is from, say `trust: code` on that "
                "entry"
            )
        if away := [code for code in named if "--" in code]:
            raise DataError(
                f"{path}: its `auto_map` names code of another repository ({away[0]}), which may "
                "change; copy those files into the folder and name them without `--`"
            )
        if away := [code for code in named if "/" in code or "\\" in code]:
            raise DataError(
                f"{path}: its `auto_map` names code in another folder ({away[0]}), which is not "
                f"part of the network's key; put those modules beside {name}"
            )


def _code_in(content: Any) -> Iterator[str]:
    """Yield what the `auto_map`s in the content of a JSON file name."""
    for found in _objects(content):
        for _, code in _leaves(found.get("auto_map")):
            if code is not None:
                yield str(code)
