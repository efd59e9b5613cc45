"""The whole graph on one screen: which node is made from what, and what enters its fingerprint.

By the label model: all `infer[t]` -> `label-model` -> `fusion` -> `student` (a labelled split has a
label model of its own, unless `fit: train`). As in the paper:
`infer[t]` -> `probe[t]` -> `certainty[t]` for each teacher t, then `policy` -> `fusion` ->
`student`. A student that weighs its pixels also needs `weights`, of all `infer[t]`, `label-model`
and `fusion`. For each labelled split the same maps again, its `truth`, the oracle and `evaluation`;
with all fusions also `evaluation[all]`, of the other methods' maps and those of the probes.

Big upstreams (label maps, networks) enter by fingerprint, small ones (certainty, policy) by
content; `fusion` takes only the label maps of teachers that the policy uses, by fingerprint and
not by name. So a new teacher that wins no class leaves fusion and student fresh, and a renamed one
reruns no network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensdistill.data import splits
from ensdistill.data.classes import to_target_ids
from ensdistill.pipeline.config import Section
from ensdistill.pipeline.errors import ConfigError, DataError
from ensdistill.pipeline.fingerprint import Json, digest
from ensdistill.pipeline.node import Item, Items, Node, Upstream, WaitingError, Work
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.experiment.schema import (
    TRAIN,
    Built,
    Init,
    Network,
    Student,
    Teacher,
    Training,
)
from ensdistill.stages.local import Local
from ensdistill.stages.networks.files import Hashed, Source, hashed
from ensdistill.stages.nodes.ablation.compositions import MOST, as_items

# Raised by hand whenever a stage's numbers change for the same recipe.
VERSIONS: Mapping[str, int] = {
    "infer": 1,
    "certainty-maps": 1,
    "soft-maps": 1,
    "probe": 2,
    "certainty": 1,
    "label-model": 2,
    "policy": 1,
    "fusion": 1,
    "weights": 2,
    "student": 2,
    "truth": 1,
    "evaluation": 1,
    "ablation": 2,
}

# Of label maps of street scenes with 11 to 19 classes: 0.014 to 0.048, the more the worse the map.
_BYTES_PER_PIXEL = 0.03
_WEIGHT_BYTES_PER_PIXEL = 0.1  # of six teachers on CamVid; 0.03 of four on made-up streets
_SCORE_BYTES_PER_PIXEL = 0.3
_BYTES_PER_RECORD = 700
_BYTES_PER_CONFUSION = 7  # of two methods, most of them 0
_ALL_FUSIONS = "evaluate --fusions all"
_BY_RELIABILITY = "policy[reliability]"


@dataclass(frozen=True)
class Scored:
    """A method that an evaluation scores if it is there.

    Attributes
    ----------
    kind, name : str
        As in ``results.json``; together its role.
    maps : str
        The node of its label maps on the split.
    needs : str or None
        The node without which there are no such maps; None if the evaluation makes all they need.
    """

    kind: str
    name: str
    maps: str
    needs: str | None = None


def infer_id(teacher: str, split: str = TRAIN) -> str:
    """Return the node id of a teacher's label maps on a split."""
    return f"infer[{teacher}]" + _at(split)


def kept_ids(teacher: Teacher) -> list[str]:
    """Return the node ids of what is kept of a teacher beside its label maps."""
    kept = ["certainty"] if teacher.certainty is not None else sorted(teacher.keep)
    return [f"{what}-maps[{teacher.name}]" for what in kept]


def build(
    experiment: Experiment,
    *,
    opens: Collection[str] = (),
    all_fusions: bool = False,
    ablation: bool = False,
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
    """
    graph = _Graph(experiment, opens)
    config = experiment.config
    names = [t.name for t in experiment.teachers]
    method, strategy = config.fusion.method, config.policy.strategy
    channel, by_model = (all_fusions or method == m for m in ("channel", "label-model"))
    nodes = [graph.infer(t, TRAIN) for t in experiment.teachers]
    for t in experiment.teachers:
        nodes += [graph.kept(t, node_id) for node_id in kept_ids(t)]
    if by_model or graph.weighted or (channel and strategy == "reliability"):
        nodes.append(graph.label_model(names))
    if channel and strategy == "certainty":
        for t in experiment.teachers:
            nodes += [graph.probe(t), graph.certainty(t)]
    if channel:
        nodes.append(graph.policy(names))
    nodes.append(graph.fusion(names))
    if graph.weighted:
        nodes.append(graph.weights(names))
    nodes.append(graph.student())
    beside = [s for split in experiment.labelled for s in graph.scored_beside(split)]
    if all_fusions and any(s.needs == _BY_RELIABILITY for s in beside):
        nodes.append(graph.policy(names, "reliability"))
    for split in experiment.labelled:
        nodes += [graph.infer(t, split) for t in experiment.teachers if graph.covers(t, split)]
        nodes += graph.evaluation(split, all_fusions=all_fusions)
        if ablation and len(names) <= MOST and not uncovered(experiment, split):
            nodes.append(graph.ablation(split))
    return nodes


def uncovered(experiment: Experiment, split: str) -> list[str]:
    """Return the teachers that cannot label a split, by what the experiment file says."""
    covering = _Graph(experiment, ()).covering(split)
    return [t.name for t in experiment.teachers if t.name not in covering]


def training(experiment: Experiment, section: str) -> Node:
    """Return the training that a section describes, without the labels that it learns from.

    So it can be tried before there are any.
    """
    graph, settings = _Graph(experiment, ()), getattr(experiment.config, section)

    def plan(upstream: Upstream) -> Work:
        return Work(graph.training_recipe(settings), local=graph.training_local(settings, upstream))

    return graph.node(section, section, section, [], plan, f"{section}.run:run", "check")


def truth_id(split: str) -> str:
    """Return the node id of the decoded ground truth of a split."""
    return f"truth{_at(split)}"


def model_id(experiment: Experiment, split: str) -> str:
    """Return the node id of the label model that a split is fused by."""
    own = experiment.config.label_model.fit == "fused"
    return f"label-model{_at(split if own else TRAIN)}"


def ablation_id(split: str) -> str:
    """Return the node id of the ablation on a split."""
    return f"ablation{_at(split)}"


def evaluation_id(split: str, *, beside: bool = False) -> str:
    """Return the node id of the evaluation on a split, or of that of all methods `beside` it."""
    return f"evaluation{'[all]' * beside}{_at(split)}"


def scored(experiment: Experiment, split: str, *, beside: bool = False) -> list[Scored]:
    """Return what an evaluation scores on a split (see `evaluation_id`) where all is there."""
    graph = _Graph(experiment, ())
    return graph.scored_beside(split) if beside else graph.scored(split)


def policy_ids(nodes: Sequence[Node]) -> list[str]:
    """Return the nodes that `select-policy` makes: probes, certainties, policy, label model."""
    return [n.id for n in nodes if n.command == "select-policy"]


def fusion_ids(nodes: Sequence[Node]) -> list[str]:
    """Return the nodes that `fuse` makes: fused labels and, where they are wanted, weights."""
    return [n.id for n in nodes if n.command == "fuse"]


def probe_chains(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """Return each teacher's probe and certainty, in that order; no teacher's need another's."""
    return {n.name: [n.id, f"certainty[{n.name}]"] for n in nodes if n.stage == "probe"}


def evaluation_ids(nodes: Sequence[Node], split: str) -> list[str]:
    """Return the nodes that only an evaluation on `split` needs."""
    shared = {n.id for n in nodes if n.command == _ALL_FUSIONS and "@" not in n.id}
    return [n.id for n in nodes if n.id.endswith(_at(split)) or n.id in shared]


@dataclass(frozen=True)
class _Graph:
    """Makes the nodes; every `plan` below is called anew for each plan."""

    experiment: Experiment
    opens: Collection[str]

    def infer(self, teacher: Teacher, split: str) -> Node:
        """Label maps of a teacher on a split (output unification; paper, section 3.1)."""
        exp = self.experiment
        table, mapping = exp.teacher_table(teacher), exp.teacher_map(teacher)
        to_target = to_target_ids(table, exp.classes, mapping)

        def plan(upstream: Upstream) -> Work:
            items = self.items(split, upstream)
            recipe: dict[str, Json] = {"map": dict(mapping), "classes": list(exp.classes.classes)}
            if teacher.labels is not None:
                where = f"teachers[{teacher.name}].labels.{split}"
                folder = exp.folder(teacher.labels[split])
                pngs = splits.predictions(folder, [item.id for item in items], where)
                digests = exp.files.digests(list(pngs.values()))
                legal = table.legal_values(teacher.ids)
                recipe |= {"source": "labels", "ids": teacher.ids}
                recipe["values"] = {str(raw): to_target[own] for raw, own in sorted(legal.items())}
                return Work(
                    recipe,
                    items=Items(
                        Item(item.id, {**item.content, "prediction": found})
                        for item, found in zip(items, digests, strict=True)
                    ),
                    local=self.local(
                        split,
                        upstream,
                        more_digests=dict(zip(pngs.values(), digests, strict=True)),
                        predictions=pngs,
                        to_target={raw: to_target[own] for raw, own in legal.items()},
                        palette=teacher.ids == "palette",
                    ),
                    runtime={"folder": str(folder)},
                    item_bytes=self.label_bytes(split),
                )
            local = self.teacher_local(teacher, split, upstream)
            return Work(
                recipe | self.teacher_recipe(teacher),
                items=items,
                local=local,
                runtime=self.runtime() | {"folder": str(local.network)},
                item_bytes=self.label_bytes(split),
            )

        return self.node(
            infer_id(teacher.name, split),
            "infer",
            f"{teacher.name}-{split}",
            [],
            plan,
            "infer.run:run_labels" if teacher.labels is not None else "infer.run:run_network",
            f"infer-teacher {teacher.name}" if split == TRAIN else f"evaluate --split {split}",
        )

    def kept(self, teacher: Teacher, node_id: str) -> Node:
        """Scores of a teacher beside its label maps: nodes of their own, so that these stay fresh.

        `certainty-maps[t]` holds how sure the teacher is of each label, `soft-maps[t]` its softmax.
        """
        stage = node_id.partition("[")[0]

        def plan(upstream: Upstream) -> Work:
            if teacher.certainty is not None:
                return self.read_certainty(teacher, upstream)
            local = self.teacher_local(teacher, TRAIN, upstream)
            return Work(
                self.teacher_recipe(teacher),
                items=self.items(TRAIN, upstream),
                local=local,
                runtime=self.runtime() | {"folder": str(local.network)},
                item_bytes=self.label_bytes(TRAIN, _SCORE_BYTES_PER_PIXEL),
            )

        run = "run_labels" if teacher.certainty is not None else f"run_{stage.partition('-')[0]}"
        return self.node(
            node_id,
            stage,
            f"{teacher.name}-{TRAIN}",
            [],
            plan,
            f"kept.run:{run}",
            f"infer-teacher {teacher.name}",
        )

    def read_certainty(self, teacher: Teacher, upstream: Upstream) -> Work:
        """Return the work of reading how sure a teacher is from PNGs."""
        exp, items = self.experiment, self.items(TRAIN, upstream)
        assert teacher.certainty is not None
        folder = exp.folder(teacher.certainty[TRAIN])
        where = f"teachers[{teacher.name}].certainty.{TRAIN}"
        pngs = splits.predictions(folder, [item.id for item in items], where)
        digests = exp.files.digests(list(pngs.values()))
        return Work(
            {"source": "labels"},
            items=Items(
                Item(item.id, {**item.content, "certainty": found})
                for item, found in zip(items, digests, strict=True)
            ),
            local=self.local(
                TRAIN,
                upstream,
                more_digests=dict(zip(pngs.values(), digests, strict=True)),
                predictions=pngs,
            ),
            runtime={"folder": str(folder)},
            item_bytes=self.label_bytes(TRAIN, _SCORE_BYTES_PER_PIXEL),
        )

    def teacher_recipe(self, teacher: Teacher) -> dict[str, Json]:
        """Return what decides what a teacher's network says of an image."""
        network = teacher.network
        assert network is not None
        recipe: dict[str, Json] = {
            "source": network.kind,
            "network": self.teacher_files(teacher).recipe,
            "teacher_classes": list(self.experiment.teacher_table(teacher).classes),
            "preprocess": _settings(teacher.preprocess),
            **_divisor(network),
        }
        for key in ("ignore_keys", "output", "void_channels", "take", "precision"):
            if (value := getattr(network, key)) != Network.model_fields[key].default:
                recipe[key] = sorted(value) if isinstance(value, tuple) else value
        return recipe

    def teacher_local(self, teacher: Teacher, split: str, upstream: Upstream) -> Local:
        """Return `local` with what running a teacher's network needs."""
        exp = self.experiment
        source, mapping = exp.teacher_source(teacher), exp.teacher_map(teacher)
        return self.local(
            split,
            upstream,
            network=source.path,
            factory=source.factory,
            state_dict=source.state_dict,
            trusted=source.trusted,
            weights=self.teacher_files(teacher).digests,
            to_target=to_target_ids(exp.teacher_table(teacher), exp.classes, mapping),
        )

    def teacher_files(self, teacher: Teacher) -> Hashed:
        """Return what a teacher's network is made from."""
        return hashed(self.experiment.teacher_source(teacher), self.experiment.files.digest)

    def covers(self, teacher: Teacher, split: str) -> bool:
        """Whether a teacher can label a split."""
        return teacher.network is not None or split in (teacher.labels or {})

    @property
    def weighted(self) -> bool:
        """Whether the student weighs its pixels."""
        return self.experiment.config.student.pixel_weights == "posterior"

    def command(self, method: str) -> str:
        """Return what makes the nodes before a fusion by `method`."""
        settings = self.experiment.config
        own = settings.fusion.method
        if method == "label-model" and self.weighted:
            return "select-policy"
        if own == "channel" and settings.policy.strategy == "reliability":
            return "select-policy"
        return "select-policy" if own == method else _ALL_FUSIONS

    def probe(self, teacher: Teacher) -> Node:
        """The small student that measures a teacher, trained on its labels alone."""

        def plan(upstream: Upstream) -> Work:
            return Work(
                self.training_recipe(self.experiment.config.probe),
                uses={"labels": infer_id(teacher.name)},
                local=self.training_local(self.experiment.config.probe, upstream),
                runtime=self.runtime(),
            )

        return self.node(
            f"probe[{teacher.name}]",
            "probe",
            teacher.name,
            [infer_id(teacher.name)],
            plan,
            "probe.run:run",
            self.command("channel"),
        )

    def certainty(self, teacher: Teacher) -> Node:
        """Mean certainty of a probe per class, on the training images (paper, Fig. 6)."""
        exp = self.experiment
        reached = {goal for goal in exp.teacher_map(teacher).values() if goal is not None}

        def plan(upstream: Upstream) -> Work:
            return Work(
                {"reached": [c for c in exp.classes.classes if c in reached]},
                uses={"probe": f"probe[{teacher.name}]", "labels": infer_id(teacher.name)},
                items=self.items(TRAIN, upstream),
                local=self.local(TRAIN, upstream, **self.own_code(exp.config.probe)),
                runtime=self.runtime(),
                item_bytes=lambda: _BYTES_PER_RECORD,
            )

        return self.node(
            f"certainty[{teacher.name}]",
            "certainty",
            teacher.name,
            [f"probe[{teacher.name}]", infer_id(teacher.name)],
            plan,
            "certainty.run:run",
            self.command("channel"),
        )

    def label_model(self, names: list[str], split: str = TRAIN) -> Node:
        """How far each teacher is to be trusted with each class, from all teachers' labels."""
        maps = {f"teacher{k:02}": infer_id(t, split) for k, t in enumerate(names)}
        own = self.experiment.config.fusion.method == "label-model"

        def plan(upstream: Upstream) -> Work:
            return Work(
                {"classes": list(self.experiment.classes.classes)},
                uses=maps,
                local=self.local(split, upstream),
            )

        return self.node(
            f"label-model{_at(split)}",
            "label-model",
            "labels" if split == TRAIN else f"labels-{split}",
            list(maps.values()),
            plan,
            "labelmodel.run:run",
            self.command("label-model") if split == TRAIN else "evaluate" if own else _ALL_FUSIONS,
        )

    def model_id(self, split: str) -> str:
        """Return the node of the label model that a split is fused by."""
        return model_id(self.experiment, split)

    def policy(self, names: list[str], by: str | None = None) -> Node:
        """The policy pi: class to teacher (paper, section 3.2); `by` names another strategy."""
        settings, classes = self.experiment.config.policy, self.experiment.classes.classes
        strategy = by or settings.strategy
        needs = {
            "manual": [],
            "reliability": ["label-model"],
            "certainty": [f"certainty[{t}]" for t in names],
        }[strategy]

        def plan(upstream: Upstream) -> Work:
            if strategy == "reliability":
                found = upstream.content("label-model")["reliability"]
                reliability: dict[str, Json] = dict(zip(names, found, strict=True))
                return Work(
                    {
                        "strategy": strategy,
                        "classes": list(classes),
                        "reliability": reliability,
                    },
                    local=self.local(TRAIN, upstream),
                )
            if strategy == "manual":
                assign = settings.assign or {}
                return Work(
                    {"strategy": "manual", "assign": {c: assign.get(c) for c in classes}},
                    local=self.local(TRAIN, upstream),
                )
            evidence: dict[str, Json] = {
                t: dict(upstream.content(f"certainty[{t}]")) for t in names
            }
            return Work(
                {
                    "strategy": "certainty",
                    "min_support": settings.min_support,
                    "classes": list(classes),
                    "evidence": evidence,
                },
                local=self.local(TRAIN, upstream),
            )

        return self.node(
            "policy" if by is None else f"policy[{by}]",
            "policy",
            strategy,
            needs,
            plan,
            "policy.run:run",
            self.command("channel") if by is None else _ALL_FUSIONS,
        )

    def fusion(
        self,
        names: list[str],
        split: str = TRAIN,
        method: str | None = None,
        command: str = "fuse",
    ) -> Node:
        """One label map from many; `method` names another than the experiment's."""
        settings, classes = self.experiment.config.fusion, self.experiment.classes.classes
        method = method or settings.method
        policy = {
            "channel-oracle": f"policy[oracle]{_at(split)}",
            "channel-reliability": _BY_RELIABILITY,
        }.get(method, "policy")
        model = self.model_id(split)
        needs = {"majority": [], "label-model": [model]}.get(method, [policy])
        maps = {t: infer_id(t, split) for t in names}

        def plan(upstream: Upstream) -> Work:
            prints = {t: upstream.fingerprint(node_id) for t, node_id in maps.items()}
            items, local = self.items(split, upstream), self.local(split, upstream)
            if method in ("majority", "label-model"):
                return Work(
                    {"method": method, "classes": list(classes)},
                    # by name, for ties and for the model's teachers: the order is part of it
                    uses={f"teacher{k:02}": maps[t] for k, t in enumerate(names)}
                    | ({"model": model} if needs else {}),
                    items=items,
                    local=local,
                    item_bytes=self.label_bytes(split),
                )
            chosen = upstream.content(policy)
            # by the first class that each one owns: neither names nor other teachers matter
            owner = {c: chosen["teacher"][c] for c in classes}
            used = list(dict.fromkeys(prints[t] for t in owner.values() if t is not None))
            by_print = {prints[t]: maps[t] for t in names}
            recipe: dict[str, Json] = {
                "method": "channel",
                "classes": list(classes),
                "owner": {
                    c: None if t is None else used.index(prints[t]) for c, t in owner.items()
                },
                "window": settings.window,
                "conflict": settings.conflict,
                "holes": settings.holes,
            }
            if settings.conflict == "certainty":
                recipe["certainty"] = dict(chosen["certainty"])
            return Work(
                recipe,
                uses={f"teacher{k:02}": by_print[fp] for k, fp in enumerate(used)},
                items=items,
                local=local,
                item_bytes=self.label_bytes(split),
            )

        return self.node(
            "fusion" if split == TRAIN else f"fusion[{method}]{_at(split)}",
            "fusion",
            f"{method}-{split}",
            [*maps.values(), *needs],
            plan,
            "fusion.run:run",
            command,
        )

    def weights(self, names: list[str]) -> Node:
        """How sure the label model is of each fused label, whatever method fused it."""
        uses = {f"teacher{k:02}": infer_id(t) for k, t in enumerate(names)}
        uses |= {"fused": "fusion", "model": "label-model"}

        def plan(upstream: Upstream) -> Work:
            return Work(
                {"classes": list(self.experiment.classes.classes)},
                uses=uses,
                items=self.items(TRAIN, upstream),
                local=self.local(TRAIN, upstream),
                item_bytes=self.label_bytes(TRAIN, _WEIGHT_BYTES_PER_PIXEL),
            )

        return self.node(
            "weights",
            "weights",
            f"posterior-{TRAIN}",
            list(uses.values()),
            plan,
            "pixel_weights.run:run",
            "fuse",
        )

    def student(self) -> Node:
        """The final student, trained on the fused labels."""
        settings = self.experiment.config.student
        uses = {"labels": "fusion"} | ({"weights": "weights"} if self.weighted else {})

        def plan(upstream: Upstream) -> Work:
            recipe = self.training_recipe(settings)
            if self.weighted:
                recipe["pixel_weights"] = settings.pixel_weights
            if settings.watch is not None:
                recipe["watch"] = {
                    "images": self.items(settings.watch, upstream).sha256,
                    "labels": self.truth(settings.watch),
                    "every": settings.watch_every,
                    "keep": settings.keep,
                }
            return Work(
                recipe,
                uses=uses,
                local=self.training_local(settings, upstream),
                runtime=self.runtime(),
            )

        return self.node(
            "student",
            "student",
            "student",
            list(uses.values()),
            plan,
            "student.run:run",
            "train-student",
        )

    def truth_maps(self, split: str) -> Node:
        """The ground truth of a labelled split, decoded once for all that is scored on it."""
        exp = self.experiment

        def plan(upstream: Upstream) -> Work:
            digests = self.truth_digests(split, "truth")
            return Work(
                {"classes": list(exp.classes.classes), **self.truth_meaning(split)},
                items=Items(Item(i, {"labels": found}) for i, found in digests.items()),
                local=self.truth_local(split, upstream),
                item_bytes=self.label_bytes(split),
            )

        return self.node(
            truth_id(split),
            "truth",
            split,
            [],
            plan,
            "infer.run:run_labels",
            f"evaluate --split {split}",
        )

    def evaluation(self, split: str, *, all_fusions: bool) -> list[Node]:
        """Scores of teachers, fusions and student on a labelled split, and the oracle policy.

        With all fusions a second evaluation, of what the first leaves out.
        """
        exp, names = self.experiment, self.covering(split)
        found, beside = self.scored(split), self.scored_beside(split)
        nodes = [self.truth_maps(split)]
        if names:
            nodes.append(self.oracle(split, names))
        fused = [s.name for s in found if s.kind == "fusion"]
        by_model = all_fusions or "label-model" in fused
        if by_model and names and self.model_id(split) != self.model_id(TRAIN):
            nodes.append(self.label_model(names, split))
        nodes += [self.fusion(names, split, method, "evaluate") for method in fused]
        nodes.append(self.infer_trained("student", "student", exp.config.student, split))
        nodes.append(self.scores(split, found))
        if all_fusions and beside:
            fused = [s.name for s in beside if s.kind == "fusion"]
            nodes += [self.fusion(names, split, method, _ALL_FUSIONS) for method in fused]
            probes = [s.name for s in beside if s.kind == "probe"]
            nodes += [
                self.infer_trained(f"probe:{t}", f"probe[{t}]", exp.config.probe, split)
                for t in probes
            ]
            nodes.append(self.scores(split, beside, beside=True))
        return nodes

    def covering(self, split: str) -> list[str]:
        """Return the teachers that can label a split."""
        return [t.name for t in self.experiment.teachers if self.covers(t, split)]

    def scored(self, split: str) -> list[Scored]:
        """Return what the experiment itself has: teachers, its fusion and yardsticks, student."""
        names, exp = self.covering(split), self.experiment
        methods = []
        if names:
            # policy and model can be applied only where all teachers' maps are
            own = [exp.config.fusion.method] if len(names) == len(exp.teachers) else []
            methods = list(dict.fromkeys([*own, "majority", "channel-oracle"]))
        return [
            *(Scored("teacher", t, infer_id(t, split)) for t in names),
            *(self.scored_fusion(method, split) for method in methods),
            Scored("student", "student", infer_id("student", split), "student"),
        ]

    def scored_beside(self, split: str) -> list[Scored]:
        """Return what else there is to score: the other fusions, and the probes."""
        exp = self.experiment
        strategy = exp.config.policy.strategy
        methods = []
        if len(self.covering(split)) == len(exp.teachers):
            methods = ["label-model", "channel"]
            if strategy != "reliability":
                methods.append("channel-reliability")
        found = [self.scored_fusion(m, split) for m in methods if m != exp.config.fusion.method]
        if strategy == "certainty":
            found += [
                Scored("probe", t.name, infer_id(f"probe:{t.name}", split), f"probe[{t.name}]")
                for t in exp.teachers
            ]
        return found

    def scored_fusion(self, method: str, split: str) -> Scored:
        """Return a fusion as it is scored: of label maps alone it needs nothing made before."""
        model = self.model_id(split)
        needs = {
            "label-model": model if model == self.model_id(TRAIN) else None,
            "channel": "policy",
            "channel-reliability": _BY_RELIABILITY,
        }.get(method)
        return Scored("fusion", method, f"fusion[{method}]{_at(split)}", needs)

    def scores(self, split: str, found: Sequence[Scored], *, beside: bool = False) -> Node:
        """Confusions with the ground truth, of what is there of `found`."""
        exp = self.experiment
        uses = {"truth": truth_id(split)} | {f"{s.kind}:{s.name}": s.maps for s in found}

        def plan(upstream: Upstream) -> Work:
            return Work(
                {
                    "classes": list(exp.classes.classes),
                    "subsets": {k: list(v) for k, v in exp.classes.subsets.items()},
                },
                uses=uses,
                local=self.local(split, upstream),
            )

        return self.node(
            evaluation_id(split, beside=beside),
            "evaluation",
            f"all-{split}" if beside else split,
            list(uses.values()),
            plan,
            "evaluation.run:run",
            _ALL_FUSIONS if beside else "evaluate",
            any_of={s.maps: s.needs for s in found},
        )

    def ablation(self, split: str) -> Node:
        """What bad teachers cost, and which teachers together beat the best of them."""
        exp = self.experiment
        names, fit = [t.name for t in exp.teachers], exp.config.label_model.fit
        uses = {f"split{k:02}": infer_id(t, split) for k, t in enumerate(names)}
        if fit == "train":
            uses |= {f"train{k:02}": infer_id(t) for k, t in enumerate(names)}
        uses["truth"] = truth_id(split)

        def plan(upstream: Upstream) -> Work:
            return Work(
                {
                    "classes": list(exp.classes.classes),
                    # whose arithmetic it uses without reading what they publish
                    "versions": {s: VERSIONS[s] for s in ("label-model", "fusion", "evaluation")},
                    "fit": fit,
                },
                uses=uses,
                items=as_items(names, train=fit == "train"),
                local=self.local(split, upstream),
                item_bytes=lambda: _BYTES_PER_CONFUSION * len(exp.classes) ** 2,
            )

        return self.node(
            ablation_id(split),
            "ablation",
            split,
            list(uses.values()),
            plan,
            "ablation.run:run",
            f"ablate --split {split}",
            "compositions",
        )

    def oracle(self, split: str, names: list[str]) -> Node:
        """Each class from the teacher that is best at it on the split's own ground truth."""
        uses = {"truth": truth_id(split)}
        uses |= {f"teacher:{t}": infer_id(t, split) for t in names}

        def plan(upstream: Upstream) -> Work:
            return Work(
                {"strategy": "oracle", "classes": list(self.experiment.classes.classes)},
                uses=uses,
                local=self.local(split, upstream),
            )

        return self.node(
            f"policy[oracle]{_at(split)}",
            "policy",
            f"oracle-{split}",
            list(uses.values()),
            plan,
            "policy.run:run_oracle",
            "evaluate",
        )

    def infer_trained(self, name: str, trained: str, settings: Training, split: str) -> Node:
        """Label maps of a network that was trained here, node `trained`, as of any network."""
        exp = self.experiment

        def plan(upstream: Upstream) -> Work:
            names: Json = {c: c for c in exp.classes.classes}
            return Work(
                {"source": "student", "map": names, "classes": list(exp.classes.classes)},
                uses={"network": trained},
                items=self.items(split, upstream),
                local=self.local(
                    split,
                    upstream,
                    to_target={i: i for i in range(len(exp.classes))},
                    **self.own_code(settings),
                ),
                runtime=self.runtime(),
                item_bytes=self.label_bytes(split),
            )

        return self.node(
            infer_id(name, split),
            "infer",
            f"{name.replace(':', '-')}-{split}",
            [trained],
            plan,
            "infer.run:run_network",
            "evaluate" if settings is exp.config.student else _ALL_FUSIONS,
        )

    def node(
        self,
        node_id: str,
        stage: str,
        name: str,
        needs: list[str],
        plan: Callable[[Upstream], Work],
        run: str,
        command: str,
        unit: str = "images",
        any_of: Mapping[str, str | None] | None = None,
    ) -> Node:
        """Return a node whose `run` lies in a room of `nodes`."""
        function = f"ensdistill.stages.nodes.{run}"
        version, some = VERSIONS[stage], any_of or {}
        return Node(node_id, stage, name, version, needs, plan, function, command, unit, some)

    def items(self, split: str, upstream: Upstream) -> Items:
        """Return the images of a split as items."""
        files = self.experiment.files

        def find() -> Items:
            pictures = self.experiment.pictures(split)
            digests = files.digests([str(p.image) for p in pictures])
            pairs = zip(pictures, digests, strict=True)
            return Items(Item(p.id, {"image": found}) for p, found in pairs)

        return upstream.once(("items", split), find)

    def local(
        self,
        split: str,
        upstream: Upstream,
        more_digests: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Local:
        """Return what is common to all stages, and `more`."""
        runtime = self.experiment.config.runtime
        pictures = self.experiment.pictures(split)

        def find() -> dict[str, str]:
            pairs = zip(pictures, self.items(split, upstream), strict=True)
            return {str(p.image): item.content["image"] for p, item in pairs}

        return Local(
            pictures=tuple(pictures),
            classes=self.experiment.classes,
            device=runtime.device,
            batch_size=runtime.batch_size,
            channels_last=runtime.channels_last,
            max_pixels=runtime.max_pixels,
            workers=runtime.workers,
            threads=runtime.threads,
            checkpoint_every=runtime.checkpoint_every,
            keep_checkpoints=runtime.keep_checkpoints,
            digests={**upstream.once(("digests", split), find), **(more_digests or {})},
            **more,
        )

    def label_bytes(self, split: str, per_pixel: float = _BYTES_PER_PIXEL) -> Callable[[], int]:
        """Return what tells about how much a label map of a split takes on disk."""

        def find() -> int:
            from ensdistill.data.decoding import image_size

            height, width = image_size(self.experiment.pictures(split)[0].image)
            return round(per_pixel * height * width) + _BYTES_PER_RECORD

        return find

    def runtime(self) -> dict[str, Json]:
        """Return the runtime as it is recorded."""
        return self.experiment.config.runtime.model_dump(mode="json")

    def truth(self, split: str) -> str:
        """Return one digest of a watched split's ground truth: its files and what they mean.

        Raises as `truth_digests`.
        """
        found = self.truth_digests(split, "student")
        digests: list[Json] = [[image_id, sha256] for image_id, sha256 in found.items()]
        return digest([*self.truth_meaning(split).values(), *digests])

    def truth_digests(self, split: str, stage: str) -> dict[str, str]:
        """Return image id to the digest of its ground truth.

        Raises
        ------
        WaitingError
            If a file is not remembered and may not be opened for the sake of `stage`.
        """
        files = self.experiment.files
        digests = {}
        for p in self.experiment.pictures(split):
            if p.labels is None:
                raise ConfigError(f"target.{split} declares no labels")
            found = files.digest(p.labels) if stage in self.opens else files.known(p.labels)
            if found is None:
                raise WaitingError(f"the labels of {split} to be opened")
            digests[p.id] = found
        return digests

    def truth_meaning(self, split: str) -> dict[str, Json]:
        """Return what the values of a split's ground truth mean, as it enters a recipe."""
        encoding = self.experiment.config.target[split].encoding
        values = self.experiment.classes.legal_values(encoding)
        return {
            "encoding": encoding,
            "values": {str(raw): train_id for raw, train_id in values.items()},
        }

    def truth_local(self, split: str, upstream: Upstream) -> Local:
        """Return `local` with what reading the ground truth needs (see `truth_digests`)."""
        encoding = self.experiment.config.target[split].encoding
        pictures = self.experiment.pictures(split)
        labels = {p.id: str(p.labels) for p in pictures if p.labels is not None}
        known = {file: self.experiment.files.known(file) for file in labels.values()}
        return self.local(
            split,
            upstream,
            more_digests={file: found for file, found in known.items() if found is not None},
            predictions=labels,
            to_target=self.experiment.classes.legal_values(encoding),
            palette=encoding == "palette",
        )

    def training_recipe(self, settings: Training) -> dict[str, Json]:
        """Return the part of a probe's or student's settings that changes the numbers."""
        skip = {"recipe", "network", "trust", "init", "head", "watch", "watch_every", "keep"}
        skip |= {"pixel_weights"}
        recipe = {k: v for k, v in settings.model_dump(mode="json").items() if k not in skip}
        recipe["preprocess"] = _settings(settings.preprocess)
        network: Json = settings.network.architecture
        if settings.network.paths:
            network = self.training_files(settings).recipe
        if settings.init is not None:
            file = self.experiment.files.digest(self.init(settings.init, settings))
            how = settings.init.model_dump(mode="json", exclude={"file"}, exclude_defaults=True)
            recipe["init"] = {"file": file, **how} if how else file
        if settings.head is not None:
            recipe["head"] = sorted(set(settings.head))
        recipe |= _divisor(settings.network)
        return recipe | {"network": network, "classes": list(self.experiment.classes.classes)}

    def training_source(self, settings: Training) -> Source:
        """Return what a probe's or student's network is built from."""
        return self.experiment.source(settings.network, f"{_section(settings)}.network")

    def training_files(self, settings: Training) -> Hashed:
        """Return the same by content."""
        return hashed(self.training_source(settings), self.experiment.files.digest)

    def training_local(self, settings: Training, upstream: Upstream) -> Local:
        """Return `local` of the training images with what training needs."""
        more: dict[str, Any] = {"weights": {}, "pixels": self.experiment.pixels}
        more |= self.own_code(settings)
        if self.experiment.config.runtime.tensorboard is not None:
            more["tensorboard"] = self.experiment.folder(self.experiment.config.runtime.tensorboard)
        if settings.network.hf is not None:
            more["network"] = self.training_source(settings).path
            more["weights"] = self.training_files(settings).digests
        if settings.init is not None:
            init = self.init(settings.init, settings)
            more["init"] = init
            more["weights"] |= {str(init): self.experiment.files.digest(init)}
        if isinstance(settings, Student) and settings.watch is not None:
            truth = self.truth_local(settings.watch, upstream)
            more |= {"watch": truth.pictures, "more_digests": truth.digests}
            more |= {"to_target": truth.to_target, "palette": truth.palette}
        return self.local(TRAIN, upstream, **more)

    def init(self, init: Init, settings: Training) -> Path:
        """Return the file of a training's first weights."""
        path = self.experiment.folder(init.file)
        if not path.is_file():
            raise DataError(f"{_section(settings)}.init: {path} is no file")
        return path

    def own_code(self, settings: Training) -> dict[str, Any]:
        """Return what `local` needs for a trained network whose architecture is a user's code."""
        if settings.network.factory is None:
            return {}
        factory = self.training_source(settings).factory
        return {"factory": factory, "weights": self.training_files(settings).digests}


def _at(split: str) -> str:
    return "" if split == TRAIN else f"@{split}"


def _divisor(network: Built) -> dict[str, Json]:
    """Return the divisor of a network's input sizes as it enters a recipe."""
    return {} if network.divisor == 1 else {"divisor": network.divisor}


def _section(settings: Training) -> str:
    """Return the key of the experiment file that settings are from."""
    return "student" if isinstance(settings, Student) else "probe"


def _settings(section: Section) -> dict[str, Json]:
    """Return the fields of a section that were set."""
    return section.model_dump(mode="json", exclude_none=True)
