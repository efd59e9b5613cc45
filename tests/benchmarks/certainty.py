"""From logits to a label map and sums of certainty, against the plain way in torch."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from ensdistill.stages.functional.certainty import certainty_sums
from ensdistill.stages.functional.unify import unify, whole

from . import maps
from .measure import extra_memory, figure, turns


def logits_of(scene, stride=8):
    """Return (C, h, w) logits such as a network that likes this scene would give."""
    labels = torch.from_numpy(scene[::stride, ::stride].copy()).long()
    sure = 6 * F.one_hot(labels, maps.CLASSES).permute(2, 0, 1).float()
    return sure + torch.randn(sure.shape, generator=torch.Generator().manual_seed(0))


def ours(logits, shape):
    labels, certainty, _ = unify([whole(logits)], shape, align_corners=False)
    return labels, certainty, certainty_sums(labels.numpy(), certainty.numpy(), len(logits))


def labels_alone(logits, shape):
    return unify([whole(logits)], shape, align_corners=False, confidence=False)


def plain(logits, shape):
    scores = F.interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
    return scores.softmax(dim=0).max(dim=0)


def certainty_pass(root):
    scene, _ = maps.street(0, teachers=1)
    logits = logits_of(scene)
    shape = scene.shape
    times = turns({"ours": lambda: ours(logits, shape), "plain": lambda: plain(logits, shape)})
    title = "certainty pass / upsample + softmax + max"
    yield figure(title, times.ratio("ours", "plain"), "x", 0.6, 0.4)
    yield figure("certainty pass", 1e3 * times.median("ours"), "ms")
    differ = (ours(logits, shape)[0] != plain(logits, shape).indices).sum()
    yield figure("certainty pass, labels that differ", int(differ), "px", 0)
    memory = extra_memory(prepare, ours, shape) - 5 * scene.size / 1e6
    yield figure("certainty pass, memory beyond its two maps", memory, "MB", 30)
    memory = extra_memory(prepare, labels_alone, shape)
    yield figure("labels alone, memory, the label map included", memory, "MB", 15)
    memory = extra_memory(prepare, plain, shape) - 12 * scene.size / 1e6
    yield figure("upsample + softmax + max, beyond its two maps", memory, "MB")


def prepare(work, shape):
    """Return the work on an image, tried on a small one before."""
    logits = torch.randn(maps.CLASSES, shape[0] // 8, shape[1] // 8)
    work(torch.randn(maps.CLASSES, 8, 8), (64, 64))
    np.bincount(np.zeros(9, np.uint8), weights=np.zeros(9))
    return lambda: work(logits, shape)


MEASURES = (certainty_pass,)
