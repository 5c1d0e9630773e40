"""A client with a certificate sends small files of huge pictures: its node goes on, and so do other clients."""

from __future__ import annotations

import multiprocessing
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
import pytest

from ddib_fed.client.client import Client
from ddib_fed.errors import ImageTooLarge, PictureMisfit
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.protocol.messages import Settings
from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.security import tls
from ddib_fed.v1 import common_pb2, translation_pb2_grpc
from ddib_fed.v1 import translation_pb2 as pb
from tests.conftest import Evidence
from tests.data_modules.picture_examples import deep_png
from tests.e2e.harness import Pair, ddib
from tests.node.picture_examples import noise, png_bytes, save_pictures_model
from tests.security.attacks.watch import Watch
from tests.source_node.served import job_header

pytestmark = [pytest.mark.e2e, pytest.mark.promise("standing"), pytest.mark.timeout(600)]

JOBS, ITEMS, AGAIN_S = 8, 4, 1.0
MOST_MB = 300.0
RGBA = 6
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Scene:
    """A pair of nodes of pictures, a client of the source, and the certificate of another one, who attacks it."""

    pair: Pair
    mallory: Path
    client: Client

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


@pytest.mark.parametrize("side", [9_400, 3_000], ids=["beyond the budget", "within the budget"])
def test_refused_pictures_cost_neither_memory_nor_others_their_turn(
    scene: Scene, side: int, amount: Callable[[int, int], int], evidence: Evidence
) -> None:
    """Nothing of them is kept, Health answers, and another client's pictures are in between."""
    file = deep_png(side, RGBA, 4)
    with Watch(scene.pair.north) as watch, scene.attacked(file) as reasons:
        time.sleep(amount(2, 20))
        for seed in range(amount(2, 12)):
            picture = png_bytes(noise(seed=seed))
            (result,) = scene.client.translate([picture], "south.example/relief", Settings(evaluations=12))
            assert result.translation.data
    evidence.figure(
        f"{side} x {side}, {len(file) / 1e3:.0f} kB ({', '.join(sorted(reasons))}): +{watch.grown_mb:.0f} MB at most, "
        f"Health at most {watch.worst_s:.2f} s of {watch.asked}"
    )
    # Where other tests have the same cores, a handshake of the attacker may starve.
    starved = {"PEER_UNREACHABLE"} if amount(1, 0) else set()
    assert reasons <= {PictureMisfit.reason, ImageTooLarge.reason, "CANCELLED"} | starved
    assert watch.grown_mb < MOST_MB
    assert watch.worst_s < amount(20, 2)
