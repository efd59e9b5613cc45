"""Networks that are trained here: probes and students."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ensdistill.pipeline.errors import DataError, EnsdistillError, shortened
from ensdistill.stages.local import Factory
from ensdistill.stages.networks.code import build_from_code
from ensdistill.stages.networks.deeplab import build
from ensdistill.stages.networks.folders import require_own_files, weight_files
from ensdistill.stages.networks.foreign import reason
from ensdistill.stages.networks.whole import require_whole

_HEADS: Final = ("head", "decode_head", "auxiliary_head", "segmentation_head", "classifier")


class Tiny(nn.Module):
    """A small fully convolutional network for the demo and for tests, 45 thousand weights.

    Two strided convolutions, then residual ones with dilation 1, 2, 4 and 8;
    (N, 3, H, W) float32 to (N, C, ceil(H / 4), ceil(W / 4)).
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
    loaded : dict or None
        What was loaded of pretrained weights: ``loaded`` (how many tensors), ``head`` (names of
        those made anew) and ``unexpected`` (names that the model lacks).
    """

    def __init__(self, model: nn.Module, loaded: dict[str, Any] | None = None):
        super().__init__()
        self.model = model
        self.config: Any = model.config
        self.loaded = loaded

    def forward(self, images: Tensor) -> Any:
        """Return (N, C, h, w) logits at the model's own stride.

        Code that came with a folder may return something else than the library's models do; that
        is passed on.
        """
        from transformers.utils import ModelOutput

        answer = self.answer(images)
        return (
            answer["logits"] if isinstance(answer, ModelOutput) and "logits" in answer else answer
        )

    def answer(self, images: Tensor) -> Any:
        """Return all that the model does."""
        return self.model(pixel_values=images)


class Padded(nn.Module):
    """A network whose images are padded at the bottom and right to a multiple of a number.

    With zeros, which are the mean pixel after normalisation. Its logits cover the image alone:
    where anything was padded they are resized to the padded image and cut, else left as they are.
    """

    def __init__(self, model: nn.Module, divisor: int, *, align_corners: bool = False):
        super().__init__()
        self.model = model
        self.divisor = divisor
        self._align_corners = align_corners

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, C, H, W) logits; (N, C, h, w) as they are where nothing was padded."""
        height, width = images.shape[-2:]
        bottom, right = -height % self.divisor, -width % self.divisor
        if not bottom and not right:
            whole: Tensor = self.model(images)
            return whole
        logits = self.model(functional.pad(images, (0, right, 0, bottom)))
        size = (height + bottom, width + right)
        resized = functional.interpolate(
            logits, size=size, mode="bilinear", align_corners=self._align_corners
        )
        return resized[..., :height, :width]


def pad_to_multiple(network: nn.Module, divisor: int, *, align_corners: bool = False) -> nn.Module:
    """Return a network that pads its images to a multiple of `divisor` (see `Padded`)."""
    if divisor == 1:
        return network
    return Padded(network, divisor, align_corners=align_corners)


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


def build_student(
    architecture: Any,
    classes: int,
    folder: Path | None,
    seed: int,
    factory: Factory | None = None,
    *,
    weights: bool = True,
    head: Sequence[str] | None = None,
) -> nn.Module:
    """Build a network whose first weights depend on nothing but `seed` (and the folder or code).

    Parameters
    ----------
    architecture : str or mapping
        ``"mobilenetv2-deeplabv3plus"``, ``"tiny"``, one of `backbones.ARCHITECTURES`, or the
        digests of a transformers folder or of a user's code.
    folder : Path or None
        The transformers folder: its config, and its weights if there are any (what does not fit
        this number of classes is made anew).
    seed : int
        Seeds torch, and what a user's code may draw from besides.
    weights : bool
        Whether to load those of a transformers folder.
    head : sequence of str, optional
        See `in_head`; of a folder's weights, the head's need not fit.

    Raises
    ------
    DataError
        If the folder or the code does not give a network.
    """
    torch.manual_seed(seed)
    if factory is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return build_from_code(factory)
    network: nn.Module
    if architecture == "tiny":
        network = Tiny(classes)
    elif architecture == "mobilenetv2-deeplabv3plus":
        network = mobilenetv2_deeplabv3plus(classes)
    elif isinstance(architecture, str):
        network = build(architecture, classes)
    else:
        assert folder is not None
        network = hf_segmentation(folder, classes, weights=weights, head=head)
    # Models of transformers that were converted from TensorFlow have its momentum of 0.997; in
    # torch's sense that makes evaluation use the last batch only.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network


def hf_segmentation(
    folder: Path,
    classes: int | None = None,
    *,
    weights: bool = True,
    trusted: bool = False,
    head: Sequence[str] | None = None,
) -> HfSegmentation:
    """Load a transformers folder; auxiliary heads, whose logits nobody reads, are left out.

    Parameters
    ----------
    classes : int or None
        Output channels; None leaves the model as it is.
    weights : bool
        Whether to load the weights: with `classes` if there are any, else they are required.
    trusted : bool
        Whether code in the folder may run.
    head : sequence of str, optional
        See `in_head`.

    Raises
    ------
    DataError
        If transformers cannot make a semantic-segmentation model of it, or weights of its body are
        missing or of another shape.
    """
    from transformers import AutoModelForSemanticSegmentation

    weights = weights and (classes is None or any(folder.glob("*.safetensors")))
    model, report = _from_folder(
        AutoModelForSemanticSegmentation,
        folder,
        "semantic segmentation",
        weights=weights,
        trusted=trusted,
        without="use_auxiliary_head",
        settings={} if classes is None else {"num_labels": classes},
    )
    if report is None:
        return HfSegmentation(model)
    if classes is None:
        _require_trained(folder, report)
    missing = sorted(report["missing_keys"])
    other = sorted(report["mismatched_keys"])
    bad = [name for name in missing if not in_head(name, head)]
    bad += [
        f"{name} ({list(there)} there and {list(here)} here)"
        for name, there, here in other
        if not in_head(name, head)
    ]
    if bad:
        raise DataError(
            f"{folder}: {len(bad)} weights of the network's body are missing or of another shape, "
            f"such as {bad[0]}; without any .safetensors in it the folder stands for random weights"
        )
    anew = {*missing, *(name for name, *_ in other)}
    return HfSegmentation(
        model,
        {
            "loaded": len(model.state_dict().keys() - anew),
            "head": sorted(anew),
            "unexpected": sorted(report["unexpected_keys"]),
        },
    )


def hf_universal(folder: Path, *, weights: bool = True, trusted: bool = False) -> nn.Module:
    """Load a universal segmentation model of transformers; see `hf_segmentation`."""
    from transformers import AutoModelForUniversalSegmentation

    model, report = _from_folder(
        AutoModelForUniversalSegmentation,
        folder,
        "universal segmentation",
        weights=weights,
        trusted=trusted,
        without="is_training",  # OneFormer's text encoder: for its loss alone
    )
    if report is not None:
        _require_trained(folder, report)
    return model


def _from_folder(
    auto: Any,
    folder: Path,
    task: str,
    *,
    weights: bool,
    trusted: bool,
    without: str,
    settings: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return a model without a part that only training needs, and how its weights fit it.

    What they lack, have besides and have in other shapes; None where they are not loaded.
    """
    from transformers import AutoConfig

    require_own_files(folder)
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusted, **(settings or {})
        )
        if getattr(config, without, False):
            setattr(config, without, False)
        shared = {"config": config, "dtype": torch.float32, "trust_remote_code": trusted}
        if not weights:
            return auto.from_config(**shared), None
        for file in weight_files(folder):
            require_whole(file)
        with quiet():
            model, report = auto.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # else it refuses without saying which
                output_loading_info=True,
                **shared,
            )
        return model, report
    except EnsdistillError:
        raise
    except Exception as error:  # a config of the wrong form makes it raise anything
        # its log, to which it may point, is silent
        text = shortened(re.sub(r" For details look at .* report!", "", reason(error)))
        raise DataError(f"{folder}: transformers cannot load it for {task} ({text})") from error


def _require_trained(folder: Path, report: Mapping[str, Any]) -> None:
    # weights of classes in a loss: no answer depends on them
    missing = sorted(n for n in report["missing_keys"] if not n.startswith("criterion."))
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}: the network was "
            "never trained for segmentation and cannot teach"
        )
    for name, there, here in sorted(report["mismatched_keys"]):
        raise DataError(
            f"{folder}: {name} is {list(there)} in the weights and {list(here)} by config.json, "
            "whose `id2label` says how many classes the head has; expected the config that these "
            "weights were saved with"
        )


def named_as_in(network: HfSegmentation, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of a file by the names of a network of transformers.

    The library saves some models by older names than it builds them with. What does not fit keeps
    its shape, and what the network lacks its name, but neither its values.
    """
    with quiet():
        model, report = type(network.model).from_pretrained(  # type: ignore[attr-defined]
            None,
            config=network.config,
            state_dict=dict(tensors),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    other = {name: torch.empty(there) for name, there, _ in report["mismatched_keys"]}
    other |= {name: torch.empty(0) for name in report["unexpected_keys"]}
    absent = {*report["missing_keys"], *other}
    return {k: v for k, v in model.state_dict().items() if k not in absent} | other


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers say nothing: what was not loaded is for us to say."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would stand in the middle of ours
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def plain_name(name: str) -> str:
    """Return the name of a parameter or buffer without the prefixes of wrappers, ours included."""
    while name.startswith(("module.", "model.", "_orig_mod.")):
        name = name.split(".", 1)[1]
    return name


def in_head(name: str, head: Sequence[str] | None = None) -> bool:
    """Whether a parameter or buffer of that name belongs to a network's head.

    `head` are patterns (``decoder.*``) of the plain names that do; without them, a head is known by
    how it is usually called.
    """
    plain = plain_name(name)
    if head is None:
        return plain.split(".")[0] in _HEADS
    return any(fnmatchcase(plain, pattern) for pattern in head)
