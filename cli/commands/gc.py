"""`ensdistill gc`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.errors import ConfigError, DataError, NotReadyError
from ensdistill.pipeline.gc import clear, survey, survey_cache
from ensdistill.pipeline.opening import real_path
from ensdistill.pipeline.plan import plan
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.graph import build_all, load
from ensdistill.stages.local import FEATURES, FEATURES_MARK, PIXELS, PIXELS_MARK


@click.command()
@click.option(
    "-c",
    "--config",
    "configs",
    multiple=True,
    type=options.FILE,
    default=[options.EXPERIMENT],
    show_default="experiment.yaml",
    help="An experiment file whose artifacts stay; give every one that uses the workspace.",
)
@click.option(
    "--keep-last",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Keep this many artifacts of every node, reached or not, the latest first.",
)
@click.option("--delete", is_flag=True, help="Delete; without it nothing is touched.")
@options.as_json
def command(configs: tuple[Path, ...], keep_last: int, delete: bool, as_json: bool) -> None:
    """List the artifacts and drafts that no experiment reaches any more, and delete them.

    What an experiment file makes stays, and what it may turn out to make; so does what another
    process is working on. Deleted work has to be done again if a setting changes back. Decoded
    images and stored features that belong to no experiment go as well.

    \b
    Example:
      ensdistill gc -c gta5.yaml -c synthia.yaml
      ensdistill gc -c gta5.yaml -c synthia.yaml --delete
    """
    experiments = [load(config) for config in configs]
    roots = {real_path(e.workspace.root) for e in experiments}
    if len(roots) > 1:
        raise ConfigError(
            f"these experiments have different workspaces ({', '.join(map(str, sorted(roots)))}); "
            "clear one at a time"
        )
    workspace = experiments[0].workspace
    if not workspace.root.exists():
        raise NotReadyError(f"{workspace.root}: there is no such workspace yet")
    snapshot = workspace.scan()
    plans = [plan(build_all(e), snapshot) for e in experiments]
    wanted = {
        sha256
        for e in experiments
        if e.pixels is not None
        for split in e.config.target
        for sha256 in e.files.digests([str(p.image) for p in e.pictures(split)])
    }
    features = []
    if (workspace.root / FEATURES).exists():
        from ensdistill.stages.checks.trainings import features_of
        from ensdistill.stages.networks.features import feature_folders

        folders, needed = feature_folders(workspace.root / FEATURES), []
        try:
            for e in experiments:
                images = set(e.files.digests([str(p.image) for p in e.pictures(TRAIN)]))
                needed += [(about, images) for about in features_of(e)]
        except DataError as error:
            echo(f"features are kept, as what they are for cannot be told: {error}", err=True)
            folders = {}
        for folder, of in folders.items():
            images = set().union(*(images for about, images in needed if about == of))
            why = "are features that an experiment trains on"
            features += survey_cache(folder, FEATURES_MARK, images, why)
    for experiment in experiments:
        experiment.files.save()
    named = [path for e in experiments for path in e.named_paths()]
    say = partial(echo, err=True)
    found = survey(workspace, plans, keep_last=keep_last, named=named, say=say)
    found += survey_cache(
        workspace.root / PIXELS, PIXELS_MARK, wanted, "are images of an experiment"
    )
    found += features
    garbage = [kept for kept in found if kept.reason is None]
    outcome = clear(workspace, garbage) if delete else {}
    if as_json:
        rows = [
            asdict(k)
            | {
                "path": str(k.path),
                "files": len(k.files),
                "deleted": k in outcome and outcome[k] is None,
                "left": outcome.get(k),
            }
            for k in found
        ]
        echo_json(rows)
    else:
        render.engine.garbage(found, outcome, delete=delete)
    if any(why is not None for why in outcome.values()):
        raise click.exceptions.Exit(1)
