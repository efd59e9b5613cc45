"""`ensdistill report`."""

from __future__ import annotations

from pathlib import Path

import click

from ensdistill.cli import options
from ensdistill.cli.commands.evaluate import pick_split
from ensdistill.cli.progress import display
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.figures import size
from ensdistill.stages.experiment import load


@click.command()
@click.option("--split", help="The labelled split whose scores are shown; needed if several are.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The HTML file.  [default: report.html in the workspace]",
)
@options.as_json
@options.config
def command(split: str | None, out: Path | None, as_json: bool, config: Path) -> None:
    """Write all that is known of an experiment into one HTML file.

    The file needs no network and no other file: mail it, print it. It shows what was run with which
    data, the policy, where teachers disagree, pictures, training curves and costs; and where
    `ensdistill evaluate` was run, its scores, clearly apart. Nothing is computed but the pictures.

    \b
    Example:
      ensdistill report -o report.html
    """
    experiment = load(config)
    if split is not None or experiment.labelled:
        split = pick_split(experiment, split)
    if out is not None and not out.parent.is_dir():
        raise DataError(f"{out.parent} is no folder; make it first, or give another --out")

    from ensdistill.cli.page import page
    from ensdistill.stages.report import gather

    with display() as shown:
        content = page(gather(experiment, split, shown.bar)).encode()
    experiment.files.save()
    out = experiment.workspace.root / "report.html" if out is None else out
    atomic.update_bytes(out, content)
    if as_json:
        echo_json({"file": str(out), "bytes": len(content), "split": split})
    else:
        echo(f"{out}: {size(len(content))}")
