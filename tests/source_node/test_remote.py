"""What a peer may say in one call, and what becomes of everything else."""

import threading
from dataclasses import replace

import grpc
import pytest
import torch

from ddib_fed.data.points import to_npy
from ddib_fed.diffusion import gaussianity
from ddib_fed.engine.party import Control
from ddib_fed.errors import NotReady, PeerUnreachable
from ddib_fed.latent import Latent
from ddib_fed.protocol.latent import approve
from ddib_fed.security import tls
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from source_node.remote import PeerAnswer, Remotes
from tests.node.tiny_nodes import gaussian
from tests.source_node.scripted_target import hang, honest, side

FILE = to_npy(gaussian(40))
OWN = side("north.example", "moons")


@pytest.fixture
def remotes(institutions, target):
    north, _ = institutions
    made = Remotes(tls.PeerChannels(north.pki, north.store), max_file_bytes=1 << 20, silence_s=20.0)
    yield made
    made.channels.close()


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

    def run(self) -> list[pb.DecodeProgress | PeerAnswer]:
        header = pb.DecodeHeader(
            contract_sha256=self.contract.digest, request_id="job", solver=common_pb2.SolverSettings(evaluations=8),
            round_trip=self.round_trip, items=2,
        )  # fmt: skip
        with self.remote.decode(self.contract, header, self.latents(), self.control) as call:
            return list(call)


def test_progress_that_makes_no_sense_is_only_a_sign_of_life(remotes, target) -> None:
    def talkative(target, header, items, context):
        item, latent = next(items)
        for at, stage, steps in (
            (item, "decode", 8),
            (9, "decode", 8),
            (item, "\x1b[2J", 8),
            (item, "decode", 0),
        ):
            said = pb.DecodeProgress(item=at, stage=stage, step=1, steps=steps)
            yield pb.DecodeResponse(progress=said)
        yield from target.answer(header, item, latent)
        yield from honest(target, header, items, context)

    target.decodes = [talkative]
    answers = Call(remotes).run()
    assert [a for a in answers if isinstance(a, pb.DecodeProgress)] == [
        pb.DecodeProgress(item=0, stage="decode", step=1, steps=8)
    ]


@pytest.mark.slow
def test_a_silent_peer_is_given_up(remotes, target) -> None:
    target.decodes = [hang]
    with pytest.raises(PeerUnreachable, match="was silent for too long"):
        Call(replace(remotes, silence_s=2.0)).run()


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
    target.decodes = [hang]
    control = Control()
    canceller = threading.Thread(target=lambda: (target.asked.wait(60), control.cancel(NotReady())))
    canceller.start()
    with pytest.raises(NotReady):
        Call(remotes, control=control).run()
    canceller.join()
