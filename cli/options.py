"""Options that several commands share: one flag, one meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

config = click.option(
    "-c",
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("experiment.yaml"),
    show_default=True,
    help="The experiment file.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
dry_run = click.option(
    "-n", "--dry-run", is_flag=True, help="Say what would be done, and do nothing."
)
upstream = click.option(
    "--upstream", is_flag=True, help="Also do what this command needs and finds missing."
)
rehash = click.option(
    "--rehash", is_flag=True, help="Read every input file again instead of trusting its date."
)


def stage(function: F) -> F:
    """Add the options of commands that make artifacts."""
    for option in (as_json, rehash, upstream, dry_run, config):
        function = option(function)
    return function
