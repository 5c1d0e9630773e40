"""A client with a certificate sends small files of huge pictures: its node goes on, and so do other clients."""

from __future__ import annotations

import io
import multiprocessing
import os
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from ddib_fed.client.client import Client
from ddib_fed.data.fitting import PictureRule
from ddib_fed.data.pictures import decode_image, memory_of
from ddib_fed.errors import ImageTooLarge, PictureMisfit
from ddib_fed.node.config import LimitsSection
from ddib_fed.node.role import SMALL, limits_of
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.protocol.messages import Settings
from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.security import tls
from ddib_fed.v1 import common_pb2, translation_pb2_grpc
from ddib_fed.v1 import translation_pb2 as pb
from tests.conftest import Evidence
from tests.data_modules.picture_examples import chunk, deep_png
from tests.e2e.harness import Pair, ddib, wait_until
from tests.node.picture_examples import noise, png_bytes, save_pictures_model, to_bits
from tests.security.attacks.watch import MB, Watch, resident
from tests.source_node.served import job_header

pytestmark = [pytest.mark.e2e, pytest.mark.promise("standing"), pytest.mark.timeout(600)]

JOBS, ITEMS, AGAIN_S = 8, 4, 1.0
MOST_MB = 300.0
WORST_S, TIMES = 2.0, 3.0
BUSY_WORST_S = 20.0
"""In `make test`, where other tests have the same cores."""
RGBA, SIDE = 6, 9_400
CONTEXT = multiprocessing.get_context("forkserver")
Amount = Callable[[int, int], int]


def largest(part: int = 1) -> int:
    """The side of the largest picture of RGBA and 16 bits that is decoded in a part of a node's memory for it."""
    section, rule = LimitsSection(), PictureRule(1, 16, 16)
    for side in range(SIDE, 0, -100):
        header = struct.pack(">IIBBBBB", side, side, 16, RGBA, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
        if (
            memory_of(content, limits_of(section), rule) + (1 << 20)
            <= (section.decode_memory_mib << 20) // part
        ):
            return side
    raise AssertionError("none is decoded")


@dataclass
class Scene:
    """A pair of nodes of pictures, a client of the source, and the certificate of another one, who attacks it."""

    pair: Pair
    mallory: Path
    client: Client

    @property
    def pid(self) -> int:
        assert self.pair.north.process is not None
        return self.pair.north.process.pid

    def one_picture_s(self, seed: int) -> float:
        """Seconds in which the client gets one picture translated."""
        started = time.monotonic()
        picture = png_bytes(noise(seed=seed))
        (result,) = self.client.translate([picture], "south.example/relief", Settings(evaluations=12))
        assert result.translation.data
        return time.monotonic() - started

    @contextmanager
    def attacked(self, file: bytes) -> Iterator[set[str]]:
        """Eight jobs of four such files at a time, again when they end; at last their calls are taken back."""
        reasons, told, over = set[str](), CONTEXT.Queue(), CONTEXT.Event()
        process = CONTEXT.Process(target=_attack, args=(self.pair.north.port, self.mallory, file, over, told))
        process.start()
        try:
            yield reasons
        finally:
            over.set()
            reasons |= told.get(timeout=60)
            process.join()


def _attack(port: int, pki: Path, file: bytes, over: Event, told: Queue[set[str]]) -> None:
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

    threads = [threading.Thread(target=attack) for _ in range(JOBS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.put(reasons)


def _job(file: bytes) -> Iterator[pb.SubmitJobRequest]:
    yield job_header(ITEMS, target_domain="relief")
    for _ in range(ITEMS):
        yield from stream(pb.SubmitJobRequest, "item", file_header(common_pb2.MEDIA_TYPE_PNG, file), file)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="ddib-decoding-") as name, ExitStack() as stack:
        folder = Path(name)
        pair = Pair.create(folder, "relief", domain="scans", pretrained=False)
        save_pictures_model(pair.north.folder / "model", "scans", seed=1)
        save_pictures_model(pair.south.folder / "model", "relief", seed=2)
        ddib(
            "init",
            "client",
            "--config",
            pair.north.config_path,
            "--name",
            "mallory",
            "--out",
            folder / "m",
        )
        stack.callback(pair.stop)
        pair.start()
        yield Scene(pair, folder / "m" / "pki", stack.enter_context(pair.client()))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle(pid: int) -> bool:
    before = cpu_s(pid)
    threading.Event().wait(2)
    return cpu_s(pid) - before < 0.1


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} (at most {max(seconds):.2f})"


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """So many cores have other work."""
    processes = [CONTEXT.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    "side",
    [
        pytest.param(SIDE, id="beyond the budget"),
        pytest.param(largest(), id="as large as the budget"),
        pytest.param(largest(SMALL), id="as large as what small ones share", marks=pytest.mark.long),
    ],
)
def test_refused_pictures_cost_neither_memory_nor_others_their_turn(
    scene: Scene, side: int, amount: Amount, evidence: Evidence
) -> None:
    """Nothing of them is kept, other clients' pictures are in between, and the node stops when the client leaves."""
    file = deep_png(side, RGBA, 4)
    pictures, cores = amount(2, 12), amount(0, os.cpu_count() or 1)
    scene.one_picture_s(0)
    with busy_cores(cores):
        idle_s = [scene.one_picture_s(number) for number in range(pictures)]
        idle = resident(scene.pid) / MB
        with Watch(scene.pair.north) as watch, scene.attacked(file) as reasons:
            time.sleep(amount(2, 20))
            took_s = [scene.one_picture_s(10 + number) for number in range(pictures)]
        left = time.monotonic()
        wait_until(lambda: is_idle(scene.pid), seconds=20, what="the end of decoding for nobody")
        stopped_s = time.monotonic() - left
    after = resident(scene.pid) / MB
    figure = (
        f"{side} x {side}, {len(file) / 1e3:.0f} kB ({', '.join(sorted(reasons))}), {cores} cores busy otherwise: "
        f"{idle:.0f} MB before, +{watch.grown_mb:.0f} MB at most, {after:.0f} MB after; Health at most "
        f"{watch.worst_s:.2f} s of {watch.asked}; another client's picture {_spread(idle_s)} s before, "
        f"{_spread(took_s)} s meanwhile; idle {stopped_s:.1f} s after the client left"
    )
    evidence.figure(figure)
    print(figure)
    # Where other tests have the same cores, a handshake of the attacker may starve.
    starved = {"PEER_UNREACHABLE"} if amount(1, 0) else set()
    assert reasons <= {PictureMisfit.reason, ImageTooLarge.reason, "CANCELLED"} | starved
    assert watch.grown_mb < MOST_MB
    assert watch.worst_s < amount(int(BUSY_WORST_S), int(WORST_S))
    assert max(took_s) < max(TIMES * max(idle_s), amount(int(BUSY_WORST_S), 0))


def test_a_photograph_of_24_megapixels_is_translated_within_the_same_memory(
    scene: Scene, evidence: Evidence
) -> None:
    """A picture that is larger than the model is no attack: it comes back at its own size."""
    file = io.BytesIO()
    Image.fromarray(to_bits(noise(4_000, 6_000, seed=5), np.uint8)).convert("RGB").save(
        file, "JPEG", quality=90
    )
    with Watch(scene.pair.north) as watch:
        (result,) = scene.client.translate(
            [file.getvalue()], "south.example/relief", Settings(evaluations=12), cycle=True
        )
    figure = f"{len(file.getvalue()) / 1e6:.1f} MB: +{watch.grown_mb:.0f} MB at most"
    evidence.figure(figure)
    print(figure)
    assert decode_image(result.translation.data).pixels.shape == (4_000, 6_000, 1)
    assert watch.grown_mb < MOST_MB
