"""`ensdistill report`."""

from __future__ import annotations

from pathlib import Path

import click

from ensdistill.cli import options
from ensdistill.cli.commands.evaluate import pick_split
from ensdistill.cli.progress import display
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.escaping import as_utf8
from ensdistill.pipeline.figures import size
from ensdistill.stages.graph import load
from ensdistill.stages.reading.outputs import PAGE, Output, write_fixed


@click.command()
@click.option("--split", help="The labelled split whose scores are shown; needed if several are.")
@options.output("The HTML file.  [default: report.html in the workspace]")
@options.overwrite
@options.as_json
@options.config
def command(
    split: str | None, output: Path | None, overwrite: bool, as_json: bool, config: Path
) -> None:
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
    if output is not None:
        file = Output(output, "report", PAGE, overwrite, experiment)
        file.require_free()

    from ensdistill.cli.page.page import page
    from ensdistill.stages.reading.report import gather

    with display() as shown, experiment.workspace.kept():
        content = as_utf8(page(gather(experiment, split, shown.bar)))
    experiment.files.save()
    if output is None:
        output = experiment.workspace.root / "report.html"
        write_fixed(output, content, PAGE)
    else:
        file.write(content)
    if as_json:
        echo_json({"file": str(output), "bytes": len(content), "split": split})
    else:
        echo(f"{output}: {size(len(content))}")
