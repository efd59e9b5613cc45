"""The whole graph on one screen: which stage is made from what.

By the label model: all `infer[t]` -> `label-model` -> `fusion` -> `student` (a labelled split has a
label model of its own, unless `fit: train`). As in the paper: `infer[t]` -> `probe[t]` ->
`certainty[t]` for each teacher t, then `policy` -> `fusion` -> `student`. A student that weighs its
pixels also needs `pixel-weights`, of all `infer[t]`, `label-model` and `fusion`. For each labelled
split the same maps again, its `truth`, the oracle and `evaluation`; with all fusions also
`evaluation[all]`, of the other methods' maps and those of the probes. With noise also `infer[t]` ->
`noisy[t~20]` -> `probe[t~20]` -> `certainty[t~20]`, and so at each level.

Big upstreams (label maps, networks) enter by fingerprint, small ones (certainty, policy) by
content. So a new teacher that wins no class leaves fusion and student fresh, and a renamed one
reruns no network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from ensdistill.pipeline.manifest import Form
from ensdistill.pipeline.node import Command, Node, NodeId
from ensdistill.stages.experiment import experiment as experiments
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import Teacher
from ensdistill.stages.nodes.ablation import plan as ablating
from ensdistill.stages.nodes.ablation.compositions import MOST
from ensdistill.stages.nodes.certainty import plan as certainty
from ensdistill.stages.nodes.confidence import plan as confidence
from ensdistill.stages.nodes.evaluation import plan as evaluation
from ensdistill.stages.nodes.fusion import plan as fusion
from ensdistill.stages.nodes.given import ALL_FUSIONS, FUSE, Given
from ensdistill.stages.nodes.infer import plan as infer
from ensdistill.stages.nodes.label_model import plan as label_model
from ensdistill.stages.nodes.noisy import plan as noisy
from ensdistill.stages.nodes.pixel_weights import plan as pixel_weights
from ensdistill.stages.nodes.policy import plan as policy
from ensdistill.stages.nodes.probe import plan as probe
from ensdistill.stages.nodes.soft import plan as soft
from ensdistill.stages.nodes.stage import Stage
from ensdistill.stages.nodes.student import plan as student
from ensdistill.stages.nodes.truth import plan as truth

ROOMS: Final = (
    infer,
    noisy,
    confidence,
    soft,
    probe,
    certainty,
    label_model,
    policy,
    fusion,
    pixel_weights,
    student,
    truth,
    evaluation,
    ablating,
)
STAGES: Final[tuple[Stage, ...]] = tuple(room.STAGE for room in ROOMS)
VERSIONS: Final[Mapping[str, int]] = {stage.name: stage.version for stage in STAGES}
FORMS: Final[Mapping[str, Form]] = {stage.name: stage.form for stage in STAGES}


def load(path: Path, *, rehash: bool = False) -> Experiment:
    """Read an experiment file, whose workspace knows what each stage publishes.

    Raises
    ------
    ConfigError
        With all problems found.
    """
    return experiments.read(path, FORMS, rehash=rehash)


def build(
    experiment: Experiment,
    *,
    opens: Collection[str] = (),
    all_fusions: bool = False,
    ablation: bool = False,
    noise: Collection[str] = (),
) -> list[Node]:
    """Return the graph of an experiment, each node after all that it needs.

    Parameters
    ----------
    experiment : Experiment
        Read and checked.
    opens : collection of str
        Stages for whose sake ground truth may be read, to hash it: ``"truth"`` and, for a student
        that watches a split, ``"student"``. Otherwise only remembered digests are used, so that
        planning and `status` never open a label file.
    all_fusions : bool
        Also fuse labelled splits by every other method, with what these need, and score it.
    ablation : bool
        Also ask of labelled splits that all teachers label which teachers help, unless they are
        too many.
    noise : collection of str
        Also ask of these teachers what noise in their labels does to the certainty of a probe.
    """
    given, config = Given(experiment, opens), experiment.config
    names, teachers, strategy = given.names, experiment.teachers, config.policy.strategy
    by_policy = all_fusions or given.method.policy is not None
    by_model = all_fusions or given.method.needs_model or given.weighted
    nodes = [infer.node(given, t) for t in teachers]
    for t in teachers:
        nodes += [room.node(given, t) for room in _kept(t)]
    if by_model or (by_policy and strategy == "reliability"):
        nodes.append(label_model.node(given, names))
    own = noisy.LEVELS[: by_policy and strategy == "certainty"]
    levels = [(t, n) for t in teachers for n in (noisy.LEVELS if t.name in noise else own)]
    nodes += [noisy.node(given, t, n) for t, n in levels if n]  # first: all chains can begin
    nodes += [node for t, n in levels for node in noisy.probed(given, t, n)]
    if by_policy:
        nodes.append(policy.node(given))
    nodes.append(fusion.node(given, given.method, FUSE, names))
    if given.weighted:
        nodes.append(pixel_weights.node(given))
    nodes.append(student.node(given))
    beside = [s for split in experiment.labelled for s in scored(experiment, split, beside=True)]
    if all_fusions and any(s.needs == policy.policy_id("reliability") for s in beside):
        nodes.append(policy.node(given, "reliability"))
    for split in experiment.labelled:
        nodes += [infer.node(given, t, split) for t in teachers if t.name in given.covering(split)]
        nodes += evaluation.nodes(given, split, all_fusions=all_fusions)
        if ablation and len(names) <= MOST and not uncovered(experiment, split):
            nodes.append(ablating.node(given, split))
    return nodes


def build_all(experiment: Experiment, *, opens: Collection[str] = ()) -> list[Node]:
    """Return the graph with all that any command makes; `opens` as for `build`."""
    names = Given(experiment).names
    return build(experiment, opens=opens, all_fusions=True, ablation=True, noise=names)


def _kept(teacher: Teacher) -> Iterator[ModuleType]:
    """Yield the rooms of what is kept of a teacher beside its label maps."""
    if teacher.confidence is not None or "confidence" in teacher.keep:
        yield confidence
    if "soft" in teacher.keep:
        yield soft


def kept_ids(teacher: Teacher) -> list[NodeId]:
    """Return the node ids of what is kept of a teacher beside its label maps."""
    return [room.STAGE.id(teacher.name) for room in _kept(teacher)]


def uncovered(experiment: Experiment, split: str) -> list[str]:
    """Return the teachers that cannot label a split, by what the experiment file says."""
    given = Given(experiment)
    covering = given.covering(split)
    return [t for t in given.names if t not in covering]


def scored(experiment: Experiment, split: str, *, beside: bool = False) -> list[evaluation.Scored]:
    """Return what an evaluation scores on a split (see `evaluation_id`) where all is there."""
    return evaluation.scored(Given(experiment), split, beside=beside)


def made_by(nodes: Sequence[Node], command: Command) -> list[NodeId]:
    """Return the nodes that a command makes, whatever is said after its name."""
    return [n.id for n in nodes if n.command.name == command.name]


def probe_chains(nodes: Sequence[Node]) -> dict[str, list[NodeId]]:
    """Return the probes and certainty of labels by their name; no labels' need those of others."""
    stage = certainty.STAGE.name
    return {n.name: [*certainty.probes(n), n.id] for n in nodes if n.stage == stage}


def evaluation_ids(nodes: Sequence[Node], split: str) -> list[NodeId]:
    """Return the nodes that only an evaluation on `split` needs."""
    return [
        n.id for n in nodes if n.id.at == split or (n.id.at is None and n.command == ALL_FUSIONS)
    ]
