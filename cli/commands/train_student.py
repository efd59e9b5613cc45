"""`ensdistill train-student`."""

from __future__ import annotations

from pathlib import Path

import click

from ensdistill.cli import options
from ensdistill.cli.execute import execute, say


@click.command()
@options.stage
def command(config: Path, dry_run: bool, upstream: bool, rehash: bool, as_json: bool) -> None:
    """Train the student on the fused labels.

    Prints the cost of a step and an estimate of the whole before it begins. A killed training goes
    on from its last checkpoint and ends the same.

    \b
    Example:
      ensdistill train-student --upstream
    """
    experiment, report, decisions = execute(
        config,
        lambda *_: ["student"],
        dry_run=dry_run,
        upstream=upstream,
        rehash=rehash,
        opens=("student",),
    )
    say(experiment, report, decisions, dry_run=dry_run, as_json=as_json)
    artifact = decisions["student"].artifact
    if not dry_run and not as_json and artifact is not None:
        click.echo(f"student: {artifact.path}")
