"""`ensdistill check`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ensdistill.cli import options
from ensdistill.cli.progress import display


@click.command()
@options.config
@options.rehash
@options.as_json
def command(config: Path, rehash: bool, as_json: bool) -> None:
    """Find everything that is wrong with the experiment file and its inputs.

    Reads every image and every prediction once (what it found is remembered by content). Ground
    truth is listed, not opened.

    \b
    Example:
      ensdistill check -c experiment.yaml
    """
    from ensdistill.stages.check import check
    from ensdistill.stages.experiment import load

    experiment = load(config, rehash=rehash)
    with display() as shown:
        found = check(experiment, list(experiment.config.target), shown.bar("check"))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, split in found["splits"].items():
        sizes = ", ".join(f"{h}x{w}" for h, w in split["sizes"][:4])
        more = f" and {len(split['sizes']) - 4} more sizes" if len(split["sizes"]) > 4 else ""
        labelled = ", labelled" if split["labelled"] else ""
        click.echo(f"{name}: {split['images']} images of {sizes}{more}{labelled}")
    for name, teacher in found["teachers"].items():
        click.echo(f"{name}: {teacher['kind']}")
        moved = [f"{own} -> {goal or 255}" for own, goal in teacher["map"].items()]
        if moved:
            click.echo(f"  {', '.join(moved)}")
        if teacher["never_labels"]:
            click.echo(f"  never labels {', '.join(teacher['never_labels'])}")
    click.echo("all inputs are as declared")
