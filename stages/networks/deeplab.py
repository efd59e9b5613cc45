"""DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611) on backbones that can have ImageNet weights.

And linear probes on these: what is linear in the features of a frozen backbone.

Parameters of a backbone are named as in the files of its weights: those of torchvision, and of
EfficientNet-Lite0 those that were converted from TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ensdistill.stages.networks.backbones import ARCHITECTURES, BACKBONES, STRIDES, Name

_LOW, _STRIDE = STRIDES
_TF_EPSILON: Final = 1e-3  # of BatchNorm, in networks of TensorFlow
_RATES: Final = (6, 12, 18)  # of the atrous pooling, at that stride


class Backbone(nn.Module):
    """A backbone: (N, 3, H, W) float32 to (low, high), features at strides 4 and 16.

    (N, C, ceil(H / s), ceil(W / s)) float32; `channels` is C of both.
    """

    channels: tuple[int, int]


class EncoderDecoder(nn.Module):
    """A backbone and a decoder; (N, 3, H, W) float32 to (N, C, ceil(H / 4), ceil(W / 4)) logits.

    Attributes
    ----------
    backbone : Backbone
        Images to features.
    decoder : nn.Module
        These, low and high, to logits.
    """

    def __init__(self, backbone: Backbone, decoder: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.decoder(*self.backbone(images))
        return logits


def build(architecture: str, classes: int) -> EncoderDecoder:
    """Return the network of one of `backbones.ARCHITECTURES`, with random weights."""
    decoding, name = ARCHITECTURES[architecture]
    backbone, about = _MAKERS[name](), BACKBONES[name]
    decoder: nn.Module
    if decoding == "linear":
        decoder = LinearDecoder(backbone.channels, classes)
    else:
        decoder = Decoder(backbone.channels, classes, about.width, about.low)
    return EncoderDecoder(backbone, decoder)


class LinearDecoder(nn.Module):
    """Logits that are linear in the features, as in linear probing (Alain and Bengio 2016).

    With a frozen backbone the loss is convex in its weights, so what it is trained to does not
    depend on where it began. Features are brought to one scale by a BatchNorm without weights (as
    by He et al. 2022, arXiv:2111.06377); all weights begin as 0.
    """

    def __init__(self, channels: tuple[int, int], classes: int):
        super().__init__()
        low, high = channels
        self.low_norm = nn.BatchNorm2d(low, affine=False)
        self.high_norm = nn.BatchNorm2d(high, affine=False)
        self.low = nn.Conv2d(low, classes, 1)
        self.high = nn.Conv2d(high, classes, 1, bias=False)
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Return (N, C, h, w) logits of (N, low, h, w) and (N, high, h', w')."""
        logits: Tensor = self.low(self.low_norm(low))
        coarse = self.high(self.high_norm(high))
        return logits + functional.interpolate(coarse, size=low.shape[-2:], mode="bilinear")


class Decoder(nn.Module):
    """The paper's decoder: (low, high) features to logits at the size of the low ones.

    Of `width` channels, `reduced` of the low-level features; its convolutions of 3 x 3 pixels are
    depthwise separable (section 3.1).
    """

    def __init__(self, channels: tuple[int, int], classes: int, width: int, reduced: int):
        super().__init__()
        low, high = channels
        self.aspp = _Pyramid(high, width)
        self.reduce = _conv(low, reduced)
        self.refine = nn.Sequential(_separable(width + reduced, width), _separable(width, width))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Return (N, C, h, w) logits of (N, low, h, w) and (N, high, h', w')."""
        x = functional.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear")
        logits: Tensor = self.head(self.refine(torch.cat([x, self.reduce(low)], 1)))
        return logits


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        atrous = [_separable(channels, width, rate) for rate in _RATES]
        self.branches = nn.ModuleList([_conv(channels, width), *atrous])
        self.whole = _conv(channels, width)
        self.project = _conv((2 + len(_RATES)) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        merged: Tensor = self.project(torch.cat([*(b(x) for b in self.branches), whole], 1))
        return merged


def _conv(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


def _separable(channels: int, out: int, rate: int = 1) -> nn.Sequential:
    """Return an atrous separable convolution, each half with BatchNorm and ReLU."""
    depthwise = nn.Conv2d(channels, channels, 3, 1, rate, rate, groups=channels, bias=False)
    norm = nn.BatchNorm2d(channels)
    return nn.Sequential(depthwise, norm, nn.ReLU(inplace=True), *_conv(channels, out))


class _SameConv2d(nn.Conv2d):
    """A strided convolution padded as TensorFlow does (``padding="SAME"``), to ceil(H / stride).

    The smaller half of the padding is before the image, so that on even sizes its outputs lie one
    pixel further than by torch's symmetric padding: there, weights that were trained with this
    would see a shifted image at each of their strides.
    """

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            padding = self.kernel_size[0] - self.stride[0] + -size % self.stride[0]
            sides += [padding // 2, padding - padding // 2]
        return super().forward(functional.pad(x, sides))


class _Stage(NamedTuple):
    """Blocks of which the first has the stride and, of them all, `out` channels."""

    out: int
    blocks: int
    stride: int
    expand: int = 6
    kernel: int = 3


class _Block(NamedTuple):
    """An inverted residual block as it is built; its output is at stride `at`."""

    channels: int
    out: int
    expand: int
    kernel: int
    stride: int
    dilation: int
    at: int

    @property
    def inner(self) -> int:
        return self.channels * self.expand

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.channels == self.out

    def spatial(self, *, same: bool) -> nn.Conv2d:
        """Return its depthwise convolution, padded as in TensorFlow or as torch pads."""
        return _spatial(self.inner, self.inner, self.kernel, self.stride, self.dilation, same=same)


def _spatial(
    channels: int, out: int, kernel: int, stride: int, dilation: int = 1, *, same: bool
) -> nn.Conv2d:
    """Return a convolution to ceil(H / stride), depthwise where it keeps the channels."""
    groups = channels if channels == out else 1
    if same and stride > 1:
        return _SameConv2d(channels, out, kernel, stride, groups=groups, bias=False)
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups=groups, bias=False)


def _strides(stages: Sequence[tuple[int, int]], at: int) -> Iterator[tuple[int, int, int]]:
    """Yield stride, dilation and the stride of the output of each block of stages.

    A stage is its stride and its number of blocks. A stride that would exceed the network's is
    dilation instead, of all convolutions after that one (DeepLabV3, section 3.1): of the features,
    one in so many is what it would be without.
    """
    dilation = 1
    for stride, blocks in stages:
        kept = stride if at * stride <= _STRIDE else 1
        at *= kept
        yield kept, dilation, at
        dilation *= stride // kept
        for _ in range(blocks - 1):
            yield 1, dilation, at


def _inverted(stages: Sequence[_Stage], channels: int) -> list[_Block]:
    """Return the blocks of stages behind a stem of so many channels and stride 2."""
    found = []
    strides = _strides([(s.stride, s.blocks) for s in stages], 2)
    for stage in (s for s in stages for _ in range(s.blocks)):
        block = _Block(channels, stage.out, stage.expand, stage.kernel, *next(strides))
        found.append(block)
        channels = stage.out
    return found


def _features(x: Tensor, blocks: nn.ModuleList, low_at: int) -> tuple[Tensor, Tensor]:
    """Return what comes out of a block and of the last one."""
    low = x
    for k, block in enumerate(blocks):
        x = block(x)
        if k == low_at:
            low = x
    return low, x


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 without its classifier, and the convolution that is for that alone.

    EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation, with ReLU6
    for swish. Padded as TensorFlow does, with which its weights were trained.
    """

    def __init__(self) -> None:
        super().__init__()
        stages = (
            _Stage(16, 1, 1, expand=1),
            _Stage(24, 2, 2),
            _Stage(40, 2, 2, kernel=5),
            _Stage(80, 3, 2),
            _Stage(112, 3, 1, kernel=5),
            _Stage(192, 4, 2, kernel=5),
            _Stage(320, 1, 1),
        )
        blocks = _inverted(stages, 32)
        self._conv_stem = _spatial(3, 32, 3, 2, same=True)
        self._bn0 = _lite_norm(32)
        self._blocks = nn.ModuleList(map(_LiteBlock, blocks))
        self._low_at = max(k for k, block in enumerate(blocks) if block.at == _LOW)
        self.channels = (blocks[self._low_at].out, blocks[-1].out)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low- and high-level features."""
        x = functional.relu6(self._bn0(self._conv_stem(images)), inplace=True)
        return _features(x, self._blocks, self._low_at)


class _LiteBlock(nn.Module):
    def __init__(self, block: _Block):
        super().__init__()
        self._residual = block.residual
        self._expands = block.expand > 1
        if self._expands:
            self._expand_conv = nn.Conv2d(block.channels, block.inner, 1, bias=False)
            self._bn0 = _lite_norm(block.inner)
        self._depthwise_conv = block.spatial(same=True)
        self._bn1 = _lite_norm(block.inner)
        self._project_conv = nn.Conv2d(block.inner, block.out, 1, bias=False)
        self._bn2 = _lite_norm(block.out)

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        if self._expands:
            inner = functional.relu6(self._bn0(self._expand_conv(x)), inplace=True)
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)), inplace=True)
        y: Tensor = self._bn2(self._project_conv(inner))
        return x + y if self._residual else y


def _lite_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_TF_EPSILON)


class MobileNetV2(Backbone):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) without its classifier.

    Without the convolution that is for that alone, too. `tf` computes as TensorFlow does.
    """

    def __init__(self, *, tf: bool = False) -> None:
        super().__init__()
        stages = (
            _Stage(16, 1, 1, expand=1),
            _Stage(24, 2, 2),
            _Stage(32, 3, 2),
            _Stage(64, 4, 2),
            _Stage(96, 3, 1),
            _Stage(160, 3, 2),
            _Stage(320, 1, 1),
        )
        blocks = _inverted(stages, 32)
        stem = _relu6(_spatial(3, 32, 3, 2, same=tf))
        self.features = nn.ModuleList([stem, *(_MobileBlock(block, tf=tf) for block in blocks)])
        self._low_at = 1 + max(k for k, block in enumerate(blocks) if block.at == _LOW)
        self.channels = (blocks[self._low_at - 1].out, blocks[-1].out)
        if tf:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = _TF_EPSILON

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low- and high-level features."""
        return _features(images, self.features, self._low_at)


class _MobileBlock(nn.Module):
    def __init__(self, block: _Block, *, tf: bool):
        super().__init__()
        self._residual = block.residual
        expand = nn.Conv2d(block.channels, block.inner, 1, bias=False)
        self.conv = nn.Sequential(
            *([_relu6(expand)] if block.expand > 1 else []),
            _relu6(block.spatial(same=tf)),
            nn.Conv2d(block.inner, block.out, 1, bias=False),
            nn.BatchNorm2d(block.out),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self._residual else y


def _relu6(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6(inplace=True))


class ResNet(Backbone):
    """A ResNet of bottleneck blocks (He et al. 2015, arXiv:1512.03385) without its classifier.

    With the stride in the convolution of 3 x 3 pixels, as torchvision has it. `blocks` says how
    many are in each of the four stages.
    """

    channels = (256, 2048)

    def __init__(self, blocks: Sequence[int]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        strides = _strides(list(zip((1, 2, 2, 2), blocks, strict=True)), _LOW)
        channels, layers = 64, []
        for stage, number in enumerate(blocks):
            width, layer = 64 * 2**stage, nn.Sequential()
            for _ in range(number):
                stride, dilation, _ = next(strides)
                layer.append(_Bottleneck(channels, width, stride, dilation))
                channels = 4 * width
            layers.append(layer)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return low- and high-level features."""
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        return low, self.layer4(self.layer3(self.layer2(low)))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, dilation: int):
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if channels != out:
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))
        activated: Tensor = self.relu(y)
        return activated


_MAKERS: Final[Mapping[Name, Callable[[], Backbone]]] = {
    "efficientnet-lite0": EfficientNetLite0,
    "mobilenetv2": MobileNetV2,
    "mobilenetv2-tf": lambda: MobileNetV2(tf=True),
    "resnet50": lambda: ResNet((3, 4, 6, 3)),
    "resnet101": lambda: ResNet((3, 4, 23, 3)),
}
