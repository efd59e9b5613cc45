"""Chains of nodes made by processes of their own: the same bytes, whatever happens to them."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from worlds import TINY, World, files_of

from ensdistill.cli.__main__ import cli
from ensdistill.pipeline.errors import ConfigError, DataError, EnsdistillError
from ensdistill.pipeline.plan import plan
from ensdistill.stages.graph import build, load, probe_chains
from ensdistill.stages.jobs import chains

MADE = ["probe[a]", "certainty[a]", "probe[b]", "certainty[b]"]


def contents(world):
    """All that is published of probes and certainties but when, where and how fast."""
    return {
        name: content
        for stage in ("probe", "certainty")
        for name, content in files_of(world.root / "work" / stage).items()
        if not name.endswith("manifest.json")
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world whose probes were made one after another, and what they are."""
    world = World(tmp_path_factory.mktemp("one"))
    world.settings["probe"] = TINY | {"steps": 25}
    world.write()
    world.call("select-policy", "--upstream")
    return world, contents(world)


@pytest.fixture
def two(made, tmp_path):
    """The same world with all but the probes, and two jobs."""
    world = World.__new__(World)
    world.__dict__ |= made[0].__dict__ | {"root": tmp_path / "world"}
    shutil.copytree(made[0].root, world.root)
    world.file = world.root / "experiment.yaml"
    for stage in ("probe", "certainty", "policy"):
        shutil.rmtree(world.root / "work" / stage)
    world.settings = made[0].settings | {"runtime": made[0].settings["runtime"] | {"jobs": 2}}
    world.write()
    return world


@pytest.fixture
def here(monkeypatch):
    """Make chains in a thread of this process: starting others takes seconds."""

    @contextmanager
    def thread(*_):
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(chains, "_slots", thread)


def slowly(world, steps=4000, checkpoint_every=10):
    world.settings["probe"] = TINY | {"steps": steps}
    world.settings["runtime"]["checkpoint_every"] = checkpoint_every
    world.write()


def start(world, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ensdistill.cli", *arguments, "-c", world.file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def holders(world):
    """Return node to process of what is being made."""
    found = {}
    for file in (world.root / "work/.locks").glob("*.json"):
        try:
            holder = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if holder["needs"] is None:  # else it is a command's, which says what it needs
            found[holder["what"]] = holder["pid"]
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "never happened"
        time.sleep(0.02)
    return found


def under_way(world):
    """Return the folders of the probes that have a checkpoint but no end."""
    return {file.parent for file in world.root.glob("work/probe/*/draft-checkpoint-*.pt")}


def all_made(world):
    """Whether all chains are at their end: between two of its nodes a chain holds no lock."""
    states = world.states()
    return all(states[node] == "fresh" for node in MADE)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_two_jobs_make_the_same_bytes_as_one_after_another(two, made):
    report = two.json("select-policy")
    assert [r["node"] for r in report["ran"]] == [*MADE, "policy"]
    assert [r["written"] for r in report["ran"]] == [0, 5, 0, 5, 0]
    assert report["fresh"] == []
    assert contents(two) == made[1]
    threads = [two.artifact(n).manifest.runtime["threads"] for n in MADE]
    assert threads == [1, 1, 1, 1]
    assert two.json("select-policy")["ran"] == []


def test_what_is_upstream_comes_first_and_what_is_below_last(two, made, here):
    shutil.rmtree(two.root / "work" / "infer")
    assert "NotReadyError: probe[a] needs infer[a]" in two.refuse("select-policy")
    report = two.json("select-policy", "--upstream")
    assert [r["node"] for r in report["ran"]] == ["infer[a]", "infer[b]", *MADE, "policy"]
    assert contents(two) == made[1]


def test_one_fails_and_the_other_is_published(two, here):
    bad = two.artifact("infer[a]").path
    chunk = next(iter(sorted(bad.rglob("c.*"))))
    chunk.chmod(0o644)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    text = two.refuse("select-policy")
    assert text.startswith("CorruptError: probe[a]: ")
    states = two.states()
    assert "fresh" not in (states["probe[a]"], states["certainty[a]"])
    assert states["probe[b]"] == states["certainty[b]"] == "fresh"


@pytest.mark.slow
def test_a_killed_job_is_said_and_all_is_resumed(two):
    slowly(two, steps=300)
    process = start(two, "select-policy", "--json")
    pids = wait_for(lambda: len(under_way(two)) == 2 and holders(two))
    assert set(pids) == {"probe[a]", "probe[b]"}
    assert len({*pids.values(), process.pid}) == 3
    os.kill(pids["probe[a]"], signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "error: a process was killed, perhaps for want of memory, while probe[a], " in said
    assert "with fewer `runtime.jobs`" in said
    wait_for(lambda: gone(pids["probe[b]"]))
    assert len(under_way(two)) == 2
    assert [r["node"] for r in two.json("select-policy")["ran"]] == [*MADE, "policy"]
    resumed = contents(two)
    shutil.rmtree(two.root / "work" / "probe")
    shutil.rmtree(two.root / "work" / "certainty")
    two.settings["runtime"]["jobs"] = 1
    two.write()
    two.call("select-policy")
    assert contents(two) == resumed


@pytest.mark.slow
@pytest.mark.parametrize("whole_terminal", [True, False])
def test_ctrl_c_ends_all_jobs_soon(two, whole_terminal):
    slowly(two)
    process = start(two, "select-policy")
    wait_for(lambda: len(under_way(two)) == 2)
    pids = holders(two)
    begin = time.monotonic()
    (os.killpg if whole_terminal else os.kill)(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    wait_for(lambda: all(gone(pid) for pid in pids.values()), 5)
    assert time.monotonic() - begin < 5
    assert "Traceback" not in said
    assert "interrupted; finished work is kept" in said
    assert len(under_way(two)) == 2


class Watched:
    """Progress that is written down."""

    def __init__(self):
        self.seen = []

    def announce(self, decision):
        name, seen = decision.node.id, self.seen

        class Bar:
            def start(self, total, done, unit):
                seen.append((name, total, done, unit))

            def advance(self, count=1, note=""):
                seen.append((name, count, note.split()[:1]))

            def message(self, text):
                seen.append((name, text))

        return Bar()


def test_a_chain_may_begin_with_a_certainty(two):
    """Where its probe is there already."""
    experiment = load(two.file)
    decisions = plan(build(experiment), experiment.workspace.scan())
    chain = [decisions["certainty[a]"]]
    order = chains._order(experiment, chain)
    assert order.nodes == ("certainty[a]",)
    assert set(order.files) == {str(p.image) for p in experiment.pictures("train")}


def test_progress_is_seen_in_the_drafts(two, here):
    experiment = load(two.file)
    nodes = build(experiment)
    decisions = plan(nodes, experiment.workspace.scan())
    watched = Watched()
    probe, certainty = (chains._View(decisions[n], experiment, watched.announce) for n in MADE[:2])
    probe.look()
    assert watched.seen == []
    decision = decisions["probe[a]"]
    draft = experiment.workspace.draft("probe", "a", decision.fingerprint)
    probe.look()
    assert watched.seen == [("probe[a]", 25, 0, "steps")]
    (draft.path / chains.METRICS).write_text('{"step": 20, "loss": 0.5, "lr": 0.1}\n')
    probe.look()
    probe.look()
    (draft.path / chains.METRICS).write_text('{"step": 20, "loss": 0.5}\n{"step": 2')  # torn
    probe.look()
    assert watched.seen[1:] == [("probe[a]", 20, ["loss"])]
    later = Watched()
    again = chains._View(decision, experiment, later.announce)
    again.look()
    assert later.seen == []  # begun by an earlier run; nobody is at it
    shutil.rmtree(draft.path)
    two.call("select-policy")
    for view in (probe, again, certainty):
        view.look()
    assert watched.seen[2:] == [("probe[a]", 5, []), ("certainty[a]", 5, 5, "images")]
    assert later.seen == [("probe[a]", 25, 25, "steps")]


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 3, ["0", "1", "2", "0"]),
        ("2,5", 2, ["2", "5", "2", "5"]),
        ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]),
        ("", 0, ["", "", "", ""]),
        ("-1", 0, ["-1", "-1", "-1", "-1"]),
    ],
)
def test_each_slot_sees_one_device(monkeypatch, visible, count, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slot = multiprocessing.get_context("spawn").Value("i", 0)
    devices = chains._devices("auto")
    found = []
    for _ in range(4):
        chains._take_slot(slot, devices)
        found.append(os.environ["CUDA_VISIBLE_DEVICES"])
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    assert found == expected
    assert chains._devices("cpu") == []


def test_slots_are_taken_before_torch_is_imported(python):
    code = "import sys, ensdistill.stages.jobs.chains; print('torch' in sys.modules)"
    assert python(code).strip() == "False"


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ({"jobs": 2, "device": "cuda:1"}, "each of several jobs has a device of its own"),
        ({"jobs": 2, "scheduler": "tcp://host:8786"}, "with `scheduler` its workers are the jobs"),
        ({"jobs": 0}, "runtime.jobs"),
    ],
)
def test_what_cannot_be_meant_is_refused(world, runtime, said):
    world.settings["runtime"] |= runtime
    world.write()
    assert said in world.refuse("select-policy")


def test_one_job_on_one_named_device_is_no_contradiction(world):
    world.settings["runtime"] |= {"device": "cuda:1"}
    world.write()
    assert load(world.file).config.runtime.jobs == 1


def test_a_scheduler_needs_the_package_and_an_address(two, monkeypatch):
    pytest.importorskip("distributed")
    two.settings["runtime"] |= {"jobs": 1, "scheduler": "scheduler.json"}
    two.write()
    text = two.refuse("select-policy")
    assert "ConfigError: runtime.scheduler: " in text
    assert "scheduler.json is no file" in text
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install 'ensdistill[cluster]'" in two.refuse("select-policy")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"address": 5}', "[" * 100_000])
def test_a_file_that_is_no_schedulers_is_refused(two, content):
    (two.root / "s.json").write_text(content)
    with pytest.raises(ConfigError, match=r"scheduler: .*s.json (is no JSON|holds no `add)"):
        chains._address(load(two.file), "s.json")
    (two.root / "s.json").write_text('{"address": "tcp://1.2.3.4:5", "workers": {}}')
    assert chains._address(load(two.file), "s.json") == "tcp://1.2.3.4:5"


def test_without_a_scheduler_distributed_is_not_imported(two, python):
    code = """
import sys
from click.testing import CliRunner
from ensdistill.cli.__main__ import cli
if __name__ == "__main__":
    result = CliRunner().invoke(cli, ["select-policy", "--dry-run", "-c", sys.argv[1]])
    assert result.exit_code == 0, result.output
    print("distributed" in sys.modules)
"""
    assert python(code, two.file).strip() == "False"


def test_a_file_that_changed_meanwhile_is_said(two, here, monkeypatch):
    make = chains._make_all

    def change(experiment, announce, wanted):
        two.settings["probe"] = TINY | {"steps": 3}
        two.write()
        return make(experiment, announce, wanted)

    monkeypatch.setattr(chains, "_make_all", change)
    assert "probe[a] was made and is stale again (recipe.steps changed from 3 to 25)" in two.refuse(
        "select-policy"
    )


def test_names_choose_probes(two, here):
    assert [r["node"] for r in two.json("select-policy", "b")["ran"]] == MADE[2:]
    states = two.states()
    assert states["policy"] == "waiting"
    assert states["probe[a]"] == "missing"
    assert [r["node"] for r in two.json("select-policy", "a", "b")["ran"]] == MADE[:2]
    assert "no teacher is named 'c'; there are a, b" in two.refuse("select-policy", "c")


def test_the_label_model_has_no_probe_of_a_name(world):
    world.settings["fusion"] = {"method": "label-model"}
    world.write()
    text = world.refuse("select-policy", "a")
    assert text.startswith("ConfigError: ")
    assert "no teacher has a probe of its own" in text


def order(world):
    return chains._Order(world.file, tuple(MADE[:2]))


def test_an_error_names_its_node(two, monkeypatch):
    for error, kind, text in (
        (DataError("bad.png: broken"), DataError, "probe[a]: bad.png: broken"),
        (OSError(28, "No space left", "x"), EnsdistillError, "probe[a]: [Errno 28] No space"),
        (DataError("probe[a]: the loss is nan"), DataError, "probe[a]: the loss is nan"),
        (ZeroDivisionError("oh"), ZeroDivisionError, "oh"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(chains, "run", fail)
        found = chains._make([order(two)])
        assert type(found.error) is kind
        assert str(found.error).startswith(text)
        assert found.ran == []


def test_what_jobs_warn_of_is_said_once(two, here, monkeypatch, lenient):
    def warn(*arguments, **_):
        warnings.warn("odd", stacklevel=1)
        raise DataError(f"{arguments[2][0]}: broken")

    monkeypatch.setattr(chains, "run", warn)
    found = CliRunner().invoke(cli, ["select-policy", "-c", str(two.file)])
    assert str(found.exception) in ("probe[a]: broken", "probe[b]: broken")
    said = [line for line in found.stderr.splitlines() if "odd" in line]
    assert said == [
        f"warning: odd ({__file__}:{warn.__code__.co_firstlineno + 1})",
        f"{said[0]} ... 1 more time",
    ]


def test_a_daemon_needs_no_loaders(two, monkeypatch):
    class Daemon:
        daemon = True

    monkeypatch.setattr(chains, "current_process", Daemon)
    chains._require_own_children(load(two.file))
    experiment = load(two.file)
    config = experiment.config
    runtime = config.runtime.model_copy(update={"workers": 2})
    experiment = replace(experiment, config=config.model_copy(update={"runtime": runtime}))
    with pytest.raises(ConfigError, match="DASK_DISTRIBUTED__WORKER__DAEMON=False"):
        chains._require_own_children(experiment)


def asked(world):
    """Return what a worker of dask is asked for, and the decisions."""
    experiment = load(world.file)
    decisions = plan(build(experiment), experiment.workspace.scan())
    return chains._order(experiment, [decisions[n] for n in MADE[:2]])


def test_a_worker_that_sees_all_lacks_nothing(two):
    assert chains._what_is_lacking(asked(two)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: next((r / "images/train").glob("*")).unlink(), "does not see {}/images/train/"),
        (lambda r: shutil.rmtree(r / "images"), " (and 4 more files)"),
        (lambda r: (r / "experiment.yaml").unlink(), "does not see {}/experiment.yaml"),
        (lambda r: shutil.rmtree(r / "work"), "does not see infer[a] in {}/work, or not as it is"),
        (lambda r: shutil.rmtree(r / "teachers"), "cannot begin: "),
        (
            lambda r: shutil.copy(*sorted((r / "images/train").glob("*"))[:2]),
            "does not see infer[a] in {}/work, or not as it is (recipe.items.sha256 changed",
        ),
        (
            lambda r: (r / "experiment.yaml").write_text(
                (r / "experiment.yaml").read_text().replace("steps: 25", "steps: 3")
            ),
            "plans another probe[a]: its files or its ensdistill are not the same",
        ),
    ],
)
def test_what_a_worker_lacks_is_said(two, change, words):
    order = asked(two)
    change(two.root)
    assert words.format(two.root) in chains._what_is_lacking(order)


def test_what_fails_on_every_worker_alike_is_an_outcome_and_a_lost_mount_is_not(two, monkeypatch):
    def fail(*_, **__):
        raise DataError("bad.png: broken")

    order = asked(two)
    monkeypatch.setattr(chains, "run", fail)
    assert str(chains._make_there(order).error) == "probe[a]: bad.png: broken"

    def lose(*_, **__):
        shutil.rmtree(two.root / "images")
        raise OSError(116, "Stale file handle", "x.png")

    monkeypatch.setattr(chains, "run", lose)
    assert "images/train" in chains._make_there(order).reason


def test_chains_are_what_the_graph_says(two):
    assert probe_chains(build(load(two.file))) == {"a": MADE[:2], "b": MADE[2:]}


@pytest.fixture
def cluster(two):
    """A scheduler with two workers, and the experiment that names it."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        two.settings["runtime"] |= {"jobs": 1, "scheduler": cluster.scheduler_address}
        two.write()
        yield cluster


@pytest.mark.slow
def test_workers_of_dask_make_the_same_bytes(two, made, cluster):
    report = two.json("select-policy")
    assert [r["node"] for r in report["ran"]] == [*MADE, "policy"]
    assert contents(two) == made[1]


@pytest.mark.slow
def test_what_fails_on_a_worker_of_dask_fails_here(two, cluster):
    """A batch of three, and not the two crops that are tried before a run."""
    (two.root / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        return super().forward(x) * (float('nan') if len(x) == 3 else 1)\n"
    )
    kwargs = {"in_channels": 3, "out_channels": 19, "kernel_size": 1}
    network = {"factory": "net:Net", "root": ".", "kwargs": kwargs}
    two.settings["probe"] = TINY | {"trust": "code", "network": network, "batch_size": 3}
    two.write()
    assert "DataError: probe[" in two.refuse("select-policy")


@pytest.mark.slow
def test_ctrl_c_leaves_a_cluster_alone(two, cluster):
    slowly(two, steps=1500)
    process = start(two, "select-policy")
    wait_for(lambda: len(under_way(two)) == 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said
    wait_for(lambda: not holders(two) and all_made(two), 120)  # the workers go on to the end
    assert [r["node"] for r in two.json("select-policy")["ran"]] == ["policy"]


@pytest.mark.slow
def test_a_killed_worker_of_dask_is_replaced(two, cluster):
    slowly(two, steps=800)
    process = start(two, "select-policy")
    wait_for(lambda: len(under_way(two)) == 2)
    os.kill(holders(two)["probe[a]"], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert two.states()["policy"] == "fresh"


@pytest.fixture
def served(two):
    """Start schedulers, all at one address, and workers without a nanny, as a user does."""
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two.settings["runtime"] |= {"jobs": 1, "scheduler": f"tcp://127.0.0.1:{port}"}
    two.write()
    started = []

    def serve(what, *options):
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *options]
        to = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, cwd=two.root, **to))
        return started[-1]

    def scheduler():
        return serve("scheduler", "--host", "127.0.0.1", "--port", str(port))

    def worker():
        address = two.settings["runtime"]["scheduler"]
        return serve("worker", address, "--nthreads", "1", "--no-nanny")

    yield scheduler, worker
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_lost_scheduler_is_told_soon_and_the_next_run_is_right(two, made, served):
    scheduler, worker = served
    slowly(two, steps=1500)
    lost, busy = scheduler(), worker()
    process = start(two, "select-policy")
    wait_for(lambda: under_way(two))
    lost.kill()
    begin = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - begin < 30
    assert "Traceback" not in said
    assert f"error: the dask scheduler at {two.settings['runtime']['scheduler']} was lost" in said
    busy.kill()
    busy.wait()
    assert under_way(two)
    two.settings["probe"] = TINY | {"steps": 25}
    two.write()
    scheduler(), worker()
    process = start(two, "select-policy", "--json")
    assert process.communicate(timeout=120)[1].count("Traceback") == 0
    shutil.rmtree(next(iter(under_way(two))))
    assert contents(two) == made[1]


@pytest.mark.slow
def test_where_all_workers_are_gone_it_is_waited_as_long_as_is_said(two, served, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "20s")
    scheduler, worker = served
    slowly(two, steps=1500)
    scheduler()
    only = worker()
    process = start(two, "select-policy")
    wait_for(lambda: under_way(two))
    only.kill()
    _, said = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "has no worker; waiting 20 s for one" in said
    assert "has had no worker for 20 s while probe[a], probe[b] was to be made" in said
