"""What the engine did, or would do, on stdout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from ensdistill.cli.grid import Table, print_table
from ensdistill.cli.options import EXPERIMENT
from ensdistill.cli.screen import echo, echo_json
from ensdistill.pipeline.errors import grouped
from ensdistill.pipeline.figures import duration, size, some
from ensdistill.pipeline.manifest import RECORDED, Manifest
from ensdistill.pipeline.plan import Decision, State, left_out
from ensdistill.stages.local import FEATURES, PIXELS

if TYPE_CHECKING:
    from ensdistill.pipeline.explain import Estimate, ItemChanges
    from ensdistill.pipeline.gc import Kept
    from ensdistill.pipeline.repair import Repair
    from ensdistill.pipeline.runner import Report

_STYLES: Final = {
    State.FRESH: "green",
    State.PARTIAL: "yellow",
    State.STALE: "yellow",
    State.MISSING: "cyan",
    State.WAITING: "dim",
    State.CORRUPT: "red",
}


def decisions(found: Mapping[str, Decision], *, as_json: bool, verbose: bool = False) -> None:
    """Print the state of nodes and why they are not fresh; `verbose` adds how they were made."""
    if as_json:
        echo_json([decision_json(d, verbose=verbose) for d in found.values()])
        return
    table = Table("node", "state", "items", "why")
    for d in found.values():
        items = f"{d.done}/{d.total}" if d.total else ""
        without = left_out(d)
        why = d.reason or (f"without {', '.join(without)}" if without else "")
        table.add_row(Text(d.node.id), _state(d), items, Text(why))
    print_table(table)
    count = {s: sum(d.state is s for d in found.values()) for s in State}
    echo(", ".join(f"{n} {s}" for s, n in count.items() if n))
    if verbose:
        for d in found.values():
            if d.artifact is not None:
                echo()
                echo(f"{d.node.id}: {d.artifact.path}")
                made(d.artifact.manifest)


def _state(d: Decision) -> Text:
    return Text(d.state, style=_STYLES[d.state])


def decision_json(d: Decision, *, verbose: bool = False) -> dict[str, Any]:
    """Return a decision as JSON-able data."""
    found: dict[str, Any] = {
        "node": d.node.id,
        "state": d.state.value,
        "reason": d.reason,
        "done": d.done,
        "total": d.total,
        "changes": [{"field": c.field, "old": c.old, "new": c.new} for c in d.changes],
        "fingerprint": d.fingerprint,
        "path": str(d.artifact.path) if d.artifact else None,
    }
    if verbose:
        manifest = d.artifact.manifest if d.artifact else None
        found["made"] = manifest and {key: getattr(manifest, key) for key in RECORDED}
    return found


def made(manifest: Manifest) -> None:
    """Print how, where and when an artifact was made."""
    about = manifest.provenance
    written = f"{manifest.written} written, {manifest.reused} reused, " if manifest.written else ""
    memory = about.get("peak_memory")
    echo(
        f"  finished {manifest.finished or '-'} in {duration(manifest.seconds)}; {written}"
        f"{size(manifest.disk_bytes)} on disk, peak memory {size(memory) if memory else '-'}"
    )
    git = about.get("git")
    if git:
        about = about | {"git": git["commit"] + (" and changed files" if git["changed"] else "")}
    about = about | {k: v for k, v in manifest.runtime.items() if v is not None}
    for key in ("command", "git", "host", "platform", "python", "device", "threads", "workers"):
        if about.get(key) is not None:
            echo(f"  {key}: {about[key]}")
    packages = about.get("packages", {})
    echo(f"  packages: {', '.join(f'{k} {v}' for k, v in packages.items() if v)}")


def planned(
    found: Mapping[str, Decision], costs: Mapping[str, Estimate | None], *, as_json: bool
) -> None:
    """Print what a run would do."""
    if as_json:
        rows = [
            decision_json(d) | {"would": (c := costs[n]) and asdict(c)} for n, d in found.items()
        ]
        echo_json(rows)
        return
    table = Table("node", "state")
    table.add_numbers("compute", "reuse")
    table.add_column("disk")
    table.add_column("why")
    for node_id, d in found.items():
        cost = costs[node_id]
        compute, reuse, disk = _cost(d, cost)
        table.add_row(Text(node_id), _state(d), compute, reuse, disk, Text(d.reason))
    print_table(table)
    known = [c for c in costs.values() if c is not None]
    counts: Counter[str] = Counter()
    for node_id, c in costs.items():
        counts[found[node_id].node.unit] += 0 if c is None else c.compute
    told = " and ".join(f"{count} {unit}" for unit, count in counts.items() if count)
    echo(
        f"would compute {'at most ' if any(c.at_most for c in known) else ''}"
        f"{told or '0 images'}, "
        f"take {sum(c.reuse for c in known)} from other "
        f"artifacts and write about {size(sum(c.bytes or 0 for c in known))}"
    )
    open_ends = [n for n, c in costs.items() if c is not None and c.bytes is None]
    waiting = [n for n, d in found.items() if d.state is State.WAITING]
    for names, text in ((open_ends, "on disk, not counted"), (waiting, "known after the others")):
        if names:
            echo(f"{text}: {', '.join(names)}")


def _cost(d: Decision, cost: Estimate | None) -> tuple[str, str, str]:
    if cost is None:
        return ("", "", "") if d.state is State.FRESH else ("?", "", "?")
    disk = "?" if cost.bytes is None else f"~{size(cost.bytes)}"
    if not d.total:
        return "", "", disk
    return f"{'<=' if cost.at_most else ''}{cost.compute}", str(cost.reuse or ""), disk


def report(found: Report) -> None:
    """Print what a command did."""
    for r in found.ran:
        items = f"{r.written} of {r.total} written, " if r.total else ""
        items += f"{r.reused} taken from other artifacts, " if r.reused else ""
        rest = f"; {r.open} are left to other parts" if r.open else ""
        echo(f"{r.node}: {items}{duration(r.seconds)}{rest}")
    if not found.ran:
        echo(f"nothing to do: {', '.join(found.fresh)} fresh")


def explanation(
    d: Decision,
    decisions: Mapping[str, Decision],
    images: ItemChanges | None,
    cost: Estimate | None,
    below: Sequence[str],
    config: Path,
) -> None:
    """Print why a node stands as it does."""
    unit = d.node.unit
    echo(f"{d.node.id} is {d.state}" + (f": {d.reason}" if d.reason else ""))
    if d.artifact is not None:
        echo(f"  {d.artifact.path}")
        made(d.artifact.manifest)
    elif d.previous is not None:
        echo(f"compared with the nearest that was made, {d.previous.path}:")
    before = {} if d.previous is None else d.previous.manifest.called
    now = {} if d.work is None else d.work.called
    for change in d.changes:
        role = change.field.removeprefix("inputs.").removesuffix(".content")
        names = " -> ".join(dict.fromkeys(of[role] for of in (before, now) if role in of))
        name = f" ({names})" if names else ""
        echo(f"  {change.field}{name}: {_value(change.old)} -> {_value(change.new)}")
    if images is not None and d.state is not State.FRESH:
        for what, ids in (("new", images.new), ("gone", images.gone)):
            if ids:
                echo(f"  {len(ids)} {unit} are {what}: {some(ids)}")
        if images.changed:
            named = [f"{i} ({', '.join(names)})" for i, names in images.changed.items()]
            echo(f"  {len(named)} {unit} changed: {some(named)}")
    if cost is not None:
        compute, reuse, disk = _cost(d, cost)
        items = f"compute {compute} {unit}, take {reuse or 0} from other artifacts and " * bool(
            d.total
        )
        echo(f"a run would {items}write {disk}, then look at what is below")
    without = left_out(d)
    needs = [f"{n} ({decisions[n].state})" for n in d.node.needs if n not in without]
    echo(f"made from: {', '.join(needs) or 'files alone'}")
    if without:
        absent = [f"{n} ({decisions[n].state})" for n in without]
        echo(f"without, as it is not there: {', '.join(absent)}")
    echo(f"below it: {', '.join(below) or 'nothing'}")
    file = "" if config == EXPERIMENT else f" -c {quote(str(config))}"
    if d.state is State.CORRUPT:
        echo(f"to make it good: ensdistill verify --repair{file}")
    elif d.state is not State.FRESH:
        ready = all(decisions[n].state is State.FRESH for n in d.node.needs)
        more = "" if ready else " --upstream"
        echo(f"to make it: ensdistill {d.node.command}{more}{file}")


def _value(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def repaired(outcome: Repair) -> None:
    """Print what a repair did."""
    for r in outcome.ran:
        items = f"{r.written} of {r.total} images computed again" if r.total else "made again"
        items += f", {r.reused} taken from other artifacts" if r.reused else ""
        echo(f"{r.node}: {items}, {duration(r.seconds)}")
    for node_id in outcome.different:
        echo(f"{node_id} came out different from before: what is below it is stale now")
    left = ((why, f"{folder}: left as it is ({why})") for folder, why in outcome.left.items())
    for line in grouped(left):
        echo(line)
    if not outcome.left:
        echo("all damage is made good")


def garbage(found: Sequence[Kept], outcome: Mapping[Kept, str | None], *, delete: bool) -> None:
    """Print what nothing reaches, and what became of it."""
    table = Table("folder", "kind", "node")
    table.add_numbers("disk")
    if delete:
        table.add_column("outcome")
    for kept in (k for k in found if k.reason is None):
        name = f"{kept.path.parent.name}/{kept.path.name}"
        if kept.files:
            of = kept.path.name if kept.path.name == PIXELS else name[: len(FEATURES) + 9]
            name = f"{len(kept.files)} files of {of}"
        row = [Text(name), kept.kind, Text(kept.node or "-"), size(kept.bytes)]
        if delete:
            row.append(Text(outcome[kept] or "deleted"))
        table.add_row(*row)
    gone = [k for k in found if k.reason is None]
    if gone:
        print_table(table)
    stays = sum(k.bytes for k in found if k.reason is not None)
    if delete:
        freed = [k for k in gone if outcome[k] is None]
        stays += sum(k.bytes for k in gone if outcome[k] is not None)
        echo(f"{size(sum(k.bytes for k in freed))} freed, {size(stays)} stay")
    else:
        counts = [sum(k.kind != "cache" for k in of) for of in (gone, found)]
        count = f"{counts[0]} of {counts[1]} folders"
        for what, inner in (("decoded images", False), ("images' features", True)):
            cached = [
                sum(len(k.files) for k in of if (k.path.parent.name == FEATURES) == inner)
                for of in (gone, found)
            ]
            if cached[1]:
                count += f" and {cached[0]} of {cached[1]} {what}"
        count += f", {size(sum(k.bytes for k in gone))}"
        echo(f"nothing reaches {count}; {size(stays)} stay")
        if gone:
            echo("nothing was deleted; --delete does it")
