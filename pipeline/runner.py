"""Running what a plan found missing, one node at a time, planning anew after each."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ensdistill.pipeline import provenance
from ensdistill.pipeline.draft import Draft, UnfinishedError, unpublish
from ensdistill.pipeline.errors import (
    CorruptError,
    DataError,
    EnsdistillError,
    LockedError,
    NotReadyError,
)
from ensdistill.pipeline.fingerprint import Json
from ensdistill.pipeline.locks import Claim, Needs, Part
from ensdistill.pipeline.manifest import MANIFEST, REPAIR, Artifact, Manifest
from ensdistill.pipeline.node import AnyWork, Job, Node, Progress, Told
from ensdistill.pipeline.plan import (
    Decision,
    State,
    as_far_as_it_goes,
    closure,
    other_content,
    plan,
    still,
)
from ensdistill.pipeline.verify import damaged_files
from ensdistill.pipeline.workspace import Workspace, lock_name, now


@dataclass
class Ran:
    """One node that was made, or of which a part was, in this session."""

    node: str
    written: int  # items that were computed; 0 for a node without
    reused: int  # items taken from other artifacts
    total: int  # all items
    seconds: float  # wall time
    open: int = 0  # items that other parts have still to make; published when none is left


@dataclass
class Report:
    """What a run did: nodes made, in order; those that were fresh already; the plan afterwards."""

    ran: list[Ran] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    decisions: Mapping[str, Decision] = field(default_factory=dict)


@dataclass(frozen=True)
class Aside:
    """What other processes make, several chains of nodes at a time.

    A node needs earlier ones of its own chain, and no other chain. `make` makes what it is given of
    each.
    """

    chains: Sequence[Sequence[str]]
    make: Callable[[Sequence[Sequence[Decision]]], list[Ran]]


def run(
    nodes: Sequence[Node],
    workspace: Workspace,
    targets: Sequence[str],
    progress: Callable[[Decision], Progress],
    *,
    upstream: bool = False,
    part: Part | None = None,
    about: Path | None = None,
    aside: Aside | None = None,
    decisions: Mapping[str, Decision] | None = None,
) -> Report:
    """Make `targets` that are not fresh.

    Parameters
    ----------
    nodes : sequence of Node
        The graph (see `plan`).
    progress : callable
        Called with the decision for each node that is about to run.
    upstream : bool
        Also make nodes that the targets need.
    part : Part, optional
        Make this share of the items of each target; who finds all of them finished publishes.
    about : Path, optional
        A folder of the user's repository, whose state the manifests record.
    aside : Aside, optional
        Nodes that other processes make; None makes all nodes here, one after another.
    decisions : mapping, optional
        A plan of `nodes`, if one was made just now.

    Raises
    ------
    NotReadyError
        If a needed node is not fresh and neither a target nor allowed by `upstream`.
    """
    decisions = plan(nodes, workspace.scan()) if decisions is None else decisions
    wanted = closure(decisions, targets) if upstream else set(targets)
    if all(decisions[node_id].state is State.FRESH for node_id in wanted):
        # read-only workspaces too
        return Report(fresh=[n for n in decisions if n in wanted], decisions=decisions)
    with workspace.locks.needing() as say_needs:
        return _Run(
            nodes, workspace, targets, wanted, progress, part, about, aside, say_needs
        ).run()


@dataclass
class _Run:
    """A run under way; see `run`."""

    nodes: Sequence[Node]
    workspace: Workspace
    targets: Sequence[str]
    wanted: set[str]
    progress: Callable[[Decision], Progress]
    part: Part | None
    about: Path | None
    aside: Aside | None
    say_needs: Callable[[Needs], None]
    report: Report = field(default_factory=Report)
    begun: set[str] = field(default_factory=set)
    there: dict[str, Path] = field(default_factory=dict)  # what was published at any time, by node

    def run(self) -> Report:
        """Plan and make, until nothing is to do."""
        facts = provenance.facts(self.about or self.workspace.root)
        while True:
            snapshot = self.workspace.scan()
            decisions = {n: self._named(d) for n, d in plan(self.nodes, snapshot).items()}
            self.say_needs(_needs(decisions, self.wanted))
            made = {r.node for r in self.report.ran if not r.open}
            handed_on = {r.node for r in self.report.ran if r.open}
            todo = [
                n
                for n, d in decisions.items()
                if n in self.wanted and d.state is not State.FRESH and n not in handed_on
            ]
            if not todo:
                # only now: a node that waited may have turned out to be fresh
                self.report.fresh = [n for n in decisions if n in self.wanted - made - handed_on]
                self.report.decisions = decisions
                return self.report
            decision = decisions[todo[0]]
            chains = _ready(self.aside, todo, decisions)
            for each in (d for chain in chains or [[decision]] for d in chain):
                self._begin(each)
            if self.aside and chains:
                self.report.ran += self.aside.make(chains)
                continue
            decision = as_far_as_it_goes(decision, decisions, snapshot)
            _require_upstream(decision, decisions)
            mine = self.part if decision.node.id in self.targets else None
            making = _Making(decision, decisions, self.workspace, self.progress(decision), facts)
            self.report.ran.append(making.run(mine))

    def _begin(self, decision: Decision) -> None:
        """Refuse to make a node twice."""
        node_id = decision.node.id
        if node_id not in self.begun:
            self.begun.add(node_id)
            return
        gone = self.there.get(node_id)
        if gone is not None and not gone.exists():
            raise CorruptError(f"{node_id} was made, and {decision.reason}; run again")
        raise CorruptError(
            f"{node_id} was made and is {decision.state} again ({decision.reason}); "
            "did an input file change meanwhile? Run again"
        )

    def _named(self, decision: Decision) -> Decision:
        """Return a decision whose reason is the deletion of what was there, if it is that."""
        if decision.artifact is not None:
            self.there[decision.node.id] = decision.artifact.path
        gone = self.there.get(decision.node.id)
        if gone is None or decision.artifact is not None or gone.exists():
            return decision
        return replace(decision, reason=f"{gone} was deleted meanwhile, by hand or another command")


def _needs(decisions: Mapping[str, Decision], wanted: Collection[str]) -> Needs:
    """Return what a run needs that makes `wanted`."""
    plans = [decisions[node_id] for node_id in closure(decisions, list(wanted))]
    named = [
        (d.state, lock_name(d.node.stage, d.fingerprint))
        for d in plans
        if d.fingerprint is not None
    ]
    return Needs(
        artifacts=frozenset(name for _, name in named),
        reads=frozenset(name for state, name in named if state is State.FRESH),
        stages=frozenset(
            d.node.stage for d in plans if d.node.id in wanted and d.state is not State.FRESH
        ),
    )


def _ready(
    aside: Aside | None, todo: Sequence[str], decisions: Mapping[str, Decision]
) -> list[list[Decision]]:
    """Return what is to do of all chains that can begin, once it is the turn of one of them."""
    found: list[list[Decision]] = []
    if aside is None or not any(todo[0] in chain for chain in aside.chains):
        return found
    for chain in aside.chains:
        missing = [decisions[n] for n in chain if n in todo]
        waits_for = {need for d in missing for need in d.node.needs} - set(chain)
        if missing and not waits_for & set(todo):
            _require_upstream(missing[0], decisions)
            found.append(missing)
    return found


def _require_upstream(decision: Decision, decisions: Mapping[str, Decision]) -> None:
    needed = decision.work.uses.values() if decision.work else decision.node.needs
    for node_id in needed:
        upstream = decisions[node_id]
        if upstream.state is State.CORRUPT:
            raise CorruptError(f"{decision.node.id} needs {node_id}: {upstream.reason}")
        if upstream.state is not State.FRESH:
            raise NotReadyError(
                f"{decision.node.id} needs {node_id}, which is {upstream.state} "
                f"({upstream.reason}); run `ensdistill {upstream.node.command}` first, "
                "or repeat this command with --upstream"
            )
    if decision.work is None:
        raise NotReadyError(f"{decision.node.id} {decision.reason}")


class _Heard:
    """A progress whose messages are kept, for the manifest."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self.messages: list[str] = []

    def start(self, total: int, done: int, unit: str) -> None:
        self._progress.start(total, done, unit)

    def advance(self, count: int = 1, note: str = "") -> None:
        self._progress.advance(count, note)

    def message(self, text: str) -> None:
        self.messages.append(text)
        self._progress.message(text)


class _Making:
    """One node being made."""

    def __init__(
        self,
        decision: Decision,
        decisions: Mapping[str, Decision],
        workspace: Workspace,
        progress: Progress,
        facts: Mapping[str, Any],
    ):
        assert decision.work is not None
        assert decision.fingerprint is not None
        self.decision = decision
        self.decisions = decisions
        self.node: Node = decision.node
        self.work: AnyWork = decision.work
        self.name: str = decision.fingerprint
        self.workspace = workspace
        self.progress = _Heard(progress)
        self.facts = facts
        self.inputs = {role: self._input(up) for role, up in self.work.uses.items()}

    def _input(self, node_id: str) -> Artifact:
        artifact = self.decisions[node_id].artifact
        assert artifact is not None
        return artifact

    def run(self, part: Part | None) -> Ran:
        """Fill the draft, and publish it if nothing is missing."""
        if self.decision.state is State.CORRUPT:
            raise CorruptError(f"{self.node.id} is corrupt: {self.decision.reason}")
        for artifact in self.inputs.values():
            damage = next(damaged_files(artifact), None)
            if damage is not None:
                raise CorruptError(f"{damage}; {REPAIR}")
        keys = item_keys(self.node, self.work, self.inputs)
        part = part if keys else None
        lock = lock_name(self.node.stage, self.name)
        locks = self.workspace.locks
        begin = time.perf_counter()
        provenance.forget_peak_memory()
        say = self.progress.message
        uses = [str(artifact.path) for artifact in self.inputs.values()]
        with locks.hold(lock, self.node.id, part, say, uses) as claim:
            if claim.took_over:
                say(claim.took_over)
            published = self.workspace.published(self.node.stage, self.name)
            if published is not None:
                if not other_content(published, self.inputs):  # another process was faster
                    return Ran(self.node.id, 0, 0, len(keys), 0.0)
                self._require_unread(lock)
                self.workspace.own(published.path)
                unpublish(published.path)  # what is still right in it is kept, item by item
            made_from = {item.id: item.made_from for item in self.work.items}
            draft = self.workspace.draft(
                self.node.stage, self.node.name, self.name, keys, made_from
            )
            try:
                if not keys:
                    draft.bind({role: a.manifest.content for role, a in self.inputs.items()})
                return self._fill(draft, claim, part, begin)
            except (EnsdistillError, OSError) as error:
                self._require_there(draft, error)
                raise
            finally:
                draft.close()

    def _require_unread(self, lock: str) -> None:
        """Refuse to take away what another command needs as it is."""
        for who, needs in self.workspace.locks.needed(self.progress.message).items():
            if lock in needs.reads:
                raise LockedError(
                    f"{self.node.id} has to be made anew, and a command under way ({who}) reads it "
                    "as it is; wait for it or stop it, then run again"
                )

    def _require_there(self, draft: Draft, error: Exception) -> None:
        """Name the cause of an error that comes of a deleted folder."""
        read = (a.path for a in self.inputs.values() if not (a.path / MANIFEST).exists())
        gone = next(read, None if draft.path.exists() else draft.path)
        if gone is not None:
            raise DataError(
                f"{self.node.id}: {gone} was deleted while it was made, by hand or another "
                "command; run again (finished items that are still there are kept)"
            ) from error

    def _fill(self, draft: Draft, claim: Claim, part: Part | None, begin: float) -> Ran:
        job: Job[Told, object] = Job(
            self.node, self.work, draft, self.inputs, self.progress, part=part
        )
        draft.guard = claim.require
        todo = {item_id: draft.keys[item_id] for item_id in job.todo()}
        spares = self.workspace.spares(self.node.stage, todo, draft.path) if todo else {}
        if spares:
            self.progress.message(
                f"{self.node.id}: {len(spares)} of {len(draft.keys)} are taken from other artifacts"
            )
        job = replace(job, spares=spares)
        module, function = self.node.run.split(":")
        total = len(draft.keys)
        missing, result = 0, dict[str, Json]()
        try:
            told: Told = getattr(importlib.import_module(module), function)(job)
            result = told.to_json()
            draft.flush()
            draft.reload()
            draft.complete()
        except UnfinishedError as error:
            if part is None:
                raise CorruptError(
                    f"{draft.path}: the stage {self.node.stage} did not write {error}; run again"
                ) from None
            missing = total - len(draft.records())
        seconds = time.perf_counter() - begin
        claim.require(now=True)
        if not missing:
            manifest = self._manifest(result, job, seconds)
            if part is None:
                self._publish(draft, manifest)
            else:
                lock = lock_name(self.node.stage, self.name)
                with self.workspace.locks.turn(lock, self.node.id):
                    if self.workspace.published(self.node.stage, self.name) is None:
                        self._publish(draft, manifest)
        return Ran(self.node.id, draft.written, draft.reused, total, seconds, missing)

    def _publish(self, draft: Draft, manifest: Manifest) -> None:
        if not still(self.decision, self.decisions):
            raise DataError(
                f"{self.node.id}: an input file changed while it was made; nothing is published, "
                "run again (what was made from unchanged files is kept)"
            )
        draft.publish(manifest)

    def _manifest(self, result: dict[str, Any], job: Job[Told, object], seconds: float) -> Manifest:
        return Manifest(
            node=self.node.id,
            stage=self.node.stage,
            version=self.node.version,
            fingerprint=self.name,
            recipe=self.work.hashed_recipe(),
            inputs={role: a.manifest.fingerprint for role, a in self.inputs.items()},
            made_from={role: a.manifest.content for role, a in self.inputs.items()},
            called=self.work.called,
            result=result,
            runtime=self.work.runtime | job.ran_on,
            provenance={
                **self.facts,
                "peak_memory": provenance.peak_memory(),
                "messages": self.progress.messages,
            },
            seconds=round(seconds, 3),
            finished=now(),
        )


def item_keys(node: Node, work: AnyWork, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Return the key of every item, given the upstream artifacts (see `Work.item_keys`)."""
    contents = {role: artifact.manifest.content for role, artifact in inputs.items()}
    each = [item.id for item in work.items if item.reads is None]
    upstream: dict[str, str | Mapping[str, str]] = dict(contents)
    for role, artifact in inputs.items() if each else ():
        records = {r["id"]: r["content"] for r in artifact.items}
        lacking = [item_id for item_id in each if item_id not in records]
        if records and lacking:
            raise CorruptError(f"{artifact.path}: has no item {lacking[0]}")
        upstream[role] = records or contents[role]
    return work.item_keys(node.stage, node.version, upstream, contents)
