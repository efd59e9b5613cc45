"""`ensdistill train-student`."""

from __future__ import annotations

import click

from ensdistill.cli import options
from ensdistill.cli.execute import execute, say
from ensdistill.cli.screen import echo


@click.command()
@options.stage
def command(asked: options.Asked) -> None:
    """Train the student on the fused labels.

    Says after a few steps what a step and what the whole costs. A killed training goes on from its
    last checkpoint and ends the same. Started by torchrun it uses all GPUs.

    \b
    Example:
      ensdistill train-student --upstream
      torchrun --nproc-per-node 4 -m ensdistill.cli train-student
    """
    done = execute(asked, lambda *_: ["student"], opens=("student",))
    say(done, as_json=asked.as_json)
    artifact = done.decisions["student"].artifact
    if not asked.dry_run and not asked.as_json and artifact is not None:
        echo(f"student: {artifact.path}")
