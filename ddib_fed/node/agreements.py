"""The calibrations of a node as its operator makes them: published, proposed, accepted, sent, removed.

Each act is in the node's audit log before it has any effect.
"""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed import errors
from ddib_fed.calibration.aggregate import DELTA, Aggregate
from ddib_fed.calibration.fit import judge
from ddib_fed.calibration.record import (
    RECALIBRATE,
    SIDES,
    CalibratedSide,
    Calibration,
    CalibrationStore,
    Place,
    Side,
    SignedCalibration,
    misfit,
    units_of,
)
from ddib_fed.files import private_folder, write_file
from ddib_fed.node.admin import CalibrationStatus
from ddib_fed.node.calibrations import (
    CalibrationPeer,
    allow,
    check_dial,
    check_proposal,
    check_terms,
    line_of,
    overview,
    own_place,
)
from ddib_fed.node.certificates import own_credentials
from ddib_fed.node.config import NodeConfig, Role, peer_store
from ddib_fed.node.role import load_hosted
from ddib_fed.security.audit import lines_of, note, parsed
from ddib_fed.security.identity import Identity
from ddib_fed.security.pki import TlsCredentials

if TYPE_CHECKING:
    from ddib_fed.training.calibrating import CalibrationRequest, OnNote

Crossed = dict[str, int]


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


class Calibrations:
    """The calibrations of a node, published, proposed, accepted and used.

    A target publishes an aggregate of its pictures (`aggregate`, `publish`). The source fetches it and fits its own
    pictures to it (`propose`), then signs and sends the result (`send`). The target signs it too (`accept`), and the
    source fetches that signature (`send` again). DIGEST is a calibration's SHA-256, or 8 or more of its first digits.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._store = CalibrationStore(config.paths.calibrations)

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

        `pictures` is a folder or a domain that ships, by default the one of [train]. Each picture is protected with
        `epsilon` (0.01 to 8) at a delta of 1e-5, or each group of `group_by`: "folder" (the first below `pictures`), or
        a regular expression that finds the group's name in a path. `latents` counts latents of the model's autoencoder,
        not colours; `on_note` gets lines on pictures that are not counted. Raise AlreadyExists if an aggregate is
        published and `replace` is not set, as another draw costs epsilon again, and InputError for fewer than 200
        pictures or groups.
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
        epsilon, delta = (
            sum(aggregate.epsilon for aggregate in published),
            sum(aggregate.delta for aggregate in published),
        )
        unit = "group" if all(aggregate.unit == "group" for aggregate in published) else "picture"
        whose = f" that is in all {len(published)}" if len(published) > 1 else ""
        return f"epsilon {epsilon:g}, delta {delta:g} for each {unit}{whose}"

    def accept(self, digest: str, *, force: bool = False) -> SignedCalibration:
        """Sign a proposal to this node, after verifying its signature and terms once more.

        Raise StateConflict unless it is a pending proposal to this node, CalibrationIneffective for refused figures
        without `force`, and CalibrationRefused for a signature, units, an aggregate or terms that this node does not
        allow.
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

    def propose(
        self, target: str, request: CalibrationRequest | None = None, *, on_note: OnNote | None = None
    ) -> tuple[Calibration, Crossed]:
        """Make a calibration towards a peer's INSTITUTION/DOMAIN; return it, and the bytes that crossed by kind.

        Nothing of this node's leaves before `send`. Pictures are by default those of node.toml's [train]; `on_note`
        gets lines on the peer's aggregate. Raise CalibrationKindDenied if [policy] calibration does not list the kind,
        and CalibrationIneffective if it is hardly better than none or than another one, unless `request.force` is set.
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
        """Sign a calibration as the source, store and send it; store the target's signature if it comes.

        `which` is a new calibration, or the DIGEST of one that was sent before. Return it with its signatures, and the
        bytes that crossed. Raise StateConflict if it was taken out of use here, CalibrationRefused if a side refuses
        its terms.
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
        """Return signer and time of each side's signature, or the problem of the signature."""
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
        """Stop using a calibration; delete its file the second time. Return it as it was before.

        It is kept at first, so that results made with it can be explained and the peer cannot bring it back.
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
        """Return the node's certificate and key; raise Unauthenticated unless peers would accept its signatures now."""
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
