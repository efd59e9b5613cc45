"""From a network's logits to a label map and a certainty map of the wanted size."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["unify"]


def unify(
    logits: Tensor, size: tuple[int, int], *, align_corners: bool, rows: int = 32
) -> tuple[Tensor, Tensor]:
    """Resize logits bilinearly, and take the most likely class and its softmax value.

    The result is that of `interpolate`, `softmax` and `max` over the whole map. The work runs in
    bands of rows, so that the memory needed beside the result does not grow with C x H x W.

    Parameters
    ----------
    logits
        (C, h, w) floating, 1 <= C <= 254, on any device; computed in float32.
    size
        (H, W) of the result, larger or smaller than (h, w).
    align_corners
        As in `torch.nn.functional.interpolate`: whether the centres of the corner pixels, rather
        than their outer corners, lie on each other.
    rows
        Rows of the result in one band. The last bit of the certainty may depend on it.

    Returns
    -------
    labels
        (H, W) uint8, the class with the largest logit, ties to the lowest id.
    certainty
        (H, W) float32, the largest softmax value, a fraction in [1/C, 1]; NaN where a logit is.

    Raises
    ------
    TypeError
        If `logits` is not floating.
    ValueError
        If `logits` is not (C, h, w) with a permitted C, or a size or `rows` is not positive.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating, got {logits.dtype}")
    if logits.ndim != 3 or not 1 <= logits.shape[0] <= 254 or 0 in logits.shape:
        raise ValueError(f"logits must be (C, h, w) with 1 <= C <= 254, got {tuple(logits.shape)}")
    height, width = size
    if min(height, width, rows) < 1:
        raise ValueError(f"size and rows must be positive, got {size} and {rows}")
    logits = logits.detach()
    upper, lower, upper_weight, lower_weight = _row_weights(
        logits.shape[1], height, align_corners, logits.device
    )
    first, last = upper.tolist(), lower.tolist()
    labels = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    certainty = torch.empty(size, dtype=torch.float32, device=logits.device)
    # Written again for each band: asking for new memory each time costs as much as the arithmetic.
    buffers = certainty.new_empty(2, len(logits), min(rows, height), width)
    for y in range(0, height, rows):
        band = slice(y, min(y + rows, height))
        top, bottom = first[band.start], last[band.stop - 1]
        source = _resize_columns(logits[:, top : bottom + 1].float(), width, align_corners)
        resized, other = buffers[:, :, : band.stop - band.start]
        torch.index_select(source, 1, upper[band] - top, out=resized)
        if height != logits.shape[1]:
            torch.index_select(source, 1, lower[band] - top, out=other)
            resized *= upper_weight[band, None]
            resized += other.mul_(lower_weight[band, None])
        largest = resized[0].clone()
        for c in range(1, len(resized)):  # several times faster than `max` with indices
            labels[band].masked_fill_(resized[c] > largest, c)
            torch.maximum(largest, resized[c], out=largest)
        certainty[band] = resized.sub_(largest).exp_().sum(dim=0).reciprocal_()
    return labels, certainty


def _resize_columns(logits: Tensor, width: int, align_corners: bool) -> Tensor:
    if logits.shape[2] == width:
        return logits
    return F.interpolate(
        logits[None], (logits.shape[1], width), mode="bilinear", align_corners=align_corners
    )[0]


def _row_weights(
    source: int, target: int, align_corners: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two source rows that each target row lies between, and their weights.

    They are read off a resized unit matrix, since computing the positions here would differ from
    `interpolate` in the last bit where that uses fused multiply-adds, and so in the weights' last
    six.
    """
    unit = torch.eye(source, device=device)[None, None]
    weights = F.interpolate(unit, (target, source), mode="bilinear", align_corners=align_corners)[
        0, 0
    ]
    upper = (weights > 0).int().argmax(dim=1)
    lower = (upper + 1).clamp(max=source - 1)
    upper_weight = weights.gather(1, upper[:, None])[:, 0]
    lower_weight = weights.gather(1, lower[:, None])[:, 0] * (lower > upper)
    return upper, lower, upper_weight, lower_weight
