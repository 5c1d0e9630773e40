"""Silent and slow connections without a certificate, and single bits turned over between all three parties."""

from __future__ import annotations

import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.trust.soundness.attack import Result, attack, ddib
from ddib_fed.wire.jobs import Settings
from tests.chaos.load import stub_pair
from tests.e2e.harness import Node, free_port
from tests.node.flipping import BitFlipper
from tests.node.tiny_nodes import npy, save_model
from tests.trust.attacks.watch import Watch, healthy

FILES, CROWD, PROBED = 1_024, 1_100, 40
HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(60)
"""The beginning of a TLS greeting that never ends."""


@contextmanager
def _files() -> Iterator[None]:
    """Files enough for a crowd in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _held(
    crowd: ExitStack, port: int, what: Callable[[socket.socket, int], object], count: int = CROWD
) -> None:
    for number in range(count):
        end = crowd.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        with suppress(OSError):
            what(end, number)


def _silent(end: socket.socket, number: int) -> None:
    del end, number


def _dribble(end: socket.socket, number: int) -> None:
    end.sendall(HELLO[: number % len(HELLO)])


def _one_byte(end: socket.socket, number: int) -> None:
    end.sendall(b"\x16" if number % 2 else b"\x00")


def _half_closed(end: socket.socket, number: int) -> None:
    del number
    end.shutdown(socket.SHUT_WR)


def _no_window(end: socket.socket, number: int) -> None:
    del number
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    end.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))


@attack(
    10,
    f"{CROWD:,} connections held open under `ulimit -n {FILES}`: silent, half a greeting, half closed, not read from",
    before="Health and `ddib status` were away for two minutes",
    test="tests/trust/attacks/test_strangers.py::test_connections_without_a_certificate_stop_neither_health_nor_status",
)
def crowd(folder: Path, result: Result) -> None:
    node = Node.create(folder / "south", "target", "south.example", "moons", pretrained=False)
    save_model(node.config)
    node.open_files = FILES
    node.start()
    try:
        with _files():
            for what in (_silent, _dribble, _one_byte, _half_closed, _no_window):
                with Watch(node) as watch, ExitStack() as ends:
                    _held(ends, node.port, what)
                    status = ddib("status", "--config", node.config_path)
                    time.sleep(1)
                name = what.__name__.strip("_").replace("_", " ")
                good = (
                    status.code == 0
                    and "serving" in status.out
                    and watch.worst_s < 10
                    and watch.grown_mb < 64
                )
                result.add(name, good and healthy(node), status.code)
                result.measured.append(f"{name}: +{watch.grown_mb:.0f} MB, Health {watch.worst_s:.1f} s")
        result.add("no file was wanting", "Too many open files" not in node.log())
    finally:
        node.stop()


@attack(
    10,
    f"{PROBED} such connections at the plain HTTP port of the probes, which serves 16 at a time",
    before="not looked at",
    test="tests/server/test_http.py::test_connections_that_say_nothing_keep_no_probe_out",
)
def probes(folder: Path, result: Result) -> None:
    node, port = (
        Node.create(folder / "south", "target", "south.example", "moons", pretrained=False),
        free_port(),
    )
    save_model(node.config)
    node.edit('# listen = "127.0.0.1:9464"', f'listen = "127.0.0.1:{port}"')
    node.open_files = FILES
    node.start()
    request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        with _files():
            for said in (b"", b"GET /", b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"):
                with Watch(node) as watch, ExitStack() as ends:
                    _held(ends, port, lambda end, _number, said=said: end.sendall(said), PROBED)
                    started = time.monotonic()
                    with socket.create_connection(("127.0.0.1", port), timeout=20) as probe:
                        probe.sendall(request)
                        answer = probe.recv(200)
                    seconds = time.monotonic() - started
                good = b" 200 " in answer and seconds < 10 and watch.worst_s < 10 and watch.grown_mb < 64
                result.add(ascii(said[:8]), good, said=ascii(answer[:30]))
                result.measured.append(
                    f"/readyz {seconds:.1f} s, Health {watch.worst_s:.1f} s, +{watch.grown_mb:.0f} MB"
                )
    finally:
        node.stop()


@attack(
    10,
    "the limit of open files in what starts a node",
    before="none",
    test="tests/server/test_inbound.py::test_the_file_limit_is_raised_as_far_as_it_goes",
)
def limits(folder: Path, result: Result) -> None:
    del folder
    docs = Path(__file__).parents[3] / "docs"
    texts = {path: path.read_text(errors="ignore") for path in docs.rglob("*") if path.is_file()}
    # A backup, a relay of ssh and a drop-in for GPUs are units too, but serve nobody.
    units = [
        path
        for path, text in texts.items()
        if re.search(r"^ExecStart=.*ddib_fed\.node serve", text, re.MULTILINE)
    ]
    assert units
    for unit in units:
        found = re.search(r"LimitNOFILE=(\d+)", unit.read_text())
        result.add(
            unit.name,
            found is not None and int(found[1]) >= 4_096,
            said=found[0] if found else "no LimitNOFILE",
        )


@attack(
    13,
    "20 bits turned over between source and target, in both directions, while 12 jobs run",
    before="one bit from target to source failed an accepted job for good (`UNKNOWN: Stream removed`)",
    test="tests/source_node/hostile/test_broken_wire.py::test_a_flipped_bit_in_a_stream_is_tried_again",
)
def between_nodes(folder: Path, result: Result) -> None:
    pair = stub_pair(folder)
    over = threading.Event()
    try:
        with pair.flipping() as wire:
            pair.start()

            def flip() -> None:
                number = 0
                while not over.wait(0.15) and wire.flipped < 20:
                    wire.arm(("to_client", "to_server")[number % 2])
                    number += 1

            thread = threading.Thread(target=flip)
            thread.start()
            with pair.client() as client:
                for number in range(12):
                    files = [npy(400, 10 * number + item) for item in range(3)]
                    job = client.submit(files, "south.example/moons", Settings(evaluations=100))
                    while client.get(job.job_id).state in {"QUEUED", "RUNNING"}:
                        time.sleep(0.05)
                    ended = client.get(job.job_id)
                    got = len(list(client.fetch(job.job_id)))
                    result.add(f"job {number}", ended.state == "FINISHED" and got == 3, said=str(ended.state))
            over.set()
            thread.join()
            result.measured.append(f"{wire.flipped} bits")
            result.add("bits were turned over", wire.flipped >= 4)
    finally:
        over.set()
        pair.stop()


@attack(
    13,
    "the same between the client and its node: submitting, watching and fetching by `ddib translate`",
    before="not looked at",
    test="tests/client/test_client.py::test_a_flipped_bit_on_the_way_costs_a_try_and_no_job",
)
def to_the_client(folder: Path, result: Result) -> None:
    pair = stub_pair(folder).start()
    profile, over = pair.profile.read_text(), threading.Event()
    try:
        with BitFlipper(pair.north.port) as wire:
            pair.profile.write_text(profile.replace(str(pair.north.port), str(wire.port)))
            (folder / "p.npy").write_bytes(npy(20_000))
            thread = threading.Thread(target=lambda: _flips(wire, over))
            thread.start()
            for number in range(8):
                said = ddib("translate", folder / "p.npy", "--to", "south.example/moons",
                            "--out", folder / f"o{number}", "--profile", pair.profile)  # fmt: skip
                written = list((folder / f"o{number}").glob("p.npy"))
                result.add(f"translation {number}", said.code == 0 and written, said.code, said.error)
            over.set()
            thread.join()
            result.measured.append(f"{wire.flipped} bits")
    finally:
        over.set()
        pair.stop()


def _flips(wire: BitFlipper, over: threading.Event) -> None:
    for number in range(1_000):
        if over.wait(0.12) or wire.flipped >= 12:
            return
        wire.arm(("to_client", "to_server")[number % 2])
