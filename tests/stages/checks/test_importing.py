"""Arrays of confidences as PNGs: against an oracle, and every file that is not one."""

import io
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ensdistill.pipeline.errors import DataError
from ensdistill.stages.checks.importing import confidence_grey

SIZE, CLASSES = (4, 6), 3
LABELS = np.zeros(SIZE, np.uint8)


def convert(path, labels=LABELS):
    return confidence_grey(path, labels, SIZE, CLASSES)


def saved(tmp_path, array, name="x.npy", **more):
    path = tmp_path / name
    np.save(path, array, **more) if name.endswith("npy") else np.savez(path, array, **more)
    return path


@settings(max_examples=40, deadline=None)
@given(
    tensor=arrays.arrays(np.uint8, (*SIZE, CLASSES), elements=st.integers(2, 100)),
    labels=arrays.arrays(np.uint8, SIZE, elements=st.sampled_from([0, 1, 2, 255])),
)
def test_of_all_classes_that_of_the_label_is_taken(tmp_path_factory, tensor, labels):
    path = saved(tmp_path_factory.mktemp("t"), tensor)
    grey, other = convert(path, labels)
    count = 0
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            most = max(tensor[y, x].tolist())
            own = most if labels[y, x] == 255 else int(tensor[y, x, labels[y, x]])
            count += own < most
            assert abs(grey[y, x] - own * 255 / 100) <= 0.5 + 1e-9
    assert other == count


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_number_in_every_order(tmp_path, dtype, order):
    percents = np.linspace(0, 100, 24).reshape(SIZE).astype(dtype)
    grey, _ = convert(saved(tmp_path, np.asarray(percents, order=order)))
    assert np.abs(grey / 255 - percents.astype(float) / 100).max() <= 0.5 / 255 + 1e-12
    assert grey.dtype == np.uint8


def test_all_hundred_steps_stay_apart(tmp_path):
    steps = np.arange(101, dtype=np.uint8)
    path = saved(tmp_path, np.tile(steps[:, None], (1, 1)))
    grey, _ = confidence_grey(path, np.zeros((101, 1), np.uint8), (101, 1), CLASSES)
    assert len(np.unique(grey)) == 101
    assert np.array_equal(np.round(grey[:, 0] / 255 * 100), steps)


def test_a_whole_fraction_of_the_size(tmp_path):
    grey, _ = convert(saved(tmp_path, np.full((2, 3), 50, np.uint8)))
    assert grey.shape == (2, 3)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def pickled(tmp_path, name):
    return saved(tmp_path, np.array([Evil()], object), name, allow_pickle=True)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_pickles_are_refused_unread(tmp_path, name):
    path = pickled(tmp_path, name)
    with pytest.raises(DataError, match="holds pickled Python objects") as error:
        convert(path)
    assert str(path) in str(error.value)


def test_an_archive_of_several_arrays(tmp_path):
    good, bad = np.full(SIZE, 70, np.uint8), np.zeros((2, 2))
    path = tmp_path / "x.npz"
    np.savez(path, good, other=bad)  # good is `arr_0`
    assert (convert(path)[0] == round(70 * 2.55)).all()
    np.savez(path, confidence=good)
    assert (convert(path)[0] == round(70 * 2.55)).all()
    np.savez(path, confidence=good, other=bad)
    with pytest.raises(DataError, match="holds the arrays confidence, other; expected one"):
        convert(path)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (101, "holds 101"),
        (-1, "holds -1"),
        (np.nan, "holds nan"),
        (np.inf, "holds inf"),
        (0.7, "as if 1 stood for certain"),
        (1, "as if 1 stood for certain"),
    ],
)
def test_values_that_are_no_percents(tmp_path, values, expected):
    array = np.full(SIZE, values)
    if not np.isfinite(values):
        array[1:] = 50
    path = saved(tmp_path, array)
    with pytest.raises(DataError, match=expected) as error:
        convert(path)
    assert str(path) in str(error.value)


def test_no_confidence_at_all_is_legal(tmp_path):
    assert not convert(saved(tmp_path, np.zeros(SIZE)))[0].any()


@pytest.mark.parametrize(
    "shape", [(6, 4), (4,), (), (1, 4, 6), (*SIZE, 4), (2, 3, CLASSES), (8, 12), (4, 3), (0, 0)]
)
def test_other_shapes_are_refused(tmp_path, shape):
    with pytest.raises(DataError, match="expected"):
        convert(saved(tmp_path, np.full(shape, 50, np.uint8)))


@pytest.mark.parametrize("dtype", [bool, "U3", complex, "M8[s]"])
def test_other_types_are_refused(tmp_path, dtype):
    with pytest.raises(DataError, match="expected numbers"):
        convert(saved(tmp_path, np.zeros(SIZE, dtype)))


def test_a_giant_is_refused_by_its_header(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    path = tmp_path / "x.npy"
    path.write_bytes(header.getvalue())
    with pytest.raises(DataError, match="expected"):
        convert(path)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue())
    with pytest.raises(DataError, match="expected"):
        convert(tmp_path / "x.npz")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_every_cut_is_noticed(tmp_path, name):
    path = saved(tmp_path, np.full(SIZE, 50, np.uint8), name)
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=path.name):
            convert(path)


def test_flipped_bytes_of_an_archive_are_noticed_or_harmless(tmp_path):
    path = saved(tmp_path, np.full(SIZE, 50, np.uint8), "x.npz")
    whole, expected = path.read_bytes(), convert(path)[0]
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        with suppress(DataError):
            assert np.array_equal(convert(path)[0], expected)
