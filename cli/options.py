"""Options that several commands share: one flag, one meaning."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from ensdistill.pipeline.locks import Part

F = TypeVar("F", bound=Callable[..., Any])
FILE: Final = click.Path(dir_okay=False, path_type=Path)
EXPERIMENT: Final = Path("experiment.yaml")  # where none is named


def _part(_: click.Context, __: click.Parameter, value: str | None) -> Part | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{value!r}; expected I/N with 1 <= I <= N, such as 2/8")
    return Part(int(found[1]), int(found[2]))


def _config(ctx: click.Context, _: click.Parameter, value: Path) -> Path:
    if ctx.obj is not None:  # advice says it again (see `screen.advised`)
        ctx.obj["config"] = value
    return value


class Group(click.Group):
    """Commands of which the nearest is named where there is none of a name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return a command by the first argument."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise click.UsageError(f"no command is called {name!r}; {meant}", ctx)
        return super().resolve_command(ctx, args)


config = click.option(
    "-c",
    "--config",
    type=FILE,
    default=EXPERIMENT,
    show_default=True,
    callback=_config,
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

overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace the file that is written, if there is another."
)

part = click.option(
    "--part",
    metavar="I/N",
    callback=_part,
    help="Make only the I-th of N shares of the images, as a task of a cluster array; the task "
    "that finds all of them done publishes.",
)


def output(text: str, kind: click.Path = FILE, **settings: Any) -> Callable[[F], F]:
    """Return the option that names what a command writes."""
    return click.option("-o", "--output", type=kind, show_default=True, help=text, **settings)


class Asked(NamedTuple):
    """What the options of commands that make artifacts say."""

    config: Path
    dry_run: bool
    upstream: bool
    rehash: bool
    as_json: bool


def stage(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that make artifacts, which the function gets as `asked`."""

    @wraps(function)
    def gathered(**given: Any) -> None:
        asked = Asked(*(given.pop(name) for name in Asked._fields))
        function(asked=asked, **given)

    for option in (as_json, rehash, upstream, dry_run, config):
        gathered = option(gathered)
    return gathered
