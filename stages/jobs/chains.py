"""Chains of nodes, such as a probe and its certainty, each made by a process of its own.

The processes are started here, or are the workers of a dask scheduler; either way each makes its
nodes as a command of its own would, with locks, drafts and checkpoints. Only what it made comes
back, and how far it is is seen in its drafts.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import active_children, current_process, get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

from ensdistill.pipeline.draft import progress_of
from ensdistill.pipeline.errors import ConfigError, EnsdistillError
from ensdistill.pipeline.manifest import MANIFEST, SHORT
from ensdistill.pipeline.node import Progress
from ensdistill.pipeline.opening import read_json
from ensdistill.pipeline.plan import Decision, State, plan
from ensdistill.pipeline.repeating import every
from ensdistill.pipeline.runner import Aside, Ran, run
from ensdistill.stages.experiment.experiment import Experiment
from ensdistill.stages.graph import build_all, load
from ensdistill.stages.jobs.cluster import Unfit, make_there
from ensdistill.stages.local import Running, local_of
from ensdistill.stages.training import METRICS
from ensdistill.stages.work.items import Silence, compute, portable, processes
from ensdistill.stages.work.warned import Warned, issue, kept, taken

Announce = Callable[[Decision], Progress]

_TAIL: Final = 4096  # bytes at the end of it that are read
_LOOK: Final = 1.0  # seconds between two looks at the drafts
_DEVICES: Final = "CUDA_VISIBLE_DEVICES"


def aside(
    experiment: Experiment, chains: Sequence[Sequence[str]], announce: Announce
) -> Aside | None:
    """Return what makes chains of nodes in other processes, None if `runtime` asks for none.

    Chains are of node ids (see `graph.probe_chains`); `announce` is called with the decision for
    each node when its process begins it.
    """
    runtime = experiment.config.runtime
    if runtime.jobs == 1 and runtime.scheduler is None:
        return None
    return Aside(chains, partial(_make_all, experiment, announce))


class _Order(NamedTuple):
    """What a process is asked for: nodes to be made in order, as they are planned here.

    `experiment` is the file, `files` are what they are made from.
    """

    experiment: Path
    nodes: tuple[str, ...]
    fingerprints: tuple[str | None, ...] = ()
    files: tuple[str, ...] = ()


class _Outcome(NamedTuple):
    """What came of it."""

    ran: list[Ran]
    said: list[str]
    warned: list[tuple[Warned, int]]
    error: Exception | None


def _make_all(
    experiment: Experiment, announce: Announce, chains: Sequence[Sequence[Decision]]
) -> list[Ran]:
    """Make what is given of each chain.

    Raises
    ------
    EnsdistillError
        The error of the first chain that failed, after the others were made; or that a process was
        killed. What was finished is kept.
    """
    experiment.files.save()  # the processes need not hash the images again
    views = [_View(decision, experiment, announce) for chain in chains for decision in chain]
    by_node: dict[str, _View] = {view.node: view for view in views}
    orders = [_order(experiment, chain) for chain in chains]
    ran: list[Ran] = []
    errors: list[Exception] = []
    left = {order.nodes[0] for order in orders}

    def finished(k: int, outcome: _Outcome) -> None:
        name = orders[k].nodes[0]
        left.discard(name)
        ran.extend(outcome.ran)
        view = by_node[name]
        for text in outcome.said:
            view.say(text)
        issue(outcome.warned)
        if outcome.error is not None:
            errors.append(outcome.error)
            if left:
                view.say(f"{outcome.error}; going on with {', '.join(sorted(left))}")

    def failed(k: int, error: EnsdistillError) -> None:
        name = orders[k].nodes[0]
        finished(k, _Outcome([], [], [], type(error)(f"{name}: {error}")))

    scheduler = experiment.config.runtime.scheduler
    with _looked_at(views):
        if scheduler is not None:
            address, say = _address(experiment, scheduler), views[0].say
            make_there(address, orders, _make_there, finished, failed, left, say)
        else:
            with _slots(experiment, left) as pool:
                compute(orders, _make, finished, pool=pool)
    if errors:
        raise errors[0]
    return sorted(ran, key=lambda r: list(by_node).index(r.node))


def _order(experiment: Experiment, chain: Sequence[Decision]) -> _Order:
    assert chain[0].work is not None
    local = local_of(chain[0].work, Running)
    return _Order(
        experiment.path,
        tuple(decision.node.id for decision in chain),
        tuple(decision.fingerprint for decision in chain),
        (*(str(picture.image) for picture in local.pictures), *local.weights),
    )


def _make_there(order: _Order) -> _Outcome | Unfit:
    """Make the nodes of one chain in a worker of dask, unless it lacks what it takes."""
    unfit = _what_is_lacking(order)
    if unfit is None:
        outcome = _make([order])
        if outcome.error is None:
            return outcome
        unfit = _what_is_lacking(order)  # a lost mount is not the fault of the work either
    return outcome if unfit is None else Unfit(unfit)


def _what_is_lacking(order: _Order) -> str | None:
    """Say why a worker cannot make what it is asked for, None if it can.

    Whoever asks has loaded and planned the same: what fails here, fails because of the worker.
    """
    missing = [p for p in (str(order.experiment), *order.files) if not Path(p).exists()]
    if missing:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        return f"does not see {missing[0]}{more}"
    try:
        experiment = load(order.experiment)
        _require_own_children(experiment)
        decisions = plan(build_all(experiment), experiment.workspace.scan())
    except (EnsdistillError, OSError) as error:
        return f"cannot begin: {error}"
    first = decisions[order.nodes[0]]
    for needed in first.work.uses.values() if first.work else first.node.needs:
        if decisions[needed].state is not State.FRESH:
            return (
                f"does not see {needed} in {experiment.workspace.root}, or not as it is "
                f"({decisions[needed].reason})"
            )
    for name, fingerprint in zip(order.nodes, order.fingerprints, strict=True):
        if decisions[name].fingerprint != fingerprint:
            return f"plans another {name}: its files or its ensdistill are not the same"
    return None


def _make(orders: Sequence[_Order]) -> _Outcome:
    """Make the nodes of one chain, in this process."""
    [order] = orders
    news = _News(order.nodes[0])
    ran: list[Ran] = []
    failed: Exception | None = None
    with kept() as warned:
        try:
            experiment = load(order.experiment)
            nodes = build_all(experiment)
            workspace = experiment.workspace
            ran = run(nodes, workspace, order.nodes, news.of, about=experiment.base).ran
        except (EnsdistillError, OSError) as error:
            kind = type(error) if isinstance(error, EnsdistillError) else EnsdistillError
            text = str(error) if str(error).startswith(news.node) else f"{news.node}: {error}"
            failed = portable(kind(text).with_traceback(error.__traceback__))
        except Exception as error:
            failed = portable(error)
    return _Outcome(ran, news.said, taken(warned), failed)


def _require_own_children(experiment: Experiment) -> None:
    """Refuse a worker of dask that may not start the processes that load samples."""
    workers = experiment.config.runtime.workers
    if workers and current_process().daemon:
        raise ConfigError(
            f"`runtime: {{workers: {workers}}}` needs processes that this dask worker may not "
            "start; start it with DASK_DISTRIBUTED__WORKER__DAEMON=False, or set `workers: 0`"
        )


class _News(Silence):
    """Progress of a process without a terminal: what is said is kept, the rest seen in drafts."""

    def __init__(self, node: str):
        self.node = node
        self.said: list[str] = []

    def of(self, decision: Decision) -> _News:
        """Note which node begins."""
        self.node = decision.node.id
        return self

    def message(self, text: str) -> None:
        """Keep it for whoever asked for the chain."""
        self.said.append(text)


class _View:
    """A node that another process makes, as far as its draft shows it."""

    def __init__(self, decision: Decision, experiment: Experiment, announce: Announce):
        assert decision.work is not None
        assert decision.fingerprint is not None
        self.node = decision.node.id
        self._decision = decision
        self._experiment = experiment
        self._announce = announce
        self._short = decision.fingerprint[:SHORT]
        self._items = len(decision.work.items)
        self._total: Any = self._items or decision.work.recipe.to_json()["steps"]
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._started = False
        self._last = self._seen()[0]

    def say(self, text: str) -> None:
        """Say something of it."""
        with self._lock:
            self._shown().message(text)

    def look(self) -> None:
        """Show what was done since the last look; a draft of an earlier run is no beginning."""
        done, note = self._seen()
        if done <= self._last:
            return
        with self._lock:
            if self._started:
                self._shown().advance(done - self._last, note)
            else:
                self._started = True
                self._shown().start(self._total, done, "images" if self._items else "steps")
        self._last = done

    def _shown(self) -> Progress:
        if self._bar is None:
            self._bar = self._announce(self._decision)
        return self._bar

    def _seen(self) -> tuple[int, str]:
        """Return how much is done, -1 without a draft, and a figure worth seeing."""
        for folder in self._experiment.workspace.folders(self._decision.node.stage):
            if folder.name.endswith(f"-{self._short}"):
                if (folder / MANIFEST).exists():
                    return self._total, ""
                return (progress_of(folder), "") if self._items else _last_step(folder)
        return -1, ""


def _last_step(folder: Path) -> tuple[int, str]:
    """Return the last step that a training has logged, and its loss."""
    with suppress(OSError, ValueError), (folder / METRICS).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        last = json.loads(file.read().splitlines()[-1])
        return last["step"], f"loss {last['loss']:.3f}" if "loss" in last else ""
    return 0, ""


@contextmanager
def _looked_at(views: Sequence[_View]) -> Iterator[None]:
    """Look at the nodes now and then while the block runs, and once at its end."""

    def look() -> None:
        for view in views:
            with suppress(OSError):
                view.look()

    try:
        with every(_LOOK, look):
            yield
    finally:
        look()


@contextmanager
def _slots(experiment: Experiment, left: set[str]) -> Iterator[Executor]:
    """Yield processes of this machine that share its devices and cores; Ctrl-C ends them."""
    from dask.system import CPU_COUNT

    runtime = experiment.config.runtime
    threads = runtime.threads or max(1, CPU_COUNT // runtime.jobs)
    slot = get_context("spawn").Value("i", 0)
    others = set(active_children())
    with processes(
        min(runtime.jobs, len(left)), threads, _take_slot, slot, _devices(runtime.device)
    ) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            for process in set(active_children()) - others:
                process.terminate()
            raise
        except BrokenProcessPool as error:
            raise EnsdistillError(
                "a process was killed, perhaps for want of memory, while "
                f"{', '.join(sorted(left))} was to be made; run again (finished work and "
                "checkpoints are kept), with fewer `runtime.jobs` if it happens again"
            ) from error


def _devices(name: str) -> list[str]:
    """Return how each CUDA device that is seen here is called, none where there are none."""
    if name not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()  # makes no context on any of them
    visible = os.environ.get(_DEVICES)
    return visible.split(",")[:count] if visible else [str(k) for k in range(count)]


def _take_slot(slot: Any, devices: Sequence[str]) -> None:
    """See one device and no other: before torch is imported, let alone looks for devices."""
    with slot.get_lock():
        mine = slot.value
        slot.value += 1
    if devices:
        os.environ[_DEVICES] = devices[mine % len(devices)].strip()


def _address(experiment: Experiment, scheduler: str) -> str:
    """Return the address of a scheduler that is named by it, or by its file."""
    if "://" in scheduler:
        return scheduler
    file = experiment.folder(scheduler)
    wanted = (
        "expected the file that `dask scheduler --scheduler-file` writes, or an address such as "
        "tcp://host:8786"
    )
    if not file.is_file():
        raise ConfigError(f"runtime.scheduler: {file} is no file; {wanted}")
    try:
        found = read_json(file)
    except ValueError as error:
        raise ConfigError(f"runtime.scheduler: {file} is no JSON ({error}); {wanted}") from error
    if not isinstance(found, dict) or not isinstance(found.get("address"), str):
        raise ConfigError(f"runtime.scheduler: {file} holds no `address`; {wanted}")
    return str(found["address"])
