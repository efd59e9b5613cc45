"""Cross entropy on pseudo-labels, normalised over the whole batch wherever its parts are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ensdistill.data.classes import IGNORE_INDEX

_SMALL: Final = 64 * 64  # pixels an image in the batch, as in the release
_PRESENCE_KEPT: Final = 0.9
_PERCENT: Final = 100

Sum = Callable[[Tensor], Tensor]


class PixelLoss:
    """Cross entropy, weighted per class and pixel, over the weight of the pixels that count.

    A step first tells what it is about to see (`begin`), then what its parts lose (`part`): the
    parts' gradients sum up to that of ``sum(weight * loss) / sum(weight)`` over the pixels of the
    global batch that are not 255, wherever it was cut, so that ignored pixels bias no part. A
    batch whose labels are all 255 gives 0, not NaN.

    Parameters
    ----------
    classes : int
        C.
    class_balance : float
        Weight of classes with fewer than 64 x 64 pixels an image in the batch (the release's
        ``--class-balance``). 1 weighs all alike.
    often_balance : float
        Weight of classes that are absent from a batch, averaged with 0.9 over the batches (the
        release's ``--often-balance``). 1 weighs all alike.
    hard_share : float
        Fraction of each image's labelled pixels, those with the largest loss, that count. (Of
        each image, and not of the batch as in the release, so that cutting the batch changes
        nothing.)
    device : torch.device
        Where labels and logits are.
    total : callable
        Sums a tensor over all ranks.
    pixels : int
        Of the image, that each label stands for.

    Attributes
    ----------
    absence : (C,) float32
        The average that `often_balance` keeps; part of a checkpoint.
    """

    def __init__(
        self,
        classes: int,
        class_balance: float,
        often_balance: float,
        hard_share: float,
        device: torch.device,
        total: Sum = lambda x: x,
        pixels: int = 1,
    ):
        self.absence = torch.ones(classes, device=device)
        self._balance = class_balance
        self._often = often_balance
        self._hard = hard_share
        self._total = total
        self._pixels = pixels
        self._weight = self.absence
        self._whole = self._lost = self._kept = torch.zeros((), dtype=torch.float64, device=device)

    def begin(self, labels: Tensor, weights: Tensor | None, images: int) -> None:
        """Begin a step.

        Parameters
        ----------
        labels : (n, H, W) int64
            Train ids of this rank's share of the batch, 255 where ignored.
        weights : (n, H, W) uint8, optional
            How much each pixel counts, in percent.
        images : int
            N, those of all ranks together.
        """
        classes = len(self.absence)
        flat = labels.flatten()
        counts = torch.bincount(flat, minlength=IGNORE_INDEX + 1)[:classes].double()
        mass = counts
        if weights is not None:
            mass = _sums(flat, weights.flatten())[:classes] / _PERCENT
        counts, mass = self._total(torch.stack([counts, mass]))
        one = torch.ones_like(self.absence)
        small = torch.where(counts * self._pixels < _SMALL * images, self._balance * one, one)
        absent = torch.where(counts == 0, self._often * one, one)
        self.absence = _PRESENCE_KEPT * self.absence + (1 - _PRESENCE_KEPT) * absent
        self._weight = small * self.absence
        whole = (mass * self._weight).sum()
        self._whole = torch.where(whole > 0, whole, 1)
        self._lost = torch.zeros_like(self._whole)
        self._kept = torch.zeros_like(self._whole)

    def part(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Return what a part of the batch adds to the loss, a scalar to differentiate.

        Parameters
        ----------
        logits : (n, C, h, w) float
            Resized bilinearly to the labels here.
        labels, weights
            As in `begin`.
        """
        logits = functional.interpolate(
            logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        losses = functional.cross_entropy(
            logits, labels, weight=self._weight, ignore_index=IGNORE_INDEX, reduction="none"
        )
        share = None if weights is None else weights.float() / _PERCENT
        if share is not None:
            losses = losses * share
        if self._hard < 1:
            valid = labels != IGNORE_INDEX
            hardest = self._hardest(losses.detach(), valid)
            losses = losses * hardest
            kept = self._weight[torch.where(valid, labels, 0)] * hardest
            self._kept = self._kept + (kept if share is None else kept * share).sum().double()
        lost = losses.sum()
        self._lost = self._lost + lost.detach().double()
        return lost / self._whole.float()

    def end(self) -> tuple[Tensor, Tensor | None]:
        """End a step.

        Returns
        -------
        tuple
            The step's loss, a float64 scalar; and what the gradients have to be multiplied by,
            where only the hardest pixels count: their weight is known only now.
        """
        if self._hard == 1:
            return self._total(self._lost) / self._whole, None
        lost, kept = self._total(torch.stack([self._lost, self._kept]))
        kept = torch.where(kept > 0, kept, 1)
        return lost / kept, (self._whole / kept).float()

    def _hardest(self, losses: Tensor, valid: Tensor) -> Tensor:
        """Return 1 at the pixels of each image that count and 0 elsewhere, (n, H, W) float32."""
        chosen = torch.zeros_like(losses)
        for loss, counts, out in zip(losses, valid, chosen, strict=True):
            number = round(self._hard * int(counts.sum())) or int(counts.any())
            # what is ignored has lost nothing, and must not be chosen for want of others
            out.view(-1)[torch.where(counts, loss, -1).flatten().topk(number).indices] = 1
        return chosen


def _sums(labels: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the uint8 weights of each of 256 labels, (256,) float64."""
    values = IGNORE_INDEX + 1
    if not torch.are_deterministic_algorithms_enabled():
        return torch.bincount(labels, weights.double(), minlength=values)
    # with weights, torch refuses it on a GPU, though sums of whole numbers know no order
    pairs = torch.bincount(values * labels + weights, minlength=values**2).view(values, values)
    return (pairs * torch.arange(values, device=labels.device)).sum(dim=1).double()
