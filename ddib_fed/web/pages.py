"""Templates, static files and answers that both pages share; every text is escaped by the templates."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from ddib_fed.errors import DdibError, InternalError, NotFoundError
from ddib_fed.terminal import escape
from ddib_fed.unexpected import explained as unexpected
from ddib_fed.version import __version__

STATIC: Final = Path(__file__).parent / "static"
MAX_JSON: Final = 1 << 20
"""Bytes of a request other than a file."""

Handler = Callable[[Request], Awaitable[Response]]


@cache
def _templates() -> Environment:
    """The templates of this package; characters that would hide or turn text are shown as their codes."""
    made = Environment(
        loader=PackageLoader("ddib_fed.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: escape(value) if type(value) is str else value,
    )
    made.globals["version"] = __version__
    return made


def page(template: str, **values: Any) -> Response:
    return HTMLResponse(_templates().get_template(template).render(values))


def application(routes: Sequence[BaseRoute]) -> Starlette:
    return Starlette(routes=[*routes, Mount("/static", StaticFiles(directory=STATIC))])


def answering(handler: Callable[[Request], Response | Awaitable[Response]]) -> Handler:
    """A handler whose errors are answers, as `explained`; it runs in a thread where it is no coroutine."""

    @wraps(handler)
    async def guarded(request: Request) -> Response:
        try:
            if inspect.iscoroutinefunction(handler):
                found: Response = await handler(request)
                return found
            return await asyncio.to_thread(handler, request)  # type: ignore[arg-type]
        except (HTTPException, ClientDisconnect):
            raise
        except Exception as raised:  # noqa: BLE001 - this is the edge: anything becomes a message
            error = unexpected(raised)
            return _error_answer(request, error)

    return guarded


def _error_answer(request: Request, error: DdibError) -> Response:
    """A page for somebody who opened an address, JSON for a script of a page."""
    found, status = explained(error), _status(error)
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(found, status)
    above = "/".join(
        [".."] * (request.scope["path"].removeprefix(request.scope.get("root_path", "")).count("/") - 1)
    )
    answer = page("error.html", error=found, root=above or ".")
    answer.status_code = status
    return answer


def _status(error: DdibError) -> int:
    if isinstance(error, NotFoundError):
        return 404
    return 500 if isinstance(error, InternalError) else 400


def explained(error: DdibError) -> dict[str, str]:
    """What a page shows of an error: what failed, where, and what to try."""
    return {
        "detail": error.detail or error.sentence,
        "reason": error.reason,
        "hop": error.hop,
        "hint": error.hint,
        "incident": error.incident,
    }
