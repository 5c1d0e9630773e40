"""Two models of this process behind the client's interface: files go the way that they go between nodes.

A job is kept in memory and computed while its results are taken. Imports torch, as nothing else of the client does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ddib_fed.calibration.record import Calibration, Dial, check_blend, map_between
from ddib_fed.client.client import Client, JobResult, ResultFile, name_item
from ddib_fed.client.files import MAX_ITEM_BYTES, Payload
from ddib_fed.client.profile import Profile
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.data.points import to_npy
from ddib_fed.diffusion.plans import SolverSettings, check_settings
from ddib_fed.engine.arrays import ArraySettings, check_translation, item_of
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.engine.model import DomainModel, check_given
from ddib_fed.engine.party import Control, Failed, ToTranslate, TranslatedItem, translate
from ddib_fed.errors import Cancelled, DdibError, InputError, MemoryExhausted, first_of
from ddib_fed.evaluation.metrics import file_rule, picture_rule
from ddib_fed.evaluation.samples import Given, SampleFile, samples_of
from ddib_fed.protocol.contract import REFUSE, guidance_from_pb
from ddib_fed.record import UNGUIDED, Classes, LatentFigures, Part, Record, Settings
from ddib_fed.terminal import explained
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb

INSTITUTION = "here"
"""What targets are called: `here/relief`."""
MAX_POINTS = 100_000_000
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

    def solver(self, asked: common_pb2.SolverSettings) -> SolverSettings:
        return replace(self.settings, **asdict(Settings.like(asked)))


@dataclass(slots=True)
class _Job:
    """What was submitted, and what became of it."""

    view: pb.Job
    items: Sequence[Payload]
    asked: ArraySettings
    classes: Sequence[tuple[str, str]]
    numbers: Mapping[tuple[str, str], tuple[int | None, int | None]]


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
        fits = {"point": "none", "volume": REFUSE}
        self._size_rule = fits.get(manifests[0].sample_kind) or picture_rule(manifests[0]).fit
        self._target_rule = file_rule(manifests[1]) if target.model.is_picture else None
        self._jobs: dict[str, _Job] = {}
        self._control = Control()
        # Results of an earlier run are known by who asked for them: here by these models and options.
        self.profile = _NOBODY.model_copy(update={"institution": self.digest})

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

    def domains(self, *, own_alone: bool = False) -> pb.ListDomainsResponse:  # noqa: ARG002 - there are no peers to ask
        own, form = self._source.model, self._source.model.manifest.picture
        target = pb.Domain(institution=INSTITUTION, status="ready", **_described(self._target.model))
        return pb.ListDomainsResponse(
            institution=INSTITUTION,
            domains=[target],
            intensity=(form and form.intensity) or "",
            slices=(form and form.slices) or "",
            spacing_mm=(form and form.spacing) or (),
            tiles=form is not None and form.tiles and own.bundle.tile is None and self._size_rule != REFUSE,
            **_described(own),
        )

    def send(
        self,
        items: Sequence[Payload],
        header: pb.JobHeader,
        *,
        while_busy: bool = True,  # noqa: ARG002 - this process is never busy
    ) -> pb.SubmitJobResponse:
        classes = [(each.source_class, each.target_class) for each in header.item_classes]
        classes = classes or [(header.source_class, header.target_class)] * len(items)
        models = self._source.model, self._target.model
        numbers = {
            pair: (_number(models[0], pair[0]), _number(models[1], pair[1]))
            for pair in dict.fromkeys(classes)
        }
        Dial.fill(header.solver, self._here.calibration)
        check_blend(header.solver.blend, self._here.calibration)
        asked = ArraySettings(
            self._here.solver(header.solver),
            guidance=guidance_from_pb(header.guidance),
            soften=self._here.soften,
            seed=self._here.seed,
            cycle=header.cycle,
            calibration=self._rotation,
            volume_sha256=header.volume_sha256,
        )
        for own, other in numbers.values():
            check_translation(
                self._source, self._target, replace(asked, source_class=own, target_class=other)
            )
        self._check_items(items)
        view = pb.Job(
            job_id=str(len(self._jobs) + 1),
            request=header,
            calibration=b"" if self._here.calibration is None else self._here.calibration.canonical,
            state=pb.JOB_STATE_QUEUED,
            items=[pb.Item(index=number, state=pb.ITEM_STATE_RECEIVED) for number in range(len(items))],
        )
        self._jobs[view.job_id] = _Job(view, items, asked, classes, numbers)
        return pb.SubmitJobResponse(job_id=view.job_id, state=view.state)

    def _check_items(self, items: Sequence[Payload]) -> None:
        """Raise the first error of the items that cannot be encoded; it names the others."""
        refused: dict[int, DdibError] = {}
        for number, item in enumerate(items):
            try:
                given = self._samples.read(item.read(), self._size_rule)
                check_given(self._source.model, given.samples)
            except Exception as error:  # noqa: BLE001 - whatever a reader raises is about its file alone
                found = explained(error, _called(item, number))
                found.facts |= {"item": str(number), "model": self._source.model.manifest.domain}
                if not isinstance(found, InputError):
                    raise found from None
                refused[number] = found.kept()
        if refused:
            first = first_of(refused)
            name_item(first, items)
            raise first

    def get(self, job_id: str) -> pb.Job:
        return self._jobs[job_id].view

    def list(self, limit: int = 100) -> Sequence[pb.Job]:  # noqa: ARG002 - those of an earlier process are gone
        return ()

    def acknowledge(self, job_id: str, results: Iterable[tuple[int, bytes]]) -> int:  # noqa: ARG002
        return 0

    def results(
        self, job_id: str, *, on_event: Callable[[pb.WatchJobResponse], None] | None = None
    ) -> Iterator[JobResult]:
        """Compute a job, and give each result when it is there."""
        job, numbers = self._jobs[job_id], count(1)
        view = job.view
        view.state = pb.JOB_STATE_RUNNING
        given: dict[int, Given] = {}

        def tell(item: int, stage: str, step: int = 0, steps: int = 0) -> None:
            if on_event is not None:
                event = pb.WatchJobResponse(item=item, stage=stage, step=step, steps=steps)
                event.sequence, event.state = next(numbers), view.state
                event.items_done, event.items = view.items_done, len(job.items)
                on_event(event)

        def items() -> Iterator[ToTranslate]:
            for number, payload in enumerate(job.items):
                given[number] = self._samples.read(payload.read(), self._size_rule)
                own, other = job.numbers[job.classes[number]]
                asked = replace(job.asked, source_class=own, target_class=other)
                yield item_of(number, given[number].samples, self._source.model, self._target.model, asked)

        def ended(number: int, error: DdibError | None = None) -> None:
            item = view.items[number]
            item.state = pb.ITEM_STATE_DELIVERED if error is None else pb.ITEM_STATE_FAILED
            if error is not None:
                item.error.reason, item.error.sentence = error.reason, error.detail
                item.error.facts.update(error.facts)
            view.items_done += 1
            tell(number, "done" if error is None else "failed")

        leg = replace(job.asked.leg(tell), control=self._control)
        try:
            for outcome in translate(self._source, self._target, items(), leg):
                if isinstance(outcome, Failed):
                    given.pop(outcome.number, None)
                    ended(outcome.number, outcome.error)
                    continue
                number = outcome.item.number
                try:
                    result = self._result(job, given.pop(number), outcome)
                except (DdibError, torch.cuda.OutOfMemoryError):
                    raise
                except Exception as error:  # noqa: BLE001 - what cannot be written is one item's
                    ended(number, explained(error, _called(job.items[number], number)))
                    continue
                ended(number)
                yield result
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryExhausted(
                "the GPU's memory does not suffice for so many pictures at once",
                hint="a smaller --batch, or --dtype bfloat16",
            ) from error
        view.state = pb.JOB_STATE_FINISHED
        if all(item.state == pb.ITEM_STATE_FAILED for item in view.items):  # as at a node
            view.state = pb.JOB_STATE_FAILED
            view.error.CopyFrom(view.items[0].error)

    def _result(self, job: _Job, given: Given, found: TranslatedItem) -> JobResult:
        """The files and the record of an item, as a source node makes them."""
        item, source, target = job.items[found.item.number], self._source.model, self._target.model
        if job.view.request.model_size:
            given = given.at_model_size()
        calibration, classes = self._here.calibration, job.classes[found.item.number]
        guide = target.classifier if job.asked.guidance.classifier_scale is not None else None
        record = Record(
            source_domain=source.manifest.domain,
            target_domain=target.manifest.domain,
            source_model_sha256=source.bundle.digest,
            target_model_sha256=target.bundle.digest,
            input_sha256=item.sha256.hex(),
            latent_sha256=found.encoded.latent.sha256.hex(),
            solver=Settings.like(check_settings(job.asked.settings)),
            soften_sigma=source.sigma(job.asked.soften),
            shared_noise=bool(job.asked.volume_sha256),
            source_class=classes[0],
            target_class=classes[1],
            guidance=None if job.asked.guidance == UNGUIDED else job.asked.guidance,
            classifier_sha256="" if guide is None else guide.digest,
            calibration_sha256="" if calibration is None else calibration.sha256.hex(),
            calibration_kind="" if calibration is None else calibration.kind,
            samples=len(given.samples),
            latent=LatentFigures(**asdict(found.encoded.statistics)),
            seconds={"encode": found.encoded.seconds, "decode": found.decoded.seconds},
            picture=given.picture,
        )
        samples, suffix = self._samples, f".{self._samples.format.lower()}"
        made = {
            Part.TRANSLATION: samples.translation(
                found.decoded.samples,
                self._target_rule,
                given,
                None if calibration is None else calibration.alone,
                blend=job.asked.settings.blend,
            )
        }
        if job.view.request.model_size:
            made[Part.SOURCE] = SampleFile(samples.file(given.samples))
        if found.back is not None:
            made[Part.RETURNED] = samples.returned(given, found.back)
            record = record.with_(seconds={"return": found.back.seconds})
        files = {}
        for part, each in made.items():
            record = record.with_(**each.figures)
            files[part] = _file(suffix, each.file)
        if found.back is not None and given.is_fitted:
            record = record.with_(picture=samples.returned_at_own_size(item.read(), found.back))
        if job.view.request.keep_latent:
            files[Part.LATENT] = _file(".npy", to_npy(found.encoded.latent.data))
        return JobResult(found.item.number, files, record)


def _called(item: Payload, number: int) -> Path | str:
    return item.origin if isinstance(item.origin, Path) else f"item {number}"


def _file(suffix: str, data: bytes) -> ResultFile:
    return ResultFile(suffix, data, hashlib.sha256(data).digest())


def _described(model: DomainModel) -> dict[str, Any]:
    """Fields of a domain's message; the classes are the model's, or those of the classifier that guides one without."""
    manifest, classes = model.manifest, _classes(model)
    return {
        "domain": manifest.domain,
        "sample_kind": manifest.sample_kind,
        "sample_shape": model.sample_shape,
        "classes": classes.count,
        "class_names": classes.names,
    }


def _classes(model: DomainModel) -> Classes:
    manifest, guide = model.manifest, model.classifier
    count = manifest.num_classes or (0 if guide is None else guide.manifest.num_classes or 0)
    return Classes(manifest.name, count, manifest.classes)


def _number(model: DomainModel, text: str) -> int | None:
    return _classes(model).number(text) if text else None
