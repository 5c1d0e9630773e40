"""Receives the jobs of clients: checked, charged, and on the disk before they are accepted."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from opentelemetry.trace import Span

from ddib_fed import errors
from ddib_fed.calibration.record import Calibration, Dial, Place, check_blend, leg_map
from ddib_fed.engine.model import check_decoding, check_encoding, check_given
from ddib_fed.files import require
from ddib_fed.node.calibrations import own_place, usable_calibration
from ddib_fed.node.config import LimitsSection, NodeConfig
from ddib_fed.node.policy import (
    Charge,
    check_most_evaluations,
    check_settings,
    check_target,
    client_charges,
    evaluations_of,
)
from ddib_fed.node.role import MEDIA_FORMATS, NodeContext, settings_message, solver_settings
from ddib_fed.node.server import READ_AHEAD, Pace, Slots, caller, within_share
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import (
    MAX_CLASS_NAME,
    PROTOCOL,
    check_offered,
    class_index,
    guidance_from_pb,
    place_of,
    require_protocol,
)
from ddib_fed.protocol.streams import Announced, assemble, first_header, open_file
from ddib_fed.record import DIAL, UNGUIDED, Guidance
from ddib_fed.security.identity import Identity
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1.common_pb2 import CalibrationTerms, GuidanceTerms
from ddib_fed.v1.decoding_pb2 import ContractSide
from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.remote import Remotes
from source_node.spool import GrowingFile, SpoolFile, SpoolPart
from source_node.store import JOB_DEADLINE_S, JobStore, StoredJob


def calibration_of(node: NodeContext, request: JobHeader) -> Calibration | None:
    """That of an accepted job, if it may be used now."""
    if not request.calibration_sha256:
        return None
    return _usable(node, request.calibration_sha256, (request.target_institution, request.target_domain))


def choose_calibration(
    node: NodeContext, request: JobHeader, earlier: JobHeader | None = None
) -> Calibration | None:
    """Set a request's calibration, and what it leaves open of the dial; as `earlier` has them if that is repeated."""
    target = request.target_institution, request.target_domain
    if earlier is None:
        found = None if request.no_calibration else _active(node, target)
        request.calibration_sha256 = b"" if found is None else found.sha256
        Dial.fill(request.solver, found)
        return found
    request.calibration_sha256 = earlier.calibration_sha256
    for name in DIAL:
        if not request.solver.HasField(name):
            setattr(request.solver, name, getattr(earlier.solver, name))
    return calibration_of(node, request)


def active_terms(node: NodeContext, target: Place) -> CalibrationTerms | None:
    """What `ddib domains` lists: the terms of the calibration that jobs use; None for none, or one that is refused."""
    try:
        found = _active(node, target)
    except errors.CalibrationRefused:
        return None
    return None if found is None else found.terms


def _active(node: NodeContext, target: Place) -> Calibration | None:
    now = datetime.now(UTC)
    manifest = node.running_engine.model.manifest
    stored = node.calibrations.chosen(own_place(node.config), target, manifest, now)
    if stored is None:
        for damaged in node.calibrations.problems():
            raise errors.CalibrationUnknown(
                f"it may be the one for {'/'.join(target)}: {damaged}",
                hint="ddib calibrate list; ddib translate --calibration none leaves it out",
            )
        return None
    return _usable(node, stored.sha256, target)


def _usable(node: NodeContext, sha256: bytes, target: Place) -> Calibration:
    try:
        return usable_calibration(node, sha256, source=own_place(node.config), target=target, side="source")
    except errors.CalibrationRefused as error:
        error.hint = f"{error.hint}; ddib translate --calibration none leaves it out"
        raise


MAX_LISTED = 200


def _asked_class(side: ContractSide, asked: str, classes: int | None = None) -> int | None:
    if not asked:
        return None
    index = class_index(side, asked, classes)
    if index is None:
        names = ", ".join(side.class_names)
        facts: dict[str, str | int] = {
            "class": asked[:MAX_CLASS_NAME],
            "of": place_of(side),
            "classes": names[:MAX_LISTED] if names else side.classes if classes is None else classes,
        }
        raise errors.SettingsInvalid(f"{place_of(side)} has no class {asked!r}", facts=facts)
    return index


def decoded_class(side: ContractSide, terms: GuidanceTerms, asked: str, guidance: Guidance) -> int | None:
    """The index of the class that a side is to decode to, so guided; None when none was asked for."""
    of = place_of(side)
    check_offered(guidance, terms, of)
    classes = None if guidance.classifier_scale is None else terms.classifier_classes
    index = _asked_class(side, asked, classes)
    if index is None and guidance.steers:
        remedy = "--target-class CLASS (for a cycle --source-class too), or --set pairs"
        raise errors.SettingsInvalid(
            f"guidance needs a class of {of}, and none is given",
            hint=remedy,
            facts={"of": of, "guidance": "needs a class", "remedy": remedy},
        )
    return index


def _class_pairs(request: JobHeader) -> tuple[tuple[str, str], ...]:
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
                model.check_share(settings.share, back)
    except (errors.InputError, errors.PolicyDenied) as error:
        if back != UNGUIDED:
            error.facts["cycle"] = (
                "is guided on its way back as well, by the source's own model: leave --cycle out"
            )
        raise
    return found


def target_classes(side: ContractSide, terms: GuidanceTerms, request: JobHeader) -> dict[str, int | None]:
    guidance = guidance_from_pb(request.guidance)
    asked = dict.fromkeys(other for _, other in _class_pairs(request))
    return {each: decoded_class(side, terms, each, guidance) for each in asked}


def check_request(
    owner: str, request: JobHeader, node: NodeContext, earlier: JobHeader | None = None
) -> None:
    """Raise unless this node can do what a client asks for; fill in its calibration and the solver's defaults."""
    _check_fields(request, node.config.limits)
    require(not request.calibration_sha256, "calibration_sha256", "must be empty: the node sets it")
    calibration = choose_calibration(node, request, earlier)
    request.solver.CopyFrom(settings_message(solver_settings(request.solver)))
    check_blend(request.solver.blend, calibration)
    check_allowed(owner, request, node.config)
    is_picture = node.engine.model.is_picture
    require(is_picture or not request.model_size, "model_size", "must not be set for points")
    own_classes(node, request)


def check_allowed(owner: str, request: JobHeader, config: NodeConfig) -> None:
    """Raise unless the policy allows a job: when it is submitted, and at each try, as the policy may have changed."""
    policy, settings = config.policy, solver_settings(request.solver)
    client = Identity.parse(owner).name
    check_target(client, request.target_institution, request.target_domain, policy)
    check_settings(settings, policy, where=config.node.institution)


def _check_fields(header: JobHeader, limits: LimitsSection) -> None:
    require_protocol(header.protocol, PROTOCOL)
    try:
        uuid.UUID(header.request_id)
    except ValueError as error:
        raise errors.MessageInvalid("the request id is no UUID", facts={"field": "request_id"}) from error
    each, of_all = header.item_classes, header.source_class or header.target_class
    require(not (each and of_all), "item_classes", "must be empty where all items have one class")
    require(header.items > 0, "items", "must be at least 1")
    if header.items > limits.max_items_per_job:
        raise errors.ItemsTooMany(
            f"a job of {header.items} items",
            facts={"items": header.items, "limit_items": limits.max_items_per_job},
        )
    require(len(each) in {0, header.items}, "item_classes", "must be none, or one for each item")
    require(header.deadline_s <= JOB_DEADLINE_S, "deadline_s", f"must be at most {JOB_DEADLINE_S:.0f}")
    check_most_evaluations(header.solver.evaluations, limits.max_evaluations)


class Receiving:
    """The jobs that are being received: their places among the open ones, and their bytes in the spool."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._places: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def stage(self, owner: str, request: JobHeader) -> Iterator[Staging]:
        """Receive a job: ``with receiving.stage(...) as staging: staging.receive(...); staging.commit()``."""
        key = owner, request.target_institution
        repeats = self.store.accepted(owner, request.request_id) is not None
        if not repeats:
            with self._lock:
                self._require_place(*key)
                self._places[key] += 1
        try:
            with closing(Staging(self, owner, request, repeats=repeats)) as staging:
                yield staging
        finally:
            if not repeats:
                with self._lock:
                    self._places[key] -= 1

    def _require_place(self, owner: str, target: str) -> None:
        """Each peer has places of its own: jobs that wait for one take none of another's."""
        taken = self._places + Counter(self.store.open_jobs())
        of_all = sum(count for (_, other), count in taken.items() if other == target)
        most, own = self.store.limits.max_open_jobs, taken[owner, target]
        if of_all >= most or not within_share(own, most - of_all, most):
            raise errors.QueueFull(
                f"{of_all} jobs for {target} are open, {own} of them of {owner}",
                facts={"limit_jobs": most, "jobs": of_all, "jobs_of_client": own},
                retry_after_s=QUEUE_FULL_S,
            )

    def count(self, owner: str, change: int = 0) -> int:
        """Count bytes of a client's jobs that are being received; how many there are now."""
        with self._lock:
            self._bytes[owner] += change
            return self._bytes[owner] if self._bytes[owner] > 0 else self._bytes.pop(owner)


class Staging:
    """A job that is being received, used from one thread; made by `Receiving.stage`."""

    def __init__(self, receiving: Receiving, owner: str, request: JobHeader, *, repeats: bool) -> None:
        self.owner = owner
        self.accepted_before = repeats
        self._receiving, self._store, self._spool = receiving, receiving.store, receiving.store.spool
        self._request = request
        self._job_id = self._spool.new_job()
        self._held = self._store.spool_bytes(owner)
        self._staged = 0
        self._incoming: GrowingFile | None = None
        self.files: list[SpoolFile] = []
        """What the client sent, whole; the number of an item is its place."""
        self.kept = False
        """Whether the job is on the disk, or may be."""

    def close(self) -> None:
        """Nothing more comes; what was not accepted goes."""
        self._close_file()
        if not self.kept:
            self._spool.remove_job(self._job_id)
        self._receiving.count(self.owner, -self._staged)

    def receive(self, size_bytes: int) -> Staging:
        """A file on the disk for the next item, a `Sink`; `keep` it once it is whole."""
        self._require_room(size_bytes)
        self._close_file()
        self._incoming = self._spool.new_file(self._job_id, len(self.files), SpoolPart.INPUT)
        return self

    def write(self, data: bytes | memoryview, /) -> None:
        assert self._incoming is not None
        self._require_room(len(data))
        self._staged += len(data)
        self._receiving.count(self.owner, len(data))
        self._incoming.write(data)

    def keep(self, media_type: int, sha256: bytes) -> None:
        """What was received last is the next item, whole and of this digest; on the disk after `commit`."""
        file = self._incoming
        assert file is not None
        self._close_file()
        self.files.append(SpoolFile(SpoolPart.INPUT, 0, file.name, media_type, file.size_bytes, sha256))

    def read(self, item: int) -> bytes:
        return self._spool.read(self._job_id, self.files[item].file)

    def _require_room(self, size_bytes: int) -> None:
        most, used = self._store.limits.max_spool_bytes, self._spool.used_bytes
        own = self._held + self._receiving.count(self.owner)
        if used + size_bytes > most:
            raise errors.QueueFull(
                "the spool is full", facts={"limit_bytes": most}, retry_after_s=QUEUE_FULL_S
            )
        if not within_share(own, most - used, most):
            what = "this client has its share of the spool"
            raise errors.QueueFull(what, facts={"limit_bytes": own}, retry_after_s=QUEUE_FULL_S)

    def _close_file(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    def commit(self) -> tuple[StoredJob, bool]:
        """Accept the job; the job, and whether this request had been accepted before."""
        if not self.files:
            raise errors.MessageInvalid("a job without items", facts={"field": "items"})
        if not self.accepted_before:
            self._spool.sync(self._job_id, [row.file for row in self.files])
        job_id, repeated = self._store.insert(
            self._job_id, self.owner, self._request, self.files, new=not self.accepted_before, mark=self._mark
        )
        return self._store.get(job_id), repeated

    def _mark(self, kept: bool) -> None:
        self.kept = kept


DESCRIBE_TIMEOUT_S = 3.0
# Jobs that are being received at once: gRPC holds up to 25 MiB of each, however slowly it is read (docs/operating.md).
MAX_UPLOADS = 24
MAX_UPLOADS_PER_CLIENT = 16
QUEUE_FULL_S = 30.0
# A refused job costs its owner nothing; for so long its other items are decoded, to name all that are refused.
REFUSED_S = 10.0
Requests = Iterator[pb.SubmitJobRequest]


class Submissions:
    def __init__(
        self, node: NodeContext, store: JobStore, remotes: Remotes, *, is_away: Callable[[str], bool]
    ) -> None:
        self._node = node
        self._remotes = remotes
        self._is_away = is_away
        self._receiving = Receiving(store)
        self._uploads = Slots(MAX_UPLOADS_PER_CLIENT, MAX_UPLOADS)

    def receive(
        self, messages: Requests, trace: Span | None = None, ended: Callable[[], bool] = lambda: False
    ) -> tuple[StoredJob, bool]:
        """One job; whether its request had been accepted before."""
        stall_s = self._node.config.limits.stall_s
        pace = Pace(stall_s, between_s=stall_s)
        with ReadAhead(messages, READ_AHEAD, "upload") as ahead:
            requests = ahead.each(pace.wait_s, pace.late)
            owner, request = caller().uri, first_header(requests, "SubmitJob")
            check_request(
                owner, request, self._node, self._receiving.store.accepted(owner, request.request_id)
            )
            self._check_target(request)
            self._node.tracing.remember(trace_key(owner, request), trace)
            leg_map(calibration_of(self._node, request), self._node.engine.model.manifest)
            with self._uploads.taken(owner), self._receiving.stage(owner, request) as staging:
                charged = not staging.accepted_before
                if charged:  # an item has a sample at least
                    self._node.quotas.require(self._charges(owner, request, request.items))
                samples = self._receive_items(requests, request.items, staging, pace, ended)
                return self._commit(staging, self._charges(owner, request, samples) if charged else ())

    def _receive_items(
        self, requests: Requests, items: int, staging: Staging, pace: Pace, ended: Callable[[], bool]
    ) -> int:
        """All items, checked; how many samples they have."""
        samples, decode_until = 0, math.inf
        refused: dict[int, errors.DdibError] = {}
        try:
            for number, whole in enumerate(assemble(requests, {"item": self._opener(items, staging, pace)})):
                pace.end()
                if time.monotonic() > decode_until:
                    raise errors.first_of(refused)
                staging.keep(whole.header.media_type, whole.header.sha256)
                try:
                    samples += self._check_item(staging, number, ended)
                except errors.InputError as error:
                    refused[number] = error.kept()
                    decode_until = min(decode_until, time.monotonic() + REFUSED_S)
        except errors.InputError as error:
            if "item" not in error.facts:
                raise
            refused[int(error.facts["item"])] = error.kept()
            raise errors.first_of(refused) from None
        if (received := len(staging.files)) != items:
            raise errors.MessageInvalid(
                f"{received} items came where {items} were announced",
                facts={"announced": items, "received": received},
            )
        if refused:
            raise errors.first_of(refused)
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
        shape, evaluations = self._node.engine.model.latent_shape, request.solver.evaluations
        cost = evaluations_of(samples, shape, evaluations)
        if request.cycle:
            cost += evaluations_of(samples, shape, evaluations, guidance_from_pb(request.guidance))
        return client_charges(self._node.config.policy, owner, cost)

    def _check_target(self, request: JobHeader) -> None:
        """Refuse at once what cannot work: an unknown or suspended institution, a domain that it does not serve."""
        try:
            remote = self._remotes.get(request.target_institution)
        except errors.PeerNotFound as error:
            known = ", ".join(sorted(peer.institution for peer in self._node.peers.list()))
            error.facts.update(institution=request.target_institution[:200], known=known[:200])
            raise
        if self._is_away(request.target_institution):
            return
        try:
            side, guidance = remote.describe(DESCRIBE_TIMEOUT_S)
        except (errors.ContractMismatch, errors.PeerSuspended):
            raise
        except errors.DdibError:
            return
        if side.domain != request.target_domain:
            raise errors.DomainNotFound(
                f"{request.target_institution} serves {side.domain}, not {request.target_domain}",
                facts={"asked": request.target_domain[:100], "served": side.domain},
            )
        target_classes(side, guidance, request)

    def _opener(
        self, max_items: int, staging: Staging, pace: Pace
    ) -> Callable[[common_pb2.FileHeader], Announced]:
        """Checks the header of each item; its bytes go to the disk as they come."""
        limits, samples = self._node.config.limits, self._node.samples()
        accepted = {media for media, name in MEDIA_FORMATS.items() if name in samples.formats}

        def opener(header: common_pb2.FileHeader) -> Announced:
            number = len(staging.files)
            if number >= max_items:
                raise errors.MessageInvalid("more items than announced", facts={"announced": max_items})
            if header.media_type not in accepted:
                raise self._of_item(number, samples.refusal(MEDIA_FORMATS.get(header.media_type, "")))
            try:
                announced = open_file(header, max_bytes=limits.max_item_bytes, accepted=accepted)
            except (errors.ImageTooLarge, errors.PointsTooMany) as error:
                raise self._of_item(number, error) from None
            pace.begin(header.size_bytes)
            return replace(announced, sink=staging.receive(header.size_bytes))

        return opener

    def _check_item(self, staging: Staging, number: int, ended: Callable[[], bool]) -> int:
        """Everything that encoding would refuse, before the job is accepted; how many samples it has."""
        samples, size_rule = self._node.samples(), self._node.size_rule
        size_bytes, load = staging.files[number].size_bytes, partial(staging.read, number)
        try:
            with self._node.decoding.file(
                staging.owner, size_bytes, load, samples.memory, ended=ended
            ) as content:
                given = samples.read(content, size_rule).samples
                check_given(self._node.engine.model, given)
                return len(given)
        except errors.InputError as error:
            self._of_item(number, error)
            raise

    def _of_item(self, number: int, error: errors.DdibError) -> errors.DdibError:
        error.facts["item"] = str(number)
        if isinstance(error, errors.PictureMisfit | errors.KindMismatch):
            error.facts["model"] = place_of(self._node.side())
        return error


def trace_key(owner: str, request: JobHeader) -> str:
    return f"{owner} {request.request_id}"
