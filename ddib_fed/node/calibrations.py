"""The calibrations of a node: which it uses, its operator's acts, and calls to a target.

Each act is in the node's audit log before it has any effect. A running node sees it at once, because it reads the same
files.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import grpc
from pydantic import ValidationError

from ddib_fed import errors
from ddib_fed.calibration.aggregate import DELTA, Aggregate, read_aggregate
from ddib_fed.calibration.fit import judge
from ddib_fed.calibration.record import (
    RECALIBRATE,
    RETRAINED,
    SIDES,
    CalibratedSide,
    Calibration,
    CalibrationStore,
    Place,
    Side,
    Signature,
    SignedCalibration,
    check_target,
    misfit,
    units_of,
)
from ddib_fed.data.fitting import PictureRule
from ddib_fed.files import private_folder, read_small, write_file
from ddib_fed.models.units import Normalisation
from ddib_fed.node.admin import CalibrationStatus
from ddib_fed.node.certificates import own_credentials
from ddib_fed.node.config import NodeConfig, PolicySection, Role, peer_store
from ddib_fed.node.policy import check_use
from ddib_fed.node.role import NodeContext, load_hosted, rule_of_side
from ddib_fed.protocol.calls import at_fault, checking_answers, failure_of_peer, status_of
from ddib_fed.protocol.contract import PROTOCOL, CalibrationKind, calibration_text, check_side
from ddib_fed.security.audit import lines_of, note, parsed
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore, Snapshot
from ddib_fed.security.pki import TlsCredentials
from ddib_fed.security.tls import PeerChannels
from ddib_fed.v1 import calibration_pb2 as pb
from ddib_fed.v1 import calibration_pb2_grpc, common_pb2, decoding_pb2, decoding_pb2_grpc

if TYPE_CHECKING:
    from ddib_fed.training.calibrating import CalibrationRequest, OnNote

R = TypeVar("R")

Crossed = dict[str, int]
"""Bytes that crossed, by what they were."""
SOON: Final = timedelta(days=14)
"""A calibration that ends within this time is warned of."""
LONGEST_LIFE: Final = timedelta(days=731)
"""From now to the end of a calibration that is proposed."""
CALL_TIMEOUT_S: Final = 20.0
PUBLISH: Final = "ddib calibrate publish --config node.toml, on the target's node"


# Which are used


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
    kinds = ", ".join(f'"{each}"' for each in (*policy.calibration, kind))
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


@dataclass(frozen=True, slots=True)
class Publication:
    """One aggregate that was published here, as the audit log has it, and the institutions that got it."""

    sha256: str
    time: str
    counted: int
    unit: str
    epsilon: float
    delta: float
    peers: list[str] = field(default_factory=list)


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
            f"{' and '.join(each[:12] for each in units_sha256)}",
            hint=f"{PUBLISH} --force",
            facts={"side": "target"},
        )
    return aggregate


# Proposals


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
    if not any(each.complete and each.calibration.dialled(*dialled) == calibration for each in known):
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


# The operator's acts


class Calibrations:
    """The calibrations of a node: what it publishes, proposes, accepts and uses.

    A target publishes an aggregate of its pictures (`aggregate`, `publish`). The source fetches it and fits its own
    pictures to it (`propose`), then signs and sends the result (`send`). The target signs it too (`accept`), and the
    source fetches that signature (`send` again). DIGEST is a calibration's SHA-256, or 8 or more of its first digits.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._store = CalibrationStore(config.paths.calibrations)

    # As a target

    def aggregate(
        self,
        pictures: str | Path | None = None,
        *,
        epsilon: float = 1.0,
        group_by: str | None = None,
        latents: bool = False,
        replace: bool = False,
        on_note: OnNote | None = None,
    ) -> Aggregate:
        """Draw a noised histogram of this target's pictures, which `publish` gives to peers.

        Parameters
        ----------
        pictures
            A folder, or the name of a domain that ships; without it what node.toml's [train] names, else the domain
            that ships under the model's.
        epsilon
            Differential privacy of each picture, or of each group, at a delta of 1e-5; in [0.01, 8].
        group_by
            What is protected as one: "folder", all pictures of one first folder below `pictures`, or a regular
            expression, all of one name that it finds in their paths.
        latents
            Whether latents of the model's autoencoder are counted, not colours.
        replace
            Whether another aggregate may be published already.
        on_note
            Called with lines on what is not counted.

        Raises
        ------
        PolicyDenied
            This node is no target.
        AlreadyExists
            An aggregate is published; another draw of its noise costs epsilon again.
        InputError
            There are fewer than 200 pictures or groups.
        """
        from ddib_fed.training.calibrating import count_pictures, ignore

        config = self._config
        self._require_role("target", "ddib calibrate publish")
        self._refuse_second(replace=replace)
        which = pictures or config.train.pictures(config.folder)
        bundle = load_hosted(config)
        counted = count_pictures(bundle, which, epsilon=epsilon, group_by=group_by, latents=latents)
        (on_note or ignore)(*counted.notes)
        return dataclasses.replace(counted, domain=config.model.domain).noised(epsilon, DELTA)

    def publish(self, aggregate: Aggregate, *, replace: bool = False) -> Path:
        """Keep an aggregate for admitted peers, who get it from now on; return its file, which is on the disk then.

        They get it only while [policy] calibration lists a kind. Raise AlreadyExists as `aggregate` does.
        """
        self._refuse_second(replace=replace)
        note(
            self._config.paths.store,
            "aggregate_published",
            aggregate=aggregate.sha256.hex(),
            bytes=len(aggregate.canonical),
            **aggregate.model_dump(include={"domain", "counted", "unit", "epsilon", "delta"}),
        )
        path = self._config.paths.aggregate
        private_folder(path.parent)
        write_file(path, aggregate.canonical, private=True)
        return path

    def _refuse_second(self, *, replace: bool) -> None:
        if self._config.paths.aggregate.exists() and not replace:
            raise errors.AlreadyExists(
                f"an aggregate is published already ({self._config.paths.aggregate}); another draw of its noise costs "
                "epsilon again",
                hint="keep it; or add --force, e.g. because the pictures or the model have changed",
            )

    def published(self) -> tuple[Publication, ...]:
        """Return every aggregate that this node has published, the oldest first, by its audit log."""
        path, publications = self._config.paths.store, dict[str, Publication]()
        try:
            for record in (parsed(line) or {} for line in lines_of(path, '"aggregate_')):
                if record.get("act") == "aggregate_published":
                    sha256, names = record["aggregate"], ("time", "counted", "unit", "epsilon", "delta")
                    publications[sha256] = Publication(sha256, *(record[name] for name in names))
                elif record.get("act") == "aggregate_served" and record["aggregate"] in publications:
                    peers = publications[record["aggregate"]].peers
                    if (institution := Identity.parse(record["peer"]).institution) not in peers:
                        peers.append(institution)
        except FileNotFoundError:
            return ()
        except (KeyError, TypeError, errors.DdibError) as error:
            raise errors.ConfigError(
                f"{path} has a line on an aggregate that cannot be read, so what was published cannot be counted",
                hint=f"ddib audit verify --config {shlex.quote(str(self._config.path))}",
            ) from error
        return tuple(publications.values())

    def together(self, *more: Aggregate) -> str:
        """Return the privacy of all that is published and of `more`, for one unit that is in each: epsilons add up."""
        published: list[Publication | Aggregate] = [*self.published(), *more]
        epsilon, delta = sum(each.epsilon for each in published), sum(each.delta for each in published)
        unit = "group" if all(each.unit == "group" for each in published) else "picture"
        whose = f" that is in all {len(published)}" if len(published) > 1 else ""
        return f"epsilon {epsilon:g}, delta {delta:g} for each {unit}{whose}"

    def accept(self, digest: str, *, force: bool = False) -> SignedCalibration:
        """Sign a proposal to this node; its signature and terms are verified once more, as at each use.

        Raises
        ------
        StateConflict
            It is no proposal to this node that waits.
        CalibrationIneffective
            Its figures are refused, and `force` is not set.
        CalibrationRefused
            Its signature, units, aggregate or terms are not what this node knows or allows.
        """
        config, now, proposed = self._config, datetime.now(UTC), self.get(digest)
        calibration, state = proposed.calibration, proposed.state(now)
        if not force:
            self.check_figures(calibration)
        if state in {"active", "inactive"} or calibration.target.institution != config.node.institution:
            raise errors.StateConflict(
                f"the calibration {proposed.short} is {state}; only a proposal to this node can be accepted",
                hint="ddib calibrate list",
            )
        peers = peer_store(config).snapshot()
        check_proposal(proposed, config, self._units(), peers, now=now)
        complete = proposed.sign("target", self._credentials(now), now=now)
        complete.verify(pins=peers.pins, withdrawn=peers.withdrawn, now=now)
        self._note("calibration_signed", complete, calibration.source.institution, by="operator")
        return self._store.add(complete, now=now)

    @staticmethod
    def check_figures(calibration: Calibration) -> None:
        """Raise CalibrationIneffective unless the figures show that it is right and were not overridden."""
        judge(calibration.effect)
        if calibration.effect.forced:
            raise errors.CalibrationIneffective(
                "the source made it with --force, although its figures were refused",
                hint="ask the source's operator why; then add --force",
            )

    # As a source

    def propose(
        self, target: str, request: CalibrationRequest | None = None, *, on_note: OnNote | None = None
    ) -> tuple[Calibration, Crossed]:
        """Make a calibration towards a peer's domain; return it, and what crossed for it.

        Nothing of this node's leaves before `send`.

        Parameters
        ----------
        target
            INSTITUTION/DOMAIN of an admitted peer.
        request
            What it is made of; without pictures, anchors or an existing one of what node.toml's [train] names.
        on_note
            Called with lines on what the peer published.

        Raises
        ------
        PolicyDenied
            This node is no source, or the peer does not calibrate with it.
        CalibrationKindDenied
            [policy] calibration does not list the kind.
        CalibrationIneffective
            It is no better than none, or hardly better than another one; `request.force` makes it all the same.
        PeerUnreachable
            The peer does not answer.
        """
        from ddib_fed.training.calibrating import (
            CalibrationRequest,
            Ends,
            ignore,
            make_calibration,
            of_latents,
            side,
        )

        config, request = self._config, request or CalibrationRequest()
        place = _place_of(target)
        self._require_role("source", "ddib calibrate --peer")
        existing = request.existing
        if existing is None and request.kind not in config.policy.calibration:
            raise errors.CalibrationKindDenied(
                f"policy.calibration of {config.path} does not list {request.kind}",
                hint=f"{allow(request.kind, config.policy)} in {config.path}, then restart the node",
            )
        bundle = load_hosted(config)
        if request.pictures is None and request.anchors is None:
            request = dataclasses.replace(request, pictures=config.train.pictures(config.folder))
        latents = of_latents(request.kind if existing is None else existing.kind, bundle.manifest)
        source = side(bundle.manifest, config.node.institution, latents=latents)
        source = source.model_copy(update={"domain": config.model.domain})
        with CalibrationPeer(config, *place) as peer:
            if existing is not None:
                return self._again(existing, request, source, place), peer.crossed
            ends = Ends(source, place, request.command(f"--peer {target}"))
            calibration = make_calibration(request, ends, bundle, peer, on_note=on_note or ignore)
            return calibration, peer.crossed

    def _again(
        self, existing: Calibration, request: CalibrationRequest, source: CalibratedSide, to: Place
    ) -> Calibration:
        """Return the map of an existing calibration towards a peer, which checks its own units."""
        if existing.source.units_sha256 != source.units_sha256:
            raise errors.InputError(
                f"the calibration of {existing.source.domain} was made for a model of other units than that of this "
                "node",
                hint="make one for this model, or leave out --from",
            )
        if not request.force:
            self.check_figures(existing)
        making, dial = existing.made, existing.dial
        if existing.target.institution != to[0]:
            nothing = {"aggregate_sha256": "", "crossed_bytes": 0, "epsilon": None, "delta": None}
            making = making.model_copy(update=nothing)
        dial = dial.model_copy(update={"share": max(dial.share, self._config.policy.least_share)})
        target = existing.target.model_copy(update={"institution": to[0], "domain": to[1]})
        ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=request.days)
        return existing.model_copy(
            update={"source": source, "target": target, "made": making, "dial": dial, "expires": ends}
        )

    def send(self, which: Calibration | str) -> tuple[SignedCalibration, Crossed]:
        """Sign a calibration as the source, store it and send it; store the target's signature if it comes.

        Return it with the signatures that it has, and what crossed.

        Parameters
        ----------
        which
            A new calibration, or the DIGEST of one that was sent before.

        Raises
        ------
        StateConflict
            It was taken out of use here.
        CalibrationRefused
            Its terms are not allowed here, or the peer refuses it.
        """
        config, now = self._config, datetime.now(UTC)
        calibration = self.get(which).calibration if isinstance(which, str) else which
        self._require_role("source", "ddib calibrate send")
        target = calibration.target.institution
        with CalibrationPeer(config, *calibration.target.place) as peer:
            places = own_place(config), calibration.target.place
            check_terms(calibration, places, "source", self._units(), config.policy)
            check_dial(calibration, "source", config.policy)
            signed = self._store.find(calibration.sha256) or SignedCalibration(calibration=calibration)
            if not signed.active:
                raise errors.StateConflict(
                    f"the calibration {signed.short} was taken out of use here",
                    hint=f"{RECALIBRATE}, for another one",
                )
            if signed.source is None:
                signed = signed.sign("source", self._credentials(now), now=now)
                self._note("calibration_proposed", signed, target)
                self._store.add(signed, now=now)
            answer = peer.propose(signed, now=now)
            if answer.complete and not signed.complete:
                self._note("calibration_signed", answer, target, by="peer")
                self._store.add(answer, now=now)
        return answer, peer.crossed

    def agreed(self, target: str) -> Calibration:
        """Return the calibration that jobs to INSTITUTION/DOMAIN take; raise InputError if none is agreed on."""
        self._require_role("source", "ddib calibrate dial")
        now, manifest = datetime.now(UTC), load_hosted(self._config).manifest
        stored = self._store.chosen(own_place(self._config), _place_of(target), manifest, now)
        if stored is None or stored.state(now) != "active":
            raise errors.InputError(
                f"no calibration for {target} is agreed on here",
                hint=f"ddib calibrate --peer {shlex.quote(target)}",
            )
        return stored.calibration

    def usable(self, calibration: Calibration) -> bool:
        """Return whether the hosted model can encode under a calibration as it is trained now."""
        return not misfit(calibration, load_hosted(self._config).manifest)

    # As either

    def list(self) -> list[CalibrationStatus]:
        """Return the calibrations of this node, the newest first, with what its operator should know or do."""
        return overview(self._config, self._store, peer_store(self._config), inactive=True)

    def problems(self) -> tuple[str, ...]:
        """Return a line for each file that cannot be used."""
        return self._store.problems()

    def get(self, digest: str) -> SignedCalibration:
        """Return the stored calibration of a DIGEST; raise CalibrationUnknown unless there is exactly one."""
        return self._store.named(digest)

    def signatures(self, signed: SignedCalibration) -> dict[Side, str]:
        """Return who signed for each side and when, or what is wrong with the signature."""
        peers, texts = peer_store(self._config).snapshot(), dict[Side, str]()
        for of in SIDES:
            signature, now = signed.signature(of), datetime.now(UTC)
            try:
                signer = signed.verify_side(of, pins=peers.pins, withdrawn=peers.withdrawn, now=now)
            except errors.RefusedError as error:
                texts[of] = f"{error.detail}  [{error.reason}]"
            else:
                texts[of] = f"{signer}, {signature.moment:%Y-%m-%d %H:%M} UTC" if signature else ""
        return texts

    def remove(self, digest: str) -> SignedCalibration:
        """Stop using a calibration; new contracts with it are refused at once. A second time delete its file.

        It is kept at first, so that results made with it can be explained and the peer cannot bring it back. Return it
        as it was: `active` says which of both was done.
        """
        signed, institution = self.get(digest), self._config.node.institution
        other = next(iter(signed.calibration.institutions - {institution}), institution)
        self._note("calibration_removed", signed, other, forgotten=int(not signed.active))
        (self._store.deactivate if signed.active else self._store.remove)(signed.sha256)
        return signed

    def _require_role(self, role: Role, what: str) -> None:
        config = self._config
        if role not in config.node.roles:
            raise errors.PolicyDenied(
                f"{config.path} is of a node with the role {', '.join(config.node.roles)}, and {what} is for a {role}",
                hint="name the other node's node.toml with --config",
            )

    def _units(self) -> tuple[str, ...]:
        return units_of(load_hosted(self._config).manifest)

    def _credentials(self, now: datetime) -> TlsCredentials:
        """Return the node's certificate and key, if others would accept what they sign now."""
        config, credentials = self._config, own_credentials(self._config)
        if (problem := credentials.problem(now)) is not None:
            serve = f"{config.command} serve --config {shlex.quote(str(config.path))}"
            raise errors.Unauthenticated(
                f"this node cannot sign: {problem}", hint=f"start the node, which renews it: {serve}"
            )
        return credentials

    def _note(self, act: str, signed: SignedCalibration, peer: str, **more: str | int) -> None:
        note(self._config.paths.store, act, peer=peer, **line_of(signed), **more)


def _place_of(target: str) -> Place:
    institution, _, domain = target.partition("/")
    if not institution or not domain or "/" in domain:
        raise errors.UsageError(
            f"{target!r} is no target: INSTITUTION/DOMAIN is expected, e.g. south.example/checkerboards",
            hint="ddib peer list",
        )
    return institution, domain


# Calls to a target


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
