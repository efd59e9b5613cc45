"""Running a small graph of counted fakes: what is made, what is kept, what is refused."""

import errno
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest
from told import Told

from ensdistill.pipeline import locks as locks_module
from ensdistill.pipeline.draft import Draft, unpublish
from ensdistill.pipeline.errors import CorruptError, DataError, LockedError, NotReadyError
from ensdistill.pipeline.fingerprint import digest
from ensdistill.pipeline.journal import Journal
from ensdistill.pipeline.locks import Locks, Part
from ensdistill.pipeline.node import Command, Item, Node, NodeId, Work
from ensdistill.pipeline.plan import State, plan
from ensdistill.pipeline.runner import run
from ensdistill.pipeline.verify import damages
from ensdistill.pipeline.workspace import Workspace, lock_name

ITEMS = ("i1", "i2", "i3", "i4")


class Silent:
    def __getattr__(self, name):
        return lambda *_, **__: None


class Lab:
    """Teachers of some quality, scored coarsely; the best is fused and taught.

    infer[t] -> score[t] -> policy (by content) -> fusion (best infer by fingerprint) -> student
    """

    def __init__(self, root):
        self.workspace = Workspace(root / "work")
        self.teachers = {"a": 31, "b": 12}
        self.window = 5
        self.images = {i: f"{i} v1" for i in ITEMS}
        self.device = "cpu"
        self.fail = {}  # (node id, item id or None) -> what is raised, or "forget"
        self.result = {}  # node id -> what its stage returns instead
        self.noise = {}  # (node id, item id) -> what is added to the item's value
        self.on_call = lambda node_id, item: None
        self.calls = []

    def nodes(self):
        nodes = []
        for t, quality in self.teachers.items():
            nodes += [self.infer(t, quality), self.score(t)]
        return [*nodes, self.policy(), self.fusion(), self.student()]

    def node(self, node_id, needs, make, command="run"):
        stage, _, name = node_id.rstrip("]").partition("[")
        found = NodeId(stage, name or None)
        return Node(found, name or stage, 1, needs, make, f"fakes:{stage}", Command(command))

    def items(self):
        return tuple(Item(i, {"image": content}) for i, content in self.images.items())

    def infer(self, t, quality):
        def make(_):
            runtime = {"device": self.device}
            return Work(Told(quality=quality), items=self.items(), local=self, runtime=runtime)

        return self.node(f"infer[{t}]", [], make, f"infer-teacher {t}")

    def score(self, t):
        def make(_):
            return Work(Told(), uses={"labels": f"infer[{t}]"}, local=self)

        return self.node(f"score[{t}]", [f"infer[{t}]"], make, "select-policy")

    def policy(self):
        scores = [f"score[{t}]" for t in self.teachers]

        def make(upstream):
            found = zip(self.teachers, scores)  # noqa: B905
            return Work(Told({t: upstream.content(s)["score"] for t, s in found}))

        return self.node("policy", scores, make, "select-policy")

    def fusion(self):
        def make(upstream):
            best = upstream.content("policy")["best"]
            uses, called = {"labels": f"infer[{best}]"}, {"labels": best}
            return Work(Told(window=self.window), uses, self.items(), called)

        needs = ["policy", *(f"infer[{t}]" for t in self.teachers)]
        return self.node("fusion", needs, make, "fuse")

    def student(self):
        return self.node("student", ["fusion"], lambda _: Work(Told(), {"labels": "fusion"}))

    # the stages

    def call(self, job, item=None):
        self.calls.append((job.node.id, item))
        self.on_call(job.node.id, item)
        failure = self.fail.get((job.node.id, item))
        if isinstance(failure, BaseException):
            raise failure
        return failure != "forget"

    def done(self, job, result):
        return Told(self.result.get(job.node.id, result))

    def each(self, job, value):
        job.draft.adopt(job.spares, lambda item_id: f"{self.place(job, item_id)}.map")
        for item_id in job.todo():
            if self.call(job, item_id):
                # as every stage: what is read must be what the plan was made for
                planned = {item.id: item.made_from for item in job.work.items}[item_id]
                if self.images[item_id] not in planned.values():
                    raise DataError(f"{item_id} changed")
                found = value(item_id)
                file = job.draft.path / f"{self.place(job, item_id)}.map"
                file.write_text(f"{found} {self.images[item_id]}")
                job.draft.record(item_id, file=file.name, content=digest(found), value=found)
        return self.done(job, {"items": len(job.records())})

    def place(self, job, item_id):
        return list(job.draft.keys).index(item_id)

    def stages(self):
        def run_infer(job):
            return self.each(
                job, lambda i: job.work.recipe["quality"] + self.noise.get((job.node.id, i), 0)
            )

        def run_score(job):
            self.call(job)
            values = [r["value"] for r in job.inputs["labels"].items]
            return self.done(job, {"score": sum(values) // len(values) // 10})

        def run_policy(job):
            self.call(job)
            return self.done(job, {"best": max(job.work.recipe, key=job.work.recipe.get)})

        def run_fusion(job):
            labels = {r["id"]: r["value"] for r in job.inputs["labels"].items}
            return self.each(job, lambda i: [labels[i], job.work.recipe["window"]])

        def run_student(job):
            self.call(job)
            return self.done(job, {})

        return {
            "infer": run_infer,
            "score": run_score,
            "policy": run_policy,
            "fusion": run_fusion,
            "student": run_student,
        }

    # what a user does

    def run(self, *targets, upstream=True, part=None):
        self.calls.clear()
        targets = targets or ("student",)
        return run(
            self.nodes(),
            self.workspace,
            targets,
            lambda _: Silent(),
            upstream=upstream,
            part=part and Part(*part),
        )

    def refuse(self, error, *targets, **more):
        with pytest.raises(error) as caught:
            self.run(*targets, **more)
        return str(caught.value)

    @property
    def ran(self):
        return list(dict.fromkeys(node for node, _ in self.calls))

    def decide(self):
        return plan(self.nodes(), self.workspace.scan())

    def states(self):
        return {name: str(d.state) for name, d in self.decide().items()}

    def folder(self, node_id):
        return self.decide()[node_id].artifact.path


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = Lab(tmp_path)
    module = ModuleType("fakes")
    module.__dict__.update(lab.stages())
    monkeypatch.setitem(sys.modules, "fakes", module)
    return lab


ALL = ["infer[a]", "score[a]", "infer[b]", "score[b]", "policy", "fusion", "student"]


def test_everything_is_made_once_in_order(lab):
    report = lab.run()
    assert lab.ran == [r.node for r in report.ran] == ALL
    assert [c for c in lab.calls if c[0] == "infer[a]"] == [("infer[a]", i) for i in ITEMS]
    for made in report.ran:
        items = 4 if made.node in ("infer[a]", "infer[b]", "fusion") else 0
        assert (made.written, made.total) == (items, items)
    assert report.fresh == []
    assert set(lab.states().values()) == {"fresh"}


def test_a_second_run_makes_nothing(lab):
    lab.run()
    report = lab.run()
    assert (report.ran, lab.calls) == ([], [])
    assert sorted(report.fresh) == sorted(ALL)


def test_items_that_read_whole_artifacts_are_made_once(lab, monkeypatch):
    teachers = ["a", "b"]

    def run_pairs(job):
        job.draft.adopt(job.spares)
        for item_id in job.todo():
            lab.call(job, item_id)
            job.draft.record(item_id, value=len(item_id))
        return Told(pairs=len(job.records()))

    def nodes():
        def make(_):
            pairs = itertools.combinations(range(len(teachers)), 2)
            items = [
                Item(f"{teachers[i]}{teachers[j]}", {}, {"0": f"maps{i}", "1": f"maps{j}"})
                for i, j in pairs
            ]
            return Work(Told(), {f"maps{k}": f"infer[{t}]" for k, t in enumerate(teachers)}, items)

        needs = [f"infer[{t}]" for t in teachers]
        return [*(lab.infer(t, 10 * ord(t)) for t in teachers), lab.node("pairs", needs, make)]

    def ran():
        lab.calls.clear()
        run(nodes(), lab.workspace, ["pairs"], lambda _: Silent(), upstream=True)
        return [item for node, item in lab.calls if node == "pairs"]

    monkeypatch.setattr(sys.modules["fakes"], "pairs", run_pairs, raising=False)
    assert ran() == ["ab"]
    teachers.insert(0, "0")  # every role is another one now
    assert ran() == ["0a", "0b"]
    teachers.remove("a")
    assert ran() == []
    lab.images["i2"] = "i2 v2"
    assert ran() == []  # what the teachers say of it is the same


def test_the_manifest_records_what_was_made_and_how(lab):
    lab.run()
    decisions = lab.decide()
    manifest = decisions["fusion"].artifact.manifest
    assert manifest.recipe == decisions["fusion"].work.hashed_recipe()
    assert manifest.inputs == {"labels": decisions["infer[a]"].fingerprint}
    assert manifest.made_from == {"labels": decisions["infer[a]"].artifact.manifest.content}
    assert manifest.called == {"labels": "a"}
    assert (manifest.written, manifest.reused, manifest.result) == (4, 0, {"items": 4})
    assert manifest.provenance["peak_memory"] > 0
    assert manifest.provenance["command"]
    assert manifest.provenance["begun"] < manifest.finished
    assert decisions["infer[a]"].artifact.manifest.runtime == {"device": "cpu"}
    assert decisions["infer[a]"].artifact.items[1]["value"] == 31


def test_other_runtime_makes_nothing(lab):
    lab.run()
    lab.device = "cuda"
    assert lab.run().ran == []


def test_equal_content_upstream_stops_the_chain(lab):
    lab.run()
    lab.teachers["b"] = 13  # scored as before, and not used by fusion
    lab.run()
    assert lab.ran == ["infer[b]", "score[b]"]
    assert set(lab.states().values()) == {"fresh"}


def test_an_upstream_by_fingerprint_passes_its_change_on(lab):
    lab.run()
    lab.teachers["a"] = 32  # scored as before, so the policy stays; but fusion reads its maps
    lab.run()
    assert lab.ran == ["infer[a]", "score[a]", "fusion", "student"]


def test_a_setting_that_changes_back_finds_the_old_artifact(lab):
    lab.run()
    lab.window = 35
    lab.run()
    assert lab.ran == ["fusion", "student"]
    lab.window = 5
    assert lab.run().ran == []
    assert set(lab.states().values()) == {"fresh"}


def test_a_new_teacher_that_loses_costs_itself_and_one_policy(lab):
    lab.run()
    lab.teachers["c"] = 7
    report = lab.run()
    assert lab.ran == ["infer[c]", "score[c]", "policy"]
    assert sorted(report.fresh) == sorted(set(ALL) - {"policy"})
    assert lab.run().ran == []


def test_a_new_teacher_that_wins_costs_what_is_below_too(lab):
    lab.run()
    lab.teachers["c"] = 77
    lab.run()
    assert lab.ran == ["infer[c]", "score[c]", "policy", "fusion", "student"]
    del lab.teachers["c"]
    assert lab.run().ran == []


def test_a_stale_node_tells_what_changed(lab):
    lab.run()
    lab.window = 35
    decision = lab.decide()["fusion"]
    assert decision.state is State.STALE
    assert decision.reason == "recipe.window changed from 5 to 35"
    assert lab.states()["student"] == "stale"
    assert lab.decide()["student"].changes[0].field == "inputs.labels"


def test_only_the_targets_are_made(lab):
    lab.run("infer[a]", upstream=False)
    assert lab.ran == ["infer[a]"]
    assert lab.states() == {
        "infer[a]": "fresh",
        "score[a]": "missing",
        "infer[b]": "missing",
        "score[b]": "missing",
        "policy": "waiting",
        "fusion": "waiting",
        "student": "waiting",
    }
    lab.run("score[a]", "score[b]", "infer[b]", upstream=False)
    assert lab.ran == ["score[a]", "infer[b]", "score[b]"]


@pytest.mark.parametrize(
    ("made", "target", "needed", "state", "command"),
    [
        ([], "student", "fusion", "waiting", "fuse"),
        ([], "policy", r"score[a]", "missing", "select-policy"),
        (["score[a]"], "score[b]", "infer[b]", "missing", "infer-teacher b"),
        (["score[a]", "score[b]"], "fusion", "policy", "missing", "select-policy"),
    ],
)
def test_a_missing_upstream_is_named_with_the_command_that_makes_it(
    lab, made, target, needed, state, command
):
    if made:
        lab.run(*made)
    said = lab.refuse(NotReadyError, target, upstream=False)
    assert lab.calls == []
    assert said.startswith(f"{target} needs {needed}, which is {state} (")
    assert f"run `ensdistill {command}` first" in said
    assert "--upstream" in said


def test_a_stale_upstream_is_not_used(lab):
    lab.run()
    lab.window = 35
    said = lab.refuse(NotReadyError, "student", upstream=False)
    assert "student needs fusion, which is stale (recipe.window changed from 5 to 35)" in said


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_what_was_done_before_an_interruption_is_kept(lab, error):
    lab.fail["infer[a]", "i3"] = error
    with pytest.raises(type(error)):
        lab.run()
    decision = lab.decide()["infer[a]"]
    assert (decision.state, decision.reason) == (State.PARTIAL, "2 of 4 items done")
    assert (decision.done, decision.total) == (2, 4)
    lab.fail.clear()
    report = lab.run("infer[a]")
    assert lab.calls == [("infer[a]", "i3"), ("infer[a]", "i4")]
    assert [(r.written, r.total) for r in report.ran] == [(2, 4)]
    assert [r["id"] for r in lab.decide()["infer[a]"].artifact.items] == list(ITEMS)


def test_a_failure_stops_before_anything_below(lab):
    lab.fail["score[b]", None] = ValueError("bad")
    assert "bad" in lab.refuse(ValueError)
    assert lab.ran == ["infer[a]", "score[a]", "infer[b]", "score[b]"]
    assert lab.states()["score[b]"] == "partial"
    lab.fail.clear()
    lab.run()
    assert lab.ran == ["score[b]", "policy", "fusion", "student"]


def test_a_stage_that_forgets_an_item_cannot_publish(lab):
    lab.fail["fusion", "i2"] = lab.fail["fusion", "i4"] = "forget"
    said = lab.refuse(CorruptError)
    assert "the stage fusion did not write 2 items, the first is i2" in said
    assert lab.states()["fusion"] == "partial"
    lab.fail.clear()
    lab.run()
    assert lab.calls[:2] == [("fusion", "i2"), ("fusion", "i4")]


def test_items_are_stored_in_the_order_of_the_list_however_they_came(lab):
    lab.fail["infer[a]", "i1"] = "forget"
    lab.refuse(CorruptError)
    lab.fail.clear()
    lab.run("infer[a]")
    assert [r["id"] for r in lab.decide()["infer[a]"].artifact.items] == list(ITEMS)


@pytest.mark.parametrize("result", [{"miou": float("nan")}, {"x": {1}}], ids=repr)
def test_a_result_that_json_cannot_carry_is_an_error(lab, result):
    lab.result["student"] = result
    lab.refuse((ValueError, TypeError))
    assert lab.states()["student"] == "partial"
    lab.result.clear()
    lab.run()
    assert lab.ran == ["student"]


def test_a_full_disk_at_the_manifest_leaves_a_draft(lab, monkeypatch):
    replace = Path.replace

    def full(self, target):
        if target.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        lab.refuse(OSError, "infer[a]")
    assert lab.decide()["infer[a]"].reason == "4 of 4 items done"
    report = lab.run("infer[a]")
    assert lab.calls == []
    assert [(r.written, r.total) for r in report.ran] == [(0, 4)]
    assert lab.states()["infer[a]"] == "fresh"
    assert sorted(p.name for p in lab.folder("infer[a]").iterdir()) == [
        ".ensdistill",
        *(f"{k}.map" for k in range(4)),
        "items.jsonl",
        "manifest.json",
    ]


def test_a_corrupt_manifest_is_refused_with_its_path(lab):
    lab.run()
    path = lab.folder("fusion") / "manifest.json"
    path.write_text("{")
    assert lab.states() | {"fusion": "corrupt"} == lab.states()
    said = lab.refuse(CorruptError)
    assert said.startswith("fusion is corrupt: ")
    assert str(path) in said
    assert "`ensdistill verify --repair`" in said
    assert lab.calls == []
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    lab.run()
    assert lab.ran == ["fusion"]


def test_leftover_journals_change_nothing(lab):
    lab.run()
    journal = Journal(lab.folder("fusion") / "journal-1.jsonl")
    journal.append(lab.decide()["fusion"].artifact.items[0] | {"value": 0})
    journal.close()
    assert lab.run().ran == []
    assert lab.decide()["fusion"].artifact.items[0]["value"] == [31, 5]


def test_a_renamed_folder_is_found_by_its_fingerprint(lab):
    lab.fail["fusion", "i3"] = RuntimeError("broken")
    lab.refuse(RuntimeError)
    for folder in list(lab.workspace.root.glob("*/*-*")):
        folder.rename(folder.with_name("renamed" + folder.name[-13:]))
    lab.fail.clear()
    lab.run()
    assert lab.calls == [("fusion", "i3"), ("fusion", "i4"), ("student", None)]


def test_one_new_image_is_another_artifact_beside_the_old_one(lab):
    lab.run()
    old = lab.folder("infer[a]")
    lab.images["i5"] = "i5 v1"
    assert lab.decide()["infer[a]"].changes[0].field == "recipe.items.count"
    lab.run()
    assert lab.folder("infer[a]") != old
    assert (old / "manifest.json").exists()
    said = lab.decide()["infer[a]"].artifact.manifest.provenance["messages"]
    assert said == ["infer[a]: 4 of 5 are taken from other artifacts"]


HOLD = """
import sys
from pathlib import Path
from ensdistill.pipeline.workspace import Workspace, lock_name
with Workspace(Path(sys.argv[1])).locks.hold(lock_name("fusion", sys.argv[2]), "fusion"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(lab):
    lab.run("policy")
    name = lab.decide()["fusion"].fingerprint
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, lab.workspace.root, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        said = lab.refuse(LockedError, "fusion")
        assert f"fusion is being made by process {holder.pid} on {socket.gethostname()}" in said
        assert lab.calls == []
        assert holder.pid != os.getpid()
        lab.run("infer[a]")  # another artifact is not locked
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lab.run()
        assert lab.ran == ["fusion", "student"]
    finally:
        holder.kill()
        holder.communicate()


@pytest.fixture
def before_the_lock(monkeypatch):
    """Let something happen once between planning and locking."""

    def arrange(happen):
        hold = Locks.hold

        @contextmanager
        def late(self, *arguments, **more):
            monkeypatch.setattr(Locks, "hold", hold)
            happen()
            with hold(self, *arguments, **more) as claim:
                yield claim

        monkeypatch.setattr(Locks, "hold", late)

    return arrange


@pytest.mark.parametrize("window", [5, 35])
@pytest.mark.parametrize("target", ["fusion", "student"])
def test_what_another_process_published_meanwhile_is_taken(lab, before_the_lock, window, target):
    lab.run(target if window == 35 else "policy")  # with 35, it is stale when it is planned
    if target == "student" and window == 5:
        lab.run("fusion")
    lab.window = window
    if target == "student":
        lab.run("fusion")
    nodes = lab.nodes()

    def meanwhile():
        run(nodes, lab.workspace, [target], lambda _: Silent())
        lab.calls.clear()

    before_the_lock(meanwhile)
    report = lab.run(target)
    assert lab.calls == []
    total = 4 if target == "fusion" else 0
    assert [(r.node, r.written, r.total) for r in report.ran] == [(target, 0, total)]


def test_what_is_published_is_not_withdrawn_by_who_planned_before(lab, before_the_lock):
    lab.run()
    lab.window = 35
    nodes, folders = lab.nodes(), []

    def meanwhile():
        run(nodes, lab.workspace, ["fusion"], lambda _: Silent())
        folders.append((lab.folder("fusion") / "manifest.json").stat())

    before_the_lock(meanwhile)
    lab.run("fusion")
    after = (lab.folder("fusion") / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (folders[0].st_ino, folders[0].st_mtime_ns)


def test_progress_is_asked_for_with_the_decision_of_each_node(lab):
    lab.fail["infer[a]", "i4"] = RuntimeError("broken")
    lab.refuse(RuntimeError)
    lab.fail.clear()
    seen = []

    def progress(decision):
        seen.append((decision.node.id, str(decision.state), decision.done))
        return Silent()

    run(lab.nodes(), lab.workspace, ["score[a]"], progress, upstream=True)
    assert seen == [("infer[a]", "partial", 3), ("score[a]", "missing", 0)]


# one item more, less, or changed


def test_one_more_image_costs_one_item_a_node(lab):
    lab.run()
    lab.images["i5"] = "i5 v1"
    report = lab.run()
    assert [c for c in lab.calls if c[1]] == [
        ("infer[a]", "i5"),
        ("infer[b]", "i5"),
        ("fusion", "i5"),
    ]
    with_items = [r for r in report.ran if r.total]
    assert {(r.written, r.reused, r.total) for r in with_items} == {(1, 4, 5)}
    manifest = lab.decide()["fusion"].artifact.manifest
    assert (manifest.written, manifest.reused) == (1, 4)
    assert set(lab.states().values()) == {"fresh"}


@pytest.mark.parametrize("gone", ITEMS)
def test_one_image_less_costs_none(lab, gone):
    lab.run()
    del lab.images[gone]
    report = lab.run()
    assert [c for c in lab.calls if c[1]] == []
    assert {(r.written, r.reused, r.total) for r in report.ran if r.total} == {(0, 3, 3)}
    folder = lab.folder("fusion")
    maps = [(folder / f"{k}.map").read_text() for k in range(3)]
    assert maps == [f"[31, 5] {i} v1" for i in ITEMS if i != gone]


def test_the_order_of_the_list_costs_nothing(lab):
    lab.run()
    lab.images = dict(reversed(lab.images.items()))
    assert lab.states()["infer[a]"] == "stale"
    lab.run()
    assert [c for c in lab.calls if c[1]] == []
    assert [r["id"] for r in lab.decide()["fusion"].artifact.items] == list(reversed(ITEMS))


@pytest.mark.parametrize("changed", ITEMS)
def test_one_changed_image_costs_itself(lab, changed):
    lab.run()
    lab.images[changed] = f"{changed} v2"
    lab.run()
    assert {c for c in lab.calls if c[1]} == {
        (node, changed) for node in ("infer[a]", "infer[b]", "fusion")
    }
    assert len([c for c in lab.calls if c[1]]) == 3
    lab.images[changed] = f"{changed} v1"
    assert lab.run().ran == []


def test_a_renamed_image_costs_nothing_where_no_upstream_is_asked_by_name(lab):
    lab.run("infer[a]")
    lab.images = {f"new {i}": content for i, content in lab.images.items()}
    lab.run("infer[a]")
    assert lab.calls == []


def test_an_item_is_made_again_only_if_its_upstream_item_changed(lab):
    lab.run()
    lab.teachers["a"] = 32  # other labels everywhere, but for two images the same as before
    lab.noise = {("infer[a]", "i1"): -1, ("infer[a]", "i3"): -1}
    lab.run()
    assert [c for c in lab.calls if c[0] == "infer[a]"] == [("infer[a]", i) for i in ITEMS]
    assert [c for c in lab.calls if c[0] == "fusion"] == [("fusion", "i2"), ("fusion", "i4")]
    values = [r["value"] for r in lab.decide()["fusion"].artifact.items]
    assert values == [[31, 5], [32, 5], [31, 5], [32, 5]]


def test_a_setting_costs_all_items_and_changes_back_for_nothing(lab):
    lab.run()
    lab.window = 35
    assert [r.written for r in lab.run("fusion").ran] == [4]
    lab.window = 5
    assert lab.run().ran == []


def test_items_of_an_unfinished_run_under_other_settings_are_taken(lab):
    lab.images["i5"] = "i5 v1"
    lab.fail["infer[a]", "i4"] = RuntimeError("broken")
    lab.refuse(RuntimeError, "infer[a]")
    lab.fail.clear()
    del lab.images["i5"]
    lab.run("infer[a]")
    assert lab.calls == [("infer[a]", "i4")]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_text("31 i2 v2")])
def test_a_spoilt_item_elsewhere_is_computed(lab, spoil):
    lab.run("infer[a]")
    spoil(lab.folder("infer[a]") / "1.map")
    lab.images["i5"] = "i5 v1"
    report = lab.run("infer[a]")
    assert lab.calls == [("infer[a]", "i2"), ("infer[a]", "i5")]
    assert [(r.written, r.reused) for r in report.ran] == [(2, 3)]
    assert (lab.folder("infer[a]") / "1.map").read_text() == "31 i2 v1"


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_text("31 i2 v2")])
def test_an_item_whose_file_was_lost_with_the_power_is_computed_again(lab, spoil):
    lab.fail["infer[a]", "i4"] = RuntimeError("broken")
    lab.refuse(RuntimeError, "infer[a]")
    (folder,) = lab.workspace.folders("infer")
    spoil(folder / "1.map")
    lab.fail.clear()
    lab.run("infer[a]")
    assert lab.calls == [("infer[a]", "i2"), ("infer[a]", "i4")]
    maps = [(folder / f"{k}.map").read_text() for k in range(4)]
    assert maps == [f"31 {i} v1" for i in ITEMS]


# an upstream that was made again


def make_again(lab, node_id, *items):
    """Lose items of an artifact, or all of it, and make it again."""
    folder = lab.folder(node_id)
    (folder / "manifest.json").unlink()
    for k, item in enumerate(ITEMS):
        if item in items or not items:
            (folder / f"{k}.map").unlink(missing_ok=True)
    lab.run(node_id)


def test_an_upstream_made_again_the_same_changes_nothing(lab):
    lab.run()
    make_again(lab, "infer[a]")
    assert [c for c in lab.calls if c[1]] == [("infer[a]", i) for i in ITEMS]
    assert set(lab.states().values()) == {"fresh"}
    assert lab.run().ran == []


def test_an_upstream_made_again_with_other_content_makes_stale_what_was_made_from_it(lab):
    lab.run()
    folder, before = lab.folder("fusion"), lab.decide()["fusion"]
    lab.noise["infer[a]", "i2"] = 4
    make_again(lab, "infer[a]", "i2")
    assert lab.decide()["score[a]"].state is State.STALE
    assert lab.decide()["score[a]"].artifact is None
    lab.run("policy")
    assert lab.ran == ["score[a]"]
    decision = lab.decide()["fusion"]
    assert decision.state is State.STALE
    assert decision.reason == "labels was made again and came out different"
    assert decision.fingerprint == before.fingerprint
    report = lab.run()
    assert [c for c in lab.calls if c[0] == "fusion"] == [("fusion", "i2")]
    assert lab.ran == ["fusion", "student"]
    assert [(r.written, r.reused) for r in report.ran if r.node == "fusion"] == [(1, 0)]
    assert lab.folder("fusion") == folder
    values = [r["value"] for r in lab.decide()["fusion"].artifact.items]
    assert values == [[31, 5], [35, 5], [31, 5], [31, 5]]
    assert set(lab.states().values()) == {"fresh"}
    assert lab.run().ran == []


def test_a_stale_artifact_being_made_again_goes_on_after_a_kill(lab):
    lab.run()
    lab.noise = {("infer[a]", "i2"): 4, ("infer[a]", "i3"): 4}
    make_again(lab, "infer[a]", "i2", "i3")
    lab.fail["fusion", "i3"] = RuntimeError("broken")
    lab.refuse(RuntimeError)
    assert lab.states()["fusion"] == "partial"
    lab.fail.clear()
    lab.run()
    assert lab.calls == [("fusion", "i3"), ("student", None)]
    assert set(lab.states().values()) == {"fresh"}


def test_a_damaged_upstream_is_refused_with_the_way_out(lab):
    lab.run("policy")
    file = lab.folder("infer[a]") / "items.jsonl"
    whole = file.read_bytes()
    for content in (whole[:-200], whole + whole.splitlines(keepends=True)[0], b""):
        file.write_bytes(content)
        said = lab.refuse(CorruptError)
        assert str(file) in said
        assert "`ensdistill verify --repair`" in said
        assert lab.calls == []
    file.write_bytes(whole)
    lab.run()
    assert lab.ran == ["fusion", "student"]


def test_an_upstream_withdrawn_while_it_is_read_is_no_harm(lab):
    lab.run("policy")

    def withdrawn(node_id, item):
        if item == "i2":
            unpublish(lab.folder("infer[a]"))
            lab.on_call = lambda *_: None

    lab.on_call = withdrawn
    lab.run("fusion", upstream=False)
    assert lab.states()["infer[a]"] == "partial"
    lab.run()
    assert set(lab.states().values()) == {"fresh"}


# inputs that change


@pytest.mark.parametrize("node_id", ["infer[a]", "fusion"])
def test_an_input_that_changes_meanwhile_is_never_published(lab, node_id):
    if node_id == "fusion":
        lab.run("policy")

    def change(name, item):
        if (name, item) == (node_id, "i3"):
            lab.images["i3"] = "i3 v2"

    lab.on_call = change
    said = lab.refuse(DataError, node_id)
    assert said == "i3 changed"
    lab.images["i3"] = "i3 v1"
    lab.on_call = lambda *_: None
    assert lab.decide()[node_id].done == 2  # made from what they were planned for
    lab.run(node_id)
    assert (lab.folder(node_id) / "2.map").read_text().endswith(" i3 v1")


def test_an_input_that_changes_after_it_was_read_costs_nothing_but_the_publishing(lab):
    def change(name, item):
        if item == "i4":
            lab.images["i1"] = "i1 v2"

    lab.on_call = change
    said = lab.refuse(DataError, "infer[a]")
    assert "infer[a]: an input file changed while it was made; nothing is published" in said
    lab.images["i1"] = "i1 v1"
    lab.on_call = lambda *_: None
    report = lab.run("infer[a]")
    assert [(r.written, r.total) for r in report.ran] == [(0, 4)]


def test_a_part_made_from_a_changing_input_is_never_published(lab):
    def change(name, item):
        lab.images["i3"] = "i3 v2"

    lab.on_call = change
    with pytest.raises(DataError, match="i3 changed"):
        lab.run("infer[a]", part=(1, 2))  # i1 and i3
    lab.on_call = lambda *_: None
    lab.images["i3"] = "i3 v1"
    lab.run("infer[a]", part=(2, 2))
    lab.run("infer[a]", part=(1, 2))
    assert (lab.folder("infer[a]") / "2.map").read_text() == "31 i3 v1"


def test_what_an_input_changed_to_is_made_by_the_next_run(lab):
    def change(name, item):
        lab.images["i3"] = "i3 v2"

    lab.on_call = change
    lab.refuse(DataError, "infer[a]")
    lab.run("infer[a]")
    assert (lab.folder("infer[a]") / "2.map").read_text() == "31 i3 v2"
    assert lab.states()["infer[a]"] == "fresh"


# parts


@pytest.fixture
def quick_turns(monkeypatch):
    monkeypatch.setattr(locks_module, "TURN", 0.2)


def content_of(folder):
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"
    }


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))), ids=str)
def test_parts_in_any_order_make_what_one_run_makes(lab, quick_turns, tmp_path, order):
    whole = Lab(tmp_path / "whole")
    whole.workspace.root.parent.mkdir()
    for one in (lab, whole):
        one.run("policy")
    whole.run("fusion")
    reports = []
    for index in order:
        reports += lab.run("fusion", part=(index, 3)).ran
        assert lab.states()["fusion"] == ("fresh" if index == order[-1] else "partial")
    assert [(r.written, r.open) for r in reports] == [
        (2 if k == 1 else 1, sum(2 if left == 1 else 1 for left in order[n + 1 :]))
        for n, k in enumerate(order)
    ]
    one, other = whole.folder("fusion"), lab.folder("fusion")
    assert content_of(one) == content_of(other)
    manifests = [x.decide()["fusion"].artifact.manifest for x in (whole, lab)]
    assert manifests[0].content == manifests[1].content
    assert manifests[0].files == manifests[1].files
    assert manifests[0].result == manifests[1].result


def test_a_part_makes_its_own_items_only(lab, quick_turns):
    lab.run("policy")
    lab.run("fusion", part=(2, 2))
    assert lab.calls == [("fusion", "i2"), ("fusion", "i4")]
    lab.run("fusion", part=(2, 2))
    assert lab.calls == []
    report = lab.run("fusion", part=(1, 2))
    assert lab.calls == [("fusion", "i1"), ("fusion", "i3")]
    assert [(r.written, r.total, r.open) for r in report.ran] == [(2, 4, 0)]
    report = lab.run("fusion", part=(2, 2))
    assert report.ran == []
    assert "fusion" in report.fresh


def test_more_parts_than_items_publish_once(lab, quick_turns):
    lab.run("policy")
    opened = [r.open for k in range(6) for r in lab.run("fusion", part=(k + 1, 6)).ran]
    assert opened == [3, 2, 1, 0]
    assert lab.states()["fusion"] == "fresh"


def test_a_plain_run_finishes_what_parts_began(lab, quick_turns):
    lab.run("policy")
    lab.run("fusion", part=(1, 3))
    report = lab.run("fusion")
    assert lab.calls == [("fusion", "i2"), ("fusion", "i3")]
    assert [(r.written, r.open) for r in report.ran] == [(2, 0)]


def test_parts_of_another_division_finish_what_was_begun(lab, quick_turns):
    lab.run("policy")
    lab.run("fusion", part=(1, 3))
    lab.run("fusion", part=(1, 2))
    assert lab.calls == [("fusion", "i3")]
    lab.run("fusion", part=(2, 2))
    assert lab.states()["fusion"] == "fresh"


def test_a_node_without_items_is_made_whole_by_any_part(lab, quick_turns):
    lab.run("fusion")
    report = lab.run("student", part=(2, 3))
    assert lab.calls == [("student", None)]
    assert [(r.node, r.open) for r in report.ran] == [("student", 0)]
    assert lab.states()["student"] == "fresh"


def test_parts_take_items_from_other_artifacts_too(lab, quick_turns):
    lab.run()
    lab.images["i5"] = "i5 v1"
    lab.run("policy")
    reports = [r for k in (1, 2) for r in lab.run("fusion", part=(k, 2)).ran]
    assert [(r.written, r.reused, r.open) for r in reports] == [(1, 2, 2), (0, 2, 0)]


def test_parts_make_again_what_an_upstream_changed(lab, quick_turns):
    lab.run()
    lab.noise = {("infer[a]", "i1"): 4, ("infer[a]", "i2"): 4}
    make_again(lab, "infer[a]", "i1", "i2")
    lab.run("policy")
    lab.run("fusion", part=(1, 2))
    assert lab.calls == [("fusion", "i1")]
    lab.run("fusion", part=(2, 2))
    assert lab.calls == [("fusion", "i2")]
    assert set(lab.states().values()) == {"fresh", "stale"}  # the student
    assert lab.states()["fusion"] == "fresh"


def test_a_part_that_another_process_makes_is_refused(lab, quick_turns):
    lab.run("policy")
    decision = lab.decide()["fusion"]
    name = lock_name("fusion", decision.fingerprint)
    with lab.workspace.locks.hold(name, "fusion", Part(1, 2)):
        assert "part 1/2 of fusion" in lab.refuse(LockedError, "fusion", part=(1, 2))
        lab.refuse(LockedError, "fusion")
        lab.run("fusion", part=(2, 2))
        assert lab.calls == [("fusion", "i2"), ("fusion", "i4")]
        assert lab.states()["fusion"] == "partial"


def test_two_parts_at_once_publish_once(lab, quick_turns, monkeypatch):
    lab.run("policy")
    published, real = [], Draft.publish

    def publish(self, manifest):
        published.append(self.path)
        return real(self, manifest)

    monkeypatch.setattr(Draft, "publish", publish)

    def other_part(node_id, item):
        if item == "i3":  # the last of part 1: meanwhile part 2 does all of its own
            lab.on_call = lambda *_: None
            run(lab.nodes(), lab.workspace, ["fusion"], lambda _: Silent(), part=Part(2, 2))

    lab.on_call = other_part
    report = lab.run("fusion", part=(1, 2))
    assert [(r.written, r.open) for r in report.ran] == [(2, 0)]
    assert len(published) == 1
    assert lab.states()["fusion"] == "fresh"
    assert [r["id"] for r in lab.decide()["fusion"].artifact.items] == list(ITEMS)


def test_a_late_part_leaves_alone_what_another_published(lab, quick_turns, monkeypatch):
    lab.run("policy")
    lab.run("fusion", part=(2, 2))

    turn = Locks.turn

    def late(self, *arguments):
        if arguments[0] == "clearing":
            return turn(self, *arguments)
        # it has found all items, and is about to publish
        monkeypatch.setattr(Locks, "turn", turn)
        run(lab.nodes(), lab.workspace, ["fusion"], lambda _: Silent(), part=Part(2, 2))
        lab.images["i3"] = "i3 v2"
        return turn(self, *arguments)

    monkeypatch.setattr(Locks, "turn", late)
    with suppress(DataError, CorruptError):
        lab.run("fusion", part=(1, 2))
    lab.images["i3"] = "i3 v1"
    assert lab.states()["fusion"] == "fresh"
    assert damages(lab.folder("fusion")) == []


def test_a_claim_that_was_lost_is_not_published(lab, monkeypatch):
    lab.run("policy")
    monkeypatch.setattr(
        "ensdistill.pipeline.locks.Claim.require",
        lambda _, now=False: (_ for _ in ()).throw(LockedError("taken")) if now else None,
    )
    lab.refuse(LockedError, "fusion")
    assert lab.decide()["fusion"].reason == "4 of 4 items done"


def elsewhere(lab, needs):
    """Let another process be under way that needs something."""
    code = """
import sys, time
from pathlib import Path
from ensdistill.pipeline.locks import Locks, Needs
with Locks(Path(sys.argv[1])).needing() as say:
    say(Needs(reads=frozenset(sys.argv[2:]), artifacts=frozenset(sys.argv[2:])))
    print("ready", flush=True)
    time.sleep(60)
"""
    folder = str(lab.workspace.locks.folder)
    process = subprocess.Popen([sys.executable, "-c", code, folder, *needs], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_while_it_runs_others_see_all_that_it_needs(lab):
    lab.run("infer[a]")
    seen = []

    def look(node_id, _):
        seen.append((node_id, Locks(lab.workspace.locks.folder).needed()))

    lab.on_call = look
    lab.run("policy")
    decisions = lab.decide()
    names = {n: lock_name(d.node.stage, d.fingerprint) for n, d in decisions.items() if d.artifact}
    (needs,) = dict(seen)["infer[b]"].values()
    assert names["infer[a]"] in needs.reads
    assert names["infer[b]"] in needs.artifacts - needs.reads
    assert {"infer", "score", "policy"} == needs.stages
    (needs,) = dict(seen)["policy"].values()
    assert needs.reads >= {names["infer[a]"], names["infer[b]"]}
    assert needs.stages == {"policy"}
    assert lab.workspace.locks.needed() == {}
    assert not list(lab.workspace.locks.folder.glob("command-*"))


def test_where_nothing_is_to_do_nothing_is_written(lab):
    lab.run()
    for lock in lab.workspace.locks.folder.iterdir():
        lock.unlink()
    lab.workspace.locks.folder.rmdir()
    assert set(lab.run().fresh) == set(ALL)
    assert not lab.workspace.locks.folder.exists()


def test_an_artifact_that_another_command_reads_is_not_withdrawn(lab):
    lab.run()
    lab.noise["infer[a]", "i1"] = 7
    shutil.rmtree(lab.folder("infer[a]"))
    lab.run("infer[a]")
    stale = [n for n, s in lab.states().items() if s == "stale"]
    assert stale
    name = lock_name(lab.decide()[stale[0]].node.stage, lab.decide()[stale[0]].fingerprint)
    process = elsewhere(lab, [name])
    try:
        text = lab.refuse(LockedError, stale[0])
        assert f"process {process.pid}" in text and "reads it as it is" in text
        assert lab.states()[stale[0]] == "stale"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    lab.run(stale[0])
    assert lab.states()[stale[0]] == "fresh"


@pytest.mark.parametrize("upstream", [True, False])
def test_what_is_deleted_meanwhile_is_named_as_the_cause(lab, upstream):
    lab.run("policy")
    deleted = lab.folder("infer[a]")

    def delete(node_id, item):
        if (node_id, item) == ("fusion", "i2"):
            shutil.rmtree(deleted)
            (deleted / "i2.map").read_bytes()

    lab.on_call = delete
    targets = ["student"] if upstream else ["fusion", "student"]
    text = lab.refuse(DataError, *targets, upstream=upstream)
    assert str(deleted) in text and "was deleted while it was made" in text
    lab.on_call = lambda *_: None
    lab.run()
    assert set(lab.states().values()) == {"fresh"}


def test_what_it_made_and_somebody_deleted_is_named_as_the_cause(lab):
    def delete(node_id, item):
        if node_id == "policy":
            shutil.rmtree(lab.folder("infer[a]"))

    lab.on_call = delete
    text = lab.refuse((CorruptError, DataError), "policy", "infer[a]")
    assert "infer[a]" in text and "deleted" in text and "input file" not in text


def test_a_draft_is_not_filled_through_a_link(lab, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    lab.fail["infer[a]", "i2"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        lab.run("infer[a]")
    lab.fail.clear()
    (draft,) = lab.workspace.folders("infer")
    draft.rename(outside / "moved")
    draft.symlink_to(outside / "moved")
    before = sorted(p.name for p in (outside / "moved").iterdir())
    text = lab.refuse(DataError, "infer[a]")
    assert f"{draft}: is a link" in text
    assert sorted(p.name for p in (outside / "moved").iterdir()) == before


def test_locks_behind_a_link_are_refused(lab, tmp_path):
    (tmp_path / "outside").mkdir()
    lab.workspace.root.mkdir()
    lab.workspace.locks.folder.symlink_to(tmp_path / "outside")
    assert ".locks: is a link" in lab.refuse(DataError, "infer[a]")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("linked", ["artifact", "stage"])
def test_nothing_behind_a_link_is_withdrawn_or_written(lab, tmp_path, linked):
    lab.run()
    lab.noise["infer[a]", "i1"] = 7
    shutil.rmtree(lab.folder("infer[a]"))
    lab.run("infer[a]")
    stale = next(n for n, s in lab.states().items() if s == "stale")
    folder = next(lab.workspace.folders(stale.partition("[")[0]))
    here = folder if linked == "artifact" else folder.parent
    elsewhere = here.rename(tmp_path / "elsewhere")
    here.symlink_to(elsewhere)
    before = {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()}
    assert "is a link to" in lab.refuse(DataError, stale)
    assert {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()} == before
    assert lab.states()[stale] == "stale"
