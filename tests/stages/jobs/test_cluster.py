"""Workers of dask that die, are unfit or never come, and schedulers that are lost."""

import pickle
import socket
import zlib
from types import SimpleNamespace

import pytest

from ensdistill.pipeline.errors import ConfigError, EnsdistillError
from ensdistill.stages.jobs import cluster
from ensdistill.stages.jobs.cluster import Unfit, make_there

distributed = pytest.importorskip("distributed")


def answer(order):
    """Stand for the making of a chain."""
    return Unfit("does not see /data/a.png") if order == "blind" else f"made {order}"


class Future:
    """Of a `Cluster`."""

    def __init__(self, workers):
        self.workers = workers
        self.status = "pending"
        self.value = None

    def become(self, value):
        if value in ("pending", "cancelled", "lost"):
            self.status = value
        else:
            self.status = "error" if isinstance(value, Exception) else "finished"
            self.value = value

    def result(self, timeout):
        if self.status == "error":
            raise self.value
        return self.value


class Cluster:
    """A client, a scheduler and workers that are told what to do.

    `does` is called with each future that was sent, in turn, and says what becomes of it: a status,
    an error, or the address of a worker.
    """

    def __init__(self, does, workers=("tcp://a", "tcp://b")):
        self.does = does
        self.workers = list(workers)
        self.status = "running"
        self.scheduler = SimpleNamespace(identity=None)
        self.sent = []
        self.cancelled = []
        self.closed = False

    def submit(self, errand, *, pure, workers=None):
        future = Future(workers)
        self.sent.append(future)
        future.become(self.does(len(self.sent) - 1, future))
        return future

    def sync(self, *_, **__):
        if isinstance(self.workers, Exception):
            raise self.workers
        return {"workers": dict.fromkeys(self.workers)}

    def cancel(self, futures):
        self.cancelled += futures

    def close(self, timeout):
        self.closed = True


def made(what="made", address="tcp://a"):
    return address, "host-of-" + address[-1], None, pickle.dumps(what)


def blind(address="tcp://a"):
    return address, "host-of-" + address[-1], "does not see /data/a.png", b""


@pytest.fixture
def call(monkeypatch):
    """Have orders made by a `Cluster`, and return results, errors and what was said."""
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)

    def do(found, orders=("x", "y")):
        monkeypatch.setattr("distributed.Client", lambda *_, **__: found)
        monkeypatch.setattr(cluster, "_await_listening", lambda _: None)
        results, errors, said = {}, {}, []
        left = {f"probe[{order}]" for order in orders}
        try:
            make_there(
                "tcp://s:8786", orders, answer, results.__setitem__, errors.__setitem__, left,
                said.append,
            )  # fmt: skip
        finally:
            assert found.closed
        return results, errors, said

    return do


def test_what_workers_make_comes_back(call):
    assert call(Cluster(lambda k, _: made(k))) == ({0: 0, 1: 1}, {}, [])


def test_what_an_unfit_worker_cannot_make_goes_to_another_and_the_host_is_said_once(call):
    def does(k, future):
        return blind() if future.workers is None else made(k, *future.workers)

    found = Cluster(does)
    results, errors, said = call(found)
    assert results == {0: 2, 1: 3}
    assert errors == {}
    assert [future.workers for future in found.sent[2:]] == [["tcp://b"]] * 2
    assert said == ["the dask worker on host-of-a (tcp://a) does not see /data/a.png"]


def test_where_all_are_unfit_all_hosts_are_named(call):
    found = Cluster(lambda _, future: blind(*(future.workers or ["tcp://b"])))
    with pytest.raises(EnsdistillError) as raised:
        call(found)
    text = str(raised.value)
    assert text.startswith("no worker of tcp://s:8786 can make probe[x], probe[y]: host-of-a (tcp")
    assert text.count("does not see /data/a.png") == 2
    assert "host-of-b (tcp://b)" in text


def test_one_that_goes_to_chosen_workers_is_sent_again_when_these_are_gone(call):
    def does(k, future):
        if k == 0:
            return blind()
        if k == 1:
            found.workers = ["tcp://a", "tcp://c"]
            return "pending"
        return made(k, *future.workers)

    found = Cluster(does)
    assert call(found, ["x"])[0] == {0: 2}
    assert found.cancelled == [found.sent[1]]
    assert found.sent[2].workers == ["tcp://c"]


@pytest.mark.parametrize(
    "happens",
    [
        lambda c: "cancelled",
        lambda c: setattr(c, "status", "connecting") or "pending",
        lambda c: setattr(c, "status", "closed") or "pending",
        lambda c: setattr(c, "workers", TimeoutError()) or "pending",
        lambda c: setattr(c, "workers", OSError("in <TCP>: Stream is closed")) or "pending",
    ],
)
def test_a_lost_scheduler_is_told(call, happens):
    found = Cluster(lambda *_: happens(found))
    with pytest.raises(EnsdistillError) as raised:
        call(found)
    assert str(raised.value) == (
        "the dask scheduler at tcp://s:8786 was lost or started anew while probe[x], probe[y] was "
        "to be made; once it is there, run again (finished work and checkpoints are kept)"
    )


def test_without_workers_it_is_waited_for_as_long_as_is_said(call):
    found = Cluster(lambda *_: "pending", workers=())
    with pytest.raises(EnsdistillError, match="has had no worker for 30 s while probe"):
        call(found)
    assert found.cancelled == found.sent


def test_a_worker_that_comes_late_is_welcome(call):
    found = Cluster(lambda *_: "lost", workers=())

    def come(*_, **__):
        found.sent[0].become(made())
        return {"workers": {}}

    found.sync = come
    assert call(found, ["x"])[0] == {0: "made"}


def test_one_whose_workers_are_killed_fails_and_others_are_made(call):
    killed = distributed.KilledWorker("errand", None, 3)
    results, errors, _ = call(Cluster(lambda k, _: made() if k else killed))
    assert results == {1: "made"}
    assert "a dask worker was killed, again and again, perhaps for want of memory" in str(errors[0])


def test_what_is_logged_of_connections_is_kept_from_the_terminal(call, capfd):
    import logging

    def does(*_):
        logging.getLogger("distributed.client").error("Failed to reconnect")
        return made()

    call(Cluster(does))
    assert capfd.readouterr().err == ""
    assert logging.root.manager.disable == 0


@pytest.fixture
def worker(monkeypatch):
    """Run errands here, as a worker does that was sent them."""
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://a"))

    def run(errand):
        return pickle.loads(distributed.protocol.pickle.dumps(errand))()

    return run


def test_an_errand_is_sent_as_code_and_brings_back_what_was_made(worker):
    address, host, unfit, content = worker(cluster._errand(answer, "x"))
    assert (address, host, unfit) == ("tcp://a", socket.gethostname(), None)
    assert pickle.loads(content) == "made x"
    assert worker(cluster._errand(answer, "blind"))[2] == "does not see /data/a.png"


def test_a_worker_of_another_version_or_without_the_package_is_unfit(worker, monkeypatch):
    monkeypatch.setattr(cluster, "version", lambda _: "0.0.1")
    errand = cluster._errand(answer, "x")
    monkeypatch.undo()
    monkeypatch.setattr("distributed.get_worker", lambda: SimpleNamespace(address="tcp://a"))
    assert worker(errand)[2].endswith(" and not 0.0.1")
    other = zlib.compress(pickle.dumps((answer, "x")).replace(b"answer", b"anwser"))
    monkeypatch.setattr(cluster.zlib, "compress", lambda _: other)
    assert "has no ensdistill that does (" in worker(cluster._errand(answer, "x"))[2]


@pytest.mark.parametrize("address", ["foo://x", "tcp://", "tcp://host:port"])
def test_what_is_no_address_is_refused(address):
    with (
        pytest.raises(ConfigError, match=r"leads to no dask scheduler .*tcp://host:8786"),
        cluster._connected(address),
    ):
        pass


def test_nobody_answers(monkeypatch):
    from dask import config

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    with (
        config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(EnsdistillError, match=rf"answers at {address} .* after 1 s"),
        cluster._connected(address),
    ):
        pass
