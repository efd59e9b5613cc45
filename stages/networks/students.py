"""Networks that are trained here: probes and students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ensdistill.pipeline.errors import DataError

_HEADS = ("head", "decode_head", "segmentation_head", "classifier")


class Tiny(nn.Module):
    """A small fully convolutional network for the demo and for tests, 45 thousand weights.

    Two strided convolutions, then residual ones with dilation 1, 2, 4 and 8;
    (N, 3, H, W) float32 to (N, C, ceil(H / 4), ceil(W / 4)).

    Parameters
    ----------
    classes : int
        C.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 24, stride=2), _conv(24, 32, stride=2))
        self.body = nn.ModuleList(_conv(32, 32, dilation=d) for d in (1, 2, 4, 8))
        self.head = nn.Conv2d(32, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(images)
        for block in self.body:
            x = x + block(x)
        logits: Tensor = self.head(x)
        return logits


def _conv(channels: int, out: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class HfSegmentation(nn.Module):
    """A semantic-segmentation model of transformers, from images to logits.

    Parameters
    ----------
    model : nn.Module
        Any `...ForSemanticSegmentation`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.config: Any = model.config

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, C, h, w) logits at the model's own stride."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def mobilenetv2_deeplabv3plus(classes: int) -> HfSegmentation:
    """Return MobileNetV2 with the DeepLabV3+ head of transformers, output stride 16.

    The library's head has the atrous pooling but no low-level decoder, so its logits are at
    stride 16. `tf_padding` is for converted weights.
    """
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    config = MobileNetV2Config(
        num_labels=classes, output_stride=16, tf_padding=False, classifier_dropout_prob=0.1
    )
    return HfSegmentation(MobileNetV2ForSemanticSegmentation(config))


def build_student(architecture: Any, classes: int, folder: Path | None, seed: int) -> nn.Module:
    """Build a network whose first weights depend on nothing but `seed` (and the folder).

    Parameters
    ----------
    architecture : str or mapping
        ``"mobilenetv2-deeplabv3plus"``, ``"tiny"``, or the digests of a transformers folder.
    classes : int
        Number of output channels.
    folder : Path or None
        The transformers folder: its config, and its weights if there are any (the head is made
        anew where it has another number of classes).
    seed : int
        Seeds torch.
    """
    torch.manual_seed(seed)
    network: nn.Module
    if architecture == "tiny":
        network = Tiny(classes)
    elif architecture == "mobilenetv2-deeplabv3plus":
        network = mobilenetv2_deeplabv3plus(classes)
    else:
        assert folder is not None
        network = hf_segmentation(folder, classes)
    # Models of transformers that were converted from TensorFlow have its momentum of 0.997; in
    # torch's sense that makes evaluation use the last batch only.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network


def hf_segmentation(folder: Path, classes: int | None = None) -> HfSegmentation:
    """Load a transformers folder.

    Parameters
    ----------
    folder : Path
        With ``config.json`` and, for pretrained weights, ``model.safetensors``.
    classes : int or None
        Output channels; None leaves the model as it is and then requires weights.

    Raises
    ------
    DataError
        If transformers cannot make a semantic-segmentation model of it.
    """
    from transformers import AutoConfig, AutoModelForSemanticSegmentation
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would stand in the middle of ours
    more: dict[str, Any] = {"local_files_only": True, "dtype": torch.float32}
    missing: list[str] = []
    try:
        if classes is not None and not any(folder.glob("*.safetensors")):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, num_labels=classes)
            model = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)
        else:
            if classes is not None:
                more |= {"num_labels": classes, "ignore_mismatched_sizes": True}
            model, report = AutoModelForSemanticSegmentation.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **more
            )
            missing = sorted(report["missing_keys"])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"{folder}: transformers cannot load it for semantic segmentation ({error})"
        ) from error
    if classes is None and missing:
        raise DataError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}: the network was "
            "never trained for segmentation and cannot teach"
        )
    return HfSegmentation(model)


def in_head(name: str) -> bool:
    """Whether a parameter or buffer of that name belongs to a network's head."""
    return name.removeprefix("model.").split(".")[0] in _HEADS
