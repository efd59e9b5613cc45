"""Making damaged artifacts good: unpublished, without what is damaged, and made again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ensdistill.pipeline.manifest import ForeignManifestError, SpoiltManifestError, read_manifest
from ensdistill.pipeline.node import Node, Progress
from ensdistill.pipeline.plan import Decision, State, closure, plan
from ensdistill.pipeline.runner import Ran, run
from ensdistill.pipeline.verify import Damage, damages, readable_manifest, withdraw
from ensdistill.pipeline.workspace import Workspace, key_of, lock_name


@dataclass
class Repair:
    """What came of a repair."""

    ran: list[Ran] = field(default_factory=list)
    # nodes that came out different from before; what is below them is stale now
    different: list[str] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)  # folder to why it was left as it is


def repair(
    nodes: Sequence[Node],
    workspace: Workspace,
    damaged: Mapping[Path, list[Damage]],
    progress: Callable[[Decision], Progress],
    about: Path | None = None,
) -> Repair:
    """Make damaged artifacts of a graph good.

    Only damaged items are computed again; a node without items is made again as a whole.

    Parameters
    ----------
    nodes, workspace, progress, about
        See `runner.run`.
    damaged : mapping
        Folder to its damage (see `verify.damages`).

    Raises
    ------
    LockedError
        If another process is working on one of them.
    """
    report = Repair()
    remaining = dict(damaged)
    decisions: Mapping[str, Decision] = {}
    while remaining:
        decisions = plan(nodes, workspace.scan())
        damaged_nodes = {n for n, d in decisions.items() if _folder(d, remaining) is not None}
        done = None
        for decision in decisions.values():  # upstream before downstream
            folder = _folder(decision, remaining)
            if folder is None:
                continue
            if workspace.is_linked(folder):
                report.left[folder] = "it lies behind a link; repair the workspace that it is in"
                continue
            if _is_foreign(folder):
                report.left[folder] = "it was made by another version of ensdistill"
                continue
            missing = _missing(decision, decisions, damaged_nodes)
            if missing is None:
                report.left.pop(folder, None)
                remaining.pop(folder)
                _repair(decision, folder, nodes, workspace, progress, about, report)
                done = folder
                break  # what could not be planned before may be now
            report.left[folder] = f"{decision.node.id} is made from {missing}, which is missing"
        if done is None:
            break
    for folder in remaining:
        report.left.setdefault(folder, _why_left(folder, decisions))
    return report


def _why_left(folder: Path, decisions: Mapping[str, Decision]) -> str:
    for decision in decisions.values():
        node = decision.node
        if decision.state is State.WAITING and node.names(folder):
            return f"{node.id} {decision.reason}; `ensdistill run`, then verify again"
    return (
        "this experiment does not make it; if another file does, repeat with `-c` of that one, "
        "else `ensdistill gc` clears it away"
    )


def _repair(
    decision: Decision,
    folder: Path,
    nodes: Sequence[Node],
    workspace: Workspace,
    progress: Callable[[Decision], Progress],
    about: Path | None,
    report: Repair,
) -> None:
    node = decision.node
    assert decision.fingerprint is not None
    lock = lock_name(node.stage, decision.fingerprint)
    workspace.locks.needed()  # forgets the commands that are gone, once for all
    with workspace.locks.hold(lock, node.id):
        # another process may have made it good meanwhile
        found = damages(folder, forms=workspace.forms)
        was = readable_manifest(folder)
        with workspace.locks.clearing():  # no command begins meanwhile
            needed = workspace.locks.needed(wait=False)
            who = next((who for who, needs in needed.items() if needs.takes(lock)), None)
            again = bool(found) and who is None and withdraw(folder, found, workspace.forms)
    if found and who is not None:
        report.left[folder] = (
            f"a command under way ({who}) reads it; wait for it or stop it, then verify again"
        )
    if again:
        report.ran += run(nodes, workspace, [node.id], progress, about=about).ran
        now = readable_manifest(folder)
        if was is not None and (now is None or now.content != was.content):
            report.different.append(node.id)


def _folder(decision: Decision, damaged: Mapping[Path, list[Damage]]) -> Path | None:
    """Return the damaged folder that a node makes."""
    return next((folder for folder in damaged if key_of(folder) == decision.key), None)


def made_from(decisions: Mapping[str, Decision], damaged: Iterable[Path]) -> set[str]:
    """Return the stages that damaged artifacts are made by, and all that they are made from.

    A node that waits is taken for one of its name, since no fingerprint tells which it is; no
    manifest is read, as it may be what is damaged.
    """
    found = [
        node_id
        for node_id, d in decisions.items()
        if any(key_of(f) == d.key if d.key else d.node.names(f) for f in damaged)
    ]
    return {decisions[node_id].node.stage for node_id in closure(decisions, found)}


def _missing(
    decision: Decision, decisions: Mapping[str, Decision], damaged: Collection[str]
) -> str | None:
    """Return an upstream that would have to be made first."""
    uses = decision.work.uses.values() if decision.work else ()
    return next(
        (up for up in uses if decisions[up].state is not State.FRESH or up in damaged), None
    )


def _is_foreign(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except (FileNotFoundError, SpoiltManifestError) as error:
        return isinstance(error, ForeignManifestError)
    return False
