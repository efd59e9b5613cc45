"""`ensdistill status`."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.screen import echo


@click.command()
@options.config
@options.rehash
@options.as_json
@click.option("--check", "check_fresh", is_flag=True, help="Exit with 3 unless all is fresh.")
@click.option("-v", "--verbose", is_flag=True, help="Show how, where and when each was made.")
def command(config: Path, rehash: bool, as_json: bool, check_fresh: bool, verbose: bool) -> None:
    """Show for every node whether it is fresh, stale, partial, missing or waiting, and why.

    `waiting` means that what the node is made from is known only after an upstream node ran: a
    policy that comes out the same leaves fusion and student fresh. An ablation that was begun
    stands here too, but --check does not ask for it.

    \b
    Example:
      ensdistill status --check && echo everything is there
    """
    from ensdistill.pipeline.plan import State, plan
    from ensdistill.stages.checks.settings import sentences, unread
    from ensdistill.stages.graph import build, load

    gc.disable()  # a hundred thousand objects that all stay: no garbage is worth looking for
    try:
        experiment = load(config, rehash=rehash)
        workspace = experiment.workspace
        begun = list(workspace.folders("ablation"))
        nodes = build(experiment, ablation=bool(begun))
        shown = [n for n in nodes if n.stage != "ablation" or any(map(n.names, begun))]
        found = plan(shown, workspace.scan())
    finally:
        gc.freeze()
        gc.enable()
    experiment.files.save()
    render.engine.decisions(found, as_json=as_json, verbose=verbose)
    if not as_json:
        for text in sentences(unread(experiment)):
            echo(text)
    needed = [d for d in found.values() if d.node.stage != "ablation"]
    if check_fresh and any(d.state is not State.FRESH for d in needed):
        raise click.exceptions.Exit(3)
