"""Receives the jobs of clients: checked, charged, and on the disk before they are accepted."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from opentelemetry.trace import Span

from ddib_fed.calibration.record import Calibration, Place, leg_map, misfit
from ddib_fed.engine.model import check_decoding, check_encoding, check_given
from ddib_fed.engine.record import UNGUIDED, Guidance
from ddib_fed.errors import (
    CalibrationRefused,
    ContractMismatch,
    DdibError,
    DomainNotFound,
    ImageTooLarge,
    InputError,
    ItemsTooMany,
    KindMismatch,
    MessageInvalid,
    PeerNotFound,
    PeerSuspended,
    PictureMisfit,
    PointsTooMany,
    PolicyDenied,
    SettingsInvalid,
)
from ddib_fed.evaluation.samples import Samples, samples_of
from ddib_fed.node.calibrations import usable_calibration
from ddib_fed.node.config import MAX_POINTS_PER_ITEM, LimitsSection, NodeConfig
from ddib_fed.node.policy import (
    Charge,
    check_settings,
    check_target,
    client_charges,
    evaluations_of,
)
from ddib_fed.node.role import MEDIA_FORMATS, NodeContext, limits_of, settings_message, solver_settings
from ddib_fed.node.server import READ_AHEAD, Pace, Slots, caller
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import (
    MAX_CLASS_NAME,
    PROTOCOL,
    CalibrationTerms,
    Contract,
    ContractSide,
    GuidanceTerms,
    check_offered,
    guidance_from_pb,
    require_protocol,
)
from ddib_fed.protocol.details import refused_facts
from ddib_fed.protocol.streams import Announced, assemble, first_header, open_file
from ddib_fed.security.identity import Identity
from ddib_fed.v1 import common_pb2, translation_pb2
from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.records import JOB_DEADLINE_S, StoredItem, StoredJob
from source_node.remote import Described, Remotes
from source_node.store import JobStore, Staging


def calibration_of(node: NodeContext, request: JobHeader) -> Calibration | None:
    target = request.target_institution, request.target_domain
    return None if request.no_calibration else _active(node, target)


def active_terms(node: NodeContext, target: Place) -> CalibrationTerms | None:
    """What `ddib domains` lists: the terms of the calibration that jobs use; None for none, or one that is refused."""
    try:
        found = _active(node, target)
    except CalibrationRefused:
        return None
    return None if found is None else found.terms


def recorded(contract: Contract) -> dict[str, str]:
    """What an item's record says of the contract's calibration: digest in hex and kind, empty for none."""
    terms = contract.calibration
    return {
        "calibration_sha256": "" if terms is None else terms.sha256.hex(),
        "calibration_kind": "" if terms is None else terms.kind,
    }


def _active(node: NodeContext, target: Place) -> Calibration | None:
    source, now = (node.config.node.institution, node.config.model.domain), datetime.now(UTC)
    held = node.calibrations.between(source, target)
    active = [stored for stored in held if stored.state(now) == "active"]
    ended = [stored for stored in held if stored.state(now) == "expired"]
    manifest = node.running_engine.model.manifest
    fitting = [stored for stored in active if not misfit(stored.calibration, manifest)]
    stored = next(iter((*fitting, *active, *ended)), None)
    if stored is None:
        return None
    try:
        return usable_calibration(node, stored.sha256, source=source, target=target, side="source", now=now)
    except CalibrationRefused as error:
        error.hint = f"{error.hint}; ddib translate --no-calibration leaves it out"
        raise


MAX_LISTED = 200


def class_index(side: ContractSide, asked: str, classes: int | None = None) -> int | None:
    """The index of a class of one side; None when none was asked for."""
    if not asked:
        return None
    index = side.class_index(asked, classes)
    if index is None:
        names = ", ".join(side.class_names)
        facts: dict[str, str | int] = {
            "class": asked[:MAX_CLASS_NAME],
            "of": f"{side.institution}/{side.domain}",
            "classes": names[:MAX_LISTED] if names else side.classes if classes is None else classes,
        }
        raise SettingsInvalid(f"{side.institution}/{side.domain} has no class {asked!r}", facts=facts)
    return index


def decoded_class(
    side: ContractSide, terms: GuidanceTerms | None, asked: str, guidance: Guidance
) -> int | None:
    """The index of the class that a side is to decode to, so guided; None when none was asked for."""
    of = f"{side.institution}/{side.domain}"
    check_offered(guidance, terms, of)
    by_classifier = guidance.classifier_scale is not None and terms is not None
    index = class_index(side, asked, terms.classifier_classes if by_classifier and terms else None)
    if index is None and guidance.steers:
        remedy = "--target-class CLASS (for a cycle --source-class too), or --pairs"
        raise SettingsInvalid(
            f"guidance needs a class of {of}, and none is given",
            hint=remedy,
            facts={"of": of, "guidance": "needs a class", "remedy": remedy},
        )
    return index


def _class_pairs(request: JobHeader) -> tuple[tuple[str, str], ...]:
    """The different pairs of source and target class in a job."""
    each = request.item_classes or (request,)
    return tuple(dict.fromkeys((asked.source_class, asked.target_class) for asked in each))


def own_classes(node: NodeContext, request: JobHeader) -> dict[str, int | None]:
    """The indices of the source classes of a job; guidance is checked where a cycle comes back to the own model."""
    side, terms, model = node.side(), node.guidance(), node.running_engine.model
    settings = solver_settings(request.solver)
    back = guidance_from_pb(request.guidance) if request.cycle else UNGUIDED
    found: dict[str, int | None] = {}
    try:
        for asked in dict.fromkeys(own for own, _ in _class_pairs(request)):
            found[asked] = decoded_class(side, terms, asked, back)
            check_encoding(model, settings, found[asked])
            if request.cycle:
                check_decoding(model, settings, found[asked], back)
    except (InputError, PolicyDenied) as error:
        if back != UNGUIDED:
            error.facts["cycle"] = (
                "is guided on its way back as well, by the source's own model: leave --cycle out"
            )
        raise
    return found


def target_classes(
    side: ContractSide, terms: GuidanceTerms | None, request: JobHeader
) -> dict[str, int | None]:
    guidance = guidance_from_pb(request.guidance)
    asked = dict.fromkeys(other for _, other in _class_pairs(request))
    return {each: decoded_class(side, terms, each, guidance) for each in asked}


def caller_uri() -> str:
    return str(caller())


def check_request(owner: str, request: JobHeader, node: NodeContext) -> None:
    """Return if this node can do what a client asks for; the solver's defaults are filled in."""
    _check_fields(request, node.config.limits)
    request.solver.CopyFrom(settings_message(solver_settings(request.solver)))
    check_allowed(owner, request, node.config)
    if request.model_size and not node.engine.model.is_picture:
        raise MessageInvalid("points have no size", facts={"field": "model_size"})
    own_classes(node, request)


def check_allowed(owner: str, request: JobHeader, config: NodeConfig) -> None:
    """Return if the policy allows a job: when it is submitted, and at each try, for it may be another one by then."""
    policy, settings = config.policy, solver_settings(request.solver)
    client = Identity.parse(owner).name
    check_target(client, request.target_institution, request.target_domain, policy)
    check_settings(settings, policy, where=config.node.institution)


def check_peer(request: JobHeader, peer: Described) -> None:
    """Refuse at once what can never work with the peer as it is now."""
    if peer.side.domain != request.target_domain:
        raise DomainNotFound(
            f"{request.target_institution} serves {peer.side.domain}, not {request.target_domain}",
            facts={"asked": request.target_domain[:100], "served": peer.side.domain},
        )
    target_classes(peer.side, peer.guidance, request)


def _check_fields(header: JobHeader, limits: LimitsSection) -> None:
    """What the header alone says."""
    require_protocol(header.protocol, PROTOCOL)
    try:
        uuid.UUID(header.request_id)
    except ValueError as error:
        raise MessageInvalid("the request id is no UUID", facts={"field": "request_id"}) from error
    if header.item_classes and (header.source_class or header.target_class):
        raise MessageInvalid("classes of all items and of each", facts={"field": "item_classes"})
    if not header.items:
        raise MessageInvalid("a job without items", facts={"field": "items"})
    if header.items > limits.max_items_per_job:
        raise ItemsTooMany(
            f"a job of {header.items} items",
            facts={"items": header.items, "limit_items": limits.max_items_per_job},
        )
    if len(header.item_classes) not in {0, header.items}:
        raise MessageInvalid("classes for none of the items, or for each", facts={"field": "item_classes"})
    if header.deadline_s > JOB_DEADLINE_S:
        raise MessageInvalid(
            f"a deadline of {header.deadline_s} s",
            facts={"field": "deadline_s", "limit_s": round(JOB_DEADLINE_S)},
        )
    if header.solver.evaluations > limits.max_evaluations:
        raise SettingsInvalid(
            f"{header.solver.evaluations} evaluations",
            facts={"evaluations": header.solver.evaluations, "limit": limits.max_evaluations},
        )


DESCRIBE_TIMEOUT_S = 3.0
# Jobs that are being received at once: gRPC holds up to 25 MiB of each, however slowly it is read (docs/operating.md).
MAX_UPLOADS = 24
MAX_UPLOADS_PER_CLIENT = 16
# A refused job costs its owner nothing; for so long its other items are decoded, to name all that are refused.
REFUSED_S = 10.0
Requests = Iterator[translation_pb2.SubmitJobRequest]


class Submissions:
    """Jobs on their way in."""

    def __init__(
        self, node: NodeContext, store: JobStore, remotes: Remotes, *, away: Callable[[], Collection[str]]
    ) -> None:
        self._node = node
        self._store = store
        self._remotes = remotes
        self._away = away
        self._uploads = Slots(MAX_UPLOADS_PER_CLIENT, MAX_UPLOADS)

    def receive(
        self, messages: Requests, trace: Span | None = None, ended: Callable[[], bool] = lambda: False
    ) -> tuple[StoredJob, bool]:
        """One job; whether its request had been accepted before."""
        stall_s = self._node.config.limits.stall_s
        pace = Pace(stall_s, between_s=stall_s)
        with ReadAhead(messages, READ_AHEAD, "upload") as ahead:
            requests = pace.each(ahead)
            owner, request = caller_uri(), first_header(requests, "SubmitJob")
            check_request(owner, request, self._node)
            self._check_target(request)
            self._node.tracing.remember(trace_key(owner, request), trace)
            leg_map(calibration_of(self._node, request), self._node.engine.model.manifest)
            with self._uploads.taken(owner), self._store.stage(owner, request, self._away()) as staging:
                charged = not staging.accepted_before
                if charged:  # an item has a sample at least
                    self._node.quotas.require(self._charges(owner, request, request.items))
                samples = self._receive_items(requests, request.items, staging, pace, ended)
                return self._commit(staging, self._charges(owner, request, samples) if charged else ())

    def _receive_items(
        self, requests: Requests, items: int, staging: Staging, pace: Pace, ended: Callable[[], bool]
    ) -> int:
        """All items, checked; how many samples they have."""
        received = samples = 0
        decode_until = math.inf
        refused: dict[int, DdibError] = {}
        try:
            for whole in assemble(requests, {"item": self._opener(items, staging, pace)}):
                pace.end()
                if time.monotonic() > decode_until:
                    raise _first_of(refused)
                item = staging.keep(whole.header.media_type, whole.header.sha256)
                try:
                    samples += self._check_item(staging, item, ended)
                except InputError as error:
                    refused[item.index] = error.kept()
                    decode_until = min(decode_until, time.monotonic() + REFUSED_S)
                received += 1
        except InputError as error:
            if "item" not in error.facts:
                raise
            refused[int(error.facts["item"])] = error.kept()
            raise _first_of(refused) from None
        if received != items:
            raise MessageInvalid(
                f"{received} items came where {items} were announced",
                facts={"announced": items, "received": received},
            )
        if refused:
            raise _first_of(refused)
        return samples

    def _commit(self, staging: Staging, charges: Sequence[Charge]) -> tuple[StoredJob, bool]:
        """Charge, then accept: a job that is on the disk was paid for, also if the node is killed here."""
        self._node.quotas.charge(charges)
        try:
            return staging.commit()
        finally:
            if not staging.kept:  # the job is not on the disk, or was accepted before
                self._node.quotas.refund(charges)

    def _charges(self, owner: str, request: JobHeader, samples: int) -> Sequence[Charge]:
        shape, evaluations = self._node.engine.model.sample_shape, request.solver.evaluations
        cost = evaluations_of(samples, shape, evaluations)
        if request.cycle:
            cost += evaluations_of(samples, shape, evaluations, guidance_from_pb(request.guidance))
        return client_charges(self._node.config.policy, owner, cost)

    def _check_target(self, request: JobHeader) -> None:
        """Refuse at once what cannot work: an unknown or suspended institution, a domain that it does not serve."""
        try:
            remote = self._remotes.get(request.target_institution)
        except PeerNotFound as error:
            known = ", ".join(sorted(peer.institution for peer in self._node.peers.list()))
            error.facts.update(institution=request.target_institution[:200], known=known[:200])
            raise
        if request.target_institution in self._away():
            return
        try:
            peer = remote.describe(DESCRIBE_TIMEOUT_S)
        except (ContractMismatch, PeerSuspended):
            raise
        except DdibError:
            return
        check_peer(request, peer)

    def _opener(
        self, max_items: int, staging: Staging, pace: Pace
    ) -> Callable[[common_pb2.FileHeader], Announced]:
        """Checks the header of each item; its bytes go to the disk as they come."""
        seen = 0
        limits = self._node.config.limits
        samples = self._samples()
        accepted = {media for media, name in MEDIA_FORMATS.items() if name in samples.formats}

        def opener(header: common_pb2.FileHeader) -> Announced:
            nonlocal seen
            seen += 1
            if seen > max_items:
                raise MessageInvalid("more items than announced", facts={"announced": max_items})
            if header.media_type not in accepted:
                raise self._of_item(seen - 1, samples.refusal(MEDIA_FORMATS.get(header.media_type, "")))
            try:
                announced = open_file(header, max_bytes=limits.max_item_bytes, accepted=accepted)
            except (ImageTooLarge, PointsTooMany) as error:
                raise self._of_item(seen - 1, error) from None
            pace.begin(header.size_bytes)
            return replace(announced, sink=staging.receive(header.size_bytes))

        return opener

    def _check_item(self, staging: Staging, item: StoredItem, ended: Callable[[], bool]) -> int:
        """Everything that encoding would refuse, before the job is accepted; how many samples it has."""
        samples, size_rule = self._samples(), self._node.size_rule

        def cost(content: bytes) -> int:
            samples.check_header(content, size_rule)
            return samples.memory(content)

        def load() -> bytes:
            return staging.read(item.index)

        try:
            with self._node.decoding.file(staging.owner, item.size_bytes, load, cost, ended=ended) as content:
                given = samples.read(content, size_rule)
                check_given(self._node.engine.model, given.samples)
                staging.keep_decoded(given.to_bytes(samples.rule))
                return len(given.samples)
        except InputError as error:
            self._of_item(item.index, error)
            raise

    def _samples(self) -> Samples:
        limits = self._node.config.limits
        return samples_of(self._node.engine.model, limits_of(limits), MAX_POINTS_PER_ITEM)

    def _of_item(self, number: int, error: DdibError) -> DdibError:
        error.facts["item"] = str(number)
        if isinstance(error, PictureMisfit | KindMismatch):
            side = self._node.side()
            error.facts["model"] = f"{side.institution}/{side.domain}"
        return error


def _first_of(refused: Mapping[int, DdibError]) -> DdibError:
    first = refused[min(refused)]
    first.facts |= refused_facts({number: error.reason for number, error in refused.items()})
    return first


def trace_key(owner: str, request: JobHeader) -> str:
    return f"{owner} {request.request_id}"
