"""Making damage good: only what is lost is computed again, upstream first."""

import hashlib
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from told import Told

from ensdistill.pipeline.journal import read_journal, seal
from ensdistill.pipeline.locks import Locks, Needs, Part
from ensdistill.pipeline.manifest import read_manifest
from ensdistill.pipeline.node import Command, Item, Node, NodeId, Work
from ensdistill.pipeline.plan import plan
from ensdistill.pipeline.repair import repair
from ensdistill.pipeline.runner import run
from ensdistill.pipeline.verify import damages
from ensdistill.pipeline.workspace import Workspace, lock_name

ITEMS = ("i1", "i2", "i3")


class Silent:
    def __getattr__(self, name):
        return lambda *_, **__: None


class Chain:
    """maps -> fused -> certainty (no items); folders sort the other way round."""

    def __init__(self, root):
        self.workspace = Workspace(root / "work")
        self.values = dict.fromkeys(ITEMS, 7)
        self.calls = []

    def nodes(self):
        items = tuple(Item(i, {"image": i}) for i in ITEMS)
        return [
            self.node("maps", items),
            self.node("fused", items, "maps"),
            self.node("certainty", (), "fused"),
        ]

    def node(self, name, items, *upstream):
        uses = dict(zip(("labels",), upstream, strict=False))
        work = Work(Told(), uses, items)
        return Node(NodeId(name), name, 1, upstream, lambda _: work, "chain:stage", Command(name))

    def stage(self, job):
        if not job.work.items:
            self.calls.append((job.node.id, None))
            return Told(sum=sum(r["value"] for r in job.inputs["labels"].items))
        upstream = job.inputs["labels"].items if job.inputs else ()
        below = {r["id"]: r["value"] for r in upstream}
        for item_id in job.todo():
            self.calls.append((job.node.id, item_id))
            value = below[item_id] if below else self.values[item_id]
            (job.draft.path / f"{item_id}.map").write_text(str(value))
            job.draft.record(item_id, file=f"{item_id}.map", content=str(value), value=value)
        return Told(items=len(job.records()))

    def run(self):
        run(self.nodes(), self.workspace, ["certainty"], lambda _: Silent(), upstream=True)

    def folder(self, name):
        (folder,) = self.workspace.folders(name)
        return folder

    def spoil(self, name, file, old, new):
        path = self.folder(name) / file
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    def damaged(self):
        found = {folder: damages(folder) for folder in self.workspace.folders()}
        return {folder: damage for folder, damage in found.items() if damage}

    def repair(self):
        self.calls.clear()
        return repair(self.nodes(), self.workspace, self.damaged(), lambda _: Silent())

    def states(self):
        decisions = plan(self.nodes(), self.workspace.scan())
        return {name: str(d.state) for name, d in decisions.items()}


FRESH = dict.fromkeys(("maps", "fused", "certainty"), "fresh")


@pytest.fixture
def chain(tmp_path, monkeypatch):
    chain = Chain(tmp_path)
    module = ModuleType("chain")
    module.stage = chain.stage
    monkeypatch.setitem(sys.modules, "chain", module)
    chain.run()
    return chain


def test_no_damage_makes_nothing(chain):
    report = chain.repair()
    assert (report.ran, report.different, report.left, chain.calls) == ([], [], {}, [])


@pytest.mark.parametrize("node", ["maps", "fused"])
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("i2.map", b"7", b"8"), ("items.jsonl", b'"i2", "key"', b'"i2", "kez"')],
)
def test_a_damaged_item_is_computed_again_and_nothing_else(chain, node, file, old, new):
    before = {p.name: p.read_bytes() for p in chain.folder(node).iterdir()}
    chain.spoil(node, file, old, new)
    report = chain.repair()
    assert chain.calls == [(node, "i2")]
    assert [(r.node, r.written, r.total) for r in report.ran] == [(node, 1, 3)]
    assert (report.different, report.left, chain.damaged()) == ([], {}, {})
    after = {p.name: p.read_bytes() for p in chain.folder(node).iterdir()}
    assert {k for k in before if before[k] != after[k]} == {"manifest.json"}
    assert chain.states() == FRESH


def test_a_node_without_items_is_made_again_whole(chain):
    chain.spoil("certainty", "manifest.json", b'"sum": 21', b'"sum": 22')
    report = chain.repair()
    assert chain.calls == [("certainty", None)]
    assert (report.left, chain.damaged()) == ({}, {})
    assert chain.states() == FRESH


def test_what_is_recorded_only_is_emptied_without_a_run(chain):
    for name in FRESH:
        chain.spoil(name, "manifest.json", b'"platform": "', b'"platform": "x')
    report = chain.repair()
    assert (report.ran, chain.calls, chain.damaged()) == ([], [], {})
    assert chain.states() == FRESH


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("items.jsonl", b'"i2", "key"', b'"i2", "kez"'),
        ("i2.map", b"7", b"8"),
        ("manifest.json", b'"result"', b'"resulu"'),
    ],
)
def test_what_is_damaged_upstream_is_made_good_first(chain, file, old, new):
    for name in ("maps", "fused"):
        chain.spoil(name, file, old, new)
    report = chain.repair()
    assert (report.left, chain.damaged()) == ({}, {})
    assert [r.node for r in report.ran] == ["maps", "fused"]
    assert chain.states() == FRESH


def test_what_came_out_different_is_told_and_makes_stale(chain):
    chain.values["i2"] = 8
    (chain.folder("maps") / "i2.map").unlink()
    report = chain.repair()
    assert report.different == ["maps"]
    assert chain.states() == FRESH | {"fused": "stale"}
    chain.calls.clear()
    chain.run()
    assert chain.calls == [("fused", "i2"), ("certainty", None)]
    assert chain.states() == FRESH


def test_what_no_experiment_makes_is_left_and_told(chain):
    folder = chain.folder("maps")
    chain.spoil("maps", "i2.map", b"7", b"8")
    found = chain.damaged()
    report = repair([], chain.workspace, found, lambda _: Silent())
    assert list(report.left) == [folder]
    assert "this experiment does not make it" in report.left[folder]
    assert (folder / "manifest.json").exists()


def test_what_is_made_from_something_missing_is_left_and_told(chain):
    chain.spoil("fused", "i2.map", b"7", b"8")
    found = chain.damaged()
    (chain.folder("maps") / "manifest.json").unlink()
    report = repair(chain.nodes(), chain.workspace, found, lambda _: Silent())
    assert report.left == {
        chain.folder("fused"): "fused is made from maps, which is missing",
    }
    assert (chain.folder("fused") / "manifest.json").exists()


def test_what_another_process_works_on_is_not_touched(chain):
    chain.spoil("maps", "i2.map", b"7", b"8")
    fingerprint = plan(chain.nodes(), chain.workspace.scan())["maps"].fingerprint
    name = lock_name("maps", fingerprint)
    for part in (None, Part(1, 2)):
        with (
            chain.workspace.locks.hold(name, "maps", part),
            pytest.raises(RuntimeError, match="being made by process"),
        ):
            chain.repair()
        assert (chain.folder("maps") / "manifest.json").exists()


@pytest.fixture
def precious(tmp_path):
    """Files that are not ours: none of them may go."""
    folder = tmp_path / "precious"
    folder.mkdir()
    for name in ("a.txt", "c.x"):
        (folder / name).write_text("precious")
    return folder


def whole(folder):
    return sorted(p.name for p in folder.iterdir()) == ["a.txt", "c.x"]


@pytest.mark.parametrize("way", ["up", "absolute", "link", "linked folder"])
@pytest.mark.parametrize("where", ["manifest", "items"])
def test_nothing_outside_is_deleted_whatever_a_record_names(chain, precious, way, where):
    folder = chain.folder("fused")
    (folder / "out").symlink_to(precious)
    (folder / "file").symlink_to(precious / "a.txt")
    name = {
        "up": "../../../precious/a.txt",
        "absolute": str(precious / "a.txt"),
        "link": "file",
        "linked folder": "out/a.txt",
    }[way]
    manifest = read_manifest(folder)
    files = {**manifest.files, name: [1, "0" * 64]}
    if where == "items":
        records = read_journal(folder / "items.jsonl")
        for record in records:
            record.pop("check", None)
        records[0]["file"] = [name, 1, "0" * 64]
        index = b"".join(map(seal, records))
        (folder / "items.jsonl").write_bytes(index)
        entry = [len(index), hashlib.sha256(index).hexdigest()]
        files = {**manifest.files, "items.jsonl": entry}
    (folder / "manifest.json").write_bytes(replace(manifest, files=files).to_bytes())
    assert list(chain.damaged()) == [folder]
    assert chain.repair().left == {}
    assert whole(precious)
    assert chain.damaged() == {}
    assert chain.states() == FRESH
    assert not [p for p in folder.rglob("*") if p.is_symlink()]


def test_an_artifact_behind_a_link_is_read_and_never_repaired(chain, precious):
    folder = chain.folder("fused")
    chain.spoil("fused", "i1.map", b"7", b"8")
    moved = folder.rename(precious.parent / "moved")
    folder.symlink_to(moved)
    before = {p.name: p.read_bytes() for p in moved.iterdir()}
    report = chain.repair()
    assert "lies behind a link" in report.left[folder]
    assert {p.name: p.read_bytes() for p in moved.iterdir()} == before


def test_what_a_command_under_way_reads_is_left_and_told(chain):
    chain.spoil("fused", "i1.map", b"7", b"8")
    folder = chain.folder("fused")
    other = Locks(chain.workspace.locks.folder)
    name = f"fused-{folder.name[-12:]}"
    with other.needing() as say:
        say(Needs(artifacts=frozenset([name]), reads=frozenset([name])))
        report = chain.repair()
        assert "a command under way" in report.left[folder]
        assert chain.calls == []
        say(Needs(artifacts=frozenset([name]), stages=frozenset(["fused"])))
        assert chain.repair().left == {}  # it is to make it, too
    assert chain.states() == FRESH
