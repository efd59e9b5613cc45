"""`infer[t]`: the label maps of a teacher (output unification; paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from ensdistill.data.classes import to_target_ids
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.node import Command, Node, NodeId, Upstream, Work
from ensdistill.stages.contract import Labelled, LabelMap, Recipe
from ensdistill.stages.experiment.networks import Network
from ensdistill.stages.experiment.schema import TRAIN, Teacher, Training
from ensdistill.stages.local import LabelFiles, Running
from ensdistill.stages.networks.files import Hashed
from ensdistill.stages.networks.kinds import hashed
from ensdistill.stages.nodes.given import ALL_FUSIONS, EVALUATE, INFER, Given, settings_of
from ensdistill.stages.nodes.learning import divisor_of, running
from ensdistill.stages.nodes.stage import Stage

STAGE: Final = Stage("infer", 1, Labelled, LabelMap)


@dataclass(frozen=True)
class _Mapped(Recipe):
    """What decides labels: a teacher's class to one of the experiment's, or None."""

    map: Mapping[str, str | None]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class FromFiles(_Mapped):
    """The same of PNGs: how they are encoded, and each raw value's train id or 255."""

    source: str = field(default="labels", init=False)
    ids: str
    values: Mapping[int, int]


@dataclass(frozen=True)
class ByNetwork(_Mapped):
    """The same of a network, and what decides what that says of an image."""

    network: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """Return it as it is hashed."""
        return {"map": dict(self.map), "classes": list(self.classes), **self.network}


def infer_id(teacher: str, split: str = TRAIN) -> NodeId:
    """Return the node id of a teacher's label maps on a split."""
    return STAGE.id(teacher, split)


def node(given: Given, teacher: Teacher, split: str = TRAIN) -> Node:
    """Label maps of a teacher on a split."""
    command = Command("evaluate", f"--split {split}")
    if split == TRAIN:
        command = Command(INFER.name, teacher.name)
    from_files = teacher.labels is not None
    return STAGE.node(
        infer_id(teacher.name, split),
        f"{teacher.name}-{split}",
        [],
        partial(_from_files if from_files else _by_network, given, teacher, split),
        command,
        run="from_files" if from_files else "by_network",
    )


def _trained(trained: NodeId) -> str:
    """Return what a network that is trained here is called among the teachers."""
    return trained.stage if trained.of is None else f"{trained.stage}:{trained.of}"


def trained_id(trained: NodeId, split: str) -> NodeId:
    """Return the node id of the label maps of a network that is trained here, node `trained`."""
    return infer_id(_trained(trained), split)


def of_trained(given: Given, trained: NodeId, split: str) -> Node:
    """Label maps of a network that is trained here, node `trained`, as of any network."""
    config = given.experiment.config
    settings: Training = config.student if trained.stage == "student" else config.probe

    def plan(upstream: Upstream) -> Work[ByNetwork, Running]:
        return Work(
            ByNetwork({c: c for c in given.classes}, given.classes, {"source": "student"}),
            uses={"network": trained},
            items=given.items(split, upstream),
            local=running(
                given, settings, split, upstream, {i: i for i in range(len(given.classes))}
            ),
            runtime=given.runtime(),
            item_bytes=given.map_bytes(split),
        )

    return STAGE.node(
        trained_id(trained, split),
        f"{_trained(trained).replace(':', '-')}-{split}",
        [trained],
        plan,
        EVALUATE if trained.stage == "student" else ALL_FUSIONS,
        run="by_network",
    )


def network_of(given: Given, teacher: Teacher) -> dict[str, Json]:
    """Return what decides what a teacher's network says of an image."""
    network = teacher.network
    assert network is not None
    recipe: dict[str, Json] = {
        "source": network.kind,
        "network": _hashed(given, teacher).recipe,
        "teacher_classes": list(given.experiment.teacher_table(teacher).classes),
        "preprocess": settings_of(teacher.preprocess),
        **divisor_of(network),
    }
    for key in ("ignore_keys", "output", "void_channels", "take", "precision"):
        if (value := getattr(network, key)) != Network.model_fields[key].default:
            recipe[key] = sorted(value) if isinstance(value, tuple) else value
    return recipe


def network_local(given: Given, teacher: Teacher, split: str, upstream: Upstream) -> Running:
    """Return what running a teacher's network needs."""
    exp = given.experiment
    source, mapping = exp.teacher_source(teacher), exp.teacher_map(teacher)
    return Running(
        **vars(given.local(split, upstream)),
        network=source.path,
        factory=source.factory,
        state_dict=source.state_dict,
        trusted=source.trusted,
        weights=_hashed(given, teacher).digests,
        to_target=to_target_ids(exp.teacher_table(teacher), exp.classes, mapping),
    )


def _hashed(given: Given, teacher: Teacher) -> Hashed:
    exp = given.experiment
    return hashed(exp.teacher_source(teacher), exp.files.digest)


def _from_files(
    given: Given, teacher: Teacher, split: str, upstream: Upstream
) -> Work[FromFiles, LabelFiles]:
    exp = given.experiment
    assert teacher.labels is not None
    table, mapping = exp.teacher_table(teacher), exp.teacher_map(teacher)
    to_target = to_target_ids(table, exp.classes, mapping)
    legal = {raw: to_target[own] for raw, own in table.legal_values(teacher.ids).items()}
    where = f"teachers[{teacher.name}].labels.{split}"
    items, local = given.pngs(teacher.labels[split], split, where, "prediction", upstream)
    return Work(
        FromFiles(mapping, given.classes, teacher.ids, dict(sorted(legal.items()))),
        items=items,
        local=replace(local, to_target=legal, palette=teacher.ids == "palette"),
        runtime={"folder": str(exp.folder(teacher.labels[split]))},
        item_bytes=given.map_bytes(split),
    )


def _by_network(
    given: Given, teacher: Teacher, split: str, upstream: Upstream
) -> Work[ByNetwork, Running]:
    local = network_local(given, teacher, split, upstream)
    mapping = given.experiment.teacher_map(teacher)
    return Work(
        ByNetwork(mapping, given.classes, network_of(given, teacher)),
        items=given.items(split, upstream),
        local=local,
        runtime=given.runtime() | {"folder": str(local.network)},
        item_bytes=given.map_bytes(split),
    )
