"""The DecodingService: latents of admitted peers to pictures of this node's domain.

The target keeps no picture and no latent; what it remembers are the contracts it agreed to and the quota spent. Only
calibrations are on its disk.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

from ddib_fed.bridge.model.checks import check_decoding
from ddib_fed.errors import (
    ContractUnknown,
    MessageInvalid,
    ModelNotFound,
    NotReady,
    PolicyDenied,
    SettingsInvalid,
    UnknownFields,
)
from ddib_fed.latent import Latent
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.policy import Quota, check_depth, check_encoder, check_evaluations
from ddib_fed.node.role import NodeContext
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.server.interceptors import caller
from ddib_fed.v1 import calibration_pb2_grpc, decoding_pb2, decoding_pb2_grpc
from ddib_fed.wire.contracts.agreement import agree
from ddib_fed.wire.contracts.calibration import CalibrationTerms
from ddib_fed.wire.contracts.contract import Contract, ContractLimits, ContractSide
from ddib_fed.wire.contracts.guidance import check_offered, guidance_from_pb
from ddib_fed.wire.jobs import LATER_GRIDS, LATER_SOLVERS
from ddib_fed.wire.mapping import from_message, to_message
from ddib_fed.wire.streams.chunks import file_header, stream
from ddib_fed.wire.version import (
    CALIBRATION,
    ECONOMY,
    GUIDANCE,
    PICTURES,
    SPOKEN,
    highest_common,
    versions_from_pb,
    versions_to_pb,
)
from target_node.calibration import CalibrationServicer
from target_node.contract_calibration import check_calibration
from target_node.requests import control_of, latents_of, proposed_types, stream_header
from target_node.stream import DecodeStream, StreamSettings, Translated

# Contracts remembered of one peer: it needs one at a time, and an old one lives on for calls that are on their way.
MAX_CONTRACTS = 8
MAX_REQUEST_ID = 64
# Each picture is an item of its own, with its own result, quota and record.
PICTURES_PER_ITEM = 1
AUDIT_RETRY_S = 30.0

log = logging.getLogger(__name__)


class DecodingServicer(decoding_pb2_grpc.DecodingServiceServicer):
    """See decoding.proto; every method answers for the peer that called it."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._quota = Quota(node.config.policy.samples_per_day)
        self._contracts: OrderedDict[bytes, Contract] = OrderedDict()
        self._lock = threading.Lock()
        self._active = 0
        self._idle = threading.Condition()

    @property
    def active(self) -> int:
        """Decode calls that run now."""
        return self._active

    def limits(self) -> ContractLimits:
        """What a contract with this node allows."""
        limits, shape = self._node.config.limits, self._node.running_engine.model.sample_shape
        samples = limits.max_points_per_item if len(shape) == 1 else PICTURES_PER_ITEM
        return ContractLimits(
            max_items_per_stream=limits.max_items_per_job,
            max_samples_per_item=samples,
            max_latent_bytes=samples * math.prod(shape) * 4,
            max_evaluations=limits.max_evaluations,
            guidance=self._node.guidance(),
            min_evaluations=min(self._node.config.policy.least_evaluations, limits.max_evaluations),
        )

    def DescribeDomain(
        self, request: decoding_pb2.DescribeDomainRequest, context: grpc.ServicerContext
    ) -> decoding_pb2.DescribeDomainResponse:
        """See decoding.proto."""
        _ = self._node.engine  # refuses while loading or draining
        common = highest_common(versions_from_pb(request.versions), SPOKEN)
        return decoding_pb2.DescribeDomainResponse(
            versions=versions_to_pb(),
            side=to_message(self._node.side(), decoding_pb2.ContractSide),
            limits=to_message(self.limits().at(common), decoding_pb2.ContractLimits),
        )

    def NegotiateContract(
        self, request: decoding_pb2.NegotiateContractRequest, context: grpc.ServicerContext
    ) -> decoding_pb2.NegotiateContractResponse:
        """See decoding.proto."""
        _ = self._node.engine
        source = from_message(request.source, ContractSide)
        peer = caller()
        if source.institution != peer.institution:
            raise PolicyDenied(
                f"{peer} proposed a contract for {source.institution}",
                facts={"institution": source.institution},
            )
        proposed = request.calibration if request.HasField("calibration") else None
        contract = agree(
            versions_from_pb(request.versions),
            SPOKEN,
            source,
            self._node.side(),
            self.limits(),
            None if proposed is None else from_message(proposed, CalibrationTerms),
            proposed_types(request),
            self._node.config.policy.latent_types,
        )
        check_calibration(self._node, contract)
        with self._lock:
            new = contract.digest not in self._contracts
        if new:
            self._audit(
                "contract_agreed",
                peer=str(peer),
                contract=contract.digest.hex(),
                calibration=str(contract.calibration or ""),
            )
        self._remember(contract)
        return decoding_pb2.NegotiateContractResponse(
            contract=to_message(contract, decoding_pb2.Contract), sha256=contract.digest
        )

    def Decode(
        self, request_iterator: Iterator[decoding_pb2.DecodeRequest], context: grpc.ServicerContext
    ) -> Iterator[decoding_pb2.DecodeResponse]:
        """See decoding.proto."""
        _ = self._node.engine
        header = stream_header(request_iterator)
        contract = self._contract(header.contract_sha256)
        with self._serving(contract) as node:
            yield from self._decode(node, contract, header, request_iterator, context)

    @contextmanager
    def _serving(self, contract: Contract) -> Iterator[NodeContext]:
        """The node with the model of the contract, which may have been the active one until a moment ago.

        Raises:
            ContractUnknown: That model is no longer served.
        """
        try:
            with self._node.serving(contract.target.model_sha256.hex()) as node:
                yield node
        except ModelNotFound as error:
            raise ContractUnknown("the contract's model is no longer served", retry_after_s=0.1) from error

    def _decode(
        self,
        node: NodeContext,
        contract: Contract,
        header: decoding_pb2.DecodeHeader,
        request_iterator: Iterator[decoding_pb2.DecodeRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[decoding_pb2.DecodeResponse]:
        engine = node.running_engine
        label = header.target_class if header.HasField("target_class") else None
        guidance = guidance_from_pb(header.guidance)
        settings = StreamSettings(
            contract, solver_settings(header.solver), header.round_trip, label, guidance
        )
        self._check_header(header, contract)
        check_calibration(node, contract)
        check_offered(
            guidance, contract.limits.guidance, f"{contract.target.institution}/{contract.target.domain}"
        )
        check_decoding(engine.model, settings.solver, label, guidance)
        control = control_of(context)
        decoding = DecodeStream(
            engine,
            settings,
            latents_of(request_iterator, contract, header.items, self._node.config.limits.stall_s),
            control,
            self._charge(header.request_id, contract),
            flow=f"{caller().institution}/{header.request_id}",
            weight=self._node.weight_of(caller().institution),
        )
        with self._counted():
            for event in decoding.run():
                if isinstance(event, Translated):
                    yield from self._messages(event)
                else:
                    yield decoding_pb2.DecodeResponse(progress=event)

    def wait_idle(self, timeout_s: float) -> None:
        """Return when no Decode call runs, or after the time."""
        deadline = time.monotonic() + timeout_s
        with self._idle:
            while self._active and (left := deadline - time.monotonic()) > 0:
                self._idle.wait(left)

    def _remember(self, contract: Contract) -> None:
        """Keep a contract as the newest of its peer, which drops its own oldest one, and none of another peer."""
        with self._lock:
            self._contracts[contract.digest] = contract
            self._contracts.move_to_end(contract.digest)
            own = [
                d for d, c in self._contracts.items() if c.source.institution == contract.source.institution
            ]
            for digest in own[:-MAX_CONTRACTS]:
                del self._contracts[digest]

    def _audit(self, act: str, **values: str | int) -> None:
        """Write to the audit log, or refuse the act for now.

        Raises:
            NotReady: It cannot be written; a full disk here must not end the peer's job.
        """
        try:
            self._node.audit.write(act, **values)
        except OSError as error:
            log.exception("the audit log cannot be written: %s is refused", act)
            raise NotReady("the audit log cannot be written", retry_after_s=AUDIT_RETRY_S) from error

    def _counted(self) -> _Counted:
        return _Counted(self._idle, self._change)

    def _change(self, by: int) -> None:
        self._active += by

    def _contract(self, sha256: bytes) -> Contract:
        with self._lock:
            contract = self._contracts.get(sha256)
        if contract is None or contract.source.institution != caller().institution:
            raise ContractUnknown("a contract that was not agreed on with this process", retry_after_s=0.1)
        return contract

    def _check_header(self, header: decoding_pb2.DecodeHeader, contract: Contract) -> None:
        limits = contract.limits
        if not 1 <= header.items <= limits.max_items_per_stream:
            raise MessageInvalid(
                f"{header.items} items in one stream",
                facts={"items": header.items, "limit_items": limits.max_items_per_stream},
            )
        if not 1 <= len(header.request_id) <= MAX_REQUEST_ID:
            raise MessageInvalid(
                "a request id of 1 to 64 characters is needed", facts={"field": "request_id"}
            )
        if contract.version < PICTURES and (header.HasField("target_class") or header.solver.depth):
            raise UnknownFields(f"protocol {contract.version} knows neither classes nor depth")
        if contract.version < GUIDANCE and header.HasField("guidance"):
            raise UnknownFields(f"protocol {contract.version} knows no guidance")
        if contract.version < CALIBRATION and header.solver.encoder:
            raise UnknownFields(f"protocol {contract.version} knows no choice of the encoder")
        if contract.version < ECONOMY and (
            header.solver.solver in LATER_SOLVERS or header.solver.grid in LATER_GRIDS
        ):
            raise UnknownFields(f"protocol {contract.version} knows neither learned grids nor flow maps")
        if header.solver.evaluations > limits.max_evaluations:
            raise SettingsInvalid(
                f"{header.solver.evaluations} evaluations",
                facts={"evaluations": header.solver.evaluations, "limit": limits.max_evaluations},
            )
        settings = solver_settings(header.solver)
        check_depth(settings, self._node.config.policy)
        check_encoder(settings, self._node.config.policy)
        least = self._node.config.policy.least_evaluations
        check_evaluations(settings, least, where=self._node.config.node.institution)
        if header.round_trip and not self._node.config.policy.round_trip:
            raise PolicyDenied("round trips are switched off here", facts={"policy": "round_trip"})

    def _charge(self, request_id: str, contract: Contract) -> Callable[[int, Latent], None]:
        """Quota and audit for each item, once per (request, item) whatever the tries."""
        peer = caller()

        def on_item(item: int, latent: Latent) -> None:
            samples = len(latent.data)
            self._quota.charge(peer.institution, request_id, item, samples)
            self._audit(
                "latent_received",
                peer=str(peer),
                request=request_id,
                item=item,
                latent=latent.sha256.hex(),
                contract=contract.digest.hex(),
            )
            self._node.metrics.latent_bytes.labels("in").inc(latent.size_bytes)
            self._node.metrics.samples.labels("decode").inc(samples)

        return on_item

    def _messages(self, translated: Translated) -> Iterator[decoding_pb2.DecodeResponse]:
        self._node.metrics.items.labels("decode", "ok").inc()
        self._node.metrics.seconds.labels("decode").observe(translated.seconds)
        header = decoding_pb2.DecodedHeader(
            item=translated.item,
            file=file_header(translated.media_type, translated.file),
            seconds=translated.seconds,
        )
        yield from stream(decoding_pb2.DecodeResponse, "result", header, translated.file)
        if translated.round_trip is not None:
            yield from translated.round_trip.stream(decoding_pb2.DecodeResponse)


class _Counted:
    """Counts a call for as long as it runs."""

    def __init__(self, idle: threading.Condition, change: Callable[[int], None]) -> None:
        self._idle = idle
        self._change = change

    def __enter__(self) -> None:
        with self._idle:
            self._change(1)

    def __exit__(self, *exc_info: object) -> None:
        with self._idle:
            self._change(-1)
            self._idle.notify_all()


class TargetService:
    """The target role in one node."""

    service_names = ("ddib_fed.v1.DecodingService", "ddib_fed.v1.CalibrationService")

    def __init__(self, node: NodeContext) -> None:
        self._servicer = DecodingServicer(node)
        self._calibrations = CalibrationServicer(node)

    def register(self, server: grpc.Server) -> None:
        """See `RoleService`."""
        decoding_pb2_grpc.add_DecodingServiceServicer_to_server(self._servicer, server)
        calibration_pb2_grpc.add_CalibrationServiceServicer_to_server(self._calibrations, server)

    def start(self) -> None:
        """Nothing waits at a target: it keeps no jobs."""

    def jobs(self) -> Mapping[str, int]:
        """Decode calls that run now."""
        return {"decoding": self._servicer.active}

    def drain(self, timeout_s: float) -> None:
        """See `RoleService`."""
        self._servicer.wait_idle(timeout_s)

    def peers_changed(self) -> None:
        """The calls of removed peers are ended by the interceptor."""

    def models_needed(self) -> Collection[str]:
        """None but those of calls that run."""
        return ()

    def close(self) -> None:
        """Open calls are ended by the server."""

    def release(self) -> None:
        """It holds nothing."""


class _TargetRole:
    """Entry point of `ddib_fed.roles`."""

    name = "target"

    def check(self, config: NodeConfig) -> str:
        """See `Role`."""
        del config
        return "keeps no pictures"

    def copy(self, config: NodeConfig, to: Path) -> int:
        """See `Role`; it keeps no jobs."""
        del config, to
        return 0

    def open(self, node: NodeContext) -> TargetService:
        """See `Role`."""
        return TargetService(node)


ROLE = _TargetRole()
