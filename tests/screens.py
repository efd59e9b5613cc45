"""A terminal of which tests see the screen."""

import os
import pty
import re
import subprocess
import termios
import threading

COLUMNS = 160
_PARTS = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(.)", re.S)


def at_terminal(command, rows=40, seconds=100, **more):
    """Run a command at a terminal and return its exit status and all rows, also those gone by.

    Parameters
    ----------
    command : list of str
        Its stdin, stdout and stderr are the terminal.
    rows : int
        Of the terminal, which has `COLUMNS` columns.
    seconds : float
        After which it is killed.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, COLUMNS))
    of_terminal = dict.fromkeys(("stdin", "stdout", "stderr"), theirs) | more
    environment = os.environ | {"TERM": "xterm"}
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(command, env=environment, start_new_session=True, **of_terminal)
    os.close(theirs)
    killing = threading.Timer(seconds, process.kill)
    killing.start()
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # nobody writes any more
        pass
    os.close(ours)
    killing.cancel()
    return process.wait(), screen(said.decode())


def screen(text):
    """Return the rows that a terminal shows of a text with escapes."""
    rows, row, column = [""], 0, 0
    for numbers, letter, control, plain, unknown in _PARTS.findall(text):
        assert not unknown, "not known to this terminal"
        if control == "\r":
            column = 0
        elif control == "\n":
            row += 1
        elif letter == "A":
            row -= int(numbers or 1)
            assert row >= 0
        elif letter == "K":
            assert numbers == "2"
            rows[row] = ""
        elif letter:
            assert letter in "mhl", f"{letter} is not known to this terminal"
        for character in plain:
            if column == COLUMNS:
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
            column += 1
        rows += [""] * (row + 1 - len(rows))
    return [line.rstrip() for line in rows]
