"""Why a node stands as it does, down to the image, and what making it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ensdistill.pipeline.draft import Draft
from ensdistill.pipeline.errors import CorruptError
from ensdistill.pipeline.locks import Part
from ensdistill.pipeline.manifest import SHORT, Artifact
from ensdistill.pipeline.plan import Decision, State
from ensdistill.pipeline.runner import item_keys
from ensdistill.pipeline.workspace import Snapshot, Workspace


@dataclass(frozen=True)
class Estimate:
    """What a run would do for a node."""

    compute: int  # items; 0 for a node without
    reuse: int  # items to take from other artifacts
    bytes: int | None  # about what computing would write to disk; None if nothing tells
    at_most: bool  # upstream nodes have to run first, so some of the items may turn out to be there


def estimate(
    decision: Decision,
    decisions: Mapping[str, Decision],
    workspace: Workspace,
    snapshot: Snapshot,
    part: Part | None = None,
) -> Estimate | None:
    """Return what making a node, or a part of it, would take; None if fresh or not known yet."""
    work = decision.work
    if work is None or decision.state in (State.FRESH, State.CORRUPT):
        return None
    left = unfinished(decision, decisions, snapshot)
    missing, reuse = len(work.items) - decision.done, 0
    if left is not None:
        mine = {item.id for k, item in enumerate(work.items) if part is None or part.has(k)}
        left = {item_id: key for item_id, key in left.items() if item_id in mine}
        missing = len(left)
        own = own_folder(decision, snapshot)
        reuse = len(workspace.spares(decision.node.stage, left, own))
    stage = decision.node.stage
    made = [a.manifest for a in snapshot.published.values() if a.manifest.stage == stage]
    made.sort(key=lambda manifest: manifest.finished)
    size: int | None = None
    if not work.items:
        size = made[-1].disk_bytes if made else None
    else:
        counts = [(m.disk_bytes, m.count) for m in made if m.count]
        if counts:
            size = round((missing - reuse) * sum(b for b, _ in counts) / sum(n for _, n in counts))
        elif work.item_bytes is not None:
            size = (missing - reuse) * work.item_bytes()
    return Estimate(missing - reuse, reuse, size, left is None)


def unfinished(
    decision: Decision, decisions: Mapping[str, Decision], snapshot: Snapshot
) -> dict[str, str] | None:
    """Return id and key of the items that a run would make or take from elsewhere.

    None if an upstream has to be made first, so that the keys are not known.
    """
    work = decision.work
    if work is None:
        return None
    inputs: dict[str, Artifact] = {}
    for role, node_id in work.uses.items():
        artifact = decisions[node_id].artifact
        if artifact is None:
            return None
        inputs[role] = artifact
    keys = item_keys(decision.node, work, inputs)
    own = own_folder(decision, snapshot)
    done = Draft(own, keys).records() if own is not None else {}
    return {item_id: key for item_id, key in keys.items() if item_id not in done}


def own_folder(decision: Decision, snapshot: Snapshot) -> Path | None:
    """Return the draft or artifact of a node's present fingerprint."""
    if decision.fingerprint is None:
        return None
    published = snapshot.published.get(decision.fingerprint)
    if published is not None:
        return published.path
    return snapshot.drafts.get((decision.node.stage, decision.fingerprint[:SHORT]))


@dataclass(frozen=True)
class ItemChanges:
    """How a list of items differs from that of the last artifact, by their ids."""

    new: list[str]
    gone: list[str]
    changed: dict[str, list[str]]  # the names of what changed, such as `image`


def item_changes(decision: Decision, previous: Artifact | None) -> ItemChanges | None:
    """Compare a node's items with those of its last artifact; None where there is none."""
    if decision.work is None or previous is None or not decision.work.items:
        return None
    try:
        old = {record["id"]: record["made_from"] for record in previous.items}
    except CorruptError:
        return None
    now = {item.id: item.made_from for item in decision.work.items}
    changed = {
        i: [k for k in sorted({*old[i], *made_from}) if old[i].get(k) != made_from.get(k)]
        for i, made_from in now.items()
        if i in old
    }
    return ItemChanges(
        [i for i in now if i not in old],
        [i for i in old if i not in now],
        {i: names for i, names in changed.items() if names},
    )


def below(node_id: str, decisions: Mapping[str, Decision]) -> list[str]:
    """Return the nodes that need a node, directly or not, in order."""
    found = {node_id}
    for other, decision in decisions.items():
        if found & set(decision.node.needs):
            found.add(other)
    return [other for other in decisions if other in found and other != node_id]
