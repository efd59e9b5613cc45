"""The cache of decoded photographs: what it gives, what it refuses, and kills."""

import errno
import io
import os
import pickle
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ensdistill.data import decoded
from ensdistill.data.decoded import PixelCache, Pixels, cached_bytes
from ensdistill.data.decoding import read_image
from ensdistill.pipeline.errors import DataError


def photograph(path, shape=(13, 17, 3), seed=0, mode="RGB"):
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).convert(mode).save(path)
    return path, sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path):
    cache = PixelCache(tmp_path / "deep" / ".pixels")
    assert cache.open() == set()
    return cache


@pytest.fixture
def kept(tmp_path, cache):
    """One photograph and its digest, in the cache."""
    path, digest = photograph(tmp_path / "a.png")
    cache.write(digest, path)
    assert cache.open() == {digest}
    return path, digest


@pytest.fixture
def decoding(monkeypatch):
    """The paths of what is decoded, in order."""
    found = []
    monkeypatch.setattr(decoded, "read_image", lambda *a: found.append(a[0]) or read_image(*a))
    return found


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
@pytest.mark.parametrize("shape", [(13, 17, 3), (1, 1, 3), (64, 3, 3)])
def test_what_is_kept_is_what_decoding_gives(tmp_path, cache, mode, shape):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    path, digest = photograph(tmp_path / name, shape, mode=mode)
    cache.write(digest, path)
    assert cache.fault(digest) is None
    found = cache.map(digest)
    np.testing.assert_array_equal(found, read_image(path))
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert cache.file(digest).stat().st_size == cached_bytes(path)
    np.testing.assert_array_equal(np.asarray(Image.fromarray(found)), read_image(path))


def test_what_becomes_of_a_map_reaches_neither_file_nor_other_maps(cache, kept):
    other = cache.map(kept[1])
    cache.map(kept[1])[:] ^= 255
    assert cache.fault(kept[1]) is None
    for found in (other, cache.map(kept[1])):
        np.testing.assert_array_equal(found, cache.read(kept[1]))


def test_every_flipped_byte_is_noticed(cache, kept):
    file = cache.file(kept[1])
    whole = file.read_bytes()
    for k in range(len(whole)):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :])
        assert cache.fault(kept[1]) is not None, k
    file.write_bytes(whole)
    assert cache.fault(kept[1]) is None


def test_a_file_of_another_length_is_neither_whole_nor_read(cache, kept):
    file = cache.file(kept[1])
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert cache.fault(kept[1]) is not None
        assert cache.map(kept[1]) is None
    file.write_bytes(whole + b"\0")
    assert "bytes long" in cache.fault(kept[1])
    assert cache.map(kept[1]) is None


def test_pixels_of_another_photograph_are_not_read(tmp_path, cache, kept):
    _, other = photograph(tmp_path / "b.png", seed=1)
    cache.file(kept[1]).rename(cache.file(other))
    assert cache.fault(other) == "it holds another image"
    assert cache.map(other) is None


def test_pixels_of_another_decoder_are_decoded_again(cache, kept, monkeypatch):
    monkeypatch.setattr(decoded, "_DECODER", b"Pillow 99.0.0 jpg 9.9.9")
    assert "version of Pillow" in cache.fault(kept[1])
    assert cache.map(kept[1]) is None
    cache.write(kept[1], kept[0])
    assert cache.fault(kept[1]) is None


def test_what_cannot_be_opened_is_a_fault(cache, kept):
    cache.file(kept[1]).unlink()
    cache.file(kept[1]).mkdir()
    assert "cannot be read" in cache.fault(kept[1])
    assert cache.map(kept[1]) is None


def test_a_damaged_file_is_replaced_and_a_whole_one_is_not(cache, kept):
    file = cache.file(kept[1])
    before, inode = file.read_bytes(), file.stat().st_ino
    cache.write(kept[1], kept[0])
    assert file.stat().st_ino == inode
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    cache.write(kept[1], kept[0])
    assert file.read_bytes() == before


def test_another_photograph_than_planned_is_not_kept(tmp_path, cache):
    path, digest = photograph(tmp_path / "a.png")
    photograph(path, seed=1)
    with pytest.raises(DataError, match="changed since"):
        cache.write(digest, path)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(tmp_path, cache, monkeypatch, error):
    path, digest = photograph(tmp_path / "a.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error)):
        cache.write(digest, path)
    assert list(cache.folder.iterdir()) == []


def test_what_was_left_half_written_is_swept_when_nobody_can_be_at_it(cache, kept):
    old, young = (cache.folder / f"{kept[1]}.rgb.{k:016x}.partial" for k in range(2))
    for file in (old, young):
        file.write_bytes(b"x")
    os.utime(old, (time.time() - 4000,) * 2)
    assert cache.open() == {kept[1]}
    assert not old.exists() and young.exists()


def test_what_is_not_ours_is_not_swept(cache, kept):
    names = ("film.partial", f"x{kept[1]}.rgb.1.partial", f"{kept[1]}.partial")
    for name in names:
        (cache.folder / name).write_bytes(b"x")
        os.utime(cache.folder / name, (time.time() - 4000,) * 2)
    assert cache.open() == {kept[1]}
    assert {p.name for p in cache.folder.iterdir()} == {f"{kept[1]}.rgb", *names}


@pytest.mark.parametrize("goal", ["pipe", "/dev/zero"])
def test_what_is_no_file_holds_no_pixels(cache, kept, goal):
    file = cache.file(kept[1])
    file.unlink()
    if goal == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(goal)
    assert "not a regular file" in cache.fault(kept[1])
    assert cache.map(kept[1]) is None


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_cached_is_not_decoded(cache, kept, monkeypatch, keeps, whole):
    path, digest = kept
    expected = read_image(path)
    monkeypatch.setattr(decoded, "read_image", lambda *_: pytest.fail("decoded"))
    reader = Pixels(cache.folder, [digest] if whole else [], keeps=keeps)
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(path, digest), expected)


def test_without_a_cache_every_read_decodes(kept, decoding):
    for _ in range(2):
        np.testing.assert_array_equal(Pixels().read(*kept), read_image(kept[0]))
    assert decoding == [kept[0]] * 2


def test_what_the_cache_lacks_is_kept_where_it_is_to_be(tmp_path, cache, decoding):
    path, digest = photograph(tmp_path / "a.png")
    for keeps, count in ((False, 1), (False, 2), (True, 3), (True, 3), (False, 3)):
        reader = Pixels(cache.folder, keeps=keeps)
        np.testing.assert_array_equal(reader.read(path, digest), read_image(path))
        assert len(decoding) == count and not reader.remarks
    assert cache.fault(digest) is None


def test_what_is_damaged_is_not_read_and_is_replaced(cache, kept, decoding):
    path, digest = kept
    file = cache.file(digest)
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    np.testing.assert_array_equal(Pixels(cache.folder).read(path, digest), read_image(path))
    assert cache.fault(digest) is not None
    reader = Pixels(cache.folder, keeps=True)
    np.testing.assert_array_equal(reader.read(path, digest), read_image(path))
    assert file.read_bytes() == before and len(decoding) == 2


def test_a_disk_that_gets_full_is_said_once_and_left_as_it_was(tmp_path, cache, kept, monkeypatch):
    pairs = [photograph(tmp_path / f"{k}.png", seed=k + 1) for k in range(4)]
    reader = Pixels(cache.folder, keeps=True)
    reader.read(*pairs[0])
    assert cache.open() == {kept[1], pairs[0][1]}

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(Path, "replace", fail)
    for path, digest in pairs:
        np.testing.assert_array_equal(reader.read(path, digest), read_image(path))
    assert cache.open() == {kept[1]}
    assert not reader.keeps
    [said] = reader.remarks
    assert "No space left" in said and "runtime: {cache: false}" in said


def test_another_photograph_than_planned_is_refused_by_every_reader(tmp_path, cache):
    path, digest = photograph(tmp_path / "a.png")
    photograph(path, seed=1)
    for reader in (Pixels(), Pixels(cache.folder), Pixels(cache.folder, keeps=True)):
        with pytest.raises(DataError, match="changed since"):
            reader.read(path, digest)
    assert cache.open() == set()


def test_what_is_deleted_meanwhile_is_decoded_and_open_maps_hold(cache, kept):
    path, digest = kept
    reader = Pixels(cache.folder, [digest])
    first = reader.read(path, digest)
    cache.discard([digest, digest])
    np.testing.assert_array_equal(first, read_image(path))
    np.testing.assert_array_equal(reader.read(path, digest), first)
    photograph(path, seed=1)
    with pytest.raises(DataError, match="changed since"):
        reader.read(path, digest)


# In a process of its own: one with the threads of other tests must not be forked.
_READ = """
import multiprocessing, pickle, sys
with open(sys.argv[1], "rb") as file:
    reader, pair = pickle.load(file)
reader.read(*pair)
with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:
    print(int(pool.apply(reader.read, pair).sum()))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_is_read_in_other_processes(cache, kept, python, tmp_path, method):
    reader = Pixels(cache.folder, [kept[1]])
    reader.read(*kept)
    pickled = pickle.dumps((reader, kept))
    assert len(pickled) < 2000  # paths and digests, no pixels
    (tmp_path / "reader").write_bytes(pickled)
    found = python(_READ, tmp_path / "reader", method)
    assert int(found) == int(read_image(kept[0]).sum())


def test_reading_holds_no_files_open(cache, kept):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("tells of open files on Linux only")
    reader = Pixels(cache.folder, [kept[1]])
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(100):
        reader.read(*kept)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


_FILL = """
import sys
from pathlib import Path
from ensdistill.data.decoded import PixelCache
cache = PixelCache(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for pair in sys.argv[2:]:
        digest, path = pair.split("=")
        cache.file(digest).unlink(missing_ok=True)
        cache.write(digest, path)
"""


def test_killed_writers_leave_whole_files_only(tmp_path, cache):
    pairs = [photograph(tmp_path / f"{k}.png", (400, 500, 3), k) for k in range(3)]
    arguments = [f"{digest}={path}" for path, digest in pairs]
    seen = set()
    for k in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _FILL, str(cache.folder), *arguments], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(0.05 + 0.013 * k)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        for digest in cache.open():
            assert cache.fault(digest) is None
            seen.add(digest)
    assert seen
    for path, digest in pairs:
        cache.write(digest, path)
        np.testing.assert_array_equal(cache.map(digest), read_image(path))


def test_what_is_no_image_is_told_before_anything_is_written(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        cached_bytes(tmp_path / "a.png")


def test_the_form_is_what_it_was(tmp_path, cache, monkeypatch):
    """A change of the form has to change `_FORM`, or old files would be read wrongly."""
    monkeypatch.setattr(decoded, "_DECODER", b"Pillow")
    content = io.BytesIO()
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(1, 2, 3)).save(content, "PPM")
    (tmp_path / "a.ppm").write_bytes(content.getvalue())
    digest = sha256(content.getvalue()).hexdigest()
    cache.write(digest, tmp_path / "a.ppm")
    found = cache.file(digest).read_bytes()
    assert found[:16] == b"ensdistill px 1\n" and found[16:48].rstrip(b"\0") == b"Pillow"
    assert found[48:80].hex() == digest
    assert found[80:88] == bytes([1, 0, 0, 0, 2, 0, 0, 0])
    assert found[92:] == bytes(range(6))
