"""The client's view of messages as frozen dataclasses; nothing above this module sees protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ddib_fed.bridge.translation_record import Part, Translation
from ddib_fed.errors import DdibError, Difference, error_class
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.v1 import common_pb2, translation_pb2
from ddib_fed.wire.guidance import NO_GUIDANCE, GuidanceTerms, guidance_from_pb

_KINDS = {common_pb2.SAMPLE_KIND_POINT: "point", common_pb2.SAMPLE_KIND_PICTURE: "picture"}


class JobState(StrEnum):
    """Where a job is; the values are those of the protocol without their prefix."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job by itself."""
        return self in {JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}


class ItemState(StrEnum):
    """Where an item of a job is."""

    UNKNOWN = "UNKNOWN"
    RECEIVED = "RECEIVED"
    ENCODED = "ENCODED"
    DECODED = "DECODED"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"


class Media(StrEnum):
    """What a file is; the value is its suffix."""

    NPY = ".npy"
    PNG = ".png"
    JPEG = ".jpg"
    TIFF = ".tif"


_JOB_STATES = {
    translation_pb2.JOB_STATE_QUEUED: JobState.QUEUED,
    translation_pb2.JOB_STATE_RUNNING: JobState.RUNNING,
    translation_pb2.JOB_STATE_FINISHED: JobState.FINISHED,
    translation_pb2.JOB_STATE_FAILED: JobState.FAILED,
    translation_pb2.JOB_STATE_CANCELLED: JobState.CANCELLED,
}
_ITEM_STATES = {
    translation_pb2.ITEM_STATE_RECEIVED: ItemState.RECEIVED,
    translation_pb2.ITEM_STATE_ENCODED: ItemState.ENCODED,
    translation_pb2.ITEM_STATE_DECODED: ItemState.DECODED,
    translation_pb2.ITEM_STATE_DELIVERED: ItemState.DELIVERED,
    translation_pb2.ITEM_STATE_FAILED: ItemState.FAILED,
}
PARTS = {
    translation_pb2.RESULT_PART_TRANSLATION: Part.TRANSLATION,
    translation_pb2.RESULT_PART_RETURNED: Part.RETURNED,
    translation_pb2.RESULT_PART_LATENT: Part.LATENT,
    translation_pb2.RESULT_PART_SOURCE: Part.SOURCE,
}
MEDIA = {
    common_pb2.MEDIA_TYPE_NPY: Media.NPY,
    common_pb2.MEDIA_TYPE_PNG: Media.PNG,
    common_pb2.MEDIA_TYPE_JPEG: Media.JPEG,
    common_pb2.MEDIA_TYPE_TIFF: Media.TIFF,
}
MEDIA_TYPES = {media: number for number, media in MEDIA.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the ODE is integrated, on both nodes.

    Attributes:
        solver: ``unipc``, ``ddim``, ``rk4`` or ``alf``.
        order: 1 to 4 where the solver has orders, 0 for its default.
        evaluations: Network evaluations of one leg, 1 to 10,000.
        grid: ``default``, ``uniform-lambda``, ``karras``, ``integer`` or ``integer:T``.
        depth: Fraction of the way to noise that is gone, in (0, 1]; below 1 the latent keeps some of the picture, and
            both nodes' policies must allow it.
    """

    solver: str = "unipc"
    order: int = 0
    evaluations: int = 48
    grid: str = "default"
    depth: float = 1.0


@dataclass(frozen=True, slots=True)
class Domain:
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

    @property
    def target(self) -> str:
        """As `--to` takes it."""
        return f"{self.institution}/{self.domain}"


@dataclass(frozen=True, slots=True)
class Domains:
    """The source node's own domain and those it can translate to."""

    institution: str
    domain: str
    sample_kind: str
    sample_shape: tuple[int, ...]
    targets: tuple[Domain, ...]
    classes: int = 0
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job or an item failed, as its node recorded it."""

    reason: str
    sentence: str
    institution: str = ""
    incident: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()

    def as_error(self, detail: str, kind: type[DdibError] | None = None, *, hint: str = "") -> DdibError:
        """The error to raise for it, of the reason's own class unless `kind` says otherwise."""
        return (kind or error_class(self.reason))(
            detail,
            hint=hint,
            hop=self.institution,
            facts=self.facts,
            differences=self.differences,
            incident=self.incident,
        )


@dataclass(frozen=True, slots=True)
class ItemView:
    """One item of a job."""

    index: int
    state: ItemState
    size_bytes: int
    sha256: bytes
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its source node sees it; times are Unix seconds, 0 when not known."""

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

    @property
    def expected_parts(self) -> frozenset[Part]:
        """The files that each of its results has."""
        asked = {
            Part.TRANSLATION: True,
            Part.RETURNED: self.cycle,
            Part.LATENT: self.keep_latent,
            Part.SOURCE: self.model_size,
        }
        return frozenset(part for part, wanted in asked.items() if wanted)


@dataclass(frozen=True, slots=True)
class Submitted:
    """The node's answer to a submission: the job is on its disk."""

    job_id: str
    request_id: str
    state: JobState
    repeated: bool


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job; `sequence` only grows, also over a restart of the node."""

    sequence: int
    state: JobState
    item: int
    stage: str
    step: int
    steps: int
    reason: str
    items_done: int
    items: int


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One verified file of a result."""

    media: Media
    data: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """All files of one item, each with the digest that was announced for it, and how they came about."""

    item: int
    files: Mapping[Part, ResultFile]
    provenance: Translation

    @property
    def translation(self) -> ResultFile:
        """The translation itself."""
        return self.files[Part.TRANSLATION]


def settings_view(pb: common_pb2.SolverSettings) -> Settings:
    """Solver settings."""
    return Settings(pb.solver, pb.order, pb.evaluations, pb.grid, pb.depth or 1.0)


def settings_message(settings: Settings) -> common_pb2.SolverSettings:
    """Solver settings, to send."""
    return common_pb2.SolverSettings(
        solver=settings.solver,
        order=settings.order,
        evaluations=settings.evaluations,
        grid=settings.grid,
        depth=0.0 if settings.depth == 1.0 else settings.depth,
    )


def domains_view(pb: translation_pb2.ListDomainsResponse) -> Domains:
    """What the node can translate to."""
    targets = tuple(
        Domain(
            institution=d.institution,
            domain=d.domain,
            sample_kind=_KINDS.get(d.sample_kind, "unknown"),
            sample_shape=tuple(d.sample_shape),
            status=d.status,
            latency_ms=d.latency_ms,
            classes=d.classes,
            class_names=tuple(d.class_names),
            size_rule=d.size_rule,
            guidance=GuidanceTerms.from_pb(d.guidance),
        )
        for d in pb.domains
    )
    kind, shape = _KINDS.get(pb.sample_kind, "unknown"), tuple(pb.sample_shape)
    return Domains(pb.institution, pb.domain, kind, shape, targets, pb.classes, tuple(pb.class_names))


def job_state(number: int) -> JobState:
    """A state's number as its name; a number of a later release is `UNKNOWN`."""
    return next((state for key, state in _JOB_STATES.items() if key == number), JobState.UNKNOWN)


def _failure(pb: common_pb2.ErrorDetail) -> Failure:
    differences = tuple(Difference(d.field, d.source, d.target, d.remedy) for d in pb.differences)
    return Failure(pb.reason, pb.sentence, pb.institution, pb.incident, dict(pb.facts), differences)


def _item(pb: translation_pb2.Item) -> ItemView:
    state = next((state for key, state in _ITEM_STATES.items() if key == pb.state), ItemState.UNKNOWN)
    failure = _failure(pb.error) if pb.HasField("error") else None
    return ItemView(pb.index, state, pb.size_bytes, pb.sha256, failure)


def job_view(pb: translation_pb2.Job) -> JobView:
    """A job."""
    return JobView(
        job_id=pb.job_id,
        request_id=pb.request_id,
        state=job_state(pb.state),
        target=f"{pb.target_institution}/{pb.target_domain}",
        settings=settings_view(pb.solver),
        cycle=pb.cycle,
        keep_latent=pb.keep_latent,
        created=pb.created,
        finished=pb.finished,
        expires=pb.expires,
        items=tuple(_item(item) for item in pb.items),
        failure=_failure(pb.error) if pb.HasField("error") else None,
        source_class=pb.source_class,
        target_class=pb.target_class,
        guidance=guidance_from_pb(pb.guidance),
        model_size=pb.model_size,
    )


def event_view(pb: translation_pb2.WatchJobResponse) -> Event:
    """An event."""
    return Event(
        sequence=pb.sequence,
        state=job_state(pb.state),
        item=pb.item,
        stage=pb.stage,
        step=pb.step,
        steps=pb.steps,
        reason=pb.reason,
        items_done=pb.items_done,
        items=pb.items,
    )
