"""The admission of a caller, which is checked again when the snapshot or the certificate behind it changes or ends."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

import grpc
from cryptography import x509
from google.protobuf.message import DecodeError

from ddib_fed.errors import MessageInvalid, PeerUnknown, RefusedError, Unauthenticated
from ddib_fed.protocol.messages import check
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.identity import (
    MAX_CERTIFICATE_BYTES,
    Identity,
    certified_identity,
    read_certificates,
    verify_peer_certificate,
)
from ddib_fed.security.peers import PeerStore, Snapshot

log = logging.getLogger(__name__)

MAX_CACHED: Final = 256
INTERVAL_S: Final = 60.0
"""The audit log gets one line for the same identity and reason in this time."""
MAX_KEYS: Final = 256
"""Identities and reasons that are counted apart at a time; further ones share a line for each reason."""
OTHERS: Final = "(others)"
"""This name is in that line: an admitted institution can make any number of identities."""

AuthContext = Mapping[str, Sequence[bytes]]


class Authoriser(Protocol):
    def authorise(self, identity: Identity, full_method: str, snapshot: Snapshot) -> None:
        """Raise PolicyDenied or PeerUnknown unless the identity may call the method."""


@dataclass(frozen=True, slots=True)
class _Verified:
    snapshot: Snapshot
    identity: Identity
    not_after: datetime


class Verifier:
    """Verifies certificates against the current snapshot; caches each result until the snapshot changes."""

    def __init__(self, peers: PeerStore, clock: Callable[[], datetime]) -> None:
        self._peers = peers
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()

    def verify(self, pem: bytes) -> _Verified:
        """Return the identity that the certificate proves now; raise Unauthenticated or PeerUnknown."""
        snapshot, now = self._peers.snapshot(), self._clock()
        with self._lock:
            known = self._cache.get(pem)
        if known is not None and known.snapshot is snapshot and now < known.not_after:
            return known
        identity = verify_peer_certificate(pem, pins=snapshot.pins, now=now)
        if identity in snapshot.withdrawn:
            raise PeerUnknown(f"{identity} is withdrawn here")
        roots = snapshot.pins[identity.institution]
        ends = [c.not_valid_after_utc for c in (x509.load_pem_x509_certificate(pem), *roots)]
        verified = _Verified(snapshot, identity, min(end for end in ends if end > now))
        with self._lock:
            self._cache[pem] = verified
            if len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return verified


class Admission:
    """One call's permission; Unauthenticated, PeerUnknown or PolicyDenied if there is none."""

    def __init__(self, pem: bytes, method: str, verifier: Verifier, authoriser: Authoriser) -> None:
        self._pem = pem
        self._method = method
        self._verifier = verifier
        self._authoriser = authoriser
        self._verified = verifier.verify(pem)
        authoriser.authorise(self._verified.identity, method, self._verified.snapshot)

    @property
    def identity(self) -> Identity:
        return self._verified.identity

    @property
    def is_known(self) -> bool:
        """Whether it is of the own institution, or of exactly the node that was admitted of another one."""
        snapshot = self._verified.snapshot
        return self.identity.institution == snapshot.institution or snapshot.is_admitted_node(self.identity)

    @property
    def account(self) -> str:
        """For whom the call counts where one may have a number of them: the identity, if it is known.

        All others of an institution count as one, since it issues as many certificates as it likes.
        """
        return self.identity.uri if self.is_known else f"{self.identity.institution} beside its node"

    def check(self) -> None:
        """Raise unless the permission still holds; cost a few stats when nothing has changed."""
        verified = self._verifier.verify(self._pem)
        if verified.snapshot is not self._verified.snapshot:
            self._authoriser.authorise(verified.identity, self._method, verified.snapshot)
            self._verified = verified


def presented_certificate(auth: AuthContext) -> bytes:
    """Return the certificate that the caller presented over TLS 1.3; raise Unauthenticated without one."""
    transport = [list(auth.get(name, ())) for name in ("transport_security_type", "ssl_tls_version")]
    if transport != [[b"ssl"], [b"TLSv1.3"]]:
        raise Unauthenticated("the call did not come over TLS 1.3")
    certificates = list(auth.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise Unauthenticated("the call came without a client certificate")
    return certificates[0]


def claimed_identity(pem: bytes) -> str:
    """Return the identity that a certificate claims, maybe falsely, for the record of a refusal; empty if none."""
    if len(pem) > MAX_CERTIFICATE_BYTES:
        return ""
    try:
        return certified_identity(read_certificates(pem)[0]).uri
    except (Unauthenticated, ValueError):
        return ""


def parse_message(data: bytes, deserialiser: Callable[[bytes], Any] | None) -> Any:
    """Parse what an authorised caller sent; MessageInvalid, SettingsInvalid or UnknownFields if it is not valid."""
    if deserialiser is None:
        return data
    try:
        message = deserialiser(data)
    except (DecodeError, ValueError) as exc:
        raise MessageInvalid("a message cannot be parsed") from exc
    check(message)
    return message


@dataclass(slots=True)
class _Refused:
    """The refusals of one identity for one reason: those without a line, and what the last one was."""

    written_at: float
    unwritten: int = 0
    values: dict[str, str] = field(default_factory=dict)


class Refusals:
    """Records refusals, those of an identity for one reason as one line in `INTERVAL_S`."""

    def __init__(self, audit: AuditLog | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._clock = clock
        self._lock = threading.Lock()
        self._refused: dict[tuple[str, str], _Refused] = {}

    def record(self, context: grpc.ServicerContext, what: str, error: RefusedError, *, identity: str) -> None:
        """Record one refused call; a failure to write is logged and does not lift the refusal."""
        host = context.peer().rpartition(":")[0]
        log.warning("refused %s from %s: %s: %s", what, identity or host, error.reason, error.detail)
        self.add(error.reason, identity=identity, address=host, what=what, detail=error.detail)

    def add(self, reason: str, *, identity: str, address: str, what: str, detail: str) -> None:
        """Count a refusal, and write it if there was no line for this identity and reason lately."""
        with self._lock:
            key = (identity or address, reason)
            if key not in self._refused and len(self._refused) >= MAX_KEYS:
                key, identity = (OTHERS, reason), OTHERS
            entry = self._refused.setdefault(key, _Refused(self._clock() - INTERVAL_S))
            entry.unwritten += 1
            entry.values = {"identity": identity, "address": address, "what": what, "detail": detail}
        self._write(key)

    def flush(self, *, everything: bool = False) -> None:
        """Write merged refusals that are due, and forget identities that were not refused lately."""
        with self._lock:
            keys = list(self._refused)
        for key in keys:
            self._write(key, anyway=everything)

    def _write(self, key: tuple[str, str], *, anyway: bool = False) -> None:
        """Write the due refusals of one entry, without the lock, because writing waits for the disk."""
        with self._lock:
            entry, now = self._refused.get(key), self._clock()
            if entry is None or (now - entry.written_at < INTERVAL_S and not anyway):
                return
            if not entry.unwritten:
                del self._refused[key]
                return
            times, values = entry.unwritten, entry.values
            entry.written_at, entry.unwritten = now, 0
        try:
            if self._audit is not None:
                self._audit.write("refused", reason=key[1], times=times, **values)
        except OSError:
            log.exception("a refusal could not be written to the audit log")
            with self._lock:
                self._refused.setdefault(key, entry).unwritten += times
