"""A process of our own, and messages to and from it: arrays cross a pipe as raw bytes, and it ends with its parent.

Processes begin anew, never as a fork: torch and CUDA do not survive one. This module imports no torch, so that a
process watches its parent before it loads anything large.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any, Final

from ddib_fed.errors import InternalError
from ddib_fed.processes import killed_with

log = logging.getLogger(__name__)

Serve = Callable[..., None]
"""What runs in the process: called with its `Channel` and further arguments; a function of a module."""
END_S: Final = 5.0
"""How long a process that was asked to end may take before it is killed."""
BEGIN: Final = (
    "import sys; from ddib_fed.bridge.workers.process import begin; begin(*map(int, sys.argv[1:4]))"
)
ORPHANED: Final = 70
"""Exit code of a process whose parent is gone."""


Packed = tuple[bytes, list[memoryview]]
"""A message: what was pickled, and the bytes of the arrays in it."""


class _Pickler(pickle.Pickler):
    """Pickles tensors as the arrays that share their memory: torch's own way copies and compresses them."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor) or value.dtype is torch.bfloat16:
            return NotImplemented
        return _tensor, (value.detach().cpu().contiguous().numpy(),)


def _tensor(array: Any) -> Any:
    import torch  # not above: see the module's first lines

    return torch.from_numpy(array)


def pack(message: Any) -> Packed:
    """A message as bytes; those of its arrays and tensors are the memory that they have, not copies."""
    arrays: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _Pickler(head, protocol=5, buffer_callback=arrays.append).dump(message)
    return head.getvalue(), [array.raw() for array in arrays]


def unpack(head: bytes, arrays: Sequence[bytearray]) -> Any:
    return pickle.loads(head, buffers=arrays)  # noqa: S301 - see above


def portable(error: Exception) -> Exception:
    """The error itself if it can be sent; else one of ours that says the same."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was just pickled
    except Exception:  # noqa: BLE001 - whatever its class does when it is pickled
        return InternalError(f"{type(error).__name__}: {error}")
    return error


class Channel:
    """One end of a pipe that carries messages to and from a process that this program started."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        """Send one message; waits while the pipe is full. Any thread may."""
        head, arrays = pack(message)
        with self._sending:
            self._connection.send_bytes(pickle.dumps([array.nbytes for array in arrays]))
            self._connection.send_bytes(head)
            for array in arrays:
                if array.nbytes:
                    self._connection.send_bytes(array)

    def receive(self) -> Any:
        """The next message; one thread at a time."""
        sizes = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - of a process that we started
        head = self._connection.recv_bytes()
        arrays = [bytearray(size) for size in sizes]
        for array in arrays:
            if array:
                self._connection.recv_bytes_into(array)
        return unpack(head, arrays)

    def close(self) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)


class WorkerProcess:
    """A process that runs `serve(channel, *args)`."""

    def __init__(self, serve: Serve, args: Sequence[Any] = (), *, name: str) -> None:
        ours, theirs = Pipe()
        watched, alive = os.pipe()
        # A file, not its number: closing it twice, from two threads, closes nothing of anybody else.
        self._alive = os.fdopen(alive, "wb", 0)
        inherited = (theirs.fileno(), watched)
        words = [sys.executable, "-c", BEGIN, *map(str, (os.getpid(), *inherited)), name]
        try:
            self._process = subprocess.Popen(words, pass_fds=inherited, stdin=subprocess.DEVNULL)
        except BaseException:
            self._alive.close()
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(watched)
        self.channel = Channel(ours)
        with contextlib.suppress(OSError):  # it ended at once, which whoever reads the channel hears
            self.channel.send(sys.path)  # as this process finds what is to be run
            self.channel.send((serve, tuple(args)))

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, timeout_s: float = END_S) -> None:
        """Close the channel, which tells it to end; kill it when it does not."""
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End it at once, whatever it does, and let go what it took here; of one that has ended, the latter."""
        self._process.kill()
        self._process.wait()
        self.channel.close()
        self._alive.close()

    @property
    def ending(self) -> str:
        """How it ended, for a sentence; waits until it has."""
        code = self._process.wait()
        if code >= 0:
            return f"ended with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"


class Outbox:
    """Messages to a process, sent one after another by a thread of their own: whoever puts one never waits."""

    def __init__(self, process: WorkerProcess, *, name: str) -> None:
        self._process = process
        self._waiting: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._write, name=name, daemon=True).start()

    def put(self, message: Any) -> None:
        self._waiting.put(message)

    def close(self) -> None:
        self._waiting.put(None)

    def _write(self) -> None:
        try:
            while (message := self._waiting.get()) is not None:
                self._process.channel.send(message)
        except OSError:
            pass  # it has ended, which its listener hears
        except Exception:
            log.exception("a message to process %d could not be sent; it is replaced", self._process.pid)
            self._process.kill()


def begin(parent: int, connection: int, watched: int) -> None:
    """What the process runs: see `WorkerProcess`."""
    end_with_parent(parent, watched)
    # A terminal and a service manager signal all processes of a node; when work ends is the parent's decision.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(Connection(connection))
    try:
        sys.path[:] = channel.receive()
        serve, args = channel.receive()
        serve(channel, *args)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent closed the channel: nobody waits for what other threads still compute.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    channel.close()


def end_with_parent(parent: int, watched: int) -> None:
    """End this process soon after its parent ended, however that happened."""

    def watch() -> None:
        os.read(watched, 1)
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    if not killed_with(parent):  # it ended before the kernel was asked
        os._exit(ORPHANED)
