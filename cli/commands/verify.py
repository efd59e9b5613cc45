"""`ensdistill verify`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import announced
from ensdistill.cli.progress import display
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.errors import NotReadyError, grouped
from ensdistill.pipeline.figures import size
from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.repair import Repair, made_from, repair
from ensdistill.pipeline.verify import Damage, damages
from ensdistill.stages.graph import build_all, load


@click.command()
@options.config
@click.option("--repair", "mend", is_flag=True, help="Make again what is damaged, and only that.")
@options.as_json
def command(config: Path, mend: bool, as_json: bool) -> None:
    """Read every published artifact of the workspace and compare it with what was written.

    Names the damaged field, file or image, and exits with 1 if there is any. With --repair a
    damaged artifact is unpublished, and its damaged images are computed again; a damaged training
    is trained again.

    \b
    Example:
      ensdistill verify
      ensdistill verify --repair
    """
    experiment = load(config)
    workspace = experiment.workspace
    if not workspace.root.exists():
        raise NotReadyError(f"{workspace.root}: there is no such workspace yet")
    snapshot = workspace.scan()
    with display() as shown:
        folders = list(workspace.folders())
        drafts = set(snapshot.drafts.values())
        bar = shown.bar("verify")
        total = sum(a.manifest.disk_bytes for a in snapshot.published.values())
        bar.start(total, 0, "bytes")
        damaged = {f: found for f in folders if (found := damages(f, bar.advance, workspace.forms))}
        count = len([f for f in folders if f not in drafts or f in damaged])
        outcome = None
        if mend and damaged:
            graph = partial(build_all, experiment)
            # no ground truth is opened but what damaged artifacts were made from
            nodes = graph(opens=made_from(plan(graph(), snapshot), damaged))
            outcome = repair(nodes, workspace, damaged, announced(shown), experiment.base)
            experiment.files.save()
    if as_json:
        echo_json(_json(count, damaged, outcome))
    else:
        each = [damage for found in damaged.values() for damage in found]
        lines = grouped((_cause(damage), str(damage)) for damage in each)
        for line in lines:
            echo(line)
        text = f"{len(each)} damages in {len(damaged)}" if each else "no damage in any"
        more = "; --json names each" if len(lines) < len(each) else ""
        echo(f"{text} of {count} artifacts, {size(total)} read{more}")
        if outcome is not None:
            render.engine.repaired(outcome)
        elif damaged:
            echo("`ensdistill verify --repair` makes it good")
    if damaged if outcome is None else outcome.left:
        raise click.exceptions.Exit(1)


def _cause(damage: Damage) -> tuple[object, ...]:
    """Return what the damage of many images has in common; a field or file of its own has none."""
    file = None if damage.item else damage.file
    return damage.folder, file, damage.field, re.sub(r"\d+", "", damage.reason)


def _json(
    artifacts: int, damaged: Mapping[Path, list[Damage]], outcome: Repair | None
) -> dict[str, Any]:
    return {
        "artifacts": artifacts,
        "damages": [
            asdict(damage) | {"folder": str(folder)}
            for folder, found in damaged.items()
            for damage in found
        ],
        "repair": outcome
        and {
            "ran": [asdict(ran) for ran in outcome.ran],
            "different": outcome.different,
            "left": {str(folder): why for folder, why in outcome.left.items()},
        },
    }
