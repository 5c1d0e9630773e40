"""The certificates of a node: the status of its own, its renewal, and the service that issues to its institution.

A certificate is renewed before it expires, with the own root or through the issuer. A private key is made where it is
used and stays there; only a request and a certificate are sent. A node that cannot renew reports it in its health while
the old certificate is still valid.
"""

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509

from ddib_fed.errors import ConfigError, DdibError, MessageInvalid, NotReady, Unauthenticated
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.connections import Repeated
from ddib_fed.node.policy import Charge
from ddib_fed.node.role import NodeContext
from ddib_fed.node.server import caller
from ddib_fed.security import pki
from ddib_fed.security.identity import UNREADABLE, Identity
from ddib_fed.security.tls import is_due, renew_through
from ddib_fed.v1 import identity_pb2 as pb
from ddib_fed.v1 import identity_pb2_grpc

log = logging.getLogger(__name__)

# Up to this share of the lifetime earlier, so that nodes started together do not all renew in the same minute.
JITTER: Final = 0.05
CHECK_INTERVAL_S: Final = 10.0
LONGEST_PAUSE: Final = timedelta(minutes=2)
TRIES_PER_LIFE: Final = 20
_BY_HAND: Final = "ddib pki request, have it signed by the issuer, then ddib pki install"
RENEWALS_PER_DAY: Final = 256
"""Each renewal of an identity is a line of the audit log."""


def own_authority(config: NodeConfig) -> pki.Authority:
    authority = pki.load_authority(config.paths.pki)
    _require_own(config, "root", authority.institution, config.node.institution)
    return authority


def own_credentials(config: NodeConfig) -> pki.TlsCredentials:
    """Return the node's certificate and key, which may have expired; raise ConfigError for another node's."""
    credentials = pki.load_identity(config.paths.pki)
    expected = Identity(config.node.institution, "node", config.node.name)
    _require_own(config, "certificate", credentials.identity, expected)
    return credentials


def _require_own(config: NodeConfig, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ConfigError(
            f"the {what} in {config.paths.pki} is of {found}, node.toml says {expected}", hint="ddib pki show"
        )


def certificate_status(config: NodeConfig) -> list[str]:
    """Return a line on the node's certificate at a start, and warnings if the operator should act."""
    moment, folder, issuer = datetime.now(UTC), config.paths.pki, config.identity.issuer
    authority = own_authority(config) if pki.has_authority(folder) else None
    if authority is not None and not (folder / "leaf.pem").exists():
        return [f"{config.node.name} of {config.node.institution}, whose certificate is made at the start"]
    credentials = own_credentials(config)
    problem = credentials.problem(moment)
    if problem is None:
        text = f"{credentials.identity}, until {credentials.not_after:%Y-%m-%d %H:%M} UTC"
        nothing = "" if authority or issuer else "nothing renews it: set identity.issuer"
        ends = pki.root_warning(config.node.institution, credentials.root_not_after, moment)
        return [text, *filter(None, (nothing, ends))]
    recovery = pki.load_recovery(folder) if issuer is not None else None
    if authority is not None:
        authority.check(moment)
    elif recovery is None or recovery.problem(moment) is not None:
        raise Unauthenticated(
            f"{problem}, and a start cannot renew it", hint=f"compare the clock (date -u); else {_BY_HAND}"
        )
    return [str(credentials.identity), f"{problem}; it is renewed at the start"]


def renew_node(config: NodeConfig, *, now: datetime | None = None) -> pki.TlsCredentials:
    """Renew a node's certificate with the root in its folder, or through the issuer that its configuration names."""
    folder, moment, issuer = config.paths.pki, now or datetime.now(UTC), config.identity.issuer
    if pki.has_authority(folder):
        life = config.identity.life("node")
        return pki.issue_to_folder(
            own_authority(config), folder, "node", config.node.name, now=moment, lifetime=life
        )
    if issuer is None:
        raise ConfigError(
            "the certificate cannot be renewed: no ca.key here, and no identity.issuer in node.toml",
            hint=f'add [identity] issuer = "NODE@HOST:PORT", the issuing node of this institution; or {_BY_HAND}',
        )
    name, _, address = issuer.partition("@")  # its form is the configuration's business
    identity = Identity(config.node.institution, "node", name)
    return renew_through(
        folder, address=address, server_name=identity.dns_name, hop=f"issuer {identity}", now=moment
    )


def recover_at_start(config: NodeConfig, *, now: datetime | None = None) -> str | None:
    """Renew an expired or due certificate before the port is bound; return a line about it."""
    moment, folder = now or datetime.now(UTC), config.paths.pki
    if pki.has_authority(folder):  # it signs for others too, also while the node's own certificate is valid
        own_authority(config)
        if not (folder / "leaf.pem").exists():
            renew_node(config, now=moment)
            return "made the node's first certificate"
    credentials = own_credentials(config)
    problem = credentials.problem(moment)
    if problem is None and not is_due(credentials, moment):
        return None
    try:
        renewed = renew_node(config, now=moment)
    except DdibError as error:
        if problem is None:
            return f"the certificate could not be renewed: {error.detail}"
        raise Unauthenticated(
            f"{problem}, and could not be renewed: {error.detail}", hint=error.hint or _BY_HAND
        ) from error
    return f"renewed the certificate, good until {renewed.not_after:%Y-%m-%d %H:%M} UTC"


class RenewalThread:
    """Renews a node's certificate while it runs; `problem` says why that fails now."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_tick: Callable[[], object] = lambda: None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._on_tick = on_tick
        self._jitter = random.uniform(0.0, JITTER)  # noqa: S311 - spreads load, keeps no secret
        self._has_looked = False
        looking = Repeated("renewal", self.look, lambda: CHECK_INTERVAL_S)
        self.start, self.stop = looking.start, looking.stop
        self._failed_at: datetime | None = None
        self.problem: str | None = None

    def look(self) -> None:
        """Renew if it is due; a failure becomes `problem`, and is tried again after a pause."""
        first, self._has_looked = not self._has_looked, True
        try:
            self._on_tick()
            credentials, now = pki.load_identity(self._config.paths.pki), self._clock()
            if not (is_due(credentials, now, jitter=self._jitter) or (first and self._needs_recovery())):
                self.problem = None
            elif not self._failed_lately(credentials, now):
                self._failed_at = now  # unless it succeeds
                renewed = renew_node(self._config, now=now)
                self._failed_at = self.problem = None
                log.info("renewed the certificate, good until %s", renewed.not_after)
                if warning := pki.root_warning(self._config.node.institution, renewed.root_not_after, now):
                    log.warning("%s", warning)
        except Exception as error:  # the thread must outlive any failure
            if self.problem is None:
                log.error(  # noqa: TRY400 - a traceback only where nobody foresaw the error
                    "the certificate could not be renewed; it is tried again: %s",
                    error,
                    exc_info=not isinstance(error, DdibError),
                )
            self.problem = f"renewal: {error}"

    def _needs_recovery(self) -> bool:
        """Return whether to renew early, because a node just enrolled has no certificate for recovery yet."""
        folder, issuer = self._config.paths.pki, self._config.identity.issuer
        return issuer is not None and not pki.has_authority(folder) and pki.load_recovery(folder) is None

    def _failed_lately(self, own: pki.TlsCredentials, now: datetime) -> bool:
        pause = min(LONGEST_PAUSE, (own.not_after - own.not_before) / TRIES_PER_LIFE)
        return self._failed_at is not None and timedelta(0) <= now - self._failed_at < pause


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """Renews the certificates of the institution's own nodes and clients."""

    def __init__(
        self, node: NodeContext, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._node, self._clock = node, clock
        self.recovery = timedelta(days=node.config.identity.recovery_days)

    def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        data, folder, quotas = request.certificate_request, self._node.config.paths.pki, self._node.quotas
        if not 0 < len(data) <= pki.MAX_REQUEST_BYTES:
            raise MessageInvalid(
                "a certificate request has 1 to 8192 bytes", facts={"max_bytes": pki.MAX_REQUEST_BYTES}
            )
        try:
            key = pki.check_request(x509.load_der_x509_csr(data))
        except (*UNREADABLE, Unauthenticated) as exc:
            raise MessageInvalid("the certificate request cannot be used") from exc
        identity, authority = caller(), pki.load_authority(folder)
        if identity.kind == "recovery":  # the node whose leaf has expired
            identity = Identity(identity.institution, "node", identity.name)
            self._node.peers.snapshot().refuse_withdrawn(identity)
        life, now = self._node.config.identity.life(identity.kind), self._clock()
        allowed = RENEWALS_PER_DAY + TRIES_PER_LIFE * int(timedelta(days=1) / life)
        charges = [Charge("renewals_per_day", identity.uri, 1, allowed)]
        quotas.charge(charges)
        certificate = pki.issue_leaf(
            authority, identity.kind, identity.name, public_key=key, now=now, lifetime=life
        )
        line = {
            "identity": identity.uri,
            "certificate": pki.fingerprint(certificate),
            "until": certificate.not_valid_after_utc.isoformat(),
            "by": "renewal",
        }
        try:
            self._node.write_audit("certificate_issued", [line])  # before it is given out
        except NotReady:
            quotas.refund(charges)
            raise
        log.info("renewed %s, asked by %s: %s", identity, caller(), pki.fingerprint(certificate))
        answer = pb.RenewResponse(
            certificate=pki.certificate_pem(certificate).decode(),
            roots=pki.load_identity(folder).roots_pem.decode(),
        )
        if identity.kind == "node" and self.recovery:
            recovery = pki.issue_leaf(
                authority, "recovery", identity.name, public_key=key, now=now, lifetime=self.recovery
            )
            answer.recovery = pki.certificate_pem(recovery).decode()
        return answer
