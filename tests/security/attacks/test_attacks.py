"""Strangers, holders of a certificate and admitted peers that try to take a node down: it serves all the while."""

import multiprocessing
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Self

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.errors import ImageTooLarge, PictureMisfit
from ddib_fed.node.connections import MOST_CONNECTIONS
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.record import Part, Settings
from ddib_fed.security import tls
from ddib_fed.testing import NodeProcess, TwoNodes, ddib
from ddib_fed.v1 import common_pb2, decoding_pb2, decoding_pb2_grpc, translation_pb2_grpc
from ddib_fed.v1 import translation_pb2 as pb
from tests.conftest import Evidence
from tests.data_modules.picture_examples import deep_png
from tests.e2e.harness import lone_node, two_nodes
from tests.e2e.processes import fork_node
from tests.node.institutions import issue_client
from tests.node.picture_examples import noise, png_bytes, save_pictures_model
from tests.security.attacks import raw_http2 as http2
from tests.source_node.jobs.job_examples import in_threads
from tests.source_node.served import job_header

pytestmark = [pytest.mark.e2e, pytest.mark.promise("standing"), pytest.mark.timeout(1_800)]

MB = 1e6
PAUSE_S, LONGEST_S = 0.05, 60.0
USUALLY = 5
"""Answers of Health before an attack, whose mean is the unit of time."""


def _channel(node: NodeProcess) -> grpc.Channel:
    address, name = f"127.0.0.1:{node.port}", f"node-1.{node.institution}"
    return tls.channel(address, server_name=name, pki_folder=node.config.paths.pki)


def _serves(channel: grpc.Channel) -> bool:
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def healthy(node: NodeProcess) -> bool:
    """Whether it answers Health within the bound of any call; a busy machine may need several tries."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        with _channel(node) as channel:
            if _serves(channel):
                return True
    return False


class Watch:
    """While it is entered, asks Health over new connections and over one that stays, and looks at the process."""

    def __init__(self, node: NodeProcess) -> None:
        assert node.process is not None
        self._node, self._pid = node, node.process.pid
        self.grown_mb, self.files, self.threads_more, self.worst_s = 0.0, 0, 0, 0.0
        self.asked = self.failed = 0
        self._over = threading.Event()
        tasks = (self._ask, self._ask_again, self._look)
        self._threads = [threading.Thread(target=each, daemon=True) for each in tasks]

    def __enter__(self) -> Self:
        assert healthy(self._node)
        started = time.monotonic()
        for _ in range(USUALLY):
            assert healthy(self._node)
        self.usual_s = (time.monotonic() - started) / USUALLY
        self._before, self._threads_before = self._resident(), self._count("task")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def is_late(self, times: int) -> bool:
        """Return True if Health once took so many times as long as on this machine without the attack."""
        return self.worst_s > times * max(self.usual_s, PAUSE_S)

    def seen(self) -> str:
        return (
            f"Health at most {self.worst_s:.2f} s, usually {self.usual_s:.2f} s, "
            f"of {self.asked} tries {self.failed} failed, "
            f"+{self.grown_mb:.0f} MB, {self.files} files, +{self.threads_more} threads"
        )

    def _ask(self) -> None:
        self._time(lambda: healthy(self._node))

    def _ask_again(self) -> None:
        with _channel(self._node) as channel:
            self._time(lambda: _serves(channel))

    def _time(self, answers: Callable[[], bool]) -> None:
        while not self._over.wait(PAUSE_S):
            started, well = time.monotonic(), False
            while not well and time.monotonic() - started < LONGEST_S:
                well = answers()
                self.asked += 1
                self.failed += not well
            self.worst_s = max(self.worst_s, time.monotonic() - started)

    def _resident(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * 4096

    def _count(self, what: str) -> int:
        return len(list(Path(f"/proc/{self._pid}/{what}").iterdir()))

    def _look(self) -> None:
        while not self._over.wait(PAUSE_S):
            self.grown_mb = max(self.grown_mb, (self._resident() - self._before) / MB)
            self.files = max(self.files, self._count("fd"))
            self.threads_more = max(self.threads_more, self._count("task") - self._threads_before)


MOST_MB = 64.0
LATE = 400, 20
"""Times the usual answer of Health: in `make test`, where other tests have the same cores, and in the long form.

gRPC itself would give a silent connection two minutes.
"""
LATE_ON_BUSY_CORES = 400, 40
MIB = 1 << 20
Amount = Callable[[int, int], int]


@dataclass
class Scene:
    """South, which admitted north, and certificates to come with."""

    south: NodeProcess
    peer: Path
    holders: list[Path]

    def connect(self, who: str) -> http2.Raw:
        return http2.Raw(self.south.port, self.peer if who == "peer" else self.holders[0])


@pytest.fixture(scope="module")
def scene(amount: Amount) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="ddib-attacks-") as name:
        pair = two_nodes(Path(name))
        holders = [Path(name) / f"holder-{number}" for number in range(amount(6, 64))]
        for holder in holders:
            issue_client(pair.source.config.paths.pki, holder, f"mallory-{holder.name}")
        yield Scene(pair.target.start(), pair.source.config.paths.pki, holders)
        pair.kill()


def large_message(raw: http2.Raw, path: str, size: int) -> None:
    """One message of `size` bytes, by its head and in fact."""
    stream = raw.open(path)
    raw.data(stream, http2.message(b"", claimed=size))
    zeros = bytes(16_384)
    for _ in range(size // len(zeros)):
        if not raw.send(http2.frame(http2.DATA, 0, stream, zeros)):
            return
        raw.read()


@cache
def bomb(size: int) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    parts = [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, packer.flush()])


def bombs(raw: http2.Raw, path: str, size: int, count: int) -> None:
    """Compressed messages that are `size` bytes once they are inflated."""
    packed = http2.message(bomb(size), compressed=True)
    for _ in range(count):
        stream = raw.open(path, ("grpc-encoding", "gzip"))
        raw.data(stream, packed, end=path != http2.DECODE)
        raw.read(0.05)
    raw.read(1.0)


def calls(raw: http2.Raw, path: str, count: int, *, reset: bool = False, large: bool = False) -> None:
    """So many calls that send neither message nor end, are taken back at once (CVE-2023-44487), or have 64 KiB of
    metadata.
    """
    metadata = [(f"x-{number}", "y" * 4_000) for number in range(16 if large else 0)]
    for _ in range(count):
        stream = raw.open(path, *metadata, end=large)
        if reset:
            raw.send(http2.frame(http2.RESET, 0, stream, (8).to_bytes(4, "big")))
        raw.read()
        if raw.ended:
            return
    raw.read(1.0)


# A literal field with a name and a value of 4 KiB, never indexed; and as many small ones as are in a frame.
LARGE_FIELD = b"\x10\x01x\x7f\x81\x1f" + b"y" * 4_096
SMALL_FIELDS = b"\x00\x01x\x01y" * 3_200


def endless_headers(raw: http2.Raw, path: str, size: int, field: bytes = LARGE_FIELD) -> None:
    """A block of headers that never ends (CVE-2024-27316)."""
    raw.send(http2.frame(http2.HEADERS, 0, 1, raw.headers(path)))
    for _ in range(size // len(field)):
        if not raw.send(http2.frame(http2.CONTINUATION, 0, 1, field)):
            return
        raw.read()


def pings(raw: http2.Raw, _: str, count: int) -> None:
    for _number in range(count):
        if not raw.send(http2.frame(http2.PING, 0, 0, bytes(8)) + http2.frame(http2.SETTINGS, 0, 0)):
            return


def slow_writers(port: int, pki_folder: Path, count: int, seconds: float) -> None:
    """Calls whose message comes a byte at a time."""
    with ExitStack() as kept:
        writers = [kept.enter_context(http2.Raw(port, pki_folder)) for _ in range(count)]
        calls = [(raw, raw.open(http2.DECODE)) for raw in writers]
        for raw, number in calls:
            raw.data(number, http2.message(b"", claimed=1_000)[:3])
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for raw, number in calls:
                raw.data(number, b"\0")
            calls[0][0].read(0.2)


def slow_readers(port: int, pki_folder: Path, count: int, seconds: float) -> None:
    """Callers who ask and ask, and take no byte of the answers."""
    with ExitStack() as kept:
        readers = [kept.enter_context(http2.Raw(port, pki_folder, window=0)) for _ in range(count)]
        until = time.monotonic() + seconds
        while time.monotonic() < until and not all(raw.ended for raw in readers):
            for raw in readers:
                number = raw.open(http2.DESCRIBE)
                raw.data(number, http2.message(b"\x0a\x04\x08\x01\x10\x04"), end=True)


def of_one_institution(path: str, *, asked: bool = True, window: int = http2.WINDOW):
    """Calls of every holder of a certificate of north's, held open; north's own node is served meanwhile."""

    def run(scene: Scene, _: Amount) -> None:
        with ExitStack() as held:
            for holder in scene.holders:
                raw = held.enter_context(http2.Raw(scene.south.port, holder, window=window))
                for _number in range(16):
                    stream = raw.open(path)
                    if asked:
                        raw.data(stream, http2.message(b""), end=True)
                    raw.read()
            time.sleep(0.5)
            with tls.channel(
                f"127.0.0.1:{scene.south.port}",
                server_name="node-1.south.example",
                pki_folder=scene.peer,
                roots_pem=(scene.south.config.paths.pki / "roots.pem").read_bytes(),
            ) as channel:
                ask = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
                decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(ask, timeout=60)

    return run


Attack = Callable[[Scene, Amount], None]


def by(who: str, attack: Callable[..., None], path: str, *sizes: tuple[int, int]) -> Attack:
    """An attack over one connection of the admitted peer, or of the holder of a certificate."""

    def run(scene: Scene, amount: Amount) -> None:
        with scene.connect(who) as raw:
            attack(raw, path, *(amount(*size) for size in sizes))

    return run


def crowd(attack: Callable[..., None], short: int, long: int) -> Attack:
    """An attack over many connections of the admitted peer, for some seconds."""

    def run(scene: Scene, amount: Amount) -> None:
        attack(scene.south.port, scene.peer, amount(short, long), amount(2, 30))

    return run


ATTACKS: dict[str, Attack] = {
    "512 MiB message of the peer": by("peer", large_message, http2.DECODE, (32 * MIB, 512 * MIB)),
    "compressed bombs of the peer": by("peer", bombs, http2.DECODE, (256 * MIB, 2_048 * MIB), (2, 20)),
    "compressed bombs of a holder": by("holder", bombs, http2.HEALTH, (256 * MIB, 2_048 * MIB), (2, 20)),
    "10,000 streams of the peer": by("peer", calls, http2.DECODE, (1_000, 10_000)),
    "10,000 calls of the peer": by("peer", calls, http2.DESCRIBE, (1_000, 10_000)),
    "resets of the peer": by("peer", partial(calls, reset=True), http2.DECODE, (2_000, 100_000)),
    "endless headers": by("holder", endless_headers, http2.HEALTH, (16 * MIB, 256 * MIB)),
    "endless small headers of the peer": by(
        "peer", partial(endless_headers, field=SMALL_FIELDS), http2.DECODE, (12 * MIB, 256 * MIB)
    ),
    "large headers": by("holder", partial(calls, large=True), http2.HEALTH, (200, 5_000)),
    "pings": by("holder", pings, http2.HEALTH, (2_000, 100_000)),
    "64 certificates, calls without a request": of_one_institution(http2.HEALTH, asked=False),
    "64 certificates, watches": of_one_institution(http2.WATCH),
    "64 certificates, answers that are not taken": of_one_institution(http2.HEALTH, window=0),
    "slow writers": crowd(slow_writers, 8, 64),
    "slow readers": crowd(slow_readers, 2, 16),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_node_serves_under_attack(scene: Scene, name: str, amount: Amount, evidence: Evidence) -> None:
    """Messages, bombs, streams, resets, headers and slow ends: memory within 64 MB, Health in time, then as before."""
    with Watch(scene.south) as watch:
        ATTACKS[name](scene, amount)
        time.sleep(0.5)
    evidence.figure(f"{name}: +{max(watch.grown_mb, 0):.0f} MB, Health at most {watch.worst_s:.2f} s")
    assert watch.asked
    assert watch.grown_mb < MOST_MB, f"{watch.grown_mb:.0f} MB"
    assert not watch.is_late(amount(*LATE)), watch.seen()
    assert healthy(scene.south)


SAID = {
    "nothing": b"",
    "no TLS": b"GET / HTTP/1.1\r\nHost: south.example\r\n\r\n" * 20,
    "a frame of HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
}


@pytest.fixture
def node(tmp_path: Path, amount: Amount) -> Iterator[NodeProcess]:
    """A target with few open files."""
    made = lone_node(tmp_path / "south")
    made.launch = partial(fork_node, open_files=amount(256, 1_024))
    yield made.start()
    made.kill()


@pytest.fixture
def sockets() -> Iterator[None]:
    """Files enough for a crowd in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("sockets")
@pytest.mark.parametrize("said", SAID)
def test_connections_without_a_certificate_stop_neither_health_nor_status(node, said, amount, evidence):
    """More of them than the node may have files, from the same address as the caller, held open."""
    count = amount(306, 2_000)
    with Watch(node) as watch, ExitStack() as crowd:
        for _ in range(count):
            end = crowd.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=10))
            end.sendall(SAID[said])
        assert "serving" in ddib("status", "--config", node.config_path)
        time.sleep(amount(1, 10))
    evidence.figure(
        f"{count} that say {said}: +{watch.grown_mb:.0f} MB, Health at most {watch.worst_s:.2f} s"
    )
    assert not watch.is_late(amount(*LATE)), watch.seen()
    assert watch.grown_mb < MOST_MB
    assert healthy(node)
    assert "LimitNOFILE" in node.log.read_text()
    assert "Too many open files" not in node.log.read_text()


FLOOD = """
import resource, socket, sys, time
port, seconds, rate, hold = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "held"
here, least = (sys.argv[5], 0), int(sys.argv[6])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held, made, started = [], 0, time.monotonic()
while (passed := time.monotonic() - started) < seconds or made < least:
    if made > rate * passed:
        time.sleep(0.001)
        continue
    try:
        held.append(socket.create_connection(("127.0.0.1", port), timeout=1, source_address=here))
    except OSError:
        continue
    made += 1
    if not hold:
        held.pop().close()
print(made)
"""
BUSY = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


@pytest.mark.parametrize(
    ("held", "rate", "address"),
    [
        ("held", 1_000, "127.0.0.1"),
        pytest.param("held", 2_000, "127.0.0.2", marks=pytest.mark.long),
        pytest.param("closed at once", 3_000, "127.0.0.1", marks=pytest.mark.long),
    ],
)
def test_a_flood_of_connections_delays_no_caller(tmp_path, held, rate, address, amount, evidence):
    """From the caller's own address or another, on busy cores; whoever is not let in tries again."""
    seconds = amount(4, 14)
    node = lone_node(tmp_path / "south").start()
    try:
        with Watch(node) as watch:
            programs = [[BUSY, seconds]] * 2 + [
                [FLOOD, node.port, seconds, rate, held, address, 2 * MOST_CONNECTIONS + 1]
            ]
            running = [
                subprocess.Popen([sys.executable, "-c", *map(str, each)], stdout=subprocess.PIPE, text=True)
                for each in programs
            ]
            made = [int(each.communicate(timeout=20 * seconds)[0] or 0) for each in running][-1]
        flood = f"{made} connections in {seconds} s from {address}, {held}"
        evidence.figure(f"{flood}: {watch.seen()}, on two busy cores")
        assert made > 2 * MOST_CONNECTIONS
        assert not watch.is_late(amount(*LATE_ON_BUSY_CORES)), watch.seen()
        assert watch.grown_mb < 300
        assert watch.files < MOST_CONNECTIONS + 64
        assert watch.threads_more < 32
        assert healthy(node)
    finally:
        node.kill()


JOBS, ITEMS, AGAIN_S, RGBA = 8, 4, 1.0, 6
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Pictures:
    """A pair of nodes of pictures, a client of the source, and the certificate of another one, who attacks it."""

    pair: TwoNodes
    mallory: Path
    client: Client

    @contextmanager
    def attacked(self, file: bytes) -> Iterator[set[str]]:
        """Eight jobs of four such files at a time, again when they end; at last their calls are taken back."""
        reasons, told, over = set[str](), CONTEXT.Queue(), CONTEXT.Event()
        process = CONTEXT.Process(
            target=_submit, args=(self.pair.source.port, self.mallory, file, over, told)
        )
        process.start()
        try:
            yield reasons
        finally:
            over.set()
            reasons |= told.get(timeout=60)
            process.join()


def _submit(port: int, pki: Path, file: bytes, over: Event, told: "Queue[set[str]]") -> None:
    """In a process of its own: it takes no time from the other client's."""
    reasons = set[str]()

    def attack() -> None:
        with tls.channel(f"127.0.0.1:{port}", server_name="node-1.north.example", pki_folder=pki) as channel:
            stub = translation_pb2_grpc.TranslationServiceStub(channel)
            while not over.is_set():
                call = stub.SubmitJob.future(_job(file), timeout=300)
                while not over.wait(0.05) and not call.done():
                    pass
                over.wait(AGAIN_S)
                call.cancel()
                with suppress(grpc.FutureCancelledError):
                    error = call.exception()
                    reasons.add("" if error is None else from_rpc_error(error, "").reason)

    in_threads(attack, JOBS)
    told.put(reasons)


def _job(file: bytes) -> Iterator[pb.SubmitJobRequest]:
    yield job_header(ITEMS, target_domain="relief")
    for _ in range(ITEMS):
        yield from stream(pb.SubmitJobRequest, "item", file_header(common_pb2.MEDIA_TYPE_PNG, file), file)


@pytest.fixture(scope="module")
def pictures() -> Iterator[Pictures]:
    with tempfile.TemporaryDirectory(prefix="ddib-decoding-") as name, ExitStack() as stack:
        folder = Path(name)
        save_pictures_model(folder / "scans", "scans", seed=1)
        save_pictures_model(folder / "relief", "relief", seed=2)
        pair = stack.enter_context(two_nodes(folder, folder / "scans", folder / "relief"))
        ddib(
            "init", "client", "--config", pair.source.config_path, "--name", "mallory", "--out", folder / "m"
        )
        yield Pictures(pair, folder / "m" / "pki", stack.enter_context(pair.client()))


@pytest.mark.parametrize("side", [9_400, 3_000], ids=["beyond the budget", "within the budget"])
def test_refused_pictures_cost_neither_memory_nor_others_their_turn(pictures, side, amount, evidence):
    """Nothing of them is kept, Health answers, and another client's pictures are in between."""
    file = deep_png(side, RGBA, 4)
    with Watch(pictures.pair.source) as watch, pictures.attacked(file) as reasons:
        time.sleep(amount(2, 20))
        for seed in range(amount(2, 12)):
            picture = png_bytes(noise(seed=seed))
            (result,) = pictures.client.translate(
                [picture], "south.example/relief", Request(Settings(evaluations=12))
            )
            assert result.files[Part.TRANSLATION].data
    evidence.figure(
        f"{side} x {side}, {len(file) / 1e3:.0f} kB ({', '.join(sorted(reasons))}): +{watch.grown_mb:.0f} MB at most, "
        f"Health at most {watch.worst_s:.2f} s of {watch.asked}"
    )
    # Where other tests have the same cores, a handshake of the attacker may starve.
    starved = {"PEER_UNREACHABLE"} if amount(1, 0) else set()
    assert reasons <= {PictureMisfit.reason, ImageTooLarge.reason, "CANCELLED"} | starved
    assert watch.grown_mb < 300
    assert not watch.is_late(amount(*LATE_ON_BUSY_CORES)), watch.seen()
