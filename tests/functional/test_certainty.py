import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ensdistill.stages.functional.certainty import certainty_sums, mean_certainty


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), shape=hnp.array_shapes(min_dims=2, max_dims=2, max_side=8))
def test_agrees_with_the_loops(data, shape):
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 3, 255])))
    certainty = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    sums = certainty_sums(labels, certainty, 4)
    expected, support = oracles.certainty_sums(labels, certainty, 4)
    assert sums.sums.dtype == np.float64
    assert sums.support.dtype == np.int64
    assert sums.sums.tolist() == expected
    assert sums.support.tolist() == support
    mean = mean_certainty(sums)
    assert np.isnan(mean[2])
    for c in range(4):
        if support[c]:
            assert mean[c] == expected[c] / support[c]


def test_sums_do_not_stop_where_float32_does():
    labels = np.zeros((1, 1000), np.uint8)
    certainty = np.full((1, 1000), 0.9, np.float32)
    image = certainty_sums(labels, certainty, 1)
    large = certainty_sums(labels, certainty, 1)
    for _ in range(15):  # 1000 pixels, 2**15 times
        large = large + large
    assert float(large.sums[0]) > 2**24
    more = large + image
    assert more.sums[0] - large.sums[0] == pytest.approx(900, rel=1e-6)
    assert mean_certainty(more)[0] == pytest.approx(float(np.float32(0.9)), rel=1e-12)


def test_images_add_up():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 8, 9)).astype(np.uint8)
    certainty = rng.random((2, 8, 9), np.float32)
    one, two = (certainty_sums(*image, 3) for image in zip(labels, certainty, strict=True))
    both = one + two
    np.testing.assert_array_equal(both.sums, one.sums + two.sums)
    np.testing.assert_array_equal(both.support, np.bincount(labels.ravel()))
    with pytest.raises(ValueError, match="3 and 4 classes"):
        one + certainty_sums(labels[0], certainty[0], 4)


def test_the_certainty_of_ignored_pixels_is_not_read():
    labels = np.array([[0, 255]], np.uint8)
    sums = certainty_sums(labels, np.array([[0.5, np.nan]], np.float32), 1)
    assert (sums.sums.tolist(), sums.support.tolist()) == ([0.5], [1])


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1, np.inf])
def test_refuses_what_is_no_fraction(value):
    with pytest.raises(ValueError, match="fraction"):
        certainty_sums(np.zeros((1, 1), np.uint8), np.full((1, 1), value, np.float32), 1)


def test_refusals():
    labels, certainty = np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="one shape"):
        certainty_sums(labels, certainty.T, 1)
    with pytest.raises(TypeError, match="floating"):
        certainty_sums(labels, labels, 1)
    with pytest.raises(ValueError, match="holds the value 1"):
        certainty_sums(labels + np.uint8(1), certainty, 1)
