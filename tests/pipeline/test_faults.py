"""Whatever fault meets a run, nothing wrong is published and a plain rerun makes the same bytes."""

import hashlib
import itertools
import json
import os
import random
import shutil

import pytest
from faults import READING, WRITING, Fault, Forks, Reference, make, proofs, quick_folder

from ensdistill.pipeline.errors import DataError
from ensdistill.pipeline.manifest import MANIFEST
from ensdistill.pipeline.verify import damages

IMAGES = {"i1": "first", "i2": "second", "i3": "third"}
OTHER = {"noise": {"i2": 4}}  # what another device makes of the same inputs


@pytest.fixture(scope="module")
def forks():
    with Forks("faults:warm") as forks:
        yield forks


@pytest.fixture(scope="module")
def scenes():
    """Worlds at several moments, each a folder that is copied before something happens to it."""
    with quick_folder() as root:
        yield _scenes(root)


@pytest.fixture
def folder():
    with quick_folder() as folder:
        yield folder


def _scenes(root):

    def scene(name, like=None, images=(), targets=(), settings=None):
        folder = root / name
        if like is None:
            (folder / "images").mkdir(parents=True)
        else:
            shutil.copytree(root / like, folder)
        for image_id, text in dict(images).items():
            file = folder / "images" / f"{image_id}.txt"
            file.write_text(text) if text else file.unlink()
        if targets:
            make(folder, targets, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        scene("new", images=IMAGES)
        scene("done", "new", targets=["student"])
        scene("planned", "new", targets=["policy"])
        scene("fused", "planned", targets=["fused"])
        change = {"i1": None, "i2": "other", "i4": "fourth"}
        scene("changed", "done", change)
        scene("changed and done", "new", change, ["student"])
        scene("lost", "done")  # an item is damaged, and another device will make it
        folder = one(root / "lost", "maps")
        (folder / "maps" / "1.map").unlink()
        (folder / MANIFEST).unlink()
        scene("other", "new", targets=["student"], settings=OTHER)
        scene("damaged", "done")
        for stage, file in (("maps", "maps/0.map"), ("fused", "items.jsonl"), ("student", "w*")):
            (path,) = one(root / "damaged", stage).glob(file)
            whole = path.read_bytes()
            path.write_bytes(whole[:50] + bytes([whole[50 % len(whole)] ^ 1]) + whole[51:])
    return root


def one(world, stage):
    (folder,) = (world / "work" / stage).iterdir()
    return folder


class Play:
    """A world at one moment, to which things happen, and what is right in the end."""

    def __init__(self, scenes, forks, folder, start, *ends):
        self.forks = forks
        self.start = scenes / start
        self.world = folder / "world"
        self.work = self.world / "work"
        self.right = Reference(*(scenes / end / "work" for end in ends))
        self.kills = 0

    def again(self, start=None):
        shutil.rmtree(self.world, ignore_errors=True)
        shutil.copytree(start or self.start, self.world)

    def call(self, *arguments, function="make", **fault):
        """Run in a child, under a fault if one is given."""
        below = self.world if fault.get("on", WRITING) != WRITING else self.work
        given = Fault(**fault) if fault else None
        outcome = self.forks.call(
            f"faults:{function}", str(self.world), *arguments, fault=given, root=below, limit=12
        )
        self.kills += outcome.killed
        return outcome

    def plain(self, *arguments, function="make"):
        """Run undisturbed: all is made, and right."""
        said = self.call(*arguments, function=function).require_done()
        self.right.require_whole(self.work)
        return said

    def kill_at_every_step(self, *arguments, kind="kill", first=1, stride=1, then=None):
        """Kill, look and run again, at one step after the other."""
        said = []
        for at in itertools.count(first, stride):
            self.again()
            outcome = self.call(*arguments, at=at, kind=kind)
            self.right.require_right(self.work)
            if not outcome.killed:
                outcome.require_done()
                return said
            said += (then or self.plain)(*arguments) or ()
        return said


@pytest.fixture
def play(scenes, forks, folder):
    return lambda *scene: Play(scenes, forks, folder, *scene)


# kills


@pytest.mark.slow
def test_a_kill_at_any_step_of_any_stage_is_made_good_by_the_next_run(play):
    run = play("new", "done")
    said = run.kill_at_every_step()
    assert run.kills >= 150
    # the lock of a killed process is taken over at once, with a word about it
    assert sum("did not finish" in text for text in said) >= 50


@pytest.mark.slow
def test_a_kill_while_items_are_taken_from_another_list_is_made_good(play):
    run = play("changed", "done", "changed and done")
    targets = ["maps[a]"]

    def then(*_):
        run.call(targets).require_done()
        run.right.require_right(run.work)

    run.kill_at_every_step(targets, then=then)
    assert run.kills >= 40
    run.kill_at_every_step(stride=17)
    assert run.kills >= 50


@pytest.mark.slow
def test_a_kill_while_a_stale_chain_is_made_again_is_made_good(play):
    run = play("lost", "done", "other")
    run.kill_at_every_step(["student"], OTHER, stride=4)
    assert run.kills >= 30


@pytest.mark.parametrize("stage", ["fused", "student"])
def test_what_a_kill_left_is_not_mixed_with_another_upstream(play, scenes, stage):
    run = play({"fused": "planned", "student": "fused"}[stage], "done", "other")

    def then(*_):
        folder = one(run.world, "maps")
        (folder / "maps" / "1.map").unlink()
        (folder / MANIFEST).unlink()
        run.plain(["student"], OTHER)

    run.kill_at_every_step([stage], then=then, stride=2)
    assert run.kills >= 15


@pytest.mark.slow
def test_a_killed_repair_is_made_good_by_the_next(play):
    run = play("damaged", "done")
    run.again()
    hurt = {f.parent for f in run.work.glob(f"*/*/{MANIFEST}") if damages(f.parent)}
    assert len(hurt) == 3
    for at in itertools.count(1, 4):
        run.again()
        outcome = run.call(function="mend", at=at)
        still = {f.parent for f in run.work.glob(f"*/*/{MANIFEST}") if damages(f.parent)}
        assert still <= hurt
        for folder in still:
            shutil.move(folder, run.world)
        run.right.require_right(run.work)
        for folder in still:
            shutil.move(run.world / folder.name, folder.parent)
        if not outcome.killed:
            break
        run.call().require_done()
        run.plain(function="mend")
    outcome.require_done()
    run.right.require_whole(run.work)
    assert run.kills >= 20


def test_a_killed_repair_is_finished_by_the_same_command(play):
    run = play("damaged", "done")
    run.again()
    at = 1
    while (one(run.world, "maps") / MANIFEST).exists():
        run.again()
        assert run.call(function="mend", at=at).killed
        at += 1
    run.plain(function="mend")


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(play):
    run = play("new", "done")
    for seed in range(5):
        chance = random.Random(seed)
        run.again()
        while run.call(at=chance.randint(5, 70)).killed:
            run.right.require_right(run.work)
        run.right.require_whole(run.work)
    assert run.kills >= 15


def test_kills_at_any_time_end_in_the_same_bytes(play, forks):
    run = play("new", "done")
    for seed in range(8):
        chance = random.Random(seed)
        run.again()
        for _ in range(4):
            outcome = forks.call("faults:make", str(run.world), after=chance.uniform(0.002, 0.02))
            run.kills += outcome.killed
            if run.work.exists():
                run.right.require_right(run.work)
        run.plain()
    assert run.kills >= 6


def test_a_killed_part_hinders_no_other_part(play):
    run = play("planned", "done")

    def then(targets, *_):
        run.call(targets, None, False, [2, 2]).require_done()
        run.right.require_right(run.work)
        run.call(targets, None, False, [1, 2]).require_done()
        run.plain()

    run.kill_at_every_step(["fused"], None, False, [1, 2], then=then, stride=3)
    assert run.kills >= 8


# the power goes


@pytest.mark.parametrize("kind", ["empty", "half", "zeros", "names"])
def test_what_a_power_loss_takes_is_made_again(play, kind):
    run = play("planned", "done")
    first = ["empty", "half", "zeros", "names"].index(kind) + 1
    run.kill_at_every_step(kind=kind, first=first, stride=6)
    assert run.kills >= 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "half", "zeros", "names"])
def test_what_a_power_loss_takes_at_any_step_is_made_again(play, kind):
    run = play("new", "done")
    run.kill_at_every_step(kind=kind)
    assert run.kills >= 150


@pytest.fixture
def half(scenes, forks, folder):
    """A killed run that has finished two of three maps."""
    for at in itertools.count(1):
        world = folder / "half"
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(scenes / "new", world)
        assert forks.call("faults:make", str(world), fault=Fault(at), root=world).killed
        journals = list(world.glob("work/maps/*/journal-*"))
        if journals and journals[0].read_bytes().count(b"\n") == 2:
            return world


def test_no_torn_or_flipped_journal_line_is_believed(play, half, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run = play("new", "done")
    (journal,) = half.glob("work/maps/*/journal-*")
    whole = journal.read_bytes()
    chance = random.Random(0)
    spoilt = [whole[:k] for k in range(0, len(whole), 53)]
    for k in range(0, len(whole), 29):
        spoilt.append(whole[:k] + bytes([whole[k] ^ 1 << chance.randrange(8)]) + whole[k + 1 :])
    for content in (*spoilt, whole + whole, b"\0" * len(whole), whole.replace(b"i1", b"i3")):
        run.again(half)
        (run.world / journal.relative_to(half)).write_bytes(content)
        make(run.world, ["maps[a]"])
        run.right.require_right(run.work)
        assert (one(run.world, "maps") / MANIFEST).exists()


@pytest.mark.parametrize("name", ["0.map", "1.map", "about.json"])
def test_no_torn_file_of_a_draft_is_believed(play, half, name):
    run = play("new", "done")
    for change in (
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"\0" * len(whole),
        lambda whole: whole + whole,
        None,
    ):
        run.again(half)
        file = one(run.world, "maps") / "maps" / name
        file.write_bytes(change(file.read_bytes())) if change else file.unlink()
        run.plain()


# operations that fail


def fail_at_every_step(run, kind, on, stride=1, lasting=False):
    """Let one operation after the other fail; return how many did and how often a run ended."""
    failed = 0
    for at in itertools.count(1, stride):
        run.again()
        outcome = run.call(at=at, kind=kind, on=on, lasting=lasting)
        outcome.require_foreseen()
        if run.work.exists():
            run.right.require_right(run.work)
        if outcome.steps < at:
            outcome.require_done()
            return at // stride, failed
        failed += outcome.error is not None
        run.plain()
    return None


SOME = [
    ("ENOSPC", ("open", "write", "mkdir", "save"), 3, False),
    ("ENOSPC", ("open", "write", "mkdir", "save"), 7, True),
    ("EIO", ("rename",), 1, False),
    ("EIO", ("fsync",), 3, False),
    ("EACCES", ("remove",), 2, False),
    ("EIO", READING, 5, False),
]


@pytest.mark.parametrize(("kind", "on", "stride", "lasting"), SOME)
def test_a_file_operation_that_fails_harms_nothing(play, kind, on, stride, lasting):
    run = play("planned", "done")
    met, failed = fail_at_every_step(run, kind, on, stride, lasting)
    assert met >= 2
    assert failed >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "on", "stride", "lasting"), SOME)
def test_any_file_operation_that_fails_harms_nothing(play, kind, on, stride, lasting):
    run = play("new", "done")
    met, _ = fail_at_every_step(run, kind, on, 1, lasting)
    assert met >= 5


# clocks


def test_a_clock_that_jumps_changes_no_byte(play, scenes, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run = play("new", "done")
    times = ["2031-01-01T00:00:00+00:00", "1999-01-01T00:00:00+00:00", "", "2026-01-01T00:00"]
    for k, stamps in enumerate(itertools.permutations((0, 1, 2**33))):
        run.again()
        for image, seconds in zip(sorted(run.world.glob("images/*")), stamps, strict=True):
            os.utime(image, (seconds, seconds))
        for at, target in zip(
            times[k % 4 :] + times, ("maps[a]", "fused", "student"), strict=False
        ):
            run.call([target], None, False, None, at).require_done()
        run.right.require_whole(run.work)
        for path in run.work.rglob("*"):
            os.utime(path, (2**33 - k, 2**33 - k))
        before = proofs(run.work)
        assert run.plain() == []
        assert proofs(run.work) == before


def test_an_image_whose_date_goes_back_is_read_again(play):
    run = play("done", "done", "changed and done")
    run.again()
    for image_id, text in {"i1": None, "i2": "other", "i4": "fourth"}.items():
        image = run.world / "images" / f"{image_id}.txt"
        image.write_text(text) if text else image.unlink()
        if text:
            os.utime(image, (1, 1))
    run.plain()


# remembered digests


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"text"', b"7", b'{"a": 1}', b"\xff\xfe", b"\0" * 100, None],
    ids=repr,
)
def test_spoilt_memory_is_no_memory(play, content):
    for start in ("new", "changed"):
        run = play(start, "done", *(["changed and done"] if start == "changed" else []))
        run.again()
        run.work.mkdir(exist_ok=True)
        memory = run.work / "files.json"
        if content is None:  # torn
            make(run.world, ["maps[a]"])
            content = memory.read_bytes()[:-30]
        memory.write_bytes(content)
        run.plain()


@pytest.mark.parametrize(
    "entry", [None, 7, [], {}, "", "x", "1 2 3 ", "{stamp", "{stamp}", "{stamp}abc"], ids=repr
)
def test_a_spoilt_entry_of_the_memory_is_read_anew(play, entry):
    run = play("new", "done")
    run.again()
    remember(run, entry)
    run.plain()


@pytest.mark.parametrize("wrong", [hashlib.sha256(b"other").hexdigest(), "g" * 64])
def test_a_wrong_remembered_digest_is_refused_until_files_are_read_again(play, wrong):
    run = play("new", "done")
    run.again()
    remember(run, "{stamp}" + wrong)
    for _ in range(2):
        with pytest.raises(DataError, match="changed since"):
            make(run.world)
        run.right.require_right(run.work)
    run.plain(["student"], None, True)


def remember(run, entry):
    """Make the memory hold something about one image, fitting its size, date and inode."""
    image = run.world / "images" / "i2.txt"
    s = image.stat()
    stamp = f"{s.st_size} {s.st_mtime_ns} {s.st_ino} "
    if isinstance(entry, str):
        entry = entry.replace("{stamp}", stamp)
    run.work.mkdir(exist_ok=True)
    (run.work / "files.json").write_text(json.dumps({str(image): entry}))


# inputs that change


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_an_image_replaced_at_any_step_gives_the_old_or_the_new_result(
    play, scenes, folder, keep, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    new = folder / "new"
    shutil.copytree(scenes / "new", new)
    content = folder / "content"
    content.write_text("SECOND")
    shutil.copy(content, new / "images" / "i2.txt")
    make(new)
    run = play("new", "done")
    run.right = Reference(scenes / "done" / "work", new / "work")
    file = str(run.world / "images" / "i2.txt")
    refused = 0
    for at in itertools.count(1, 19):
        run.again()
        outcome = run.call(
            at=at, kind="put", on=WRITING + READING, file=file, content=str(content), keep=keep
        )
        outcome.require_foreseen()
        refused += outcome.error is not None
        run.right.require_right(run.work)
        if outcome.steps < at:
            break
        if keep:  # nothing tells but the bytes: a plain run may refuse, never err
            run.call().require_foreseen()
            run.right.require_right(run.work)
        run.plain(["student"], None, keep)
    assert refused >= 1


def test_errors_are_made_good_within_one_process_too(play, monkeypatch):
    run = play("new", "done")
    for at in range(1, 200, 17):
        run.again()
        outcome = run.call(function="attempt", at=at, kind="ENOSPC")
        assert outcome.require_done() in ("failed", "done")
        run.right.require_whole(run.work)


def test_this_file_leaves_no_process_behind(forks):
    with Forks("faults:warm") as other:
        pid = other.call("os:getppid").require_done()
        assert other.call("time:sleep", 30, after=0.01).killed
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert other._process.returncode == 0
