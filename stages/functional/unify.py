"""From what a network says of an image to a label map and a confidence map of the wanted size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = [
    "NO_ID",
    "Piece",
    "Unified",
    "View",
    "mean_softmax",
    "resize_ids",
    "tile_boxes",
    "unify",
    "whole",
]

NO_ID: Final = 254
"""What stands in a label map of ids for a number that is none of 8 bits; it is never a class."""

_MASKED: Final = -1e30  # what -inf is resized as: 0 * -inf would be NaN

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Output = Literal["logits", "probabilities"]


class Piece(NamedTuple):
    """What a network says of a part of its input."""

    scores: Tensor  # (C, h, w) floating
    box: Box  # of the part, in pixels of the input


@dataclass(frozen=True)
class View:
    """What a network says of an image that it saw in one way."""

    pieces: Sequence[Piece]  # they cover the input; where several do, their scores are averaged
    size: tuple[int, int]  # height and width of the input in pixels
    flipped: bool = False  # the input was the image mirrored, and so are boxes and scores


class Unified(NamedTuple):
    """A label map and what goes with it.

    Attributes
    ----------
    labels : Tensor
        (H, W) uint8.
    confidence : Tensor or None
        (H, W) float32, a fraction; None where it was not asked for.
    sound : Tensor
        () bool, on the device: whether labels mean anything. False if a score is NaN or inf, or if
        at some point all are -inf; of probabilities also if one is negative or all are 0.
    """

    labels: Tensor
    confidence: Tensor | None
    sound: Tensor


def whole(scores: Tensor) -> View:
    """Return the view of (C, h, w) scores of a whole image, whatever size its input had."""
    size = (scores.shape[-2], scores.shape[-1])
    return View([Piece(scores, (0, 0, *size))], size)


def tile_boxes(
    size: tuple[int, int], tile: tuple[int, int], overlap: tuple[int, int] = (0, 0)
) -> list[Box]:
    """Return the boxes of the tiles that cover an image, row by row.

    Neighbours share at least `overlap` pixels; the last ones are moved inwards, so that all are of
    one size, that of the image where it is smaller (mmsegmentation's slide inference).

    Parameters
    ----------
    size, tile, overlap
        Height and width in pixels.
    """
    height, width = min(size[0], tile[0]), min(size[1], tile[1])
    tops, lefts = (
        [min(at, whole - part) for at in range(0, max(whole - shared, 1), max(part - shared, 1))]
        for whole, part, shared in zip(size, (height, width), overlap, strict=True)
    )
    return [
        (top, left, height, width) for top in dict.fromkeys(tops) for left in dict.fromkeys(lefts)
    ]


def unify(
    views: Sequence[View],
    size: tuple[int, int],
    *,
    align_corners: bool,
    output: Output = "logits",
    confidence: bool = True,
    rows: int | None = None,
) -> Unified:
    """Resize scores bilinearly, and take the most likely class and how likely it is.

    Of one view of one piece the result is that of `interpolate`, `softmax` and `max` over the
    whole map. Pieces that overlap are averaged as they are (mmsegmentation's slide inference);
    views by their softmax (DeepLab's multi-scale and flip inference). The work runs in bands of
    rows, so that the memory needed beside the result does not grow with C x H x W.

    Parameters
    ----------
    views
        At least one, all of 1 <= C <= 254 classes, on one device; computed in float32.
    size
        (H, W) of the result, larger or smaller than the inputs.
    align_corners
        As in `torch.nn.functional.interpolate`, from scores to the part of the input that they
        are about and from the input to the result: whether the centres of the corner pixels,
        rather than their outer corners, lie on each other.
    output
        What scores are: ``"logits"``, of which the softmax is taken, or ``"probabilities"``, which
        are divided by their sum over the classes.
    confidence
        Whether it is wanted.
    rows
        Rows of the result in one band; None takes 16, and 256 on a GPU, where starting a kernel
        costs more than its work. The last bit of the confidence may depend on it.

    Returns
    -------
    Unified
        ``labels``: the class with the largest score, ties to the lowest id. ``confidence``: the
        largest probability, in [1/C, 1]; NaN where a score is.

    Raises
    ------
    TypeError
        If scores are not floating.
    ValueError
        If they are not (C, h, w) with a permitted C, or a size or `rows` is not positive.
    """
    device = views[0].pieces[0].scores.device
    if rows is None:
        rows = 16 if device.type == "cpu" else 256
    if min(*size, rows) < 1:
        raise ValueError(f"size and rows must be positive, got {size} and {rows}")
    sampled = [_sampled(view, size, align_corners) for view in views]
    first = views[0].pieces[0].scores
    labels = torch.zeros(size, dtype=torch.uint8, device=first.device)
    sure = torch.empty(size, dtype=torch.float32, device=first.device) if confidence else None
    # Written again for each band: asking for new memory each time costs as much as the arithmetic.
    buffers = first.new_empty(
        (2 + (len(views) > 1), len(first), min(rows, size[0]), size[1]), dtype=torch.float32
    )
    for y in range(0, size[0], rows):
        band = slice(y, min(y + rows, size[0]))
        scores, other, *total = buffers[:, :, : band.stop - band.start]
        for k, view in enumerate(sampled):
            view.fill(band, scores, other)
            if total:
                _normalise(scores, output)
                total[0].copy_(scores) if k == 0 else total[0].add_(scores)
        if total:
            scores = total[0]
        largest = _most_likely(scores, labels[band])
        if sure is None:
            continue
        if total:
            torch.div(largest, len(views), out=sure[band])
        elif output == "logits":
            sure[band] = scores.sub_(largest).exp_().sum(dim=0).reciprocal_()
        else:
            torch.div(largest, scores.sum(dim=0), out=sure[band])
    pieces = [piece for view in views for piece in view.pieces]
    sound = torch.stack([_is_sound(piece.scores.detach(), output) for piece in pieces]).all()
    return Unified(labels, sure, sound)


def mean_softmax(views: Sequence[View], *, output: Output = "logits") -> Tensor:
    """Return the (C, h, w) float32 probabilities of views of one whole piece, at their own stride.

    Raises
    ------
    ValueError
        If a view has several pieces, or their strides differ.
    """
    found = []
    for view in views:
        if len(view.pieces) != 1:
            raise ValueError("expected views of one piece")
        scores = view.pieces[0].scores.detach().float()
        found.append(_normalise(scores.flip(2) if view.flipped else scores.clone(), output))
    if len({one.shape for one in found}) != 1:
        raise ValueError(f"expected one stride, got {[tuple(one.shape) for one in found]}")
    return torch.stack(found).mean(dim=0)


def resize_ids(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (h, w) whole numbers as (H, W) uint8, the nearest of each pixel, or `NO_ID`."""
    known = torch.where((ids < 0) | (ids > 255), NO_ID, ids)
    resized = F.interpolate(known[None, None].float(), size, mode="nearest-exact")[0, 0]
    return resized.to(torch.uint8)


def _is_sound(scores: Tensor, output: Output) -> Tensor:
    """Say of one piece what `Unified.sound` says of all; NaN fails each comparison."""
    largest = scores.amax(dim=0)
    least = -torch.inf if output == "logits" else 0.0
    sound = (largest < torch.inf).all() & (largest > least).all()
    return sound if output == "logits" else sound & (scores.amin() >= 0)


def _normalise(scores: Tensor, output: Output) -> Tensor:
    """Turn (C, h, w) scores into probabilities, in place."""
    if output == "logits":
        scores.sub_(scores.amax(dim=0)).exp_()
    return scores.div_(scores.sum(dim=0))


def _most_likely(scores: Tensor, labels: Tensor) -> Tensor:
    """Write the class of the largest score into (h, w) zeros and return that score, (h, w)."""
    if scores.is_cuda:  # one kernel
        largest, found = scores.max(dim=0)
        labels.copy_(found)
        return largest
    largest = scores[0].clone()
    for c in range(1, len(scores)):  # several times faster there than `max` with indices
        labels.masked_fill_(scores[c] > largest, c)
        torch.maximum(largest, scores[c], out=largest)
    return largest


def _sampled(view: View, size: tuple[int, int], align_corners: bool) -> _Whole | _Parts:
    for scores, _ in view.pieces:
        if not scores.is_floating_point():
            raise TypeError(f"scores must be floating, got {scores.dtype}")
        if scores.ndim != 3 or not 1 <= scores.shape[0] <= 254 or 0 in scores.shape:
            raise ValueError(
                f"scores must be (C, h, w) with 1 <= C <= 254, got {tuple(scores.shape)}"
            )
    pieces = [Piece(p.scores.detach(), p.box) for p in view.pieces]
    if view.flipped:
        pieces = [Piece(s.flip(2), _mirrored(box, view.size[1])) for s, box in pieces]
    if len(pieces) == 1:
        return _Whole(pieces[0].scores, size, align_corners)
    return _Parts(pieces, view.size, size, align_corners)


def _mirrored(box: Box, width: int) -> Box:
    return box[0], width - box[1] - box[3], box[2], box[3]


class _Whole:
    """Samples the scores of a whole image."""

    def __init__(self, scores: Tensor, size: tuple[int, int], align_corners: bool):
        self._scores, self._size, self._align_corners = scores, size, align_corners
        height = scores.shape[1]
        self._rows = _row_weights(height, size[0], align_corners, scores.device)

    def fill(self, band: slice, out: Tensor, other: Tensor) -> None:
        """Write the scores of a band of rows, (C, rows, W)."""
        upper, lower, upper_weight, lower_weight, first, last = self._rows
        top, bottom = first[band.start], last[band.stop - 1]
        source = self._scores[:, top : bottom + 1].float()
        if self._scores.shape[1:] != self._size:
            source = source.clamp(min=_MASKED)
        if source.shape[2] != self._size[1]:
            source = F.interpolate(
                source[None],
                (source.shape[1], self._size[1]),
                mode="bilinear",
                align_corners=self._align_corners,
            )[0]
        torch.index_select(source, 1, upper[band] - top, out=out)
        if self._size[0] != self._scores.shape[1]:
            torch.index_select(source, 1, lower[band] - top, out=other)
            out *= upper_weight[band, None]
            out += other.mul_(lower_weight[band, None])


class _Axis(NamedTuple):
    """Rows (or columns) of the result that a part of the input covers, and their neighbours."""

    start: int
    stop: int
    before: Tensor  # the rows of the scores
    after: Tensor
    weight: Tensor  # of the latter, float32


class _Parts:
    """Samples the mean of the pieces that cover a pixel."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        source: tuple[int, int],
        size: tuple[int, int],
        align_corners: bool,
    ):
        self._parts: list[tuple[Tensor, _Axis, _Axis]] = []
        for scores, (top, left, height, width) in pieces:
            rows = _axis(source[0], size[0], (top, height), scores.shape[1], align_corners)
            columns = _axis(source[1], size[1], (left, width), scores.shape[2], align_corners)
            on_device = _Axis(*columns[:2], *(_sent(t, scores.device) for t in columns[2:]))
            self._parts.append((scores, rows, on_device))

    def fill(self, band: slice, out: Tensor, _: Tensor) -> None:
        """Write the mean scores of a band of rows, (C, rows, W)."""
        out.zero_()
        count = out.new_zeros(out.shape[1:])
        for scores, rows, columns in self._parts:
            start, stop = max(band.start, rows.start), min(band.stop, rows.stop)
            if start >= stop:
                continue
            of_rows = slice(start - rows.start, stop - rows.start)
            before, after = rows.before[of_rows], rows.after[of_rows]
            top = int(before[0])
            source = scores[:, top : int(after[-1]) + 1].float().clamp(min=_MASKED)
            wide = _between(source, 2, columns.before, columns.after, columns.weight)
            index = (before - top, after - top, rows.weight[of_rows])
            one, two, weight = (_sent(t, out.device) for t in index)
            found = _between(wide, 1, one, two, weight[:, None])
            at = slice(start - band.start, stop - band.start), slice(columns.start, columns.stop)
            out[:, *at] += found
            count[at] += 1
        out /= count


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device, which is not waited for."""
    return tensor.to(device, non_blocking=True)


def _between(scores: Tensor, axis: int, before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    first = scores.index_select(axis, before)
    return first.add_((scores.index_select(axis, after) - first).mul_(weight))


def _axis(
    source: int, target: int, part: tuple[int, int], count: int, align_corners: bool
) -> _Axis:
    """Return which of `target` pixels' centres lie in a part of `source` pixels, and where.

    The part is its start and length in pixels; its scores are `count` rows.
    """
    start, length = part
    k = torch.arange(target, dtype=torch.float64)
    if align_corners:
        centre = k * (source - 1) / max(target - 1, 1) + 0.5
    else:
        centre = (k + 0.5) * source / target
    covered = ((centre >= start) & (centre < start + length)).nonzero()[:, 0]
    if not len(covered):  # a part thinner than a pixel of the result
        nothing = covered
        return _Axis(0, 0, nothing, nothing, nothing.float())
    inside = centre[covered] - start
    if align_corners:
        position = (inside - 0.5) * ((count - 1) / max(length - 1, 1))
    else:
        position = inside * count / length - 0.5
    position = position.clamp(0, count - 1)
    before = position.floor().long()
    after = (before + 1).clamp(max=count - 1)
    weight = (position - before).float()
    return _Axis(int(covered[0]), int(covered[-1]) + 1, before, after, weight)


@lru_cache(maxsize=64)
def _row_weights(
    source: int, target: int, align_corners: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int], list[int]]:
    """The two source rows that each target row lies between, and their weights.

    The rows as tensors on the device, the weights, and the rows as lists: read back once, not for
    every image, as a GPU would have to be waited for.

    They are read off a resized unit matrix, since computing the positions here would differ from
    `interpolate` in the last bit where that uses fused multiply-adds, and so in the weights' last
    six.
    """
    with torch.inference_mode(False):  # they outlive the call
        unit = torch.eye(source, device=device)[None, None]
        weights = F.interpolate(
            unit, (target, source), mode="bilinear", align_corners=align_corners
        )[0, 0]
        upper = (weights > 0).int().argmax(dim=1)
        lower = (upper + 1).clamp(max=source - 1)
        upper_weight = weights.gather(1, upper[:, None])[:, 0]
        lower_weight = weights.gather(1, lower[:, None])[:, 0] * (lower > upper)
    return upper, lower, upper_weight, lower_weight, upper.tolist(), lower.tolist()
