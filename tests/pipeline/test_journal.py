"""Journals under kills, full disks and threads."""

import errno
import json
import os
import threading

import pytest

from ensdistill.pipeline import journal as module
from ensdistill.pipeline.journal import Journal, read_journal

RECORDS = [
    {"id": "a", "labels": [1, 2], "note": 'quote " and \\ and {'},
    {"id": "straße", "nested": {"x": None}},
    {"id": "c\nd", "share": 0.1},
]


def write(path, records):
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.jsonl"
    write(path, RECORDS)
    return path.read_bytes()


def records_of(prefix, whole):
    """Return the records whose text lies in the prefix, their line's end or not."""
    ends = [k for k, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == len(RECORDS)
    return [record for record, end in zip(RECORDS, ends, strict=True) if len(prefix) >= end]


def test_wherever_it_is_torn_whole_records_are_read_and_kept(tmp_path, whole):
    path, new = tmp_path / "torn.jsonl", {"id": "new"}
    for length in range(len(whole) + 1):
        prefix = whole[:length]
        path.write_bytes(prefix)
        expected = records_of(prefix, whole)
        assert read_journal(path) == expected, prefix
        write(path, [new])
        assert path.read_bytes().startswith(prefix)
        assert read_journal(path) == [*expected, new], prefix


def test_a_journal_torn_twice_keeps_the_rest(tmp_path, whole):
    path = tmp_path / "torn.jsonl"
    path.write_bytes(whole[:-5])
    write(path, [{"id": "x"}])
    path.write_bytes(path.read_bytes() + b'{"id": "y')
    write(path, [{"id": "z"}])
    assert read_journal(path) == [*RECORDS[:-1], {"id": "x"}, {"id": "z"}]


def test_a_reopened_whole_journal_gets_no_empty_line(tmp_path, whole):
    path = tmp_path / "whole.jsonl"
    write(path, [{"id": "x"}])
    assert path.read_bytes() == whole + b'{"id": "x"}\n'


def test_threads_append_without_mixing_lines(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    start = threading.Barrier(8)

    def work(k):
        start.wait()
        for n in range(50):
            journal.append({"id": f"{k}-{n}", "fill": "x" * (n * 7)})

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    lines = (tmp_path / "j.jsonl").read_bytes().splitlines()
    found = [json.loads(line)["id"] for line in lines]
    assert len(found) == 400
    for k in range(8):
        assert [i for i in found if i.startswith(f"{k}-")] == [f"{k}-{n}" for n in range(50)]


def test_a_disk_that_fills_in_a_line_tears_only_that_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"id": "a"})
    real = os.write

    def short(file, line):
        return real(file, line[: len(line) // 2] if len(line) > 1 else line)

    monkeypatch.setattr(module.os, "write", short)
    with pytest.raises(OSError, match="only 6 of 12 journal bytes"):
        journal.append({"id": "b"})
    monkeypatch.undo()
    journal.append({"id": "c"})
    journal.close()
    assert read_journal(tmp_path / "j.jsonl") == [{"id": "a"}, {"id": "c"}]


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")

    def full(file, line):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        journal.append({"id": "a"})
    journal.close()


def test_nan_is_refused_before_anything_is_written(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append({"id": "a", "sum": float("nan")})
    journal.close()
    assert (tmp_path / "j.jsonl").read_bytes() == b""


def test_an_id_that_is_no_utf8_survives(tmp_path):
    record = {"id": b"stra\xdfe".decode(errors="surrogateescape")}
    write(tmp_path / "j.jsonl", [record])
    assert read_journal(tmp_path / "j.jsonl") == [record]
