"""Devices are read from text, and work on several of them is the same work."""

from __future__ import annotations

import functools
import os

import pytest
import torch

from ddib_fed.bridge.sharding import parse_devices, spread
from ddib_fed.errors import InternalError, SettingsInvalid
from tests.bridge.doubling import doubler
from tests.bridge.workers.orphans import children


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cpu", ("cpu",)),
        ("cpu:3", ("cpu",) * 3),
        ("cpu, cpu:2", ("cpu",) * 3),
    ],
)
def test_devices_are_one_for_each_worker(text, devices):
    assert parse_devices(text) == devices


def test_all_is_every_gpu_or_a_worker_for_each_core():
    expected = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    assert parse_devices("all") == (expected or ("cpu",) * os.cpu_count())


@pytest.mark.parametrize("text", ["", "gpu", "cpu:0", "cpu:1:2", "cuda:", "cpu:9999", "cuda:999", "mps:1"])
def test_refuses_devices_that_are_not_there(text):
    with pytest.raises(SettingsInvalid):
        parse_devices(text)


def test_one_device_needs_no_process():
    ticks = []
    found = list(spread([1, 2, 3], ["cpu"], doubler, ticks.append))
    assert found == [(2 * n, os.getpid(), "cpu") for n in (1, 2, 3)]
    assert ticks == [1, 2, 3]


def test_several_devices_do_the_same_in_processes_of_their_own():
    """Every result and every tick comes back once."""
    ticks = []
    found = sorted(spread([1, 2, 3, 4], ["cpu", "cpu"], doubler, ticks.append))
    assert [result for result, _, _ in found] == [2, 4, 6, 8]
    assert os.getpid() not in {process for _, process, _ in found}
    assert sum(ticks) == 10


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (2, SettingsInvalid, "leave it out"),
        ("start", SettingsInvalid, "train it"),
        ("killed", InternalError, "--batch"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_told_with_its_hint(fault, error, said):
    start = functools.partial(doubler, fault=fault)
    with pytest.raises(error) as caught:
        list(spread([1, 2], ["cpu", "cpu"], start, lambda count: None))
    assert said in caught.value.hint


def test_nothing_left_needs_nobody():
    """What goes on with a finished run, on several devices."""
    assert list(spread([], ["cpu", "cpu"], doubler, lambda count: None)) == []


def test_who_stops_reading_early_leaves_no_process():
    """As after Ctrl-C: what has begun is not waited for."""
    before = set(children())  # nodes of a fixture that tests share
    running = spread(range(1000), ["cpu", "cpu"], doubler, lambda count: None)
    next(running)
    running.close()
    assert set(children()) <= before
