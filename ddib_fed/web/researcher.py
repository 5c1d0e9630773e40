"""The researcher's page: its addresses, what each answers, and the translations of this run, each in a thread.

How files are submitted and results written is the backend's (`ddib_fed.cli.web`), which is `ddib translate`.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Domains
from ddib_fed.engine.record import Part
from ddib_fed.errors import DdibError, ItemNotFound, JobNotFound, UsageError, error_class
from ddib_fed.protocol.messages import Event
from ddib_fed.terminal import explained
from ddib_fed.web.backend import (
    DroppedSource,
    FinishedStudy,
    ShownResult,
    ShownStudy,
    TranslationRequest,
    doubts_in_words,
    event_in_words,
    figures_in_words,
    severity,
)
from ddib_fed.web.guard import answering, application, error_values, page
from ddib_fed.web.uploads import Upload, Uploads, arranged, numbered, plain_word, preview, renamed

MAX_JSON: Final = 1 << 20
"""Bytes of a request other than a file."""
EVERY_S: Final = 0.25
"""How often a change of a job is looked for and told to the page."""
KEEP_ALIVE_S: Final = 15.0
STOP_S: Final = 2.0
"""How long running translations have to write the result that they have, when the server stops."""
ZIP_CHUNK: Final = 1 << 18


@dataclass(slots=True)
class PageJob:
    """One translation, in as many jobs of the node as its limits ask for."""

    number: int
    count: int
    request: TranslationRequest
    out: Path
    labels: dict[str, str] = field(default_factory=dict)
    items: int = 0
    files: int = 0
    studies: tuple[ShownStudy, ...] = ()
    done_together: dict[int, FinishedStudy] = field(default_factory=dict)
    jobs: dict[str, Path] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    now: str = "reading the files"
    results: list[ShownResult] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    error: dict[str, str] | None = None
    stopped: bool = False
    ended: bool = False
    _before: int = 0
    _moved: int = 0
    _written: int = 0

    def opened(self, studies: Sequence[ShownStudy], items: int, files: int) -> None:
        self.studies, self.items, self.files = tuple(studies), items, files
        self.now = "sending the pictures to your institution's node"

    def submitted(self, job_id: str, out: Path) -> None:
        self.jobs[job_id] = out
        self.running.append(job_id)
        if len(self.running) == 1:
            self.now = "waiting for its turn"

    def event(self, event: Event, label: str) -> None:
        self._moved = event.items_done
        if event.stage:
            self.now = event_in_words(event, label)

    def waiting(self, text: str) -> None:
        self.now = text

    def written(self, result: ShownResult | None) -> None:
        self._written += 1
        if result is not None:
            self.results.append(result)

    def job_ended(self, job_id: str, items: int) -> None:
        if job_id in self.running:
            self.running.remove(job_id)
        self._before, self._moved = self._before + items, 0

    def put_together(self, study: int, done: FinishedStudy, whole: ShownResult | None) -> None:
        if whole is not None:
            self.results.append(whole)
        self.done_together[study] = done

    def left_out(self, label: str, why: str) -> None:
        self.missing.append((label, self._renamed(why).removeprefix(f"{label}: ")))

    def stop(self) -> tuple[str, ...]:
        """Have nothing more submitted; the jobs that are at the node now, for being cancelled there."""
        self.stopped = True
        self.now = "stopping"
        return tuple(self.running)

    def end(self, error: DdibError | None) -> None:
        """It has ended, well or with an error."""
        if error is not None:
            self.error = error_values(renamed(error, self.labels))
        self.now, self.ended = "", True

    def file(self, item: int, part: Part) -> Path:
        """A picture of a result, as it is shown."""
        found = self.results[item] if 0 <= item < len(self.results) else None
        if found is None or part not in found.files:
            raise ItemNotFound(f"item {item} has no {part} yet")
        return found.files[part]

    def download(self, item: int, part: Part) -> Path:
        """A file of an item as it lies in the folder of the results, or as it was given."""
        path = self.file(item, part)
        if self.results[item].study is not None:
            raise ItemNotFound(f"item {item} is a part of a volume or map", hint="download the whole")
        return path

    def together(self, study: int) -> FinishedStudy:
        """The output of a study."""
        found = self.done_together.get(study)
        if found is None:
            raise ItemNotFound(f"volume or map {study} is not put together yet")
        return found

    def outputs(self) -> list[Path]:
        """Every file in the folder of the results so far."""
        own = [path for result in list(self.results) for path in result.outputs]
        whole = [
            path for _, done in sorted(self.done_together.items()) for path in (*done.outputs, done.record)
        ]
        return [*own, *whole]

    def progress(self) -> dict[str, object]:
        """What the page shows of its progress: one count over all jobs."""
        return {
            "done": self._before + self._moved,
            "items": self.items,
            "files": self.files or self.count,
            "here": len(self.done_together) + sum(result.study is None for result in self.results),
            "written": self._written,
            "now": self.now,
            "ended": self.ended,
            "stopped": self.stopped,
            "error": self.error,
            "job_id": next(iter(self.jobs), ""),
            "missing": [f"{label}: {why}" for label, why in self.missing],
            "studies": [self._study(number) for number in range(len(self.studies))],
        }

    def _study(self, number: int) -> dict[str, object]:
        """What the page shows of a series, volume or map."""
        study, done = self.studies[number], self.done_together.get(number)
        return {
            "label": study.label,
            "kind": study.kind,
            "planes": study.planes,
            "items": study.items,
            "plane_word": study.plane_word,
            "warnings": [self._renamed(each) for each in study.warnings],
            "said": list(done.said) if done is not None else [],
            "files": len(done.outputs) if done is not None else 0,
        }

    def _renamed(self, text: str) -> str:
        return renamed(DdibError(text), self.labels).detail

    def result(self, item: int) -> dict[str, object]:
        """What the page shows of a result."""
        found = self.results[item]
        record = found.provenance
        return {
            "item": item,
            "label": found.label,
            "study": found.study,
            "plane": found.plane,
            "doubtful": bool(record.doubtful),
            "doubts": doubts_in_words(record),
            "severity": severity(record),
            "figures": figures_in_words(record),
            "parts": sorted(part.value for part in found.files),
        }


class Backend(Protocol):
    """What the page needs of the client; every error has a hint."""

    def domains(self) -> Domains: ...

    def translate(
        self,
        sources: Sequence[DroppedSource],
        request: TranslationRequest,
        out: Path,
        views: Path,
        job: PageJob,
    ) -> None:
        """Translate files as `ddib translate` does, in as many jobs as the node's limits ask for."""

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Stop jobs; see `Client.cancel`."""

    def close(self) -> None:
        """End what runs; jobs go on at the node."""


@dataclass(slots=True)
class Researcher:
    """What the page works with."""

    backend: Backend
    profile: Profile
    folder: Path
    out: Path
    closing: bool = False
    uploads: Uploads = field(init=False)
    jobs: dict[int, PageJob] = field(default_factory=dict)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.folder)

    def close(self) -> None:
        """The server stops: open answers end, and so do calls of the node."""
        self.closing = True
        self.backend.close()
        deadline = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def translate(self, request: TranslationRequest) -> PageJob:
        """Translate all files that were dropped; those of a job that is refused before it began are kept."""
        files = self.uploads.take()
        if not files:
            raise UsageError("there are no pictures to translate", hint="drop some first")
        number = len(self.jobs) + 1
        job = self.jobs[number] = PageJob(number, len(files), request, self._free_folder(request.target))
        thread = threading.Thread(target=self._run, args=(job, files), name=f"job-{number}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return job

    def _run(self, job: PageJob, files: Sequence[Upload]) -> None:
        error: DdibError | None = None
        folder = self.folder / f"job-{job.number}"
        job.labels = {str(each.path): each.label for each in files}
        try:
            sources = arranged(files, folder)
            job.labels |= {str(each.path): each.label for each in sources}
            self.backend.translate(sources, job.request, job.out, folder / "views", job)
        except Exception as raised:  # noqa: BLE001 - this is the edge of the thread: anything becomes a message
            error = explained(raised)
        if not job.jobs:
            self.uploads.put_back(files)
            shutil.rmtree(folder, ignore_errors=True)
        job.end(error)

    def _free_folder(self, target: str) -> Path:
        domain = plain_word(target.rpartition("/")[2], "translated")
        taken = {each.out for each in self.jobs.values()}
        paths = (self.out / name for name in numbered(f"{time.strftime('%Y-%m-%d-%H%M%S')}-{domain}"))
        return next(path for path in paths if path not in taken and not path.exists())

    def app(self) -> Starlette:
        """The application."""
        return application(
            [
                Route("/", answering(self.start_page)),
                Route("/domains", answering(self.domains)),
                Route("/files", answering(self.files)),
                Route("/files", answering(self.add_file), methods=["POST"]),
                Route("/files", answering(self.clear_files), methods=["DELETE"]),
                Route("/files/{file:int}", answering(self.remove_file), methods=["DELETE"]),
                Route("/jobs", answering(self.start_job), methods=["POST"]),
                Route("/jobs/{job:int}", answering(self.job_page)),
                Route("/jobs/{job:int}/events", answering(self.events)),
                Route("/jobs/{job:int}/cancel", answering(self.cancel), methods=["POST"]),
                Route("/jobs/{job:int}/all.zip", answering(self.download_all)),
                Route("/jobs/{job:int}/studies/{study:int}/file", answering(self.download_study)),
                Route("/jobs/{job:int}/{item:int}/{part}/view", answering(self.view)),
                Route("/jobs/{job:int}/{item:int}/{part}/file", answering(self.download)),
            ]
        )

    def start_page(self, request: Request) -> Response:
        """Files, a domain and a quality."""
        del request
        return page(
            "researcher.html",
            profile=self.profile,
            out=str(self.out.resolve()),
            jobs=[*reversed(self.jobs.values())],
            root=".",
        )

    def domains(self, request: Request) -> Response:
        del request
        return JSONResponse(_domains(self.backend.domains()))

    def files(self, request: Request) -> Response:
        del request
        return JSONResponse([_file(each) for each in self.uploads.list()])

    async def add_file(self, request: Request) -> Response:
        added = await self.uploads.add(request.query_params.get("name", ""), request.stream())
        return JSONResponse(_file(added))

    def clear_files(self, request: Request) -> Response:
        """Remove all files."""
        del request
        self.uploads.clear()
        return Response(status_code=204)

    def remove_file(self, request: Request) -> Response:
        self.uploads.remove(request.path_params["file"])
        return Response(status_code=204)

    async def start_job(self, request: Request) -> Response:
        """Translate what was dropped."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_JSON:
                raise UsageError("the request is too large", hint="load the page again")
        job = self.translate(TranslationRequest.parse(body))
        return JSONResponse({"job": job.number})

    def job_page(self, request: Request) -> Response:
        """Progress and results of a job."""
        job = self._job(request)
        return page(
            "job.html", job=job, out=str(job.out.resolve()), profile=str(self.profile.path), root=".."
        )

    async def events(self, request: Request) -> Response:
        return StreamingResponse(self._events(self._job(request)), media_type="text/event-stream")

    async def _events(self, job: PageJob) -> AsyncIterator[str]:
        told, quiet_s = 0, 0.0
        last: dict[str, object] = {}
        while not self.closing:
            state = job.progress()
            if state == last and told == len(job.results):
                quiet_s += EVERY_S
                if quiet_s >= KEEP_ALIVE_S:
                    quiet_s = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(EVERY_S)
                continue
            last, quiet_s = state, 0.0
            yield _event("progress", state)  # first: a result is of one of the volumes in it
            while told < len(job.results):
                yield _event("result", job.result(told))
                told += 1
            if state["ended"]:
                yield _event("end", state)
                return

    def cancel(self, request: Request) -> Response:
        self.backend.cancel(self._job(request).stop())
        return Response(status_code=204)

    def view(self, request: Request) -> Response:
        content, media = preview(self._job(request).file(request.path_params["item"], _part(request)))
        return Response(content, media_type=media)

    def download(self, request: Request) -> Response:
        path = self._job(request).download(request.path_params["item"], _part(request))
        return FileResponse(path, filename=path.name)

    def download_study(self, request: Request) -> Response:
        """A volume or map, or a series as one archive."""
        job = self._job(request)
        done = job.together(request.path_params["study"])
        if len(done.outputs) == 1:
            return FileResponse(done.outputs[0], filename=done.outputs[0].name)
        series = done.outputs[0].parent
        return _archive(done.outputs, series, "-".join(series.relative_to(job.out).parts))

    def download_all(self, request: Request) -> Response:
        """Every file of the results so far, with their records, as one archive."""
        job = self._job(request)
        outputs = job.outputs()
        if not outputs:
            raise ItemNotFound("there are no results yet")
        return _archive(outputs, job.out, job.out.name)

    def _job(self, request: Request) -> PageJob:
        number = request.path_params["job"]
        if number not in self.jobs:
            raise JobNotFound(
                f"there is no translation {number} in this run", hint="go back to the start page"
            )
        return self.jobs[number]


def _part(request: Request) -> Part:
    name = request.path_params["part"]
    part = next((each for each in Part if each.value == name), None)
    if part is None or part is Part.LATENT:
        raise ItemNotFound(f"there is no part {name[:20]!r}")
    return part


def _archive(paths: Sequence[Path], root: Path, name: str) -> Response:
    attached = {"content-disposition": f"attachment; filename*=utf-8''{quote(f'{name}.zip')}"}
    return StreamingResponse(zipped(paths, root), media_type="application/zip", headers=attached)


def _file(each: Upload) -> dict[str, Any]:
    return {
        "file": each.number,
        "label": each.label,
        "size": each.size_bytes,
        "kind": each.kind,
        "warnings": list(each.warnings),
    }


def _domains(found: Domains) -> dict[str, Any]:
    """The domains, with words for the page."""
    return {
        "own": {"domain": found.domain, "institution": found.institution, "kind": found.sample_kind},
        "targets": [
            {
                "target": each.target if each.domain else "",
                "domain": each.domain,
                "institution": each.institution,
                "ready": each.status == "ready",
                "why": "" if each.status == "ready" else error_class(each.status).sentence,
                "classes": list(each.class_names) or [str(number) for number in range(each.classes)],
                "calibration": each.calibration.kind if each.calibration is not None else "",
            }
            for each in found.targets
        ],
    }


def _event(name: str, value: object) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"


class _Sink(io.RawIOBase):
    """What was written since it was last taken; cannot go back."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        with memoryview(data) as view:  # type: ignore[arg-type]
            self._held += view
            return view.nbytes

    def take(self) -> bytes:
        taken = bytes(self._held)
        self._held.clear()
        return taken


def zipped(paths: Sequence[Path], root: Path) -> Iterator[bytes]:
    """The bytes of an archive of these files, not compressed again; files that are gone are left out."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w") as archive:
        for path in paths:
            if not path.is_file():
                continue
            about = zipfile.ZipInfo.from_file(path, path.relative_to(root.parent))
            with path.open("rb") as file, archive.open(about, "w") as entry:
                while chunk := file.read(ZIP_CHUNK):
                    entry.write(chunk)
                    yield sink.take()
    yield sink.take()
