"""`ensdistill fuse`."""

from __future__ import annotations

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import execute, say
from ensdistill.stages.graph import made_by
from ensdistill.stages.nodes.given import FUSE


@click.command()
@options.stage
def command(asked: options.Asked) -> None:
    """Fuse the teachers' label maps into pseudo-labels.

    `fusion.method` says how: by the label model, or as in the paper each class from the teacher
    that the policy chose for it, or by majority. For `student.pixel_weights` it also says of each
    fused label how sure the label model is of it.

    \b
    Example:
      ensdistill fuse --upstream
    """
    done = execute(asked, lambda _, nodes, __: made_by(nodes, FUSE))
    say(done, as_json=asked.as_json)
    if not asked.dry_run and not asked.as_json:
        render.results.fused(done.decisions)
