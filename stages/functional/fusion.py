"""One label map out of several teachers' label maps.

`channel_wise` is the channel-wise ensemble of Chao, Cheng, Lee, "Rethinking Ensemble-Distillation
for Semantic Segmentation Based Unsupervised Domain Adaption", CVPR Workshops 2021: a policy gives
each class to one teacher, whose pixels of that class are then taken over. `majority` is the
pixel-wise baseline of the same paper.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ensdistill.stages.functional import IGNORE_INDEX, MAX_FUSED
from ensdistill.stages.functional._checks import check_form, check_highest, check_n_classes


@dataclass(frozen=True, eq=False)
class FusionCounts:
    """What happened in a fusion, in pixels; the counts of several images add up exactly.

    Attributes
    ----------
    claimed
        (C,) int64, the pixels that the class claims.
    conflict
        (C,) int64, those of them that another class claims too.
    won
        (C,) int64, the pixels with several claims that became the class. Under the rule `window`
        a class may win where it claims nothing.
    filled
        (C,) int64, the pixels without a claim that became the class.
    label
        (C,) int64, the pixels of the class in the fused map.
    pixels, conflicts, holes, ignored
        All pixels, those with several claims, those without a claim, and those that are 255 in the
        fused map.
    """

    claimed: NDArray[np.int64]
    conflict: NDArray[np.int64]
    won: NDArray[np.int64]
    filled: NDArray[np.int64]
    label: NDArray[np.int64]
    pixels: int
    conflicts: int
    holes: int
    ignored: int

    def __add__(self, other: "FusionCounts") -> "FusionCounts":
        if self.label.shape != other.label.shape:
            raise ValueError(
                f"cannot add counts of {len(self.label)} and {len(other.label)} classes"
            )
        return FusionCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def channel_wise(
    label_maps: NDArray[np.uint8],
    owner: NDArray[np.intp],
    *,
    window: int,
    conflict: Literal["window", "certainty", "ignore"],
    holes: Literal["window", "ignore"],
    certainty: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.uint8], FusionCounts]:
    """Fuse the teachers' label maps class by class, each class from the teacher that owns it.

    Class c claims pixel p if `label_maps[owner[c], p] == c`. A pixel with one claim becomes that
    class. 255 never claims, and an unassigned class claims nothing.

    Parameters
    ----------
    label_maps
        (T, H, W) uint8 of class ids 0..C-1 or 255, one map for each teacher.
    owner
        (C,) intp with C <= 64, the index of the teacher that decides class c, or -1 for none.
    window
        K, the odd edge length in pixels of the window of the rules `window`.
    conflict
        What a pixel with several claims becomes. `window`: the class with the most claims in the
        K x K window around it, among all classes; beyond the image border there are no claims, and
        at a pixel with several claims each of them counts; ties go to the lowest id. `certainty`:
        the class among the claimants with the largest certainty, ties to the lowest id. `ignore`:
        255.
    holes
        What a pixel without a claim becomes. `window`: as above, or 255 if nothing is claimed in
        the whole window. `ignore`: 255.
    certainty
        (C,) float64, the certainty that the probe of c's owner has of class c; NaN ranks below
        every number. Needed for `conflict="certainty"`, not read otherwise.

    Returns
    -------
    fused
        (H, W) uint8 of class ids or 255.
    counts
        How many pixels were claimed, contested, filled and ignored.

    Raises
    ------
    TypeError
        If `label_maps` is not uint8, or `owner` does not hold integers.
    ValueError
        If an array has the wrong shape, a label is neither a class id nor 255, an owner is not a
        teacher, `window` is not an odd positive number, a rule is unknown, or the rule `certainty`
        comes without a certainty.

    Examples
    --------
    >>> label_maps = np.array([[[0, 0, 1, 1]], [[0, 1, 1, 0]]], np.uint8)
    >>> owner = np.array([0, 1])
    >>> fused, counts = channel_wise(
    ...     label_maps, owner, window=3, conflict="ignore", holes="ignore"
    ... )
    >>> fused
    array([[  0, 255,   1, 255]], dtype=uint8)
    >>> counts.conflicts, counts.holes
    (1, 1)
    """
    owner = np.asarray(owner)
    if owner.ndim != 1:
        raise ValueError(f"owner must be (C,), got shape {owner.shape}")
    if not np.issubdtype(owner.dtype, np.integer):
        raise TypeError(f"owner must hold integers, got {owner.dtype}")
    n_classes = len(owner)
    check_n_classes(n_classes, most=MAX_FUSED)
    check_form("label_maps", label_maps, ndim=3)
    teachers, height, width = label_maps.shape
    if owner.min() < -1 or owner.max() >= teachers:
        raise ValueError(
            f"owner must hold indices of the {teachers} teachers or -1, got {owner.tolist()}"
        )
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd positive number of pixels, got {window}")
    if conflict not in ("window", "certainty", "ignore"):
        raise ValueError(f"conflict must be 'window', 'certainty' or 'ignore', got {conflict!r}")
    if holes not in ("window", "ignore"):
        raise ValueError(f"holes must be 'window' or 'ignore', got {holes!r}")
    order = np.arange(n_classes)
    if conflict == "certainty":
        if certainty is None or certainty.shape != (n_classes,):
            given = "none" if certainty is None else f"shape {certainty.shape}"
            raise ValueError(f"conflict='certainty' needs a ({n_classes},) certainty, got {given}")
        # A stable sort keeps the lowest id first among equals, and leaves NaN to the end.
        order[np.argsort(-certainty, kind="stable")] = np.arange(n_classes)

    from ensdistill.stages.functional import _kernels as kernels

    label_maps = frozen(label_maps)
    plane = np.empty((height, -(-width // kernels.TILE) * kernels.TILE), np.uint8)
    plane[:, width:] = kernels.PADDING
    words = plane.view(np.uint64)
    unsettled = np.empty((height, words.shape[1] // 8), np.uint8)
    present = np.zeros((-(-height // kernels.BAND), unsettled.shape[1]), np.uint64)
    seen, contested = np.zeros((2, 256), np.int64)
    became = np.zeros((3, 256), np.int64)
    planes, classes = _claimants(owner, teachers, kernels)
    highest = kernels.find_claims(
        label_maps, planes, classes, plane, words, unsettled, present, seen, contested
    )
    check_highest("label_maps", highest, n_classes)
    wanted = (conflict == "window") + 2 * (holes == "window")
    if wanted:
        radius = min(window // 2, max(height, width))
        rows, pixels = (min(2 * radius + 1, height), min(2 * radius + 1, width))
        kernels.resolve(
            label_maps,
            owner.astype(np.intp),
            plane,
            words,
            unsettled,
            present,
            radius,
            wanted,
            np.zeros((n_classes + 1, plane.shape[1] + 2 * radius + 1), np.min_scalar_type(rows)),
            16 if rows * pixels < 1 << 16 else 32,
            became,
        )
    if conflict == "ignore":
        kernels.give_up(plane)
    elif conflict == "certainty":
        ranks = np.full((teachers, 256), 256, np.int16)
        owned = np.flatnonzero(owner >= 0)
        ranks[owner[owned], owned] = order[owned]
        kernels.rank(label_maps, ranks, plane, unsettled, became[1])
    fused = np.ascontiguousarray(plane[:, :width])
    single, won, filled = seen[:n_classes], became[1, :n_classes], became[2, :n_classes]
    contested = contested[:n_classes]
    label = single + won + filled
    return fused, FusionCounts(
        claimed=single + contested,
        conflict=contested,
        won=won,
        filled=filled,
        label=label,
        pixels=fused.size,
        conflicts=int(seen[kernels.MANY]),
        holes=int(seen[kernels.NONE]),
        ignored=fused.size - int(label.sum()),
    )


def majority(
    label_maps: NDArray[np.uint8], n_classes: int, *, weights: NDArray[np.integer] | None = None
) -> NDArray[np.uint8]:
    """Fuse the teachers' label maps pixel by pixel, by a plurality of the votes.

    Parameters
    ----------
    label_maps
        (T, H, W) uint8 of class ids 0..C-1 or 255, one map for each teacher, in the order of their
        names; T is at most 255. 255 never votes.
    n_classes
        C, 1 to 254.
    weights
        (T,) positive integers, how many votes each teacher has, together below 2**32; one each by
        default.

    Returns
    -------
    fused
        (H, W) uint8. Among labels with equally many votes the one that the first teacher voting
        for any of them gives; 255 where nobody votes.

    Raises
    ------
    TypeError
        If `label_maps` is not uint8, or `weights` does not hold integers.
    ValueError
        If `label_maps` is not (T, H, W) with a permitted T, a label is neither a class id nor
        255, or `weights` is not as above.

    Examples
    --------
    >>> label_maps = np.array([[[0, 0]], [[1, 255]], [[2, 1]]], np.uint8)
    >>> majority(label_maps, 3)
    array([[0, 0]], dtype=uint8)
    >>> majority(label_maps, 3, weights=np.array([2, 1, 3]))
    array([[2, 1]], dtype=uint8)
    """
    check_n_classes(n_classes)
    check_form("label_maps", label_maps, ndim=3)
    teachers = len(label_maps)
    if teachers > 255:
        raise ValueError(f"at most 255 teachers can vote, got {teachers}")
    votes = np.ones(teachers, np.uint8)
    if weights is not None:
        weights = np.asarray(weights)
        if not np.issubdtype(weights.dtype, np.integer):
            raise TypeError(f"weights must hold integers, got {weights.dtype}")
        if weights.shape != (teachers,) or weights.min() < 1 or sum(weights.tolist()) >= 1 << 32:
            raise ValueError(
                f"weights must be ({teachers},) positive integers that sum to less than 2**32, "
                f"got {weights.tolist()}"
            )
        votes = weights.astype(np.uint8 if sum(weights.tolist()) < 256 else np.uint32)

    from ensdistill.stages.functional import _kernels as kernels

    fused = np.empty(label_maps.shape[1:], np.uint8)
    flat = frozen(label_maps).reshape(teachers, -1)
    if teachers <= 4 and votes.dtype == np.uint8:
        silent = np.full(fused.size if teachers < 4 else 0, IGNORE_INDEX, np.uint8)
        a, b, c, d = [*flat, *[frozen(silent)] * (4 - teachers)]
        each = np.array([*votes, *[0] * (4 - teachers)], np.uint8)
        highest = kernels.vote_of_four(a, b, c, d, each, fused.reshape(-1))
    else:
        none = np.zeros(kernels.BLOCK, votes.dtype)
        highest = kernels.vote(flat, votes, none, fused.reshape(-1))
    check_highest("label_maps", highest, n_classes)
    return fused


def warm_up() -> None:
    """Compile, or load, what `channel_wise` and `majority` need for usual windows."""
    label_maps = np.zeros((4, 1, 1), np.uint8)
    owner = np.zeros(1, np.intp)
    channel_wise(label_maps, owner, window=1, conflict="window", holes="window")
    majority(label_maps, 1)


def _claimants(
    owner: NDArray[np.intp], teachers: int, kernels: Any
) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Each teacher's classes, as many at a time as the kernel looks for."""
    planes, rows = [], []
    for t in range(teachers):
        mine = np.flatnonzero(owner == t).tolist()
        for k in range(0, max(len(mine), 1), kernels.SLOTS):
            planes.append(t)
            row = mine[k : k + kernels.SLOTS]
            rows.append(row + [kernels.PADDING] * (kernels.SLOTS - len(row)))
    return np.array(planes, np.intp), np.array(rows, np.uint8)


def frozen(label_maps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (N, H, W) label maps as kernels take them: in one piece, and not to be written to."""
    view = np.ascontiguousarray(label_maps).view()
    view.flags.writeable = False
    return view
