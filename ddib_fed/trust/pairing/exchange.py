"""Exchanges the peer files of two nodes under a key that both sides derive from a short code (SPAKE2).

    dialler                              listener
    MAGIC, SPAKE2 message A      ->      MAGIC at once: the listener serves one connection at a time
                                 <-      MAGIC, SPAKE2 message B
    proof of the key             ->      a wrong proof uses the code up
                                 <-      proof of the key
    peer file                   <->      peer file                 sealed from here on
    "" or why it is refused     <->      "" or why it is refused
                                 <-      "" once it has admitted the dialler
    "" once it has admitted      ->

SPAKE2 (Abdalla and Pointcheval 2005, RFC 9382) lets whoever answers in place of one side test one code and no more. The
listener does not show that it knows the code before the dialler has, so that connections without a code (a scan of
ports) cost nothing, and one wrong proof ends it. Neither side admits anybody before both have judged the other's file.
"""

from __future__ import annotations

import hmac
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, Protocol, TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ddib_fed.errors import (
    AlreadyExists,
    DdibError,
    DeadlineExceeded,
    PeerUnreachable,
    PolicyDenied,
    Unauthenticated,
)
from ddib_fed.rpc.addresses import split_address
from ddib_fed.rpc.proxy import Proxy, TunnelRefused
from ddib_fed.terminal import escape
from ddib_fed.trust.diagnosis import Way, presented_certificate
from ddib_fed.trust.pairing.line import MAGIC, Keys, Line, LineBroken
from ddib_fed.trust.peers import Peer, parse_peer

CODE_LIFE_S: Final = 300.0
"""How long a code is good."""
GREETING_S: Final = 2.0
"""How long a connection may take to send `MAGIC`: nobody else can come meanwhile."""
STRANGER_S: Final = 10.0
"""How long it may take from then on to prove that it has the code."""
EXCHANGE_S: Final = 30.0
"""How long the exchange may take, once the other side is there."""
_LOOK_S: Final = 0.5
_MAX_REFUSAL: Final = 300
_NAMES: Final = (b"ddib pair: dialler", b"ddib pair: listener")
_HINT: Final = "ddib pair --listen on one side shows a new code"
_LOOK_TLS_S: Final = 3.0
_OF_THE_PROXY: Final = frozenset({"proxy-unreachable", "proxy-refused"})
"""Causes that say nothing of the other side."""

T = TypeVar("T")
Side = Literal["dialler", "listener"]


class Party(Protocol):
    """This side's node, as the exchange needs it."""

    @property
    def own(self) -> bytes:
        """Its peer file."""

    def judge(self, other: Peer) -> None:
        """Raise what would refuse this peer, without admitting it."""

    def admit(self, other: Peer) -> None:
        """Admit it, durably."""


@dataclass(frozen=True, slots=True)
class Paired:
    """The result of an exchange.

    Attributes:
        other: Whom this node has admitted.
        where: The address that was dialled, or the host that the connection came from.
        mutual: Whether the other side has said that it admitted this node.
    """

    other: Peer
    where: str
    mutual: bool


def listen(
    listener: socket.socket,
    code: str,
    party: Party,
    *,
    life_s: float = CODE_LIFE_S,
    on_stranger: Callable[[str, str], object] = lambda _host, _why: None,
) -> Paired:
    """Wait for the side that has the code, for one attempt.

    Args:
        listener: Bound and listening.
        code: Which was read out.
        party: This side.
        life_s: How long the code is good.
        on_stranger: Called with host and reason for each connection that ended without a code.

    Raises:
        DeadlineExceeded: Nobody came.
        Unauthenticated: Somebody came with another code; this one is used up.
        PolicyDenied: The other side refuses this node.
        DdibError: This side refuses the other.
        PeerUnreachable: The connection broke in the middle; nobody was admitted.
    """
    until = time.monotonic() + life_s
    while True:
        connection, host = _accepted(listener, until)
        with connection:
            left = max(0.1, until - time.monotonic())
            line = Line(connection, min(GREETING_S, left))
            try:
                line.expect_greeting()
                line.extend(min(STRANGER_S, left))
                keys = _agree_as_listener(line, code)
                proof = line.receive()
            except LineBroken as error:  # without a proof no code was tested
                on_stranger(host, str(error))
                continue
            if not hmac.compare_digest(keys.other_proof, proof):
                raise Unauthenticated(
                    f"a connection from {host} had another code than {code}; this code is used up",
                    hint=f"{_HINT}. If nobody mistyped it, somebody guessed: a guess is right once in 100 million",
                )
            return _swap(line, keys, party, "listener", host)


def dial(address: str, code: str, party: Party, *, proxy: Proxy | None = None) -> Paired:
    """Connect to the side that listens, once.

    Args:
        address: ``host:port``.
        code: As `parse_code` returns it.
        party: This side.
        proxy: Through which the address is dialled; None for a direct connection.

    Raises:
        PeerUnreachable: There is no connection, nobody pairs there, or it broke; nobody was admitted here.
        Unauthenticated: The other side has another code.
        PolicyDenied: The other side refuses this node.
        DdibError: This side refuses the other.
    """
    way = Way(address, proxy, STRANGER_S)
    try:
        connection = way.connect()
    except (OSError, TunnelRefused) as error:
        finding = way.problem(error)
        found = finding.as_error("")
        if finding.cause not in _OF_THE_PROXY:
            found.hint = f"is `ddib pair --listen` running there now, at this address? {found.hint}"
        raise found from error
    with connection:
        line = Line(connection, EXCHANGE_S)
        keys = _agree_as_dialler(line, code, way)
        try:
            line.send(keys.own_proof)
            proof = line.receive()
        except LineBroken as error:
            raise _other_code(address) from error
        if not hmac.compare_digest(keys.other_proof, proof):
            raise _other_code(address)
        return _swap(line, keys, party, "dialler", address)


def _accepted(listener: socket.socket, until: float) -> tuple[socket.socket, str]:
    while (left := until - time.monotonic()) > 0:
        listener.settimeout(min(left, _LOOK_S))
        try:
            connection, address = listener.accept()
        except TimeoutError:
            continue
        return connection, str(address[0])
    raise DeadlineExceeded("nobody came with the code before it expired; nobody was admitted", hint=_HINT)


def _agree_as_listener(line: Line, code: str) -> Keys:
    theirs = line.receive()
    own, finish = _spake2("listener", code)
    keys = finish(theirs)
    line.greet()
    line.send(own)
    return keys


def _agree_as_dialler(line: Line, code: str, way: Way) -> Keys:
    try:
        line.greet()  # before anything is computed: the listener waits for it for a short time only
        own, finish = _spake2("dialler", code)
        line.send(own)
        line.expect_greeting()
        theirs = line.receive()
    except LineBroken as error:
        raise _nobody_pairs(way, error) from error
    try:
        return finish(theirs)
    except LineBroken as error:
        raise PeerUnreachable(f"what answers at {way.address} does not pair: {error}", hint=_HINT) from error


def _spake2(side: Side, code: str) -> tuple[bytes, Callable[[bytes], Keys]]:
    """This side's message, and what makes the keys of the other's."""
    from spake2 import SPAKE2_A, SPAKE2_B

    kind = SPAKE2_A if side == "dialler" else SPAKE2_B
    state = kind(code.encode(), idA=_NAMES[0], idB=_NAMES[1])
    own: bytes = state.start()

    def finish(theirs: bytes) -> Keys:
        try:
            secret = state.finish(theirs)
        except (
            Exception
        ) as error:  # the library raises several kinds for bytes that are no point of its group
            raise LineBroken("it sent no message of SPAKE2") from error
        return _keys(secret, side, own, theirs)

    return own, finish


def _keys(secret: bytes, side: Side, own: bytes, theirs: bytes) -> Keys:
    """The proofs are HMACs, not sealed frames: a sealed frame can be made to open under several keys."""
    messages = own + theirs if side == "dialler" else theirs + own
    sides: tuple[Side, Side] = ("dialler", "listener") if side == "dialler" else ("listener", "dialler")

    def key(what: str) -> bytes:
        info = MAGIC + what.encode()
        return HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)

    own_proof, other_proof = (
        hmac.digest(key(f"proof {each}"), sha256(messages).digest(), "sha256") for each in sides
    )
    return Keys(own_proof, other_proof, sending=key(f"seal {sides[0]}"), receiving=key(f"seal {sides[1]}"))


def _swap(line: Line, keys: Keys, party: Party, side: Side, where: str) -> Paired:
    """Both sides have the code: exchange the files, judge, and admit."""
    if side == "listener":
        _or_broken(where, lambda: line.send(keys.own_proof))
    line.extend(EXCHANGE_S)
    line.seal(keys)
    _or_broken(where, lambda: line.send(party.own))
    content = _or_broken(where, line.receive)
    other = _judged(line, content, party, where)
    _refused_there(_or_broken(where, line.receive), where)
    if side == "listener":
        _admit(line, other, party)
        return Paired(other, where, mutual=_admitted_there(line))
    _refused_there(_or_broken(where, line.receive), where)
    _admit(line, other, party)
    return Paired(other, where, mutual=True)


def _judged(line: Line, content: bytes, party: Party, where: str) -> Peer:
    """The other side's file, which this side accepts; the other side gets a confirmation."""
    try:
        other = parse_peer(content, f"the peer file from {where}")
        party.judge(other)
    except DdibError as error:
        _tell(line, error)
        raise
    with suppress(LineBroken):  # it may have refused by now: its word is read next
        line.send(b"")
    return other


def _admit(line: Line, other: Peer, party: Party) -> None:
    try:
        party.admit(other)
    except DdibError as error:
        _tell(line, error)
        raise
    with suppress(LineBroken):  # it is admitted here; the other side reports what it does not know
        line.send(b"")


def _tell(line: Line, error: DdibError) -> None:
    """Tell the other side why it is refused, and wait until it has read that: closing at once could discard it."""
    refusal = isinstance(error, PolicyDenied | AlreadyExists)
    said = error.detail if refusal else f"{error.sentence} ({error.reason})"
    with suppress(LineBroken):
        line.send(said[:_MAX_REFUSAL].encode())
        while True:
            line.receive()


def _admitted_there(line: Line) -> bool:
    try:
        return line.receive() == b""
    except LineBroken:
        return False


def _refused_there(said: bytes, where: str) -> None:
    if said:
        text = escape(said[: 2 * _MAX_REFUSAL].decode("utf-8", "replace"))
        raise PolicyDenied(
            f"the other side at {where} refuses this node: {text}", hint="correct it there, then pair again"
        )


def _or_broken(where: str, step: Callable[[], T]) -> T:
    try:
        return step()
    except LineBroken as error:
        raise PeerUnreachable(
            f"the other side at {where} has the code, but {error}; nobody was admitted here", hint=_HINT
        ) from error


def _other_code(address: str) -> Unauthenticated:
    return Unauthenticated(
        f"{address} has another code, or its code is used up",
        hint=f"{_HINT}. If the code was typed as it was read, somebody may be between: compare the addresses too",
    )


def _nobody_pairs(way: Way, error: LineBroken) -> PeerUnreachable:
    address = way.address
    if presented_certificate(way.within(_LOOK_TLS_S), split_address(address)[0]) is not None:
        return PeerUnreachable(
            f"at {address} a node serves; nobody pairs there",
            hint="the other operator runs `ddib pair --listen --at HOST:PORT` with another port, and reads the code",
        )
    if error.first.startswith(b"ddib-pair/"):
        return PeerUnreachable(f"{address} pairs by another release", hint="ddib --version on both sides")
    return PeerUnreachable(
        f"nobody pairs at {address}: {error}",
        hint="is `ddib pair --listen` running there, and are host and port those that it shows?",
    )
