"""All that is printed: names and texts of others are shown, and never obeyed.

Nothing else in this package prints, so that no caller has to think of escapes, of bidirectional
text, or of names that hold the end of a line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from contextlib import suppress
from typing import Any, Final

import click

from ensdistill.cli.options import EXPERIMENT
from ensdistill.pipeline.escaping import escaped, in_a_line

# commands that are named in advice, and work without an experiment file or make one
_WITHOUT: Final = ("init", "import", "compare", "demo")
_ADVICE: Final = re.compile(r"(?<!by )`ensdistill (?P<command>[a-z][a-z-]*)(?P<rest>[^`]*)`")


def echo(text: str = "", *, err: bool = False) -> None:
    """Print one line, whatever is in it."""
    put(line(text), err=err)


def echo_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines, such as a traceback."""
    put(escaped(text), err=err)


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    # all but ASCII is escaped, and this is ASCII too
    put(json.dumps(value, indent=1).replace("\x7f", "\\u007f"))


def line(text: str) -> str:
    """Return a text as it is printed: one line, in which commands to run are complete."""
    context = click.get_current_context(silent=True)
    return in_a_line(advised(text, None if context is None else context.obj))


def advised(text: str, said: Any) -> str:
    """Return a text in which each command to run has the experiment file that this one was given.

    `said` is what the command line keeps of its arguments (see `options.config`).
    """
    config = None if said is None else said.get("config")
    if config in (None, EXPERIMENT):
        return text

    def complete(found: re.Match[str]) -> str:
        has_file = {"-c", "--config"} & {*found["rest"].split()}
        if found["command"] in _WITHOUT or has_file:
            return found[0]
        return f"{found[0][:-1]} -c {shlex.quote(str(config))}`"

    return _ADVICE.sub(complete, text)


def put(text: str, *, err: bool = False) -> None:
    """Print what is escaped already."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:  # such as `| head`: who reads has seen enough
        _close(err=err)
        raise click.exceptions.Exit(1) from None
    except OSError as error:
        _close(err=err)
        error.filename = error.filename or ("standard error" if err else "standard output")
        raise


def _close(*, err: bool) -> None:
    """Lead a stream that takes nothing any more to nowhere, or Python complains at its end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (sys.stderr if err else sys.stdout).fileno())
        os.close(nowhere)
