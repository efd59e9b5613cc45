"""Running what a plan found missing, one node at a time, planning anew after each."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensdistill.pipeline.errors import CorruptError, NotReadyError
from ensdistill.pipeline.node import Job, Node, Progress, Work
from ensdistill.pipeline.plan import Decision, State, closure, plan
from ensdistill.pipeline.workspace import Artifact, Draft, Manifest, Workspace, now


@dataclass
class Ran:
    """One node that was made.

    Attributes
    ----------
    node : str
        Node id.
    written, total : int
        Items computed in this session and all items; both 0 for a node without items.
    seconds : float
        Wall time of this session.
    """

    node: str
    written: int
    total: int
    seconds: float


@dataclass
class Report:
    """What a run did: nodes made, in order, and nodes that were fresh already."""

    ran: list[Ran] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def run(
    nodes: Sequence[Node],
    workspace: Workspace,
    targets: Sequence[str],
    progress: Callable[[Decision], Progress],
    *,
    upstream: bool = False,
) -> Report:
    """Make `targets` that are not fresh.

    Parameters
    ----------
    nodes : sequence of Node
        The graph, each node after all that it needs.
    workspace : Workspace
        Where the artifacts are.
    targets : sequence of str
        Ids of the nodes wanted.
    progress : callable
        Called with the decision for each node that is about to run.
    upstream : bool
        Also make nodes that the targets need.

    Raises
    ------
    NotReadyError
        If a needed node is not fresh and neither a target nor allowed by `upstream`.
    """
    report = Report()
    wanted: set[str] | None = None
    while True:
        decisions = plan(nodes, workspace.scan())
        if wanted is None:
            wanted = closure(decisions, targets) if upstream else set(targets)
        todo = [n for n, d in decisions.items() if n in wanted and d.state is not State.FRESH]
        if not todo:
            # only now: a node that waited may have turned out to be fresh
            made = {r.node for r in report.ran}
            report.fresh = [n for n in decisions if n in wanted and n not in made]
            return report
        decision = decisions[todo[0]]
        if decision.node.id in (made.node for made in report.ran):
            raise CorruptError(
                f"{decision.node.id} was made and is {decision.state} again ({decision.reason}); "
                "did an input file change meanwhile? Run again"
            )
        _require_upstream(decision, decisions)
        report.ran.append(_make(decision, decisions, workspace, progress))


def _require_upstream(decision: Decision, decisions: dict[str, Decision]) -> None:
    needed = decision.work.uses.values() if decision.work else decision.node.needs
    for node_id in needed:
        upstream = decisions[node_id]
        if upstream.state is not State.FRESH:
            raise NotReadyError(
                f"{decision.node.id} needs {node_id}, which is {upstream.state} "
                f"({upstream.reason}); run `ensdistill {upstream.node.command}` first, "
                "or repeat this command with --upstream"
            )


def _make(
    decision: Decision,
    decisions: dict[str, Decision],
    workspace: Workspace,
    progress: Callable[[Decision], Progress],
) -> Ran:
    node, work, name = decision.node, decision.work, decision.fingerprint
    assert work is not None
    assert name is not None
    if decision.state is State.CORRUPT:
        raise CorruptError(f"{node.id} is corrupt: {decision.reason}; delete that folder")
    inputs: dict[str, Artifact] = {}
    for role, node_id in work.uses.items():
        artifact = decisions[node_id].artifact
        assert artifact is not None
        inputs[role] = artifact
    begin = time.perf_counter()
    with workspace.lock(node.stage, name, node.id):
        if name in workspace.scan().published:  # another process was faster
            return Ran(node.id, 0, len(work.items), 0.0)
        draft = workspace.draft(node.stage, node.name, name)
        module, function = node.run.split(":")
        try:
            job = Job(node, work, draft, inputs, progress(decision))
            result = getattr(importlib.import_module(module), function)(job)
            seconds = time.perf_counter() - begin
            manifest = Manifest(
                node=node.id,
                stage=node.stage,
                version=node.version,
                fingerprint=name,
                recipe=work.hashed_recipe(),
                inputs={role: a.manifest.fingerprint for role, a in sorted(inputs.items())},
                result=result,
                runtime=work.runtime | job.ran_on,
                seconds=round(seconds, 3),
                written=draft.written,
                finished=now(),
            )
            draft.publish(manifest, _index(work, draft))
        finally:
            draft.close()
    return Ran(node.id, draft.written, len(work.items), seconds)


def _index(work: Work, draft: Draft) -> list[dict[str, Any]]:
    """Return the item index in stored order; a missing item is a defect of the stage."""
    records = draft.records() if work.items else {}
    missing = [item.id for item in work.items if item.id not in records]
    if missing:
        raise CorruptError(
            f"{draft.path}: {len(missing)} items were not written, the first is {missing[0]}; "
            "run again"
        )
    return [records[item.id] for item in work.items]
