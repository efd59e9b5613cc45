"""Relabelled segments: against a flood fill, and the counts that were asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from ensdistill.stages.functional.spoiling import relabel_segments

quick = settings(max_examples=100, deadline=None, derandomize=True)
label_maps = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 1, 2, 255]),
)


def flood(labels):
    """List the segments of a label map, each a set of pixels."""
    left = {tuple(map(int, p)) for p in np.argwhere(labels != 255)}
    found = []
    while left:
        segment, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            segment.add((y, x))
            for p in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if p in left and labels[p] == labels[y, x]:
                    left.remove(p)
                    todo.append(p)
        found.append(segment)
    return found


def spoil(labels, share, n_classes=3, seed=0):
    return relabel_segments(labels, share, n_classes, np.random.default_rng(seed))


@quick
@given(label_maps, st.floats(0, 1), st.integers(0, 99))
def test_so_many_segments_become_another_class_as_a_whole(labels, share, seed):
    before = labels.copy()
    spoilt = spoil(labels, share, seed=seed)
    np.testing.assert_array_equal(labels, before)
    assert spoilt.dtype == np.uint8 and spoilt.shape == labels.shape
    np.testing.assert_array_equal(spoilt == 255, labels == 255)
    changed, segments = 0, flood(labels)
    for segment in segments:
        (value,) = {int(spoilt[p]) for p in segment}
        assert value < 3
        changed += value != labels[next(iter(segment))]
    assert changed == round(share * len(segments))


@quick
@given(label_maps, st.floats(0, 1), st.integers(0, 99))
def test_segments_are_drawn_from_class_by_class_and_row_by_row(labels, share, seed):
    """As SciPy numbers them: what a seed gives stays, and so do the ablations that are kept."""
    segments, classes = np.zeros(labels.shape, int), []
    for c in range(3):
        numbers, found = ndimage.label(labels == c)
        segments[numbers > 0] = numbers[numbers > 0] + len(classes)
        classes += [c] * found
    random = np.random.default_rng(seed)
    chosen = random.choice(len(classes), round(share * len(classes)), replace=False)
    becomes = np.array([255, *classes])
    becomes[1 + chosen] = (becomes[1 + chosen] + random.integers(1, 3, len(chosen))) % 3
    np.testing.assert_array_equal(spoil(labels, share, seed=seed), becomes[segments])


def test_segments_that_touch_at_a_corner_are_two():
    labels = np.array([[1, 0], [0, 1]], np.uint8)
    np.testing.assert_array_equal(spoil(labels, 1, 2), 1 - labels)
    assert (spoil(labels, 0.25, 2) != labels).sum() == 1


def test_it_depends_on_the_seed_alone():
    labels = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    np.testing.assert_array_equal(spoil(labels, 0.4), spoil(labels, 0.4))
    assert (spoil(labels, 0.4) != spoil(labels, 0.4, seed=1)).any()


def test_every_other_class_is_drawn_about_as_often():
    labels = np.indices((60, 60)).sum(axis=0).astype(np.uint8) % 2  # each pixel is a segment
    found = np.bincount(spoil(labels, 1, 5).ravel()[labels.ravel() == 0], minlength=5)
    assert found[0] == 0
    assert np.all(np.abs(found[1:] - 450) < 90)


def test_a_map_without_labels_stays():
    labels = np.full((3, 4), 255, np.uint8)
    np.testing.assert_array_equal(spoil(labels, 1), labels)


def test_refusals():
    labels = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1.5"):
        spoil(labels, 1.5)
    with pytest.raises(ValueError, match="labels holds the value 3"):
        spoil(labels + np.uint8(3), 0.4)
    with pytest.raises(ValueError, match=r"labels must be \(H, W\)"):
        spoil(labels[0], 0.4)
    with pytest.raises(TypeError, match="uint8"):
        spoil(labels.astype(int), 0.4)
    with pytest.raises(ValueError, match="two classes"):
        spoil(labels, 1, 1)
