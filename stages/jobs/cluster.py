"""The workers of a dask scheduler, as what makes chains of nodes."""

from __future__ import annotations

import logging
import pickle
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final, NamedTuple, TypeVar

from ensdistill.pipeline.errors import ConfigError, EnsdistillError

R = TypeVar("R")

_LOOK: Final = 1.0  # seconds between two looks at scheduler and workers
_PATIENCE: Final = "distributed.comm.timeouts.connect"  # how dask calls what it waits for others
_KEPT: Final = "finished work and checkpoints are kept"


class Unfit(NamedTuple):
    """Why a worker cannot make what others may: it lacks what is not part of the work."""

    reason: str


class _Answer(NamedTuple):
    """What a worker sends back: its address and host, and a pickled result, or `Unfit`."""

    address: str
    host: str
    unfit: str | None
    content: bytes


def make_there(
    scheduler: str,
    orders: Sequence[Any],
    make: Callable[[Any], R | Unfit],
    finished: Callable[[int, R], object],
    failed: Callable[[int, EnsdistillError], object],
    left: set[str],
    say: Callable[[str], object],
) -> None:
    """Have each order made by a worker, and by another one where the first is unfit for it.

    Orders can be pickled, and `make` is a function of a module, called with one there. `finished`
    and `failed` are called with the number of an order and what came of it: its result, or why
    there is none. `left` is what is not made yet, for messages.

    Raises
    ------
    EnsdistillError
        If there is no scheduler or it is lost, no worker is fit, or there is none for as long as
        dask is told to wait for a connection.
    """
    with _quiet(), _connected(scheduler) as client:
        work = _Work(scheduler, client, orders, make, left, say)
        try:
            for k, answer in work.answers():
                if isinstance(answer, EnsdistillError):
                    failed(k, answer)
                else:
                    finished(k, pickle.loads(answer.content))
        except BaseException:
            with suppress(Exception):
                client.cancel(list(work.sent))  # what nobody has begun
            raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is logged of lost connections, whole tracebacks, off the terminal meanwhile."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _connected(scheduler: str) -> Iterator[Any]:
    """Yield a client of the scheduler."""
    from distributed import Client
    from distributed.comm.addressing import get_address_host_port

    try:
        place = get_address_host_port(scheduler)
    except Exception as error:  # whatever it trips over
        raise ConfigError(
            f"runtime.scheduler: {scheduler} leads to no dask scheduler ({_words(error)}); "
            "expected an address such as tcp://host:8786"
        ) from error
    try:
        _await_listening(place)
        client = Client(scheduler, set_as_default=False)
    except OSError as error:
        raise EnsdistillError(
            f"runtime.scheduler: no dask scheduler answers at {scheduler} ({_words(error)}); start "
            "`dask scheduler` first"
        ) from error
    try:
        yield client
    finally:
        with suppress(Exception):  # a scheduler that is lost does not take leave
            client.close(timeout=_LOOK)


def _await_listening(place: tuple[str, int]) -> None:
    """Wait for somebody to listen at host and port: a `Client` that fails may hang when it goes.

    Raises
    ------
    OSError
        If nobody does for as long as dask waits for a connection.
    """
    patience = _patience()
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(place, timeout=max(_LOOK, end - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(f"{error.strerror or error}, after {patience:g} s") from error
        time.sleep(_LOOK / 4)


def _patience() -> float:
    """Return for how many seconds dask is told to wait for a connection."""
    from dask import config
    from dask.utils import parse_timedelta

    return float(parse_timedelta(config.get(_PATIENCE)))


@dataclass
class _Work:
    """Orders on their way to workers (see `make_there`).

    Attributes
    ----------
    unfit : dict
        Address of a worker to its host and what it lacks.
    sent : dict
        Future to the number of its order and the workers that it may go to; None for all.
    """

    scheduler: str
    client: Any
    orders: Sequence[Any]
    make: Callable[[Any], Any]
    left: set[str]
    say: Callable[[str], object]
    patience: float = field(default_factory=_patience)
    unfit: dict[str, str] = field(default_factory=dict)
    sent: dict[Any, tuple[int, set[str] | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for k in range(len(self.orders)):
            self._send(k, None)

    def _send(self, k: int, workers: set[str] | None) -> None:
        errand = _errand(self.make, self.orders[k])
        restricted = {} if workers is None else {"workers": sorted(workers)}
        future = self.client.submit(errand, pure=False, **restricted)
        self.sent[future] = (k, workers)

    def answers(self) -> Iterator[tuple[int, _Answer | EnsdistillError]]:
        """Yield the number of each order and what came of it."""
        idle = 0.0
        while self.sent:
            workers = self._workers()
            # lost is what died with its worker and is going to be made again
            for future in [f for f in self.sent if f.status not in ("pending", "lost")]:
                answer = self._answer(future)
                k, _ = self.sent.pop(future)
                if isinstance(answer, _Answer) and answer.unfit is not None:
                    self._try_another(k, answer, answer.unfit, workers)
                else:
                    yield k, answer
            self._send_again(workers)
            if not self.sent:
                return
            if idle == 0 and not workers:
                patience = f"{self.patience:.0f} s"
                self.say(f"{self.scheduler} has no worker; waiting {patience} for one")
            idle = 0.0 if workers else idle + _LOOK
            if idle > self.patience:
                raise EnsdistillError(
                    f"{self.scheduler} has had no worker for {self.patience:.0f} s while "
                    f"{self._names()} was to be made; start `dask worker` and run again ({_KEPT}). "
                    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT says how long one is waited for"
                )
            time.sleep(_LOOK)

    def _workers(self) -> set[str]:
        """Return the addresses of all workers.

        Raises
        ------
        EnsdistillError
            If the scheduler is not there, or twice does not answer.
        """
        for _ in range(2):  # the time may have run out while this process was stopped
            if self.client.status != "running":
                break
            with suppress(TimeoutError, OSError):
                identity = self.client.sync(
                    self.client.scheduler.identity, callback_timeout=self.patience / 2
                )
                return set(identity["workers"])
        raise self._lost()

    def _answer(self, future: Any) -> _Answer | EnsdistillError:
        """Return what came back, or what is to be said instead."""
        from distributed import KilledWorker

        if future.status == "cancelled":
            raise self._lost()
        try:
            answer: _Answer = _Answer(*future.result(timeout=self.patience))
        except KilledWorker:
            return EnsdistillError(
                "a dask worker was killed, again and again, perhaps for want of memory; run again "
                f"({_KEPT}), on workers with more memory if it happens again"
            )
        except (TimeoutError, OSError) as error:
            raise self._lost() from error
        except Exception as error:
            if future.status != "error":
                raise self._lost() from error
            return EnsdistillError(f"a dask worker failed ({_words(error)})")
        return answer

    def _lost(self) -> EnsdistillError:
        return EnsdistillError(
            f"the dask scheduler at {self.scheduler} was lost or started anew while "
            f"{self._names()} was to be made; once it is there, run again ({_KEPT})"
        )

    def _names(self) -> str:
        return ", ".join(sorted(self.left))

    def _try_another(self, k: int, answer: _Answer, lacks: str, workers: set[str]) -> None:
        """Send an order to workers not known to be unfit; raise an error if there is none."""
        if answer.address not in self.unfit:
            self.unfit[answer.address] = f"{answer.host} ({answer.address}) {lacks}"
            self.say(f"the dask worker on {self.unfit[answer.address]}")
        others = workers - self.unfit.keys()
        if not others:
            found = "; ".join(sorted(self.unfit.values()))
            raise EnsdistillError(
                f"no worker of {self.scheduler} can make {self._names()}: {found}. Let them see "
                "the same files under the same paths, install the same ensdistill, and run again "
                f"({_KEPT})"
            )
        self._send(k, others)

    def _send_again(self, workers: set[str]) -> None:
        """Send orders elsewhere whose workers are all gone."""
        for future, (k, chosen) in list(self.sent.items()):
            if chosen is not None and chosen.isdisjoint(workers):
                others = workers - self.unfit.keys()
                if others:
                    del self.sent[future]
                    self.client.cancel([future])
                    self._send(k, others)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _errand(make: Callable[[Any], Any], order: Any) -> Callable[[], tuple[str, str, Any, bytes]]:
    """Return what a worker calls.

    As no module's function it is sent as code: a worker may lack the package, or have another.
    """
    ours = version("ensdistill")
    content = zlib.compress(pickle.dumps((make, order)))

    def errand() -> tuple[str, str, Any, bytes]:
        import importlib.metadata
        import pickle
        import socket
        import zlib

        from distributed import get_worker

        here = (get_worker().address, socket.gethostname())
        try:
            theirs = importlib.metadata.version("ensdistill")
            if theirs != ours:
                return (*here, f"has ensdistill {theirs} and not {ours}", b"")
            make, order = pickle.loads(zlib.decompress(content))
        except (ImportError, AttributeError) as error:
            return (*here, f"has no ensdistill that does ({error})", b"")
        result = make(order)
        if type(result).__name__ == "Unfit":
            return (*here, result.reason, b"")
        return (*here, None, pickle.dumps(result))

    return errand
