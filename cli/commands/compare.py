"""`ensdistill compare`."""

from __future__ import annotations

from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.screen import echo_json
from ensdistill.stages.reading.comparison import compare, summary


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path), required=True)
@click.option("--split", help="The labelled split; needed where an experiment has several.")
@options.as_json
def command(sources: tuple[Path, ...], split: str | None, as_json: bool) -> None:
    """Show experiments side by side: scores class by class, teachers, policies and cost.

    SOURCES are experiment files, workspaces or results.json files, at least two; differences are to
    the first. Of an experiment file only what is fresh is shown, and that all were scored by the
    same ground truth is checked. Nothing is computed.

    \b
    Example:
      ensdistill compare four-teachers.yaml five-teachers.yaml
      ensdistill compare old/work new/work --json
    """
    if len(sources) < 2:
        raise click.UsageError("name at least two experiments to compare")
    found = compare([summary(source, split) for source in sources])
    if as_json:
        echo_json(found)
    else:
        render.results.comparison(found)
