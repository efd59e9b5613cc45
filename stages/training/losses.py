"""Cross entropy on pseudo-labels, with the class balancing of the method's release."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ensdistill.data.classes import IGNORE_INDEX

_SMALL: Final = 64 * 64  # pixels an image in the batch, as in the release
_PRESENCE_KEPT: Final = 0.9


class PixelLoss:
    """Cross entropy, weighted per class and averaged over the weight of the pixels that count.

    A batch whose labels are all 255 gives 0, not NaN.

    Parameters
    ----------
    classes : int
        C.
    rare_weight : float
        Weight of classes with fewer than 64 x 64 pixels an image in the batch; and, averaged
        with 0.9 over the batches, of classes that are absent from a batch. 1 weighs all alike.
    hard_share : float
        Fraction of the labelled pixels, those with the largest loss, that count.
    device : torch.device
        Where labels and logits are.
    """

    def __init__(self, classes: int, rare_weight: float, hard_share: float, device: torch.device):
        self.absence = torch.ones(classes, device=device)
        self._classes = classes
        self._rare = rare_weight
        self._hard = hard_share

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss.

        Parameters
        ----------
        logits : (N, C, h, w) float
            Resized bilinearly to the labels here.
        labels : (N, H, W) int64
            Train ids, 255 where ignored.
        """
        logits = functional.interpolate(
            logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        weight = self._class_weight(labels)
        losses = functional.cross_entropy(
            logits, labels, weight=weight, ignore_index=IGNORE_INDEX, reduction="none"
        )
        valid = labels != IGNORE_INDEX
        losses, kept = losses[valid], weight[labels[valid]]
        if self._hard < 1 and losses.numel():
            count = max(1, round(self._hard * losses.numel()))
            losses, hardest = losses.topk(count, sorted=False)
            kept = kept[hardest]
        return losses.sum() / kept.sum().clamp(min=1)

    def _class_weight(self, labels: Tensor) -> Tensor:
        if self._rare == 1:
            return self.absence
        counts = torch.bincount(labels.flatten(), minlength=256)[: self._classes]
        one = torch.ones_like(self.absence)
        small = torch.where(counts < _SMALL * len(labels), self._rare * one, one)
        absent = torch.where(counts == 0, self._rare * one, one)
        self.absence = _PRESENCE_KEPT * self.absence + (1 - _PRESENCE_KEPT) * absent
        return small * self.absence
