from dataclasses import fields

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensdistill.stages.functional.agreement import (
    Agreement,
    agreement,
    claims,
    joint,
    kappa,
    turned,
)
from ensdistill.stages.functional.fusion import channel_wise

LABELS = st.sampled_from([0, 1, 2, 255])
MAPS = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(3), st.just(4)), elements=LABELS)
FUSED = hnp.arrays(np.uint8, (3, 4), elements=LABELS)
COUNTS = [field.name for field in fields(Agreement)]


@settings(deadline=None)  # the first call compiles
@given(MAPS, FUSED)
def test_agreement_is_counted_pixel_by_pixel(label_maps, fused):
    found = agreement(label_maps, fused, 3)
    expected = oracles.agreement(label_maps, fused, 3)
    assert {*COUNTS, "either"} == expected.keys()
    for name, counts in expected.items():
        np.testing.assert_array_equal(getattr(found, name), counts, err_msg=name)


@settings(deadline=None)
@given(MAPS, FUSED)
def test_agreements_of_two_images_add_up(label_maps, fused):
    both = agreement(
        np.concatenate([label_maps, label_maps[:, ::-1]], axis=1), np.vstack([fused, fused]), 3
    )
    added = agreement(label_maps, fused, 3) + agreement(label_maps[:, ::-1], fused, 3)
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(both, name), getattr(added, name))


@settings(deadline=None)
@given(MAPS, FUSED)
def test_pixels_that_nobody_labels_change_nothing_but_their_number(label_maps, fused):
    holes = np.full_like(label_maps, 255)
    found = agreement(label_maps, fused, 3)
    more = found + agreement(holes, np.full_like(fused, 255), 3)
    for name in COUNTS:
        expected = found.pixels + fused.size if name == "pixels" else getattr(found, name)
        np.testing.assert_array_equal(getattr(more, name), expected)


def test_holes_do_not_agree():
    """Road on the left of one, a car in the middle of the other, and a third without a label."""
    a, b = np.full((2, 2, 9), 255, np.uint8)
    a[:, :4], b[:, 3:6] = 0, 1
    found = agreement(np.stack([a, b]), a, 2)
    assert (found.pixels, found.labelled, found.unanimous) == (18, 12, 0)
    assert found.pairs.tolist() == [[8, 0], [0, 6]]
    assert (found.either[0, 1], found.both[0, 1]) == (12, 2)


@settings(deadline=None)
@given(MAPS)
def test_kappa_is_cohens(label_maps):
    one, other = label_maps[0], label_maps[-1]
    counts = joint(one, other, 3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, oracles.joint(one, other, 3))
    assert kappa(counts) == pytest.approx(oracles.kappa(one, other), nan_ok=True)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[20, 5], [10, 15]], 0.4),  # the example that textbooks give
        ([[7, 0], [0, 3]], 1.0),
        ([[0, 5], [5, 0]], -1.0),
        ([[6, 3], [2, 1]], 0.0),  # of one, two thirds whatever the other says
        ([[0, 4], [0, 0]], np.nan),  # each calls all of it one class, and not the same
        ([[4, 0], [0, 0]], np.nan),  # ... and the same
        ([[4, 5], [0, 0]], np.nan),  # one of them does
        ([[4, 0], [5, 0]], np.nan),
        ([[0, 0], [0, 0]], np.nan),
    ],
)
def test_kappa_of_known_counts(counts, expected):
    assert kappa(np.array(counts)) == pytest.approx(expected, nan_ok=True)


def test_kappa_of_very_many_pixels_does_not_overflow():
    counts = np.array([[20, 5], [10, 15]]) * 10**12
    assert kappa(counts) == pytest.approx(0.4)


@given(MAPS)
def test_without_owners_every_label_but_255_is_a_claim(label_maps):
    found = claims(label_maps)
    for y in range(3):
        for x in range(4):
            assert found[y, x] == len(set(label_maps[:, y, x].tolist()) - {255})


@settings(deadline=None)
@given(MAPS, st.data())
def test_conflicts_and_holes_are_those_of_the_fusion(label_maps, data):
    owner = np.array(
        data.draw(st.lists(st.integers(-1, len(label_maps) - 1), min_size=3, max_size=3))
    )
    found = claims(label_maps, owner)
    _, counts = channel_wise(label_maps, owner, window=3, conflict="window", holes="window")
    assert np.count_nonzero(found > 1) == counts.conflicts
    assert np.count_nonzero(found == 0) == counts.holes


def test_what_does_not_fit_is_refused():
    maps, fused = np.zeros((2, 3, 4), np.uint8), np.zeros((3, 5), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        agreement(maps, fused, 3)
    with pytest.raises(ValueError, match=r"value 2; expected class ids 0\.\.1"):
        agreement(maps + np.uint8(2), maps[0], 2)
    with pytest.raises(ValueError, match="one size"):
        joint(maps[0], fused, 3)
    with pytest.raises(ValueError, match=r"joint must be \(C, C\)"):
        kappa(np.zeros((3, 4), int))
    with pytest.raises(ValueError, match="not empty"):
        claims(maps[:0])
    with pytest.raises(TypeError):
        claims(maps.astype(int))


# --- classes by each other's names -----------------------------------------------------------


def called(permutation, sizes=None, errors=0.2):
    """Counts of one who calls class c `permutation[c]`, and errs as often in all other ways."""
    n = len(permutation)
    sizes = np.full(n, 1000) if sizes is None else np.array(sizes)
    counts = np.full((n, n), errors / (n - 1)) + (1 - errors - errors / (n - 1)) * np.eye(n)
    true = (sizes[:, None] * counts).astype(np.int64)
    return true[:, permutation].T  # rows: what it says


@pytest.mark.parametrize(
    "permutation",
    [(0, 1, 2, 3, 4), (1, 0, 2, 3, 4), (1, 2, 0, 3, 4), (1, 0, 3, 2, 4), (4, 0, 1, 2, 3)],
)
def test_classes_that_are_turned(permutation):
    counts = called(np.array(permutation))
    expected = {c: d for c, d in enumerate(permutation) if c != d}
    assert turned(counts) == expected
    assert turned(counts.T) == {d: c for c, d in expected.items()}


def test_a_class_that_is_taken_for_another_is_not_turned():
    """Weak teachers call all poles buildings; nobody calls buildings poles."""
    counts = np.array([[900, 50, 0], [700, 100, 0], [0, 0, 500]])
    assert turned(counts) == {}
    assert turned(np.array([[400, 600], [500, 500]])) == {}  # half and half is no order


def test_two_that_are_exchanged_are_told_where_teachers_agree_on_little():
    """Two classes that others mostly call something else, but never the same."""
    counts = np.array([[5, 200, 600, 0], [150, 3, 0, 500], [10, 0, 9000, 9], [0, 9, 9, 9000]])
    assert turned(counts) == {0: 1, 1: 0}
    counts[0, 0] = 100  # ... or sometimes the same
    assert turned(counts) == {}


def test_a_few_pixels_tell_nothing():
    counts = called(np.array((1, 0, 2)), sizes=(1, 1, 10_000), errors=0.0)
    assert turned(counts) == {}
    assert turned(np.zeros((3, 3), np.int64)) == {}


@given(hnp.arrays(np.int64, (5, 5), elements=st.integers(0, 9)))
def test_what_is_turned_is_turned_among_itself(counts):
    found = turned(counts)
    assert found.keys() == {*found.values()}
    assert all(c != d and counts[c, d] > counts[c, c] for c, d in found.items())
    for c, d in found.items():
        assert found[d] == c or 2 * counts[c, d] > counts[c].sum()


def test_counts_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"\(C, C\)"):
        turned(np.zeros((2, 3), np.int64))
