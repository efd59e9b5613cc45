"""`ensdistill check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ensdistill.cli import options, render
from ensdistill.cli.progress import display
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.figures import duration, some
from ensdistill.pipeline.plan import plan
from ensdistill.stages.graph import build


@click.command()
@options.config
@options.rehash
@options.as_json
def command(config: Path, rehash: bool, as_json: bool) -> None:
    """Find everything that is wrong with the experiment file and its inputs.

    Reads every image and every prediction once, lets each network see a few images, and takes a
    step with each network that is to be trained (what it found is remembered by content). Ground
    truth is listed, not opened.

    \b
    Example:
      ensdistill check -c experiment.yaml
    """
    from ensdistill.stages.checks import files
    from ensdistill.stages.checks.settings import sentences, unread
    from ensdistill.stages.graph import load

    experiment = load(config, rehash=rehash)
    with display() as shown:
        found = files.check(experiment, list(experiment.config.target), shown.bar("check"))
        # not before: these load torch
        from ensdistill.stages.checks import ahead
        from ensdistill.stages.checks.trainings import sections

        decisions = plan(build(experiment), experiment.workspace.scan())
        coming = ahead.look_ahead(
            experiment,
            decisions,
            decisions.keys(),
            shown.bar,
            trainings=sections(experiment),
            apart=False,
        )
    experiment.files.save()
    warnings = files.warnings_of(found) + ahead.warnings_of(coming)
    for name, teacher in found["teachers"].items():
        teacher |= {"trial": coming["trials"].get(name), "together": coming["together"].get(name)}
    found |= {key: coming[key] for key in ("trainings", "seconds")}
    found |= {"unread": unread(experiment), "warnings": warnings}
    if as_json:
        echo_json(found)
        return
    for name, split in found["splits"].items():
        sizes = ", ".join(f"{h}x{w}" for h, w in split["sizes"][:4])
        more = f" and {len(split['sizes']) - 4} more sizes" if len(split["sizes"]) > 4 else ""
        labelled = ", labelled (ground truth was not opened)" if split["labelled"] else ""
        echo(f"{name}: {split['images']} images of {sizes}{more}{labelled}")
    for name, teacher in found["teachers"].items():
        _teacher(name, teacher)
    for section, training in found["trainings"].items():
        _training(section, training)
    for text in sentences(found["unread"]):
        echo(text)
    took = ahead.told(found, experiment.config.runtime.jobs)
    if took is not None:
        echo(took)
    for text in warnings:
        echo(f"warning: {text}")
    look = f"{len(warnings)} warnings" if len(warnings) > 1 else "the warning"
    closed = any(split["labelled"] for split in found["splits"].values())
    but = " but the ground truth, which was not opened," if closed else ""
    echo(f"all inputs{but} are as declared{f', but look at {look}' if warnings else ''}")


def _teacher(name: str, teacher: Mapping[str, Any]) -> None:
    echo(f"{name}: {teacher['kind']}")
    moved = [f"{own} -> {goal or 255}" for own, goal in teacher["map"].items()]
    if moved:
        echo(f"  {', '.join(moved)}")
    if teacher["never_labels"]:
        echo(f"  never labels {', '.join(teacher['never_labels'])}")
    for split, files in teacher["labels"].items():
        shares = render.results.shares(files["shares"])
        echo(f"  {split}: {shares}; {100 * files['coverage']:.1f} % of the pixels labelled")
        if files["absent"]:
            echo(f"    in none of its {files['files']} files: {some(files['absent'])}")
    if teacher["trial"] is not None:
        shares = render.results.shares(teacher["trial"]["labels"])
        echo(f"  {Path(teacher['trial']['image']).name}: {shares}")
        shown = f"{100 * teacher['trial']['coverage']:.1f} % of the pixels labelled"
        echo(f"  of all that it was shown: {shown}")
        if teacher["trial"]["taken"] is not None:
            echo(f"  takes {teacher['trial']['taken']}")
    if teacher["together"] is not None and teacher["together"]["agrees"]:
        echo(f"  {render.results.agrees(teacher['together'])}")


def _training(section: str, training: Mapping[str, Any]) -> None:
    body, head, seconds = (training[key] for key in ("body", "head", "seconds_per_step"))
    each = ", for each teacher" if section == "probe" else ""
    each += f" and each of {training['folds']} folds" if training["folds"] > 1 else ""
    most = "at most " if training["settles"] else ""
    rates = f"body at {body['lr']:g}, head ({', '.join(head['names'])}, {head['tensors']} tensors)"
    rates += f" at {head['lr']:g}"
    if not head["tensors"]:
        rates = f"all at {body['lr']:g}, as none of them is in the head (`head:` says which are)"
    echo(
        f"{section}: {training['network']}, {_many(training['weights'])} weights in "
        f"{training['tensors']} tensors; {rates}"
    )
    step = f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"
    echo(
        f"  a step takes {step} s here, on {training['device']}, {most}{training['steps']} steps "
        f"about {duration(seconds * training['steps'])}{each}"
    )
    if (features := training["features"]) is not None and features["images"]:
        echo(
            f"  the features of {features['images']} images take {features['bytes'] / 1e9:.3g} GB "
            f"in {features['folder']}, and about {duration(features['seconds'])}, once"
        )
    if training["frozen"]:
        echo(f"  not trained: {', '.join(training['frozen'])}")
    own = "the weights it is built with (random, unless its code loads some)"
    begins = training["init"] or own
    echo(f"  begins with {begins}")


def _many(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
