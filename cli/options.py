"""Options that several commands share: one flag, one meaning."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ensdistill.pipeline.locks import Part

F = TypeVar("F", bound=Callable[..., Any])


def _part(_: click.Context, __: click.Parameter, value: str | None) -> Part | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{value!r}; expected I/N with 1 <= I <= N, such as 2/8")
    return Part(int(found[1]), int(found[2]))


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

part = click.option(
    "--part",
    metavar="I/N",
    callback=_part,
    help="Make only the I-th of N shares of the images, as a task of a cluster array; the task "
    "that finds all of them done publishes.",
)


def stage(function: F) -> F:
    """Add the options of commands that make artifacts."""
    for option in (as_json, rehash, upstream, dry_run, config):
        function = option(function)
    return function
