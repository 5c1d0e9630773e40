"""One Decode call: latents in, translations out in order, while further latents arrive.

Three kinds of thread: a reader that assembles latents, a few workers that wait for the engine (which merges them into
common network calls), and gRPC's own, which sends what is finished. At most `IN_FLIGHT` items are in memory.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.party import Decoded, Encoded, Leg, OnStep, Stage, ToDecode
from ddib_fed.bridge.serving import ServingParty
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import DdibError
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.latent import Latent
from ddib_fed.node.pictures import rule_of, write_translation
from ddib_fed.samples.points import to_npy
from ddib_fed.v1 import common_pb2, decoding_pb2
from ddib_fed.wire.contract import Contract
from ddib_fed.wire.latent import ApprovedLatent, approve

# Items of one call that are decoded, or wait for it, at once: enough for small ones to share network calls.
IN_FLIGHT = 4
# Progress of an item is sent at most this often, and not at all while so much of it waits to be sent.
PROGRESS_EVERY_S = 0.1
MAX_PROGRESS = 64
# Something is said at least this often, whatever the engine does: the source gives up a node that hangs.
SIGN_OF_LIFE_S = 10.0


@dataclass(frozen=True, slots=True)
class Translated:
    """One item, decoded, and its latent again when the round trip was asked for."""

    item: int
    file: bytes
    media_type: int
    seconds: float
    round_trip: ApprovedLatent | None


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What the header of a Decode call asks for."""

    contract: Contract
    solver: SolverSettings
    round_trip: bool
    label: int | None = None
    guidance: Guidance = UNGUIDED


class _EndOfItems:
    """The peer has sent its last item."""


Event = decoding_pb2.DecodeProgress | Future[Translated] | BaseException | _EndOfItems | None
"""What the threads tell the sender: progress, an item accepted, a broken stream, the end, or (None) look again."""


class DecodeStream:
    """One Decode call.

    Args:
        engine: The node's model.
        settings: From the header.
        latents: The items that arrive, (number, latent); it may block and raise.
        control: Cancelled when the call ends.
        on_item: Called before an item is decoded (quota); may raise.
    """

    def __init__(
        self,
        engine: ServingParty,
        settings: StreamSettings,
        latents: Iterator[tuple[int, Latent]],
        control: Control,
        on_item: Callable[[int, Latent], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._latents = latents
        self._control = control
        self._on_item = on_item
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._slots = threading.Semaphore(IN_FLIGHT)
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="decode")

    def run(self) -> Iterator[decoding_pb2.DecodeProgress | Translated]:
        """Progress and translations, until the last item that was sent is done.

        Raises:
            DdibError: What broke the stream or an item; `facts["item"]` names the item where it is one's.
        """
        reader = threading.Thread(target=self._read, name="decode-reader", daemon=True)
        reader.start()
        pending: deque[Future[Translated]] = deque()
        reading = True
        try:
            while reading or pending:
                try:
                    event = self._events.get(timeout=SIGN_OF_LIFE_S)
                except queue.Empty:
                    event = decoding_pb2.DecodeProgress()
                if isinstance(event, decoding_pb2.DecodeProgress):
                    yield event
                elif isinstance(event, Future):
                    pending.append(event)
                elif isinstance(event, _EndOfItems):
                    reading = False
                elif isinstance(event, BaseException):
                    raise event
                while pending and pending[0].done():
                    yield pending.popleft().result()
                    self._slots.release()
        finally:
            self._control.cancel()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> None:
        try:
            for number, latent in self._latents:
                while not self._slots.acquire(timeout=0.2):
                    self._control.check()
                future = self._pool.submit(self._work, number, latent)
                self._events.put(future)
                future.add_done_callback(lambda _: self._events.put(None))
        except BaseException as error:  # noqa: BLE001 - handed over to the sender, which raises it
            self._events.put(error)
        else:
            self._events.put(_EndOfItems())

    def _work(self, number: int, latent: Latent) -> Translated:
        try:
            self._on_item(number, latent)
            decoded = self._engine.decode(
                ToDecode(number, latent, self._settings.label),
                Leg(
                    self._settings.solver,
                    self._settings.guidance,
                    round_trip=self._settings.round_trip,
                    control=self._control,
                    on_step=self._progress(),
                ),
            )
            round_trip = self._approved(decoded.again) if decoded.again is not None else None
            file, media_type = self._file(decoded)
        except DdibError as error:
            error.facts.setdefault("item", str(number))
            raise
        return Translated(number, file, media_type, decoded.seconds, round_trip)

    def _file(self, decoded: Decoded) -> tuple[bytes, int]:
        """What goes back, and what it is."""
        manifest = self._engine.model.bundle.manifest
        if manifest.sample_kind == "picture":
            return write_translation(decoded.samples, rule_of(manifest)), common_pb2.MEDIA_TYPE_PNG
        return to_npy(decoded.samples), common_pb2.MEDIA_TYPE_NPY

    def _approved(self, again: Encoded) -> ApprovedLatent:
        return approve(again.latent, self._settings.contract, again.statistics, item=again.number)

    def _progress(self) -> OnStep:
        last = 0.0

        def on_step(number: int, stage: Stage, step: int, steps: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PROGRESS_EVERY_S and self._events.qsize() < MAX_PROGRESS:
                last = now
                self._events.put(
                    decoding_pb2.DecodeProgress(item=number, stage=stage, step=step, steps=steps)
                )

        return on_step
