"""`ensdistill evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import execute, say
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.experiment import TRAIN, Experiment


@click.command()
@click.option("--split", help="The labelled split; needed where there are several.")
@options.stage
def command(
    split: str | None, config: Path, dry_run: bool, upstream: bool, rehash: bool, as_json: bool
) -> None:
    """Score teachers, fusions and student against ground truth, class by class.

    The target's ground truth is opened only here. `channel-oracle` chooses each class's teacher by
    that ground truth: an upper bound for any policy, not a method.

    \b
    Example:
      ensdistill evaluate --split val --json
    """
    experiment, report, decisions = execute(
        config,
        lambda exp, _: evaluation_nodes(exp, pick_split(exp, split)),
        dry_run=dry_run,
        upstream=upstream,
        rehash=rehash,
        splits=lambda exp: (TRAIN, pick_split(exp, split)),
        opens=("student", "evaluation"),
    )
    if dry_run:
        say(report, decisions, dry_run=True, as_json=as_json)
        return
    found = write_results(experiment, pick_split(experiment, split), decisions)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        render.report(report)
        render.scores(found)
        render.margins(found)


def pick_split(experiment: Experiment, split: str | None) -> str:
    """Return the labelled split to evaluate on."""
    labelled = experiment.labelled
    if split is None and len(labelled) == 1:
        return labelled[0]
    if split is None or split not in labelled:
        asked = "no --split was given" if split is None else f"{split!r} is none of them"
        raise ConfigError(
            f"{experiment.path}: labelled splits are {', '.join(labelled) or '(none)'}; {asked}"
        )
    return split


def evaluation_nodes(experiment: Experiment, split: str) -> Sequence[str]:
    """Return the nodes that only an evaluation needs."""
    from ensdistill.stages.graph import build

    return [n.id for n in build(experiment) if n.id.endswith(f"@{split}")]


def write_results(
    experiment: Experiment, split: str, decisions: Mapping[str, Decision]
) -> dict[str, Any]:
    """Write ``results.json`` into the workspace and return its content."""
    from ensdistill.stages.evaluation import results

    made = {n: d.artifact.manifest for n, d in decisions.items() if d.artifact is not None}
    certainty = {
        t.name: made[f"certainty[{t.name}]"].result
        for t in experiment.teachers
        if f"certainty[{t.name}]" in made
    }
    found = results(
        split,
        made[f"evaluation@{split}"].result,
        made["policy"].result if "policy" in made else {"teacher": {}, "fallback": []},
        certainty,
        {n: m.seconds for n, m in made.items()},
    )
    atomic.write_json(experiment.workspace.root / "results.json", found, indent=1)
    return found
