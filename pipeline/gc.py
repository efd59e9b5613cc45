"""Clearing away what no experiment reaches any more."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from ensdistill.pipeline.draft import unpublish
from ensdistill.pipeline.errors import CorruptError, EnsdistillError
from ensdistill.pipeline.explain import own_folder, unfinished
from ensdistill.pipeline.locks import Needs
from ensdistill.pipeline.opening import real_path
from ensdistill.pipeline.ownership import is_own
from ensdistill.pipeline.plan import Decision, State, left_out
from ensdistill.pipeline.workspace import Snapshot, Workspace, key_of, lock_name, mark_of

_CACHED: Final = re.compile(r"[0-9a-f]{64}\.(rgb|f16)(\..+\.partial)?")


@dataclass(frozen=True)
class Kept:
    """A folder of the workspace, or files of one, and whether and why it stays."""

    path: Path
    kind: Literal["artifact", "draft", "corrupt", "cache"]
    node: str | None  # that it was made for, where that is known
    bytes: int  # on disk; of what several share, with the first of them (what stays before others)
    reason: str | None  # why it stays; None if nothing needs it
    files: tuple[str, ...] = ()  # those of a cache that this is about


def survey(
    workspace: Workspace,
    plans: Sequence[Mapping[str, Decision]],
    *,
    keep_last: int = 0,
    named: Collection[Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> list[Kept]:
    """Say of every artifact and draft whether it stays.

    It does if a node of the plans is it, or may turn out to be it (a node that waits); if a node
    that is not fresh will take finished items from it; if it is one of the `keep_last` last of its
    node; if an experiment names a path in it; or if a process reads it.

    Parameters
    ----------
    plans : sequence of mapping
        A plan for each experiment that uses the workspace.
    keep_last : int
        Published artifacts to keep of every node, fresh or not.
    named : collection of Path
        Paths that experiments name, such as the folder of a student that teaches.
    say : callable
        Told what is waited for.
    """
    needed = workspace.locks.needed(say)
    snapshot = workspace.scan()
    decisions = [(d, found) for found in plans for d in found.values()]
    reached = {d.key: f"is {d.node.id}" for d, _ in decisions if d.key is not None}
    waiting = [
        d.node
        for d, found in decisions
        if State.WAITING in {d.state, *(found[node_id].state for node_id in left_out(d))}
    ]
    waiting_ids = {node.id for node in waiting}
    lenders: dict[Path, str] = {}
    lending = {folder.parent.name for folder in workspace.folders()}
    for d, found in decisions:
        if d.state is not State.FRESH and d.node.stage in lending:
            lenders |= dict.fromkeys(_lenders(d, found, workspace, snapshot), d.node.id)
    made = {artifact.manifest.node for artifact in snapshot.published.values()}
    last = {a.path for node in made for a in snapshot.of_node(node)[:keep_last]}
    paths = [real_path(path) for path in named]
    in_use = {real_path(folder): who for folder, who in workspace.locks.in_use().items()}

    def reason(folder: Path, node: str | None) -> str | None:
        key = key_of(folder)
        if workspace.is_linked(folder):
            return "lies behind a link; delete it there"
        if key in reached:
            return reached[key]
        if (who := _needing(needed, folder)) is not None:
            return who
        if key in snapshot.busy:
            return f"is being made by {snapshot.busy[key]}"
        if node in waiting_ids or (node is None and any(n.names(folder) for n in waiting)):
            return "may be a node that waits"
        if folder in lenders:
            return f"lends its items to {lenders[folder]}"
        if folder in last:
            return f"is one of the last {keep_last} of {node}"
        real = real_path(folder)
        if any(path.is_relative_to(real) for path in paths):
            return "is named in an experiment"
        return f"is read by {in_use[real]}" if real in in_use else None

    kept = []
    for artifact in snapshot.published.values():
        path, node = artifact.path, artifact.manifest.node
        kept.append(Kept(path, "artifact", node, 0, reason(path, node)))
    for path in snapshot.drafts.values():
        kept.append(Kept(path, "draft", None, 0, reason(path, None) or _unmarked(path)))
    for path in workspace.folders():
        if key_of(path) in snapshot.corrupt:
            kept.append(Kept(path, "corrupt", None, 0, reason(path, None) or _unmarked(path)))
    kept.sort(key=lambda one: one.path)
    counted: set[tuple[int, int]] = set()
    # what stays first: deleting what shares a file with it frees nothing
    order = sorted(kept, key=lambda one: one.reason is None)
    sizes = {one.path: disk_usage(one.path, counted) for one in order}
    return [replace(one, bytes=sizes[one.path]) for one in kept]


def _unmarked(folder: Path) -> str | None:
    ours = is_own(folder, mark_of(folder))
    return None if ours else "does not bear our mark; delete it yourself"


def _needing(needed: Mapping[str, Needs], folder: Path) -> str | None:
    """Return why a command that is under way keeps an artifact, None if it does not."""
    name = lock_name(*key_of(folder))
    who = next((who for who, needs in needed.items() if needs.has(folder.parent.name, name)), None)
    return None if who is None else f"is needed by a command under way ({who})"


def survey_cache(folder: Path, what: str, wanted: Collection[str], reason: str) -> list[Kept]:
    """Say which files of a cache stay: one at most for these, and one for the others.

    Parameters
    ----------
    folder : Path
        A flat folder of files that can be made again, each named by a digest and a suffix; others
        in it, and a folder without our mark, are none of ours.
    what : str
        What its mark says (see `ownership.own`).
    wanted, reason : collection of str, str
        The digests of those that stay, and why they do.
    """
    sizes: dict[bool, dict[str, int]] = {True: {}, False: {}}
    if is_own(folder, what):
        for entry in os.scandir(folder):
            if _CACHED.fullmatch(entry.name) is None:
                continue
            with suppress(FileNotFoundError):  # gone meanwhile
                stays = entry.name.partition(".")[0] in wanted
                sizes[stays][entry.name] = entry.stat(follow_symlinks=False).st_size
    return [
        Kept(folder, "cache", None, sum(of.values()), reason if stays else None, tuple(sorted(of)))
        for stays, of in sizes.items()
        if of
    ]


def _lenders(
    decision: Decision,
    decisions: Mapping[str, Decision],
    workspace: Workspace,
    snapshot: Snapshot,
) -> set[Path]:
    """Return what a node that is not fresh takes, or may take, finished items from."""
    left = None
    with suppress(CorruptError):  # an index above it
        left = unfinished(decision, decisions, snapshot)
    if left is not None:
        spares = workspace.spares(decision.node.stage, left, own_folder(decision, snapshot))
        return {spare.folder for spare in spares.values()}
    # what its items are made from is not known yet: what was last made or begun for the node
    node = decision.node
    latest = snapshot.of_node(node.id)[:1]
    begun = {folder for folder in snapshot.drafts.values() if node.names(folder)}
    return begun | {artifact.path for artifact in latest}


def clear(workspace: Workspace, garbage: Iterable[Kept]) -> dict[Kept, str | None]:
    """Delete what nothing needs, and return why each was left after all; None if it is gone."""
    outcome: dict[Kept, str | None] = {}
    for kept in garbage:
        try:
            for name in kept.files:  # whoever misses one of a cache makes it again
                (kept.path / name).unlink(missing_ok=True)
            outcome[kept] = None if kept.kind == "cache" else _clear(workspace, kept.path)
        except (EnsdistillError, OSError) as error:
            outcome[kept] = str(error)
    return outcome


def _clear(workspace: Workspace, folder: Path) -> str | None:
    """Delete a folder, unless a command under way needs it: return why."""
    with workspace.locks.hold(lock_name(*key_of(folder)), folder.name):
        with workspace.locks.clearing():  # no command begins meanwhile
            why = _needing(workspace.locks.needed(wait=False), folder)
            if why is None:
                workspace.own(folder)  # so that a kill leaves a draft of ours
                unpublish(folder)  # from here on nothing takes it for whole
        if why is None:
            shutil.rmtree(folder)
    return why


def disk_usage(folder: Path, counted: set[tuple[int, int]]) -> int:
    """Return the bytes of all files below a folder but those `counted`, and count them."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone meanwhile
                found = os.lstat(f"{parent}/{name}")
                file = found.st_dev, found.st_ino
                total += found.st_size if file not in counted else 0
                counted.add(file)
    return total
