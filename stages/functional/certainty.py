"""How certain a probe is of each class, as sums that merge over images.

Chao, Cheng, Lee, "Rethinking Ensemble-Distillation for Semantic Segmentation Based Unsupervised
Domain Adaption", CVPR Workshops 2021: a student trained on one teacher's labels is measured on the
target images, and its certainty of a class stands for the quality of that teacher's labels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional._checks import check_counted, check_form, check_n_classes
from ensdistill.stages.functional.numbers import shares

__all__ = ["CertaintySums", "certainty_sums", "mean_certainty"]


@dataclass(frozen=True, eq=False)
class CertaintySums:
    """Certainty summed per class over the pixels of one or more images.

    Floating sums depend on their order: add those of single images in one fixed order, and the
    result does not depend on who computed them.

    Attributes
    ----------
    sums
        (C,) float64, the certainty of the pixels of each class, summed.
    support
        (C,) int64, the number of those pixels.
    """

    sums: NDArray[np.float64]
    support: NDArray[np.int64]

    def __add__(self, other: "CertaintySums") -> "CertaintySums":
        if self.sums.shape != other.sums.shape:
            raise ValueError(f"cannot add sums over {len(self.sums)} and {len(other.sums)} classes")
        return CertaintySums(self.sums + other.sums, self.support + other.support)


def certainty_sums(
    labels: NDArray[np.uint8], certainty: NDArray[np.float32], n_classes: int
) -> CertaintySums:
    """Sum a probe's certainty over the pixels of each class it predicts, in float64.

    A float32 sum would stop growing at 2**24, after some eight Cityscapes images of one class.

    Parameters
    ----------
    labels
        (H, W) uint8, the classes that the probe predicts, 0..C-1; pixels of 255 are left out.
    certainty
        (H, W) float32, its largest softmax value at each pixel, a fraction in [0, 1].
    n_classes
        C, 1 to 254.

    Raises
    ------
    TypeError
        If `labels` is not uint8, or `certainty` not floating.
    ValueError
        If the shapes differ, a label is neither a class id nor 255, or the certainty of a labelled
        pixel is NaN or outside [0, 1].
    """
    check_n_classes(n_classes)
    check_form("labels", labels, ndim=2)
    if certainty.shape != labels.shape:
        raise ValueError(
            f"labels and certainty must have one shape, got {labels.shape} and {certainty.shape}"
        )
    if not np.issubdtype(certainty.dtype, np.floating):
        raise TypeError(f"certainty must be floating, got {certainty.dtype}")

    from ensdistill.data.loops import flat
    from ensdistill.stages.functional._counting import sum_by_label

    sums = np.zeros(256)
    support = np.zeros(256, np.int64)
    kind = np.float32 if certainty.dtype.itemsize <= 4 else np.float64
    values = flat(certainty.astype(kind, copy=False))
    legal = sum_by_label(flat(labels), values, sums, support)
    check_counted("labels", support, n_classes)
    if not legal:
        raise ValueError("certainty must be a fraction in [0, 1] wherever there is a label")
    return CertaintySums(sums[:n_classes], support[:n_classes])


def mean_certainty(sums: CertaintySums) -> NDArray[np.float64]:
    """Mean certainty per class (Fig. 6 of the paper).

    Returns
    -------
    certainty
        (C,) float64, a fraction in [0, 1]; NaN for a class that the probe predicts nowhere.
    """
    return shares(sums.sums, sums.support)
