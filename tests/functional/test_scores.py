import warnings

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import ConstantInputWarning, spearmanr

from ensdistill.stages.functional.scores import (
    class_counts,
    confusion,
    cosine_similarity,
    coverage,
    iou,
    mean_iou,
    pixel_accuracy,
    present,
    rank_correlation,
)

quick = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def map_pairs(draw):
    classes = draw(st.integers(1, 5))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    values = st.sampled_from([*range(classes), 255])
    target, prediction = (draw(hnp.arrays(np.uint8, shape, elements=values)) for _ in range(2))
    return target, prediction, classes


def one_confusion(target, prediction, n_classes):
    return confusion(target, prediction[None], n_classes)[0]


@quick
@given(pair=map_pairs())
def test_confusion_agrees_with_the_loops(pair):
    confmat = one_confusion(*pair)
    assert confmat.dtype == np.int64
    assert confmat.tolist() == oracles.confusion(*pair)


@pytest.mark.parametrize("shape", [(1, 7), (8, 8), (37, 53), (64, 130)])
def test_several_predictions_are_counted_in_areas_and_in_noise(shape):
    rng = np.random.default_rng(shape[1])
    areas = np.kron(rng.integers(0, 5, (4, 8, 8)), np.ones((1, 8, 17), np.int64))
    maps = areas[:, : shape[0], : shape[1]].astype(np.uint8)
    maps[rng.random(maps.shape) < 0.02] = 255
    target, predictions = maps[0], maps[1:]
    found = confusion(target, predictions, 5)
    assert found.shape == (3, 5, 6)
    assert found.tolist() == [oracles.confusion(target, p, 5) for p in predictions]
    for view in (predictions[:, ::-1, ::-1], predictions[::-1]):
        other = confusion(target, view, 5)
        assert other.tolist() == [oracles.confusion(target, p, 5) for p in view]
    assert class_counts(target, 5).tolist() == [(target == c).sum() for c in range(5)]
    assert class_counts(target[:, ::2], 5).tolist() == [
        (target[:, ::2] == c).sum() for c in range(5)
    ]


@pytest.mark.parametrize("ignored", ["wrong", "left_out"])
@quick
@given(pair=map_pairs())
def test_iou_agrees_with_sets_of_pixels(ignored, pair):
    expected = oracles.iou(*pair, ignored=ignored)
    np.testing.assert_allclose(iou(one_confusion(*pair), ignored=ignored), expected, rtol=1e-15)


@quick
@given(pair=map_pairs())
def test_what_is_present_is_what_the_target_holds_whatever_was_predicted(pair):
    target, prediction, n_classes = pair
    confmat = one_confusion(*pair)
    assert present(confmat).tolist() == oracles.present(target, n_classes)
    # every class of the target has an IoU, and one more only those of the prediction alone
    scored = np.isfinite(iou(confmat))
    seen = oracles.present(prediction[target != 255], n_classes)
    assert scored.tolist() == [a or b for a, b in zip(present(confmat), seen, strict=True)]
    expected = [v for v, p in zip(iou(confmat), present(confmat), strict=True) if p]
    mean = mean_iou(iou(confmat), np.flatnonzero(present(confmat)).tolist())
    assert mean == pytest.approx(np.mean(expected)) if expected else np.isnan(mean)


@quick
@given(pair=map_pairs())
def test_fractions_of_pixels(pair):
    target, prediction, _ = pair
    confmat = one_confusion(*pair)
    labelled = target != 255
    if labelled.any():
        assert coverage(confmat) == (prediction[labelled] != 255).mean()
        assert pixel_accuracy(confmat) == (prediction == target)[labelled].mean()
    else:
        assert np.isnan(coverage(confmat))
        assert np.isnan(pixel_accuracy(confmat))


def test_confusion_of_254_classes():
    values = np.array([[0, 253, 255, 253]], np.uint8)
    confmat = one_confusion(values, values[:, ::-1], 254)
    assert confmat.shape == (254, 255)
    assert confmat[0, 253] == 1
    assert confmat[253, 254] == 1
    assert confmat[253, 0] == 1
    assert confmat.sum() == 3


def test_the_two_treatments_of_255():
    confmat = np.array([[2, 1, 1], [0, 0, 4], [0, 0, 0]])
    confmat = np.insert(confmat, 2, 0, axis=1)  # a third class, absent from both
    np.testing.assert_array_equal(iou(confmat), [2 / 4, 0, np.nan])
    np.testing.assert_array_equal(iou(confmat, ignored="left_out"), [2 / 3, 0, np.nan])
    assert coverage(confmat) == 3 / 8
    assert pixel_accuracy(confmat) == 2 / 8


def test_a_class_that_is_never_covered_has_no_score_of_its_own():
    confmat = np.array([[0, 0, 3], [0, 1, 0]])
    np.testing.assert_array_equal(iou(confmat), [0, 1])
    np.testing.assert_array_equal(iou(confmat, ignored="left_out"), [np.nan, 1])


def test_mean_iou_of_subsets():
    values = np.array([0.5, np.nan, 0.25, 1.0])
    assert mean_iou(values) == pytest.approx(1.75 / 3)
    assert mean_iou(values, [0, 1, 2]) == 0.375
    assert np.isnan(mean_iou(values, [1]))
    assert np.isnan(mean_iou(np.full(3, np.nan)))
    assert np.isnan(mean_iou(values, []))


@pytest.mark.parametrize("classes", [[4], [-1], [0, 0]])
def test_mean_iou_refuses_other_ids(classes):
    with pytest.raises(ValueError, match=r"different ids in 0\.\.3"):
        mean_iou(np.zeros(4), classes)


def test_likeness_of_vectors_over_the_classes_that_both_have():
    a = np.array([0.2, 0.9, np.nan, 0.4, 0.4, 0.1])
    b = np.array([20.0, 80.0, 5.0, 41.0, 40.0, np.nan])
    x, y = a[[0, 1, 3, 4]], b[[0, 1, 3, 4]]
    assert cosine_similarity(a, b) == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)))
    # ranks 1, 4, 2.5, 2.5 and 1, 4, 3, 2
    assert rank_correlation(a, b) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation(a, -b) == -rank_correlation(a, b)
    assert cosine_similarity(a, 7 * a) == pytest.approx(1)
    assert rank_correlation(a, a**3) == pytest.approx(1)


@quick
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-9, 9)), min_size=3, max_size=24))
def test_rank_correlation_agrees_with_scipy(pairs):
    a, b = np.array(pairs, float).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        expected = spearmanr(a, b).statistic
    np.testing.assert_allclose(rank_correlation(a, b), expected, rtol=0, atol=1e-12)


def test_likeness_of_too_little_is_none():
    nan = np.nan
    assert np.isnan(cosine_similarity(np.array([0.5, nan, 1.0]), np.array([0.5, 1.0, nan])))
    assert np.isnan(cosine_similarity(np.zeros(3), np.ones(3)))
    assert np.isnan(rank_correlation(np.array([0.1, 0.2, nan]), np.array([0.1, 0.2, 0.3])))
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
    for likeness in (cosine_similarity, rank_correlation):
        with pytest.raises(ValueError, match="of one size"):
            likeness(np.zeros(3), np.zeros(4))


def test_refusals():
    labels = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match="predictions holds the value 2"):
        one_confusion(labels, labels + np.uint8(2), 2)
    with pytest.raises(ValueError, match="predictions holds the value 254"):
        one_confusion(labels + np.uint8(255), labels + np.uint8(254), 254)
    with pytest.raises(ValueError, match="target holds the value 254"):
        one_confusion(labels + np.uint8(254), labels, 254)
    with pytest.raises(ValueError, match="one size"):
        one_confusion(labels, labels.T, 2)
    with pytest.raises(ValueError, match=r"predictions must be \(N, H, W\)"):
        confusion(labels, labels, 2)
    with pytest.raises(TypeError, match="target must be uint8"):
        one_confusion(labels.astype(int), labels, 2)
    with pytest.raises(TypeError, match="predictions must be uint8"):
        one_confusion(labels, labels.astype(int), 2)
    with pytest.raises(ValueError, match="labels holds the value 3"):
        class_counts(labels + np.uint8(3), 3)
    with pytest.raises(ValueError, match=r"labels must be \(H, W\)"):
        class_counts(labels[0], 3)
    with pytest.raises(ValueError, match=r"\(C, C \+ 1\)"):
        iou(np.zeros((3, 3), np.int64))
    with pytest.raises(TypeError, match="integers"):
        coverage(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"\(C, C \+ 1\)"):
        present(np.zeros((3, 3), np.int64))
    with pytest.raises(ValueError, match="'wrong' or 'left_out'"):
        iou(np.zeros((3, 4), np.int64), ignored="right")
    with pytest.raises(ValueError, match="got shape"):
        mean_iou(np.zeros((2, 2)))
