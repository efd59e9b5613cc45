"""The compiled loops over pixels, against NumPy; `test_png.py` has that which tells rows."""

import numpy as np
import pytest

from ensdistill.data.loops import as_words, count_values, look_up

random = np.random.default_rng(0)
AREAS = random.integers(0, 256, (9, 40), np.uint8).repeat(11, 1)
PIXELS = {
    "none": AREAS[:0],
    "less than a word": AREAS[:1, :7],
    "of 0 alone": np.zeros((5, 24), np.uint8),
    "of 255 alone": np.full((5, 24), 255, np.uint8),
    "areas": AREAS,
    "areas and a rest": AREAS[:, :437],
    "noise": random.integers(0, 256, (31, 33), np.uint8),
    "every other column": AREAS[:, ::2],
}


@pytest.mark.parametrize("kind", PIXELS)
def test_values_are_counted_and_looked_up(kind):
    pixels = PIXELS[kind]
    before = random.integers(0, 9, 256)
    counts = before.copy()
    count_values(*as_words(pixels), counts)
    np.testing.assert_array_equal(counts - before, np.bincount(pixels.ravel(), minlength=256))
    table = random.integers(0, 256, 256, np.uint8)
    found, counts = np.zeros(pixels.size, np.uint8), before.copy()
    look_up(*as_words(pixels), table, found, counts)
    np.testing.assert_array_equal(found.reshape(pixels.shape), table[pixels])
    np.testing.assert_array_equal(counts - before, np.bincount(found, minlength=256))
