"""Latents of 64 MiB through a real Decode call against a raw TLS 1.3 socket of the standard library.

    python -m benchmarks.speed.wire [--short]

The source's half runs in this process, pinned to the first core; the target's node in another, pinned to the second:
real certificates, port, interceptors, checks, digests and the egress guard. Only the engine is a stub that answers at
once. The baseline moves the same bytes between this process and a third one, also on the second core, by
`ssl.SSLSocket`, which neither checks nor keeps them; beside it the same with a SHA-256 at the receiver, which the
protocol needs. All take turns in one run.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from benchmarks.speed.shared.two_nodes import processor_seconds
from ddib_fed.bridge.control import Control
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.latent import Latent, moments
from ddib_fed.trust import tls
from ddib_fed.wire.contract import Contract, ContractSide
from ddib_fed.wire.latent import ApprovedLatent, approve
from source_node.decode_call import Answer
from source_node.remote import Remote, Remotes
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_institution

POINTS = 8 << 20
LATENT_BYTES = POINTS * 2 * 4
PIECE = 1 << 20
MEBIBYTE = float(1 << 20)
# A share of what the raw socket moves; what is bounded.
LEAST = 0.60


def pin(core: int) -> None:
    """Keep this process and its threads on one core, where the machine has two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core % len(cores)]})


# The target's node


def serve_node(folder: Path, port: Connection, rows_back: int) -> None:
    """South's node, whose engine answers every latent at once, with `rows_back` of its points, until told to stop."""
    pin(1)
    from benchmarks.speed.shared.stub_target import StubTarget

    with StubTarget(folder, POINTS, rows_back) as target:
        port.send(target.address)
        port.recv()


# The baseline


def serve_raw(folder: Path, port: Connection, rows_back: int) -> None:
    """Takes latents over TLS 1.3 into one buffer, and sends as much back as the node does.

    Each is preceded by one byte, which says whether its digest is computed.
    """
    pin(1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "state/pki/leaf.pem", folder / "state/pki/leaf.key")
    buffer = memoryview(bytearray(LATENT_BYTES))
    back = buffer[: rows_back * 8]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port.send(listening.getsockname()[1])
        with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
            while digest := connection.recv(1):
                receive(connection, buffer)
                if digest == b"d":
                    hashlib.sha256(buffer).digest()
                connection.sendall(back)


def receive(connection: ssl.SSLSocket, buffer: memoryview) -> None:
    """Fill the buffer."""
    received = 0
    while received < len(buffer):
        count = connection.recv_into(buffer[received:])
        if count == 0:
            raise EOFError("the other end of the baseline is gone")
        received += count


class Raw:
    """The sender's half of the baseline."""

    def __init__(self, port: int, data: memoryview, rows_back: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname, context.verify_mode = (
            False,
            ssl.CERT_NONE,
        )  # the same machine, and nobody's data
        self._socket = context.wrap_socket(socket.create_connection(("127.0.0.1", port)))
        self._data = data
        self._back = memoryview(bytearray(rows_back * 8))

    def run(self, items: int, *, digest: bool = False) -> float:
        """MiB of latents a second, with their digests at the receiver or without."""
        started = time.perf_counter()
        for _ in range(items):
            self._socket.sendall(b"d" if digest else b"-")
            for start in range(0, len(self._data), PIECE):
                self._socket.sendall(self._data[start : start + PIECE])
            receive(self._socket, self._back)
        return items * LATENT_BYTES / MEBIBYTE / (time.perf_counter() - started)

    def close(self) -> None:
        """End the stream."""
        self._socket.close()


# The source's half


class Federated:
    """The source's half: the guard, the call, and the check of what comes back."""

    def __init__(self, remote: Remote, contract: Contract, latent: Latent) -> None:
        self._remote, self._contract, self._latent = remote, contract, latent
        mean, std = moments(latent.data)
        self._statistics = LatentStatistics(mean, std, 0.0, 0.0, latent.data.size)

    def run(self, items: int) -> float:
        """MiB of latents a second; every answer is there at the end."""
        started = time.perf_counter()
        control = Control()
        call = self._remote.decode(
            self._contract,
            request_id="benchmark",
            solver=SolverSettings(evaluations=8),
            round_trip=False,
            items=items,
            latents=self._latents(items),
            control=control,
        )
        with call:
            answered = sum(isinstance(each, Answer) for each in call)
        assert answered == items
        return items * LATENT_BYTES / MEBIBYTE / (time.perf_counter() - started)

    def _latents(self, items: int) -> Iterator[ApprovedLatent | None]:
        for item in range(items):
            yield approve(self._latent, self._contract, self._statistics, item=item)
        yield None


class Spent:
    """CPU of both processes for one latent: what wall time becomes on a machine with nothing else to do.

    Args:
        items: Latents of one run.
    """

    def __init__(self, items: int) -> None:
        self._items = items
        self._values: dict[str, list[float]] = {}

    def measuring(self, name: str, pid: int, run: Callable[[], float]) -> Callable[[], float]:
        """The same run, whose CPU is kept under a name."""

        def measured() -> float:
            here, there = time.process_time(), processor_seconds(pid)
            rate = run()
            for end, before, now in (
                ("sender", here, time.process_time()),
                ("receiver", there, processor_seconds(pid)),
            ):
                each = 1_000 * (now - before) / self._items
                self._values.setdefault(f"{name}: CPU of the {end}, a latent", []).append(each)
            return rate

        return measured

    def tell(self, report: Report) -> None:
        """Add the figures."""
        for name, values in self._values.items():
            report.add(name, values, "ms")


def side(institution: str) -> ContractSide:
    """North's half of the contract."""
    return ContractSide(
        institution=institution,
        domain="moons",
        sample_kind="point",
        sample_shape=(2,),
        model_sha256=bytes(32),
        terminal_lambda=-5.0,
        initial_lambda=5.0,
    )


def started(
    stack: ExitStack, serve: Callable[..., None], *arguments: object
) -> tuple[Connection, object, int]:
    """Another process: a pipe to it, what it says first, and its id; it is ended with the stack."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(arguments[0], theirs, *arguments[1:]), daemon=True)
    process.start()
    stack.callback(process.join, 10)
    stack.callback(process.terminate)
    said = ours.recv()
    assert process.pid is not None
    return ours, said, process.pid


def measure_way(
    report: Report, form: Form, stack: ExitStack, north: Institution, south: Institution, rows_back: int
) -> None:
    """One way, or there and back: with `rows_back` points in each answer."""
    label = "one way" if rows_back == 1 else "there and back"
    latent = Latent.from_array(np.random.default_rng(0).standard_normal((POINTS, 2), dtype=np.float32))
    told, address, node = started(stack, serve_node, south.folder.parent, rows_back)
    _, port, other = started(stack, serve_raw, south.folder.parent, rows_back)
    assert isinstance(address, str)
    assert isinstance(port, int)
    north.admit(south, address)
    remotes = Remotes(tls.PeerChannels(north.pki, north.store), max_file_bytes=2 * LATENT_BYTES)
    stack.callback(remotes.close)
    remote = remotes.get(south.name)
    federated = Federated(remote, remote.negotiate(side(north.name), "moons", Control()), latent)
    raw = Raw(port, latent.wire(), rows_back)
    stack.callback(raw.close)
    items, repeats = form.pick(4, 8), form.pick(4, 9)
    federated.run(1)  # connections, windows and buffers are there
    raw.run(1)
    names = [f"{what}, {label}" for what in ("Decode call", "raw TLS socket", "raw TLS socket and SHA-256")]
    spent = Spent(items)
    rates = interleaved(
        {
            names[0]: spent.measuring(names[0], node, lambda: federated.run(items)),
            names[1]: spent.measuring(names[1], other, lambda: raw.run(items)),
            names[2]: spent.measuring(names[2], other, lambda: raw.run(items, digest=True)),
        },
        repeats,
    )
    told.send("stop")
    spent.tell(report)
    report.add_times(rates, "MiB/s")
    report.add(f"Decode call / raw TLS socket and SHA-256, {label}", ratio(rates, names[0], names[2]), "")
    if rows_back == 1:
        report.bound("Decode call / raw TLS socket", ratio(rates, names[0], names[1]), at_least=LEAST)


def measure(form: Form) -> Report:
    """Latents of 64 MiB through a Decode call and through a raw TLS socket."""
    pin(0)
    report = Report(
        f"Latents of {LATENT_BYTES >> 20} MiB from one process to another, each pinned to a core of its own: a Decode "
        "call with a stub for the engine, and a TLS 1.3 socket of the standard library that moves the same bytes."
    )
    ways = [1] if form.short else [1, POINTS]
    for rows_back in ways:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            north = make_institution(Path(folder) / "north", "north.example")
            south = make_institution(Path(folder) / "south", "south.example")
            south.admit(north)
            measure_way(report, form, stack, north, south, rows_back)
    return report


if __name__ == "__main__":
    raise SystemExit(main("wire", measure))
