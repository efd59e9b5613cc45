"""Names and texts of others as they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdistill.pipeline.escaping import as_utf8, escaped, in_a_cell, in_a_line, plain

ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize(
    "text, expected",
    [
        (ESCAPE, r"\x1b[2J\x1b]0;owned\x07"),
        ("a\x7fb\x9bc", r"a\x7fb\x9bc"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("stra\udcdfe \ud800", r"stra\xdfe \ud800"),
        ("a\rb\x00", r"a\rb\x00"),
        ("Straße 東京 🚗\ttab", "Straße 東京 🚗\ttab"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt(text, expected):
    assert escaped(text) == expected


def test_a_name_cannot_end_a_line():
    assert in_a_line("a\nall is well.png") == r"a\nall is well.png"
    assert in_a_line("a\r\nb") == r"a\r\nb"
    assert in_a_line("a library says:\n    at line 1,\n\tcolumn 2") == (
        "a library says: at line 1, column 2"
    )


def test_a_name_cannot_end_a_cell():
    assert in_a_cell("a|b\n| c |\x1b") == r"a\|b\n\| c \|\x1b"


def test_bytes_of_names_that_are_no_utf8_are_spelt_in_files():
    assert as_utf8("stra\udcdfe ß\n") == "stra\\xdfe ß\n".encode()


def test_what_was_written_for_a_terminal_loses_what_is_not_seen():
    assert plain("\x1b[31mred\x1b[0m \x1b]0;title\x07end\x08\t.") == "red end\t."
    assert plain("a\u202eb") == r"a\u202eb"


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_comes_is_one_printable_line(text):
    line = in_a_line(text)
    assert len(line.splitlines()) <= 1 and in_a_line(line) == line
    line.encode()
    assert not any(ord(c) < 32 and c != "\t" for c in line)
