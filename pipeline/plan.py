"""Deciding what must run: graph and snapshot in, decisions out. Nothing here touches a disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, TypeVar

from ensdistill.pipeline.fingerprint import canonical_json, fingerprint
from ensdistill.pipeline.manifest import SHORT, Artifact
from ensdistill.pipeline.node import AnyWork, Node, WaitingError
from ensdistill.pipeline.workspace import Key, Snapshot

T = TypeVar("T")

_COUNT: Final = "recipe.items.count"
_LIST: Final = "recipe.items.sha256"


class State(StrEnum):
    """How a node stands.

    fresh: published. partial: a draft with finished items. stale: published for other settings,
    or from an upstream that was made again and came out different. missing: never made. waiting:
    what it is made from is not known before an upstream node is. corrupt: its manifest is spoilt.
    """

    FRESH = "fresh"
    PARTIAL = "partial"
    STALE = "stale"
    MISSING = "missing"
    WAITING = "waiting"
    CORRUPT = "corrupt"


@dataclass(frozen=True)
class Change:
    """One field that differs from the nearest published artifact of the node."""

    field: str  # its dotted path, such as `recipe.window` or `inputs.labels`
    old: Any  # None where it did not exist
    new: Any  # None where it does not exist


@dataclass(frozen=True)
class Decision:
    """What was found out about one node; None is what is not known yet."""

    node: Node
    state: State
    reason: str = ""  # why it is not fresh, in words
    changes: tuple[Change, ...] = ()  # for a stale node, the fields that changed
    done: int = 0  # items
    total: int = 0  # all items; 0 for a node without
    work: AnyWork | None = None
    fingerprint: str | None = None
    artifact: Artifact | None = None
    previous: Artifact | None = None  # of the node: that with the fewest `changes`

    @property
    def key(self) -> Key | None:
        """Stage and short fingerprint."""
        return None if self.fingerprint is None else (self.node.stage, self.fingerprint[:SHORT])


@dataclass
class _Known:
    """`Upstream` over the decisions made so far."""

    decisions: Mapping[str, Decision]
    _made: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def once(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def content(self, node_id: str) -> Mapping[str, Any]:
        decision = self.decisions[node_id]
        if decision.artifact is None:
            raise WaitingError(node_id)
        return decision.artifact.manifest.result

    def fingerprint(self, node_id: str) -> str:
        decision = self.decisions[node_id]
        if decision.fingerprint is None:
            raise WaitingError(node_id)
        return decision.fingerprint


def plan(nodes: Iterable[Node], snapshot: Snapshot) -> dict[str, Decision]:
    """Decide the state of every node of a graph, each after all that it needs, in that order."""
    decisions: dict[str, Decision] = {}
    known = _Known(decisions)
    for node in nodes:
        whole = _planned(node, known, snapshot)
        lacking = _lacking(node, decisions)
        if lacking and whole.state is not State.FRESH:
            part = _planned(node, known, snapshot, lacking)
            # what was made of what there was holds as long as there is no more
            decisions[node.id] = part if _begun(part, snapshot) else whole
        else:
            decisions[node.id] = whole
    return decisions


def as_far_as_it_goes(
    decision: Decision, decisions: Mapping[str, Decision], snapshot: Snapshot
) -> Decision:
    """Decide anew a node that takes what is there (see `Node.any_of`), as it can be made now."""
    lacking = _lacking(decision.node, decisions)
    return _planned(decision.node, _Known(decisions), snapshot, lacking) if lacking else decision


def still(decision: Decision, decisions: Mapping[str, Decision]) -> bool:
    """Whether a node planned anew is what it was: no input file changed meanwhile."""
    try:
        work, inputs = _work(decision.node, _Known(decisions), left_out(decision))
    except WaitingError:
        return False
    node = decision.node
    name = fingerprint(node.stage, node.version, work.hashed_recipe(), inputs)
    return name == decision.fingerprint


def _lacking(node: Node, decisions: Mapping[str, Decision]) -> list[str]:
    """Return what a node could take and what is not there (see `Node.any_of`)."""
    return [
        node_id
        for node_id, needed in node.any_of.items()
        if needed is not None
        and decisions[node_id].artifact is None
        and decisions[needed].artifact is None
    ]


def _work(node: Node, known: _Known, but: Collection[str] = ()) -> tuple[AnyWork, dict[str, str]]:
    """Return a node's work without some of its upstreams, and the fingerprints of the others.

    Raises
    ------
    WaitingError
        If something is not known yet, or nothing is left.
    """
    work = node.plan(known)
    if but:
        uses = {role: up for role, up in work.uses.items() if up not in but}
        if not set(node.any_of) & set(uses.values()):
            raise WaitingError(node.any_of[next(iter(node.any_of))])
        work = replace(work, uses=uses)
    return work, {role: known.fingerprint(up) for role, up in sorted(work.uses.items())}


def _planned(node: Node, known: _Known, snapshot: Snapshot, but: Collection[str] = ()) -> Decision:
    """Decide a node's state, made without some of its upstreams."""
    try:
        work, inputs = _work(node, known, but)
    except WaitingError as waiting:
        return Decision(node, State.WAITING, f"waits for {waiting}")
    upstream = {role: known.decisions[up].artifact for role, up in work.uses.items()}
    return _decide(node, work, inputs, upstream, snapshot)


def _begun(decision: Decision, snapshot: Snapshot) -> bool:
    """Whether there is anything under a node's present fingerprint, whole or not."""
    made = decision.fingerprint in snapshot.published
    return made or decision.key in snapshot.drafts or decision.key in snapshot.corrupt


def _decide(
    node: Node,
    work: AnyWork,
    inputs: dict[str, str],
    upstream: Mapping[str, Artifact | None],
    snapshot: Snapshot,
) -> Decision:
    recipe = work.hashed_recipe()
    name = fingerprint(node.stage, node.version, recipe, inputs)
    total = len(work.items)
    artifact = snapshot.published.get(name)
    if artifact is not None:
        other = other_content(artifact, upstream)
        if not other:
            return Decision(node, State.FRESH, "", (), total, total, work, name, artifact)
        reason = f"{next(iter(other))} was made again and came out different"
        return Decision(node, State.STALE, reason, tuple(other.values()), 0, total, work, name)
    key = (node.stage, name[:SHORT])
    if key in snapshot.corrupt:
        return Decision(node, State.CORRUPT, snapshot.corrupt[key], (), 0, total, work, name)
    now = {"version": node.version, "recipe": recipe, "inputs": inputs}
    previous, changes = _nearest(snapshot.of_node(node.id), now)
    if key in snapshot.drafts:
        done = snapshot.progress(key)
        reason = f"{done} of {total} items done" if total else "begun, not finished"
        if key in snapshot.busy:
            reason += f"; {snapshot.busy[key]} is at it"
        return Decision(
            node, State.PARTIAL, reason, changes, done, total, work, name, previous=previous
        )
    if previous is None:
        return Decision(node, State.MISSING, "never made", (), 0, total, work, name)
    return Decision(
        node, State.STALE, _reason(changes), changes, 0, total, work, name, previous=previous
    )


def _nearest(
    made: Sequence[Artifact], now: dict[str, Any]
) -> tuple[Artifact | None, tuple[Change, ...]]:
    """Return the artifact that differs in the fewest fields, the last of several, and those.

    Not simply the last one: another experiment, or a setting tried and taken back, may have made
    that, and its differences are not what anybody changed.
    """
    nearest: Artifact | None = None
    fewest: tuple[Change, ...] = ()
    for artifact in made:
        was = artifact.manifest
        found = differences(
            {"version": was.version, "recipe": was.recipe, "inputs": was.inputs}, now
        )
        if nearest is None or len(found) < len(fewest):
            nearest, fewest = artifact, found
    return nearest, fewest


def _reason(changes: Sequence[Change]) -> str:
    fields = [change.field for change in changes]
    # another number of items is another list of items: one clause is enough
    told = [c for c in changes if c.field != _LIST or _COUNT not in fields]
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    return "; ".join(describe(change) for change in told[:3]) + more


def other_content(artifact: Artifact, upstream: Mapping[str, Artifact | None]) -> dict[str, Change]:
    """Return the roles that hold something else than what an artifact was made from."""
    was = artifact.manifest.made_from
    now = {role: a.manifest.content for role, a in upstream.items() if a is not None}
    return {
        role: Change(f"inputs.{role}.content", was[role], content)
        for role, content in sorted(now.items())
        if role in was and was[role] != content
    }


def differences(old: Any, new: Any, field: str = "") -> tuple[Change, ...]:
    """Return the leaves in which two JSON values differ, with dotted paths, sorted by path.

    What is numbered is in the order of its numbers.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[Change] = []
        for key in sorted({*old, *new}, key=_in_numbers):
            path = f"{field}.{key}" if field else key
            if key in old and key in new:
                found += differences(old[key], new[key], path)
            else:
                found.append(Change(path, old.get(key), new.get(key)))
        return tuple(found)
    # as the fingerprint sees them: a tuple is a list, but 1 is neither 1.0 nor true
    return () if canonical_json(old) == canonical_json(new) else (Change(field, old, new),)


def _in_numbers(key: str) -> tuple[str, str]:
    # the key itself as well: `1` and `01` are one number
    return re.sub(r"\d+", lambda number: number[0].zfill(20), key), key


def describe(change: Change) -> str:
    """Return a change as one short clause."""
    if change.old is None:
        return f"{change.field} is new ({_short(change.new)})"
    if change.new is None:
        return f"{change.field} is gone (was {_short(change.old)})"
    return f"{change.field} changed from {_short(change.old)} to {_short(change.new)}"


def closure(decisions: Mapping[str, Decision], targets: Sequence[str]) -> set[str]:
    """Return `targets` and every node they need, directly or not."""
    wanted: set[str] = set()
    open_ends = list(targets)
    while open_ends:
        node_id = open_ends.pop()
        if node_id not in wanted:
            wanted.add(node_id)
            open_ends += decisions[node_id].node.needs
    return wanted


def makeable(decisions: Mapping[str, Decision], targets: Sequence[str]) -> list[str]:
    """Return those of `targets` that are there, or can be made without making anything else."""
    found: set[str] = set()
    for node_id, d in decisions.items():  # each after all that it needs
        some = set(d.node.any_of)
        ready = set(d.node.needs) - some <= found and (not some or some & found)
        if d.state is State.FRESH or (node_id in targets and ready):
            found.add(node_id)
    return [node_id for node_id in targets if node_id in found]


def left_out(decision: Decision) -> list[str]:
    """Return what a node is not made from only because it is not there (see `Node.any_of`)."""
    if decision.work is None:
        return []
    used = set(decision.work.uses.values())
    return [node_id for node_id in decision.node.any_of if node_id not in used]


def awaiting(decision: Decision, wanted: Collection[str]) -> Decision:
    """Return a decision as it stands before a run that makes `wanted`, and so what it lacks."""
    due = [node_id for node_id in left_out(decision) if node_id in wanted]
    return Decision(decision.node, State.WAITING, f"waits for {due[0]}") if due else decision


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:SHORT]
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
