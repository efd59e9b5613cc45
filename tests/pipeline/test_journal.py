"""Journals under kills, spoilt bytes, full disks and threads."""

import errno
import json
import os
import threading

import pytest

from ensdistill.pipeline import journal as module
from ensdistill.pipeline.journal import (
    Journal,
    count_items,
    item_of,
    numbered_lines,
    read_journal,
    seal,
    unseal,
)


def of(item_id, **more):
    """Return a record that has what every one has."""
    return {"id": item_id, "key": "k", "made_from": {}, "content": "0", **more}


RECORDS = [
    of("a", labels=[1, 2], note='quote " and \\ and {'),
    of("straße", nested={"x": None}, file=["c.0", 3, "0"]),
    of("c\nd", share=0.1),
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
    path, new = tmp_path / "torn.jsonl", of("new")
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
    write(path, [of("x")])
    path.write_bytes(path.read_bytes() + b'{"id": "y')
    write(path, [of("z")])
    assert read_journal(path) == [*RECORDS[:-1], of("x"), of("z")]


def test_a_reopened_whole_journal_gets_no_empty_line(tmp_path, whole):
    path = tmp_path / "whole.jsonl"
    write(path, [of("x")])
    assert path.read_bytes() == whole + seal(of("x"))


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
    found = [unseal(line)["id"] for line in lines]
    assert len(found) == 400
    for k in range(8):
        assert [i for i in found if i.startswith(f"{k}-")] == [f"{k}-{n}" for n in range(50)]


def test_a_disk_that_fills_in_a_line_tears_only_that_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(of("a"))
    real, size = os.write, len(seal(of("b")))

    def short(file, line):
        return real(file, line[: len(line) // 2] if len(line) > 1 else line)

    monkeypatch.setattr(module.os, "write", short)
    with pytest.raises(OSError, match=f"only {size // 2} of {size} journal bytes"):
        journal.append(of("b"))
    monkeypatch.undo()
    journal.append(of("c"))
    journal.close()
    assert read_journal(tmp_path / "j.jsonl") == [of("a"), of("c")]


def test_many_records_are_one_write_of_which_a_full_disk_tears_the_last(tmp_path, monkeypatch):
    lines = [seal(of(name)) for name in "abc"]
    real, written = os.write, []

    def short(file, data):
        written.append(data)
        return real(file, data[:-20])

    journal = Journal(tmp_path / "j.jsonl")
    monkeypatch.setattr(module.os, "write", short)
    with pytest.raises(OSError, match="journal bytes"):
        journal.write(b"".join(lines))
    monkeypatch.undo()
    assert written == [b"".join(lines)]
    journal.append(of("d"))
    journal.close()
    assert read_journal(tmp_path / "j.jsonl") == [of("a"), of("b"), of("d")]


def test_lines_that_tell_another_key_are_passed_over(tmp_path):
    keys = {"a": "0" * 64, 'b", "key": "': "1" * 64, "c\\": "2" * 64, "d": "not hex"}
    records = [of(name) | {"key": key} for name, key in keys.items()]
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"".join(map(seal, records)) + b'{"id": "e", "key": "1')
    for record in records:
        found = [r for _, _, r in numbered_lines(path, {record["key"]}) if r is not None]
        assert record in found
        assert {r["key"] for r in found} <= {record["key"], "not hex"}
    for keys in ((), {"x"}):  # whether it occurs in the file or not
        assert not [r for _, _, r in numbered_lines(path, keys) if r and r["key"] in keys]


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")

    def full(file, line):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        journal.append(of("a"))
    journal.close()


def test_nan_is_refused_before_anything_is_written(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append({"id": "a", "sum": float("nan")})
    journal.close()
    assert (tmp_path / "j.jsonl").read_bytes() == b""


def test_an_id_that_is_no_utf8_survives(tmp_path):
    record = of(b"stra\xdfe".decode(errors="surrogateescape"))
    write(tmp_path / "j.jsonl", [record])
    assert read_journal(tmp_path / "j.jsonl") == [record]


def single_byte_changes(text, others=range(256)):
    """Yield the text with each byte replaced, taken out, or with another byte before it."""
    others = [bytes([other]) for other in others]
    for k in range(len(text)):
        yield text[:k] + text[k + 1 :]
        for other in others:
            yield text[:k] + other + text[k:]
            if other != text[k : k + 1]:
                yield text[:k] + other + text[k + 1 :]


@pytest.mark.parametrize("record", [*RECORDS, {}, {"id": "a", "check": "0" * 16}], ids=repr)
def test_no_byte_of_a_line_can_change_unnoticed(record):
    line = seal(record)[:-1]
    assert unseal(line) == record
    for changed in single_byte_changes(line):
        assert unseal(changed) is None, changed
    for more in (b"\n", b" ", b"}", b"\0", b"\r"):
        assert unseal(line + more) is None, more


def test_no_byte_of_a_journal_can_change_without_its_record_being_dropped(tmp_path, whole):
    path = tmp_path / "j.jsonl"
    for k in range(len(whole) - 1):  # without its last newline it is torn, but whole
        number = whole[:k].count(b"\n")
        dropped = {number, number + 1} if whole[k] == ord("\n") else {number}
        kept = [record for n, record in enumerate(RECORDS) if n not in dropped]
        for other in (b"", b"\n", b"x", bytes([whole[k] ^ 1]), bytes([whole[k] ^ 128])):
            if other != whole[k : k + 1]:
                content = whole[:k] + other + whole[k + 1 :]
                path.write_bytes(content)
                assert read_journal(path) == kept, content
        path.write_bytes(whole[:k] + b"x" + whole[k:])
        kept = [record for n, record in enumerate(RECORDS) if n != number]
        assert read_journal(path) == kept, k


def test_empty_lines_change_nothing(tmp_path, whole):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"\n" + whole.replace(b"\n", b"\n\n"))
    assert read_journal(path) == RECORDS
    assert [number for number, _, _ in numbered_lines(path)] == [2, 4, 6]


def test_a_line_that_is_not_whole_is_told_with_number_and_item(tmp_path, whole):
    path = tmp_path / "j.jsonl"
    spoilt = whole.replace(b'"nested"', b'"nestes"')
    path.write_bytes(spoilt)
    lines = list(numbered_lines(path))
    assert [number for number, _, record in lines if record is None] == [2]
    assert item_of(lines[1][1]) == "straße"
    assert [item_of(line) for _, line, _ in lines] == [r["id"] for r in RECORDS]
    for line in (b"", b'{"id": 3', b'{"id": "a', b'{"id": "\\x"', b'{"id": "\xff"', b"\0"):
        assert item_of(line) is None


def test_lines_of_a_sealed_journal_stay_readable_json(whole):
    for line, record in zip(whole.splitlines(), RECORDS, strict=True):
        found = json.loads(line)
        assert len(found.pop("check")) == 16
        assert found == record


def test_the_seal_stays_as_it_is():
    assert seal({"id": "a", "n": [1, 2.5]}) == (
        b'{"id": "a", "n": [1, 2.5], "check": "a53dd95f6f83b6c2"}\n'
    )


def test_counting_tells_each_item_once(tmp_path, whole):
    path = tmp_path / "j.jsonl"
    path.write_bytes(whole + whole + seal(of("d")))
    assert len(count_items(path)) == len(RECORDS) + 1


def test_counting_does_not_take_what_lies_in_a_record_for_an_item(tmp_path):
    path = tmp_path / "j.jsonl"
    write(path, [{"id": "a", "made_from": {"id": "no item"}, "note": '"id": "nor this"'}])
    assert len(count_items(path)) == 1


def test_a_full_disk_does_not_spoil_the_line_after_it(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(of("a"))
    real, room = os.write, [10]

    def filling(file, line):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = line[: room[0]]
        room[0] -= len(part)
        return real(file, part)

    monkeypatch.setattr(module.os, "write", filling)
    with pytest.raises(OSError, match=r"journal bytes|No space left"):
        journal.append(of("b"))
    monkeypatch.undo()
    journal.append(of("c"))
    journal.close()
    assert read_journal(tmp_path / "j.jsonl") == [of("a"), of("c")]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", (None, 3, ["a"], {})),
        ("key", (None, 3)),
        ("content", (None, 3)),
        ("made_from", (None, [], "x", {"image": 3}, {"image": None})),
        ("file", (None, "c.0", [], ["c.0"], ["c.0", "3", "0"], ["c.0", 3, None], ["c.0", -1, "0"])),
        ("file", (["c.0", True, "0"], ["../x", 3, "0"], ["/x", 3, "0"], [["c.0"], 3, "0"], {})),
    ],
)
def test_a_sealed_line_of_other_types_is_no_record(tmp_path, field, values):
    path = tmp_path / "j.jsonl"
    for value in values:
        path.write_bytes(seal(of("a") | {field: value}) + seal(of("b")))
        assert read_journal(path) == [of("b")], value
    gone = of("a")
    gone.pop(field, None)
    path.write_bytes(seal(gone))
    assert read_journal(path) == ([gone] if field == "file" else [])


def test_a_sealed_line_too_deep_in_itself_is_no_record(tmp_path):
    import hashlib

    body = b'{"id": "a", "key": "k", "made_from": {}, "content": "0", "x": ' + b"[" * 10**5
    body += b"]" * 10**5 + b"}"
    check = hashlib.sha256(body).hexdigest()[:16].encode()
    path = tmp_path / "j.jsonl"
    path.write_bytes(body[:-1] + b', "check": "' + check + b'"}\n')
    assert read_journal(path) == []
