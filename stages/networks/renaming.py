"""Weights of image classifiers of transformers, by the names that our backbones have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from ensdistill.pipeline.config import read_object
from ensdistill.pipeline.errors import DataError, shown
from ensdistill.stages.networks.backbones import Name

CONFIG: Final = "config.json"


class _Library(NamedTuple):
    """How transformers has a network.

    Attributes
    ----------
    model_type : str
        What it is called in a `config.json`.
    begins : str
        A pattern of how its names begin.
    rules : sequence of (str, str or function)
        What is replaced in a name, one after the other, to make it torchvision's.
    settings : mapping
        Those that decide what is computed and show in no shape, to the library's defaults.
    """

    model_type: str
    begins: str
    rules: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
    settings: Mapping[str, Any]


_RESNET: Final = _Library(
    "resnet",
    r"(resnet\.)?(embedder\.embedder|encoder\.stages)\.",
    [
        (r"^resnet\.", ""),
        (r"^embedder\.embedder\.convolution", "conv1"),
        (r"^embedder\.embedder\.normalization", "bn1"),
        (r"^encoder\.stages\.(\d+)\.layers", lambda found: f"layer{int(found[1]) + 1}"),
        (r"\.layer\.(\d+)\.convolution", lambda found: f".conv{int(found[1]) + 1}"),
        (r"\.layer\.(\d+)\.normalization", lambda found: f".bn{int(found[1]) + 1}"),
        (r"\.shortcut\.convolution", ".downsample.0"),
        (r"\.shortcut\.normalization", ".downsample.1"),
        (r"^classifier\.1\.", "fc."),
    ],
    {
        "hidden_act": "relu",
        "layer_type": "bottleneck",
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
    },
)
_MOBILENET: Final = _Library(
    "mobilenet_v2",
    r"(mobilenet_v2\.)?(conv_stem|layer\.\d+\.(expand_1x1|conv_3x3|reduce_1x1))\.",
    [
        (r"^mobilenet_v2\.", ""),
        (r"^conv_stem\.first_conv", "features.0"),
        (r"^conv_stem\.conv_3x3", "features.1.conv.0"),
        (r"^conv_stem\.reduce_1x1\.convolution", "features.1.conv.1"),
        (r"^conv_stem\.reduce_1x1\.normalization", "features.1.conv.2"),
        (r"^conv_1x1", "features.18"),
        (r"^layer\.(\d+)", lambda found: f"features.{int(found[1]) + 2}.conv"),
        (r"\.expand_1x1", ".0"),
        (r"\.conv_3x3", ".1"),
        (r"\.reduce_1x1\.convolution", ".2"),
        (r"\.reduce_1x1\.normalization", ".3"),
        (r"\.convolution", ".0"),
        (r"\.normalization", ".1"),
    ],
    {
        "hidden_act": "relu6",
        "first_layer_is_expansion": True,
        "tf_padding": True,
        "layer_norm_eps": 0.001,
    },
)
# What each backbone computes, where that is not the library's default.
_LIBRARIES: Final[Mapping[Name, tuple[_Library, Mapping[str, Any]]]] = {
    "mobilenetv2": (_MOBILENET, {"tf_padding": False, "layer_norm_eps": 1e-5}),
    "mobilenetv2-tf": (_MOBILENET, {}),
    "resnet50": (_RESNET, {}),
    "resnet101": (_RESNET, {}),
}


def renamed(tensors: Mapping[str, Tensor], file: Path, name: Name) -> dict[str, Tensor]:
    """Return the tensors of a file by torchvision's names, if they are named as in transformers.

    Others are left as they are.

    Raises
    ------
    DataError
        If the `config.json` beside the file is missing, or says that these are the weights of a
        network which computes something else than the backbone.
    """
    if name not in _LIBRARIES:
        return dict(tensors)
    library, _ = _LIBRARIES[name]
    if not any(re.match(library.begins, key) for key in tensors):
        return dict(tensors)
    _require_alike(file.with_name(CONFIG), name)
    return {_rename(key, library): tensor for key, tensor in tensors.items()}


def _rename(name: str, library: _Library) -> str:
    for pattern, ours in library.rules:
        name = re.sub(pattern, ours, name)
    return name


def _require_alike(config: Path, name: Name) -> None:
    if not config.is_file():
        raise DataError(
            f"{config.parent}: these weights are named as in transformers, and {CONFIG}, which "
            "says how they are computed with, is not beside them; give the whole folder"
        )
    expected = _computed(name)
    found = {**_LIBRARIES[name][0].settings, **read_object(config)}
    for key, value in expected.items():
        if found.get(key) != value:
            others = [n for n in _LIBRARIES if found == found | _computed(n)]
            advice = "".join(f"; `backbone: {other}` is computed so" for other in others)
            raise DataError(
                f"{config}: {key} is {shown(found.get(key))}; the backbone {name} is computed with "
                f"{value!r}{advice}"
            )


def _computed(name: Name) -> dict[str, Any]:
    """Return the settings of the library by which it computes what a backbone does."""
    library, other = _LIBRARIES[name]
    return {"model_type": library.model_type, **library.settings, **other}
