"""What the engine knows of a stage: a node of the graph and the work it stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from ensdistill.pipeline.draft import Draft
from ensdistill.pipeline.fingerprint import KEYS, Json, digest
from ensdistill.pipeline.journal import Record
from ensdistill.pipeline.locks import Part
from ensdistill.pipeline.manifest import SHORT, Artifact
from ensdistill.pipeline.spares import Spare

T = TypeVar("T")


class Told(Protocol):
    """What is written into a manifest, such as a recipe."""

    def to_json(self) -> dict[str, Json]:
        """Return it as JSON has it."""


RecipeT = TypeVar("RecipeT", bound=Told, covariant=True)
LocalT = TypeVar("LocalT", covariant=True)


class NodeId(str):
    """What a node is called, and what that is made of: ``infer[espnet]@val``."""

    stage: str  # what is done
    of: str | None  # of what, such as a teacher or a method; None where there is one of its stage
    at: str | None  # for which split; None for the images that are trained on

    def __new__(cls, stage: str, of: str | None = None, at: str | None = None) -> NodeId:
        """Spell an id."""
        told = ("" if of is None else f"[{of}]", "" if at is None else f"@{at}")
        self = super().__new__(cls, "".join((stage, *told)))
        self.stage, self.of, self.at = stage, of, at
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.stage, self.of, self.at


class Command(NamedTuple):
    """A command that makes nodes: its name, and what is said after it."""

    name: str
    arguments: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.arguments}".rstrip()


class Item(NamedTuple):
    """One unit of atomic work and resume, such as an image.

    What it is made from goes by names, such as ``image``, to digests. What it reads of the upstream
    artifacts, each of them whole, goes by the item's own words to roles: no other role and no
    role's name enters its key. None: all roles, and of those that have items that of the same id.
    """

    id: str  # unique within the node
    made_from: dict[str, str] = {}  # noqa: RUF012  (nobody changes it)
    reads: Mapping[str, str] | None = None


class Items(tuple[Item, ...]):
    """A list of items, whose digest is made once however many nodes have it."""

    @cached_property
    def sha256(self) -> str:
        """The digest of all ids, what they are made from and read, 64 hex digits."""
        names = sorted({name for item in self for name in item.made_from})
        # thousands of short texts: one flat list is encoded five times as fast as their nesting
        flat = [t for i, given, _ in self for t in (i, *[given.get(n) for n in names])]
        told: list[Any] = [names, flat]
        if any(item.reads is not None for item in self):
            told.append([None if item.reads is None else dict(item.reads) for item in self])
        text = json.dumps(told, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Work(Generic[RecipeT, LocalT]):
    """What a node would do now.

    Attributes
    ----------
    recipe : Told
        Everything that changes the numbers. No paths, no names of teachers, no devices.
    uses : dict
        Role to node id of the upstream artifacts that are read; they enter by fingerprint.
    items : sequence of Item
        Units of resume, in the order in which they are stored; empty for a node done in one piece.
    called : dict
        Role to what a person calls it, such as a teacher's name: recorded, in no key.
    local : object
        What the stage needs to run but must not be hashed: paths, device, worker counts.
    runtime : dict
        The JSON form of `local` that is worth recording.
    item_bytes : callable or None
        Returns about what an item takes on disk; asked only where no artifact tells.
    """

    recipe: RecipeT
    uses: dict[str, NodeId] = field(default_factory=dict)
    items: Sequence[Item] = ()
    called: dict[str, str] = field(default_factory=dict)
    local: LocalT = None  # type: ignore[assignment]
    runtime: dict[str, Json] = field(default_factory=dict)
    item_bytes: Callable[[], int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.items, Items):
            object.__setattr__(self, "items", Items(self.items))

    def hashed_recipe(self) -> dict[str, Json]:
        """Return the recipe with the items in short form, as it enters the fingerprint."""
        recipe = self.recipe.to_json()
        if not self.items:
            return recipe
        if "items" in recipe:
            raise ValueError("a recipe's key `items` is taken by the list of items")
        assert isinstance(self.items, Items)
        items: Json = {"count": len(self.items), "sha256": self.items.sha256}
        return {**recipe, "items": items}

    def item_keys(
        self,
        stage: str,
        version: int,
        upstream: Mapping[str, str | Mapping[str, str]],
        contents: Mapping[str, str],
    ) -> dict[str, str]:
        """Return for each item the key of all that it is made from.

        Neither its id nor the other items are part of it: the same image in another list, split or
        experiment has the same key.

        Parameters
        ----------
        stage, version : str, int
            The node's.
        upstream : mapping
            Role to what is read there: a mapping of item ids to digests of their content, of which
            an item reads its own; or the content digest of an artifact that is read whole.
        contents : mapping
            Role to the content digest of the artifact, for items that say what they read.
        """
        common = digest([KEYS, stage, version, self.recipe.to_json()])
        keys = {}
        for item in self.items:
            reads: Json
            if item.reads is not None:
                reads = {name: contents[role] for name, role in item.reads.items()}
            else:
                reads = {
                    role: found if isinstance(found, str) else found[item.id]
                    for role, found in upstream.items()
                }
            keys[item.id] = digest([common, dict(item.made_from), reads])
        return keys


AnyWork: TypeAlias = Work[Told, object]


class WaitingError(LookupError):
    """Raised inside `Node.plan` when something it needs is not known yet; the text says what."""


class Upstream(Protocol):
    """What `Node.plan` may ask, once a plan; the first two raise `WaitingError`."""

    def content(self, node_id: NodeId) -> Mapping[str, Any]:
        """Return the published result of a small upstream, which enters by content."""

    def fingerprint(self, node_id: NodeId) -> str:
        """Return the fingerprint of an upstream, published or not."""

    def once(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """Return ``make()``, called once for all nodes of a plan."""


class Progress(Protocol):
    """Where a stage reports how far it is."""

    def start(self, total: int, done: int, unit: str) -> None:
        """Begin: `done` of `total` units exist already."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` further units are done; `note` is a short figure worth seeing."""

    def message(self, text: str) -> None:
        """Say something once, such as an estimate."""


@dataclass(frozen=True)
class Job(Generic[RecipeT, LocalT]):
    """What a stage's `run` gets.

    It fills `ran_on` with what was found at run time, such as the device that ``auto`` stands for:
    that is recorded in the manifest's `runtime`.
    """

    node: Node
    work: Work[RecipeT, LocalT]  # as planned
    draft: Draft  # the folder to fill and its journal
    inputs: Mapping[str, Artifact]  # what was published upstream, for every role of `work.uses`
    progress: Progress
    # of missing items, by their ids: finished ones of other artifacts with the same key
    spares: Mapping[str, Spare] = field(default_factory=dict)
    part: Part | None = None  # of the items, to make; None for all
    ran_on: dict[str, Json] = field(default_factory=dict)

    def mine(self) -> list[str]:
        """Return the ids of the items of this part, in stored order."""
        part = self.part
        return [item.id for k, item in enumerate(self.work.items) if part is None or part.has(k)]

    def todo(self) -> list[str]:
        """Return the ids of the items of this part that are not finished, in stored order."""
        done = self.draft.records()
        return [item_id for item_id in self.mine() if item_id not in done]

    def start(self, unit: str) -> None:
        """Report how many items there are and how many are finished."""
        total = len(self.mine())
        self.progress.start(total, total - len(self.todo()), unit)

    def records(self) -> list[Record]:
        """Return the record of every item, in stored order.

        Raises
        ------
        UnfinishedError
            If other parts are not done; the runner then publishes nothing.
        """
        self.draft.flush()
        self.draft.reload()
        return self.draft.complete()


@dataclass(frozen=True)
class Node:
    """A node of the graph.

    `run`, ``"module:function"``, is imported only when it runs; it takes a `Job` and returns a
    small result that is `Told`. `any_of` are those of `needs` of which it takes what is there, and
    has nothing to do where none is; each to the node that decides that, None for one that can
    always be made with it.
    """

    id: NodeId  # unique; its stage is also the folder of its artifacts
    name: str  # of the artifact's folder, before its fingerprint
    version: int  # the stage's
    needs: Sequence[NodeId]  # all that `plan` may ask about
    plan: Callable[[Upstream], AnyWork]
    run: str
    command: Command  # what makes it
    unit: str = "images"  # what its items are, for messages
    any_of: Mapping[NodeId, NodeId | None] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """What it does."""
        return self.id.stage

    def names(self, folder: Path) -> bool:
        """Whether a folder is called as its artifacts and drafts are, whatever their fingerprint.

        All that tells of a draft, or of a manifest that is spoilt, which settings were others.
        """
        return (folder.parent.name, folder.name[: -SHORT - 1]) == (self.stage, self.name)
