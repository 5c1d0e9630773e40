"""Whose fault it is when a call to another institution fails.

What a peer answers is checked here, and found wrong it is the peer's fault (`PeerFault`), whatever the check is called:
a file with too many points is no file of the user's. What a peer says of the request is believed where only the peer
can know it, e.g. its quota; a reason that it cannot have is its fault too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc

from ddib_fed.errors import (
    AggregateNotFound,
    Cancelled,
    ChunkCorrupt,
    ContractMismatch,
    DdibError,
    DeadlineExceeded,
    DomainNotFound,
    ExhaustedError,
    InputError,
    InternalError,
    LatentNotGaussian,
    MessageInvalid,
    NotFoundError,
    PeerFault,
    RefusedError,
    SettingsInvalid,
    UnavailableError,
    UnknownFields,
)
from ddib_fed.rpc.details import MAX_TEXT, from_rpc_error
from ddib_fed.terminal import escape

# What the node of another institution may say of a request: of its own state, policy and model, and of the protocol.
# It gets latents that were checked against the contract, and neither files nor options: an error of those is none.
_SAYABLE: Final = (
    ContractMismatch,
    RefusedError,
    ExhaustedError,
    UnavailableError,
    Cancelled,
    DeadlineExceeded,
    ChunkCorrupt,
    DomainNotFound,
    AggregateNotFound,
    SettingsInvalid,
    InternalError,
)
_SAYABLE_ITSELF: Final = frozenset({NotFoundError, MessageInvalid, UnknownFields})
"""Classes of which no subclass is meant."""


def institution_of(hop: str) -> str:
    return hop.rpartition(" ")[2]


def at_fault(error: DdibError, hop: str) -> PeerFault:
    """The fault of a peer in whose answer `error` was found."""
    if isinstance(error, PeerFault):
        return error
    peer, found = institution_of(hop), escape(error.detail[:MAX_TEXT])[:MAX_TEXT]
    hint = f"ask the operator of {peer}; ddib peer test {peer} asks that node again"
    if isinstance(error, UnknownFields):
        hint = "ddib --version at both institutions: the releases may be too far apart"
    return PeerFault(
        f"{peer} answered with what cannot be used: {found}",
        hop=hop,
        hint=hint,
        facts={"peer": peer, "answer": error.reason, "found": found},
        differences=error.differences,
    )


@contextmanager
def checking_answers(hop: str) -> Iterator[None]:
    """Inside, what is found wrong is wrong with the answer of a peer."""
    try:
        yield
    except (InputError, ContractMismatch, ChunkCorrupt, LatentNotGaussian) as error:
        raise at_fault(error, hop) from error


def failure_of_peer(error: grpc.RpcError, hop: str) -> DdibError:
    """The error of a failed call to another institution."""
    found = from_rpc_error(error, hop)
    if type(found) in {MessageInvalid, UnknownFields} and not found.incident:  # found here, about the answer
        return at_fault(found, hop)
    if isinstance(found, _SAYABLE) or type(found) in _SAYABLE_ITSELF:
        return found
    peer = institution_of(hop)
    what = f"a refusal with a reason that it cannot have: {found.reason}"
    fault = PeerFault(
        f"{peer} answered with {what}",
        hop=hop,
        hint=f"ask the operator of {peer}; ddib peer test {peer} asks that node again",
        facts={"peer": peer, "answer": found.reason, "found": what},
        incident=found.incident,
    )
    if (item := found.facts.get("item", "")).isdecimal():
        fault.facts["item"] = item
    return fault
