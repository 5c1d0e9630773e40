"""Pairing: two operators admit each other's nodes with a short code that one reads to the other by telephone.

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
After MAGIC everything is a frame: its length (4 bytes, big-endian) and at most `MAX_FRAME` bytes. A sealed one is
ChaCha20-Poly1305 under a key for each direction, with the number of the frame as nonce.
"""

import hmac
import re
import secrets
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ddib_fed.errors import (
    AlreadyExists,
    DdibError,
    DeadlineExceeded,
    PeerUnreachable,
    PolicyDenied,
    Unauthenticated,
    UsageError,
)
from ddib_fed.protocol.addresses import Proxy, TunnelRefused, split_address
from ddib_fed.security.diagnosis import Way, presented_certificate
from ddib_fed.security.peers import Peer, parse_peer
from ddib_fed.terminal import escape

A = TypeVar("A")
T = TypeVar("T")

DIGITS: Final = 8
"""Random digits of a code. One guess is right with a chance of 1 in 10**8, and a code allows one guess at each side."""
CODE_LIFE_S: Final = 300.0
GREETING_S: Final = 2.0
"""A connection must send `MAGIC` in this time, as nobody else can come meanwhile."""
STRANGER_S: Final = 10.0
EXCHANGE_S: Final = 30.0
MAGIC: Final = b"ddib-pair/1\n"
MAX_FRAME: Final = 64 << 10
_LENGTH: Final = struct.Struct(">I")
_LOOK_S: Final = 0.5
_LOOK_TLS_S: Final = 3.0
_MAX_REFUSAL: Final = 300
_NAMES: Final = (b"ddib pair: dialler", b"ddib pair: listener")
_HINT: Final = "ddib pair --listen on one side shows a new code"

Side = Literal["dialler", "listener"]


@dataclass(frozen=True, slots=True)
class PairingNode:
    """This side's peer file; what raises what would refuse the other side's; and what admits it, durably."""

    own: bytes
    judge: Callable[[Peer], object]
    admit: Callable[[Peer], object]


@dataclass(frozen=True, slots=True)
class PairedPeer:
    """The result of an exchange: whom this side admitted, and whether it is known to be admitted there."""

    other: Peer
    where: str
    mutual: bool


# The code: random digits and a check digit (ISO 7064, MOD 11,10), which finds every single wrong digit before anything
# is sent, so that a slip of the keyboard does not use up a code.


def new_code() -> str:
    digits = f"{secrets.randbelow(10**DIGITS):0{DIGITS}}"
    return _grouped(digits + _check_digit(digits))


def parse_code(text: str) -> str:
    """Return a typed code in the form of `new_code`; raise UsageError if it is none, or a digit is wrong."""
    digits = re.sub(r"[ .-]", "", text)
    if not re.fullmatch(rf"[0-9]{{{DIGITS + 1}}}", digits):
        raise UsageError(
            f"{text[:40]!a} is no code: it has {DIGITS + 1} digits, e.g. 482-173-063",
            hint="`ddib pair --listen` shows one, on the other side",
        )
    if _check_digit(digits[:DIGITS]) != digits[DIGITS]:
        raise UsageError(
            f"a digit of {_grouped(digits)} is wrong; nothing was sent, and the code is still good",
            hint="ask the other operator to read it again",
        )
    return _grouped(digits)


def _grouped(digits: str) -> str:
    return "-".join(digits[start : start + 3] for start in range(0, len(digits), 3))


def _check_digit(digits: str) -> str:
    product = 10
    for digit in digits:
        product = ((product + int(digit)) % 10 or 10) * 2 % 11
    return str((11 - product) % 10)


class _Broken(Exception):  # noqa: N818 - a finding of this module; no other sees it
    """The connection ended, or what came over it cannot be used."""


@dataclass(frozen=True, slots=True)
class _Keys:
    own_proof: bytes
    other_proof: bytes
    sending: bytes
    receiving: bytes


class _Line:
    """Frames over a connected socket, all of them within a time limit; sealed once there are keys."""

    def __init__(self, connection: socket.socket, limit_s: float) -> None:
        self._connection = connection
        self._seals: tuple[ChaCha20Poly1305, ChaCha20Poly1305] | None = None
        self._sent = self._received = 0
        self.extend(limit_s)

    def extend(self, limit_s: float) -> None:
        self._until = time.monotonic() + limit_s

    def seal(self, keys: _Keys) -> None:
        self._seals = ChaCha20Poly1305(keys.sending), ChaCha20Poly1305(keys.receiving)

    def greet(self) -> None:
        self._in_time(self._connection.sendall, MAGIC)

    def expect_greeting(self) -> None:
        """Read the other side's `MAGIC`; notice another protocol at its first byte."""
        for expected in MAGIC:
            if self._exactly(1)[0] != expected:
                raise _Broken("it does not speak the protocol of `ddib pair`")

    def send(self, payload: bytes) -> None:
        if self._seals is not None:
            payload = self._seals[0].encrypt(self._sent.to_bytes(12, "big"), payload, None)
            self._sent += 1
        self._in_time(self._connection.sendall, _LENGTH.pack(len(payload)) + payload)

    def receive(self) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise _Broken(f"it sent a frame of {length} bytes")
        payload = self._exactly(length)
        if self._seals is None:
            return payload
        nonce = self._received.to_bytes(12, "big")
        self._received += 1
        try:
            return self._seals[1].decrypt(nonce, payload, None)
        except InvalidTag as error:
            raise _Broken("what it sent was changed on its way") from error

    def tell(self, act: Callable[[], T]) -> T:
        """Do something, and tell the other side that it succeeded, or why not; wait until it has read a refusal."""
        try:
            done = act()
        except DdibError as error:
            refusal = isinstance(error, PolicyDenied | AlreadyExists)
            reason = error.detail if refusal else f"{error.sentence} ({error.reason})"
            with suppress(_Broken):
                self.send(reason[:_MAX_REFUSAL].encode())
                while True:
                    self.receive()
            raise
        with suppress(_Broken):
            self.send(b"")
        return done

    def expect_yes(self, where: str) -> None:
        """Raise PolicyDenied with the other side's reason if it refuses."""
        if reason := self.receive():
            text = escape(reason[: 2 * _MAX_REFUSAL].decode("utf-8", "replace"))
            raise PolicyDenied(
                f"the other side at {where} refuses this node: {text}",
                hint="correct it there, then pair again",
            )

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            data = self._in_time(self._connection.recv, count - len(parts))
            if not data:
                raise _Broken("it closed the connection")
            parts += data
        return parts

    def _in_time(self, act: Callable[[A], T], argument: A) -> T:
        left = self._until - time.monotonic()
        if left <= 0:
            raise _Broken("it did not answer in time")
        try:
            self._connection.settimeout(left)
            return act(argument)
        except TimeoutError as error:
            raise _Broken("it did not answer in time") from error
        except OSError as error:
            raise _Broken(f"the connection broke: {error.strerror or error}") from error


def listen(
    listener: socket.socket,
    code: str,
    node: PairingNode,
    *,
    life_s: float = CODE_LIFE_S,
    on_stranger: Callable[[str, str], object] = lambda _host, _why: None,
) -> PairedPeer:
    """Wait for the side that has the code, for one attempt; DdibError, and nobody admitted here, if it fails.

    Unauthenticated says that somebody came with another code, and this one is used up.
    """
    until = time.monotonic() + life_s
    while (left := until - time.monotonic()) > 0:
        listener.settimeout(min(left, _LOOK_S))
        try:
            connection, address = listener.accept()
        except TimeoutError:
            continue
        with connection:
            host, line = str(address[0]), _Line(connection, min(GREETING_S, left))
            try:
                line.expect_greeting()
                line.extend(min(STRANGER_S, left))
                theirs = line.receive()
                message, finish = _spake2("listener", code)
                keys = finish(theirs)
                line.greet()
                line.send(message)
                proof = line.receive()
            except _Broken as error:  # without a proof no code was tested
                on_stranger(host, str(error))
                continue
            if not hmac.compare_digest(keys.other_proof, proof):
                raise Unauthenticated(
                    f"a connection from {host} had another code than {code}; this code is used up",
                    hint=f"{_HINT}. If nobody mistyped it, somebody guessed: a guess is right once in 100 million",
                )
            return _exchange(line, keys, node, "listener", host)
    raise DeadlineExceeded("nobody came with the code before it expired; nobody was admitted", hint=_HINT)


def dial(address: str, code: str, node: PairingNode, *, proxy: Proxy | None = None) -> PairedPeer:
    """Connect to the side that listens, once; DdibError, and nobody admitted here, if it fails."""
    way = Way(address, proxy, STRANGER_S)
    try:
        connection = way.connect()
    except (OSError, TunnelRefused) as error:
        failure = way.problem(error).as_error("")
        if not str(failure.facts["cause"]).startswith("proxy"):
            failure.hint = f"is `ddib pair --listen` running there now, at this address? {failure.hint}"
        raise failure from error
    with connection:
        line = _Line(connection, EXCHANGE_S)
        try:
            line.greet()  # before anything is computed: the listener waits for it for a short time only
            message, finish = _spake2("dialler", code)
            line.send(message)
            line.expect_greeting()
            keys = finish(line.receive())
        except _Broken as error:
            serves = presented_certificate(Way(address, proxy, _LOOK_TLS_S), split_address(address)[0])
            raise PeerUnreachable(
                f"nobody pairs at {address}: {'a node serves there' if serves is not None else error}",
                hint="the other operator runs `ddib pair --listen` (beside a node: `ddib pair --listen HOST:PORT` with "
                "another port); host and port are those that it shows",
            ) from error
        proof = b""
        with suppress(_Broken):
            line.send(keys.own_proof)
            proof = line.receive()
        if not hmac.compare_digest(keys.other_proof, proof):
            raise Unauthenticated(
                f"{address} has another code, or its code is used up",
                hint=f"{_HINT}. If the code was typed as it was read, somebody may be between: compare the addresses "
                "too",
            )
        return _exchange(line, keys, node, "dialler", address)


def _exchange(line: _Line, keys: _Keys, node: PairingNode, side: Side, where: str) -> PairedPeer:
    """Exchange the files, judge and admit: both sides have the code."""

    def judged() -> Peer:
        other = parse_peer(content, f"the peer file from {where}")
        node.judge(other)
        return other

    try:
        if side == "listener":
            line.send(keys.own_proof)
        line.extend(EXCHANGE_S)
        line.seal(keys)
        line.send(node.own)
        content = line.receive()
        other = line.tell(judged)
        line.expect_yes(where)  # that it would admit this node
        if side == "dialler":
            line.expect_yes(where)  # that it has
    except _Broken as error:
        raise PeerUnreachable(
            f"the other side at {where} has the code, but {error}; nobody was admitted here", hint=_HINT
        ) from error
    line.tell(lambda: node.admit(other))
    mutual = side == "dialler"
    if not mutual:
        with suppress(_Broken):
            mutual = line.receive() == b""
    return PairedPeer(other, where, mutual=mutual)


def _spake2(side: Side, code: str) -> tuple[bytes, Callable[[bytes], _Keys]]:
    """Return this side's message, and the function that makes the keys from the other's."""
    from spake2 import SPAKE2_A, SPAKE2_B

    kind = SPAKE2_A if side == "dialler" else SPAKE2_B
    state = kind(code.encode(), idA=_NAMES[0], idB=_NAMES[1])
    message: bytes = state.start()

    def finish(theirs: bytes) -> _Keys:
        try:
            secret = state.finish(theirs)
        except Exception as error:  # of several kinds, for bytes that are no point of its group
            raise _Broken("it sent no message of SPAKE2") from error
        return _keys(secret, side, message, theirs)

    return message, finish


def _keys(secret: bytes, side: Side, own: bytes, theirs: bytes) -> _Keys:
    """Derive the keys of a connection. Proofs are HMACs, as a sealed frame can be made to open under several keys."""
    messages = own + theirs if side == "dialler" else theirs + own
    sides: tuple[Side, Side] = ("dialler", "listener") if side == "dialler" else ("listener", "dialler")

    def key(what: str) -> bytes:
        info = MAGIC + what.encode()
        return HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)

    own_proof, other_proof = (
        hmac.digest(key(f"proof {side_name}"), sha256(messages).digest(), "sha256") for side_name in sides
    )
    return _Keys(own_proof, other_proof, sending=key(f"seal {sides[0]}"), receiving=key(f"seal {sides[1]}"))
