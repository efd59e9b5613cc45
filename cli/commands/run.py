"""`ensdistill run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import Look, execute, report_json, say
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.node import Node
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.graph import evaluation_ids, kept_ids
from ensdistill.stages.reading import results


@click.command()
@options.config
@options.dry_run
@click.option("--no-evaluate", is_flag=True, help="Leave labelled splits alone.")
@options.rehash
@options.as_json
def command(config: Path, dry_run: bool, no_evaluate: bool, rehash: bool, as_json: bool) -> None:
    """Make everything that is missing or stale, up to the student; then evaluate.

    \b
    Example:
      ensdistill run --dry-run
      ensdistill run
    """

    def splits(experiment: Experiment) -> Sequence[str]:
        return (TRAIN,) if no_evaluate else (TRAIN, *experiment.labelled)

    def choose(experiment: Experiment, nodes: Sequence[Node], _: Look) -> Sequence[str]:
        evaluated = [n for s in splits(experiment)[1:] for n in evaluation_ids(nodes, s)]
        kept = [n for t in experiment.teachers for n in kept_ids(t)]
        return [*kept, "student", *evaluated]

    experiment, report, decisions, _ = done = execute(
        options.Asked(config, dry_run, upstream=True, rehash=rehash, as_json=as_json),
        choose,
        splits=splits,
        opens=("student",) if no_evaluate else ("student", "truth"),
    )
    if dry_run:
        say(done, as_json=as_json)
        return
    evaluated = splits(experiment)[1:]
    found = {s: results.write_results(experiment, s, decisions) for s in evaluated}
    if as_json:
        first = found[evaluated[0]] if evaluated else report_json(report)
        echo_json(first)
        return
    render.engine.report(report)
    if report.ran:
        render.results.fused(decisions)
        render.results.standing(results.standing(experiment, decisions))
    for scores in found.values():
        render.results.scores(scores)
    artifact = decisions["student"].artifact
    assert artifact is not None
    echo(f"student: {artifact.path}")
