"""`ensdistill demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ensdistill.cli import options, render
from ensdistill.cli.execute import execute
from ensdistill.cli.progress import display
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline import atomic
from ensdistill.pipeline.figures import duration
from ensdistill.pipeline.opening import real_path
from ensdistill.pipeline.plan import Decision
from ensdistill.stages.graph import evaluation_ids
from ensdistill.stages.reading import results

SPLIT = "val"


@click.command()
@options.output(
    "The folder to work in; a second run there does only what is missing.",
    click.Path(file_okay=False, path_type=Path),
    default=Path("ensdistill-demo"),
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="World.")
@options.overwrite
@options.as_json
def command(output: Path, seed: int, overwrite: bool, as_json: bool) -> None:
    """Draw five small cities, train four teachers, and run the whole pipeline on the fifth city.

    An experiment.yaml of an earlier demo that was edited is kept as experiment.yaml.old.

    Each teacher is a small network trained on the ground truth of its own city, which is faithful
    for some classes and not for others. The target's labels are opened for the last table alone.

    \b
    Example:
      ensdistill demo -o /tmp/demo
    """
    from ensdistill.stages.demo import experiments
    from ensdistill.stages.demo.styles import SOURCES, TARGET

    begin = time.perf_counter()
    out = real_path(output)
    experiments.require_free(out, overwrite)
    with display() as shown:

        def bar(decision: Decision) -> Any:
            shown.say(decision.node.id)
            return shown.bar(decision.node.id)

        report, cities = experiments.draw(out, seed, bar)
        teachers = {}
        for name in SOURCES:
            trained, teachers[name] = experiments.train_teacher(out, name, cities[name], seed, bar)
            report.ran += trained.ran
    experiment_file = experiments.target_experiment(out, cities[TARGET.name], teachers, seed)
    experiment, ran, decisions, _ = execute(
        options.Asked(experiment_file, dry_run=False, upstream=True, rehash=False, as_json=as_json),
        lambda _, nodes, __: ["student", *evaluation_ids(nodes, SPLIT)],
        splits=lambda exp: tuple(exp.config.target),
        opens=("truth",),
        all_fusions=True,
    )
    report.ran += ran.ran
    found = results.write_results(experiment, SPLIT, decisions, all_fusions=True)
    atomic.write_json(out / "results.json", found, indent=1)
    if as_json:
        echo_json(found)
        return
    render.results.standing(results.standing(experiment, decisions))
    echo()
    render.results.scores(found)
    seconds = time.perf_counter() - begin
    if report.ran:
        echo(f"{len(report.ran)} steps in {duration(seconds)}; results in {out / 'results.json'}")
    else:
        echo(f"nothing to do: all was made before ({out}, {duration(seconds)})")
    echo(f"go on with it: ensdistill status -c {experiment_file}")
