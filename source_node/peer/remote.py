"""Admitted peers: what they decode to, the contract with them, and Decode calls.

Everything that a peer answers is checked before it is used; its errors come out as this project's, with the peer as
the hop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import grpc
from opentelemetry.trace import Span

from ddib_fed.bridge.control import Control
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import (
    DdibError,
    DomainNotFound,
    MessageInvalid,
    PeerUnreachable,
)
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.rpc.faults import checking_answers
from ddib_fed.rpc.settings import settings_message
from ddib_fed.telemetry import is_taken, trace_entries
from ddib_fed.trust import tls
from ddib_fed.v1 import common_pb2, decoding_pb2, decoding_pb2_grpc
from ddib_fed.wire.contracts.agreement import confirm
from ddib_fed.wire.contracts.calibration import CalibrationTerms
from ddib_fed.wire.contracts.contract import (
    PROTOCOL,
    Contract,
    ContractLimits,
    ContractSide,
    require_protocol,
)
from ddib_fed.wire.contracts.guidance import GuidanceTerms, guidance_to_pb
from ddib_fed.wire.latent import ApprovedLatent
from ddib_fed.wire.mapping import from_message, to_message
from source_node.peer.decode_call import DecodeCall, Sent, failure

UNARY_TIMEOUT_S = 10.0
# Longer than a few of the signs of life that a target sends (`target_node.stream.SIGN_OF_LIFE_S`).
SILENCE_S = 120.0


class Described(NamedTuple):
    """What a peer says of itself: its half of a contract, what guidance it offers."""

    side: ContractSide
    guidance: GuidanceTerms | None


class Remote:
    """One admitted peer."""

    def __init__(
        self, institution: str, channel: grpc.Channel, *, max_file_bytes: int, silence_s: float = SILENCE_S
    ) -> None:
        self.institution = institution
        self.hop = f"target {institution}"
        self._stub = decoding_pb2_grpc.DecodingServiceStub(channel)
        self._max_file_bytes = max_file_bytes
        self._silence_s = silence_s
        self.takes_traces = False

    def describe(self, timeout_s: float = UNARY_TIMEOUT_S) -> Described:
        """What the peer decodes to."""
        request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
        try:
            answer = self._stub.DescribeDomain(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise failure(error, self.hop) from error
        except ValueError as error:
            raise self._closed() from error
        require_protocol(PROTOCOL, answer.protocol, self.hop)
        with checking_answers(self.hop):
            limits = from_message(answer.limits, ContractLimits)
            side = from_message(answer.side, ContractSide)
            if side.institution != self.institution:
                raise MessageInvalid(f"its node calls itself {side.institution}")
        return Described(side, limits.guidance)

    def negotiate(
        self,
        own: ContractSide,
        domain: str,
        control: Control,
        calibration: CalibrationTerms | None = None,
    ) -> Contract:
        """Agree with the peer, believing nothing that was not computed here."""
        request = decoding_pb2.NegotiateContractRequest(
            protocol=PROTOCOL,
            source=to_message(own, decoding_pb2.ContractSide),
            calibration=None if calibration is None else to_message(calibration, common_pb2.CalibrationTerms),
        )
        answer = self._propose(request, control)
        with checking_answers(self.hop):
            contract = confirm(
                answer,
                source=own,
                target_institution=self.institution,
                calibration=calibration,
            )
        if contract.target.domain != domain:
            raise DomainNotFound(
                f"{self.institution} serves {contract.target.domain}, not {domain}",
                hop=self.hop,
                hint=f"ddib translate ... --to {self.institution}/{contract.target.domain}",
                facts={"asked": domain, "served": contract.target.domain},
            )
        return contract

    def _propose(
        self, request: decoding_pb2.NegotiateContractRequest, control: Control
    ) -> decoding_pb2.NegotiateContractResponse:
        remaining = control.remaining_s()
        timeout = UNARY_TIMEOUT_S if remaining is None else min(UNARY_TIMEOUT_S, remaining)
        try:
            call = self._stub.NegotiateContract.future(request, timeout=timeout)
            with control.interrupting(call.cancel):
                answer: decoding_pb2.NegotiateContractResponse = call.result()
                self.takes_traces = is_taken(call.trailing_metadata())
                return answer
        except grpc.FutureCancelledError as error:
            control.check()
            raise self._closed() from error
        except grpc.RpcError as error:
            raise failure(error, self.hop, control) from error
        except ValueError as error:
            raise self._closed() from error

    def decode(
        self,
        contract: Contract,
        *,
        request_id: str,
        solver: SolverSettings,
        round_trip: bool,
        items: int,
        latents: Iterable[ApprovedLatent | None],
        control: Control,
        target_class: int | None = None,
        guidance: Guidance = UNGUIDED,
        trace: Span | None = None,
    ) -> DecodeCall:
        """Send latents as they come and read translations as they come."""
        header = decoding_pb2.DecodeHeader(
            contract_sha256=contract.digest,
            request_id=request_id,
            solver=settings_message(solver),
            round_trip=round_trip,
            items=items,
            target_class=target_class,
            guidance=guidance_to_pb(guidance),
        )
        sent = Sent()
        beside = trace_entries(trace if self.takes_traces else None)
        try:
            call = self._stub.Decode(sent.requests(header, latents), timeout=control.remaining_s(), **beside)
        except ValueError as error:
            raise self._closed() from error
        return DecodeCall(
            call,
            contract,
            round_trip=round_trip,
            items=items,
            sent=sent,
            max_file_bytes=self._max_file_bytes,
            silence_s=self._silence_s,
            control=control,
            hop=self.hop,
        )

    def _closed(self) -> PeerUnreachable:
        return PeerUnreachable(f"the channel to {self.hop} was closed", hop=self.hop)


class Remotes:
    """Every admitted peer, each by its own channel and roots."""

    def __init__(
        self, channels: tls.PeerChannels, *, max_file_bytes: int, silence_s: float = SILENCE_S
    ) -> None:
        self._channels = channels
        self._max_file_bytes = max_file_bytes
        self._silence_s = silence_s

    def get(self, institution: str) -> Remote:
        """The peer, over a channel that matches the certificates as they are now."""
        return Remote(
            institution,
            self._channels.get(institution),
            max_file_bytes=self._max_file_bytes,
            silence_s=self._silence_s,
        )

    def explained(self, institution: str, error: DdibError, timeout_s: float) -> DdibError:
        """A failed call's error with the cause of the failed connection, where that is what it is."""
        found = self._channels.explained(institution, error, timeout_s)
        if "found" in found.facts:
            found.facts["peer"] = institution
        return found

    def refresh(self) -> None:
        self._channels.refresh()

    def close(self) -> None:
        self._channels.close()
