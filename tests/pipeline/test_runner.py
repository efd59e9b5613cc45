"""Running a small graph of counted fakes: what is made, what is kept, what is refused."""

import errno
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from ensdistill.pipeline.errors import CorruptError, LockedError, NotReadyError
from ensdistill.pipeline.node import Item, Node, Work
from ensdistill.pipeline.plan import State, plan
from ensdistill.pipeline.runner import run
from ensdistill.pipeline.workspace import Workspace

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
        self.images = dict.fromkeys(ITEMS, "v1")
        self.device = "cpu"
        self.fail = {}  # (node id, item id or None) -> what is raised, or "forget"
        self.result = {}  # node id -> what its stage returns instead
        self.calls = []

    def nodes(self):
        nodes = []
        for t, quality in self.teachers.items():
            nodes += [self.infer(t, quality), self.score(t)]
        return [*nodes, self.policy(), self.fusion(), self.student()]

    def node(self, node_id, needs, make, command="run"):
        stage, _, name = node_id.partition("[")
        return Node(
            node_id, stage, name.rstrip("]") or stage, 1, needs, make, f"fakes:{stage}", command
        )

    def items(self):
        return tuple(Item(i, (content,)) for i, content in self.images.items())

    def infer(self, t, quality):
        def make(_):
            runtime = {"device": self.device}
            return Work({"quality": quality}, items=self.items(), local=self, runtime=runtime)

        return self.node(f"infer[{t}]", [], make, f"infer-teacher {t}")

    def score(self, t):
        def make(_):
            return Work({}, uses={"labels": f"infer[{t}]"}, local=self)

        return self.node(f"score[{t}]", [f"infer[{t}]"], make, "select-policy")

    def policy(self):
        scores = [f"score[{t}]" for t in self.teachers]

        def make(upstream):
            return Work({t: upstream.content(s)["score"] for t, s in zip(self.teachers, scores)})  # noqa: B905

        return self.node("policy", scores, make, "select-policy")

    def fusion(self):
        def make(upstream):
            best = upstream.content("policy")["best"]
            return Work({"window": self.window}, {"labels": f"infer[{best}]"}, self.items())

        needs = ["policy", *(f"infer[{t}]" for t in self.teachers)]
        return self.node("fusion", needs, make, "fuse")

    def student(self):
        return self.node("student", ["fusion"], lambda _: Work({}, {"labels": "fusion"}))

    # the stages

    def call(self, job, item=None):
        self.calls.append((job.node.id, item))
        failure = self.fail.get((job.node.id, item))
        if isinstance(failure, BaseException):
            raise failure
        return failure != "forget"

    def done(self, job, result):
        return self.result.get(job.node.id, result)

    def each(self, job, value):
        done = job.draft.records()
        for item in job.work.items:
            if item.id not in done and self.call(job, item.id):
                job.draft.record(item.id, value=value(item))
        return self.done(job, {"items": len(job.work.items)})

    def stages(self):
        def run_infer(job):
            return self.each(job, lambda item: job.work.recipe["quality"])

        def run_score(job):
            self.call(job)
            values = [r["value"] for r in job.inputs["labels"].items()]
            return self.done(job, {"score": sum(values) // len(values) // 10})

        def run_policy(job):
            self.call(job)
            return self.done(job, {"best": max(job.work.recipe, key=job.work.recipe.get)})

        def run_fusion(job):
            labels = {r["id"]: r["value"] for r in job.inputs["labels"].items()}
            return self.each(job, lambda item: [labels[item.id], job.work.recipe["window"]])

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

    def run(self, *targets, upstream=True):
        self.calls.clear()
        targets = targets or ("student",)
        return run(self.nodes(), self.workspace, targets, lambda _: Silent(), upstream=upstream)

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


def test_the_manifest_records_what_was_made_and_how(lab):
    lab.run()
    decisions = lab.decide()
    manifest = decisions["fusion"].artifact.manifest
    assert manifest.recipe == decisions["fusion"].work.hashed_recipe()
    assert manifest.inputs == {"labels": decisions["infer[a]"].fingerprint}
    assert (manifest.written, manifest.result) == (4, {"items": 4})
    assert decisions["infer[a]"].artifact.manifest.runtime == {"device": "cpu"}
    assert decisions["infer[a]"].artifact.items()[1] == {"id": "i2", "value": 31}


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
    assert [r["id"] for r in lab.decide()["infer[a]"].artifact.items()] == list(ITEMS)


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
    assert "2 items were not written, the first is i2" in said
    assert lab.states()["fusion"] == "partial"
    lab.fail.clear()
    lab.run()
    assert lab.calls[:2] == [("fusion", "i2"), ("fusion", "i4")]


def test_items_are_stored_in_the_order_of_the_list_however_they_came(lab):
    lab.fail["infer[a]", "i1"] = "forget"
    lab.refuse(CorruptError)
    lab.fail.clear()
    lab.run("infer[a]")
    assert [r["id"] for r in lab.decide()["infer[a]"].artifact.items()] == list(ITEMS)


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
        "items.json",
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
    assert "delete that folder" in said
    assert lab.calls == []
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    lab.run()
    assert lab.ran == ["fusion"]


def test_leftover_journals_change_nothing(lab):
    lab.run()
    (lab.folder("fusion") / "journal-1.jsonl").write_text('{"id": "i1", "value": 0}\n{"id')
    assert lab.run().ran == []
    assert lab.decide()["fusion"].artifact.items()[0]["value"] == [31, 5]


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
    lab.images["i5"] = "v1"
    assert lab.decide()["infer[a]"].changes[0].field == "recipe.items.count"
    lab.run()
    assert lab.folder("infer[a]") != old
    assert (old / "manifest.json").exists()


HOLD = """
import sys
from pathlib import Path
from ensdistill.pipeline.workspace import Workspace
with Workspace(Path(sys.argv[1])).lock("fusion", sys.argv[2], "fusion"):
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


def test_what_another_process_published_meanwhile_is_taken(lab, monkeypatch):
    lab.run("policy")
    lock, nodes = Workspace.lock, lab.nodes()

    @contextmanager
    def late(self, *arguments):
        monkeypatch.setattr(Workspace, "lock", lock)
        run(nodes, lab.workspace, ["fusion"], lambda _: Silent())
        lab.calls.clear()
        with lock(self, *arguments):
            yield

    monkeypatch.setattr(Workspace, "lock", late)
    report = lab.run("fusion")
    assert lab.calls == []
    assert [(r.node, r.written, r.total) for r in report.ran] == [("fusion", 0, 4)]


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
