"""What the engine knows of a stage: a node of the graph and the work it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ensdistill.pipeline.fingerprint import Json, digest

if TYPE_CHECKING:
    from ensdistill.pipeline.workspace import Artifact, Draft


@dataclass(frozen=True)
class Item:
    """One unit of atomic work and resume, such as an image.

    Attributes
    ----------
    id : str
        Unique within the node.
    content : tuple of str
        Digests of what the item is made from.
    """

    id: str
    content: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a node would do now.

    Attributes
    ----------
    recipe : dict
        Everything that changes the numbers. No paths, no names of teachers, no devices.
    uses : dict
        Role to node id of the upstream artifacts that are read; they enter by fingerprint.
    items : tuple of Item
        Units of resume, in the order in which they are stored; empty for a node done in one piece.
    local : object
        What the stage needs to run but must not be hashed: paths, device, worker counts.
    runtime : dict
        The JSON form of `local` that is worth recording.
    """

    recipe: dict[str, Json]
    uses: dict[str, str] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    local: Any = None
    runtime: dict[str, Json] = field(default_factory=dict)

    def hashed_recipe(self) -> dict[str, Json]:
        """Return the recipe with the items in short form, as it enters the fingerprint."""
        if not self.items:
            return self.recipe
        listed: Json = [[item.id, *item.content] for item in self.items]
        return {**self.recipe, "items": {"count": len(self.items), "sha256": digest(listed)}}


class WaitingError(LookupError):
    """Raised inside `Node.plan` when something it needs is not known yet; the text says what."""


class Upstream(Protocol):
    """What `Node.plan` may ask about the nodes above; both raise `WaitingError`."""

    def content(self, node_id: str) -> Mapping[str, Any]:
        """Return the published result of a small upstream, which enters by content."""

    def fingerprint(self, node_id: str) -> str:
        """Return the fingerprint of an upstream, published or not."""


class Progress(Protocol):
    """Where a stage reports how far it is."""

    def start(self, total: int, done: int, unit: str) -> None:
        """Begin: `done` of `total` units exist already."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` further units are done; `note` is a short figure worth seeing."""

    def message(self, text: str) -> None:
        """Say something once, such as an estimate."""


@dataclass(frozen=True)
class Job:
    """What a stage's `run` gets.

    Attributes
    ----------
    node : Node
        The node being run.
    work : Work
        Its work, as planned.
    draft : Draft
        The folder to fill and its journal.
    inputs : dict
        Role to published upstream artifact, for every role of `work.uses`.
    progress : Progress
        Where to report.
    ran_on : dict
        Filled by the stage with what was found at run time, such as the device that ``auto``
        stands for; recorded in the manifest's `runtime`.
    """

    node: Node
    work: Work
    draft: Draft
    inputs: Mapping[str, Artifact]
    progress: Progress
    ran_on: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """A node of the graph.

    Attributes
    ----------
    id : str
        Unique, readable name such as ``"infer[espnet]@val"``.
    stage : str
        The stage's name, which is also the folder of its artifacts.
    name : str
        What the artifact's folder is called, before its fingerprint.
    version : int
        The stage's `VERSION`.
    needs : sequence of str
        Ids of all nodes that `plan` may ask about.
    plan : callable
        Makes the `Work` from what is known of the upstream nodes.
    run : str
        ``"module:function"``, imported only when the node runs; takes a `Job`, returns a
        small JSON-able result.
    command : str
        The command that makes it, for messages.
    """

    id: str
    stage: str
    name: str
    version: int
    needs: Sequence[str]
    plan: Callable[[Upstream], Work]
    run: str
    command: str
