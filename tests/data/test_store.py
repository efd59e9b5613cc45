"""The label-map store: what is written is read, and nothing else ever is."""

import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensdistill.data import store as store_module
from ensdistill.data.store import UNWRITTEN, LabelStore, checksum, chunk_name
from ensdistill.pipeline.errors import CorruptError, DataError

COUNT, HEIGHT, WIDTH = 3, 12, 17
counter = itertools.count()


def random_map(height=HEIGHT, width=WIDTH, seed=0):
    values = np.array([*range(19), 255], np.uint8)
    return np.random.default_rng(seed).choice(values, (height, width))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "artifact" / "maps.zarr"


@pytest.fixture
def store(path):
    return LabelStore.create(path, COUNT, HEIGHT, WIDTH)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_maps_of_any_sizes_come_back(tmp_path, sizes, random):
    height, width = (max(side) for side in zip(*sizes, strict=True))
    path = tmp_path / str(next(counter))
    store = LabelStore.create(path, len(sizes), height, width)
    maps = [random_map(h, w, seed) for seed, (h, w) in enumerate(sizes)]
    order = list(range(len(sizes)))
    random.shuffle(order)
    for k in order:
        store.write(k, maps[k])
    for reader in (store, LabelStore(path)):
        assert reader.shape == (len(sizes), height, width)
        for k, label_map in enumerate(maps):
            found = reader.read(k, *label_map.shape)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, label_map)
            padded = reader.read(k, height, width)
            assert (padded[label_map.shape[0] :] == 255).all()
            assert (padded[:, label_map.shape[1] :] == 255).all()


def test_only_what_was_written_is_present(store, path):
    assert store.present() == LabelStore(path).present() == set()
    store.write(2, random_map())
    store.write(0, random_map(1, 1))
    assert store.present() == LabelStore(path).present() == {0, 2}


@pytest.mark.parametrize("value", [0, 200, 255])
def test_a_map_of_one_value_counts_as_written(store, path, value):
    label_map = np.full((HEIGHT, WIDTH), value, np.uint8)
    store.write(1, label_map)
    for opened in (store, LabelStore(path, writable=True), LabelStore(path)):
        assert opened.present() == {1}
        np.testing.assert_array_equal(opened.read(1, HEIGHT, WIDTH), label_map)


def test_an_unwritten_image_is_never_read(store, path):
    for opened in (store, LabelStore(path)):
        with pytest.raises(DataError, match="image 1 was not written"):
            opened.read(1, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("label_map", "said"),
    [
        (np.full((2, 2), UNWRITTEN, np.uint8), "label 254 is reserved"),
        (np.array([[200, 255, UNWRITTEN]], np.uint8), "label 254 is reserved"),
        (np.eye(HEIGHT, WIDTH, dtype=np.uint8) * UNWRITTEN, "label 254 is reserved"),
        (np.zeros((HEIGHT + 1, 1), np.uint8), "label map of 13x1 in a store of 12x17"),
        (np.zeros((1, WIDTH + 1), np.uint8), "label map of 1x18 in a store of 12x17"),
        (np.zeros((1, HEIGHT, WIDTH), np.uint8), "too many values"),
        (np.full((HEIGHT, WIDTH), 510), "label map of int64, expected uint8"),
        (np.full((2, 2), 0.5), "label map of float64, expected uint8"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_no_trace(store, label_map, said):
    with pytest.raises(ValueError, match=said):
        store.write(0, label_map)
    assert store.present() == set()


def test_a_published_store_is_not_writable(store, path):
    with pytest.raises(ValueError, match="read-only"):
        LabelStore(path).write(0, random_map())
    assert store.present() == set()


def test_a_map_may_be_written_again(store):
    store.write(0, random_map(seed=1))
    store.write(0, random_map(seed=2))
    np.testing.assert_array_equal(store.read(0, HEIGHT, WIDTH), random_map(seed=2))


def test_a_view_is_written_as_it_looks(store):
    large = random_map(2 * HEIGHT, 2 * WIDTH)
    store.write(0, large[::2, ::-2])
    np.testing.assert_array_equal(store.read(0, HEIGHT, WIDTH), large[::2, ::-2])


def test_creating_again_keeps_what_is_there(store, path):
    store.write(1, random_map())
    again = LabelStore.create(path, COUNT, HEIGHT, WIDTH)
    assert again.present() == {1}
    again.write(0, random_map(3, 3))
    np.testing.assert_array_equal(again.read(1, HEIGHT, WIDTH), random_map())


@pytest.mark.parametrize(
    "shape", [(4, HEIGHT, WIDTH), (COUNT, WIDTH, HEIGHT), (COUNT, HEIGHT, WIDTH + 1)]
)
def test_a_store_of_another_shape_is_refused(store, path, shape):
    store.write(0, random_map())
    with pytest.raises(CorruptError, match=r"maps\.zarr: holds \(3, 12, 17\), expected .*delete"):
        LabelStore.create(path, *shape)
    assert store.present() == {0}


def test_left_overs_of_a_kill_are_never_counted_and_left_to_who_may_be_writing(store, path):
    store.write(0, random_map())
    left_over = ("c.1.0.0.0123abcd.partial", "c.2.0.0123abcd.partial", "zarr.0123abcd.partial")
    for name in left_over:
        (path / name).write_bytes(b"torn")
    assert store.present() == LabelStore(path).present() == {0}
    with pytest.raises(DataError, match="image 1 was not written"):
        store.read(1, HEIGHT, WIDTH)
    assert LabelStore.create(path, COUNT, HEIGHT, WIDTH).present() == {0}
    assert sorted(p.name for p in path.iterdir()) == sorted(["c.0.0.0", "zarr.json", *left_over])


def test_a_kill_before_the_array_exists_is_made_good(path):
    path.mkdir(parents=True)
    (path / "zarr.0123abcd.partial").write_bytes(b"{")
    assert LabelStore.create(path, COUNT, HEIGHT, WIDTH).shape == (COUNT, HEIGHT, WIDTH)
    assert (path / "zarr.json").is_file()


@pytest.mark.parametrize("spoil", [None, b"", b"{", b"[]", b'{"zarr_format": 2}', "flip", "cut"])
def test_a_spoilt_description_is_written_anew_and_keeps_the_images(store, path, spoil):
    store.write(1, random_map())
    file = path / "zarr.json"
    whole = file.read_bytes()
    if spoil is None:
        file.unlink()
    else:
        spoilt = {"flip": whole.replace(b'"."', b'"/"'), "cut": whole[:-9]}
        file.write_bytes(spoilt.get(spoil, spoil))
    again = LabelStore.create(path, COUNT, HEIGHT, WIDTH)
    assert file.read_bytes() == whole
    assert again.present() == {1}
    np.testing.assert_array_equal(again.read(1, HEIGHT, WIDTH), random_map())
    assert sorted(p.name for p in path.iterdir()) == ["c.1.0.0", "zarr.json"]


def test_every_writer_describes_the_store_in_the_same_bytes(path, tmp_path):
    stores = [LabelStore.create(p, COUNT, HEIGHT, WIDTH) for p in (path, tmp_path / "x", path)]
    assert len({(store.path / "zarr.json").read_bytes() for store in stores}) == 1
    other = LabelStore.create(tmp_path / "y", COUNT, HEIGHT, WIDTH + 1)
    assert (other.path / "zarr.json").read_bytes() != (path / "zarr.json").read_bytes()


def test_writers_that_begin_at_once_share_one_store(path):
    start, stores = threading.Barrier(4), []

    def work(k):
        start.wait()
        store = LabelStore.create(path, 4, HEIGHT, WIDTH)
        store.write(k, random_map(seed=k))
        stores.append(store)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    for k, store in enumerate(stores):
        assert store.present() == set(range(4))
        np.testing.assert_array_equal(store.read(k, HEIGHT, WIDTH), random_map(seed=k))
    assert len(list(path.iterdir())) == 5


@pytest.mark.parametrize("index", [-1, COUNT, COUNT + 7])
def test_a_position_outside_the_store_is_refused(store, index):
    with pytest.raises(ValueError, match=f"image {index} in a store of {COUNT}"):
        store.write(index, random_map())
    assert store.present() == set()


def test_a_chunk_lies_under_the_name_of_its_position(store, path):
    for k in range(COUNT):
        store.write(k, random_map())
        assert (path / chunk_name(k)).is_file()


def test_every_flipped_byte_and_every_cut_is_noticed(store, path):
    store.write(0, random_map())
    file = path / "c.0.0.0"
    whole = file.read_bytes()
    spoilt = [whole[:length] for length in range(len(whole))]
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        spoilt.append(bytes(flipped))
    reader = LabelStore(path)
    for content in [*spoilt, whole + b"\0"]:
        file.write_bytes(content)
        with pytest.raises(CorruptError, match=r"c\.0\.0\.0: does not decode .*verify --repair"):
            reader.read(0, HEIGHT, WIDTH)
    file.write_bytes(whole)
    np.testing.assert_array_equal(reader.read(0, HEIGHT, WIDTH), random_map())


def test_a_chunk_of_another_image_size_is_noticed(store, path, tmp_path):
    other = LabelStore.create(tmp_path / "other.zarr", 1, HEIGHT, WIDTH - 1)
    other.write(0, random_map(HEIGHT, WIDTH - 1))
    (path / "c.0.0.0").write_bytes((other.path / "c.0.0.0").read_bytes())
    with pytest.raises(CorruptError, match=r"c\.0\.0\.0: does not decode"):
        store.read(0, HEIGHT, WIDTH)


def test_spoilt_metadata_never_gives_other_labels(store, path):
    store.write(0, random_map())
    file = path / "zarr.json"
    whole = file.read_bytes()
    spoilt = [whole[:length] for length in range(0, len(whole), 7)]
    for position in range(0, len(whole), 2):
        flipped = bytearray(whole)
        flipped[position] ^= 4 if position % 4 else 1
        spoilt.append(bytes(flipped))
    spoilt.append(whole.replace(b'"."', b'"/"'))
    spoilt.append(whole.replace(b"    12,", b"    11,"))
    for content in spoilt:
        file.write_bytes(content)
        try:
            found = LabelStore(path).read(0, HEIGHT, WIDTH)
        except CorruptError as error:
            assert str(path) in str(error)
        else:
            np.testing.assert_array_equal(found, random_map())


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"zarr_format": 2}'])
def test_what_is_no_store_is_refused_by_name(path, content):
    if content is not None:
        path.mkdir(parents=True)
        (path / "zarr.json").write_bytes(content)
    for writable in (False, True):
        with pytest.raises(CorruptError, match=r"maps\.zarr: is no readable label store"):
            LabelStore(path, writable=writable)


def test_threads_write_different_images(path):
    store = LabelStore.create(path, 24, HEIGHT, WIDTH)
    start = threading.Barrier(4)

    def work(first):
        start.wait()
        for k in range(first, 24, 4):
            store.write(k, random_map(HEIGHT - k % 3, WIDTH, seed=k))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.present() == set(range(24))
    for k in range(24):
        expected = random_map(HEIGHT - k % 3, WIDTH, seed=k)
        np.testing.assert_array_equal(store.read(k, *expected.shape), expected)


def test_the_format_stays_as_it_is(store, path):
    found = json.loads((path / "zarr.json").read_text())
    assert (found["zarr_format"], found["node_type"]) == (3, "array")
    assert (found["shape"], found["data_type"]) == ([COUNT, HEIGHT, WIDTH], "uint8")
    assert found["fill_value"] == 254
    assert found["chunk_grid"]["configuration"] == {"chunk_shape": [1, HEIGHT, WIDTH]}
    assert found["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
    assert [codec["name"] for codec in found["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert found["codecs"][1]["configuration"]["level"] == 1
    store.write(2, random_map())
    assert (path / "c.2.0.0").is_file()


def test_zarr_reads_what_is_written_here(store, path):
    maps = [random_map(seed=0), random_map(5, 4, seed=1)]
    for k, label_map in enumerate(maps):
        store.write(k, label_map)
    found = zarr.open_array(path, mode="r")[:]
    np.testing.assert_array_equal(found[0], maps[0])
    np.testing.assert_array_equal(found[1, :5, :4], maps[1])
    assert (found[1, 5:] == 255).all()
    assert (found[2] == UNWRITTEN).all()


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (300, 401), (1, 1)])
def test_a_chunk_is_what_zarr_writes_byte_for_byte(tmp_path, shape):
    store = LabelStore.create(tmp_path / "ours.zarr", 2, *shape)
    LabelStore.create(tmp_path / "theirs.zarr", 2, *shape)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(tmp_path / "theirs.zarr", mode="r+")
    for k, label_map in enumerate((random_map(*shape), np.full(shape, 255, np.uint8))):
        store.write(k, label_map)
        array[k] = label_map
        ours, theirs = ((p / chunk_name(k)).read_bytes() for p in (store.path, array.store.root))
        assert ours == theirs
        np.testing.assert_array_equal(LabelStore(array.store.root).read(k, *shape), label_map)


def test_a_chunk_that_holds_what_is_no_label_is_refused(store, path):
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(path, mode="r+")[1] = np.full((HEIGHT, WIDTH), UNWRITTEN, np.uint8)
        chunk = random_map()
        chunk[3, 4] = UNWRITTEN
        zarr.open_array(path, mode="r+")[0] = chunk
    for k in (0, 1):
        with pytest.raises(CorruptError, match=rf"c\.{k}\.0\.0"):
            store.read(k, HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["write_bytes", "replace"])
def test_a_write_that_fails_names_its_file_and_leaves_nothing(store, path, monkeypatch, name):
    real = getattr(Path, name)

    def full(self, *arguments):
        if name == "write_bytes":
            real(self, b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, name, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*maps\.zarr/c\.1\.0\.0'"):
        store.write(1, random_map())
    monkeypatch.undo()
    assert [p.name for p in path.iterdir()] == ["zarr.json"]


def test_a_file_that_cannot_be_read_is_not_called_damaged(store, path, monkeypatch):
    store.write(1, random_map())

    def refused(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store_module, "read_regular", refused)
    with pytest.raises(DataError, match=r"c\.1\.0\.0: cannot be read \(Permission denied\)"):
        store.read(1, HEIGHT, WIDTH)


def test_a_map_is_read_into_an_array_of_any_layout(store, path):
    store.write(0, random_map())
    content = (path / chunk_name(0)).read_bytes()
    whole = np.zeros((HEIGHT, WIDTH), np.uint8)
    for height, width in ((HEIGHT, WIDTH), (HEIGHT, 3), (2, WIDTH)):
        large = np.zeros((2 * height, 3 * width), np.uint8)
        for out in (whole[:height, :width], large[::2, ::-3]):
            assert store.decode(content, path, height, width, out) is out
            np.testing.assert_array_equal(out, random_map()[:height, :width])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("chunk_grid", "configuration", "chunk_shape"), [1, HEIGHT, WIDTH + 1]),
        (("chunk_key_encoding", "configuration", "separator"), "/"),
        (("data_type",), "int8"),
        (("codecs",), [{"name": "bytes"}]),
        (("shape",), [HEIGHT, WIDTH]),
        (("shape",), [True, HEIGHT, WIDTH]),
        (("shape",), [0, HEIGHT, WIDTH]),
        (("shape",), ["3", HEIGHT, WIDTH]),
        (("shape",), 3),
        (("chunk_grid",), []),
        (("codecs",), {"bytes": "zstd"}),
        (("node_type",), "group"),
    ],
)
def test_an_array_laid_out_otherwise_is_refused(store, path, keys, value):
    description = json.loads((path / "zarr.json").read_text())
    inner = description
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (path / "zarr.json").write_text(json.dumps(description))
    with pytest.raises(CorruptError, match=r"maps\.zarr: is no readable label store"):
        LabelStore(path)


def test_a_store_goes_to_another_process_without_zarr(store):
    assert pickle.loads(pickle.dumps(store)).shape == store.shape
    program = (
        "import sys; from pathlib import Path; from ensdistill.data.store import LabelStore\n"
        f"LabelStore(Path({str(store.path)!r})).present(); sys.exit('zarr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_equal_maps_are_equal_bytes_in_every_store(store, path, tmp_path):
    other = LabelStore.create(tmp_path / "other.zarr", 1, HEIGHT, WIDTH)
    store.write(2, random_map())
    other.write(0, random_map())
    assert (path / "c.2.0.0").read_bytes() == (other.path / "c.0.0.0").read_bytes()
    assert (path / "c.2.0.0").stat().st_size < HEIGHT * WIDTH + 64


def test_a_checksum_is_of_the_pixels_alone():
    label_map = random_map()
    large = np.full((HEIGHT + 1, WIDTH + 1), 255, np.uint8)
    large[:HEIGHT, :WIDTH] = label_map
    assert checksum(large[:HEIGHT, :WIDTH]) == checksum(label_map)
    assert checksum(label_map.T) != checksum(label_map)
    assert checksum(np.zeros((2, 2), np.uint8)) == (
        "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"
    )


@pytest.mark.parametrize("goal", ["pipe", "/dev/zero"])
def test_what_is_no_file_is_damage_and_never_waited_for(store, path, goal):
    def spoil(file):
        file.unlink(missing_ok=True)
        if goal == "pipe":
            os.mkfifo(file)
        else:
            file.symlink_to(goal)

    store.write(0, random_map())
    spoil(path / "c.0.0.0")
    with pytest.raises(CorruptError, match="not a regular file"):
        store.read(0, HEIGHT, WIDTH)
    spoil(path / "zarr.json")
    with pytest.raises(CorruptError, match="not a regular file"):
        LabelStore(path)
    assert LabelStore.create(path, *store.shape).shape == store.shape
