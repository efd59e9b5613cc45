"""Kills, power losses, full disks and changing files while the real stages run."""

import itertools
import json
import os
import random
import shutil

import pytest
from faults import READING, WRITING, Fault, Forks, Reference, quick_folder
from worlds import World

from ensdistill.pipeline.manifest import MANIFEST, read_manifest
from ensdistill.stages.training.checkpoints import checkpoints

TRAINING = {
    "network": {"arch": "tiny"},
    "steps": 4,
    "batch_size": 2,
    "crop": [24, 32],
    "lr": 0.01,
}
NODES = [
    "infer[a]",
    "infer[net]",
    "probe[a]",
    "certainty[a]",
    "policy",
    "fusion",
    "student",
    "truth@val",
    "policy[oracle]@val",
    "evaluation@val",
]
LOSSES = ["empty", "half", "zeros", "names"]


@pytest.fixture(scope="module")
def forks():
    with Forks("faults:warm_stages") as forks:
        yield forks


@pytest.fixture
def folder():
    with quick_folder() as folder:
        yield folder


def small_world(root, net=None):
    world = World(root, train=3, val=2, size=(24, 32))
    watching = {"watch": "val", "watch_every": 2, "checkpoint": "best"}
    world.settings |= {"probe": TRAINING, "student": TRAINING | watching}
    world.settings["runtime"] |= {"checkpoint_every": 1}
    if net is not None:
        shutil.copytree(net, root / "net")
        world.settings["teachers"].append({"name": "net", "network": {"student": "net"}})
    world.write()
    return world


@pytest.fixture(scope="module")
def done(forks):
    """A world in which everything is made, with a network among its teachers."""
    with quick_folder() as root:
        world = small_world(root / "first")
        forks.call("faults:produce", str(world.file), ["student"]).require_done()
        world = small_world(root / "done", folder_of(world.root, "student"))
        forks.call("faults:produce", str(world.file)).require_done()
        yield world.root


@pytest.fixture(scope="module")
def right(done):
    return Reference(done / "work")


def folder_of(world, node):
    for file in world.glob(f"work/*/*/{MANIFEST}"):
        if read_manifest(file.parent).node == node:
            return file.parent
    raise LookupError(node)


_latest = {}  # name of a draft to the last step at which a kill leaves one


class Play:
    """A copy of a finished world that lacks some nodes, to which things happen."""

    def __init__(self, forks, start, folder, right, *lost):
        self.forks = forks
        self.start = start
        self.world = folder / "world"
        self.work = self.world / "work"
        self.file = str(self.world / "experiment.yaml")
        self.right = right
        self.lost = [folder_of(start, node).relative_to(start) for node in lost]
        self.targets = list(lost)
        self.kills = 0

    def again(self):
        shutil.rmtree(self.world, ignore_errors=True)
        shutil.copytree(self.start, self.world)
        for name in self.lost:
            shutil.rmtree(self.world / name)

    def call(self, *more, function="produce", after=None, **fault):
        below = self.world if fault.get("on", WRITING) != WRITING else self.work
        outcome = self.forks.call(
            f"faults:{function}",
            self.file,
            self.targets,
            *more,
            fault=Fault(**fault) if fault else None,
            root=below,
            after=after,
        )
        self.kills += outcome.killed
        return outcome

    def plain(self, *more):
        said = self.call(*more).require_done()
        self.right.require_whole(self.work)
        return said

    def kill_at_every_step(self, kind="kill", first=1, stride=1):
        for at in itertools.count(first, stride):
            self.again()
            outcome = self.call(at=at, kind=kind)
            self.right.require_right(self.work)
            if not outcome.killed:
                outcome.require_done()
                return
            self.plain()

    def begun(self, node):
        """Let a run be killed as late as it can be, and return the draft that it leaves."""
        (name,) = (n for n, t in zip(self.lost, self.targets, strict=True) if t == node)
        if name not in _latest:
            self.again()
            _latest[name] = self.call(at=0).require_steps()
        for at in range(_latest[name], 0, -1):
            self.again()
            assert self.call(at=at).killed
            draft = self.world / name
            if draft.exists() and not (draft / MANIFEST).exists() and work_of(draft):
                _latest[name] = at
                return draft
        raise LookupError(node)


def work_of(draft):
    """Whether a draft holds finished work that is not about to be published."""
    passing = [*draft.glob("journal-*"), *draft.glob("draft-checkpoint-*.pt")]
    return passing and not (draft / "items.jsonl").exists()


@pytest.fixture
def play(forks, done, folder, right):
    return lambda *lost: Play(forks, done, folder, right, *lost)


@pytest.mark.parametrize("node", NODES)
def test_a_killed_stage_ends_in_the_same_bytes(play, node):
    run = play(node)
    run.again()
    for at in (13, 11):
        assert run.call(at=at).killed
        run.right.require_right(run.work)
    run.plain()


def test_nothing_is_left_to_do_where_nothing_was_lost(play):
    run = play()
    run.again()
    run.targets = []
    assert run.plain() == []


@pytest.mark.slow
@pytest.mark.parametrize("node", NODES)
def test_a_kill_at_any_step_of_a_stage_is_made_good(play, node):
    run = play(node)
    strides = {"infer[net]": 3, "probe[a]": 3, "student": 2}  # others run the same code
    strides |= {"truth@val": 3, "policy[oracle]@val": 3}
    run.kill_at_every_step(stride=strides.get(node, 1))
    assert run.kills >= 10


@pytest.mark.slow
def test_a_pipeline_killed_at_any_time_ends_in_the_same_bytes(play, done):
    run = play(*NODES)
    for seed in range(4):
        chance = random.Random(seed)
        run.again()
        for _ in range(6):
            run.call(at=chance.randint(5, 50))
            run.right.require_right(run.work)
            run.call(after=chance.uniform(0.02, 0.12))
            run.right.require_right(run.work)
        run.plain()
    assert run.kills >= 25


@pytest.mark.slow
def test_killed_commands_end_in_the_same_bytes(play):
    run = play("fusion", "student", "evaluation@val")
    run.targets = "run"
    for at in range(20, 120, 17):
        run.again()
        assert run.call(function="command", at=at).killed
        run.right.require_right(run.work)
        run.call(function="command").require_done()
        run.right.require_whole(run.work)


@pytest.mark.slow
def test_a_kill_while_maps_are_taken_from_another_list_is_made_good(forks, play, done, folder):
    other = folder / "other"
    shutil.copytree(done, other)
    shutil.rmtree(other / "work")
    (other / "images/train/train_000001_000019.png").unlink()
    for teacher in "ab":
        (other / f"teachers/{teacher}/train/train_000001_000019.png").unlink()
    forks.call("faults:produce", str(other / "experiment.yaml"), ["fusion"]).require_done()
    run = play()
    run.right = Reference(done / "work", other / "work")
    shutil.copytree(done / "work", other / "work", dirs_exist_ok=True)
    for file in (other / "work").glob(f"*/*/{MANIFEST}"):
        kept = file.parts[-3] not in ("infer", "fusion")  # trainings take nothing over
        if not kept and not (done / file.relative_to(other)).exists():
            shutil.rmtree(file.parent)
    run.start, run.targets = other, ["fusion"]
    run.kill_at_every_step(stride=7)
    assert run.kills >= 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("node", ["infer[a]", "certainty[a]", "fusion", "student"])
def test_what_a_power_loss_takes_from_a_stage_is_made_again(play, node, kind):
    run = play(node)
    run.kill_at_every_step(kind, first=1 + LOSSES.index(kind), stride=6)
    assert run.kills >= 4


def spoil(file, how):
    whole = file.read_bytes()
    third = len(whole) // 3
    file.write_bytes(
        {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "zeros": b"\0" * len(whole),
            "a byte": whole[:third] + bytes([whole[third] ^ 64]) + whole[third + 1 :],
            "a hole": whole[:third] + b"\0" * third + whole[2 * third :],
            "other bytes": b"no such file" * 50,
        }[how]
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["empty", "half", "zeros", "a byte", "a hole", "other bytes"])
def test_no_torn_checkpoint_is_believed(play, how):
    run = play("student")
    spoil(next(iter(checkpoints(run.begun("student")).values())), how)
    run.plain()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["empty", "half", "zeros", "a hole", "other bytes"])
@pytest.mark.parametrize("file", ["zarr.json", "c.0.0.0", "c.1.0.0"])
@pytest.mark.parametrize("node", ["infer[a]", "fusion"])
def test_no_torn_file_of_a_label_store_is_believed(play, node, file, how):
    run = play(node)
    spoil(run.begun(node) / "maps.zarr" / file, how)
    run.plain()


@pytest.mark.slow
@pytest.mark.parametrize("node", ["infer[net]", "certainty[a]"])
def test_no_flipped_journal_line_is_believed(play, node):
    run = play(node)
    draft = run.begun(node)
    (journal,) = draft.glob("journal-*")
    whole = journal.read_bytes()
    kept = run.world.with_name("kept")
    run.world.rename(kept)
    for k in range(3, len(whole), 151):
        shutil.rmtree(run.world, ignore_errors=True)
        shutil.copytree(kept, run.world)
        journal.write_bytes(whole[:k] + bytes([whole[k] ^ 4]) + whole[k + 1 :])
        run.plain()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "on", "lasting", "stride"),
    [
        ("ENOSPC", ("open", "write", "mkdir", "save"), False, 4),
        ("ENOSPC", ("open", "write", "mkdir", "save"), True, 7),
        ("EIO", ("rename",), False, 3),
        ("EIO", READING, False, 17),
    ],
)
@pytest.mark.parametrize("node", NODES)
def test_a_file_operation_that_fails_harms_no_stage(play, node, kind, on, lasting, stride):
    run = play(node)
    for at in itertools.count(1, stride):
        run.again()
        outcome = run.call(at=at, kind=kind, on=on, lasting=lasting)
        outcome.require_foreseen()
        run.right.require_right(run.work)
        if outcome.steps < at:
            break
        run.plain()
    assert at > stride


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 60, 400, 3000, 20000])
@pytest.mark.parametrize("node", ["infer[a]", "student"])
def test_a_full_disk_is_told_and_made_good(play, node, size):
    run = play(node)
    run.again()
    outcome = run.call(size, function="produce_on_a_full_disk")
    run.right.require_right(run.work)
    run.plain()
    outcome.require_foreseen()


@pytest.mark.slow
@pytest.mark.parametrize("size", [3000, 20000])
def test_a_disk_too_full_for_the_weights_is_told_and_made_good(play, size):
    run = play("student")
    run.begun("student")  # after the last checkpoint
    outcome = run.call(size, function="produce_on_a_full_disk")
    run.right.require_right(run.work)
    run.plain()
    assert outcome.error is not None
    outcome.require_foreseen()


@pytest.mark.slow
@pytest.mark.parametrize("at", ["begun", "published"])
def test_a_training_is_not_resumed_on_other_labels(forks, done, right, folder, at):
    other = folder / "other"
    shutil.copytree(done, other)
    shutil.rmtree(other / folder_of(done, "fusion").relative_to(done))
    file, run = str(other / "experiment.yaml"), Play(forks, done, folder, right, "student")
    forks.call("faults:produce_other", file, ["fusion"]).require_done()
    kept = folder_of(done, "student").relative_to(done)
    shutil.rmtree(other / kept)
    forks.call("faults:produce", file, ["student"]).require_done()
    run.right = Reference(done / "work", other / "work")
    if at == "begun":
        run.begun("student")
    else:  # killed before the last checkpoint was cleared away
        for n in itertools.count(30):
            run.again()
            assert run.call(at=n).killed
            if (run.world / kept / MANIFEST).exists():
                break
        assert checkpoints(run.world / kept)
    shutil.rmtree(run.world / folder_of(done, "fusion").relative_to(done))
    run.targets = ["fusion"]
    run.call(function="produce_other").require_done()
    run.targets = ["student"]
    run.plain()


@pytest.mark.slow
def test_a_student_without_its_metrics_is_repaired_whatever_a_kill_left(play, done):
    run = play("student")
    kept = folder_of(done, "student").relative_to(done)
    for n in itertools.count(30):
        run.again()
        assert run.call(at=n).killed
        if (run.world / kept / MANIFEST).exists():
            break
    assert checkpoints(run.world / kept)
    (run.world / kept / "metrics.jsonl").unlink()
    run.forks.call("faults:command", run.file, "verify", "--repair").require_done()
    run.right.require_whole(run.work)


IMAGE = "images/train/train_000001_000019.png"
PREDICTION = "teachers/a/train/train_000001_000019.png"
TRUTH = "labels/val/val_000001_000019.png"


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("node", "name", "by"),
    [
        ("infer[a]", PREDICTION, "teachers/a/train/train_000002_000019.png"),
        ("infer[net]", IMAGE, "images/train/train_000002_000019.png"),
        ("student", IMAGE, "images/train/train_000002_000019.png"),
        ("truth@val", TRUTH, "teachers/a/val/val_000001_000019.png"),
    ],
)
def test_a_file_replaced_while_a_stage_runs_is_never_mixed_in(
    forks, done, right, folder, node, name, by, keep
):
    new = folder / "new"
    shutil.copytree(done, new)
    content = (done / by).read_bytes()
    (new / name).write_bytes(content)
    forks.call("faults:produce", str(new / "experiment.yaml")).require_done()
    run = Play(forks, done, folder, right, node)
    run.right = Reference(done / "work", new / "work")
    (folder / "content").write_bytes(content)
    for at in itertools.count(1, 29 if node == "student" else 17):
        run.again()
        outcome = run.call(
            at=at,
            kind="put",
            on=WRITING + READING,
            file=str(run.world / name),
            content=str(folder / "content"),
            keep=keep,
        )
        outcome.require_foreseen()
        run.right.require_right(run.work)
        if outcome.steps < at:
            break
        run.call(True).require_done()  # reads all files again
        run.right.require_right(run.work)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("infer[a]", PREDICTION),
        ("infer[net]", IMAGE),
        ("infer[net]", "net/model.safetensors"),
        ("certainty[a]", IMAGE),
        ("probe[a]", IMAGE),
        ("truth@val", TRUTH),
    ],
)
def test_a_wrong_remembered_digest_gives_no_wrong_result(play, node, name):
    run = play()
    run.again()
    memory = run.work / "files.json"
    run.call().require_done()
    known = json.loads(memory.read_bytes())
    entry = known[str(run.world / name)]
    known[str(run.world / name)] = entry[:-64] + "0" * 64
    memory.write_text(json.dumps(known))
    shutil.rmtree(run.world / folder_of(run.start, node).relative_to(run.start))
    run.targets = [node]
    outcome = run.call()
    assert outcome.error is not None
    outcome.require_foreseen()
    set_same_maps_aside(run)
    run.right.require_right(run.work)
    run.plain(True)


def set_same_maps_aside(run):
    """Maps from PNGs depend on no image; under an image's wrong digest they are right as well."""
    for file in run.work.glob(f"infer/*/{MANIFEST}"):
        node = read_manifest(file.parent).node
        before = folder_of(run.start, node)
        if file.parent.name != before.name:
            assert node in ("infer[a]", "infer[b]")
            for chunk in (before / "maps.zarr").iterdir():
                assert (file.parent / "maps.zarr" / chunk.name).read_bytes() == chunk.read_bytes()
            shutil.rmtree(file.parent)


def swap(file, content):
    """Replace a file by as many other bytes in place, with its date kept."""
    stat = file.stat()
    assert len(content) == stat.st_size
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.slow
@pytest.mark.parametrize("manifest", [True, False])
def test_swapped_weights_of_a_teacher_give_no_wrong_result(play, done, manifest):
    run = play()
    run.again()
    if not manifest:
        (run.world / "net" / MANIFEST).unlink()
    run.call().require_done()
    shutil.rmtree(run.world / folder_of(run.start, "infer[net]").relative_to(run.start))
    swap(
        run.world / "net" / "model.safetensors",
        (folder_of(done, "student") / "model.safetensors").read_bytes(),
    )
    run.targets = ["infer[net]"]
    run.call().require_foreseen()
    run.right.require_right(run.work)


@pytest.mark.slow
def test_swapped_first_weights_give_no_wrong_student(forks, done, folder):
    world = World(folder / "start", train=3, val=2, size=(24, 32))
    weights = world.root / "init.safetensors"
    shutil.copy(done / "net" / "model.safetensors", weights)
    world.settings |= {
        "student": TRAINING | {"init": "init.safetensors"},
        "policy": {"strategy": "manual", "assign": {"road": "a", "car": "b"}},
    }
    world.write()
    forks.call("faults:produce", str(world.file), ["student"]).require_done()
    right = Reference(world.root / "work")
    shutil.rmtree(folder_of(world.root, "student"))
    swap(weights, (folder_of(done, "student") / "model.safetensors").read_bytes())
    forks.call("faults:produce", str(world.file), ["student"]).require_foreseen()
    right.require_right(world.root / "work")


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": [1]}', b"\xff"], ids=repr)
def test_spoilt_memory_is_no_memory_for_any_stage(play, content):
    run = play(*NODES)
    run.again()
    for name in ("files.json", "files-facts.json"):
        (run.work / name).write_bytes(content)
    run.plain()
