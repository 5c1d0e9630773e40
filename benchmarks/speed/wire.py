"""Latents of 64 MiB through a real Decode call against a raw TLS 1.3 socket of the standard library.

    python -m benchmarks.speed.wire [--short]

The source's half runs in this process, the target's node in another: real certificates, port, interceptors, checks,
digests and the egress guard. Only the engine is a stub that answers at once. No process is pinned to a core, neither
the node's nor those of the baselines: as nodes are run, gRPC's threads and the node's own may use all cores.

The baseline moves the same bytes between this process and a third one by `ssl.SSLSocket`, which neither checks nor
keeps them; beside it the same with a SHA-256 at the receiver, which the protocol needs. All take turns in one run.
Every process keeps freed memory as nodes do.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from benchmarks.speed.shared.wire_baselines import (
    LATENT_BYTES,
    MEBIBYTE,
    Raw,
    as_nodes_do,
    serve_raw,
)
from ddib_fed.diffusion.gaussianity import LatentStatistics
from ddib_fed.engine.party import Control
from ddib_fed.latent import Latent, moments
from ddib_fed.protocol.contract import Contract
from ddib_fed.protocol.latent import ApprovedLatent, approve
from ddib_fed.security import tls
from ddib_fed.testing import cpu_seconds
from ddib_fed.v1 import common_pb2, decoding_pb2
from ddib_fed.v1.decoding_pb2 import ContractSide
from source_node.remote import PeerAnswer, Remote, Remotes
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_institution

POINTS = LATENT_BYTES // (2 * 4)
# A share of what the raw socket moves; what is bounded.
LEAST = 0.60
WHAT = ("Decode call", "raw TLS socket", "raw TLS socket and SHA-256")


# The target's node


def serve_node(folder: Path, port: Connection, rows_back: int) -> None:
    """South's node, whose engine answers every latent at once, with `rows_back` of its points, until it is stopped."""
    as_nodes_do()
    from benchmarks.speed.shared.stub_target import StubTarget

    with StubTarget(folder, POINTS, rows_back) as target:
        port.send(target.address)
        port.recv()


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
        header = decoding_pb2.DecodeHeader(
            contract_sha256=self._contract.digest,
            request_id="benchmark",
            solver=common_pb2.SolverSettings(evaluations=8),
            items=items,
        )
        with self._remote.decode(self._contract, header, self._latents(items), control) as call:
            answered = sum(isinstance(each, PeerAnswer) for each in call)
        assert answered == items
        return items * LATENT_BYTES / MEBIBYTE / (time.perf_counter() - started)

    def _latents(self, items: int) -> Iterator[ApprovedLatent | None]:
        for item in range(items):
            yield approve(self._latent, self._contract, self._statistics, item=item)
        yield None


class Spent:
    """CPU of both processes for one latent: what wall time becomes on a machine with nothing else to do."""

    def __init__(self, items: int) -> None:
        self._items = items
        self._values: dict[str, list[float]] = {}

    def measuring(self, name: str, pid: int, run: Callable[[], float]) -> Callable[[], float]:
        """The same run, whose CPU is kept under a name."""

        def measured() -> float:
            here, there = time.process_time(), cpu_seconds(pid)
            rate = run()
            for end, before, now in (
                ("sender", here, time.process_time()),
                ("receiver", there, cpu_seconds(pid)),
            ):
                each = 1_000 * (now - before) / self._items
                self._values.setdefault(f"{name}: CPU of the {end}, a latent", []).append(each)
            return rate

        return measured

    def tell(self, report: Report) -> None:
        for name, values in self._values.items():
            report.add(name, values, "ms")


def side(institution: str) -> ContractSide:
    """North's half of the contract."""
    return ContractSide(
        institution=institution,
        domain="moons",
        sample_kind="point",
        sample_shape=(2,),
        size_rule="none",
        value_range="unit-std",
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
    stack.callback(ours.close)
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
    stopping, address, node = started(stack, serve_node, south.folder.parent, rows_back)
    _, port, socket_end = started(stack, serve_raw, south.folder.parent, rows_back)
    assert isinstance(address, str)
    assert isinstance(port, int)
    north.admit(south, address)
    remotes = Remotes(tls.PeerChannels(north.pki, north.store), max_file_bytes=2 * LATENT_BYTES)
    stack.callback(remotes.channels.close)
    remote = remotes.get(south.name)
    federated = Federated(remote, remote.negotiate(side(north.name), "moons", Control()), latent)
    raw = Raw(port, latent.wire(), rows_back)
    stack.callback(raw.close)
    items, repeats = form.pick(4, 8), form.pick(6, 9)
    for each in (federated, raw):
        each.run(1)  # connections, windows and buffers are there
    call, plain, hashed = (f"{what}, {label}" for what in WHAT)
    spent = Spent(items)
    rates = interleaved(
        {
            call: spent.measuring(call, node, lambda: federated.run(items)),
            plain: spent.measuring(plain, socket_end, lambda: raw.run(items)),
            hashed: spent.measuring(hashed, socket_end, lambda: raw.run(items, digest=True)),
        },
        repeats,
    )
    stopping.send("stop")
    spent.tell(report)
    report.add_times(rates, "MiB/s")
    report.add(f"Decode call / {hashed}", ratio(rates, call, hashed), "")
    if rows_back == 1:
        report.bound("Decode call / raw TLS socket", ratio(rates, call, plain), at_least=LEAST)


def measure(form: Form) -> Report:
    """Latents of 64 MiB through a Decode call and through a raw TLS socket."""
    as_nodes_do()
    report = Report(
        f"Latents of {LATENT_BYTES >> 20} MiB from one process to another, none pinned to a core: a Decode call with "
        "a stub for the engine, and a TLS 1.3 socket of the standard library that moves the same bytes."
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
