"""TLS credentials and channels of a node or client, the renewal of its certificate, the probe that TLS 1.2 is refused.

Both sides must present a certificate, over TLS 1.3; there is no insecure mode. A private key never leaves its folder.
`ddib_fed.protocol` sets the cipher suites for this before grpc is imported.
"""

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ddib_fed.errors import ConfigError, DdibError, InputError, MessageInvalid, PeerUnreachable
from ddib_fed.files import write_file
from ddib_fed.protocol.addresses import Proxy
from ddib_fed.protocol.calls import MAX_MESSAGE_BYTES, CheckedChannel, from_rpc_error
from ddib_fed.security.diagnosis import TIMEOUT_S, Diagnosis, diagnose, explained
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, PeerStore
from ddib_fed.security.pki import (
    CLOCK_SKEW,
    RECOVERY,
    TlsCredentials,
    certificate_pem,
    check_few,
    check_issued,
    load_identity,
    load_recovery,
    new_key,
    parse_certificates,
    write_identity,
)

log = logging.getLogger(__name__)

KEEPALIVE_TIME_MS: Final = 20_000
# Both are needed: keepalive_timeout alone noticed a dead peer after 65 s, with ping_timeout after 8.
KEEPALIVE_TIMEOUT_MS: Final = 8_000
PROBE_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_MS: Final = 10_000
# A channel whose certificate was replaced is closed after the longest stream that may still use it.
RETIRED_CHANNEL_S: Final = 25 * 3600.0
_HANDSHAKE_RECORD: Final = 22
RENEW_AT: Final = 2 / 3
RENEWAL_TIMEOUT_S: Final = 20.0
# After a look at the files, time without one, in the CPU time that it took: a flood costs a bounded share.
_REST: Final = 10

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Time limit of one attempt to connect, TCP and TLS together: some round trips, perhaps to a busy machine.
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class ServerCredentials:
    """A server's credentials, updated from the files at each handshake.

    gRPC asks for them for every connection, before it is authenticated: after a look at the files there is a time
    without one, so that a flood of connections costs a bounded share.
    """

    def __init__(self, pki_folder: Path, peers: PeerStore) -> None:
        self._pki_folder = pki_folder
        self._peers = peers
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._next_look = 0.0
        self._current = self._read()
        self.grpc: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            _configuration(*self._current),
            self._fetch,  # type: ignore[arg-type]  # the stubs do not know that none is allowed
            require_client_authentication=True,
        )

    @property
    def problem(self) -> str | None:
        """Why the files can no longer be used, or the certificate has expired; connections use the last valid ones."""
        with self._lock:
            self._look()
        return self._problem or self._peers.problem

    def _read(self) -> tuple[TlsCredentials, bytes]:
        return load_identity(self._pki_folder), self._peers.snapshot().roots_pem

    def _look(self) -> tuple[TlsCredentials, bytes] | None:
        """Return the files' current content; None, with a problem set, if they cannot be used."""
        try:
            content = self._read()
        except Exception as error:  # gRPC would swallow it and keep the old trust silently
            if self._problem is None:
                log.error(  # noqa: TRY400 - a traceback only where nobody foresaw the error
                    "certificates cannot be read; the last valid ones stay in use: %s",
                    error,
                    exc_info=not isinstance(error, DdibError),
                )
            self._problem = "; ".join(filter(None, (f"certificates: {error}", getattr(error, "hint", ""))))
            return None
        ends = content[0].not_after
        expired = ends.timestamp() <= time.time()
        self._problem = f"the certificate expired at {ends:%Y-%m-%d %H:%M} UTC" if expired else None
        return content

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a new configuration to gRPC at a handshake, or None if nothing changed."""
        if time.monotonic() < self._next_look or not self._lock.acquire(blocking=False):
            return None
        try:
            started = time.thread_time()
            content = self._look()
            self._next_look = time.monotonic() + _REST * (time.thread_time() - started)
            if content is None or content == self._current:
                return None
            self._current = content
            return _configuration(*content)
        finally:
            self._lock.release()


def _configuration(own: TlsCredentials, roots_pem: bytes) -> grpc.ServerCertificateConfiguration:
    pairs = [(own.key_pem, own.cert_chain_pem)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=roots_pem)


def channel(
    address: str,
    *,
    server_name: str,
    pki_folder: Path,
    hop: str = "",
    own: bool = False,
    roots_pem: bytes | None = None,
    credentials: TlsCredentials | None = None,
    proxy: Proxy | None = None,
    options: Sequence[tuple[str, int | str]] = (),
) -> CheckedChannel:
    """Open a channel to one server, with the own certificate as it is now, or `credentials`; its answers are checked.

    `own` marks a server of the own institution; `roots_pem`, by default the own roots, may vouch for the server.
    """
    mine = credentials or load_identity(pki_folder)
    shown = grpc.ssl_channel_credentials(roots_pem or mine.roots_pem, mine.key_pem, mine.cert_chain_pem)
    names = (("grpc.ssl_target_name_override", server_name), ("grpc.default_authority", server_name))
    dialled, tunnel = (address, ()) if proxy is None else (proxy.address, proxy.options(address))
    # Of two options of one name gRPC takes the first.
    bare = grpc.secure_channel(dialled, shown, options=(*options, *names, *tunnel, *CHANNEL_OPTIONS))
    return CheckedChannel(bare, hop or server_name, own=own)


@dataclass(frozen=True, slots=True)
class _Open:
    peer: Peer
    leaf: bytes
    channel: CheckedChannel


class PeerChannels:
    """One channel for each peer; replaced when the own certificate or the peer's entry changes.

    A replaced channel stays open for its streams. That of a peer that was removed, suspended or withdrawn, or that was
    verified by a root which is no longer pinned, is closed at once, which ends them. Unusable own files do not stop
    the node: it calls and answers with the last valid ones, and `ServerCredentials.problem` reports it.
    """

    def __init__(
        self,
        pki_folder: Path,
        peers: PeerStore,
        *,
        proxy: Proxy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pki_folder = pki_folder
        self._peers = peers
        self._proxy = proxy
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._retired: list[tuple[float, _Open]] = []
        self._own: TlsCredentials | None = None
        with suppress(DdibError):  # a call to a peer reports it
            self._own = load_identity(pki_folder)

    def get(self, institution: str) -> CheckedChannel:
        """Return the channel to a peer for the next call; do not keep it. Raise PeerNotFound or PeerSuspended."""
        with self._lock:
            self._close_stale()
            peer = self._peers.get(institution)
            with suppress(DdibError):  # the last valid one is used
                self._own = load_identity(self._pki_folder)
            credentials = self._own or load_identity(self._pki_folder)
            entry = self._open.get(institution)
            if entry is not None and entry.channel.broken:
                entry = None
            if entry is not None and (entry.peer, entry.leaf) == (peer, credentials.cert_chain_pem):
                return entry.channel
            if entry is not None:
                self._retired.append((self._clock(), entry))
            opened = channel(
                peer.address,
                server_name=peer.identity.dns_name,
                pki_folder=self._pki_folder,
                hop=f"target {institution}",
                roots_pem=certificate_pem(*peer.roots),
                credentials=credentials,
                proxy=self._proxy,
            )
            self._open[institution] = _Open(peer, credentials.cert_chain_pem, opened)
            return opened

    def diagnosis(self, peer: Peer, timeout_s: float = TIMEOUT_S) -> Diagnosis:
        return diagnose(
            peer.address,
            server_name=peer.identity.dns_name,
            pki_folder=self._pki_folder,
            roots_pem=certificate_pem(*peer.roots),
            proxy=self._proxy,
            timeout_s=timeout_s,
        )

    def explained(self, institution: str, error: DdibError, timeout_s: float = TIMEOUT_S) -> DdibError:
        """Return a failed call's error, with the cause if a connection to the peer fails now."""
        peer = self._peers.snapshot().peers.get(institution)
        failure = error if peer is None else explained(error, lambda: self.diagnosis(peer, timeout_s))
        if "found" in failure.facts:
            failure.facts["peer"] = institution
        return failure

    def refresh(self) -> None:
        """Close the channels that the peers' entries no longer allow; `get` does so too."""
        with self._lock:
            self._close_stale()

    def _close_stale(self) -> None:
        snapshot = self._peers.snapshot()
        kept: list[tuple[float, _Open]] = []
        for since, entry in self._retired:
            if snapshot.allows(entry.peer) and self._clock() - since < RETIRED_CHANNEL_S:
                kept.append((since, entry))
            else:
                entry.channel.close()
        self._retired = kept
        for institution, entry in list(self._open.items()):
            if not snapshot.allows(entry.peer):
                self._open.pop(institution).channel.close()

    def close(self) -> None:
        with self._lock:
            for entry in (*self._open.values(), *(entry for _since, entry in self._retired)):
                entry.channel.close()
            self._open.clear()
            self._retired.clear()


def is_due(credentials: TlsCredentials, now: datetime, *, jitter: float = 0.0) -> bool:
    """Return whether two thirds of a certificate's life, less the share `jitter`, are over.

    One that is not valid yet is due too: it was made while a clock was wrong, which has been put right.
    """
    life = credentials.not_after - credentials.not_before
    due = credentials.not_before + life * (RENEW_AT - jitter)
    return now >= due or now < credentials.not_before - CLOCK_SKEW


def renew_through(
    folder: Path,
    *,
    address: str,
    server_name: str,
    hop: str,
    proxy: Proxy | None = None,
    now: datetime | None = None,
) -> TlsCredentials:
    """Get a certificate for a new key from the institution's issuer, check it, and install both.

    An expired node asks with its certificate for recovery. Raise Unauthenticated or MessageInvalid for a wrong answer.
    """
    from ddib_fed.v1 import identity_pb2, identity_pb2_grpc

    current, key, moment = load_identity(folder), new_key(), now or datetime.now(UTC)
    asking = load_recovery(folder) if moment >= current.not_after else None
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    request = identity_pb2.RenewRequest(certificate_request=csr.public_bytes(serialization.Encoding.DER))
    with channel(
        address,
        server_name=server_name,
        pki_folder=folder,
        hop=hop,
        own=True,
        credentials=asking,
        proxy=proxy,
    ) as opened:
        try:
            stub = identity_pb2_grpc.IdentityServiceStub(opened)
            answer = stub.Renew(request, timeout=RENEWAL_TIMEOUT_S)
        except grpc.RpcError as error:
            look = partial(diagnose, address, server_name=server_name, pki_folder=folder, proxy=proxy)
            raise explained(from_rpc_error(error, hop), look) from error
    what, owner = "the issuer's answer", current.identity
    try:
        roots = parse_certificates(answer.roots.encode(), what)
        certificate = parse_certificates(answer.certificate.encode(), what)[0]
        recovery = parse_certificates(answer.recovery.encode(), what)[0] if answer.recovery else None
    except InputError as exc:
        raise MessageInvalid(exc.detail) from exc
    check_few(roots, what)
    recovered = Identity(owner.institution, "recovery", owner.name)
    for issued, expected in ((certificate, owner), (recovery, recovered)):
        if issued is None:
            continue
        if issued.public_key() != key.public_key():
            raise MessageInvalid(f"{what} is for another key")
        check_issued(issued, roots, now=moment, known=current.roots, expected=expected, what=what)
    write_identity(folder, certificate=certificate, key=key, roots=roots)
    if recovery is not None:
        write_file(folder / RECOVERY, certificate_pem(recovery), private=True)
    return load_identity(folder)


def probe_tls12(host: str, port: int) -> None:
    """Raise ConfigError if a server answers a client that supports at most TLS 1.2.

    Its first record counts: the end of the handshake would fail for want of a client certificate, like a refusal.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):  # it wants an answer to the greeting that now lies in `outgoing`
        context.wrap_bio(incoming, outgoing).do_handshake()
    try:
        with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S) as connection:
            connection.sendall(outgoing.read())
            first = connection.recv(1)
    except ConnectionResetError:
        first = b""
    except OSError as exc:
        raise PeerUnreachable(f"no connection to {host}:{port} for the check of TLS 1.2: {exc}") from exc
    if first == bytes([_HANDSHAKE_RECORD]):
        raise ConfigError(
            f"{host}:{port} accepts TLS 1.2, only 1.3 is allowed",
            hint="grpc was imported before ddib_fed.protocol, or this grpcio ignores GRPC_SSL_CIPHER_SUITES",
            facts={"GRPC_SSL_CIPHER_SUITES": os.environ.get("GRPC_SSL_CIPHER_SUITES", "")},
        )
