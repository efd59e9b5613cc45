"""`ensdistill check`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ensdistill.cli import options
from ensdistill.cli.progress import display

_SHOWN = 6  # classes of an image


@click.command()
@options.config
@options.rehash
@options.as_json
def command(config: Path, rehash: bool, as_json: bool) -> None:
    """Find everything that is wrong with the experiment file and its inputs.

    Reads every image and every prediction once, and lets each network see one image (what it found
    is remembered by content). Ground truth is listed, not opened.

    \b
    Example:
      ensdistill check -c experiment.yaml
    """
    from ensdistill.stages.checks.files import check
    from ensdistill.stages.checks.networks import try_networks
    from ensdistill.stages.experiment import load

    experiment = load(config, rehash=rehash)
    with display() as shown:
        found = check(experiment, list(experiment.config.target), shown.bar("check"))
        for name, trial in try_networks(experiment, shown.bar("check")).items():
            found["teachers"][name]["trial"] = trial
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
        if "trial" in teacher:
            shares = [f"{c} {100 * s:.0f} %" for c, s in teacher["trial"]["labels"].items()]
            more = f" and {len(shares) - _SHOWN} more" if len(shares) > _SHOWN else ""
            image = Path(teacher["trial"]["image"]).name
            click.echo(f"  {image}: {', '.join(shares[:_SHOWN])}{more}")
            if teacher["trial"]["taken"] is not None:
                click.echo(f"  takes {teacher['trial']['taken']}")
            for warning in teacher["trial"]["warnings"]:
                click.echo(f"  warning: {warning}")
    click.echo("all inputs are as declared")
