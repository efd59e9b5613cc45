import math

import numpy as np
import pytest

from ensdistill.stages.functional.numbers import or_none, share, shares


@pytest.mark.parametrize("value", [0, 0.25, np.int64(3), np.float64(0.25)])
def test_number_is_a_float_of_its_value(value):
    assert type(or_none(value)) is float
    assert or_none(value) == value


@pytest.mark.parametrize("value", [math.nan, 100 * math.nan, np.float64("nan")])
def test_nan_is_none(value):
    assert or_none(value) is None


def test_share_is_rounded_as_numpy_rounds():
    part, whole = np.int64(2**53 - 2), np.int64(2**53 - 1)
    assert share(part, whole) == part / whole
    assert share(1, 3) == 1 / 3
    assert share(0, 3) == 0


@pytest.mark.parametrize("nothing", [0, np.int64(0)])
def test_nothing_has_no_shares(nothing):
    assert math.isnan(share(nothing, nothing))


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_shares_are_those_of_each(kind):
    parts, wholes = np.array([[1, 0, 2]], kind), np.array([[3, 0, 2]], np.int64)
    found = shares(parts, wholes)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[1 / 3, np.nan, 1.0]])
    one_by_one = [share(*pair) for pair in zip(parts[0], wholes[0], strict=True)]
    np.testing.assert_array_equal(found[0], one_by_one)


def test_none_in_an_array_is_nan():
    np.testing.assert_array_equal(np.array([None, 0.5], float), [np.nan, 0.5])
