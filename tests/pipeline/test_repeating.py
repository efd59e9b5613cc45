import threading
import time

import pytest

from ensdistill.pipeline.repeating import every


def test_it_is_called_while_the_block_runs_and_not_after_it():
    calls, enough = [], threading.Event()

    def call():
        calls.append(threading.current_thread())
        if len(calls) == 3:
            enough.set()

    with every(0.001, call):
        assert enough.wait(10)
    count = len(calls)
    time.sleep(0.02)
    assert len(calls) == count
    assert set(calls) != {threading.current_thread()}


def test_the_first_call_is_after_the_first_wait():
    calls = []
    with every(60.0, lambda: calls.append(1)):
        pass  # which ends at once
    assert calls == []


def test_what_the_block_raises_is_raised_and_ends_the_calls():
    before = threading.active_count()
    with pytest.raises(KeyError), every(0.001, lambda: None):
        raise KeyError
    assert threading.active_count() == before
