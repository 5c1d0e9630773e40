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

from ddib_fed.calibration.record import Dial, check_blend, map_between
from ddib_fed.client.client import Client, name_item
from ddib_fed.client.files import MAX_ITEM_BYTES, Origin, Payload, payloads
from ddib_fed.client.jobs import Event, Failure, Item, Job, Request
from ddib_fed.client.profile import Profile
from ddib_fed.client.results import ResultFile, Translated
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.data.points import to_npy
from ddib_fed.diffusion.plans import SolverSettings, check_settings
from ddib_fed.engine.arrays import ArraySettings, check_translation, item_of, public_sampling
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.engine.model import DomainModel, check_given
from ddib_fed.engine.party import Control, Failed, ToTranslate, TranslatedItem, mapped, translate
from ddib_fed.errors import Cancelled, DdibError, InputError, MemoryExhausted, UsageError, first_of
from ddib_fed.evaluation.samples import Given, SampleFile, samples_of
from ddib_fed.metrics import file_rule, picture_rule
from ddib_fed.protocol.contract import REFUSE
from ddib_fed.protocol.messages import Domain, Domains, ItemState, JobState
from ddib_fed.record import DIAL, UNGUIDED, Classes, LatentFigures, Part, Record, Settings
from ddib_fed.terminal import explained

INSTITUTION = "here"  # what targets are called: `here/relief`
MAX_POINTS = 100_000_000
_NOBODY = Profile.model_construct(institution="", name="", source_address="", source_identity="")


@dataclass(slots=True)
class _Job:
    """A job of this process, and what it is computed with."""

    job: Job
    files: Sequence[Payload]
    asked: ArraySettings
    classes: Sequence[tuple[str, str]]
    numbers: Mapping[tuple[str, str], tuple[int | None, int | None]]
    states: list[ItemState] = field(default_factory=list)
    errors: dict[int, Failure] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return sum(state is not ItemState.RECEIVED for state in self.states)

    def put(self, **changes: Any) -> None:
        items = (Item(n, state, error=self.errors.get(n)) for n, state in enumerate(self.states))
        self.job = replace(self.job, items=tuple(items), items_done=self.done, **changes)


class InProcess(Client):
    """A client whose node is this process: one local party encodes files, another decodes."""

    keeps_jobs = False
    hop = ""
    clock_s = None

    def __init__(self, source: LocalParty, target: LocalParty) -> None:
        self._source, self._target = source, target
        self._manifests = source.model.manifest, target.model.manifest
        self._samples = samples_of(source.model, ImageLimits(max_bytes=MAX_ITEM_BYTES), MAX_POINTS)
        fits = {"point": "none", "volume": REFUSE}
        self._size_rule = fits.get(self._manifests[0].sample_kind) or picture_rule(self._manifests[0]).fit
        self._target_rule = file_rule(self._manifests[1]) if target.model.is_picture else None
        self._jobs: dict[str, _Job] = {}
        self._control = Control()
        # Results of an earlier run are known by who asked for them: here by these models.
        self.profile = _NOBODY.model_copy(update={"institution": self.digest})

    @property
    def target(self) -> str:
        """What the target's domain is called where a client names it."""
        return f"{INSTITUTION}/{self._target.model.manifest.domain}"

    @property
    def digest(self) -> str:
        """SHA-256, hex, of the models, their dtypes and their classifiers."""
        both = self._source.model, self._target.model
        models = [(each.bundle.digest, str(each.dtype)) for each in both]
        guides = [each.classifier and each.classifier.digest for each in both]
        return hashlib.sha256(json.dumps([models, guides], sort_keys=True).encode()).hexdigest()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None:
        self._control.cancel(Cancelled("interrupted"))

    @property
    def aborted(self) -> bool:
        return self._control.cancelled

    def domains(self, *, own_alone: bool = False) -> Domains:  # noqa: ARG002 - there are no peers to ask
        own, form = self._source.model, self._source.model.manifest.picture
        target = Domain(INSTITUTION, status="ready", **_described(self._target.model))
        return Domains(
            INSTITUTION,
            domains=(target,),
            intensity=(form and form.intensity) or "",
            slices=(form and form.slices) or "",
            spacing_mm=tuple((form and form.spacing) or ()),
            tiles=form is not None and form.tiles and own.bundle.tile is None and self._size_rule != REFUSE,
            **_described(own),
        )

    def submit(
        self,
        files: Iterable[Origin],
        target: str,
        request: Request | None = None,
        *,
        classes: Sequence[tuple[str, str]] = (),
        volume_sha256: bytes = b"",
        deadline_s: int = 0,  # noqa: ARG002 - the caller waits
        request_id: str = "",
        while_busy: bool = True,  # noqa: ARG002 - this process is never busy
    ) -> Job:
        request, items = request or Request(), payloads(files)
        if request.without_calibration:
            hint = "leave it and the calibration out"
            raise UsageError("no calibration is agreed on in one process", hint=hint)
        pairs = [*classes] or [(str(request.source_class), str(request.target_class))] * len(items)
        models = self._source.model, self._target.model
        numbers = {
            pair: (_number(models[0], pair[0]), _number(models[1], pair[1])) for pair in dict.fromkeys(pairs)
        }
        request, solver = self._complete(request)
        asked = ArraySettings(
            solver,
            guidance=request.guidance,
            soften=request.soften,
            seed=request.seed,
            cycle=request.cycle,
            calibration=map_between(request.agreed, *self._manifests),
            volume_sha256=volume_sha256,
        )
        for own, other in numbers.values():
            check_translation(
                self._source, self._target, replace(asked, source_class=own, target_class=other)
            )
        self._check_items(items)
        calibration = b"" if request.agreed is None else request.agreed.canonical
        job = Job(
            str(len(self._jobs) + 1), target, request, JobState.QUEUED, request_id,
            item_count=len(items), calibration=calibration, model_size=bool(classes),
        )  # fmt: skip
        mine = _Job(job, items, asked, pairs, numbers, [ItemState.RECEIVED] * len(items))
        mine.put()
        self._jobs[job.job_id] = mine
        return mine.job

    def _complete(self, request: Request) -> tuple[Request, SolverSettings]:
        """Return the request with what the calibration or its flags decide, and how it is integrated."""
        settings, agreed = request.settings, request.agreed
        dial = Dial() if agreed is None or settings.depth < 1.0 else agreed.dial
        settings = replace(settings, **{name: getattr(dial, name) for name in request.left if name in DIAL})
        check_blend(settings.blend, agreed, of_latent=request.cycle or request.keep_latents)
        solver = SolverSettings(**asdict(settings))
        changes: dict[str, Any] = {"settings": settings, "left": ()}
        if request.flags:
            default = Settings()
            if (settings.solver, settings.order, settings.grid) not in {
                (default.solver, 0, default.grid),
                ("ddim", 0, default.grid),
            }:
                raise UsageError(
                    "flags are the public code's ddim along its own grid",
                    hint="omit solver, grid and quality",
                )
            given = None if "evaluations" in request.left else settings.evaluations
            solver, clip = public_sampling(request.flags, self._manifests, given)
            solver = replace(solver, **{name: getattr(settings, name) for name in ("depth", *DIAL)})
            if self._manifests[0].sample_kind != "point":
                # The public code neither softens nor leaves values unclipped.
                changes["guidance"] = replace(request.guidance, clip=True if clip is None else clip)
                changes["soften"] = 0.0 if request.soften is None else request.soften
        return replace(request, **changes), solver

    def _check_items(self, items: Sequence[Payload]) -> None:
        """Raise the first error of the items that cannot be encoded; it names the others."""
        refused: dict[int, DdibError] = {}
        for number, item in enumerate(items):
            try:
                given = self._samples.read(item.read(), self._size_rule)
                check_given(self._source.model, given.samples)
            except Exception as error:  # noqa: BLE001 - whatever a reader raises is about its file alone
                explanation = explained(error, _called(item, number))
                explanation.facts |= {"item": str(number), "model": self._source.model.manifest.domain}
                if not isinstance(explanation, InputError):
                    raise explanation from None
                refused[number] = explanation.kept()
        if refused:
            first = first_of(refused)
            name_item(first, items)
            raise first

    def get(self, job_id: str) -> Job:
        return self._jobs[job_id].job

    def list(self, limit: int = 100) -> Sequence[Job]:  # noqa: ARG002 - those of an earlier process are gone
        return ()

    def acknowledge(self, job_id: str, results: Iterable[tuple[int, bytes]]) -> int:  # noqa: ARG002
        return 0

    def results(
        self, job_id: str, *, on_event: Callable[[Event], None] | None = None
    ) -> Iterator[Translated]:
        """Compute a job, and yield each result when it is there."""
        job, numbers = self._jobs[job_id], count(1)
        job.put(state=JobState.RUNNING)
        given: dict[int, Given] = {}

        def tell(item: int, stage: str, step: int = 0, steps: int = 0) -> None:
            if on_event is not None:
                state = job.job.state
                on_event(Event(next(numbers), state, item, stage, step, steps, "", job.done, len(job.states)))

        def items() -> Iterator[ToTranslate]:
            for number, payload in enumerate(job.files):
                given[number] = self._samples.read(payload.read(), self._size_rule)
                own, other = job.numbers[job.classes[number]]
                asked = replace(job.asked, source_class=own, target_class=other)
                yield item_of(number, given[number].samples, self._source.model, self._target.model, asked)

        def ended(number: int, error: DdibError | None = None) -> None:
            job.states[number] = ItemState.DELIVERED if error is None else ItemState.FAILED
            if error is not None:
                job.errors[number] = Failure(error.reason, error.detail, facts=error.facts)
            tell(number, "done" if error is None else "failed")

        leg = replace(job.asked.leg(tell), control=self._control)
        try:
            agreed = job.job.request.agreed if job.asked.settings.blend == 1.0 else None
            alone = None if agreed is None else agreed.alone
            moved = (
                translate(self._source, self._target, items(), leg)
                if alone is None
                else mapped(items(), alone)
            )
            for outcome in moved:
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
                    ended(number, explained(error, _called(job.files[number], number)))
                    continue
                ended(number)
                yield result
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryExhausted(
                "the GPU's memory does not suffice for so many pictures at once",
                hint="a smaller --set batch, or --set dtype=bfloat16",
            ) from error
        finally:
            job.put()
        if all(state is ItemState.FAILED for state in job.states):  # as at a node
            job.put(state=JobState.FAILED, error=job.errors[0])
        else:
            job.put(state=JobState.FINISHED)

    def _result(self, job: _Job, given: Given, found: TranslatedItem) -> Translated:
        """Return the files and the record of an item, as a source node makes them."""
        item, source, target = job.files[found.item.number], self._source.model, self._target.model
        encoded = found.encoded
        if job.job.model_size:
            given = given.at_model_size()
        calibration, classes = job.job.request.agreed, job.classes[found.item.number]
        guide = target.classifier if job.asked.guidance.classifier_scale is not None else None
        record = Record(
            source_domain=source.manifest.domain,
            target_domain=target.manifest.domain,
            source_model_sha256=source.bundle.digest,
            target_model_sha256=target.bundle.digest,
            input_sha256=item.sha256.hex(),
            latent_sha256="" if encoded is None else encoded.latent.sha256.hex(),
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
            latent=LatentFigures() if encoded is None else LatentFigures(**asdict(encoded.statistics)),
            seconds={} if encoded is None else {"encode": encoded.seconds, "decode": found.decoded.seconds},
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
        if job.job.model_size:
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
        if job.job.request.keep_latents and encoded is not None:
            files[Part.LATENT] = _file(".npy", to_npy(encoded.latent.data))
        return Translated(found.item.number, files, record.judged())


def _called(item: Payload, number: int) -> Path | str:
    return item.origin if isinstance(item.origin, Path) else f"item {number}"


def _file(suffix: str, data: bytes) -> ResultFile:
    return ResultFile(suffix, data, hashlib.sha256(data).digest())


def _described(model: DomainModel) -> dict[str, Any]:
    """Return fields of a domain's message, with the classes of the model or of its classifier."""
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
