"""`ensdistill ablate`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ensdistill.cli import options, render
from ensdistill.cli.commands.evaluate import pick_split
from ensdistill.cli.execute import Look, execute, say, teachers_named
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline import atomic
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.node import Node
from ensdistill.pipeline.plan import State
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.graph import probe_chains, uncovered
from ensdistill.stages.nodes.ablation.compositions import MOST
from ensdistill.stages.nodes.ablation.plan import ablation_id
from ensdistill.stages.nodes.infer.plan import infer_id
from ensdistill.stages.nodes.noisy.plan import LEVELS, called, labels_id
from ensdistill.stages.nodes.truth.plan import truth_id
from ensdistill.stages.reading.noise import write_noise
from ensdistill.stages.reading.results import file_of, write_ablation


@click.command()
@click.option("--split", help="The labelled split; needed where there are several.")
@click.option(
    "--noise",
    metavar="TEACHER",
    help="Put noise into this teacher's labels instead, and train a probe on each level of it.",
)
@options.stage
def command(split: str | None, noise: str | None, asked: options.Asked) -> None:
    """Say which teachers help, and what bad ones cost, by the ground truth of a labelled split.

    The label model and majority voting fuse the split's label maps by every composition of at
    least three teachers, and by all teachers with up to three bad ones added: a copy of the first
    teacher with 40 % of its segments relabelled, one that sees the most frequent class everywhere,
    and a copy of the worst teacher. Of four teachers or more it says what each gives: the score of
    all, less that of all others; negative where it costs. No network is trained. With T teachers
    there are about 2 to the power of T compositions, each kept as soon as a few of them are done:
    one more teacher asks only for those with it.

    Tables and a chart are also kept as ablation.json and ablation.png in the workspace.

    With --noise it says, without ground truth, whether the certainty of a probe falls as labels get
    worse, on which `policy: certainty` relies: 5, 10, 20, 40 and 60 % of the segments of TEACHER's
    labels get another class, a probe is trained on each, and how sure it is stands beside that of
    the teacher's own. This is kept as noise.json and noise.png.

    \b
    Example:
      ensdistill ablate --split val --upstream
      ensdistill ablate --noise espnet
    """
    if noise is not None:
        if split is not None:
            raise click.UsageError("--noise is about the training images, and takes no --split")
        _noise(noise, asked)
        return
    done = execute(
        asked,
        lambda exp, *_: _targets(exp, _pick(exp, split)),
        splits=lambda exp: (TRAIN, _pick(exp, split)),
        opens=("truth",),
        ablation=True,
    )
    if asked.dry_run:
        say(done, as_json=asked.as_json)
        return

    from ensdistill.cli import charts

    split = pick_split(done.experiment, split)
    found = write_ablation(done.experiment, split, done.decisions)
    chart = charts.png(charts.ablation(found))
    atomic.update_bytes(file_of(done.experiment, split, "ablation", "png"), chart)
    if asked.as_json:
        echo_json(found)
    else:
        render.engine.report(done.report)
        render.results.ablation(found)


def _noise(teacher: str, asked: options.Asked) -> None:
    """Say what noise in a teacher's labels does to the certainty of a probe."""

    def choose(experiment: Experiment, nodes: Sequence[Node], _: Look) -> Sequence[str]:
        _require_noisy(experiment, teacher)
        chains = probe_chains(nodes)
        maps = [labels_id(teacher, level) for level in LEVELS if level]
        return [*maps, *(n for level in LEVELS for n in chains[called(teacher, level)])]

    def splits(experiment: Experiment) -> Sequence[str]:
        _require_noisy(experiment, teacher)
        return (TRAIN,)

    done = execute(asked, choose, splits=splits, noise=[teacher])
    if asked.dry_run:
        say(done, as_json=asked.as_json)
        todo = [d for d in done.decisions.values() if d.state is not State.FRESH]
        probes = sum(d.node.stage == "probe" for d in todo)
        if probes and not asked.as_json:
            echo(f"would train {probes} probes of up to {done.experiment.config.probe.steps} steps")
        return

    from ensdistill.cli import charts

    found = write_noise(done.experiment, teacher, done.decisions)
    atomic.update_bytes(
        done.experiment.workspace.root / "noise.png", charts.png(charts.noise(found))
    )
    if asked.as_json:
        echo_json(found)
    else:
        render.engine.report(done.report)
        render.results.noise(found)


def _require_noisy(experiment: Experiment, teacher: str) -> None:
    """Refuse a teacher that there is none of, and labels that cannot become another."""
    teachers_named(experiment, [teacher])
    if len(experiment.classes) == 1:
        raise ConfigError(
            f"{experiment.path}: there is one class, and noise gives segments another; expected "
            "two classes at least"
        )


def _targets(experiment: Experiment, split: str) -> list[str]:
    """Return the nodes that only this command and `evaluate` need."""
    maps = [infer_id(t.name, split) for t in experiment.teachers]
    return [truth_id(split), *maps, ablation_id(split)]


def _pick(experiment: Experiment, split: str | None) -> str:
    """Return the split, if all teachers label it and they are not too many."""
    picked = pick_split(experiment, split)
    teachers = len(experiment.teachers)
    if teachers > MOST:
        raise ConfigError(
            f"{experiment.path}: {teachers} teachers have {2**teachers:,} compositions; at most "
            f"{MOST} can be compared: give another experiment file (-c) with some of them and the "
            "same workspace, where their label maps are reused"
        )
    without = uncovered(experiment, picked)
    if without:
        raise ConfigError(
            f"{experiment.path}: without label maps on {picked}: {', '.join(without)}; teachers "
            "can be compared only on a split that all of them label"
        )
    return picked
