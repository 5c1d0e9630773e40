"""Messages to a spawned process arrive as they were sent; the process ends with its channel, and with its parent."""

from __future__ import annotations

import gc
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ddib_fed.bridge.workers import processes
from ddib_fed.bridge.workers.process import WorkerProcess, pack, portable, unpack
from ddib_fed.errors import InternalError, SettingsInvalid
from tests.bridge.workers.echoing import deaf, echo
from tests.bridge.workers.orphans import abandoned, all_ended
from tests.source_node.conftest import wait_until

pytestmark = pytest.mark.slow  # processes are started
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture(scope="module")
def echoing():
    worker = WorkerProcess(echo, name="echo")
    yield worker
    worker.end()


def test_tensors_are_packed_without_a_copy_of_their_bytes():
    """What is pickled is a few hundred bytes; the rest is the tensor's own memory."""
    x = torch.arange(1_000_000.0).reshape(10, -1)
    head, arrays = pack({"x": x})
    assert len(head) < 500
    (raw,) = arrays
    assert np.frombuffer(raw, np.float32).ctypes.data == x.data_ptr()
    assert torch.equal(unpack(head, [bytearray(raw)])["x"], x)


@pytest.mark.parametrize(
    "message",
    [
        np.zeros((0, 2), np.float32),
        torch.arange(6).reshape(2, 3),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(4, 6)[:, ::2],
        (np.arange(3_000_000, dtype=np.int64), "and", torch.ones(5)),
    ],
    ids=["empty", "integers", "bfloat16", "strided", "several, larger than the pipe"],
)
def test_what_is_sent_comes_back(echoing, message):
    """Arrays and tensors, through the pipe and back; what came may be written to."""
    echoing.channel.send(message)
    found = echoing.channel.receive()
    assert pack(found)[1] == pack(message)[1]
    first = found[0] if isinstance(found, tuple) else found
    first[...] = 0


def test_a_terminal_and_a_service_manager_do_not_end_a_worker(echoing):
    """Both signal all processes of a node that is to drain first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(echoing.pid, number)
    echoing.channel.send("still here")
    assert echoing.channel.receive() == "still here"


def test_closing_wakes_who_listens_and_ends_the_process():
    """Another thread is waiting for a message when the channel is closed."""
    worker = WorkerProcess(echo, name="closed")
    worker.channel.send("there")
    assert worker.channel.receive() == "there"
    heard = []

    def listen():
        try:
            worker.channel.receive()
        except EOFError:
            heard.append("end")

    thread = threading.Thread(target=listen)
    thread.start()
    worker.end()
    thread.join(20)
    assert heard == ["end"]
    assert worker.ending == "ended with code 0"


def test_a_process_that_never_looks_is_killed():
    """It is reported as an error."""
    worker = WorkerProcess(deaf, ("busy",), name="deaf")
    assert worker.channel.receive() == "busy"
    worker.end(timeout_s=0.1)
    assert worker.ending == "was killed by SIGKILL"


class Heard:
    """A listener that records its calls, and refuses those that the test names."""

    def __init__(self, refuses=None):
        self.messages, self.refuses = [], refuses
        self.why = queue.SimpleQueue()

    def heard(self, message):
        if message == self.refuses:
            raise MemoryError
        self.messages.append(message)

    def ended(self, why, *, blame):
        self.why.put((why, blame))


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr(processes, "serve", echo)
    return lambda listener: processes._Process("recipe", "echo", listener)


def descriptors():
    gc.collect()
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="open files are counted in /proc")
def test_nothing_stays_open_of_workers_that_ended_by_themselves(worker, monkeypatch):
    """A node that replaces them for months would run out of descriptors; nor of one that could not be started."""
    before = descriptors()
    for _ in range(3):
        listener = Heard()
        worker(listener).send(7)
        assert listener.why.get(timeout=20) == ("ended with code 7", True)

    def full(*_, **__):
        raise BlockingIOError

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(BlockingIOError):
        worker(Heard())
    wait_until(lambda: descriptors() <= before)  # threads that listened let go of theirs


def test_a_worker_whose_message_cannot_be_taken_is_replaced(worker):
    """For want of memory, say: what it was doing would wait for ever."""
    listener = Heard(refuses="too much")
    worker(listener).send("too much")
    assert listener.why.get(timeout=20) == ("was killed by SIGKILL", True)


def test_a_worker_that_a_message_cannot_be_sent_to_is_replaced(worker):
    """Others do what it was to do."""
    listener = Heard()
    worker(listener).send(lambda: "cannot be pickled")
    assert listener.why.get(timeout=20) == ("was killed by SIGKILL", True)


def test_how_a_process_ended_is_told():
    worker = WorkerProcess(echo, name="seven")
    worker.channel.send(7)
    with pytest.raises((EOFError, OSError)):
        worker.channel.receive()
    assert worker.ending == "ended with code 7"
    worker.kill()


@pytest.mark.parametrize("kind", ["worker", "unwarned"])
def test_workers_end_with_a_parent_that_was_killed(tmp_path, kind):
    """SIGKILL leaves the parent no time to say anything; `unwarned` has no help of the kernel."""
    with abandoned(kind, tmp_path, 1) as lines:
        assert all_ended(lines)


def test_an_error_that_cannot_be_sent_is_replaced():
    """One of ours goes as it is, with its hint; one with a lock in it becomes ours."""
    own = SettingsInvalid("no", hint="yes")
    assert portable(own) is own
    foreign = RuntimeError("lost")
    foreign.lock = threading.Lock()
    found = portable(foreign)
    assert isinstance(found, InternalError)
    assert "RuntimeError: lost" in str(found)
