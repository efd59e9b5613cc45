"""`ensdistill infer-teacher`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import execute, report_json, say, teachers_named
from ensdistill.cli.screen import echo_json
from ensdistill.pipeline.locks import Part
from ensdistill.pipeline.node import Node
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.graph import made_by
from ensdistill.stages.nodes.given import INFER


@click.command()
@click.argument("names", nargs=-1)
@options.part
@options.stage
def command(names: tuple[str, ...], part: Part | None, asked: options.Asked) -> None:
    """Write the argmax label maps of each teacher (or of those NAMED) on the target images.

    Only missing images are computed; a killed run goes on where it was. The tasks of a cluster
    array share the work with --part, in any order and at any time. At the end it says what each
    teacher's labels are, and how far the teachers agree.

    \b
    Example:
      ensdistill infer-teacher dacs cbst
      ensdistill infer-teacher --part $SLURM_ARRAY_TASK_ID/8
    """

    def choose(experiment: Experiment, nodes: Sequence[Node], *_: object) -> Sequence[str]:
        named = teachers_named(experiment, names)
        return [node_id for node_id in made_by(nodes, INFER) if node_id.of in named]

    experiment, report, decisions, _ = done = execute(asked, choose, part=part)
    if asked.dry_run or part is not None:
        say(done, as_json=asked.as_json)
        return
    if not asked.as_json:
        render.engine.report(report)
    from ensdistill.stages.checks.teachers import published

    found = published(experiment, decisions)
    if asked.as_json:
        echo_json(report_json(report) | {"teachers": found})
    else:
        render.results.teachers(found)
