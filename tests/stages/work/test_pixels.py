"""Decoding each image once: the same numbers, whatever happens to the cache."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from faults import Said
from PIL import Image

from ensdistill.data import decoded as cached
from ensdistill.data.decoded import PixelCache
from ensdistill.data.decoding import read_image
from ensdistill.data.splits import Picture
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.files import FileCache
from ensdistill.stages.work import pixels
from ensdistill.stages.work.pixels import prepare, reader

Usage = namedtuple("Usage", "total used free")


def local_of(root, workers=0, folder=".pixels"):
    """Return what training knows of the images below a folder."""
    pictures = tuple(Picture(p.stem, p) for p in sorted(root.glob("*.png")))
    digests = FileCache(root / "files.json").digests([str(p.image) for p in pictures])
    names = (str(p.image) for p in pictures)
    return SimpleNamespace(
        pictures=pictures,
        watch=(),
        digests=dict(zip(names, digests, strict=True)),
        pixels=folder and root / folder,
        workers=workers,
    )


@pytest.fixture
def images(tmp_path):
    """Six images, two of them equal."""
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(
            tmp_path / f"{k}.png"
        )
    shutil.copy(tmp_path / "0.png", tmp_path / "5.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """Paths in the order in which they are decoded here."""
    found = []
    monkeypatch.setattr(cached, "read_image", lambda *a: found.append(a[0]) or read_image(*a))
    return found


def right(reader, local):
    for picture in (*local.pictures, *local.watch):
        found = reader.read(picture.image, local.digests[str(picture.image)])
        np.testing.assert_array_equal(found, read_image(picture.image))


def test_each_image_is_decoded_once(images, decoded):
    local, told = local_of(images), Said()
    right(prepare(local, "student", told), local)
    assert len(decoded) == 5  # of six files, two are equal
    assert told.totals == [(5, "images")] and told.done == 5
    size = sum(f.stat().st_size for f in local.pixels.glob("*.rgb"))
    assert size == 5 * (30 * 40 * 3 + 92)
    assert told.messages[0].startswith(f"student: 5 decoded images take {size / 1e9:.3g} GB in ")
    told = Said()
    right(prepare(local, "student", told), local)
    assert len(decoded) == 5
    assert told.totals == [(5, "cached images")] and told.messages == []


def test_without_a_folder_nothing_is_kept(images, decoded):
    local, told = local_of(images, folder=None), Said()
    right(prepare(local, "student", told), local)
    assert len(decoded) == 6 and told.totals == [] and told.messages == []


def test_workers_do_it_too(images, decoded, eager):
    local, told = local_of(images, workers=2), Said()
    right(prepare(local, "student", told), local)
    assert len(decoded) == 2  # the first two here, the others elsewhere
    right(prepare(local, "student", told), local)
    assert len(decoded) == 2


def spoil(file, how):
    content = file.read_bytes()
    if how == "flipped":
        content = content[:-7] + bytes([content[-7] ^ 4]) + content[-6:]
    file.write_bytes({"truncated": content[:-1], "empty": b""}.get(how, content))


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty"])
def test_what_is_damaged_is_decoded_again(images, decoded, how):
    local, told = local_of(images), Said()
    prepare(local, "student", told)
    file = min(local.pixels.glob("*.rgb"))
    before = file.read_bytes()
    spoil(file, how)
    decoded.clear()
    right(prepare(local, "student", told), local)
    assert len(decoded) == 1
    assert f"1 of 5 cached images are not used, such as {file} (it" in told.messages[1]
    assert file.read_bytes() == before


def test_what_is_damaged_and_cannot_be_replaced_is_not_used(images, decoded, monkeypatch):
    local, told = local_of(images), Said()
    prepare(local, "student", told)
    spoil(min(local.pixels.glob("*.rgb")), "flipped")
    decoded.clear()

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(PixelCache, "write", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    right(prepare(local, "student", told), local)
    assert len(decoded) == 1 + ("0.png" in str(decoded[0]))  # 5.png is equal
    assert "Permission denied" in told.messages[-1]


def test_too_little_room_is_said_and_no_failure(images, decoded, monkeypatch):
    local, told = local_of(images), Said()
    need = 5 * (30 * 40 * 3 + 92)
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: Usage(10**9, 0, need))
    right(prepare(local, "student", told), local)
    assert list(local.pixels.glob("*.rgb")) == []
    assert len(decoded) == 6  # for every read
    assert "too much, so each is decoded whenever it is read" in told.messages[0]
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: Usage(10**9, 0, 2 * need))
    prepare(local, "student", told)
    assert len(list(local.pixels.glob("*.rgb"))) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_gets_full_is_left_as_it_was(images, eager, monkeypatch, workers):
    monkeypatch.setattr(pixels.random, "Random", lambda: SimpleNamespace(shuffle=lambda _: None))
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(images / "4.png")
    local, told = local_of(images, workers), Said()
    kept = {local.digests[str(local.pictures[0].image)]}
    cache = PixelCache(local.pixels)
    cache.open()
    cache.write(*kept, local.pictures[0].image)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # of worker processes too
    try:
        reader = prepare(local, "student", told)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    right(reader, local)
    assert told.done >= 2  # images that were written, and are not kept
    assert "File too large" in told.messages[-1] and "runtime: {cache: false}" in told.messages[-1]
    assert cache.open() == kept
    assert len(list(local.pixels.glob("*.rgb"))) == 1


def test_a_folder_that_cannot_be_made_is_said_and_no_failure(images, decoded):
    local, told = local_of(images), Said()
    local.pixels.write_bytes(b"a file")
    right(prepare(local, "student", told), local)
    assert len(decoded) == 6
    assert "cannot hold decoded images" in told.messages[0]


def test_another_image_than_planned_is_refused(images):
    local = local_of(images)
    shutil.copy(images / "1.png", images / "2.png")
    with pytest.raises(DataError, match="changed since"):
        prepare(local, "student", Said())


_FILL = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_pixels import Said, local_of, prepare, right
local = local_of(Path(sys.argv[1]))
print("ready", flush=True)
reader = prepare(local, "student", Said())
right(reader, local)
"""


@pytest.fixture
def fill(tmp_path):
    """Start processes that fill the cache of some larger images."""
    rng = np.random.default_rng(0)
    root = tmp_path / "large"
    root.mkdir()
    for k in range(40):
        tile = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(np.kron(tile, np.ones((30, 40, 1), np.uint8))).save(root / f"{k}.png")
    local_of(root)  # digests, before two processes write them
    started = []

    def start():
        here = Path(__file__).parent
        code = [sys.executable, "-c", _FILL, root, here, here.parent.parent]
        process = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield root, start
    for process in started:
        process.kill()
        process.communicate()


def test_killed_while_filling_only_what_was_in_work_is_lost(fill, decoded):
    root, start = fill
    process = start()
    process.stdout.readline()
    local = local_of(root)
    end = time.monotonic() + 60
    while len(list(local.pixels.glob("*.rgb"))) < 10:
        assert time.monotonic() < end and process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list(local.pixels.glob("*.rgb")))
    assert 10 <= done < 40
    left = list(local.pixels.glob("*.partial"))
    assert len(left) <= 1
    for file in left:
        os.utime(file, (time.time() - 4000,) * 2)
    right(prepare(local, "student", Said()), local)
    assert len(decoded) == 40 - done
    assert len(list(local.pixels.glob("*.rgb"))) == 40


def test_two_processes_fill_it_at_once(fill):
    root, start = fill
    processes = [start() for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    local = local_of(root)
    assert len(list(local.pixels.glob("*.rgb"))) == 40
    cache = PixelCache(local.pixels)
    assert all(cache.fault(digest) is None for digest in local.digests.values())


def test_a_training_is_the_same_with_and_without(world, monkeypatch):
    world.settings["policy"] = {"strategy": "manual", "assign": {"road": "a", "building": "a"}}
    world.settings["runtime"]["cache"] = False
    world.write()
    world.call("train-student", "--upstream")
    folder = world.root / "work" / ".pixels"
    assert not folder.exists()

    def weights():
        path = world.artifact("student").path
        content = (path / "model.safetensors").read_bytes()
        shutil.rmtree(path)
        return content

    expected = weights()
    world.settings["runtime"]["cache"] = True
    world.write()
    world.call("train-student")
    assert weights() == expected
    files = sorted(folder.glob("*.rgb"))
    assert len(files) == 5
    spoil(files[0], "flipped")
    spoil(files[1], "truncated")
    world.call("train-student")
    assert weights() == expected

    def refuse(*_):
        pytest.fail("a photograph was decoded")

    monkeypatch.setattr(cached, "read_image", refuse)
    world.call("train-student")
    assert weights() == expected


def test_watched_images_are_decoded_once_too(images, decoded):
    local, told = local_of(images), Said()
    local.pictures, local.watch = local.pictures[:2], local.pictures[2:4]
    right(prepare(local, "student", told), local)
    assert len(decoded) == 4 and told.totals == [(4, "images")]


def reading(local, told=None):
    """Return what reads the images of a node that decodes none before it begins."""
    return reader(local.pixels, local.digests.items(), (told or Said()).message)


def test_what_is_read_one_after_another_is_kept(images, decoded):
    local, told = local_of(images), Said()
    found = reading(local, told)
    assert decoded == [] and len(told.messages) == 1
    assert told.messages[0].startswith("5 decoded images take ")
    right(found, local)
    assert len(decoded) == 5  # of six files, two are equal
    told = Said()
    right(reading(local, told), local)
    right(prepare(local, "student", told), local)
    assert len(decoded) == 5 and told.messages == []


def test_only_what_is_going_to_be_read_has_to_have_room(images):
    local, told = local_of(images), Said()
    reader(local.pixels, [*local.digests.items()][:2], told.message)
    assert told.messages[0].startswith("2 decoded images take ")


def test_without_room_or_a_folder_nothing_read_is_kept(images, decoded, monkeypatch):
    local, told = local_of(images), Said()
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: Usage(10**9, 0, 1000))
    right(reading(local, told), local)
    assert list(local.pixels.glob("*.rgb")) == []
    assert "too much, so each is decoded whenever it is read" in told.messages[0]
    local.pixels = None
    right(reading(local), local)
    assert len(decoded) == 12


@pytest.mark.parametrize("what", ["file", "others"])
def test_a_folder_that_is_not_ours_gets_nothing_that_is_read(images, what):
    local, told = local_of(images), Said()
    if what == "file":
        local.pixels.write_bytes(b"a file")
    else:
        local.pixels.mkdir()
        (local.pixels / "photo.raw").write_bytes(b"raw")
    right(reading(local, told), local)
    assert "cannot hold decoded images" in told.messages[0]
    assert what == "file" or [p.name for p in local.pixels.iterdir()] == ["photo.raw"]


def test_a_link_in_its_place_is_refused_by_who_reads(images, tmp_path):
    local = local_of(images)
    (tmp_path / "elsewhere").mkdir()
    local.pixels.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link"):
        reading(local)
