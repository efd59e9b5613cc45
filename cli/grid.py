"""Tables of what is printed; apart, as importing rich takes a tenth of a second."""

from __future__ import annotations

import io
import sys
from typing import Any

from rich import table
from rich.console import Console
from rich.text import Text

from ensdistill.cli.screen import line, put


def print_table(found: Table) -> None:
    """Print a table as wide as it is: a figure folded over two lines cannot be read."""
    rows = io.StringIO()
    at_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=rows, width=1000, highlight=False, force_terminal=at_terminal or None)
    console.print(found)
    for row in rows.getvalue().splitlines():
        put(row.rstrip())  # the padding of a long line would wrap all others


class Table(table.Table):
    """A table without rules, in whose cells any text is shown.

    Parameters
    ----------
    *columns : str
        Of texts; of numbers see `add_numbers`.
    title : str, optional
        What stands above it.
    """

    def __init__(self, *columns: str, title: str | None = None):
        super().__init__(box=None, pad_edge=False, title=None if title is None else _cell(title))
        for header in columns:
            self.add_column(header)

    def add_column(self, header: Any = "", *arguments: Any, **more: Any) -> None:
        """Add a column."""
        super().add_column(_cell(header), *arguments, **more)

    def add_numbers(self, *columns: str) -> None:
        """Add columns whose ends stand below each other."""
        for header in columns:
            self.add_column(header, justify="right")

    def add_row(self, *cells: Any, **more: Any) -> None:
        """Add a row, of texts or styled ones."""
        super().add_row(*map(_cell, cells), **more)


def _cell(value: str | Text) -> Text:
    if isinstance(value, Text):
        return Text(line(value.plain), style=value.style)
    return Text(line(value))
