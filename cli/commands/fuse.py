"""`ensdistill fuse`."""

from __future__ import annotations

from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import execute, say
from ensdistill.stages.graph import made_by
from ensdistill.stages.nodes.given import FUSE


@click.command()
@options.stage
def command(config: Path, dry_run: bool, upstream: bool, rehash: bool, as_json: bool) -> None:
    """Fuse the teachers' label maps into pseudo-labels.

    `fusion.method` says how: by the label model, or as in the paper each class from the teacher
    that the policy chose for it, or by majority. For `student.pixel_weights` it also says of each
    fused label how sure the label model is of it.

    \b
    Example:
      ensdistill fuse --upstream
    """
    done = execute(
        config,
        lambda _, nodes, __: made_by(nodes, FUSE),
        dry_run=dry_run,
        upstream=upstream,
        rehash=rehash,
    )
    say(done, as_json=as_json)
    if not dry_run and not as_json:
        render.results.fused(done.decisions)
