"""Strangers, holders of a certificate and admitted peers that try to take a node down: it serves all the while."""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.security import pki, tls
from ddib_fed.v1 import decoding_pb2, decoding_pb2_grpc
from tests.conftest import Evidence
from tests.e2e.harness import Node, Pair
from tests.security.attacks.raw_http2 import (
    CONTINUATION,
    DATA,
    DECODE,
    DESCRIBE,
    HEADERS,
    HEALTH,
    PING,
    RESET,
    SETTINGS,
    WATCH,
    WINDOW,
    Raw,
    frame,
    message,
)  # fmt: skip
from tests.security.attacks.watch import Watch, healthy

pytestmark = [pytest.mark.e2e, pytest.mark.promise("standing"), pytest.mark.timeout(900)]

MOST_MB = 64.0
WORST_S = 1.0
BUSY_WORST_S = 20.0
"""In `make test`, where other tests have the same cores."""
MIB = 1 << 20
Amount = Callable[[int, int], int]


@dataclass
class Scene:
    """South, which admitted north, and certificates to come with."""

    south: Node
    peer: Path
    holders: list[Path]

    @property
    def holder(self) -> Path:
        return self.holders[0]


@pytest.fixture(scope="module")
def scene(amount: Amount) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="ddib-attacks-") as name:
        pair = Pair.create(Path(name))
        holders = [Path(name) / f"holder-{number}" for number in range(amount(6, 64))]
        for holder in holders:
            pki.issue_client(pair.north.config.paths.pki, holder, f"mallory-{holder.name}")
        pair.south.start()
        try:
            yield Scene(pair.south, pair.north.config.paths.pki, holders)
        finally:
            pair.stop()


def large_message(raw: Raw, path: str, size: int) -> None:
    """One message of `size` bytes, by its head and in fact."""
    stream = raw.open(path)
    raw.data(stream, message(b"", claimed=size))
    zeros = bytes(16_384)
    for _ in range(size // len(zeros)):
        if not raw.send(frame(DATA, 0, stream, zeros)):
            return
        raw.read()


@cache
def bomb(size: int) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    parts = [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, packer.flush()])


def bombs(raw: Raw, path: str, size: int, count: int) -> None:
    """Compressed messages that are `size` bytes once they are inflated."""
    packed = message(bomb(size), compressed=True)
    for _ in range(count):
        stream = raw.open(path, ("grpc-encoding", "gzip"))
        raw.data(stream, packed, end=path != DECODE)
        raw.read(0.05)
    raw.read(1.0)


def streams(raw: Raw, path: str, count: int) -> None:
    """So many calls, none of which sends its message or its end."""
    for _ in range(count):
        raw.open(path)
        raw.read()
        if raw.ended:
            return
    raw.read(1.0)


def resets(raw: Raw, path: str, count: int) -> None:
    """Calls that are taken back at once, which costs the caller nothing (CVE-2023-44487)."""
    for _ in range(count):
        stream = raw.open(path)
        if not raw.send(frame(RESET, 0, stream, (8).to_bytes(4, "big"))):
            return
        raw.read()


# A literal field with a name and a value of 4 KiB, never indexed; and as many small ones as are in a frame.
LARGE_FIELD = b"\x10\x01x\x7f\x81\x1f" + b"y" * 4_096
SMALL_FIELDS = b"\x00\x01x\x01y" * 3_200


def endless_headers(raw: Raw, path: str, size: int, field: bytes = LARGE_FIELD) -> None:
    """A block of headers that never ends (CVE-2024-27316)."""
    raw.send(frame(HEADERS, 0, 1, raw.headers(path)))
    for _ in range(size // len(field)):
        if not raw.send(frame(CONTINUATION, 0, 1, field)):
            return
        raw.read()


def many_headers(raw: Raw, path: str, count: int) -> None:
    """Calls with 64 KiB of metadata each."""
    for _ in range(count):
        raw.open(path, *((f"x-{number}", "y" * 4_000) for number in range(16)), end=True)
        raw.read()
        if raw.ended:
            return


def pings(raw: Raw, _: str, count: int) -> None:
    for _number in range(count):
        if not raw.send(frame(PING, 0, 0, bytes(8)) + frame(SETTINGS, 0, 0)):
            return


def slow_writers(port: int, pki_folder: Path, count: int, seconds: float) -> None:
    """Calls whose message comes a byte at a time."""
    with ExitStack() as kept:
        writers = [kept.enter_context(Raw(port, pki_folder)) for _ in range(count)]
        calls = [(raw, raw.open(DECODE)) for raw in writers]
        for raw, number in calls:
            raw.data(number, message(b"", claimed=1_000)[:3])
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for raw, number in calls:
                raw.data(number, b"\0")
            calls[0][0].read(0.2)


def slow_readers(port: int, pki_folder: Path, count: int, seconds: float) -> None:
    """Callers who ask and ask, and take no byte of the answers."""
    with ExitStack() as kept:
        readers = [kept.enter_context(Raw(port, pki_folder, window=0)) for _ in range(count)]
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(raw.ended for raw in readers):
            for raw in readers:
                number = raw.open(DESCRIBE)
                raw.data(number, message(b"\x0a\x04\x08\x01\x10\x04"), end=True)


def of_one_institution(path: str, *, asked: bool = True, window: int = WINDOW) -> Attack:
    """Calls of every holder of a certificate of north's, held open; north's own node is served meanwhile."""

    def run(scene: Scene, _: Amount) -> None:
        with ExitStack() as held:
            for holder in scene.holders:
                raw = held.enter_context(Raw(scene.south.port, holder, window=window))
                for _number in range(16):
                    stream = raw.open(path)
                    if asked:
                        raw.data(stream, message(b""), end=True)
                    raw.read()
            time.sleep(0.5)
            with tls.channel(
                f"127.0.0.1:{scene.south.port}",
                server_name="node-1.south.example",
                pki_folder=scene.peer,
                roots_pem=(scene.south.config.paths.pki / "roots.pem").read_bytes(),
            ) as channel:
                ask = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
                decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(ask, timeout=10)

    return run


Attack = Callable[[Scene, Amount], None]


def by(who: str, attack: Callable[..., None], path: str, *sizes: tuple[int, int]) -> Attack:
    """An attack over one connection of the admitted peer, or of the holder of a certificate."""

    def run(scene: Scene, amount: Amount) -> None:
        with Raw(scene.south.port, getattr(scene, who)) as raw:
            attack(raw, path, *(amount(*size) for size in sizes))

    return run


def crowd(attack: Callable[..., None], short: int, long: int) -> Attack:
    """An attack over many connections of the admitted peer, for some seconds."""

    def run(scene: Scene, amount: Amount) -> None:
        attack(scene.south.port, scene.peer, amount(short, long), amount(2, 30))

    return run


ATTACKS: dict[str, Attack] = {
    "512 MiB message of the peer": by("peer", large_message, DECODE, (32 * MIB, 512 * MIB)),
    "512 MiB message of a holder": by("holder", large_message, HEALTH, (32 * MIB, 512 * MIB)),
    "compressed bombs of the peer": by("peer", bombs, DECODE, (256 * MIB, 2_048 * MIB), (2, 20)),
    "compressed bombs of the peer, one call": by("peer", bombs, DESCRIBE, (256 * MIB, 2_048 * MIB), (2, 20)),
    "compressed bombs of a holder": by("holder", bombs, HEALTH, (256 * MIB, 2_048 * MIB), (2, 20)),
    "10,000 streams of the peer": by("peer", streams, DECODE, (1_000, 10_000)),
    "10,000 calls of the peer": by("peer", streams, DESCRIBE, (1_000, 10_000)),
    "10,000 calls of a holder": by("holder", streams, HEALTH, (1_000, 10_000)),
    "resets of the peer": by("peer", resets, DECODE, (2_000, 100_000)),
    "resets of a holder": by("holder", resets, HEALTH, (2_000, 100_000)),
    "endless headers": by("holder", endless_headers, HEALTH, (16 * MIB, 256 * MIB)),
    "endless small headers of the peer": by(
        "peer", partial(endless_headers, field=SMALL_FIELDS), DECODE, (32 * MIB, 256 * MIB)
    ),
    "large headers": by("holder", many_headers, HEALTH, (200, 5_000)),
    "pings": by("holder", pings, HEALTH, (2_000, 100_000)),
    "64 certificates, calls without a request": of_one_institution(HEALTH, asked=False),
    "64 certificates, watches": of_one_institution(WATCH),
    "64 certificates, answers that are not taken": of_one_institution(HEALTH, window=0),
    "slow writers": crowd(slow_writers, 8, 64),
    "slow readers": crowd(slow_readers, 2, 16),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_node_serves_under_attack(
    scene: Scene, name: str, amount: Amount, evidence: Evidence, request: pytest.FixtureRequest
) -> None:
    """Messages, bombs, streams, resets, headers and slow ends: memory within 64 MB, Health in time, then as before."""
    long = bool(request.config.getoption("--long"))
    with Watch(scene.south) as watch:
        ATTACKS[name](scene, amount)
        time.sleep(0.5)
    evidence.figure(f"{name}: +{max(watch.grown_mb, 0):.0f} MB, Health at most {watch.worst_s:.2f} s")
    assert watch.asked
    assert watch.grown_mb < MOST_MB, f"{watch.grown_mb:.0f} MB"
    assert watch.worst_s < (WORST_S if long else BUSY_WORST_S)
    assert healthy(scene.south)
