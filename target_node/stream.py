"""Decoding of the latents of one Decode call, in order, overlapped with the receipt of further latents.

The engine's feeder assembles latents, a thread writes the decoded files, and gRPC's thread sends them. The engine's
window bounds the latents in memory, `READY` the files.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import grpc

from ddib_fed.data.pictures import ImageLimits
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Control, Decoded, Failed, Leg, Stage, ToDecode
from ddib_fed.errors import DdibError, InputError, LatentNotGaussian
from ddib_fed.evaluation.samples import Samples, samples_of
from ddib_fed.latent import Latent
from ddib_fed.node.role import MEDIA_TYPES, NodeContext, solver_settings
from ddib_fed.node.server import Pace
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import Contract, guidance_from_pb
from ddib_fed.protocol.latent import ApprovedLatent, LatentOpener, approve
from ddib_fed.protocol.streams import Announced, Assembler
from ddib_fed.security.audit import Exchanged, anchor_values, institution_of
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb

log = logging.getLogger(__name__)

AHEAD_BYTES: Final = 4 << 20
"""Read so much of a call ahead; as much again may be in use."""
LEAST_WEIGHT: Final = 16 << 10
"""Let at most 256 messages wait: a batch of small latents fits, a flood of empty ones does not."""
READY: Final = 1
"""Beside the translation that waits, one is made and one is on the wire."""
PROGRESS_EVERY_S: Final = 0.25
SIGN_OF_LIFE_S: Final = 10.0
"""Send a message at least this often: a source gives a silent node up."""
REFUSALS: Final = (InputError, LatentNotGaussian)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A latent that came whole, its class, and the last known head of the source's audit log."""

    item: int
    latent: Latent
    label: int | None = None
    anchor: common_pb2.AuditHead | None = None


def weight_of(message: pb.DecodeRequest) -> int:
    """Return the size of a message as it counts towards `AHEAD_BYTES`."""
    return max(LEAST_WEIGHT, message.ByteSize())


def latents_of(
    messages: Iterator[pb.DecodeRequest],
    contract: Contract,
    max_items: int,
    pace: Pace,
    on_latent: Callable[[int, common_pb2.AuditHead | None], object] = lambda *_: None,
    *,
    ready: Callable[[], bool] = lambda: False,
    most_rows: int = 1,
) -> Iterator[list[Arrived]]:
    """Yield the latents of a stream as they come, in batches; check each header before its bytes are read."""
    check = LatentOpener(contract, max_items=max_items)

    def open_latent(header: pb.LatentHeader) -> Announced:
        announced = check(header)
        pace.begin(announced.size_bytes)
        return announced

    assembler = Assembler({"latent": open_latent})
    arrived: list[Arrived] = []
    rows, anchor = 0, None
    failed: Exception | None = None
    try:
        for message in messages:
            if (whole := assembler.feed(message)) is not None:
                pace.end()
                item, tensor = whole.header.item, whole.header.tensor
                anchor = check.anchor or anchor
                on_latent(tensor.size_bytes, check.anchor)
                try:
                    latent = Latent.from_bytes(whole.data, contract.latent_shape, sha256=tensor.sha256)
                except InputError as error:
                    error.facts["item"] = str(item)
                    raise
                label = whole.header.target_class if whole.header.HasField("target_class") else None
                arrived.append(Arrived(item, latent, label, anchor))
                rows += len(latent.data)
            if arrived and (rows >= most_rows or not ready()):
                yield arrived
                arrived, rows = [], 0
        assembler.end()
    except Exception as error:  # noqa: BLE001 - raised after what came before it
        failed = error
    if arrived:
        yield arrived
    if failed is not None:
        raise failed


def control_of(context: grpc.ServicerContext) -> Control:
    """Return a control that ends the work when the call is cancelled, disconnected, or past its deadline."""
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining > threading.TIMEOUT_MAX:
        remaining = None  # gRPC's number for a call without a deadline
    control = Control(None if remaining is None else time.monotonic() + remaining)
    if not context.add_callback(control.cancel):
        control.cancel()
    return control


@dataclass(slots=True, eq=False)
class Receipt:
    """Counts of one call, written to the audit log when the context ends."""

    node: NodeContext
    peer: str
    request_id: str
    contract: Contract
    exchanged: Exchanged = field(default_factory=Exchanged)

    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None:
        exchanged = self.exchanged
        if not exchanged.received_items:
            return
        fields: dict[str, str | int] = {
            "request": self.request_id,
            "peer": institution_of(self.peer),
            "received": exchanged.received_items,
            "sent": exchanged.sent_items,
        }
        log.info(
            "request %(request)s from %(peer)s %(end)s: received %(received)d latents, sent %(sent)d translations",
            {**fields, "end": "ended" if exc_info[0] is None else "broke off"},
            extra={"fields": fields},
        )
        self.node.write_receipt(self.peer, self.contract, exchanged, request=self.request_id)

    @property
    def owes(self) -> bool:
        """True while a latent has no answer."""
        return self.exchanged.received_items > self.exchanged.sent_items

    def received(self, size_bytes: int, anchor: common_pb2.AuditHead | None) -> None:
        self.exchanged.received(size_bytes)
        self.exchanged.anchor = anchor or self.exchanged.anchor

    def line(self, arrived: Arrived) -> dict[str, str | int]:
        return {
            "peer": self.peer,
            "request": self.request_id,
            "item": arrived.item,
            "latent": arrived.latent.sha256.hex(),
            "contract": self.contract.digest.hex(),
            **anchor_values(arrived.anchor),
        }


@dataclass(frozen=True, slots=True)
class DecodedFile:
    """One decoded item, and for a round trip its latent."""

    item: int
    file: bytes
    media_type: int
    seconds: float
    round_trip: ApprovedLatent | None


@dataclass(slots=True, eq=False)
class DecodeStream:
    """The translations of one Decode call, made ahead on a thread of its own, and its progress."""

    engine: ServingParty
    header: pb.DecodeHeader
    contract: Contract
    latents: Iterator[Sequence[Arrived]]
    control: Control
    on_items: Callable[[Sequence[Arrived]], int]
    end_input: Callable[[], object] = lambda: None
    owner: str = ""
    _samples: Samples = field(init=False)
    _refused: DdibError | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)
    _progress: pb.DecodeProgress | None = field(default=None, init=False)
    _said: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self._samples = samples_of(self.engine.model, ImageLimits(), max_points=0)  # nothing is read

    def run(self) -> Iterator[pb.DecodeProgress | DecodedFile]:
        """Yield progress and translations until the last item is done; raise if the stream breaks."""
        made: Iterator[pb.DecodeProgress | DecodedFile] = self._files()
        with ReadAhead(made, READY, "decode") as ahead:
            try:
                for event in ahead.each(lambda: PROGRESS_EVERY_S, self._late):
                    yield event
                    self._said = time.monotonic()
            finally:
                self.control.cancel()

    def _late(self) -> pb.DecodeProgress | None:
        progress, self._progress = self._progress, None
        if progress is None and time.monotonic() - self._said >= SIGN_OF_LIFE_S:
            return pb.DecodeProgress()
        return progress

    def _leg(self) -> Leg:
        return Leg(
            solver_settings(self.header.solver),
            guidance_from_pb(self.header.guidance),
            round_trip=self.header.round_trip,
            control=self.control,
            on_step=self._on_step,
            flow=self.header.request_id,
            owner=self.owner,
            least_evaluations=self.contract.limits.min_evaluations,
        )

    def _files(self) -> Iterator[DecodedFile]:
        """Yield the items' translations; raise the first refusal once all others are made."""
        try:
            with closing(self.engine.decode_each(self._items(), self._leg(), end=self._end)) as outcomes:
                for outcome in outcomes:
                    try:
                        file = self._translated(outcome)
                    except REFUSALS as error:
                        self._refuse(outcome.number, error)
                    else:
                        yield file
        except Exception:
            if self._refused is None:
                raise
        if self._refused is not None:
            raise self._refused

    def _refuse(self, number: int, error: DdibError) -> None:
        self._end()
        self._refused = self._refused or error
        self._refused.refused[number] = error.reason

    def _end(self) -> None:
        self._ended = True
        self.end_input()

    def _items(self) -> Iterator[ToDecode]:
        for arrived in self.latents:
            left = deque(arrived)
            while left and not self._ended:
                try:
                    admitted = self.on_items(left)
                except DdibError as error:
                    error.facts.setdefault("item", str(left[0].item))
                    raise
                for _ in range(admitted):
                    latent = left.popleft()
                    yield ToDecode(latent.item, latent.latent, latent.label)

    def _translated(self, outcome: Decoded | Failed) -> DecodedFile:
        number = outcome.number
        try:
            if isinstance(outcome, Failed):
                raise outcome.error
            again, round_trip = outcome.again, None
            if again is not None:
                round_trip = approve(again.latent, self.contract, again.statistics, item=number)
            file = self._samples.file(outcome.samples)
        except DdibError as error:
            error.facts.setdefault("item", str(number))
            raise
        return DecodedFile(number, file, MEDIA_TYPES[self._samples.format], outcome.seconds, round_trip)

    def _on_step(self, number: int, stage: Stage, step: int, steps: int) -> None:
        self._progress = pb.DecodeProgress(item=number, stage=stage, step=step, steps=steps)
