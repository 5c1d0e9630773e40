"""What a peer may say in one call, and what becomes of everything else."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress

import grpc
import numpy as np
import pytest
import torch

from ddib_fed.data.points import to_npy
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.party import Control
from ddib_fed.errors import (
    Cancelled,
    ContractMismatch,
    DeadlineExceeded,
    DomainNotFound,
    NotReady,
    PeerFault,
    PeerUnreachable,
    QuotaSpent,
)
from ddib_fed.latent import Latent
from ddib_fed.protocol.contract import ContractSide
from ddib_fed.protocol.latent import approve
from ddib_fed.security import tls
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from source_node.decode_call import Answer, Progress
from source_node.remote import Remotes
from tests.node.tiny_nodes import gaussian
from tests.source_node.conftest import wait_until
from tests.source_node.scripted_target import hang, honest, instead, side

FILE = to_npy(gaussian(40))
OWN = side("north.example", "moons")


@pytest.fixture
def remotes(institutions, target):
    north, _ = institutions
    made = Remotes(tls.PeerChannels(north.pki, north.store), max_file_bytes=1 << 20, silence_s=2.0)
    yield made
    made.close()


class Call:
    """A Decode call of two latents."""

    def __init__(self, remotes, *, round_trip: bool = False, control: Control | None = None) -> None:
        self.control = control or Control()
        self.remote = remotes.get("south.example")
        self.contract = self.remote.negotiate(OWN, "checkerboards", Control())
        self.round_trip = round_trip

    def latents(self, count: int = 2):
        for item in range(count):
            latent = Latent.from_array(gaussian(40, item))
            statistics = gaussianity.measure(torch.from_numpy(latent.data.copy()))
            yield approve(latent, self.contract, statistics, item=item)
        yield None

    def run(self) -> list[Progress | Answer]:
        with self.remote.decode(
            self.contract, request_id="job", solver=SolverSettings(evaluations=8), round_trip=self.round_trip,
            items=2, latents=self.latents(), control=self.control,
        ) as call:  # fmt: skip
            return list(call)


def test_a_peer_of_another_protocol_is_named_with_both_versions(remotes, target) -> None:
    target.protocol = 7
    with pytest.raises(ContractMismatch, match="the node that answers 7") as caught:
        remotes.get("south.example").describe()
    assert (caught.value.hop, [each.field for each in caught.value.differences]) == (
        "target south.example",
        ["protocol"],
    )


def test_an_honest_peer_gives_each_item_once(remotes, target) -> None:
    """File, returned latent and bytes sent, in order."""
    answers = Call(remotes, round_trip=True).run()
    assert [answer.item for answer in answers] == [0, 1]
    assert answers[0].file == to_npy(gaussian(40, 0))
    assert answers[1].round_trip.data == gaussian(40, 1).tobytes()
    assert answers[1].sent_bytes == 40 * 2 * 4


def _for_another(target, item, latent):
    yield from target.result(7, FILE)


def _twice(target, item, latent):
    yield from target.result(item, FILE)
    yield from target.result(item, FILE)


def _latent_unasked(target, item, latent):
    yield from target.result(item, FILE)
    yield from target.latent(item, latent)


def _latent_first(target, item, latent):
    yield from target.latent(item, latent)


def _header_twice(target, item, latent):
    yield next(iter(target.result(item, FILE)))
    yield next(iter(target.result(item, FILE)))


def _nothing(target, item, latent):
    yield pb.DecodeResponse()


def _other_type(target, item, latent):
    message = next(iter(target.result(item, FILE)))
    message.result.file.media_type = common_pb2.MEDIA_TYPE_PNG
    yield message


@pytest.mark.parametrize(
    "answer",
    [_for_another, _twice, _latent_unasked, _latent_first, _header_twice, _nothing, _other_type],
)
def test_what_the_protocol_does_not_allow_is_refused(remotes, target, answer) -> None:
    """The error names the peer as the hop."""
    target.decodes = [instead(1, answer)]
    with pytest.raises(PeerFault) as refused:
        Call(remotes).run()
    assert (refused.value.hop, refused.value.facts["answer"]) == ("target south.example", "MESSAGE_INVALID")


def _no_latent(target, item, latent):
    yield from target.result(item, FILE)


def _larger_latent(target, item, latent):
    yield from target.result(item, FILE)
    yield from target.latent(item, Latent.from_array(gaussian(4_000)))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("answer", [_no_latent, _larger_latent])
def test_a_round_trip_brings_one_latent_of_the_same_size(remotes, target, answer, number) -> None:
    """A missing one is noticed at the next item or at the end; a larger one before its bytes are read."""
    target.decodes = [instead(number, answer)]
    with pytest.raises(PeerFault):
        Call(remotes, round_trip=True).run()


def _wrong_digest(target, item, latent):
    messages = list(target.result(item, FILE))
    messages[0].result.file.sha256 = hashlib.sha256(b"other").digest()
    yield from messages


def _cut(target, item, latent):
    yield next(iter(target.result(item, FILE)))


def test_bytes_that_are_not_as_announced_are_refused(remotes, target) -> None:
    """Another digest, and an end in the middle."""
    for answer in (_wrong_digest, _cut):
        target.decodes = [instead(1, answer)]
        with pytest.raises(PeerFault) as refused:
            Call(remotes).run()
        assert refused.value.facts["answer"] == "CHUNK_CORRUPT"


def test_a_file_over_the_limit_is_refused_by_its_header(remotes, target) -> None:
    """Nothing of it is kept."""

    def huge(target, item, latent):
        message = next(iter(target.result(item, FILE)))
        message.result.file.size_bytes = 1 << 40
        yield message

    target.decodes = [instead(0, huge)]
    with pytest.raises(PeerFault) as refused:
        Call(remotes).run()
    assert refused.value.facts["answer"] == "POINTS_TOO_MANY"


def test_progress_that_makes_no_sense_is_only_a_sign_of_life(remotes, target) -> None:
    """Of an item that is not on its way, of another stage, or of no steps: not passed on."""

    def talkative(target, header, items, context):
        item, latent = next(items)
        for said in (
            (item, "decode", 3, 8),
            (9, "decode", 1, 8),
            (item, "\x1b[2J", 1, 8),
            (item, "decode", 1, 0),
        ):
            yield pb.DecodeResponse(
                progress=pb.DecodeProgress(item=said[0], stage=said[1], step=said[2], steps=said[3])
            )
        yield from target.answer(header, item, latent)
        yield from honest(target, header, items, context)

    target.decodes = [talkative]
    answers = Call(remotes).run()
    assert [a for a in answers if isinstance(a, Progress)] == [Progress(0, "decode", 3, 8)]


def test_seconds_that_are_no_number_are_refused(remotes, target) -> None:
    """NaN would make the record unreadable as JSON; a number that cannot be is not recorded."""

    def lasting(seconds: float):
        return instead(0, lambda target, item, _: target.result(item, FILE, seconds))

    target.decodes = [lasting(1e9), lasting(float("nan"))]
    assert Call(remotes).run()[0].seconds == 0.0
    with pytest.raises(PeerFault):
        Call(remotes).run()


@pytest.mark.slow
def test_a_silent_peer_is_given_up(remotes, target) -> None:
    """Long before the job's deadline, as unreachable: the job is tried again."""
    target.decodes = [hang]
    with pytest.raises(PeerUnreachable, match="nothing was heard"):
        Call(remotes).run()


@pytest.mark.slow
def test_a_peer_that_shows_life_is_waited_for(remotes, target) -> None:
    """Signs of life over twice the patience, and then the answers."""

    def slow(target, header, items, context):
        for _ in range(10):
            yield pb.DecodeResponse(progress=pb.DecodeProgress())
            target.release.wait(0.4)
        yield from honest(target, header, items, context)

    target.decodes = [slow]
    assert len(Call(remotes).run()) == 2


@pytest.mark.parametrize("status", [grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_peer_can_neither_cancel_the_job_nor_let_its_time_run_out(remotes, target, status) -> None:
    """Only the job's own control does; such a peer is one that went away."""

    def abort(target, header, items, context):
        context.abort(status, "sorry")
        yield

    target.decodes = [abort]
    with pytest.raises(PeerUnreachable):
        Call(remotes).run()


def test_cancelling_ends_a_call_that_waits_for_the_peer(remotes, target) -> None:
    """At once, not when the peer next says something; the reason is the one given."""
    target.decodes = [hang]
    control = Control()
    canceller = threading.Thread(target=lambda: (target.asked.wait(10), control.cancel(NotReady())))
    canceller.start()
    with pytest.raises(NotReady):
        Call(remotes, control=control).run()
    canceller.join()


def test_cancelling_ends_a_negotiation(remotes, target) -> None:
    """A peer that does not answer holds nobody for the length of its timeout."""
    control = Control()
    target.negotiation = lambda: (target.asked.set(), target.release.wait(30))
    threading.Thread(target=lambda: (target.asked.wait(10), control.cancel())).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        remotes.get("south.example").negotiate(OWN, "checkerboards", control)
    assert time.monotonic() - started < 9


@pytest.mark.slow
def test_the_jobs_deadline_ends_a_call(remotes, target) -> None:
    """A peer that hangs does not take a job past it."""
    target.decodes = [hang]
    call = Call(remotes, control=Control(time.monotonic() + 0.3))
    with pytest.raises((DeadlineExceeded, PeerUnreachable)):
        call.run()
    wait_until(lambda: call.control.over)


@pytest.mark.slow
def test_no_thread_outlives_its_call(remotes, target) -> None:
    """Neither the listener nor gRPC's own is left, however the call ends."""
    before = threading.active_count()
    for behaviour in (honest, hang, instead(0, _twice)):
        target.decodes = [behaviour]
        with suppress(PeerFault, PeerUnreachable):
            Call(remotes).run()
    target.release.set()
    wait_until(
        lambda: threading.active_count() <= before + 9
    )  # the target's own pool of 8, and gRPC's poller
    assert not [t for t in threading.enumerate() if t.name == "listener"]


def test_a_closed_channel_is_an_unreachable_peer(remotes, target) -> None:
    """A renewed certificate or a removed peer closes channels under those who hold them."""
    remote = remotes.get("south.example")
    contract = remote.negotiate(OWN, "checkerboards", Control())
    remotes.close()
    with pytest.raises(PeerUnreachable):
        remote.negotiate(OWN, "checkerboards", Control())
    with pytest.raises(PeerUnreachable):
        remote.describe()
    settings = {"request_id": "j", "solver": SolverSettings(), "round_trip": False, "items": 1, "latents": []}
    with pytest.raises(PeerUnreachable):
        remote.decode(contract, control=Control(), **settings)


def test_negotiation_believes_nothing(remotes, target) -> None:
    """Another domain, another shape: the error says what differs, and where."""
    remote = remotes.get("south.example")
    with pytest.raises(DomainNotFound) as other:
        remote.negotiate(OWN, "moons", Control())
    assert other.value.facts["served"] == "checkerboards"
    wide = ContractSide(**{**_fields(OWN), "sample_shape": (3,)})
    with pytest.raises(ContractMismatch) as differs:
        remote.negotiate(wide, "checkerboards", Control())
    assert [d.field for d in differs.value.differences] == ["sample_shape"]


def _fields(contract_side: ContractSide) -> dict:
    return {name: getattr(contract_side, name) for name in contract_side.__dataclass_fields__}


def test_errors_of_the_peer_keep_their_reason(remotes, target) -> None:
    """Quota with the time to come back, as the peer said it."""

    def spent(target, header, items, context):
        raise QuotaSpent(retry_after_s=7)
        yield

    target.decodes = [spent]
    with pytest.raises(QuotaSpent) as refused:
        Call(remotes).run()
    assert refused.value.retry_after_s == 7
    assert np.isfinite(refused.value.retry_after_s)
