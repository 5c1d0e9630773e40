"""The CalibrationService: what a target gives an admitted peer for a calibration, and its signature.

Every answer is either bytes that the operator published, the units of the model, or the signature that the operator
gave a proposal. The figures of a proposal are the source's word, so no policy signs one by them. Each act and each
refusal is in the audit log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import grpc

from ddib_fed.calibration.record import Calibration, check_target, plain_units
from ddib_fed.calibration.signed import (
    SignedCalibration,
    Stored,
    parse_calibration,
    signature_from_pb,
    signature_to_pb,
)
from ddib_fed.errors import (
    CalibrationForeign,
    CalibrationRefused,
    CalibrationUnknown,
    ContractMismatch,
    Difference,
    DomainNotFound,
    NotReady,
    PolicyDenied,
    QuotaSpent,
)
from ddib_fed.node.calibrations import (
    Target,
    check_proposal,
    find_published,
    served_aggregate,
    usable_calibration,
)
from ddib_fed.node.interceptors import caller
from ddib_fed.node.policy import Charge
from ddib_fed.node.role import NodeContext
from ddib_fed.protocol.contract import Contract
from ddib_fed.v1 import calibration_pb2 as pb
from ddib_fed.v1 import calibration_pb2_grpc

log = logging.getLogger(__name__)


CALLS_PER_DAY: Final = 200
"""Of one peer, to all methods of the service."""
MAX_WAITING: Final = 8
"""Proposals of one peer that wait for the operator."""
AUDIT_RETRY_S: Final = 30.0


class CalibrationServicer(calibration_pb2_grpc.CalibrationServiceServicer):
    """See calibration.proto; every method answers for the peer that called it."""

    def __init__(
        self, node: NodeContext, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._node = node
        self._clock = clock
        self._lock = threading.Lock()

    def GetAggregate(
        self, request: pb.GetAggregateRequest, context: grpc.ServicerContext
    ) -> pb.GetAggregateResponse:
        self._open(request.domain)
        aggregate = served_aggregate(self._node.config, self._node.units_sha256)
        self._audit(
            "aggregate_served",
            peer=str(caller()),
            aggregate=aggregate.sha256.hex(),
            bytes=len(aggregate.canonical),
            epsilon=aggregate.epsilon,
            delta=aggregate.delta,
        )
        return pb.GetAggregateResponse(aggregate=aggregate.canonical)

    def GetUnits(self, request: pb.GetUnitsRequest, context: grpc.ServicerContext) -> pb.GetUnitsResponse:
        self._open(request.domain)
        if not self._node.config.policy.calibration_units:
            raise PolicyDenied(
                "policy.calibration_units is off: the units of the model are not given to peers",
                hint=f"[policy] calibration_units = true in {self._node.config.path}, then restart the node",
                facts={"policy": "calibration_units"},
            )
        self._audit("units_served", peer=str(caller()), units=self._node.units_sha256)
        return pb.GetUnitsResponse(units=plain_units(self._node.running_engine.model.manifest.normalisation))

    def SignCalibration(
        self, request: pb.SignCalibrationRequest, context: grpc.ServicerContext
    ) -> pb.SignCalibrationResponse:
        self._open(self._node.config.model.domain)
        with self._refusals_noted():
            calibration = parse_calibration(request.calibration, "what the peer proposed")
            if calibration.source.institution != caller().institution:
                raise CalibrationForeign(
                    f"{caller()} proposed a calibration of {calibration.source.institution or 'no institution'}",
                    facts={"source": calibration.source.institution},
                )
            source = signature_from_pb(request.source)
            answer = self._decide(SignedCalibration(calibration=calibration, source=source))
        if answer.target is None:
            return pb.SignCalibrationResponse(state=pb.CALIBRATION_STATE_PENDING)
        return pb.SignCalibrationResponse(
            state=pb.CALIBRATION_STATE_SIGNED, target=signature_to_pb(answer.target)
        )

    def _decide(self, proposed: SignedCalibration) -> SignedCalibration:
        """The proposal as it is stored afterwards, with the target's signature if there is one."""
        check_proposal(proposed, self._target(), now=self._clock())
        with self._lock:
            known = self._node.calibrations.find(proposed.sha256)
            if known is not None and not known.active:
                raise CalibrationUnknown(f"{proposed.sha256.hex()[:12]} was taken out of use here")
            if known is not None and known.signed.complete:
                return known.signed
            if known is None:
                self._keep(proposed)
            return proposed

    def _keep(self, proposed: SignedCalibration) -> None:
        """Store a new proposal, if the peer has not too many waiting."""
        peer, now = caller().institution, self._clock()
        waiting = [stored for stored in self._node.calibrations.list() if _waits(stored, peer, now)]
        if len(waiting) >= MAX_WAITING:
            raise QuotaSpent(
                f"{len(waiting)} proposals of {peer} wait for the operator",
                hint="ddib calibrate list; ddib calibrate accept SHA256, or remove SHA256",
                facts={"limit": MAX_WAITING},
            )
        self._audit(
            "calibration_proposed",
            peer=str(caller()),
            calibration=proposed.sha256.hex(),
            kind=proposed.calibration.kind,
            expires=proposed.calibration.expires.isoformat(),
        )
        self._node.calibrations.add(proposed, now=now)

    def _target(self) -> Target:
        config = self._node.config
        return Target(
            place=(config.node.institution, config.model.domain),
            units_sha256=self._node.units_sha256,
            policy=config.policy,
            peers=self._node.peers.snapshot(),
            published=find_published(config),
        )

    def _open(self, domain: str) -> None:
        """Return if the service answers at all: ready, allowed, of this domain, within the quota."""
        _ = self._node.engine  # refuses while loading or draining
        config, peer = self._node.config, caller()
        self._node.quotas.charge([Charge("calls_for_calibration", peer.institution, 1, CALLS_PER_DAY)])
        if not config.policy.calibration:
            raise PolicyDenied(
                "no kind of calibration is allowed here",
                hint=f'[policy] calibration = ["rotation"] in {config.path}',
                facts={"policy": "calibration"},
            )
        if domain != config.model.domain:
            raise DomainNotFound(
                f"{peer} asks for {domain!a}, and {config.model.domain} is served",
                facts={"asked": domain, "served": config.model.domain},
            )

    @contextmanager
    def _refusals_noted(self) -> Iterator[None]:
        try:
            yield
        except CalibrationRefused as error:
            self._audit("calibration_refused", peer=str(caller()), reason=error.reason, detail=error.detail)
            raise

    def _audit(self, act: str, **values: str | float) -> None:
        write_lines(self._node, act, [values])


def write_lines(node: NodeContext, act: str, lines: Sequence[Mapping[str, str | float]]) -> None:
    """Lines of the audit log, without which the act is refused."""
    try:
        node.audit.write_each(act, lines)
    except OSError as error:
        log.exception("the audit log cannot be written: %s is refused", act)
        raise NotReady("the audit log cannot be written", retry_after_s=AUDIT_RETRY_S) from error


def _waits(stored: Stored, peer: str, now: datetime) -> bool:
    return stored.state(now) == "proposed" and stored.signed.calibration.source.institution == peer


def check_calibration(node: NodeContext, contract: Contract) -> None:
    """Return if latents under the contract's calibration, or without one, are decoded here."""
    terms = contract.calibration
    if terms is None:
        return
    found = usable_calibration(
        node,
        terms.sha256,
        source=(contract.source.institution, contract.source.domain),
        target=(contract.target.institution, contract.target.domain),
        side="target",
    )
    _require_terms(found, contract)
    check_target(node.running_engine.model.manifest)


def _require_terms(found: Calibration, contract: Contract) -> None:
    if found.terms != contract.calibration:
        terms, proposed = found.terms, contract.calibration
        assert proposed is not None  # the caller looked
        raise ContractMismatch(
            f"{contract.source.institution} proposed the calibration {proposed} until {proposed.expires}, and both "
            f"institutions signed {terms} until {terms.expires}",
            differences=(
                Difference(
                    "calibration",
                    f"{proposed}, {proposed.expires}",
                    f"{terms}, {terms.expires}",
                    "Upgrade ddib-fed at the source: it must propose the terms that were signed.",
                ),
            ),
        )
