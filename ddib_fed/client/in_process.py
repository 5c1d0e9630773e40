"""Two models of this process behind the client's interface: files go the way that they go between nodes.

A job is kept in memory and computed while its results are taken. Imports torch, as nothing else of the client does.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any

import torch

from ddib_fed.calibration.record import Calibration, map_between
from ddib_fed.client.client import Client, JobRequest
from ddib_fed.client.payload import MAX_ITEM_BYTES, Payload, name_item
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import (
    Domains,
    Failure,
    ItemView,
    JobResult,
    JobView,
    Media,
    ResultFile,
    Submitted,
    TargetDomain,
)
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.data.points import to_npy
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings, check_translation, item_of
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.engine.model import DomainModel, check_given
from ddib_fed.engine.party import Control, Failed, ToTranslate, TranslatedItem, translate
from ddib_fed.engine.record import (
    LatentFigures,
    Part,
    SolverUsed,
    Translation,
    guidance_used,
)
from ddib_fed.errors import Cancelled, DdibError, InputError, MemoryExhausted, SettingsInvalid
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.evaluation.samples import Given, samples_of
from ddib_fed.protocol.details import refused_facts
from ddib_fed.protocol.messages import Event, ItemState, JobState, Settings

INSTITUTION = "here"
"""What targets are called: `here/relief`."""
MAX_POINTS = 100_000_000
_MEDIA = {"NPY": Media.NPY, "PNG": Media.PNG}
_NOBODY = Profile.model_construct(institution="", name="", source_address="", source_identity="")


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """What is asked of two models in one process and of no nodes, which have policies and secrets in its place.

    Attributes:
        soften: Noise level before encoding; None for the source model's own.
        seed: Of the softening's noise, and of that of each step where the settings draw some.
        calibration: Under which the source encodes.
        settings: Of which the levels, eta and ancestral sampling count: the options of the public code.
    """

    soften: float | None = None
    seed: int = 0
    calibration: Calibration | None = None
    settings: SolverSettings = field(default_factory=SolverSettings)

    def solver(self, asked: Settings) -> SolverSettings:
        names = ("solver", "order", "evaluations", "grid", "depth", "encoder")
        return replace(self.settings, **{name: getattr(asked, name) for name in names})


@dataclass(slots=True)
class _Job:
    """What was submitted, and what became of it."""

    job_id: str
    request_id: str
    items: Sequence[Payload]
    request: JobRequest
    asked: ArraySettings
    labels: Sequence[tuple[str, str]]
    numbers: Sequence[tuple[int | None, int | None]]
    state: JobState = JobState.QUEUED
    done: set[int] = field(default_factory=set)
    failed: dict[int, DdibError] = field(default_factory=dict)


class InProcess(Client):
    """A client whose node is this process: what is submitted is computed by two local parties.

    Args:
        source: Encodes.
        target: Decodes; guided by a classifier, it is the party's own.
        here: What nodes would not take from a client.

    Raises:
        CalibrationForeign, CalibrationUnits, CalibrationModel: The calibration is not one of these models.
    """

    keeps_jobs = False
    hop = ""
    clock_s = None

    def __init__(self, source: LocalParty, target: LocalParty, here: ProcessOptions | None = None) -> None:
        here = here or ProcessOptions()
        self._source, self._target, self._here = source, target, here
        manifests = source.model.manifest, target.model.manifest
        self._rotation = map_between(here.calibration, *manifests)
        self._samples = samples_of(source.model, ImageLimits(max_bytes=MAX_ITEM_BYTES), MAX_POINTS)
        pictures = source.model.is_picture
        self._size_rule = picture_rule(manifests[0]).fit if pictures else "none"
        self._target_rule = picture_rule(manifests[1]) if target.model.is_picture else None
        self._jobs: dict[str, _Job] = {}
        self._control = Control()
        # Results of an earlier run are known by who asked for them: here by these models and options.
        self._profile = _NOBODY.model_copy(update={"institution": self.digest})

    @property
    def profile(self) -> Profile:
        return self._profile

    @property
    def target(self) -> str:
        """What the target's domain is called where a client names it."""
        return f"{INSTITUTION}/{self._target.model.manifest.domain}"

    @property
    def digest(self) -> str:
        """SHA-256, hex, of all that decides what a file becomes beside the request."""
        here, calibration = asdict(replace(self._here, calibration=None)), self._here.calibration
        models = [(each.model.bundle.digest, str(each.model.dtype)) for each in (self._source, self._target)]
        guides = [
            each.model.classifier and each.model.classifier.digest for each in (self._source, self._target)
        ]
        made = [here, None if calibration is None else calibration.sha256.hex(), models, guides]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None:
        self._control.cancel(Cancelled("interrupted"))

    @property
    def aborted(self) -> bool:
        return self._control.cancelled

    def domains(self, *, own_alone: bool = False) -> Domains:  # noqa: ARG002 - there are no peers to ask
        own, other = self._source.model, self._target.model
        form = own.manifest.picture
        target = TargetDomain(
            INSTITUTION,
            other.manifest.domain,
            other.manifest.sample_kind,
            other.sample_shape,
            "ready",
            0,
            _classes(other),
            other.manifest.classes,
        )
        return Domains(
            INSTITUTION,
            own.manifest.domain,
            own.manifest.sample_kind,
            own.sample_shape,
            (target,),
            _classes(own),
            own.manifest.classes,
            (form and form.intensity) or "",
            (form and form.slices) or "",
            tiles=form is not None and form.tiles and own.bundle.tile is None,
        )

    def send(
        self,
        items: Sequence[Payload],
        request: JobRequest,
        *,
        request_id: str | None = None,
        while_busy: bool = True,  # noqa: ARG002 - this process is never busy
    ) -> Submitted:
        labels = request.classes or [(request.source_class, request.target_class)] * len(items)
        models = self._source.model, self._target.model
        known = {
            pair: tuple(_number(model, text) for model, text in zip(models, pair, strict=True))
            for pair in dict.fromkeys(labels)
        }
        asked = ArraySettings(
            self._here.solver(request.settings),
            guidance=request.guidance,
            soften=self._here.soften,
            seed=self._here.seed,
            cycle=request.cycle,
            calibration=self._rotation,
        )
        for own, other in known.values():
            check_translation(
                self._source, self._target, replace(asked, source_class=own, target_class=other)
            )
        job_id = str(len(self._jobs) + 1)
        numbers: Any = [known[pair] for pair in labels]
        self._check_items(items)
        job = _Job(job_id, request_id or str(uuid.uuid4()), items, request, asked, labels, numbers)
        self._jobs[job_id] = job
        return Submitted(job_id, job.request_id, job.state, repeated=False)

    def _check_items(self, items: Sequence[Payload]) -> None:
        """Return if all can be encoded; otherwise the first one's error, which names the others."""
        refused: dict[int, DdibError] = {}
        for number, item in enumerate(items):
            try:
                given = self._samples.read(item.read(), self._size_rule)
                check_given(self._source.model, given.samples)
            except InputError as error:
                error.facts |= {"item": str(number), "model": self._source.model.manifest.domain}
                refused[number] = error.kept()
        if refused:
            first = refused[min(refused)]
            first.facts |= refused_facts({number: error.reason for number, error in refused.items()})
            name_item(first, items)
            raise first

    def get(self, job_id: str) -> JobView:
        job = self._jobs[job_id]
        items = []
        for number, item in enumerate(job.items):
            error = job.failed.get(number)
            state = ItemState.DELIVERED if number in job.done else ItemState.RECEIVED
            failure = None
            if error is not None:
                state = ItemState.FAILED
                failure = Failure(error.reason, error.sentence, facts=dict(error.facts))
            items.append(ItemView(number, state, item.size_bytes, item.sha256, failure))
        asked = job.request
        what = (asked.target, asked.settings, asked.cycle, asked.keep_latent, 0.0, 0.0, 0.0)
        view = JobView(job_id, job.request_id, job.state, *what, tuple(items), None)
        return replace(view, model_size=asked.model_size, item_count=len(items), items_done=len(job.done))

    def list(self, limit: int = 100) -> tuple[JobView, ...]:  # noqa: ARG002 - those of an earlier process are gone
        return ()

    def acknowledge(self, job_id: str, results: Iterable[tuple[int, bytes]]) -> int:  # noqa: ARG002
        return 0

    def results(self, job_id: str, *, on_event: Callable[[Event], None] | None = None) -> Iterator[JobResult]:
        """Compute a job, and give each result when it is there."""
        job, numbers = self._jobs[job_id], count(1)
        job.state = JobState.RUNNING
        given: dict[int, Given] = {}

        def tell(item: int, stage: str, step: int = 0, steps: int = 0) -> None:
            if on_event is not None:
                ended = len(job.done) + len(job.failed)
                on_event(Event(next(numbers), job.state, item, stage, step, steps, "", ended, len(job.items)))

        def items() -> Iterator[ToTranslate]:
            for number, payload in enumerate(job.items):
                given[number] = self._samples.read(payload.read(), self._size_rule)
                own, other = job.numbers[number]
                asked = replace(job.asked, source_class=own, target_class=other)
                yield item_of(number, given[number].samples, self._source.model, self._target.model, asked)

        leg = replace(job.asked.leg(tell), control=self._control)
        try:
            for outcome in translate(self._source, self._target, items(), leg):
                if isinstance(outcome, Failed):
                    job.failed[outcome.number] = outcome.error
                    given.pop(outcome.number, None)
                    tell(outcome.number, "failed")
                    continue
                number = outcome.item.number
                result = self._result(job, given.pop(number), outcome)
                job.done.add(number)
                tell(number, "done")
                yield result
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryExhausted(
                "the GPU's memory does not suffice for so many pictures at once",
                hint="a smaller --batch, or --dtype bfloat16",
            ) from error
        job.state = JobState.FAILED if job.failed else JobState.FINISHED

    def _result(self, job: _Job, given: Given, found: TranslatedItem) -> JobResult:
        """The files and the record of an item, as a source node makes them."""
        item, source, target = job.items[found.item.number], self._source.model, self._target.model
        if job.request.model_size:
            given = given.at_model_size()
        calibration, labels = self._here.calibration, job.labels[found.item.number]
        guide = target.classifier if job.asked.guidance.classifier_scale is not None else None
        record = Translation(
            source_domain=source.manifest.domain,
            target_domain=target.manifest.domain,
            source_model_sha256=source.bundle.digest,
            target_model_sha256=target.bundle.digest,
            input_sha256=item.sha256.hex(),
            latent_sha256=found.encoded.latent.sha256.hex(),
            solver=SolverUsed.model_validate(job.asked.settings.described()),
            soften_sigma=source.sigma(job.asked.soften),
            source_class=labels[0],
            target_class=labels[1],
            guidance=guidance_used(job.asked.guidance),
            classifier_sha256="" if guide is None else guide.digest,
            calibration_sha256="" if calibration is None else calibration.sha256.hex(),
            calibration_kind="" if calibration is None else calibration.kind,
            samples=len(given.samples),
            latent=LatentFigures(**asdict(found.encoded.statistics)),
            seconds={"encode": found.encoded.seconds, "decode": found.decoded.seconds},
            picture=given.picture,
        )
        samples, media = self._samples, _MEDIA[self._samples.format]
        made = {
            Part.TRANSLATION: samples.translation(
                found.decoded.samples, self._target_rule, given, self._rotation
            )
        }
        if job.request.model_size:
            made[Part.SOURCE] = samples.source(given)
        if found.back is not None:
            made[Part.RETURNED] = samples.returned(given, found.back)
            record = record.with_(seconds={"return": found.back.seconds})
        files = {}
        for part, each in made.items():
            record = record.with_(**each.figures)
            files[part] = _file(media, each.file)
        if found.back is not None and given.is_fitted:
            record = record.with_(picture=samples.returned_at_own_size(item.read(), found.back))
        if job.request.keep_latent:
            files[Part.LATENT] = _file(Media.NPY, to_npy(found.encoded.latent.data))
        return JobResult(found.item.number, files, record)


def _file(media: Media, data: bytes) -> ResultFile:
    return ResultFile(media, data, hashlib.sha256(data).digest())


def _classes(model: DomainModel) -> int:
    """Of the model, or of the classifier that guides one without."""
    guide = model.classifier
    return model.manifest.num_classes or (0 if guide is None else guide.manifest.num_classes or 0)


def _number(model: DomainModel, text: str) -> int | None:
    """The class of a name or number; whether the model has it is checked with the settings."""
    if not text:
        return None
    names = model.manifest.classes
    if text in names:
        return names.index(text)
    if not text.isdecimal():
        known = ", ".join(names[:8]) or f"0 to {_classes(model) - 1}"
        raise SettingsInvalid(
            f"{model.manifest.name} has no class {text[:40]!r}", hint=f"its classes: {known}"
        )
    return int(text)
