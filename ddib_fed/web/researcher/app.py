"""The researcher's page: its addresses, and what each answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ddib_fed.bridge.records.translation_record import Part
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Domains
from ddib_fed.errors import ItemNotFound, UsageError, error_class
from ddib_fed.formats.intensity import AUTO, Rule
from ddib_fed.formats.nifti import PLANES
from ddib_fed.web.pages import MAX_JSON, answering, application, page
from ddib_fed.web.researcher.archive import zipped
from ddib_fed.web.researcher.desk import Asked, Desk
from ddib_fed.web.researcher.job import Job
from ddib_fed.web.researcher.jobs import Jobs
from ddib_fed.web.researcher.previews import preview
from ddib_fed.web.researcher.tray import Dropped, Tray
from ddib_fed.wire.jobs import QUALITIES

EVERY_S: Final = 0.25
"""How often a change of a job is looked for and told to the page."""
KEEP_ALIVE_S: Final = 15.0
STOP_S: Final = 2.0
"""How long running translations have to write the result that they have, when the server stops."""


class Order(BaseModel):
    """What the page asks for; see `Asked`."""

    model_config = ConfigDict(extra="forbid")

    target: str = Field(min_length=3, max_length=400)
    quality: str = Field(default="standard", max_length=20)
    cycle: bool = True
    target_class: str = Field(default="", max_length=200)
    slices: str = Field(default=AUTO, max_length=20)
    intensity: str = Field(default=AUTO, max_length=100)

    def asked(self) -> Asked:
        """What is asked of the desk."""
        if self.quality not in QUALITIES:
            raise UsageError(f"there is no quality {self.quality!r}", hint=f"one of {', '.join(QUALITIES)}")
        if self.slices not in {AUTO, *PLANES}:
            raise UsageError(f"there is no plane {self.slices!r}", hint=f"one of {', '.join(PLANES)}")
        if self.intensity != AUTO:
            Rule.parse(self.intensity)
        return Asked(**self.model_dump())


@dataclass(slots=True)
class Researcher:
    """What the page works with."""

    desk: Desk
    profile: Profile
    folder: Path
    out: Path
    closing: bool = False
    tray: Tray = field(init=False)
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        self.tray = Tray(self.folder)
        self.jobs = Jobs(self.desk, self.tray, self.out)

    def close(self) -> None:
        """The server stops: open answers end, and so do calls of the node."""
        self.closing = True
        self.desk.close()
        self.jobs.wait(STOP_S)

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
            jobs=self.jobs.list(),
            root=".",
        )

    def domains(self, request: Request) -> Response:
        del request
        return JSONResponse(_domains(self.desk.domains()))

    def files(self, request: Request) -> Response:
        del request
        return JSONResponse([_file(each) for each in self.tray.list()])

    async def add_file(self, request: Request) -> Response:
        added = await self.tray.add(request.query_params.get("name", ""), request.stream())
        return JSONResponse(_file(added))

    def clear_files(self, request: Request) -> Response:
        """Remove all files."""
        del request
        self.tray.clear()
        return Response(status_code=204)

    def remove_file(self, request: Request) -> Response:
        self.tray.remove(request.path_params["file"])
        return Response(status_code=204)

    async def start_job(self, request: Request) -> Response:
        """Translate what is in the tray."""
        order = await _order(request)
        job = self.jobs.start(order.asked())
        return JSONResponse({"job": job.number})

    def job_page(self, request: Request) -> Response:
        """Progress and results of a job."""
        job = self._job(request)
        return page(
            "job.html", job=job, out=str(job.out.resolve()), profile=str(self.profile.path), root=".."
        )

    async def events(self, request: Request) -> Response:
        return StreamingResponse(self._events(self._job(request)), media_type="text/event-stream")

    async def _events(self, job: Job) -> AsyncIterator[str]:
        told = 0
        version, quiet_s = -1, 0.0
        while not self.closing:
            if job.version == version and not job.ended:
                quiet_s += EVERY_S
                if quiet_s >= KEEP_ALIVE_S:
                    quiet_s = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(EVERY_S)
                continue
            version, ended, quiet_s = job.version, job.ended, 0.0
            yield _event("progress", job.progress())  # first: a result is of one of the volumes in it
            while told < len(job.results):
                yield _event("result", job.result(told))
                told += 1
            if ended:
                yield _event("end", job.progress())
                return

    def cancel(self, request: Request) -> Response:
        self.jobs.cancel(self._job(request))
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

    def _job(self, request: Request) -> Job:
        return self.jobs.get(request.path_params["job"])


def _part(request: Request) -> Part:
    name = request.path_params["part"]
    part = next((each for each in Part if each.value == name), None)
    if part is None or part is Part.LATENT:
        raise ItemNotFound(f"there is no part {name[:20]!r}")
    return part


def _archive(paths: Sequence[Path], root: Path, name: str) -> Response:
    return StreamingResponse(
        zipped(paths, root), media_type="application/zip", headers=_attached(f"{name}.zip")
    )


async def _order(request: Request) -> Order:
    """The order in the body of a request."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON:
            raise UsageError("the request is too large", hint="load the page again")
    try:
        order = Order.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UsageError(
            f"the request cannot be used: {where}: {first['msg']}", hint="load the page again"
        ) from error
    return order


def _file(each: Dropped) -> dict[str, Any]:
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


def _attached(name: str) -> dict[str, str]:
    return {"content-disposition": f"attachment; filename*=utf-8''{quote(name)}"}
