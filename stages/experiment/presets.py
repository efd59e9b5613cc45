"""Settings that come from somewhere, each with where it comes from.

Light on purpose: the experiment file's schema reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Setting(NamedTuple):
    """A value of `schema.Training`, and its source."""

    value: Any
    source: str


_RELEASE: Final = "the method's release"
_OURS: Final = "ours"

# Sizes are height, width. Its backbone (DRN, output stride 16) and its initial weights, a source-
# trained checkpoint without its head, are `network` and `init`; keeping the best checkpoint on val
# is `watch` and `checkpoint`, which open val's labels.
PAPER: Final[Mapping[str, Setting]] = {
    "steps": Setting(100_001, _RELEASE),
    "batch_size": Setting(10, _RELEASE),
    "input_size": Setting((512, 1024), _RELEASE),
    "crop": Setting((256, 512), _RELEASE),
    "scale": Setting((1.0, 1.0), f"{_RELEASE}: no random scale"),
    "flip": Setting(True, _OURS),
    "preprocess": Setting(
        {
            "channels": "bgr",
            "mean": (104.00698793, 116.66876762, 122.67891434),
            "std": (1.0, 1.0, 1.0),
            "scale": 1.0,
        },
        f"{_RELEASE}: the mean of Caffe's ImageNet models, and nothing else",
    ),
    "optimizer": Setting("sgd", _RELEASE),
    "lr": Setting(1e-4, _RELEASE),
    "head_lr_factor": Setting(10.0, _RELEASE),
    "momentum": Setting(0.9, _RELEASE),
    "nesterov": Setting(True, _RELEASE),
    "weight_decay": Setting(5e-4, _RELEASE),
    "power": Setting(0.9, _RELEASE),
    "class_balance": Setting(7.0, f"{_RELEASE}: classes below 64 x 64 pixels an image"),
    "often_balance": Setting(7.0, f"{_RELEASE}: absent classes, averaged by 0.9 and 0.1"),
    "hard_share": Setting(
        0.2, f"{_RELEASE} drops the 80 % of lowest loss; of each image and not of the batch: ours"
    ),
}

# The probe where its network is not given, or is `arch: linear`: what measures best
# (stages/DESIGN.md, "Probes").
# The steps are the most that are taken.
LINEAR: Final[Mapping[str, Any]] = {
    "network": {"arch": "linear", "backbone": "efficientnet-lite0"},
    "train": "decoder",
    "folds": 2,
    "steps": 2000,
    "settle": 0.01,
    "crop": None,
    "scale": (1.0, 1.0),
    "lr": 5e-3,
    "power": 0.0,
    "ema": 0.98,
}

# What networks of a family share; a setting beside `preset` holds.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "imagenet": {
        "channels": "rgb",
        "scale": 255.0,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    # of the ResNet-101 that AdaptSegNet and its many successors start from
    "caffe": {
        "channels": "bgr",
        "scale": 1.0,
        "mean": (104.00698793, 116.66876762, 122.67891434),
        "std": (1.0, 1.0, 1.0),
    },
}
