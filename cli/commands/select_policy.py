"""`ensdistill select-policy`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import execute, report_json, say
from ensdistill.pipeline.node import Node
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.experiment import Experiment


@click.command()
@options.stage
def command(config: Path, dry_run: bool, upstream: bool, rehash: bool, as_json: bool) -> None:
    """Train a small probe on each teacher's labels and choose one teacher for every class.

    Prints the policy with the probes' mean certainty; no ground truth is used.

    \b
    Example:
      ensdistill select-policy --upstream
    """

    def choose(_: Experiment, nodes: Sequence[Node]) -> Sequence[str]:
        needs = next(node.needs for node in nodes if node.id == "policy")
        return [*(n.replace("certainty", "probe", 1) for n in needs), *needs, "policy"]

    _, report, decisions = execute(
        config, choose, dry_run=dry_run, upstream=upstream, rehash=rehash
    )
    if dry_run:
        say(report, decisions, dry_run=True, as_json=as_json)
        return
    chosen, certainty = policy_results(decisions)
    if as_json:
        found = {"policy": chosen, "certainty": certainty, **report_json(report)}
        click.echo(json.dumps(found, indent=1))
        return
    render.report(report)
    render.policy(chosen, certainty)


def policy_results(
    decisions: Mapping[str, Decision],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the result of the policy node and, by teacher, of the certainty nodes."""
    results = {n: d.artifact.manifest.result for n, d in decisions.items() if d.artifact}
    certainty = {
        node.removeprefix("certainty[").removesuffix("]"): result
        for node, result in results.items()
        if node.startswith("certainty[")
    }
    return results["policy"], certainty
