"""`evaluation`: scores of teachers, fusions and student on a labelled split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from pydantic import ValidationInfo, model_validator

from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.node import Node, NodeId, Upstream, Work
from ensdistill.stages.contract import ByClass, Counts, Named, OfClasses, Result
from ensdistill.stages.fusions import METHODS, FusionMethod, method_called
from ensdistill.stages.local import Local
from ensdistill.stages.nodes.fusion import plan as fusion
from ensdistill.stages.nodes.fusion.plan import fusion_id
from ensdistill.stages.nodes.given import ALL_FUSIONS, EVALUATE, Given
from ensdistill.stages.nodes.infer.plan import infer_id, of_trained, trained_id
from ensdistill.stages.nodes.label_model import plan as label_model
from ensdistill.stages.nodes.label_model.plan import label_model_id, model_id
from ensdistill.stages.nodes.policy import plan as policy
from ensdistill.stages.nodes.policy.plan import policy_of
from ensdistill.stages.nodes.probe.plan import probe_ids
from ensdistill.stages.nodes.stage import Stage
from ensdistill.stages.nodes.student import plan as student
from ensdistill.stages.nodes.truth import plan as truth
from ensdistill.stages.nodes.truth.plan import truth_id


class Method(Result):
    """A method's scores, in percent (see `run.method_scores`), and its confusion matrix."""

    name: str
    kind: str
    miou: float | None
    iou: ByClass[float | None]
    miou_covered: float | None
    iou_covered: ByClass[float | None]
    coverage: float | None
    pixel_accuracy: float | None
    miou_subsets: Named | None = None
    confmat: Counts

    @model_validator(mode="after")
    def _of_the_same_classes(self) -> Self:
        size = len(self.iou)
        if [len(row) for row in self.confmat] != [size + 1] * size:
            raise ValueError(f"confmat: expected {size} rows of {size + 1}")
        return self


class Evaluated(Result):
    """What an evaluation found out."""

    classes: list[str]
    methods: list[Method]

    @model_validator(mode="after")
    def _of_its_own(self, info: ValidationInfo) -> Self:
        """Refuse methods that it was not made from."""
        if info.context is not None:
            manifest: Manifest = info.context
            roles = manifest.inputs.keys() - {"truth"}
            if sorted(Role(m.kind, m.name) for m in self.methods) != sorted(roles):
                raise ValueError(f"methods: expected {', '.join(sorted(roles))}")
        return self


STAGE: Final = Stage("evaluation", 1, Evaluated)


@dataclass(frozen=True)
class Recipe(OfClasses):
    """What decides scores: subset to the classes whose mean is one of them."""

    subsets: Mapping[str, Sequence[str]]


class Role(str):
    """What an evaluation calls what it scores, and what that is made of: ``fusion:majority``."""

    kind: str
    name: str

    def __new__(cls, kind: str, name: str) -> Role:
        """Spell a role."""
        self = super().__new__(cls, f"{kind}:{name}")
        self.kind, self.name = kind, name
        return self


@dataclass(frozen=True)
class Scored:
    """A method that an evaluation scores if it is there; kind and name as in ``results.json``.

    `maps` are its label maps on the split. Without the node `needs` there are none; None if the
    evaluation makes all they need.
    """

    kind: str
    name: str
    maps: NodeId
    needs: NodeId | None = None


def evaluation_id(split: str, *, beside: bool = False) -> NodeId:
    """Return the node id of the evaluation on a split, or of that of all methods `beside` it."""
    return STAGE.id("all" if beside else None, split)


def scored(given: Given, split: str, *, beside: bool = False) -> list[Scored]:
    """Return what an evaluation scores on a split (see `evaluation_id`) where all is there."""
    return _beside(given, split) if beside else _own(given, split)


def nodes(given: Given, split: str, *, all_fusions: bool) -> list[Node]:
    """The evaluation of a split, and what only it needs but the teachers' label maps.

    With all fusions a second evaluation, of what the first leaves out.
    """
    found, beside = _own(given, split), _beside(given, split)
    names = given.covering(split)
    made = [truth.node(given, split)]
    if names:
        made.append(policy.oracle(given, split))
    by_model = all_fusions or any(method.needs_model for method in _fusions(found))
    if by_model and names and model_id(given.experiment, split) != label_model_id():
        made.append(label_model.node(given, names, split))
    made += [fusion.node(given, m, EVALUATE, names, split) for m in _fusions(found)]
    made.append(of_trained(given, student.STAGE.id(), split))
    made.append(_node(given, split, found))
    if all_fusions and beside:
        made += [fusion.node(given, m, ALL_FUSIONS, names, split) for m in _fusions(beside)]
        made += [of_trained(given, p, split) for p in _probes(given)]
        made.append(_node(given, split, beside, beside=True))
    return made


def _fusions(found: Sequence[Scored]) -> list[FusionMethod]:
    return [method_called(s.name) for s in found if s.kind == "fusion"]


def _own(given: Given, split: str) -> list[Scored]:
    """Return what the experiment itself has: teachers, its fusion and baselines, student."""
    names, exp, trained = given.covering(split), given.experiment, student.STAGE.id()
    # policy and model can be applied only where all teachers' maps are
    own = exp.config.fusion.method if len(names) == len(exp.teachers) else None
    methods = [m for m in METHODS if m.name == own]
    methods += [m for m in METHODS if (m.baseline or m.is_yardstick) and m.name != own]
    return [
        *(Scored("teacher", t, infer_id(t, split)) for t in names),
        *(_fusion(given, method, split) for method in methods if names),
        Scored("student", "student", trained_id(trained, split), trained),
    ]


def _beside(given: Given, split: str) -> list[Scored]:
    """Return what else there is to score: the other fusions, and the probes."""
    exp = given.experiment
    strategy = exp.config.policy.strategy
    found = []
    if len(given.covering(split)) == len(exp.teachers):
        found = [
            _fusion(given, m, split)
            for m in METHODS
            if not (m.baseline or m.is_yardstick)
            and exp.config.fusion.method != m.name
            and strategy != m.policy
        ]
    found += [Scored("probe", str(p.of), trained_id(p, split), p) for p in _probes(given)]
    return found


def _probes(given: Given) -> list[NodeId]:
    """Return all probes, where there are any."""
    if given.experiment.config.policy.strategy != "certainty":
        return []
    return [p for t in given.names for p in probe_ids(given, t)]


def _fusion(given: Given, method: FusionMethod, split: str) -> Scored:
    """Return a fusion as it is scored: of label maps alone it needs nothing made before."""
    needs = None if method.is_yardstick else policy_of(method, split)
    if method.needs_model and model_id(given.experiment, split) == label_model_id():
        needs = label_model_id()
    return Scored("fusion", method.name, fusion_id(method.name, split), needs)


def _node(given: Given, split: str, found: Sequence[Scored], *, beside: bool = False) -> Node:
    """Confusions with the ground truth, of what is there of `found`."""
    table = given.experiment.classes
    uses = {"truth": truth_id(split)} | {Role(s.kind, s.name): s.maps for s in found}

    def plan(upstream: Upstream) -> Work[Recipe, Local]:
        return Work(
            Recipe(table.classes, table.subsets),
            uses=uses,
            local=given.local(split, upstream),
        )

    return STAGE.node(
        evaluation_id(split, beside=beside),
        f"all-{split}" if beside else split,
        list(uses.values()),
        plan,
        ALL_FUSIONS if beside else EVALUATE,
        any_of={s.maps: s.needs for s in found},
    )
