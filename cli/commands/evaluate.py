"""`ensdistill evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import Look, execute, say
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import ConfigError, NotReadyError
from ensdistill.pipeline.escaping import as_utf8
from ensdistill.pipeline.node import Node
from ensdistill.pipeline.plan import makeable
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.graph import evaluation_ids
from ensdistill.stages.nodes.evaluation.plan import evaluation_id
from ensdistill.stages.reading.outputs import TABLES, Output
from ensdistill.stages.reading.results import (
    file_of,
    not_scored,
    with_confmats,
    write_results,
)
from ensdistill.stages.reading.tables import WRITERS, missing


def _tables(_: click.Context, __: click.Parameter, files: tuple[Path, ...]) -> tuple[Path, ...]:
    for file in files:
        if file.suffix not in WRITERS:
            *most, last = WRITERS
            raise click.BadParameter(f"{file}: expected a name in {', '.join(most)} or {last}")
        if not file.absolute().parent.is_dir():
            raise click.BadParameter(f"{file}: {file.parent} is no folder")
    return files


@click.command()
@click.option("--split", help="The labelled split; needed where there are several.")
@click.option(
    "--fusions",
    type=click.Choice(["own", "all"]),
    default="own",
    show_default=True,
    help="Score the experiment's own fusion, or every other method beside it.",
)
@options.output(
    "Also write the scores to FILE, as its suffix says: .csv, .md or .json (with confusion "
    "matrices). May be given several times.",
    multiple=True,
    callback=_tables,
)
@options.overwrite
@options.stage
def command(
    split: str | None,
    fusions: str,
    output: tuple[Path, ...],
    overwrite: bool,
    asked: options.Asked,
) -> None:
    """Score teachers, fusions, probes and student against ground truth, class by class.

    Each is scored if it is there: a student that is not trained yet is a line below the table, and
    --upstream trains it.

    Ground truth is opened here (and by a student told to watch a split), and decoded once: scoring
    another method later reads what is kept of it. `channel-oracle` takes
    each class from the teacher that is best at it by that ground truth: a yardstick for policies,
    not a method. It is usually, not always, the highest: conflicts can undo a choice.

    With `--fusions all` the probes that the paper's fusion needs are trained where there are none
    (`--dry-run` says so), and scored as well; the table is also kept as results-all.json in the
    workspace, and estimates.png shows class by class what was estimated of each teacher beside its
    IoU.

    mIoU is the mean over every class that is in the ground truth or in the method's own prediction,
    so that each class it only imagines counts as 0. mIoU present is the mean over the classes that
    are in the ground truth, the same for all methods.

    mIoU16 and mIoU13 are over the declared subsets (mIoU13 is what papers about SYNTHIA call
    mIoU*), each counted from the confusion matrix and never rescaled. Where the means of a row are
    over different classes, the table says over how many.

    \b
    Example:
      ensdistill evaluate --split val --json
      ensdistill evaluate --fusions all -o scores.md -o scores.csv
    """
    every = fusions == "all"
    lacking: list[dict[str, str]] = []

    def outputs(experiment: Experiment) -> list[Output]:
        return [Output(f, "evaluate", TABLES[f.suffix], overwrite, experiment) for f in output]

    def choose(experiment: Experiment, nodes: Sequence[Node], look: Look) -> Sequence[str]:
        for file in outputs(experiment):
            file.require_free()
        picked = pick_split(experiment, split)
        wanted = evaluation_ids(nodes, picked)
        if asked.upstream:
            return wanted
        found = makeable(look(), wanted)
        lacking.extend(not_scored(experiment, picked, look()))
        if evaluation_id(picked) not in found:
            raise NotReadyError(
                f"nothing can be scored on {picked} yet: {'; '.join(missing(lacking))}; or repeat "
                "this command with --upstream"
            )
        return found

    experiment, report, decisions, _ = done = execute(
        asked,
        choose,
        splits=lambda exp: (TRAIN, pick_split(exp, split)),
        opens=("student", "truth"),
        all_fusions=every,
    )
    if asked.dry_run:
        say(done, as_json=asked.as_json)
        for text in missing(lacking) if not asked.as_json else ():
            echo(text)
        return
    split = pick_split(experiment, split)
    found = write_results(experiment, split, decisions, all_fusions=every)
    if output:
        content = with_confmats(found, decisions)
        for file in outputs(experiment):
            file.write(as_utf8(WRITERS[file.path.suffix](content)))
    if every and found["estimates"]:
        from ensdistill.cli import charts

        chart = charts.png(charts.estimates(found))
        atomic.update_bytes(file_of(experiment, split, "estimates", "png"), chart)
    if asked.as_json:
        echo_json(found)
    else:
        render.engine.report(report)
        render.results.scores(found)
        render.results.estimates(found)


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
