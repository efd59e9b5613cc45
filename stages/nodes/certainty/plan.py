"""`certainty[t]`: how sure the probe of teacher t is of each class (paper, section 3.2, Fig. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from pydantic import ValidationInfo, model_validator

from ensdistill.pipeline.figures import some
from ensdistill.pipeline.manifest import Manifest
from ensdistill.pipeline.node import Command, Node, NodeId, Upstream, Work
from ensdistill.stages.contract import Count, Named, Recipe, Record, Result
from ensdistill.stages.experiment.schema import TRAIN
from ensdistill.stages.local import Running
from ensdistill.stages.nodes.given import BYTES_PER_RECORD, Given
from ensdistill.stages.nodes.learning import running
from ensdistill.stages.nodes.probe.plan import probe_ids
from ensdistill.stages.nodes.stage import Stage


class Certainty(Result):
    """By class, what the probe of a teacher makes of the training images.

    `certainty` is the mean over the pixels that it calls so, None without any, `support` how many
    those are, `labelled` how many the teacher calls so, and `has_class` whether it can call any so.
    """

    certainty: Named
    support: dict[str, Count]
    labelled: dict[str, Count]
    has_class: dict[str, bool]

    @model_validator(mode="after")
    def _of_the_same_classes(self) -> Self:
        for found in (self.certainty, self.support, self.labelled):
            if found.keys() != self.has_class.keys():
                raise ValueError(
                    "expected certainty, support, labelled and has_class of all classes"
                )
        return self

    @model_validator(mode="after")
    def _of_its_own(self, info: ValidationInfo) -> Self:
        """Refuse other classes that its teacher has; which all are its recipe does not say."""
        if info.context is not None:
            manifest: Manifest = info.context
            if [c for c, has in self.has_class.items() if has] != manifest.recipe.get("reached"):
                raise ValueError("has_class: expected the classes that its teacher has")
        if strange := [c for c, has in self.has_class.items() if self.labelled[c] and not has]:
            raise ValueError(f"labelled: its teacher has no class {some(strange)}")
        return self


class Sums(Record):
    """An image's sums of certainty, and pixels, by class."""

    sums: list[float]
    support: list[Count]


STAGE: Final = Stage("certainty", 1, Certainty, Sums)


@dataclass(frozen=True)
class Reached(Recipe):
    """The classes that the teacher can call a pixel."""

    reached: tuple[str, ...]


def certainty_id(name: str) -> NodeId:
    """Return the node id of how sure the probe of labels is, such as a teacher's."""
    return STAGE.id(name)


def probes(node: Node) -> list[NodeId]:
    """Return the probes that a node of this stage asks."""
    return [need for need in node.needs if need.stage == "probe"]


def node(
    given: Given, labels: NodeId, name: str, reached: tuple[str, ...], command: Command
) -> Node:
    """Mean certainty per class of the probe of labels, on the training images.

    Where there are several, each is asked of the images of the fold that it was trained without.
    The labels are of the classes `reached`.
    """
    asked = probe_ids(given, name)
    roles = ["probe"] if len(asked) == 1 else [f"probe:{k}" for k in range(len(asked))]
    uses = dict(zip(roles, asked, strict=True)) | {"labels": labels}

    def plan(upstream: Upstream) -> Work[Reached, Running]:
        return Work(
            Reached(reached),
            uses=uses,
            items=given.items(TRAIN, upstream),
            local=running(given, given.experiment.config.probe, TRAIN, upstream),
            runtime=given.runtime(),
            item_bytes=lambda: BYTES_PER_RECORD,
        )

    return STAGE.node(certainty_id(name), name, list(uses.values()), plan, command)
