"""The two ends of a batch's pipeline: order, bounds, errors in their place, and ends that never hang."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from cdcodec.threads import Sink, Source


def test_items_come_in_order_and_not_too_far_ahead():
    taken, used = [], []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    for i in Source(items(), 2):
        used.append(i)
        time.sleep(0.001)
        assert len(taken) - len(used) <= 4
    assert used == list(range(50))


def test_an_error_of_the_source_comes_behind_its_items():
    def items():
        yield 1
        raise KeyError("two")

    source = iter(Source(items(), 5))
    assert next(source) == 1
    with pytest.raises(KeyError):
        next(source)


def test_a_stopped_source_takes_no_more():
    taken = []

    def items():
        for i in itertools.count():
            taken.append(i)
            yield i

    source = Source(items(), 2)
    assert next(iter(source)) == 0
    source.stop()
    time.sleep(0.3)
    count = len(taken)
    time.sleep(0.3)
    assert len(taken) == count <= 5


def test_a_source_that_hangs_does_not_keep_anybody():
    Source(iter(threading.Event().wait, True), 1).stop()
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "source")


def test_a_sink_takes_all_in_order():
    got = []
    sink = Sink(got.append, 2)
    for i in range(50):
        sink.put(i)
    sink.close()
    assert got == list(range(50))


def test_a_sink_makes_the_producer_wait():
    gate = threading.Event()
    sink = Sink(lambda item: gate.wait(5), 2)
    threading.Timer(0.2, gate.set).start()
    begun = time.monotonic()
    for i in range(5):
        sink.put(i)
    assert time.monotonic() - begun > 0.1
    sink.close()


def test_an_error_of_the_sink_is_raised_and_ends_its_work():
    got = []

    def take(item):
        got.append(item)
        if item == 1:
            raise KeyboardInterrupt

    sink = Sink(take, 5)
    for i in range(3):
        sink.put(i)
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    with pytest.raises(KeyboardInterrupt):
        sink.put(3)
    assert got == [0, 1]
