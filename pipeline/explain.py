"""Why a node stands as it does, down to the image, and what making it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ensdistill.pipeline.errors import CorruptError
from ensdistill.pipeline.manifest import Artifact
from ensdistill.pipeline.plan import Decision, State
from ensdistill.pipeline.runner import item_keys
from ensdistill.pipeline.workspace import SHORT, Workspace


@dataclass(frozen=True)
class Estimate:
    """What a run would do for a node.

    Attributes
    ----------
    compute, reuse : int
        Items to compute, and items to take from other artifacts; 0 for a node without items.
    bytes : int or None
        About what it would write to disk; None if nothing tells.
    at_most : bool
        Upstream nodes have to run first, so some of the items may turn out to be there.
    """

    compute: int
    reuse: int
    bytes: int | None
    at_most: bool


def estimate(
    decision: Decision, decisions: Mapping[str, Decision], workspace: Workspace
) -> Estimate | None:
    """Return what making a node would take; None if it is fresh or not known yet."""
    work = decision.work
    if work is None or decision.state is State.FRESH:
        return None
    snapshot = workspace.scan()
    missing = len(work.items) - decision.done
    inputs: dict[str, Artifact] = {}
    for role, node_id in work.uses.items():
        artifact = decisions[node_id].artifact
        if artifact is not None:
            inputs[role] = artifact
    reuse, at_most = 0, len(inputs) < len(work.uses)
    if work.items and not at_most:
        assert decision.fingerprint is not None
        keys = item_keys(decision.node, work, inputs)
        own = snapshot.drafts.get((decision.node.stage, decision.fingerprint[:SHORT]))
        reuse = min(missing, len(workspace.spares(decision.node.stage, keys, own)))
    made = [
        a.manifest for a in snapshot.published.values() if a.manifest.stage == decision.node.stage
    ]
    made.sort(key=lambda manifest: manifest.finished)
    size: int | None = None
    if not work.items:
        size = made[-1].disk_bytes if made else None
    else:
        counts = [(m.disk_bytes, m.recipe["items"]["count"]) for m in made if "items" in m.recipe]
        if counts:
            size = round(missing * sum(b for b, _ in counts) / sum(n for _, n in counts))
        elif work.item_bytes is not None:
            size = missing * work.item_bytes()
    return Estimate(missing - reuse, reuse, size, at_most)


@dataclass(frozen=True)
class ItemChanges:
    """How a list of items differs from that of the last artifact.

    Attributes
    ----------
    new, gone : list of str
        Item ids.
    changed : dict
        Item id to the names of what changed, such as ``image``.
    """

    new: list[str]
    gone: list[str]
    changed: dict[str, list[str]]


def item_changes(decision: Decision, previous: Artifact | None) -> ItemChanges | None:
    """Compare a node's items with those of its last artifact; None where there is none."""
    if decision.work is None or previous is None or not decision.work.items:
        return None
    try:
        old = {record["id"]: record["content"] for record in previous.items}
    except CorruptError:
        return None
    now = {item.id: item.content for item in decision.work.items}
    changed = {
        i: [k for k in sorted({*old[i], *content}) if old[i].get(k) != content.get(k)]
        for i, content in now.items()
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
