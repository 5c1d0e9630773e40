"""The CalibrationService: what a target gives an admitted peer for a calibration, and its signature.

Every answer is either bytes that the operator published, the units of the model, or the signature that the operator
gave a proposal. The figures of a proposal are the source's word, so no policy signs one by them. Each act and each
refusal is in the audit log.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Final

from grpc import ServicerContext

from ddib_fed.calibration.record import Signature, SignedCalibration, parse_calibration, plain_units
from ddib_fed.errors import (
    CalibrationForeign,
    CalibrationRefused,
    CalibrationUnknown,
    DomainNotFound,
    PolicyDenied,
    QuotaSpent,
)
from ddib_fed.node.calibrations import check_proposal, line_of, served_aggregate
from ddib_fed.node.policy import Charge
from ddib_fed.node.role import NodeContext
from ddib_fed.node.server import caller
from ddib_fed.v1 import calibration_pb2 as pb
from ddib_fed.v1 import calibration_pb2_grpc

CALLS_PER_DAY: Final = 200
"""Of one peer, to all methods of the service."""
MAX_WAITING: Final = 8
"""Proposals of one peer that wait for the operator."""


class CalibrationServicer(calibration_pb2_grpc.CalibrationServiceServicer):
    """See calibration.proto; every method answers for the peer that called it."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._lock = threading.Lock()

    def GetAggregate(
        self, request: pb.GetAggregateRequest, context: ServicerContext
    ) -> pb.GetAggregateResponse:
        self._open(request.domain)
        aggregate = served_aggregate(self._node.config, self._node.units_sha256)
        self._audit(
            "aggregate_served",
            aggregate=aggregate.sha256.hex(),
            bytes=len(aggregate.canonical),
            epsilon=aggregate.epsilon,
            delta=aggregate.delta,
        )
        return pb.GetAggregateResponse(aggregate=aggregate.canonical)

    def GetUnits(self, request: pb.GetUnitsRequest, context: ServicerContext) -> pb.GetUnitsResponse:
        self._open(request.domain)
        if not self._node.config.policy.calibration_units:
            raise PolicyDenied(
                "policy.calibration_units is off: the units of the model are not given to peers",
                hint=f"[policy] calibration_units = true in {self._node.config.path}, then restart the node",
                facts={"policy": "calibration_units"},
            )
        self._audit("units_served", units=self._node.units_sha256)
        return pb.GetUnitsResponse(units=plain_units(self._node.running_engine.model.manifest.normalisation))

    def SignCalibration(
        self, request: pb.SignCalibrationRequest, context: ServicerContext
    ) -> pb.SignCalibrationResponse:
        self._open(self._node.config.model.domain)
        try:
            calibration = parse_calibration(request.calibration, "what the peer proposed")
            if calibration.source.institution != caller().institution:
                raise CalibrationForeign(
                    f"{caller()} proposed a calibration of {calibration.source.institution or 'no institution'}",
                    facts={"source": calibration.source.institution},
                )
            source = Signature.from_pb(request.source)
            answer = self._kept(SignedCalibration(calibration=calibration, source=source))
        except CalibrationRefused as error:
            self._audit("calibration_refused", reason=error.reason, detail=error.detail)
            raise
        if answer.target is None:
            return pb.SignCalibrationResponse(state=pb.CALIBRATION_STATE_PENDING)
        return pb.SignCalibrationResponse(state=pb.CALIBRATION_STATE_SIGNED, target=answer.target.to_pb())

    def _kept(self, proposed: SignedCalibration) -> SignedCalibration:
        """The proposal as it is stored afterwards, with the target's signature if there is one."""
        node, now, peer = self._node, datetime.now(UTC), caller().institution
        check_proposal(proposed, node.config, node.units_sha256, node.peers.snapshot(), now=now)
        with self._lock:
            known = node.calibrations.find(proposed.sha256)
            if known is not None and not known.active:
                raise CalibrationUnknown(f"{proposed.short} was taken out of use here")
            if known is not None:
                return known if known.complete else proposed
            waiting = [
                each
                for each in node.calibrations.list()
                if each.state(now) == "proposed" and each.calibration.source.institution == peer
            ]
            if len(waiting) >= MAX_WAITING:
                raise QuotaSpent(
                    f"{len(waiting)} proposals of {peer} wait for the operator",
                    hint="ddib calibrate list; ddib calibrate accept SHA256, or remove SHA256",
                    facts={"limit": MAX_WAITING},
                )
            self._audit("calibration_proposed", **line_of(proposed))
            return node.calibrations.add(proposed, now=now)

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

    def _audit(self, act: str, **values: str | float) -> None:
        self._node.write_audit(act, [{"peer": str(caller()), **values}])
