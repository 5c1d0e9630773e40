"""An admitted institution whose root issues certificates as it likes: their holders may ask for Health, and no more."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki, tls
from ddib_fed.v1 import common_pb2, decoding_pb2, decoding_pb2_grpc
from tests.conftest import Evidence
from tests.e2e.harness import Node, Pair
from tests.security.attacks.raw_http2 import HEALTH, WATCH, WINDOW, Raw, message
from tests.security.attacks.watch import Watch, healthy

pytestmark = [pytest.mark.e2e, pytest.mark.promise("standing"), pytest.mark.timeout(300)]

MOST = 64
MOST_MB = 64.0
WORST_S = 1.0
BUSY_WORST_S = 20.0
"""In `make test`, where other tests have the same cores; what is attacked here stopped a node for good."""
EACH = 16
"""Calls of one identity."""
REQUEST_S = 2.0


@dataclass
class Scene:
    """South, which admitted north, and certificates of north's clients."""

    south: Node
    north: Node
    holders: list[Path]

    def channel(self, pki_folder: Path) -> grpc.Channel:
        """To south, with a certificate of north's."""
        return tls.channel(
            f"127.0.0.1:{self.south.port}",
            server_name="node-1.south.example",
            pki_folder=pki_folder,
            roots_pem=(self.south.config.paths.pki / "roots.pem").read_bytes(),
        )

    def decode_is_tried(self) -> str:
        """Why north's node is refused that asks south to decode under a contract that nobody agreed on."""
        with self.channel(self.north.config.paths.pki) as channel:
            solver = common_pb2.SolverSettings(evaluations=48)
            header = decoding_pb2.DecodeHeader(
                contract_sha256=bytes(32), request_id="job", items=1, solver=solver
            )
            messages = iter([decoding_pb2.DecodeRequest(header=header)])
            with pytest.raises(grpc.RpcError) as refused:
                list(decoding_pb2_grpc.DecodingServiceStub(channel).Decode(messages, timeout=10))
        return from_rpc_error(refused.value, "target south.example").reason


@pytest.fixture(scope="module")
def scene(amount: Callable[[int, int], int]) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="ddib-certificates-") as name:
        pair, holders = Pair.create(Path(name)), []
        for number in range(amount(6, MOST)):
            holders.append(Path(name) / f"holder-{number}")
            pki.issue_client(pair.north.config.paths.pki, holders[-1], f"mallory-{number}")
        pair.south.edit("# request_s = 20.0", f"request_s = {REQUEST_S}")
        pair.south.start()
        try:
            yield Scene(pair.south, pair.north, holders)
        finally:
            pair.stop()


Attack = Callable[[Scene, Path, ExitStack], None]


def by_frames(path: str, *, asked: bool = True, window: int = WINDOW) -> Attack:
    """Calls of one identity, held open."""

    def attack(scene: Scene, holder: Path, held: ExitStack) -> None:
        raw = held.enter_context(Raw(scene.south.port, holder, window=window))
        for _ in range(EACH):
            stream = raw.open(path)
            if asked:
                raw.data(stream, message(b""), end=True)
            raw.read()

    return attack


ATTACKS: dict[str, Attack] = {
    "calls without a request": by_frames(HEALTH, asked=False),
    "watches": by_frames(WATCH),
    "answers that are not taken": by_frames(HEALTH, window=0),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    "identities", [pytest.param(1, marks=pytest.mark.long), 6, pytest.param(MOST, marks=pytest.mark.long)]
)
def test_certificates_of_one_institution_take_neither_threads_nor_streams_nor_memory(
    scene: Scene, name: str, identities: int, evidence: Evidence, request: pytest.FixtureRequest
) -> None:
    """While all of them are held: Health in time, memory within 64 MB, and their own node is served."""
    with Watch(scene.south) as watch, ExitStack() as held:
        for holder in scene.holders[:identities]:
            ATTACKS[name](scene, holder, held)
        time.sleep(0.5)
        refused = scene.decode_is_tried()
    evidence.figure(
        f"{identities}, {name}: +{max(watch.grown_mb, 0):.0f} MB, Health at most {watch.worst_s:.2f} s"
    )
    assert refused == "CONTRACT_UNKNOWN"
    assert watch.asked
    assert watch.grown_mb < MOST_MB, f"{watch.grown_mb:.0f} MB"
    assert watch.worst_s < (WORST_S if request.config.getoption("--long") else BUSY_WORST_S)
    assert healthy(scene.south)
