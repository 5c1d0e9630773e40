"""The IdentityService of the institution's issuing node: new certificates for its own nodes and clients."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, Final

from cryptography import x509

from ddib_fed.errors import MessageInvalid, NotReady, Unauthenticated
from ddib_fed.node.certificates.renewal import TRIES_PER_LIFE
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.quota import Charge, Ledger
from ddib_fed.server.interceptors import caller
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.identity import UNREADABLE, Identity
from ddib_fed.trust.pki import (
    MAX_REQUEST_BYTES,
    certificate_pem,
    check_request,
    fingerprint,
    issue_leaf,
    load_authority,
    load_identity,
)
from ddib_fed.trust.renewal import Clock, utc_now
from ddib_fed.trust.withdrawn import refuse_withdrawn
from ddib_fed.v1 import identity_pb2 as pb
from ddib_fed.v1 import identity_pb2_grpc

log = logging.getLogger(__name__)

AUDIT_RETRY_S = 30.0
RENEWALS_PER_DAY: Final = 256
"""Of one identity, by hand or otherwise; each is a line of the audit log."""


def renewals_per_day(life: timedelta) -> int:
    return RENEWALS_PER_DAY + TRIES_PER_LIFE * int(timedelta(days=1) / life)


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """Renews the certificates of the institution's own nodes and clients."""

    def __init__(
        self, config: NodeConfig, audit: AuditLog, quotas: Ledger, *, clock: Clock = utc_now
    ) -> None:
        self._folder = config.paths.pki
        self._audit = audit
        self._quotas = quotas
        self._life = config.identity.life
        self.recovery = timedelta(days=config.identity.recovery_days)
        self._clock = clock

    def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        """See identity.proto."""
        data = request.certificate_request
        if not 0 < len(data) <= MAX_REQUEST_BYTES:
            raise MessageInvalid(
                "a certificate request has 1 to 8192 bytes", facts={"max_bytes": MAX_REQUEST_BYTES}
            )
        try:
            key = check_request(x509.load_der_x509_csr(data))
        except (*UNREADABLE, Unauthenticated) as exc:
            raise MessageInvalid("the certificate request cannot be used") from exc
        identity, authority = self._renewed(caller()), load_authority(self._folder)
        life, now = self._life(identity.kind), self._clock()
        charges = [Charge("renewals_per_day", identity.uri, 1, renewals_per_day(life))]
        self._quotas.charge(charges)
        certificate = issue_leaf(
            authority, identity.kind, identity.name, public_key=key, now=now, lifetime=life
        )
        try:
            self._record(identity, certificate)
        except NotReady:
            self._quotas.refund(charges)
            raise
        log.info("renewed %s, asked by %s: %s", identity, caller(), fingerprint(certificate))
        answer = pb.RenewResponse(
            certificate=certificate_pem(certificate).decode(),
            roots=load_identity(self._folder).roots_pem.decode(),
        )
        if identity.kind == "node" and self.recovery:
            recovery = issue_leaf(
                authority, "recovery", identity.name, public_key=key, now=now, lifetime=self.recovery
            )
            answer.recovery = certificate_pem(recovery).decode()
        return answer

    def _record(self, identity: Identity, certificate: x509.Certificate) -> None:
        """Write down a certificate that is about to be given out."""
        try:
            self._audit.write(
                "certificate_issued",
                identity=identity.uri,
                certificate=fingerprint(certificate),
                until=certificate.not_valid_after_utc.isoformat(),
                by="renewal",
            )
        except OSError as error:
            raise NotReady("the audit log cannot be written", retry_after_s=AUDIT_RETRY_S) from error

    def _renewed(self, asking: Identity) -> Identity:
        if asking.kind != "recovery":
            return asking
        node = Identity(asking.institution, "node", asking.name)
        refuse_withdrawn(self._folder, node)
        return node
