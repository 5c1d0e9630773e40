"""The client's view of messages as frozen dataclasses; nothing above this module sees protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ddib_fed.engine.record import UNGUIDED, Guidance, Part, Translation
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    DeadlineExceeded,
    Difference,
    JobFailed,
    PeerFault,
    error_class,
)
from ddib_fed.protocol.contract import NO_GUIDANCE, CalibrationTerms, GuidanceTerms, guidance_from_pb
from ddib_fed.protocol.messages import (
    Event,
    ItemState,
    JobState,
    Settings,
    enum_members,
    from_message,
    settings_from_pb,
)
from ddib_fed.v1 import common_pb2, translation_pb2


class Media(StrEnum):
    """What a file is; the value is its suffix."""

    NPY = ".npy"
    PNG = ".png"
    JPEG = ".jpg"
    TIFF = ".tif"


PARTS = enum_members(Part, translation_pb2.ResultPart.DESCRIPTOR)
MEDIA = enum_members(Media, common_pb2.MediaType.DESCRIPTOR)


@dataclass(frozen=True, slots=True)
class TargetDomain:
    """A domain that the source node can translate to; `status` is ``ready`` or the reason why not."""

    institution: str
    domain: str
    sample_kind: str
    sample_shape: tuple[int, ...]
    status: str
    latency_ms: int
    classes: int = 0
    class_names: tuple[str, ...] = ()
    size_rule: str = ""
    guidance: GuidanceTerms = NO_GUIDANCE
    calibration: CalibrationTerms | None = None

    @property
    def target(self) -> str:
        return f"{self.institution}/{self.domain}"


@dataclass(frozen=True, slots=True)
class Domains:
    institution: str
    domain: str
    sample_kind: str
    sample_shape: tuple[int, ...]
    targets: tuple[TargetDomain, ...]
    classes: int = 0
    class_names: tuple[str, ...] = ()
    intensity: str = ""
    slices: str = ""
    tiles: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job or an item failed, as its node recorded it."""

    reason: str
    sentence: str
    institution: str = ""
    incident: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()

    @property
    def text(self) -> str:
        """What failed, in words of the picture, or whose fault it is, or the last cause of a job whose time was up."""
        facts, peer = self.facts, self.facts.get("peer") or self.institution
        if self.reason == DeadlineExceeded.reason and "deadline_s" in facts:
            last = f"; last: {facts['last']}" if "last" in facts else ""
            done = facts.get("items_done", "some")
            return f"the deadline of {facts['deadline_s']} s passed, {done} items were done{last}"
        if "picture" in facts:
            return f"{facts['picture']}, and the source's model has not learned such pictures"
        if "found" not in facts:
            return self.sentence
        if self.reason == PeerFault.reason:
            return f"{peer} answered with what cannot be used: {facts['found']}"
        return f"{peer}: {facts['found']}"

    def as_error(
        self, detail: str, hop: str, kind: type[DdibError] | None = None, *, hint: str = ""
    ) -> DdibError:
        """The error to raise for it, of the reason's own class unless `kind` is given."""
        further = bool(self.institution) and self.institution != hop.rpartition(" ")[2]
        error = (kind or error_class(self.reason))(
            detail,
            hint=hint,
            hop=f"{hop} -> {self.institution}" if further else hop,
            facts=self.facts,
            differences=self.differences,
            incident=self.incident,
        )
        error.says = self.institution if further and self.reason != PeerFault.reason else ""
        return error


@dataclass(frozen=True, slots=True)
class ItemView:
    index: int
    state: ItemState
    size_bytes: int
    sha256: bytes
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as reported by its source node; times are Unix seconds, 0 if unknown."""

    job_id: str
    request_id: str
    state: JobState
    target: str
    settings: Settings
    cycle: bool
    keep_latent: bool
    created: float
    finished: float
    expires: float
    items: tuple[ItemView, ...]
    failure: Failure | None
    source_class: str = ""
    target_class: str = ""
    guidance: Guidance = UNGUIDED
    model_size: bool = False
    no_calibration: bool = False
    item_count: int = 0
    items_done: int = 0

    @property
    def expected_parts(self) -> frozenset[Part]:
        asked = {
            Part.TRANSLATION: True,
            Part.RETURNED: self.cycle,
            Part.LATENT: self.keep_latent,
            Part.SOURCE: self.model_size,
        }
        return frozenset(part for part, wanted in asked.items() if wanted)

    @property
    def ready(self) -> list[int]:
        return [item.index for item in self.items if item.state is ItemState.DECODED]


@dataclass(frozen=True, slots=True)
class Submitted:
    """The node's answer to a submission: the job is on its disk."""

    job_id: str
    request_id: str
    state: JobState
    repeated: bool


@dataclass(frozen=True, slots=True)
class ResultFile:
    media: Media
    data: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class JobResult:
    """All files of one item, each verified against its announced digest, and their provenance."""

    item: int
    files: Mapping[Part, ResultFile]
    provenance: Translation

    @property
    def translation(self) -> ResultFile:
        return self.files[Part.TRANSLATION]


def domains_view(pb: translation_pb2.ListDomainsResponse) -> Domains:
    return from_message(
        pb, Domains, targets=tuple(from_message(domain, TargetDomain) for domain in pb.domains)
    )


JOB_STATES = enum_members(JobState, translation_pb2.JobState.DESCRIPTOR)


def job_view(pb: translation_pb2.Job) -> JobView:
    return from_message(
        pb,
        JobView,
        target=f"{pb.target_institution}/{pb.target_domain}",
        settings=settings_from_pb(pb.solver),
        items=tuple(from_message(item, ItemView, failure=_failure(item)) for item in pb.items),
        failure=_failure(pb),
        guidance=guidance_from_pb(pb.guidance),
    )


def _failure(pb: translation_pb2.Job | translation_pb2.Item) -> Failure | None:
    return from_message(pb.error, Failure) if pb.HasField("error") else None


def event_view(pb: translation_pb2.WatchJobResponse) -> Event:
    return from_message(pb, Event)


def require_finished(job: JobView, hop: str) -> JobView:
    """The given job, if it succeeded."""
    if job.state is JobState.CANCELLED:
        raise Cancelled(f"job {job.job_id} was cancelled", hop=hop)
    bad = [item for item in job.items if item.state is ItemState.FAILED]
    failure = job.failure or next((item.failure for item in bad if item.failure), None)
    if job.state is not JobState.FAILED and not bad:
        return job
    what = f"{len(bad)} of {len(job.items)} items of job {job.job_id}" if bad else f"job {job.job_id}"
    hint = f"ddib job show {job.job_id}" if hop else ""  # in one process nothing is kept
    if failure is None:
        raise JobFailed(f"{what} failed", hop=hop, hint=hint)
    raise failure.as_error(f"{what} failed: {failure.text} ({failure.reason})", hop, JobFailed, hint=hint)
