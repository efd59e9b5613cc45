"""What the JSON files of a network's folder say; no torch needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ensdistill.pipeline.errors import DataError

NETWORK: Final = "network.json"
_INTERPOLATIONS: Final = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")


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
        If the folder does not hold such a network with weights as safetensors, or not all of it.
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
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if "id2label" not in config:  # transformers leaves out what equals its default of two
            return int(config.get("num_labels", 2))
        labels = {int(k): str(v) for k, v in config["id2label"].items()}
        names = [labels[i] for i in range(len(labels))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{where}: {folder}/config.json cannot be read ({error!r})") from error
    return len(names) if all(n == f"LABEL_{i}" for i, n in enumerate(names)) else names


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
