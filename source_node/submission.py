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
    """Return an accepted job's calibration, if it has one; raise if it is no longer usable."""
    if not request.calibration_sha256:
        return None
    return _usable(node, request.calibration_sha256, (request.target_institution, request.target_domain))


def choose_calibration(
    node: NodeContext, request: JobHeader, earlier: JobHeader | None = None
) -> Calibration | None:
    """Set a request's calibration and the open settings of its dial, as in the `earlier` request if it repeats one."""
    target = request.target_institution, request.target_domain
    if earlier is None:
        calibration = None if request.no_calibration else _active(node, target)
        request.calibration_sha256 = b"" if calibration is None else calibration.sha256
        Dial.fill(request.solver, calibration)
        return calibration
    request.calibration_sha256 = earlier.calibration_sha256
    for name in DIAL:
        if not request.solver.HasField(name):
            setattr(request.solver, name, getattr(earlier.solver, name))
    return calibration_of(node, request)


def active_terms(node: NodeContext, target: Place) -> CalibrationTerms | None:
    """Return the terms of the calibration that jobs to a target use; None without one, or if it is refused."""
    try:
        calibration = _active(node, target)
    except errors.CalibrationRefused:
        return None
    return None if calibration is None else calibration.terms


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


def decoded_class(side: ContractSide, terms: GuidanceTerms, name: str, guidance: Guidance) -> int | None:
    """Return the index of the class of this name, None for an empty one; raise unless the side offers it so guided."""
    of = place_of(side)
    check_offered(guidance, terms, of)
    classes = None if guidance.classifier_scale is None else terms.classifier_classes
    index = class_index(side, name, classes) if name else None
    if index is None and name:
        names = ", ".join(side.class_names)
        facts: dict[str, str | int] = {
            "class": name[:MAX_CLASS_NAME],
            "of": of,
            "classes": names[:200] if names else side.classes if classes is None else classes,
        }
        raise errors.SettingsInvalid(f"{of} has no class {name!r}", facts=facts)
    if index is None and guidance.steers:
        remedy = "--target-class CLASS (for a cycle --source-class too), or --set pairs"
        raise errors.SettingsInvalid(
            f"guidance needs a class of {of}, and none is given",
            hint=remedy,
            facts={"of": of, "guidance": "needs a class", "remedy": remedy},
        )
    return index


def _class_pairs(request: JobHeader) -> tuple[tuple[str, str], ...]:
    items = request.item_classes or (request,)
    return tuple(dict.fromkeys((item.source_class, item.target_class) for item in items))


def own_classes(node: NodeContext, request: JobHeader) -> dict[str, int | None]:
    """Return the indices of a job's source classes; raise unless this node's model takes them, also in a cycle."""
    side, terms, model = node.side(), node.guidance(), node.running_engine.model
    settings = solver_settings(request.solver)
    guidance = guidance_from_pb(request.guidance) if request.cycle else UNGUIDED
    indices: dict[str, int | None] = {}
    try:
        for name in dict.fromkeys(source for source, _ in _class_pairs(request)):
            indices[name] = index = decoded_class(side, terms, name, guidance)
            check_encoding(model, settings, index)
            if request.cycle:
                check_decoding(model, settings, index, guidance)
                model.check_share(settings.share, guidance)
    except (errors.InputError, errors.PolicyDenied) as error:
        if guidance != UNGUIDED:
            error.facts["cycle"] = (
                "is guided on its way back as well, by the source's own model: leave --cycle out"
            )
        raise
    return indices


def target_classes(side: ContractSide, terms: GuidanceTerms, request: JobHeader) -> dict[str, int | None]:
    """Return the indices of a job's target classes; raise unless the side takes them."""
    guidance = guidance_from_pb(request.guidance)
    names = dict.fromkeys(target for _, target in _class_pairs(request))
    return {name: decoded_class(side, terms, name, guidance) for name in names}


def check_request(
    owner: str, request: JobHeader, node: NodeContext, earlier: JobHeader | None = None
) -> None:
    """Fill in the calibration and the solver's defaults of a request; raise unless this node can do it."""
    _check_fields(request, node.config.limits)
    require(not request.calibration_sha256, "calibration_sha256", "must be empty: the node sets it")
    calibration = choose_calibration(node, request, earlier)
    request.solver.CopyFrom(settings_message(solver_settings(request.solver)))
    check_blend(request.solver.blend, calibration, of_latent=request.cycle or request.keep_latent)
    check_allowed(owner, request, node.config)
    is_picture = node.engine.model.is_picture
    require(is_picture or not request.model_size, "model_size", "must not be set for points")
    own_classes(node, request)


def check_allowed(owner: str, request: JobHeader, config: NodeConfig) -> None:
    """Raise unless the current policy allows a job, when it is submitted and at each try."""
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
    classes, shared_class = header.item_classes, header.source_class or header.target_class
    require(not (classes and shared_class), "item_classes", "must be empty where all items have one class")
    require(header.items > 0, "items", "must be at least 1")
    if header.items > limits.max_items_per_job:
        raise errors.ItemsTooMany(
            f"a job of {header.items} items",
            facts={"items": header.items, "limit_items": limits.max_items_per_job},
        )
    require(len(classes) in {0, header.items}, "item_classes", "must be none, or one for each item")
    require(header.deadline_s <= JOB_DEADLINE_S, "deadline_s", f"must be at most {JOB_DEADLINE_S:.0f}")
    check_most_evaluations(header.solver.evaluations, limits.max_evaluations)


class Receiving:
    """Places and spool bytes of the jobs that are being received."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._places: Counter[tuple[str, str]] = Counter()
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def stage(self, owner: str, request: JobHeader) -> Iterator[Staging]:
        """Hold a place for a job while it is received; raise if the queue is full."""
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
        """Raise unless the client has a place left among the jobs for this peer."""
        taken = self._places + Counter(self.store.open_jobs())
        total = sum(count for (_, other), count in taken.items() if other == target)
        most, share = self.store.limits.max_open_jobs, taken[owner, target]
        if total >= most or not within_share(share, most - total, most):
            raise errors.QueueFull(
                f"{total} jobs for {target} are open, {share} of them of {owner}",
                facts={"limit_jobs": most, "jobs": total, "jobs_of_client": share},
                retry_after_s=QUEUE_FULL_S,
            )

    def count(self, owner: str, change: int = 0) -> int:
        """Count bytes of a client's jobs that are being received; return their sum."""
        with self._lock:
            self._bytes[owner] += change
            return self._bytes[owner] if self._bytes[owner] > 0 else self._bytes.pop(owner)


class Staging:
    """A job that is being received, used from one thread."""

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
        """The rows of the items that have come whole, in order."""
        self.kept = False
        """True if the job is on the disk, or may be."""

    def close(self) -> None:
        """Remove the job unless it was accepted."""
        self._close_file()
        if not self.kept:
            self._spool.remove_job(self._job_id)
        self._receiving.count(self.owner, -self._staged)

    def receive(self, size_bytes: int) -> Staging:
        """Open a file for the next item, and return its `Sink`; call `keep` when it is whole."""
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
        """Make the open file, which is whole, the next item."""
        file = self._incoming
        assert file is not None
        self._close_file()
        self.files.append(SpoolFile(SpoolPart.INPUT, 0, file.name, media_type, file.size_bytes, sha256))

    def read(self, item: int) -> bytes:
        return self._spool.read(self._job_id, self.files[item].file)

    def _require_room(self, size_bytes: int) -> None:
        most, used = self._store.limits.max_spool_bytes, self._spool.used_bytes
        share = self._held + self._receiving.count(self.owner)
        if used + size_bytes > most:
            raise errors.QueueFull(
                "the spool is full", facts={"limit_bytes": most}, retry_after_s=QUEUE_FULL_S
            )
        if not within_share(share, most - used, most):
            message = "this client has its share of the spool"
            raise errors.QueueFull(message, facts={"limit_bytes": share}, retry_after_s=QUEUE_FULL_S)

    def _close_file(self) -> None:
        if self._incoming is not None:
            self._incoming.close()
            self._incoming = None

    def commit(self) -> tuple[StoredJob, bool]:
        """Accept the job and return it, and whether its request had been accepted before."""
        if not self.files:
            raise errors.MessageInvalid("a job without items", facts={"field": "items"})
        if not self.accepted_before:
            self._spool.sync(self._job_id, [row.file for row in self.files])
        job_id, repeated = self._store.insert(
            self._job_id,
            self.owner,
            self._request,
            self.files,
            new=not self.accepted_before,
            mark=partial(setattr, self, "kept"),
        )
        return self._store.get(job_id), repeated


DESCRIBE_TIMEOUT_S = 3.0
MAX_UPLOADS = 24
"""Limit concurrent uploads: gRPC holds up to 25 MiB of each, however slowly it is read (docs/operating.md)."""
MAX_UPLOADS_PER_CLIENT = 16
QUEUE_FULL_S = 30.0
REFUSED_S = 10.0
"""Check a refused job's other items for so long, to name all that are refused; its owner is not charged."""
Requests = Iterator[pb.SubmitJobRequest]


class Submissions:
    """Checks and charges of new jobs."""

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
        """Receive and return one job, and whether its request had been accepted before; raise if it is refused."""
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
        """Receive all items and return their number of samples; raise if any is refused."""
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
        """Charge the job before it is accepted, so that a kill between the two leaves no unpaid job."""
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
        """Raise unless the peer is known and, if it answers, serves the domain and classes."""
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
        """Return a function that checks an item's header and opens its file."""
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
        """Return the item's number of samples; raise if encoding would refuse it."""
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
