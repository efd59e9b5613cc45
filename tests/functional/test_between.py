import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import between as slow

from ensdistill.stages.functional.between import Between, between

quick = settings(max_examples=150, deadline=None, derandomize=True)
NAN = np.nan


def test_by_hand():
    """Three classes that can be ranked, and one of which a single teacher is sure."""
    sure = np.array([[0.9, 0.9, 0.5, NAN], [0.8, 0.8, 0.5, 0.4], [0.7, 0.7, 0.1, NAN]])
    iou = np.array([[80.0, 10.0, 30.0, 50.0], [60.0, 20.0, 40.0, 20.0], [40.0, 30.0, 20.0, NAN]])
    # ranks 3 2 1 and 3 2 1; 3 2 1 and 1 2 3; 2.5 2.5 1 and 2 3 1: of the equal the first is surest
    expected = (1 - 1 + 1.5 / np.sqrt(1.5 * 2)) / 3
    found = between(sure, iou, [0, 2, 0, 1])
    assert found.rank == pytest.approx(expected, abs=1e-15)
    assert (found.ranked, found.best) == (3, 1)
    assert found.lost == (0 + 0 + 10 + 30) / 4
    assert found.judged == 4


def test_two_teachers_cannot_be_ranked_but_a_choice_judged():
    found = between(np.array([[0.9], [0.8]]), np.array([[10.0], [40.0]]), [0])
    assert np.isnan(found.rank)
    assert (found.ranked, found.best, found.lost, found.judged) == (0, 0, 30.0, 1)


def test_equals_cannot_be_ranked():
    sure, iou = np.array([[0.5], [0.6], [0.7]]), np.zeros((3, 1))
    assert between(sure, iou, [2]) == Between(pytest.approx(NAN, nan_ok=True), 0, 0, 0.0, 1)
    assert between(iou, sure, [2]).ranked == 0


def test_the_best_teacher_may_be_one_of_which_nothing_is_estimated():
    found = between(np.array([[0.9, 0.8, 0.7, NAN]]).T, np.array([[3.0, 2.0, 1.0, 9.0]]).T, [0])
    assert found == Between(pytest.approx(1), 1, 0, 6.0, 1)


def test_a_teacher_that_is_not_scored_is_neither_the_surest_nor_judged():
    sure = np.array([[0.9, 0.8, 0.7, 1.0]]).T
    found = between(sure, np.array([[3.0, 2.0, 1.0, NAN]]).T, [3])
    assert (found.ranked, found.best, found.judged) == (1, 1, 0)
    assert np.isnan(found.lost)


def test_without_ground_truth_nothing_is_told():
    found = between(np.ones((3, 2)), np.full((3, 2), NAN), [0, None])
    assert (found.ranked, found.best, found.judged) == (0, 0, 0)
    assert np.isnan(found.rank) and np.isnan(found.lost)
    assert between(np.empty((3, 0)), np.empty((3, 0)), []).judged == 0


@st.composite
def problems(draw):
    """Few distinct values, so that ties and what is missing are common."""
    shape = draw(st.integers(1, 5)), draw(st.integers(0, 5))
    values = st.sampled_from([NAN, 0.0, 0.25, 0.5, 0.75, 1.0])
    sure, iou = (draw(hnp.arrays(np.float64, shape, elements=values)) for _ in range(2))
    rows = st.none() | st.integers(0, shape[0] - 1)
    return sure, iou, draw(st.lists(rows, min_size=shape[1], max_size=shape[1]))


@quick
@given(problem=problems())
def test_agrees_with_the_slow_one(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of an empty mean, or nothing but NaN
        found = between(*problem)
    rank, ranked, best, lost, judged = slow(*(np.asarray(v).tolist() for v in problem))
    assert (found.ranked, found.best, found.judged) == (ranked, best, judged)
    np.testing.assert_allclose([found.rank, found.lost], [rank, lost], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sure", "iou", "chosen", "said"),
    [
        (np.ones(3), np.ones(3), [0], r"of one size \(T, C\) and C choices, got \(3,\)"),
        (np.ones((3, 2)), np.ones((2, 3)), [0, 0], r"got \(3, 2\), \(2, 3\) and 2"),
        (np.ones((3, 2)), np.ones((3, 2)), [0], r"and 1"),
        (np.ones((3, 2)), np.ones((3, 2)), [0, 3], r"rows in 0\.\.2 or None, got \[3\]"),
        (np.ones((3, 2)), np.ones((3, 2)), [-1, 0], r"got \[-1\]"),
    ],
)
def test_refusals(sure, iou, chosen, said):
    with pytest.raises(ValueError, match=said):
        between(sure, iou, chosen)
