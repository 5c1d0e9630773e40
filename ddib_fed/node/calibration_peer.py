"""The source's calls to a target's CalibrationService; every answer is checked before it is used."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import grpc
from pydantic import ValidationError

from ddib_fed.calibration.aggregate import Aggregate, read_aggregate
from ddib_fed.calibration.signed import Signature, SignedCalibration
from ddib_fed.data.fitting import Fit, PictureRule
from ddib_fed.errors import (
    AggregateNotFound,
    DomainNotFound,
    MessageInvalid,
    PeerUnreachable,
    PolicyDenied,
    ShapeMismatch,
    StateConflict,
)
from ddib_fed.models.units import Normalisation
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.policy import check_use
from ddib_fed.protocol.contract import PROTOCOL, ContractSide
from ddib_fed.protocol.details import at_fault, checking_answers, failure_of_peer, status_of
from ddib_fed.protocol.messages import from_message
from ddib_fed.security.diagnosis import TIMEOUT_S
from ddib_fed.security.tls import PeerChannels
from ddib_fed.v1 import calibration_pb2 as pb
from ddib_fed.v1 import calibration_pb2_grpc, decoding_pb2, decoding_pb2_grpc

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig

CALL_TIMEOUT_S: Final = 20.0
_FITS: Final[dict[str, Fit]] = {"resize": "resize", "crop": "crop", "pad": "pad"}
"""By the size rule of a side; one that refuses other sizes has none of its own."""
R = TypeVar("R")


class CalibrationPeer:
    """A peer's node, called with this node's certificate; a context manager that closes the connection."""

    def __init__(self, config: NodeConfig, institution: str, domain: str) -> None:
        self._peers = peer_store(config)
        self._peers.get(institution)
        check_use(institution, "calibrate", config.policy)
        self._channels = PeerChannels(config.paths.pki, self._peers, proxy=config.proxy)
        self._institution, self._domain = institution, domain
        self.hop = f"target {institution}"
        self.crossed: dict[str, int] = {}
        self._channel = self._channels.get(institution)
        self._stub = calibration_pb2_grpc.CalibrationServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._channels.close()

    def aggregate(self) -> Aggregate:
        """What the peer's operator published, in the units that its `units_sha256` names."""
        answer = self._ask(self._stub.GetAggregate, pb.GetAggregateRequest(domain=self._domain))
        with checking_answers(self.hop):
            found = read_aggregate(answer.aggregate)
            self.crossed["aggregate received"] = len(answer.aggregate)
            if found.canonical != answer.aggregate:
                raise MessageInvalid("an aggregate that is not canonical")
            if found.domain != self._domain:
                raise MessageInvalid(f"an aggregate of {found.domain}, not of {self._domain}")
        return found

    def units(self) -> Normalisation:
        """The units of the peer's model, for anchors: mean and deviation of its channels, not noised."""
        answer = self._ask(self._stub.GetUnits, pb.GetUnitsRequest(domain=self._domain))
        self.crossed["units received"] = len(answer.units)
        try:
            return Normalisation.model_validate_json(answer.units)
        except ValidationError as error:
            raise at_fault(MessageInvalid("units that cannot be read"), self.hop) from error

    def picture_rule(self, shape: tuple[int, ...]) -> PictureRule:
        """How pictures of the peer's domain become the input of its model, from its side of a contract."""
        request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
        answer = self._ask(decoding_pb2_grpc.DecodingServiceStub(self._channel).DescribeDomain, request)
        with checking_answers(self.hop):
            side = from_message(answer.side, ContractSide)
        if side.domain != self._domain:
            raise DomainNotFound(
                f"{self._institution} serves {side.domain}, not {self._domain}",
                hop=self.hop,
                hint=f"ddib calibrate --peer {self._institution}/{side.domain}",
            )
        if side.picture is None or side.sample_shape != shape:
            raise ShapeMismatch(
                f"the model of {self._institution} is of the shape {side.sample_shape}, the one here of {shape}",
                hop=self.hop,
            )
        channels, height, width = shape
        fit = _FITS.get(side.size_rule, "resize")
        return PictureRule(
            channels, height, width, fit, side.picture.low, side.picture.high, side.picture.bits
        )

    def propose(self, proposed: SignedCalibration, *, now: datetime | None = None) -> SignedCalibration:
        """Send a calibration that this node has signed; it comes back with the peer's signature, if it has one."""
        if proposed.source is None:
            raise StateConflict("a proposal is signed before it is sent")
        request = pb.SignCalibrationRequest(
            calibration=proposed.calibration.canonical, source=proposed.source.to_pb()
        )
        answer = self._ask(self._stub.SignCalibration, request)
        self.crossed["calibration sent"] = len(request.calibration)
        self.crossed["own signature and certificate sent"] = request.source.ByteSize()
        if answer.HasField("target"):
            self.crossed["signature and certificate received"] = answer.target.ByteSize()
        if answer.state == pb.CALIBRATION_STATE_PENDING:
            return proposed
        if answer.state != pb.CALIBRATION_STATE_SIGNED or not answer.HasField("target"):
            raise at_fault(MessageInvalid("neither a signature nor that it is pending"), self.hop)
        with checking_answers(self.hop):
            complete = proposed.model_copy(update={"target": Signature.from_pb(answer.target)})
        peers = self._peers.snapshot()
        complete.verify(pins=peers.pins, withdrawn=peers.withdrawn, now=now or datetime.now(UTC))
        return complete

    def _ask(self, method: Callable[..., R], request: Any) -> R:
        """Call, and add to a failure the next step that this operator can take or ask for."""
        try:
            return method(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            if status_of(error) is grpc.StatusCode.UNIMPLEMENTED:
                raise PolicyDenied(
                    f"{self.hop} does not know calibrations: it is no target",
                    hop=self.hop,
                    hint=f"ddib peer test {self._institution}",
                ) from error
            found = self._channels.explained(self._institution, failure_of_peer(error, self.hop), TIMEOUT_S)
            ask = f"ask the operator of {self._institution}"
            if isinstance(found, AggregateNotFound):
                found.hint = f"{ask} to run: ddib calibrate publish --config node.toml"
            elif isinstance(found, PolicyDenied) and "policy" in found.facts:
                found.hint = f"{ask} for [policy] {found.facts['policy']} in its node.toml"
            elif isinstance(found, PeerUnreachable) and not found.hint:
                found.hint = f"ddib peer test {self._institution}"
            raise found from error
