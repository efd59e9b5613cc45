"""Names and texts of others, so that a terminal shows them and obeys nothing in them."""

from __future__ import annotations

import re
from typing import Final

# Control characters but newline and tab, what turns the direction of writing or ends a line, and
# halves of surrogates: bytes of a name that are no UTF-8 are among these.
_OBEYED: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATES: Final = re.compile(r"[\ud800-\udfff]")
_FOLDED: Final = re.compile(r"[\r\n]+[ \t]+")  # as libraries lay out their messages
_SEQUENCE: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")
_NOT_SHOWN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def escaped(text: str) -> str:
    r"""Return a text of any number of lines with ``\x1b`` in the place of an escape, and so on."""
    return _OBEYED.sub(_code, text)


def in_a_line(text: str) -> str:
    r"""Return a text as one line: `escaped`, and ``\n`` where a name holds the end of a line."""
    return escaped(_FOLDED.sub(" ", text)).replace("\n", "\\n")


def in_a_cell(text: str) -> str:
    r"""Return a text for a table of Markdown: `in_a_line`, and ``\|`` where it has a bar."""
    return in_a_line(text).replace("|", "\\|")


def as_utf8(text: str) -> bytes:
    r"""Return a text for a file: bytes of a name that are no UTF-8 are spelt ``\xdf``."""
    return _SURROGATES.sub(_code, text).encode()


def plain(text: str) -> str:
    """Return a line that a program wrote for a terminal without what is not to be seen."""
    return escaped(_NOT_SHOWN.sub("", _SEQUENCE.sub("", text)))


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # how Python keeps a byte of a name that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()
