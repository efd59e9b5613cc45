"""What the JSON files of a network's folder say; no torch needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline.errors import DataError

NETWORK: Final = "network.json"
_LONGEST: Final = 100_000_000  # bytes of a header, by safetensors' own rule
_INTERPOLATIONS: Final = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
INDEX: Final = "model.safetensors.index.json"
_WEIGHTS: Final = ("model.safetensors", INDEX)
# The last layers of transformers' models: of one channel a class, and of one more for no object.
_HEAD: Final = re.compile(
    r"(decode_head\.classifier|segmentation_head\.classifier\.convolution|head\.head\.4"
    r"|decoder\.head)\.weight"
)
_HEAD_OF_QUERIES: Final = re.compile(
    r"(.*\.)?(class_predictor|class_embed|class_labels_classifier)\.weight"
)
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
    if weights and not any((folder / name).is_file() for name in _WEIGHTS):
        raise DataError(
            f"{where}: {folder} holds no {_WEIGHTS[0]}; expected a folder written by "
            + ("`model.save_pretrained(folder)`" if kind == "hf" else "`ensdistill train-student`")
        )
    if kind == "student":
        description = read_description(folder)
        require_no_code(folder, description)
        return list(description["classes"])
    require_own_files(folder)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes(), object_pairs_hook=_each_key_once)
        names = _label_names(config, f"{where}: {path}")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: {path} cannot be read ({error!r})") from error
    count = names if isinstance(names, int) else len(names)
    head = _head(folder) if weights and "auto_map" not in config else None
    if head is not None and head[1] != count:
        raise DataError(
            f"{where}: {path} has {count} classes by its `id2label`, and the weights are of a head "
            f"of {head[1]} classes ({head[0]}); write all of them into `id2label`, in the order of "
            "the head's channels"
        )
    return names


def _label_names(config: Mapping[str, Any], where: str) -> list[str] | int:
    """Return the names of the classes in a `config.json`, or their number where it has none."""
    labels = config.get("id2label")
    if labels is None:  # transformers leaves out what equals its default of two
        return int(config.get("num_labels") or 2)
    named = {int(k): str(v) for k, v in labels.items()}
    count = len(labels)
    if named.keys() != set(range(count)):
        why = f"lacks {min(set(range(count)) - named.keys())}"
        if named.keys() == set(range(1, count + 1)):
            why = "begins at 1"
        raise DataError(
            f"{where}: `id2label` {why}; expected each of 0 to {count - 1} once, as the channels "
            "of the head are counted"
        )
    if config.get("num_labels") not in (None, count):
        raise DataError(
            f"{where}: `num_labels` is {config['num_labels']!r}, and `id2label` names {count} "
            "classes; take `num_labels` away, or name all classes"
        )
    names = [named[i] for i in range(count)]
    return count if all(n == f"LABEL_{i}" for i, n in enumerate(names)) else names


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of a key that appears twice, JSON would keep the last in silence."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return found


def _head(folder: Path) -> tuple[str, int] | None:
    """Return the last layer of a transformers folder's weights and the number of its classes.

    Read from the headers of the files; None where no layer has a name that is known.
    """
    for file in _weight_files(folder):
        for name, shape in _shapes(file).items():
            if shape and (_HEAD.fullmatch(name) or _HEAD_OF_QUERIES.fullmatch(name)):
                return name, shape[0] - (_HEAD.fullmatch(name) is None)
    return None


def _weight_files(folder: Path) -> list[Path]:
    whole = folder / _WEIGHTS[0]
    return [whole] if whole.is_file() else [folder / name for name in shards(folder / INDEX)]


def _shapes(file: Path) -> dict[str, list[int]]:
    """Return the shapes of a safetensors file's tensors by name; of a damaged file nothing."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, _LONGEST)))
        return {name: list(of["shape"]) for name, of in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}  # what is wrong with it shows when it is loaded


def shards(index: Path) -> list[str]:
    """Return the names of the files that hold the weights which an index lists, sorted.

    Raises
    ------
    DataError
        If it cannot be read, or names anything but safetensors files beside it: what lies
        elsewhere is part of no key.
    """
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{index}: cannot be read ({error!r})") from error
    for name in names:
        beside = isinstance(name, str) and name == re.sub(r"[/\\\0]", "", name)
        if not beside or Path(name).suffix != ".safetensors":
            raise DataError(
                f"{index}: weight_map names {name!r}; expected safetensors files in the same "
                "folder, by their names without a folder: what lies elsewhere is not part of the "
                "network's key. Put them beside it"
            )
    return sorted(names)


def require_own_files(folder: Path) -> None:
    """Refuse a transformers folder that would read files which are not those in it.

    Raises
    ------
    DataError
        If its files name weights, a base model, a backbone or a config that lie elsewhere, or
        weights that are not there.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        gone = [name for name in shards(index) if not (folder / name).is_file()]
        if gone and index == folder / INDEX and not (folder / _WEIGHTS[0]).is_file():
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
    try:
        config = json.loads(path.read_bytes())
        backbones = list(_backbones(config))
    except RecursionError as error:
        raise DataError(f"{path}: cannot be read, so deep are its values in each other") from error
    except (OSError, ValueError):
        return  # what is wrong with it shows when it is loaded
    if not isinstance(config, dict):
        return
    if config.get("transformers_weights") not in (None, *_WEIGHTS):
        raise DataError(
            f"{path}: transformers_weights names {config['transformers_weights']!r}; expected "
            f"weights in {_WEIGHTS[0]}: rename them, and take that key away"
        )
    if config.get("configuration_files"):
        raise DataError(
            f"{path}: configuration_files names {config['configuration_files']!r}, of which one "
            "would be read in its place; write the one that is meant into config.json"
        )
    for name in backbones:
        raise DataError(
            f"{path}: backbone is {name!r} and there is no backbone_config, so that its settings "
            "would be asked of a hub; write them into backbone_config, as `model.save_pretrained` "
            "of transformers 5 does, and take backbone and use_pretrained_backbone away"
        )


def _backbones(content: Any) -> Iterator[Any]:
    """Yield the backbones that a config, or one in it, gives by name alone."""
    if isinstance(content, dict):
        kind = content.get("model_type")
        named = kind in BACKBONES and content.get("backbone_config") is None
        # of timm it is a name for code, and its weights are among the others
        of_timm = kind == "detr" and content.get("use_timm_backbone", True)
        if named and not (of_timm and not content.get("backbone_kwargs")):
            yield from filter(None, [content.get("backbone")])
        content = list(content.values())
    for value in content if isinstance(content, list) else ():
        yield from _backbones(value)


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
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    settings: dict[str, Any] = {}
    if not found.get("do_normalize", True):
        settings |= {"mean": [0, 0, 0], "std": [1, 1, 1]}
    elif "image_mean" in found:
        settings |= {"mean": found["image_mean"], "std": found["image_std"]}
    if not found.get("do_rescale", True):
        settings["scale"] = 1
    elif "rescale_factor" in found:
        settings["scale"] = 1 / found["rescale_factor"]
    if found.get("do_flip_channel_order"):
        settings["channels"] = "bgr"
        for key in ("mean", "std"):  # there they follow the flip
            settings.setdefault(key, {"mean": [0, 0, 0], "std": [1, 1, 1]}[key])
    own_size = {"size", "factor"} & declared.keys()  # which overrides all that changes the shape
    size = found.get("size")
    divisor = found.get("size_divisor") or found.get("ensure_multiple_of") or 1
    whole = isinstance(size, dict) and {"height", "width"} <= set(size)
    if whole and size["height"] % divisor == size["width"] % divisor == 0:
        divisor = 1  # then it asks for nothing
    unknown = ("do_center_crop", "keep_aspect_ratio", "do_pad", "do_split_image")
    asked = {k: found.get(k) for k in unknown} | {"size_divisor": divisor if divisor > 1 else None}
    for key, value in asked.items():
        if value and not own_size:
            raise DataError(
                f"{path}: {key} is {value!r}, which is not supported; say how the images are to be "
                "resized: `preprocess: {size: [HEIGHT, WIDTH]}` or `{size: image}` on the teacher, "
                "and `divisor` on its network if their sizes have to be multiples of a number"
            )
    if found.get("do_resize", True) and size is not None:
        if whole:
            settings["size"] = (size["height"], size["width"])
        elif not own_size:
            raise DataError(
                f"{path}: size is {size}; expected height and width. Say how the images are to be "
                "resized: `preprocess: {size: [HEIGHT, WIDTH]}` or `{size: image}` on the teacher"
            )
        resample = found.get("resample", 2)
        if resample in _INTERPOLATIONS:
            settings["interpolation"] = _INTERPOLATIONS[resample]
        elif "interpolation" not in declared:
            raise DataError(
                f"{path}: resample is {resample!r}; set `preprocess: {{interpolation: bilinear}}`"
            )
    return settings


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of a trained student's ``network.json``.

    Raises
    ------
    DataError
        If it is missing or not whole.
    """
    try:
        description: dict[str, Any] = json.loads((folder / NETWORK).read_bytes())
        missing = {"architecture", "classes", "preprocessing"} - set(description)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / NETWORK}: cannot be read ({error})") from error
    if missing:
        raise DataError(f"{folder / NETWORK}: the key {min(missing)!r} is missing")
    return description


def require_no_code(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse a trained student whose network is made by code, which its folder does not hold.

    Raises
    ------
    DataError
        If it is.
    """
    architecture = description["architecture"]
    if isinstance(architecture, dict) and "factory" in architecture:
        raise DataError(
            f"{folder}: its network is made by {architecture['factory']}, and that code is not in "
            "the folder. Give it as `network: {factory: ..., root: ...}` with a function that "
            f"loads {_WEIGHTS[0]}, and that file in `files`; {NETWORK} says which `preprocess` "
            "it needs"
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

    Parameters
    ----------
    folder : Path
        Its ``config.json`` and ``tokenizer_config.json`` are read, where there are any.
    trusted : bool
        Whether the experiment says so.

    Raises
    ------
    DataError
        If an ``auto_map`` names code and it is not trusted, or names that of another repository.
    """
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        try:
            named = sorted(_code_in(json.loads(path.read_bytes())))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
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
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(value) if key == "auto_map" else _code_in(value)
    elif isinstance(content, list):
        for value in content:
            yield from _code_in(value)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, (dict, list)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)
    elif content is not None:
        yield str(content)
