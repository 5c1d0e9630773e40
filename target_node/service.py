"""Serves the DecodingService, which turns peers' latents into pictures of this domain, and the CalibrationService.

The target keeps no picture and no latent, only contracts, spent quotas and calibrations.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import grpc
from grpc import ServicerContext
from opentelemetry.trace import Span, SpanKind

from ddib_fed.calibration.record import (
    Signature,
    SignedCalibration,
    parse_calibration,
    plain_units,
    units_digest,
)
from ddib_fed.engine.model import check_steps
from ddib_fed.errors import (
    CalibrationForeign,
    CalibrationRefused,
    CalibrationUnits,
    CalibrationUnknown,
    ContractUnknown,
    DomainNotFound,
    PolicyDenied,
    QuotaSpent,
)
from ddib_fed.files import require
from ddib_fed.latent import Latent
from ddib_fed.node.calibrations import check_decodable, check_proposal, line_of, served_aggregate
from ddib_fed.node.config import MAX_POINTS_PER_ITEM
from ddib_fed.node.policy import (
    Charge,
    check_most_evaluations,
    check_settings,
    check_softening,
    evaluations_of,
    peer_charges,
)
from ddib_fed.node.role import NodeContext, RoleService, solver_settings
from ddib_fed.node.server import Pace, caller
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import (
    PROTOCOL,
    Contract,
    agree,
    calibration_text,
    check_offered,
    guidance_from_pb,
    place_of,
    require_protocol,
)
from ddib_fed.protocol.streams import file_header, first_header, stream
from ddib_fed.security.audit import anchor_of
from ddib_fed.telemetry import MOST_ITEMS, takes_entries, trace_of
from ddib_fed.v1 import calibration_pb2, calibration_pb2_grpc, decoding_pb2_grpc
from ddib_fed.v1 import decoding_pb2 as pb
from target_node.stream import (
    AHEAD_BYTES,
    Arrived,
    DecodedFile,
    DecodeStream,
    Receipt,
    control_of,
    latents_of,
    weight_of,
)

PICTURES_PER_ITEM = 1
LEAST_EVALUATIONS = 10_000
"""Charge an item at least for the time of receiving, recording and answering it."""
CONTRACTS_PER_DAY = 10_000
"""Limit the contracts of one peer, each of which is a line of the audit log."""
MAX_CONTRACTS = 8
"""Remember a few contracts of each peer: it needs one at a time, and calls under way need the one before."""


class AgreedContracts:
    """Contracts by digest; safe to use from any thread."""

    def __init__(self) -> None:
        self._contracts: OrderedDict[bytes, Contract] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, sha256: bytes) -> bool:
        return sha256 in self._contracts

    def remember(self, contract: Contract) -> None:
        """Keep a contract as the newest of its peer, and drop the peer's oldest one."""
        institution = contract.source.institution
        with self._lock:
            self._contracts[contract.digest] = contract
            self._contracts.move_to_end(contract.digest)
            digests = [key for key, one in self._contracts.items() if one.source.institution == institution]
            for digest in digests[:-MAX_CONTRACTS]:
                del self._contracts[digest]

    def get(self, sha256: bytes, institution: str) -> Contract:
        with self._lock:
            contract = self._contracts.get(sha256)
        if contract is None or contract.source.institution != institution:
            raise ContractUnknown("a contract that was not agreed on with this process", retry_after_s=0.1)
        return contract


class DecodingServicer(decoding_pb2_grpc.DecodingServiceServicer):
    """See decoding.proto; every method answers for the peer that called it."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._agreed = AgreedContracts()
        self._turns: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self.active = 0
        self._idle = threading.Condition()

    def limits(self) -> pb.ContractLimits:
        """Return the limits of a contract with this node."""
        limits, shape = self._node.config.limits, self._node.running_engine.model.latent_shape
        samples = MAX_POINTS_PER_ITEM if len(shape) == 1 else PICTURES_PER_ITEM
        terms = self._node.guidance()
        return pb.ContractLimits(
            max_items_per_stream=limits.max_items_per_job,
            max_samples_per_item=samples,
            max_latent_bytes=samples * math.prod(shape) * 4,
            max_evaluations=limits.max_evaluations,
            guidance=terms if terms.ByteSize() else None,  # absent if none is offered
            min_evaluations=min(self._node.config.policy.least_evaluations, limits.max_evaluations),
        )

    def DescribeDomain(
        self, request: pb.DescribeDomainRequest, context: ServicerContext
    ) -> pb.DescribeDomainResponse:
        _ = self._node.engine  # refuses while loading or draining
        require_protocol(request.protocol, PROTOCOL)
        side, limits = self._node.side(), self.limits()
        return pb.DescribeDomainResponse(protocol=PROTOCOL, side=side, limits=limits)

    def NegotiateContract(
        self, request: pb.NegotiateContractRequest, context: ServicerContext
    ) -> pb.NegotiateContractResponse:
        _ = self._node.engine
        require_protocol(request.protocol, PROTOCOL)
        source, peer = request.source, caller()
        if source.institution != peer.institution:
            raise PolicyDenied(
                f"{peer} proposed a contract for {source.institution}",
                facts={"institution": source.institution},
            )
        calibration = request.calibration if request.HasField("calibration") else None
        contract = agree(source, self._node.side(), self.limits(), calibration)
        check_softening(source.soften_sigma, self._node.config.policy)
        self._check_calibration(contract)
        if contract.digest not in self._agreed:
            charge = Charge("contracts_per_day", peer.institution, 1, CONTRACTS_PER_DAY)
            self._node.quotas.charge([charge])
            line = {"peer": str(peer), "contract": contract.digest.hex()}
            self._node.write_audit(
                "contract_agreed", [line | {"calibration": calibration_text(contract.calibration)}]
            )
        self._agreed.remember(contract)
        if entries := takes_entries(self._node.tracing, peer.institution):
            context.set_trailing_metadata(entries)
        return pb.NegotiateContractResponse(contract=contract.message, sha256=contract.digest)

    def Decode(
        self, request_iterator: Iterator[pb.DecodeRequest], context: ServicerContext
    ) -> Iterator[pb.DecodeResponse]:
        _ = self._node.engine  # refuses while loading or draining
        limits, receipts = self._node.config.limits, list[Receipt]()
        pace = Pace(
            limits.stall_s, between_s=limits.idle_s, busy=lambda: any(receipt.owes for receipt in receipts)
        )
        pace.begin(0)  # the header stalls, it is not idle
        with ReadAhead(request_iterator, AHEAD_BYTES, "upload", weigh=weight_of) as ahead:
            messages = ahead.each(pace.wait_s, pace.late)
            header = first_header(messages, "Decode")
            pace.end()
            peer = caller().institution
            contract = self._agreed.get(header.contract_sha256, peer)
            self._check(contract, header)
            receipt = Receipt(self._node, str(caller()), header.request_id, contract)
            receipts.append(receipt)
            decoding = DecodeStream(
                self._node.running_engine,
                header,
                contract,
                latents_of(
                    messages,
                    contract,
                    header.items,
                    pace,
                    receipt.received,
                    ready=lambda: ahead.ready,
                    most_rows=max(1, self._node.running_engine.window // 2),
                ),
                control_of(context),
                self._on_items(header, receipt),
                end_input=ahead.leave,
                owner=peer,
            )
            with self._counted(), receipt, self._span(context, peer, header.request_id) as span:
                for event in decoding.run():
                    if isinstance(event, DecodedFile):
                        if receipt.exchanged.sent_items < MOST_ITEMS:
                            self._node.tracing.record("decode item", event.seconds, parent=span)
                        yield from self._messages(event, receipt)
                    else:
                        yield pb.DecodeResponse(progress=event)

    def _span(self, context: ServicerContext, peer: str, request_id: str) -> AbstractContextManager[Span]:
        tracing = self._node.tracing
        parent = trace_of(context.invocation_metadata(), tracing, peer)
        return tracing.span("decode", kind=SpanKind.SERVER, parent=parent, peer=peer, job=request_id)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._idle:
            self.active += 1
        try:
            yield
        finally:
            with self._idle:
                self.active -= 1
                self._idle.notify_all()

    def wait_idle(self, timeout_s: float) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self.active, max(0.0, timeout_s))

    def _check(self, contract: Contract, header: pb.DecodeHeader) -> None:
        """Raise unless the contract, the policy and the model allow this header of a call."""
        limits, config, guidance = contract.limits, self._node.config, guidance_from_pb(header.guidance)
        most = limits.max_items_per_stream
        require(1 <= header.items <= most, "items", f"must be from 1 to {most}")
        require(bool(header.request_id), "request_id", "must be set")
        check_most_evaluations(header.solver.evaluations, limits.max_evaluations)
        settings = solver_settings(header.solver)
        check_settings(settings, config.policy, where=config.node.institution)
        if header.round_trip and not config.policy.round_trip:
            raise PolicyDenied("round trips are switched off here", facts={"policy": "round_trip"})
        self._check_calibration(contract)
        check_offered(guidance, limits.guidance, place_of(contract.target))
        model = self._node.running_engine.model
        model.plan(settings)
        check_steps(model.bundle, replace(settings, share=1.0), guidance)  # classes: each latent's

    def _check_calibration(self, contract: Contract) -> None:
        if contract.calibration is not None:
            source, target = ((side.institution, side.domain) for side in (contract.source, contract.target))
            check_decodable(self._node, contract.calibration, source=source, target=target)

    def _charges(self, peer: str, header: pb.DecodeHeader, latent: Latent) -> Sequence[Charge]:
        samples = len(latent.data)
        evaluations = evaluations_of(
            samples,
            latent.data.shape[1:],
            solver_settings(header.solver).evaluations,
            guidance_from_pb(header.guidance),
            round_trip=header.round_trip,
        )
        most = max(evaluations, LEAST_EVALUATIONS)
        return peer_charges(self._node.config.policy, peer, samples=samples, evaluations=most)

    def _on_items(self, header: pb.DecodeHeader, receipt: Receipt) -> Callable[[Sequence[Arrived]], int]:
        peer = caller()
        with self._lock:
            turn = self._turns.setdefault(peer.institution, threading.Lock())

        def on_items(arrived: Sequence[Arrived]) -> int:
            with turn:  # only one stream of each peer waits for the disk
                charges = [self._charges(peer.institution, header, item.latent) for item in arrived]
                count = self._node.quotas.charge_each(charges)
                taken = [arrived[place] for place in range(count)]  # a deque has no slices
                self._node.write_audit("latent_received", [receipt.line(item) for item in taken])
            self._node.metrics.latent_bytes.labels("in").inc(sum(item.latent.size_bytes for item in taken))
            self._node.metrics.samples.labels("decode").inc(sum(len(item.latent.data) for item in taken))
            return count

        return on_items

    def _messages(self, translated: DecodedFile, receipt: Receipt) -> Iterator[pb.DecodeResponse]:
        self._node.metrics.items.labels("decode", "ok").inc()
        self._node.metrics.seconds.labels("decode").observe(translated.seconds)
        header = pb.DecodedHeader(
            item=translated.item,
            file=file_header(translated.media_type, translated.file),
            seconds=translated.seconds,
            audit=anchor_of(self._node.audit.head),
        )
        returned = 0 if translated.round_trip is None else translated.round_trip.size_bytes
        receipt.exchanged.sent(len(translated.file) + returned)
        yield from stream(pb.DecodeResponse, "result", header, translated.file)
        if translated.round_trip is not None:
            yield from translated.round_trip.stream(pb.DecodeResponse)


CALLS_PER_DAY: Final = 200
MAX_WAITING: Final = 8


class CalibrationServicer(calibration_pb2_grpc.CalibrationServiceServicer):
    """See calibration.proto. Only the operator signs a proposal: its figures are the source's word."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._lock = threading.Lock()

    def GetAggregate(
        self, request: calibration_pb2.GetAggregateRequest, context: ServicerContext
    ) -> calibration_pb2.GetAggregateResponse:
        self._open(request.domain)
        aggregate = served_aggregate(self._node.config, self._node.units_sha256)
        self._audit(
            "aggregate_served",
            aggregate=aggregate.sha256.hex(),
            bytes=len(aggregate.canonical),
            epsilon=aggregate.epsilon,
            delta=aggregate.delta,
        )
        return calibration_pb2.GetAggregateResponse(aggregate=aggregate.canonical)

    def GetUnits(
        self, request: calibration_pb2.GetUnitsRequest, context: ServicerContext
    ) -> calibration_pb2.GetUnitsResponse:
        self._open(request.domain)
        served = self._node.running_engine.model.manifest.calibrated_units
        if request.latents and len(served) == 1:
            raise CalibrationUnits(
                f"the model of {request.domain} has no autoencoder, so there are no units of latents",
                hint="a rotation of latents is between two models of one autoencoder",
            )
        units = served[request.latents]
        self._audit("units_served", units=units_digest(units))
        return calibration_pb2.GetUnitsResponse(units=plain_units(units))

    def SignCalibration(
        self, request: calibration_pb2.SignCalibrationRequest, context: ServicerContext
    ) -> calibration_pb2.SignCalibrationResponse:
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
            return calibration_pb2.SignCalibrationResponse(state=calibration_pb2.CALIBRATION_STATE_PENDING)
        return calibration_pb2.SignCalibrationResponse(
            state=calibration_pb2.CALIBRATION_STATE_SIGNED, target=answer.target.to_pb()
        )

    def _kept(self, proposed: SignedCalibration) -> SignedCalibration:
        """Store a proposal and return it, with the target's signature if it has one; raise if it is refused."""
        node, now, peer = self._node, datetime.now(UTC), caller().institution
        check_proposal(proposed, node.config, node.units_sha256, node.peers.snapshot(), now=now)
        with self._lock:
            known = node.calibrations.find(proposed.sha256)
            if known is not None and not known.active:
                raise CalibrationUnknown(f"{proposed.short} was taken out of use here")
            if known is not None:
                return known if known.complete else proposed
            waiting = [
                signed
                for signed in node.calibrations.list()
                if signed.state(now) == "proposed" and signed.calibration.source.institution == peer
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
        """Charge a call; raise unless the node is ready, serves the domain and allows calibrations."""
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


class TargetService(RoleService):
    service_names = ("ddib_fed.v1.DecodingService", "ddib_fed.v1.CalibrationService")

    def __init__(self, node: NodeContext) -> None:
        self._servicer = DecodingServicer(node)
        self._calibrations = CalibrationServicer(node)

    def register(self, server: grpc.Server) -> None:
        decoding_pb2_grpc.add_DecodingServiceServicer_to_server(self._servicer, server)
        calibration_pb2_grpc.add_CalibrationServiceServicer_to_server(self._calibrations, server)

    def jobs(self) -> Mapping[str, int]:
        return {"decoding": self._servicer.active}

    def drain(self, timeout_s: float) -> None:
        self._servicer.wait_idle(timeout_s)


ROLE = TargetService
