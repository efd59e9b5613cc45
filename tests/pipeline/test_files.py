"""The cache of file digests: what it may remember and when it must look again."""

import hashlib
import os
from pathlib import Path

import pytest

from ensdistill.pipeline import files as module
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.files import FileCache


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def cache(tmp_path):
    return FileCache(tmp_path / "work" / "files.json")


def again(cache, **more):
    """Return the cache as the next command finds it."""
    cache.save()
    return FileCache(cache._path, **more)


def change(path, content, *, nanoseconds=1):
    """Rewrite a file in place, its modification time moved by so much."""
    before = path.stat()
    with path.open("r+b") as opened:
        opened.write(content)
        opened.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + nanoseconds))
    assert path.stat().st_ino == before.st_ino


@pytest.fixture
def opened(monkeypatch):
    """Count the files that are read for their digest."""
    paths, real = [], module.open_regular

    def spy(path):
        paths.append(Path(path))
        return real(path)

    monkeypatch.setattr(module, "open_regular", spy)
    return paths


def test_a_digest_is_the_sha256_of_the_bytes(cache, file):
    assert cache.digest(file) == sha256(b"one")


def test_an_unchanged_file_is_read_once(cache, file, opened):
    for _ in range(2):
        assert cache.digest(file) == sha256(b"one")
    assert again(cache).digest(file) == sha256(b"one")
    assert opened.count(file) == 1


@pytest.mark.parametrize("nanoseconds", [1, -1, 10**9])
def test_new_content_of_the_same_size_is_seen(cache, file, nanoseconds):
    cache.digest(file)
    change(file, b"two", nanoseconds=nanoseconds)
    assert again(cache).digest(file) == sha256(b"two")


def test_new_content_of_another_size_is_seen(cache, file):
    cache.digest(file)
    change(file, b"three", nanoseconds=0)
    assert cache.digest(file) == sha256(b"three")


def test_a_replaced_file_is_seen_although_size_and_time_are_equal(cache, file):
    cache.digest(file)
    stat = file.stat()
    other = file.with_name("other.png")
    other.write_bytes(b"two")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert cache.digest(file) == sha256(b"two")


def test_only_what_is_remembered_and_unchanged_is_known(cache, file, opened):
    assert cache.known(file) is None
    cache.digest(file)
    assert opened.count(file) == 1
    assert cache.known(file) == again(cache).known(file) == sha256(b"one")
    assert opened.count(file) == 1
    change(file, b"two")
    opened.clear()
    assert cache.known(file) is None
    file.unlink()
    assert cache.known(file) is None
    assert opened == []


def test_known_does_not_wait_for_a_pipe(cache, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert cache.known(tmp_path / "pipe") is None


def test_rehash_reads_again_what_lies_about_its_time(cache, file):
    cache.digest(file)
    change(file, b"two", nanoseconds=0)
    assert again(cache).digest(file) == sha256(b"one")
    found = again(cache, rehash=True)
    assert found.known(file) is None
    assert found.digest(file) == sha256(b"two")
    assert again(found).digest(file) == sha256(b"two")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"stats": {}}',
        b'{"stats": 3, "facts": 3}',
        b'{"stats": [1], "facts": {}}',
    ],
)
def test_a_spoilt_cache_is_an_empty_one(cache, file, content):
    cache.digest(file)
    cache.save()
    cache._path.write_bytes(content)
    found = FileCache(cache._path)
    assert found.known(file) is None
    assert found.digest(file) == sha256(b"one")
    assert again(found).known(file) == sha256(b"one")


def test_a_torn_cache_is_an_empty_one(cache, file):
    cache.digest(file)
    cache.save()
    whole = cache._path.read_bytes().rstrip()
    for length in range(len(whole)):
        cache._path.write_bytes(whole[:length])
        assert FileCache(cache._path).known(file) is None


def test_nothing_is_written_when_nothing_was_learnt(cache, file):
    cache.save()
    assert not cache._path.exists()
    cache.digest(file)
    cache.save()
    before = cache._path.stat()
    found = FileCache(cache._path)
    found.digest(file)
    found.save()
    assert cache._path.stat().st_ino == before.st_ino


def test_a_cache_that_cannot_be_written_is_forgotten(tmp_path, file):
    (tmp_path / "work").write_text("a file where the folder should be")
    cache = FileCache(tmp_path / "work" / "files.json")
    assert cache.digest(file) == sha256(b"one")
    assert again(cache).known(file) is None


def test_a_name_that_is_no_utf8_is_remembered(cache, tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/stra\xdfe.png"))
    path.write_bytes(b"one")
    cache.digest(path)
    assert again(cache).known(path) == sha256(b"one")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_an_unreadable_file_is_named(cache, tmp_path, make):
    path = tmp_path / "gone.png"
    make(path)
    with pytest.raises(DataError, match=r"gone\.png: cannot be read"):
        cache.digest(path)
    with pytest.raises(DataError, match=r"gone\.png"):
        cache.recall(path, "size")


def test_a_fact_is_known_by_content_and_kind(cache, file):
    copy = file.with_name("copy.png")
    copy.write_bytes(file.read_bytes())
    assert cache.recall(file, "size") is None
    cache.learn(cache.digest(file), "size", {"length": 3})
    for path in (file, copy):
        assert cache.recall(path, "size") == {"length": 3}
        assert again(cache, rehash=True).recall(path, "size") == {"length": 3}
        assert cache.recall(path, "other") is None
    change(file, b"three")
    assert cache.recall(file, "size") is None
    assert cache.recall(copy, "size") == {"length": 3}


def test_facts_survive_as_they_were_found(cache, file):
    fact = {"height": 3, "values": {"0": 7}}
    cache.learn(cache.digest(file), "values", fact)
    assert again(cache).recall(file, "values") == fact
    assert "height" not in cache._path.read_text()  # apart: planning reads the digests alone


@pytest.mark.parametrize(
    ("old", "new"), [(b'"height": 2', b'"height": 3'), (b'"height": 2', b'"height": [2]')]
)
def test_facts_that_are_not_what_was_written_are_forgotten(cache, file, old, new):
    cache.learn(cache.digest(file), "photograph", {"height": 2})
    cache.save()
    assert again(cache).recall(file, "photograph") == {"height": 2}
    (facts,) = file.parent.rglob("files-facts.json")
    assert old in facts.read_bytes()
    facts.write_bytes(facts.read_bytes().replace(old, new))
    later = again(cache)
    assert later.recall(file, "photograph") is None
    later.learn(later.digest(file), "photograph", {"height": 4})
    later.save()
    assert again(cache).recall(file, "photograph") == {"height": 4}


@pytest.mark.parametrize("name", ["files.json", "files-facts.json"])
def test_a_file_of_somebody_elses_is_not_replaced(tmp_path, file, name):
    mine = tmp_path / "work" / name
    mine.parent.mkdir()
    mine.write_text('{"photos": ["a.png"]}')
    cache = FileCache(tmp_path / "work" / "files.json")
    cache.learn(cache.digest(file), "photograph", {"height": 2})
    cache.save()
    assert mine.read_text() == '{"photos": ["a.png"]}'
    assert cache.known(file) == sha256(b"one")
