"""The speed of a bar."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ensdistill.cli.rate import Rate

STEADY = {
    "begin": st.floats(0, 1e6),
    "first": st.floats(0, 1e4),  # seconds, of which none is the network's own
    "each": st.floats(0.2, 300),
    "batch": st.integers(1, 8),
    "batches": st.integers(2, 40),
}


def steady(begin, first, each, batch, batches):
    """Return a rate after some batches of equal time, the first of which took `first` more."""
    rate, now = Rate(begin), begin + first
    for _ in range(batches):
        now += each * batch
        for k in range(batch):
            rate.add(1, now + 0.01 * k)
    return rate, now


def test_the_time_of_the_first_unit_is_not_the_estimate():
    rate = Rate(0.0)
    rate.add(1, 60.0)  # loading, compiling
    assert rate.seconds_each is None
    assert rate.left(99, 61.0) is None
    rate.add(1, 62.0)
    assert rate.seconds_each == pytest.approx(2.0)
    assert rate.left(98, 62.0) == pytest.approx(196.0)


@given(**STEADY)
def test_a_steady_speed_is_found_whatever_the_first_took(begin, first, each, batch, batches):
    rate, _ = steady(begin, first, each, batch, batches)
    assume(each * batch * (batches - 1) > 1.1)
    assert rate.seconds_each == pytest.approx(each, rel=1e-6)
    assert rate.left(7, rate.last) == pytest.approx(7 * each, rel=1e-6)


@given(**STEADY)
def test_nothing_is_told_after_the_first_batch(begin, first, each, batch, batches):
    rate, _ = steady(begin, first, each, batch, 1)
    assert rate.seconds_each is None
    assert rate.left(batches, rate.last + 1e6) is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 9)), max_size=30), st.floats(-1e5, 1e5))
def test_only_differences_of_times_count(steps, offset):
    def after(begin):
        rate, now = Rate(begin), begin
        for spent, count in steps:
            now += spent
            rate.add(count, now)
        return rate.seconds_each, rate.left(5, now + 3)

    one, other = after(0.0), after(offset)
    if one[0] is None or other[0] is None or one[0] < 0.2:  # rounded across a limit
        return
    assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9)), max_size=30), st.floats(0, 1e4))
def test_what_is_told_can_be_meant(steps, wait):
    rate, now = Rate(0.0), 0.0
    for spent, count in steps:
        now += spent
        rate.add(count, now)
        each = rate.seconds_each
        assert each is None or each >= 1 / (9 * len(steps))
        for units in (0, 1, 1000):
            left = rate.left(units, now + wait)
            assert left is None or 0 <= left <= units * each


def test_the_remaining_time_runs_on_between_slow_units_and_never_out():
    rate = Rate(0.0)
    for now in (100.0, 340.0, 580.0):
        rate.add(1, now)
    assert [rate.left(10, 580.0 + wait) for wait in (0, 60, 240, 5000)] == [2400, 2340, 2160, 2160]


def test_a_second_of_many_small_units_is_not_told_from_two_of_them():
    rate = Rate(0.0)
    rate.add(1, 5.0)
    rate.add(1, 5.11)
    assert rate.seconds_each is None
    for k in range(100):
        rate.add(1, 5.2 + k / 100)
    assert rate.seconds_each == pytest.approx(0.0118, rel=0.02)
