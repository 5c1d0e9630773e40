"""How long an honest peer's small job takes while another admitted peer tries to take the whole target.

    python -m benchmarks.trust.starve [--attack large churn tiny settings idle silent] [--seconds 20] [--set KEY=VALUE]

Two nodes on loopback with the shipped points models, and west, a third institution that south has admitted and that
is hostile: it holds a valid certificate, keeps to the protocol, and sends as much as it can. Meanwhile north's client
has 50 points translated, one job after another. Prints one line of JSON for each attack: seconds of the honest jobs
before and during the attack, the peak of south's resident memory, and what west was given and refused.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np

from benchmarks.speed.shared.harness import ROOT
from benchmarks.speed.shared.two_nodes import arrived, configure, npy_file
from ddib_fed.errors import DdibError
from ddib_fed.latent import Latent
from ddib_fed.rpc.details import from_rpc_error
from ddib_fed.trust import tls
from ddib_fed.v1 import common_pb2, decoding_pb2_grpc
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.wire.contracts.contract import Contract, ContractSide
from ddib_fed.wire.mapping import from_message, to_message
from ddib_fed.wire.streams.chunks import stream
from ddib_fed.wire.version import versions_to_pb
from tests.e2e.harness import Node, Pair, admit, moons

POINTS = 50
LONGEST_S = 60.0
Requests = Iterator[pb.DecodeRequest]


class Hostile:
    """West, as a client of south's DecodingService."""

    def __init__(self, channel: grpc.Channel, evaluations: int) -> None:
        self.stub = decoding_pb2_grpc.DecodingServiceStub(channel)
        self.most = evaluations
        self.contract = self._negotiate()
        self.counts: Counter[str] = Counter()
        self.numbers = itertools.count()

    def _negotiate(self) -> Contract:
        own = ContractSide(
            institution="west.example", domain="moons", sample_kind="point", sample_shape=(2,),
            model_sha256=bytes(32), terminal_lambda=-5.0, initial_lambda=5.0,
        )  # fmt: skip
        request = pb.NegotiateContractRequest(
            versions=versions_to_pb(), source=to_message(own, pb.ContractSide)
        )
        return from_message(self.stub.NegotiateContract(request, timeout=20).contract, Contract)

    def header(self, evaluations: int, items: int) -> pb.DecodeRequest:
        return pb.DecodeRequest(
            header=pb.DecodeHeader(
                contract_sha256=self.contract.digest,
                request_id=f"r{next(self.numbers)}",
                items=items,
                solver=common_pb2.SolverSettings(evaluations=evaluations),
            )
        )

    def latent(self, item: int, rows: int) -> Requests:
        latent = Latent.from_array(np.random.default_rng(item).standard_normal((rows, 2)).astype(np.float32))
        tensor = common_pb2.TensorHeader(
            dtype=common_pb2.DATA_TYPE_FLOAT32,
            shape=latent.data.shape,
            size_bytes=latent.size_bytes,
            sha256=latent.sha256,
        )
        head = pb.LatentHeader(item=item, tensor=tensor, contract_sha256=self.contract.digest)
        return stream(pb.DecodeRequest, "latent", head, latent.data.astype("<f4").tobytes())

    # The attacks: what one stream sends

    def large(self) -> Requests:
        """Four items of 100,000 points, as many evaluations as are allowed."""
        yield self.header(self.most, 4)
        for item in range(4):
            yield from self.latent(item, 100_000)
        threading.Event().wait()

    def churn(self) -> Requests:
        yield self.header(LEAST, 1)
        yield from self.latent(0, 2_048)

    def tiny(self) -> Requests:
        yield self.header(LEAST, 1_000)
        for item in range(1_000):
            yield from self.latent(item, 1)

    def settings(self) -> Requests:
        yield self.header(self.most - next(self.numbers) % (self.most // 2), 1)
        yield from self.latent(0, 1)

    def idle(self) -> Requests:
        yield self.header(8, 1)
        threading.Event().wait()

    def silent(self) -> Requests:
        threading.Event().wait()
        yield from ()

    def keep_on(self, attack: Callable[[], Requests]) -> None:
        """One stream after another, for ever."""
        while True:
            try:
                for answer in self.stub.Decode(attack(), timeout=86_400):
                    self.counts[str(answer.WhichOneof("message"))] += 1
                self.counts["calls"] += 1
            except grpc.RpcError as error:
                self.counts[from_rpc_error(error, "").reason] += 1
                threading.Event().wait(0.05)


LEAST = 8
"""Evaluations that south demands at least."""
STREAMS = {"large": 7, "churn": 38, "tiny": 38, "settings": 7, "idle": 64, "silent": 64}


def attack(name: str, address: str, pki: Path, roots: Path, evaluations: int) -> None:
    """Be west until stdin ends, then print what came back."""
    with tls.channel(
        address, server_name="node-1.south.example", pki_folder=pki, roots_pem=roots.read_bytes()
    ) as channel:
        hostile = Hostile(channel, evaluations)
        for _ in range(STREAMS[name]):
            threading.Thread(target=hostile.keep_on, args=(getattr(hostile, name),), daemon=True).start()
        sys.stdin.read()
        sys.stdout.write(json.dumps(hostile.counts))
        sys.stdout.flush()
        os._exit(0)  # its threads go on for ever, and would find the channel closed


def memory_mb(node: Node) -> float:
    assert isinstance(node.process, subprocess.Popen)
    text = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


class Peak:
    """The peak of a node's resident memory, looked at all the time."""

    def __init__(self, node: Node) -> None:
        self._node, self._over, self.mb = node, threading.Event(), memory_mb(node)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self.mb = max(self.mb, memory_mb(self._node))

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return round(self.mb)


def honest(pair: Pair, seconds: float) -> list[float | str]:
    """Seconds of one job after another for so long; a reason in place of one that failed."""
    found: list[float | str] = []
    until = time.monotonic() + seconds
    while not found or time.monotonic() < until:
        try:
            found.append(round(arrived(pair, [npy_file(moons(POINTS))], "checkerboards"), 2))
        except DdibError as error:
            found.append(error.reason)
    return found


def measure(pair: Pair, west: Node, name: str, seconds: float, evaluations: int) -> dict[str, object]:
    """One attack on a fresh south."""
    before = honest(pair, 2.0)
    peak, start = Peak(pair.south), memory_mb(pair.south)
    command = [
        sys.executable, "-m", "benchmarks.trust.starve", "--be", name, f"localhost:{pair.south.port}",
        str(west.config.paths.pki), str(pair.south.folder / "state" / "pki" / "ca.pem"), str(evaluations),
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hostile:
        try:
            threading.Event().wait(5.0)
            during = honest(pair, seconds)
        finally:
            said, _ = hostile.communicate("", timeout=20)
    return {
        "attack": name, "alone_s": before, "attacked_s": during, "memory_mb": [round(start), peak.stop()],
        "west": json.loads(said or "{}"),
    }  # fmt: skip


def main() -> None:
    """Print a line of JSON for each attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--evaluations", type=int, default=1_000, help="that west asks for where it can")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of south's node.toml")
    parser.add_argument("--be", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.be:
        attack(asked.be[0], asked.be[1], Path(asked.be[2]), Path(asked.be[3]), int(asked.be[4]))
        return
    for name in asked.attack:
        with tempfile.TemporaryDirectory(prefix="ddib-starve-") as folder, ExitStack() as ends:
            pair = Pair.create(Path(folder))
            west = Node.create(Path(folder) / "west", "source", "west.example", "moons", pretrained=False)
            admit(pair.south, west)
            configure(
                pair.south.config_path, {"threads": 1, **dict(each.split("=", 1) for each in asked.set)}
            )
            for node in (pair.north, pair.south):
                node.environment["PYTHONPATH"] = str(ROOT)
            ends.callback(pair.stop)
            pair.start()
            found = measure(pair, west, name, asked.seconds, asked.evaluations)
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
