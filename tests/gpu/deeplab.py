"""DeepLabV2 on a ResNet at stride 8, as a function that a teacher's file names."""

import torch
from torch import nn


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, inside, width, stride, dilation):
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            _conv(inside, width, 1),
            nn.ReLU(inplace=True),
            _conv(width, width, 3, stride, dilation),
            nn.ReLU(inplace=True),
            _conv(width, out, 1),
        )
        alike = inside == out and stride == 1
        self.shortcut = nn.Identity() if alike else _conv(inside, out, 1, stride)

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class DeepLabV2(nn.Module):
    """ResNet at stride 8, and the sum of four dilated convolutions."""

    def __init__(self, layers, classes):
        super().__init__()
        stem = [_conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        stages, inside = [], 64
        for k, count in enumerate(layers):
            width, stride, dilation = 64 << k, (1, 2, 1, 1)[k], (1, 1, 2, 4)[k]
            for n in range(count):
                stages.append(Bottleneck(inside, width, stride if n == 0 else 1, dilation))
                inside = 4 * width
        self.body = nn.Sequential(*stem, *stages)
        self.head = nn.ModuleList(
            nn.Conv2d(inside, classes, 3, padding=d, dilation=d) for d in (6, 12, 18, 24)
        )

    def forward(self, images):
        x = self.body(images)
        return sum(branch(x) for branch in self.head)


def _conv(inside, out, kernel, stride=1, dilation=1):
    pad = dilation * (kernel // 2)
    conv = nn.Conv2d(inside, out, kernel, stride, pad, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def build(layers):
    """Return the network, with random weights."""
    torch.manual_seed(0)
    return DeepLabV2(layers, 19)
