"""What the graph knows of a stage: its name, its version, and what it publishes by type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ensdistill.pipeline.config import misfit
from ensdistill.pipeline.manifest import Form, Manifest
from ensdistill.pipeline.node import AnyWork, Command, Node, NodeId, Upstream
from ensdistill.stages.contract import Record, Result
from ensdistill.stages.experiment.schema import TRAIN


@dataclass(frozen=True)
class Stage:
    """One of the rooms below.

    Attributes
    ----------
    name : str
        Of its artifacts' folder; and of its room, but for hyphens.
    version : int
        Raised by hand whenever its numbers change for the same recipe.
    result, record : type
        What it publishes, and what it keeps of each item.
    """

    name: str
    version: int
    result: type[Result]
    record: type[Record] = Record

    @property
    def form(self) -> Form:
        """What its artifacts are checked by: they may be of another machine or another hand.

        Checksums prove only that they are what somebody wrote; what does not fit is corrupt.
        """
        return Form(self.version, self._misfit, partial(misfit, model=self.record))

    def _misfit(self, manifest: Manifest) -> str | None:
        return misfit(manifest.result, self.result, manifest)

    def id(self, of: str | None = None, split: str = TRAIN) -> NodeId:
        """Return the id of one of its nodes; that of the training images names no split."""
        return NodeId(self.name, of, None if split == TRAIN else split)

    def node(
        self,
        node_id: NodeId,
        name: str,
        needs: Sequence[NodeId],
        plan: Callable[[Upstream], AnyWork],
        command: Command,
        *,
        run: str = "run",
        unit: str = "images",
        any_of: Mapping[NodeId, NodeId | None] | None = None,
    ) -> Node:
        """Return one of its nodes, made by the function `run` of its room."""
        room = self.name.replace("-", "_")
        function = f"ensdistill.stages.nodes.{room}.run:{run}"
        return Node(node_id, name, self.version, needs, plan, function, command, unit, any_of or {})
