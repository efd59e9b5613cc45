"""`ensdistill explain`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.screen import echo_json


@click.command()
@click.argument("node")
@options.config
@options.rehash
@options.as_json
def command(node: str, config: Path, rehash: bool, as_json: bool) -> None:
    """Say why NODE stands as it does: each field that changed, each image, what a run would do.

    NODE is an id as `status` prints it.

    \b
    Example:
      ensdistill explain 'infer[dacs]'
      ensdistill explain fusion --json
    """
    from difflib import get_close_matches

    from ensdistill.pipeline.errors import ConfigError
    from ensdistill.pipeline.explain import below, estimate, item_changes
    from ensdistill.pipeline.plan import plan
    from ensdistill.stages.graph import build, build_all, load

    experiment = load(config, rehash=rehash)
    snapshot = experiment.workspace.scan()
    decisions = plan(build(experiment, ablation=True), snapshot)
    if node not in decisions:  # one that is made only for who asks
        decisions = plan(build_all(experiment), snapshot)
    experiment.files.save()
    if node not in decisions:
        near = get_close_matches(node, decisions, n=1, cutoff=0.3) or list(decisions)
        raise ConfigError(f"no node is called {node!r}; did you mean {near[0]!r}?")
    decision = decisions[node]
    previous = decision.previous
    cost = estimate(decision, decisions, experiment.workspace, snapshot)
    images = item_changes(decision, previous)
    if as_json:
        found = render.engine.decision_json(decision) | {
            "called": {} if decision.work is None else decision.work.called,
            "previous": str(previous.path) if previous else None,
            "items": images and asdict(images),
            "would": cost and asdict(cost),
            "needs": {n: decisions[n].state.value for n in decision.node.needs},
            "below": below(node, decisions),
        }
        echo_json(found)
        return
    render.engine.explanation(decision, decisions, images, cost, below(node, decisions), config)
