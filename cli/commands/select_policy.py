"""`ensdistill select-policy`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import Look, execute, report_json, say, teachers_named
from ensdistill.cli.screen import echo_json
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.node import Node
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.fusions import CHANNEL
from ensdistill.stages.graph import made_by, probe_chains
from ensdistill.stages.nodes.given import SELECT_POLICY
from ensdistill.stages.reading import results


@click.command()
@click.argument("names", nargs=-1)
@options.stage
def command(names: tuple[str, ...], asked: options.Asked) -> None:
    """Find out, without ground truth, which teacher is to be trusted with which class.

    For the fusion `label-model` it fits that model to all teachers' labels. For `channel`, the
    paper's, it trains a small probe on each teacher's labels and gives each class to the teacher
    whose probe is most certain of it. With NAMES of teachers only their probes are made: a task of
    a cluster array can so train one.

    \b
    Example:
      ensdistill select-policy --upstream
      ensdistill select-policy $(sed -n ${SLURM_ARRAY_TASK_ID}p teachers.txt)
    """

    def choose(experiment: Experiment, nodes: Sequence[Node], _: Look) -> Sequence[str]:
        if names:
            chains = probe_chains(nodes)
            teachers = teachers_named(experiment, names)
            if not chains:
                raise ConfigError(
                    f"{asked.config}: no teacher has a probe of its own, since these are for "
                    f"`fusion: {{method: {CHANNEL.name}}}` with `policy: "
                    "{strategy: certainty}`; run `ensdistill select-policy` without names"
                )
            return [node_id for t in teachers for node_id in chains[t]]
        wanted = made_by(nodes, SELECT_POLICY)
        if not wanted:
            own = experiment.config.fusion.method
            raise ConfigError(f"{asked.config}: fusion.method is {own}, which needs no policy")
        return wanted

    experiment, report, decisions, _ = done = execute(asked, choose)
    if asked.dry_run or names:
        say(done, as_json=asked.as_json)
        return
    found = results.standing(experiment, decisions)
    if asked.as_json:
        echo_json(found.to_json() | report_json(report))
        return
    render.engine.report(report)
    render.results.standing(found)
