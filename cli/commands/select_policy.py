"""`ensdistill select-policy`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import execute, report_json, say
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.node import Node
from ensdistill.stages import results
from ensdistill.stages.experiment import Experiment
from ensdistill.stages.graph import policy_ids


@click.command()
@options.stage
def command(config: Path, dry_run: bool, upstream: bool, rehash: bool, as_json: bool) -> None:
    """Find out, without ground truth, which teacher is to be trusted with which class.

    For the fusion `label-model` it fits that model to all teachers' labels. For `channel`, the
    paper's, it trains a small probe on each teacher's labels and gives each class to the teacher
    whose probe is most certain of it.

    \b
    Example:
      ensdistill select-policy --upstream
    """

    def choose(_: Experiment, nodes: Sequence[Node]) -> Sequence[str]:
        wanted = policy_ids(nodes)
        if not wanted:
            raise ConfigError(f"{config}: fusion.method is majority, which needs no policy")
        return wanted

    experiment, report, decisions = execute(
        config, choose, dry_run=dry_run, upstream=upstream, rehash=rehash
    )
    if dry_run:
        say(experiment, report, decisions, dry_run=True, as_json=as_json)
        return
    chosen, certainty = results.policy(decisions), results.certainty(experiment, decisions)
    reliability = results.reliability(experiment, decisions)
    if as_json:
        found = {"policy": chosen, "certainty": certainty, "reliability": reliability}
        found |= report_json(report)
        click.echo(json.dumps(found, indent=1))
        return
    render.report(report)
    render.policy(chosen, certainty)
    render.reliability(reliability)
