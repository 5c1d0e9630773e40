"""The researcher's page: its addresses, what each answers, and the translations of this run, each in a thread."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ddib_fed import Client, Domains, Profile
from ddib_fed.errors import DdibError, JobNotFound, UsageError
from ddib_fed.terminal import explained
from ddib_fed.web.guard import application, hinted_in_words, page
from ddib_fed.web.job import OnWait, PageJob, TranslationRequest
from ddib_fed.web.uploads import Upload, Uploads, arranged

MAX_JSON: Final = 1 << 20  # bytes of a request other than a file
EVERY_S: Final = 0.25  # how often a change of a job is looked for and told to the page
ARCHIVE_CHUNK: Final = 1 << 20
STOP_S: Final = 2.0
"""How long running translations have to write the result that they have, when the server stops."""


LIST_PATIENCE_S: Final = 5.0  # how long a page waits for a node that is away, before it says so


class Researcher:
    """What the page works with: uploads, translations, and clients of the node, which are opened in any thread."""

    def __init__(self, profile: Profile, folder: Path, out: Path) -> None:
        self.profile, self.folder, self.out = profile, folder, out
        self.closing = False
        self.uploads = Uploads(folder)
        self.jobs: dict[int, PageJob] = {}
        self._threads: list[threading.Thread] = []
        self._clients: set[Client] = set()
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, on_wait: OnWait | None = None, **how: Any) -> Iterator[Client]:
        """Open a client, whose calls raise Cancelled once the server stops; arguments as of `Client`."""
        with Client(self.profile, on_wait=on_wait, **how) as client:
            with self._lock:
                self._clients.add(client)
                closing = self.closing
            if closing:
                client.abort()
            try:
                yield client
            finally:
                with self._lock:
                    self._clients.discard(client)

    def close(self) -> None:
        """End open answers and calls of the node when the server stops; jobs continue at the node."""
        with self._lock:
            self.closing = True
            clients = tuple(self._clients)
        for client in clients:
            client.abort()
        deadline = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def translate(self, request: TranslationRequest) -> PageJob:
        """Translate all files that were dropped; those of a job that is refused before it began are kept."""
        files = self.uploads.take()
        if not files:
            raise UsageError("there are no pictures to translate", hint="drop some first")
        number, out = len(self.jobs) + 1, self._free_folder(request.target)
        job = self.jobs[number] = PageJob(number, len(files), request, out, self.opened)
        thread = threading.Thread(target=self._run, args=(job, files), name=f"job-{number}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return job

    def _run(self, job: PageJob, files: Sequence[Upload]) -> None:
        error: DdibError | None = None
        folder = self.folder / f"job-{job.number}"
        try:
            job.translate(arranged(files, folder), folder / "views")
        except Exception as raised:  # noqa: BLE001 - this is the edge of the thread: anything becomes a message
            error = explained(raised)
        if not job.jobs:
            self.uploads.put_back(files)
            shutil.rmtree(folder, ignore_errors=True)
        job.end(error)

    def _free_folder(self, target: str) -> Path:
        domain = re.sub(r"[^A-Za-z0-9._-]+", "_", target.rpartition("/")[2]).strip("._") or "translated"
        name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{domain}"
        taken = {each.out for each in self.jobs.values()}
        names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
        return next(path for each in names if not (path := self.out / each).exists() and path not in taken)

    def app(self) -> Starlette:
        return application(
            [
                Route("/", self.start_page),
                Route("/domains", self.domains),
                Route("/files", self.files),
                Route("/files", self.add_file, methods=["POST"]),
                Route("/files", self.clear_files, methods=["DELETE"]),
                Route("/files/{file:int}", self.remove_file, methods=["DELETE"]),
                Route("/jobs", self.start_job, methods=["POST"]),
                Route("/jobs/{job:int}", self.job_page),
                Route("/jobs/{job:int}/events", self.events),
                Route("/jobs/{job:int}/cancel", self.cancel, methods=["POST"]),
                Route("/jobs/{job:int}/all.zip", self.download_all),
                Route("/jobs/{job:int}/studies/{study:int}/file", self.download_study),
                Route("/jobs/{job:int}/{item:int}/{part}/view", self.view),
                Route("/jobs/{job:int}/{item:int}/{part}/file", self.download),
            ]
        )

    def start_page(self, _request: Request) -> Response:
        return page(
            "researcher.html",
            profile=self.profile,
            out=str(self.out.resolve()),
            jobs=[*reversed(self.jobs.values())],
            root=".",
        )

    def domains(self, _request: Request) -> Response:
        with hinted_in_words(), self.opened(patience_s=LIST_PATIENCE_S) as client:
            return JSONResponse(_domains(client.domains()))

    def files(self, _request: Request) -> Response:
        return JSONResponse([_file(each) for each in self.uploads.list()])

    async def add_file(self, request: Request) -> Response:
        added = await self.uploads.add(request.query_params.get("name", ""), request.stream())
        return JSONResponse(_file(added))

    def clear_files(self, _request: Request) -> Response:
        self.uploads.clear()
        return Response(status_code=204)

    def remove_file(self, request: Request) -> Response:
        self.uploads.remove(request.path_params["file"])
        return Response(status_code=204)

    async def start_job(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_JSON:
                raise UsageError("the request is too large", hint="load the page again")
        job = self.translate(TranslationRequest.parse(body))
        return JSONResponse({"job": job.number})

    def job_page(self, request: Request) -> Response:
        job = self._job(request)
        return page(
            "job.html", job=job, out=str(job.out.resolve()), profile=str(self.profile.path), root=".."
        )

    async def events(self, request: Request) -> Response:
        return StreamingResponse(self._events(self._job(request)), media_type="text/event-stream")

    async def _events(self, job: PageJob) -> AsyncIterator[str]:
        told = 0
        last: dict[str, object] = {}
        while not self.closing:
            state = job.progress()
            if state == last and told == len(job.results):
                await asyncio.sleep(EVERY_S)
                continue
            last = state
            yield _event("progress", state)  # first: a result is of one of the volumes in it
            while told < len(job.results):
                yield _event("result", job.result(told))
                told += 1
            if state["ended"]:
                yield _event("end", state)
                return

    def cancel(self, request: Request) -> Response:
        running, failed = self._job(request).stop(), list[DdibError]()
        if running:
            with hinted_in_words(), self.opened(patience_s=LIST_PATIENCE_S) as client:
                for job_id in running:
                    try:
                        client.cancel(job_id)
                    except DdibError as error:
                        failed.append(error)
                if failed:
                    raise failed[0]
        return Response(status_code=204)

    def view(self, request: Request) -> Response:
        content, media = self._job(request).view(request.path_params["item"], request.path_params["part"])
        return Response(content, media_type=media)

    def download(self, request: Request) -> Response:
        path = self._job(request).file(request.path_params["item"], request.path_params["part"])
        return FileResponse(path, filename=path.name)

    def download_study(self, request: Request) -> Response:
        job = self._job(request)
        first, *more = outputs = job.outputs(request.path_params["study"])
        if not more:
            return FileResponse(first, filename=first.name)
        series = first.parent
        return _archive(outputs, series, "-".join(series.relative_to(job.out).parts), job.out)

    def download_all(self, request: Request) -> Response:
        job = self._job(request)
        return _archive(job.outputs(), job.out, job.out.name, job.out)

    def _job(self, request: Request) -> PageJob:
        number = request.path_params["job"]
        if number not in self.jobs:
            raise JobNotFound(f"there is no translation {number} in this run", hint="go to the start page")
        return self.jobs[number]


def _archive(paths: Sequence[Path], root: Path, name: str, folder: Path) -> Response:
    """Answer with an uncompressed archive of these files, in an unnamed file that is removed once sent."""
    made = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed when it is sent

    def parts() -> Iterator[bytes]:
        with made:
            while part := made.read(ARCHIVE_CHUNK):
                yield part

    try:
        with zipfile.ZipFile(made, "w") as archive:
            for path in paths:
                if path.is_file():
                    archive.write(path, path.relative_to(root.parent))
        made.seek(0)
    except BaseException:
        made.close()
        raise
    called = re.sub(r"[^\w.()-]", "_", name, flags=re.ASCII)
    headers = {"content-disposition": f'attachment; filename="{called}.zip"'}
    return StreamingResponse(parts(), media_type="application/zip", headers=headers)


def _file(each: Upload) -> dict[str, Any]:
    return {
        "file": each.number,
        "label": each.label,
        "size": each.size_bytes,
        "plain": each.is_plain,
        "warnings": list(each.warnings),
    }


def _domains(found: Domains) -> dict[str, Any]:
    return {
        "own": {"domain": found.domain, "institution": found.institution},
        "targets": [
            {
                "target": each.target if each.domain else "",
                "domain": each.domain,
                "institution": each.institution,
                "ready": each.is_ready,
                "why": each.why,
                "classes": list(each.class_names) or [str(number) for number in range(each.classes)],
                "calibration": each.calibration.kind if each.calibration else "",
            }
            for each in found.domains
        ],
    }


def _event(name: str, value: object) -> str:
    return f"event: {name}\ndata: {json.dumps(value)}\n\n"
