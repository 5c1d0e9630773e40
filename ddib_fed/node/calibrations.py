"""The calibrations of a node: which it uses, its operator's acts, and calls to a target.

Each act is in the node's audit log before it has any effect. A running node sees it at once, because it reads the same
files.
"""

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, TypeVar

import grpc
from pydantic import ValidationError

from ddib_fed import errors
from ddib_fed.calibration.aggregate import Aggregate, read_aggregate
from ddib_fed.calibration.record import (
    RETRAINED,
    Calibration,
    CalibrationStore,
    Place,
    Side,
    Signature,
    SignedCalibration,
    check_target,
)
from ddib_fed.data.fitting import PictureRule
from ddib_fed.files import read_small
from ddib_fed.models.units import Normalisation
from ddib_fed.node.admin import CalibrationStatus
from ddib_fed.node.config import NodeConfig, PolicySection, peer_store
from ddib_fed.node.policy import check_use
from ddib_fed.node.role import NodeContext, rule_of_side
from ddib_fed.protocol.calls import at_fault, checking_answers, failure_of_peer, status_of
from ddib_fed.protocol.contract import PROTOCOL, CalibrationKind, calibration_text, check_side
from ddib_fed.security.peers import PeerStore, Snapshot
from ddib_fed.security.tls import PeerChannels
from ddib_fed.v1 import calibration_pb2 as pb
from ddib_fed.v1 import calibration_pb2_grpc, common_pb2, decoding_pb2, decoding_pb2_grpc

R = TypeVar("R")

SOON: Final = timedelta(days=14)
LONGEST_LIFE: Final = timedelta(days=731)
CALL_TIMEOUT_S: Final = 20.0
PUBLISH: Final = "ddib calibrate publish --config node.toml, on the target's node"


def usable_calibration(
    node: NodeContext, sha256: bytes, *, source: Place, target: Place, side: Side, now: datetime | None = None
) -> Calibration:
    """Return the stored calibration of a digest; raise unless this node may use it now."""
    stored = node.calibrations.find(sha256)
    if stored is None or not stored.active:
        gone = "is not stored here" if stored is None else "was taken out of use here"
        raise errors.CalibrationUnknown(
            f"the calibration {sha256.hex()[:12]} {gone}",
            hint="ddib calibrate list",
            facts={"calibration": sha256.hex()},
        )
    policy, peers = node.config.policy, node.peers.snapshot()
    check_terms(stored.calibration, (source, target), side, node.units_sha256, policy)
    return stored.verify(pins=peers.pins, withdrawn=peers.withdrawn, now=now or datetime.now(UTC))


def check_terms(
    calibration: Calibration,
    places: tuple[Place, Place],
    side: Side,
    units: Collection[str],
    policy: PolicySection,
) -> None:
    """Raise unless a calibration is between these domains, in this node's units, and of an allowed kind."""
    calibration.check_between(*places, {side: units})
    if calibration.kind not in policy.calibration:
        raise errors.CalibrationKindDenied(
            f"a calibration of the kind {calibration.kind}, where policy.calibration allows "
            f"{', '.join(policy.calibration) or 'none'}",
            hint=f"{allow(calibration.kind, policy)} in node.toml of both nodes, then restart them",
            facts={"policy": "calibration", "kind": calibration.kind, "side": side},
        )


def check_dial(calibration: Calibration, side: Side, policy: PolicySection) -> None:
    """Raise unless a setting may be signed; the policy is asked for the share of each job as well."""
    if calibration.dial.share < policy.least_share:
        raise errors.CalibrationInvalid(
            f"the calibration proposes a share of {calibration.dial.share:g}, and policy.least_share is "
            f"{policy.least_share:g}",
            hint=f"[policy] least_share = {calibration.dial.share:g} in node.toml of both nodes, then restart them",
            facts={"policy": "least_share", "side": side},
        )


def check_decodable(
    node: NodeContext, terms: common_pb2.CalibrationTerms, *, source: Place, target: Place
) -> None:
    """Raise unless a target decodes latents under a contract's calibration."""
    calibration = usable_calibration(node, terms.sha256, source=source, target=target, side="target")
    if calibration.terms != terms:
        raise errors.ContractMismatch(
            f"{source[0]} proposed the calibration {calibration_text(terms)} until {terms.expires}, and both "
            f"institutions signed {calibration_text(calibration.terms)} until {calibration.terms.expires}",
            hint="upgrade ddib-fed at the source: it must propose the terms that were signed",
        )
    check_target(node.running_engine.model.manifest)


def allow(kind: CalibrationKind, policy: PolicySection) -> str:
    kinds = ", ".join(f'"{name}"' for name in (*policy.calibration, kind))
    return f"[policy] calibration = [{kinds}]"


def overview(
    config: NodeConfig,
    store: CalibrationStore,
    peers: PeerStore,
    now: datetime | None = None,
    *,
    inactive: bool = False,
) -> list[CalibrationStatus]:
    """Return each calibration, `inactive` ones only if asked for, with what its operator should know or do."""
    moment, snapshot = now or datetime.now(UTC), peers.snapshot()
    rows, used = [], set[tuple[object, ...]]()
    for signed in store.list():
        calibration, state, warning = signed.calibration, str(signed.state(moment)), ""
        ends, left = f"{calibration.expires:%Y-%m-%d}", calibration.expires - moment
        if state == "inactive" and not inactive:
            continue
        if state == "expired":
            warning = f"it ended at {ends}: ddib calibrate --peer makes a new one"
        elif state == "proposed" and calibration.target.institution == config.node.institution:
            warning = f"it waits for you: ddib calibrate accept {signed.short}"
        elif state == "active":
            try:
                signed.verify(pins=snapshot.pins, withdrawn=snapshot.withdrawn, now=moment)
            except errors.RefusedError as error:
                state, warning = "refused", error.detail
            else:
                trained = calibration.kind in RETRAINED and calibration.map  # jobs take the newest that fits
                if calibration.kind not in config.policy.calibration:
                    state, warning = "refused", f"policy.calibration does not list {calibration.kind}"
                elif (use := (calibration.kind, trained, calibration.source, calibration.target)) in used:
                    state = "replaced"
                else:
                    used.add(use)
                    warning = f"it ends at {ends}, in {left.days} days" if left <= SOON else ""
        rows.append(
            CalibrationStatus(
                sha256=signed.sha256.hex(),
                kind=calibration.kind,
                source=str(calibration.source),
                target=str(calibration.target),
                state=state,
                expires=calibration.expires,
                warning=warning,
                dial=str(calibration.dial),
            )
        )
    return rows


def find_published(config: NodeConfig) -> Aggregate | None:
    path = config.paths.aggregate
    if not path.exists():
        return None
    try:
        return read_aggregate(read_small(path))
    except errors.InputError as error:
        raise errors.AggregateNotFound(
            f"{path} is damaged: {error.detail}", hint=f"{PUBLISH} --force"
        ) from error


def served_aggregate(config: NodeConfig, units_sha256: Collection[str]) -> Aggregate:
    """Return the published aggregate; raise unless it is of the model that the node serves."""
    aggregate = find_published(config)
    if aggregate is None:
        raise errors.AggregateNotFound(
            f"no aggregate of {config.model.domain} is published here", hint=PUBLISH
        )
    if aggregate.units_sha256 not in units_sha256 or aggregate.domain != config.model.domain:
        raise errors.CalibrationUnits(
            f"the aggregate in {config.paths.aggregate} is of {aggregate.domain} in the units "
            f"{aggregate.units_sha256[:12]}; the model of {config.model.domain} has "
            f"{' and '.join(digest[:12] for digest in units_sha256)}",
            hint=f"{PUBLISH} --force",
            facts={"side": "target"},
        )
    return aggregate


def check_proposal(
    signed: SignedCalibration,
    config: NodeConfig,
    units_sha256: Collection[str],
    peers: Snapshot,
    *,
    now: datetime,
) -> None:
    """Raise unless a target may sign a proposal."""
    calibration, institution = signed.calibration, signed.calibration.source.institution
    if institution not in peers.peers:
        raise errors.CalibrationForeign(
            f"the calibration is of {institution or 'no institution'}, which is no peer of this node",
            hint="ddib peer list",
            facts={"source": institution},
        )
    places = calibration.source.place, own_place(config)
    check_terms(calibration, places, "target", units_sha256, config.policy)
    check_dial(calibration, "target", config.policy)
    signed.refuse_expired(now)
    if calibration.expires > now + LONGEST_LIFE:
        raise errors.CalibrationInvalid(
            f"the calibration would last until {calibration.expires:%Y-%m-%d}; at most {LONGEST_LIFE.days} days are "
            "allowed",
            facts={"limit_days": LONGEST_LIFE.days},
        )
    known = CalibrationStore(config.paths.calibrations).between(*places)
    dialled = calibration.dial, calibration.made.created
    if not any(stored.complete and stored.calibration.dialled(*dialled) == calibration for stored in known):
        _check_making(calibration, find_published(config))
    signer = signed.verify_side("source", pins=peers.pins, withdrawn=peers.withdrawn, now=now)
    if not peers.is_admitted_node(signer):
        raise errors.CalibrationSigner(
            f"{signer} signed, and the admitted node of {institution} is {peers.peers[institution].identity}",
            hint="ddib peer list",
            facts={"side": "source"},
        )


def _check_making(calibration: Calibration, published: Aggregate | None) -> None:
    """Raise unless the calibration's provenance matches the published aggregate, or nothing crossed for it."""
    making = calibration.made
    if (making.aggregate_sha256, making.crossed_bytes, making.epsilon, making.delta) == ("", 0, None, None):
        return
    if published is None or not published.making.items() <= making.model_dump().items():
        known = "none" if published is None else published.sha256.hex()[:12]
        raise errors.CalibrationInvalid(
            f"the calibration states another aggregate than is published here ({known}), or other pictures, bytes, "
            "epsilon or delta of it",
            hint="the source calibrates again: ddib calibrate --peer INSTITUTION/DOMAIN",
            facts={"field": "made"},
        )


def own_place(config: NodeConfig) -> Place:
    return config.node.institution, config.model.domain


def line_of(signed: SignedCalibration) -> dict[str, str]:
    """Return the values of a calibration for a line of the audit log."""
    calibration = signed.calibration
    return {
        "calibration": signed.sha256.hex(),
        "kind": calibration.kind,
        "expires": calibration.expires.isoformat(),
    }


class CalibrationPeer:
    """A peer's node, called with this node's certificate, whose answers are checked; a context manager."""

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
        """Fetch the aggregate that the peer's operator published, in the units that its `units_sha256` names."""
        answer = self._ask(self._stub.GetAggregate, pb.GetAggregateRequest(domain=self._domain))
        with checking_answers(self.hop):
            aggregate = read_aggregate(answer.aggregate)
            self.crossed["aggregate received"] = len(answer.aggregate)
            if aggregate.canonical != answer.aggregate:
                raise errors.MessageInvalid("an aggregate that is not canonical")
            if aggregate.domain != self._domain:
                raise errors.MessageInvalid(f"an aggregate of {aggregate.domain}, not of {self._domain}")
        return aggregate

    def units(self, *, latents: bool = False) -> Normalisation:
        """Fetch the units of the peer's model, or of its latents: mean and deviation of its channels, not noised."""
        answer = self._ask(self._stub.GetUnits, pb.GetUnitsRequest(domain=self._domain, latents=latents))
        self.crossed["units received"] = len(answer.units)
        try:
            return Normalisation.model_validate_json(answer.units)
        except ValidationError as error:
            raise at_fault(errors.MessageInvalid("units that cannot be read"), self.hop) from error

    def picture_rule(self, shape: tuple[int, ...]) -> PictureRule:
        """Fetch how pictures of the peer's domain become the input of its model, from its side of a contract."""
        request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
        answer = self._ask(decoding_pb2_grpc.DecodingServiceStub(self._channel).DescribeDomain, request)
        with checking_answers(self.hop):
            side = check_side(answer.side)
        if side.domain != self._domain:
            raise errors.DomainNotFound(
                f"{self._institution} serves {side.domain}, not {self._domain}",
                hop=self.hop,
                hint=f"ddib calibrate --peer {self._institution}/{side.domain}",
            )
        rule = rule_of_side(side)
        if rule is None or tuple(side.sample_shape) != shape:
            raise errors.ShapeMismatch(
                f"the model of {self._institution} is of the shape {tuple(side.sample_shape)}, the one here of {shape}",
                hop=self.hop,
            )
        return rule

    def propose(self, proposed: SignedCalibration, *, now: datetime | None = None) -> SignedCalibration:
        """Send a calibration that this node has signed; it comes back with the peer's signature, if it has one."""
        assert proposed.source is not None
        request = pb.SignCalibrationRequest(
            calibration=proposed.calibration.canonical, source=proposed.source.to_pb()
        )
        answer = self._ask(self._stub.SignCalibration, request)
        self.crossed["calibration sent"] = len(request.calibration)
        self.crossed["own signature and certificate sent"] = request.source.ByteSize()
        if answer.state == pb.CALIBRATION_STATE_PENDING:
            return proposed
        if answer.state != pb.CALIBRATION_STATE_SIGNED or not answer.HasField("target"):
            raise at_fault(errors.MessageInvalid("neither a signature nor that it is pending"), self.hop)
        self.crossed["signature and certificate received"] = answer.target.ByteSize()
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
                raise errors.PolicyDenied(
                    f"{self.hop} does not know calibrations: it is no target",
                    hop=self.hop,
                    hint=f"ddib peer test {self._institution}",
                ) from error
            failure = self._channels.explained(self._institution, failure_of_peer(error, self.hop))
            ask = f"ask the operator of {self._institution}"
            if isinstance(failure, errors.AggregateNotFound):
                failure.hint = f"{ask} to run: ddib calibrate publish --config node.toml"
            elif isinstance(failure, errors.PolicyDenied) and "policy" in failure.facts:
                failure.hint = f"{ask} for [policy] {failure.facts['policy']} in its node.toml"
            elif isinstance(failure, errors.PeerUnreachable) and not failure.hint:
                failure.hint = f"ddib peer test {self._institution}"
            raise failure from error
