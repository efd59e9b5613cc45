"""Fault injection: children of a small process that are killed, or whose file operations fail.

`Forks` starts a process that imports everything once and then forks a child for every call. A
`Fault` says at which of the child's file operations what happens. `Reference` holds what an
uninterrupted run makes.
"""

import errno
import fnmatch
import hashlib
import importlib
import io
import itertools
import json
import os
import pickle
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from told import Told

from ensdistill.pipeline import atomic, runner
from ensdistill.pipeline.errors import CorruptError, DataError, EnsdistillError
from ensdistill.pipeline.files import FileCache
from ensdistill.pipeline.fingerprint import digest
from ensdistill.pipeline.locks import Part
from ensdistill.pipeline.manifest import MANIFEST, read_manifest
from ensdistill.pipeline.node import Command, Item, Node, NodeId, Work
from ensdistill.pipeline.repair import repair
from ensdistill.pipeline.verify import damages
from ensdistill.pipeline.workspace import Workspace

PASSING = ("journal-*.jsonl", "draft-*", "repair-begun")  # harmless beside a manifest, by design
PROMISED = ("recipe", "inputs", "result", "content", "files", "made_from")
WRITING = ("open", "write", "rename", "remove", "mkdir", "fsync", "save")
READING = ("read", "load")


@dataclass(frozen=True)
class Fault:
    """What happens at which file operation below a folder.

    `kind` is ``kill``; ``empty``, ``half``, ``zeros`` or ``names``: the power goes, and with it
    the bytes (or the names) that nobody forced to the disk; ``put``: the file `file` is replaced by
    `content` and the child goes on; else the name of an error such as ``ENOSPC``. With `lasting`
    every later operation fails too.
    """

    at: int
    kind: str = "kill"
    on: tuple = WRITING
    lasting: bool = False
    file: str = ""
    content: str = ""  # the path of a file
    keep: bool = False  # its date


class Injector:
    """Counts a child's file operations and lets one of them end as the fault says."""

    def __init__(self, root, fault):
        self.root = os.fspath(root) + os.sep
        self.fault = fault
        self.count = 0
        self.loose = {}  # inode to a path whose bytes were not forced to the disk
        self.names = {}  # path that is new in its folder, until that is forced to the disk
        self._lock = threading.Lock()
        self._mine = threading.local()

    def install(self):
        sys.addaudithook(self.audit)
        self.real_open, self.write_fd, self.real_fsync = io.open, os.write, os.fsync
        io.open = self.open
        sys.modules["builtins"].open = self.open
        os.write, os.fsync = self.write, self.fsync
        if "torch" in sys.modules:  # these write and read past Python
            import torch

            from ensdistill.stages.networks import frozen

            torch.save = self.wrap(torch.save, "save", 1)
            frozen.load_file = self.wrap(frozen.load_file, "load", 0)

    def inside(self, path):
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)

    def audit(self, event, args):
        if getattr(self._mine, "busy", False):
            return
        if event == "open":
            path, _, flags = args
            if self.inside(path):
                writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                self.step("open" if writing else "read")
                if flags & os.O_CREAT and not Path(path).exists():
                    self.names[os.fspath(path)] = True
        elif event in ("os.rename", "os.link"):
            if self.inside(args[1]):
                self.step("rename")
                new = not Path(args[1]).exists()
                self.names.pop(os.fspath(args[0]), None)
                if new:
                    self.names[os.fspath(args[1])] = True
        elif event in ("os.remove", "os.rmdir", "os.mkdir") and self.inside(args[0]):
            self.step("mkdir" if event == "os.mkdir" else "remove")

    def step(self, operation, half=None):
        fault = self.fault
        if operation not in fault.on:
            return
        with self._lock:
            self.count += 1
            hit = self.count == fault.at or (fault.lasting and self.count > fault.at)
        if not hit:
            return
        self._mine.busy = True
        try:
            if half is not None and fault.kind != "put":
                half()
            if fault.kind == "put":
                stat = os.stat(fault.file)  # noqa: PTH116
                with self.real_open(fault.content, "rb") as file:
                    content = file.read()
                with self.real_open(fault.file, "wb") as file:
                    file.write(content)
                if fault.keep:
                    os.utime(fault.file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
                return
            if not fault.kind.startswith("E"):
                self.lose(fault.kind)
                os.kill(os.getpid(), signal.SIGKILL)
            code = getattr(errno, fault.kind)
            raise OSError(code, os.strerror(code))
        finally:
            self._mine.busy = False

    def lose(self, kind):
        """Lose what a power loss may lose."""
        if kind == "names":
            for path in self.names:
                with suppress(OSError):
                    os.unlink(path)  # noqa: PTH108
        if kind not in ("empty", "half", "zeros"):
            return
        for parent, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(parent, name)  # noqa: PTH118
                stat = os.stat(path)  # noqa: PTH116
                if stat.st_ino in self.loose:
                    size = stat.st_size
                    os.truncate(path, 0 if kind == "empty" else size // 2)
                    if kind == "zeros":
                        os.truncate(path, size)

    def open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
        if not set(mode) & set("wxa") or not self.inside(file):
            return self.real_open(file, mode, buffering, encoding, errors, newline, **more)
        buffered = io.BufferedWriter(_File(self, file, mode.translate({98: None, 116: None})))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def write(self, file, data):
        self.loose[os.fstat(file).st_ino] = True
        self.step("write", lambda: self.write_fd(file, data[: len(data) // 2]))
        return self.write_fd(file, data)

    def fsync(self, file):
        self.step("fsync")
        stat = os.fstat(file)
        self.loose.pop(stat.st_ino, None)
        for path in list(self.names):  # a kill needs no disk, so nothing is forced to one
            with suppress(OSError):
                if os.stat(os.path.dirname(path)).st_ino == stat.st_ino:  # noqa: PTH116,PTH120
                    self.names.pop(path, None)

    def wrap(self, real, operation, position):
        def wrapped(*args, **more):
            path = args[position]
            if not self.inside(path):
                return real(*args, **more)

            def half():
                if operation == "save":
                    real(*args, **more)
                    os.truncate(path, Path(path).stat().st_size // 2)

            self.step(operation, half)
            done = real(*args, **more)
            if operation == "save":
                self.loose[Path(path).stat().st_ino] = True
            return done

        return wrapped


class _File(io.FileIO):
    def __init__(self, injector, file, mode):
        super().__init__(file, mode)
        self._injector = injector

    def write(self, data):
        self._injector.loose[os.fstat(self.fileno()).st_ino] = True
        half = memoryview(data)[: len(data) // 2]
        self._injector.step("write", lambda: super(_File, self).write(half))
        return super().write(data)


@dataclass(frozen=True)
class Outcome:
    """How a child ended: killed; refused with an `OSError` or an error of ours; done."""

    killed: bool = False
    error: str | None = None
    foreseen: bool = False
    text: str = ""
    steps: int = 0
    result: object = None

    def require_done(self):
        assert not self.killed
        assert self.error is None, self.text
        return self.result

    def require_steps(self):
        self.require_done()
        return self.steps

    def require_foreseen(self):
        """It ended well, or with an error that a user is told about."""
        assert not self.killed
        assert self.error is None or self.foreseen, self.text


class Forks:
    """A process that forks a child for every call; at the end of the block nothing is left of it.

    `first`, as ``module:function``, is called before the first fork and imports what all need.
    """

    def __init__(self, first):
        self._first = first
        self.kills = 0

    def __enter__(self):
        tests = str(Path(__file__).parent)
        paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import faults; faults.serve()", self._first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(120)

    def call(self, function, *arguments, fault=None, root=None, after=None, limit=100.0):
        """Call ``module:function`` in a child; kill it `after` seconds."""
        request = {
            "function": function,
            "arguments": arguments,
            "fault": fault and asdict(fault),
            "root": root and str(root),
            "after": after,
            "limit": limit,
        }
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        outcome = Outcome(**json.loads(self._process.stdout.readline()))
        self.kills += outcome.killed
        return outcome


def serve():
    """Be the process that `Forks` talks to."""
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)()
    from ensdistill.pipeline import provenance

    provenance.git_state = lambda _: None  # a killed child must leave no `git` behind
    facts = provenance.facts(Path())
    provenance.facts = lambda _: facts
    os.fsync = lambda _: None  # a kill needs no disk; `Injector` knows what would be lost
    replies = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        os.write(replies, json.dumps(_fork(json.loads(line))).encode() + b"\n")


def _fork(request):
    assert threading.active_count() == 1
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _child(request, writing)
        finally:
            os._exit(1)
    os.close(writing)
    report, late = b"", False
    end = time.monotonic() + (request["limit"] if request["after"] is None else request["after"])
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            late = True
            os.kill(child, signal.SIGKILL)
            break
        part = os.read(reading, 1 << 16)
        if not part:
            break
        report += part
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if late and request["after"] is None:
        return {"error": "Timeout", "text": f"not done after {request['limit']} s"}
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return {"killed": True}
    return json.loads(report)


def _child(request, writing):
    injector, write = None, os.write
    report = {}
    try:
        if request["fault"] is not None:
            injector = Injector(request["root"], Fault(**request["fault"]))
            injector.install()
        module, name = request["function"].split(":")
        function = getattr(importlib.import_module(module), name)
        report["result"] = function(*request["arguments"])
    except BaseException as error:
        foreseen = isinstance(error, OSError | EnsdistillError)
        text = "".join(traceback.format_exception(error))
        report = {"error": type(error).__name__, "foreseen": foreseen, "text": text}
    if injector is not None:
        report["steps"] = injector.count
    content = json.dumps(report).encode()
    while content:
        content = content[write(writing, content) :]
    os._exit(0)


# what must come out


_sound = {}  # digest of a folder's name and content to what its manifest promises


def proof(folder):
    """Return all that is promised of an artifact: its files, and fields of its manifest.

    It must be without damage, which is looked for once: a fault leaves most artifacts as they were.
    """
    found = ((path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")))
    content = {name: path.read_bytes() for name, path in found if path.is_file()}
    key = hashlib.sha256(pickle.dumps((folder.name, content))).digest()
    if key not in _sound:
        assert damages(folder) == []
        manifest = read_manifest(folder)
        _sound[key] = {name: getattr(manifest, name) for name in PROMISED}
    passing = [n for pattern in (*PASSING, MANIFEST) for n in fnmatch.filter(content, pattern)]
    files = {name: content[name] for name in content if "/" in name or name not in passing}
    return files, _sound[key]


def proofs(workspace):
    """Return ``stage/folder`` to proof for all that is published."""
    return {
        file.parent.relative_to(workspace).as_posix(): proof(file.parent)
        for file in sorted(workspace.glob(f"*/*/{MANIFEST}"))
    }


@contextmanager
def quick_folder():
    """Make a folder in memory where there is such a place: a kill needs no disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


class Reference:
    """What uninterrupted runs made of one or several states of the inputs."""

    def __init__(self, *workspaces):
        self.worlds = [proofs(workspace) for workspace in workspaces]
        assert all(self.worlds)

    def require_right(self, workspace):
        """Nothing that is published is wrong."""
        published = proofs(workspace)
        for name, found in published.items():
            wanted = [world[name] for world in self.worlds if name in world]
            assert found in wanted, name
        return published

    def require_whole(self, workspace):
        """All is published that the last of the states makes, and nothing that is wrong."""
        found = self.require_right(workspace)
        for name, wanted in self.worlds[-1].items():
            assert found[name] == wanted, name


def assert_every_kill_is_made_good(start, room, *arguments, every):
    """Kill a command at each so-manieth touch of a stage's files, and run it again.

    `start` is a world where it is done, of which all in the folder `room` is made again. It
    must end in the same bytes.
    """
    right, call = proofs(start.root / "work"), "faults:command"
    with quick_folder() as folder, Forks("faults:warm_stages") as forks:
        world = folder / "world"
        arguments = (call, str(world / "experiment.yaml"), *arguments)
        for at in itertools.count(1, every):
            shutil.rmtree(world, ignore_errors=True)
            shutil.copytree(start.root, world)
            shutil.rmtree(world / "work" / room)
            outcome = forks.call(*arguments, fault=Fault(at), root=world / "work" / room)
            if not outcome.killed:
                break
            forks.call(*arguments).require_done()
            assert proofs(world / "work") == right
        outcome.require_done()
    assert forks.kills > 10


class Killed(BaseException):
    """Stands for a kill: nothing may catch it and tidy up."""


def killing_after(times):
    """Return what may be called so many times, with anything, and is killed at the next."""
    left = itertools.count(times, -1)

    def count(*_):
        if next(left) <= 0:
            raise Killed

    return count


# a small graph without torch, zarr and numpy:
# maps[a] -> score[a] -> policy (by content) -> fused -> student


class Said:
    """A progress that keeps its messages, what was begun (total and unit), and how much is done."""

    def __init__(self):
        self.messages, self.totals, self.done = [], [], 0

    def start(self, total, done, unit):
        self.totals.append((total, unit))
        self.done = done

    def advance(self, count=1, note=""):
        self.done += count
        assert self.done <= self.totals[-1][0]

    def message(self, text):
        self.messages.append(text)


class Fakes:
    """Nodes over the text files of a folder; `settings` say what differs between two states."""

    def __init__(self, root, settings, rehash=False):
        self.root = Path(root)
        self.settings = settings
        self.workspace = Workspace(self.root / "work")
        self.files = FileCache(self.root / "work" / "files.json", rehash=rehash)

    def nodes(self):
        return [
            self.node("maps[a]", [], lambda _: self.work({})),
            self.node("score[a]", ["maps[a]"], lambda _: Work(Told(), {"labels": "maps[a]"})),
            self.node("policy", ["score[a]"], lambda up: Work(Told(up.content("score[a]")))),
            self.node("fused", ["policy", "maps[a]"], self.plan_fused),
            self.node("student", ["fused"], lambda _: Work(Told(steps=4), {"labels": "fused"})),
        ]

    def node(self, node_id, needs, plan):
        stage, _, of = node_id.rstrip("]").partition("[")
        found, command = NodeId(stage, of or None), Command(stage)
        return Node(found, stage, 1, needs, plan, f"faults:run_{stage}", command)

    def work(self, recipe, uses=None):
        paths = sorted((self.root / "images").glob("*.txt"))
        digests = self.files.digests([str(p) for p in paths])
        items = [Item(p.stem, {"image": found}) for p, found in zip(paths, digests, strict=True)]
        found = {
            item.id: (p, item.made_from["image"]) for item, p in zip(items, paths, strict=True)
        }
        local = {"images": found, "noise": self.settings.get("noise", {})}
        return Work(Told(recipe), uses or {}, items, local=local)

    def plan_fused(self, upstream):
        window = self.settings.get("window", 5)
        recipe = {"window": window, "best": upstream.content("policy")["best"]}
        return self.work(recipe, {"labels": "maps[a]"})


def make(root, targets=("student",), settings=None, rehash=False, part=None, at=None):
    """Run the small graph and return what was said; `at` is what the clock shows."""
    if at is not None:
        runner.now = lambda: at
    said, fakes = Said(), Fakes(root, settings or {}, rehash)
    share = part and Part(*part)
    try:
        runner.run(
            fakes.nodes(), fakes.workspace, targets, lambda _: said, upstream=not part, part=share
        )
    finally:
        fakes.files.save()
    return said.messages


def attempt(*arguments):
    """Call `make`; if it fails as a user is told, call it again."""
    try:
        make(*arguments)
    except (OSError, EnsdistillError):
        make(*arguments)
        return "failed"
    return "done"


def warm():
    """Import what is imported late."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        (Path(folder) / "images" / "i.txt").write_text("i")
        make(folder)


def mend(root, settings=None):
    """Repair all damage, as `verify --repair` does."""
    said, fakes = Said(), Fakes(root, settings or {})
    damaged = {f: found for f in fakes.workspace.folders() if (found := damages(f))}
    outcome = repair(fakes.nodes(), fakes.workspace, damaged, lambda _: said)
    fakes.files.save()
    assert not outcome.left
    return said.messages


def _each(job, value):
    folder = job.draft.path / "maps"
    folder.mkdir(exist_ok=True)
    about, text = folder / "about.json", b'{"kind": "map"}\n'
    if not about.exists() or about.read_bytes() != text:
        atomic.write_bytes(about, text, sync=False)
    place = {item.id: f"maps/{k}.map" for k, item in enumerate(job.work.items)}
    job.draft.adopt(job.spares, place.__getitem__)
    for item_id in job.todo():
        found = value(item_id)
        atomic.write_bytes(job.draft.path / place[item_id], f"{found}\n".encode(), sync=False)
        job.draft.record(item_id, file=place[item_id], content=digest(found), value=found)
    return Told(items=len(job.records()))


def run_maps(job):
    def value(item_id):
        path, wanted = job.work.local["images"][item_id]
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != wanted:
            raise DataError(f"{path}: changed since it was looked at")
        return f"{content.decode()} {job.work.local['noise'].get(item_id, 0)}"

    return _each(job, value)


def _labels(job):
    """Return item id to the text of its map, checked as a chunk's checksum is."""
    artifact, found = job.inputs["labels"], {}
    for record in artifact.items:
        name, _, wanted = record["file"]
        content = (artifact.path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != wanted:
            raise CorruptError(f"{artifact.path / name}: is not what was written")
        found[record["id"]] = content
    return found


def run_score(job):
    return Told(best=sum(len(content) for content in _labels(job).values()) // 1000)


def run_policy(job):
    return job.work.recipe


def run_fused(job):
    labels = _labels(job)
    return _each(job, lambda i: f"{job.work.recipe['window']} {labels[i].decode()}")


def run_student(job):
    """Walk from checkpoint to checkpoint as a training does."""
    labels = list(_labels(job).values())
    checkpoint = job.draft.path / "draft-checkpoint.json"
    state = {"step": 0, "weights": "", "log": []}
    with suppress(FileNotFoundError, ValueError):
        state = json.loads(checkpoint.read_bytes())
    while (step := state["step"]) < job.work.recipe["steps"]:
        text = state["weights"].encode() + labels[step % len(labels)]
        weights = hashlib.sha256(text).hexdigest()
        state = {"step": step + 1, "weights": weights, "log": [*state["log"], weights[:8]]}
        atomic.write_bytes(job.draft.path / "metrics.txt", "\n".join(state["log"]).encode())
        atomic.write_bytes(checkpoint, json.dumps(state).encode(), sync=False)
    (job.draft.path / "weights.bin").write_bytes(state["weights"].encode() * 20)
    return Told(weights=state["weights"])


# the real graph


def produce(file, targets=(), rehash=False):
    """Make nodes of an experiment, all by default, and return what was said."""
    from ensdistill.stages.graph import build, load

    said, experiment = Said(), load(Path(file), rehash=rehash)
    nodes = build(experiment, opens=("student", "truth"))
    wanted = list(targets) or [node.id for node in nodes]
    try:
        runner.run(nodes, experiment.workspace, wanted, lambda _: said, upstream=True)
    finally:
        experiment.files.save()
    return said.messages


def produce_other(file, targets):
    """Make nodes as another device might: the fused maps come out different in a pixel."""
    from ensdistill.stages.functional import fusion

    real = fusion.channel_wise

    def channel_wise(*args, **more):
        fused, counts = real(*args, **more)
        fused[0, 0] = 7
        return fused, counts

    fusion.channel_wise = channel_wise
    return produce(file, targets)


def produce_on_a_full_disk(file, targets, size):
    """Make nodes where the system writes no file beyond a size, by whatever library."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return produce(file, targets)


def command(file, *arguments):
    """Call the command line."""
    from click.testing import CliRunner

    from ensdistill.cli.__main__ import cli

    result = CliRunner().invoke(cli, [*arguments, "-c", file])
    if result.exception is not None:
        raise result.exception


def warm_stages():
    """Import what the stages need, and load compiled code; no tensor is made before a fork."""
    import numpy as np
    import torch
    from PIL import Image
    from pydantic import BaseModel

    from ensdistill.stages.functional.fusion import channel_wise, majority
    from ensdistill.stages.networks import frozen

    nodes = ("infer", "probe", "certainty", "policy", "fusion", "student", "evaluation", "ablation")
    ours = [f"stages.nodes.{node}.run" for node in nodes]
    ours += ["stages.graph", "stages.functional._counting", "stages.functional.agreement"]
    ours += [f"stages.checks.{name}" for name in ("ahead", "files", "networks", "teachers")]
    ours += ["cli.__main__", "cli.progress", "cli.commands.run", "cli.commands.ablate"]
    late = ("_dynamo", "profiler._cupti_monitor", "utils.serialization.config")
    for name in (*(f"ensdistill.{n}" for n in ours), *(f"torch.{n}" for n in late)):
        importlib.import_module(name)
    for name in ("click.testing", "filelock", "rich.live", "zarr"):
        importlib.import_module(name)
    Image.init()
    frozen.here(torch.device("cpu"))  # reads what is installed
    build_models(BaseModel)
    labels = np.zeros((2, 8, 8), np.uint8)
    majority(labels, 3)
    owner = np.array([0, 1, 1])
    channel_wise(labels, owner, window=3, conflict="window", holes="window")


def build_models(model):
    """Have pydantic build the validators of models, which else waits for the first use of each."""
    for below in model.__subclasses__():
        if below.__module__.startswith("ensdistill."):
            below.model_rebuild()
            build_models(below)
