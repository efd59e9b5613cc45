"""Figures as a person reads them."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ensdistill.pipeline.figures import duration, size, some, speed

SECONDS = {"s": 1, "min": 60, "h": 3600, "days": 86400}


def seconds_of(text):
    return sum(float(n) * SECONDS[unit] for n, unit in re.findall(r"([\d.]+) (\w+)", text))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (187, "3 min 07 s"),
        (3599.6, "1 h 00 min"),
        (7499, "2 h 05 min"),
        (47.9 * 3600, "47 h 54 min"),
        (76 * 3600, "3 days 4 h"),
    ],
)
def test_a_duration_has_the_units_that_matter(seconds, text):
    assert duration(seconds) == text


@settings(max_examples=500)
@given(st.floats(0, 1e7))
@example(172770.0)
def test_a_duration_says_what_was_measured(seconds):
    text = duration(seconds)
    step = 0.1 if seconds < 9.95 else 1.0
    assert abs(seconds_of(text) - seconds) <= max(0.51 * step, 0.011 * seconds)
    assert len(text) <= len("115 days 23 h")
    assert not re.search(r"min 60 s|^60 min|h 60 min|days 24 h", text)


@settings(max_examples=500)
@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_longer_is_never_said_to_be_shorter(one, other):
    low, high = sorted((one, other))
    assert seconds_of(duration(low)) <= seconds_of(duration(high))


@pytest.mark.parametrize(
    ("each", "units", "text"),
    [
        (4.2, "images", "4.2 s an image"),
        (1.0, "steps", "1.0 s a step"),
        (250, "training images", "4 min 10 s a training image"),
        (0.0813, "images", "12.3 images/s"),
        (0.0078, "files", "128 files/s"),
        (0.99, "scenes", "1.0 scenes/s"),
        (1 / 118e6, "bytes", "118 MB/s"),
        (2.0, "bytes", "0 B/s"),
    ],
)
def test_slow_units_are_said_in_seconds_each(each, units, text):
    assert speed(each, units) == text


@settings(max_examples=500)
@given(st.floats(1e-6, 1e5))
def test_a_speed_says_what_was_measured(each):
    text = speed(each, "images")
    found = float(text.split()[0]) if "/s" in text else 1 / seconds_of(text)
    assert (each >= 1) == text.endswith(" an image")
    assert found == pytest.approx(1 / each, rel=0.055, abs=0.5 if each < 0.01 else 0.05)


def test_a_size_has_one_unit():
    assert [size(n) for n in (0, 999, 1000, 12345, 4.7e6, 3e9, 5e12)] == [
        "0 B", "999 B", "1.0 kB", "12 kB", "4.7 MB", "3.0 GB", "5.0 TB",
    ]  # fmt: skip


def test_lists_tell_the_first_and_how_many_more():
    assert some([]) == ""
    assert some(["a", "b"], 2) == "a, b"
    assert some(["a", "b", "c"], 2) == "a, b and 1 more"
    assert some("abcdefgh") == "a, b, c, d, e and 3 more"
