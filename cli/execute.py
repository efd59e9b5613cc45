"""What every command that makes artifacts does: load, check, plan, run, say what was done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

from ensdistill.cli import render
from ensdistill.cli.options import Asked
from ensdistill.cli.progress import Bar, Display, display
from ensdistill.cli.screen import echo_json
from ensdistill.pipeline.errors import ConfigError
from ensdistill.pipeline.explain import Estimate, estimate
from ensdistill.pipeline.locks import Part
from ensdistill.pipeline.node import Node
from ensdistill.pipeline.plan import Decision, State, awaiting, closure, plan
from ensdistill.pipeline.runner import Report, run
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.graph import build, load, probe_chains
from ensdistill.stages.jobs.chains import aside
from ensdistill.stages.nodes.infer.plan import infer_id

Look = Callable[[], Mapping[str, Decision]]
Choose = Callable[[Experiment, Sequence[Node], Look], Sequence[str]]


class Done(NamedTuple):
    """What came of a command: what ran, and the plan afterwards.

    Of a dry run the `decisions` are those of what would be made, and `costs` what each would take.
    """

    experiment: Experiment
    report: Report
    decisions: Mapping[str, Decision]
    costs: Mapping[str, Estimate | None] | None


def execute(
    asked: Asked,
    choose: Choose,
    *,
    part: Part | None = None,
    splits: Callable[[Experiment], Sequence[str]] = lambda _: (TRAIN,),
    opens: Collection[str] = (),
    all_fusions: bool = False,
    ablation: bool = False,
    noise: Collection[str] = (),
) -> Done:
    """Make the nodes that `choose` returns.

    Parameters
    ----------
    asked : Asked
        Which experiment file; and whether to plan only (`dry_run`), to make what they need as well
        (`upstream`), and to ignore remembered digests (`rehash`).
    choose : callable
        From experiment, graph and what makes the plan to the ids of the nodes wanted.
    part : Part, optional
        Make this share of the images only.
    splits : callable
        From experiment to the splits whose files are checked first.
    opens : collection of str
        Stages for whose sake ground truth may be opened (see `graph.build`).
    all_fusions : bool
        Also know the nodes of every other fusion (see `graph.build`).
    ablation : bool
        Also know the ablations.
    noise : collection of str
        Teachers in whose labels noise is put (see `graph.build`).
    """
    experiment = load(asked.config, rehash=asked.rehash)
    with display() as shown:
        if not asked.dry_run:
            from ensdistill.stages.checks.files import check, warnings_of

            found = check(experiment, splits(experiment), shown.bar("check"), opens=opens)
            for text in warnings_of(found):
                shown.say(f"warning: {text}")
        nodes = build(
            experiment,
            opens=() if asked.dry_run else opens,
            all_fusions=all_fusions,
            ablation=ablation,
            noise=noise,
        )
        workspace = experiment.workspace
        snapshot = cache(workspace.scan)
        look = cache(lambda: plan(nodes, snapshot()))
        targets = choose(experiment, nodes, look)
        if asked.dry_run:
            decisions = look()
            experiment.files.save()
            wanted = closure(decisions, targets) if asked.upstream else set(targets)
            planned = {n: awaiting(d, wanted) for n, d in decisions.items() if n in wanted}
            costs = {
                n: estimate(d, decisions, workspace, snapshot(), part) for n, d in planned.items()
            }
            return Done(experiment, Report(), planned, costs)

        bar = announced(shown)
        try:
            if part is None:
                _look_ahead(experiment, look(), targets, shown, upstream=asked.upstream)
            report = run(
                nodes,
                workspace,
                targets,
                bar,
                upstream=asked.upstream,
                part=part,
                about=experiment.base,
                aside=aside(experiment, list(probe_chains(nodes).values()), bar),
                decisions=look(),
            )
        finally:
            experiment.files.save()
        return Done(experiment, report, report.decisions, None)


def _look_ahead(
    experiment: Experiment,
    decisions: Mapping[str, Decision],
    targets: Sequence[str],
    shown: Display,
    *,
    upstream: bool,
) -> None:
    """Try what is going to be needed later, and say how long all of it takes.

    Not for a single node, which finds out at once whatever is wrong with it.
    """
    wanted = closure(decisions, targets) if upstream else {*targets}
    todo = {n for n, d in decisions.items() if n in wanted and d.state is not State.FRESH}
    trainings = any(decisions[n].node.stage in ("probe", "student") for n in todo)
    networks = {infer_id(t.name) for t in experiment.teachers if t.network is not None}
    if len(todo) < 2 or not (trainings or networks & todo):
        return
    from ensdistill.stages.checks import ahead

    found = ahead.look_ahead(experiment, decisions, wanted, shown.bar)
    for text in ahead.warnings_of(found):
        shown.say(f"warning: {text}")
    took = ahead.told(found, experiment.config.runtime.jobs)
    if took is not None:
        shown.say(took)


def teachers_named(experiment: Experiment, names: Sequence[str]) -> list[str]:
    """Return the teachers that a command was given; all where it was given none.

    Raises
    ------
    ConfigError
        If there is no teacher of a name.
    """
    known = [t.name for t in experiment.teachers]
    unknown = [n for n in names if n not in known]
    if unknown:
        raise ConfigError(f"no teacher is named {unknown[0]!r}; there are {', '.join(known)}")
    return list(names) or known


def announced(shown: Display) -> Callable[[Decision], Bar]:
    """Return what gives each node its bar, after saying which one begins."""

    def bar(decision: Decision) -> Bar:
        found = f" ({decision.reason})" if decision.state is State.PARTIAL else ""
        shown.say(f"{decision.node.id}{found}")
        return shown.bar(decision.node.id)

    return bar


def say(done: Done, *, as_json: bool) -> None:
    """Print what was done, or in a dry run what would be."""
    if done.costs is not None:
        render.engine.planned(done.decisions, done.costs, as_json=as_json)
    elif as_json:
        echo_json(report_json(done.report))
    else:
        render.engine.report(done.report)


def report_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON-able data."""
    return {
        "ran": [asdict(ran) | {"seconds": round(ran.seconds, 3)} for ran in report.ran],
        "fresh": report.fresh,
    }
