"""Serves a page on loopback until Ctrl-C, to the browser that was given the one-time token and to nobody else.

A request passes the steps of `Guard._refusal` before an application sees it.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddib_fed.errors import DdibError, InternalError, NotFoundError, UsageError, step_in_words
from ddib_fed.files import write_file
from ddib_fed.pages import render
from ddib_fed.terminal import explained, say

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
COOKIE: Final = "ddib"
_OWN_SITES: Final = frozenset({"", "same-origin", "none"})
_READS: Final = frozenset({"GET", "HEAD"})
STATIC: Final = Path(__file__).parent / "static"
STOP_S: Final = 2  # seconds that open answers, such as the progress of a job, have to end
REQUEST_S: Final = 10.0  # how long a connection may take until the head of its next request is there
MOST_CONNECTIONS: Final = 64
"""A browser opens six; any process of this machine can connect, also without the link."""


@dataclass(slots=True)
class Session:
    """The secrets of one run of the server."""

    port: int
    folder: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset({f"127.0.0.1:{self.port}", f"localhost:{self.port}"})

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.folder}/start?token={self.token}"

    def take(self, token: str) -> bool:
        """Return whether this is the unspent token, and spend it."""
        if not self.token or not _same(token, self.token):
            return False
        self.token = ""
        return True


def _same(given: str, secret: str) -> bool:
    return given.isascii() and hmac.compare_digest(given, secret)


class Guard:
    """Lets requests pass that are of the session, adds the headers of every answer."""

    def __init__(self, app: ASGIApp, session: Session) -> None:
        self._app = app
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, sending)
            return
        inner = {**scope, "root_path": scope.get("root_path", "") + f"/{self._session.folder}"}
        with suppress(Exception):
            # Raised again after the answer: uvicorn would print the names of files in it.
            await self._app(inner, receive, sending)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is refused; None if it passes."""
        headers, session = Headers(scope=scope), self._session
        host = headers.get("host", "")
        if host not in session.hosts:
            return _refused(421, "Another host", "This server answers only under its own address.")
        path = scope["path"]
        if not path.startswith(f"/{session.folder}/"):
            return _refused(404, "Nothing here", "Open the link that `ddib web` printed.")
        if path == f"/{session.folder}/start" and scope["method"] == "GET":
            return self._start(scope, headers)
        if headers.get("sec-fetch-site", "") not in _OWN_SITES:
            return _refused(403, "Refused", "The request came from another page.")
        if scope["method"] not in _READS and headers.get("origin", "") != f"http://{host}":
            return _refused(403, "Refused", "The request names another origin.")
        if not self._has_cookie(headers):
            return _refused(
                403,
                "No session",
                "Open the link that `ddib web` printed. It works once, in one browser; stop and start the "
                "command for another one.",
            )
        return None

    def _start(self, scope: Scope, headers: Headers) -> Response:
        """Exchange the token for the cookie; the page then goes on by itself, so that the cookie is sent with it."""
        token = QueryParams(scope["query_string"]).get("token", "")
        if not self._has_cookie(headers) and not self._session.take(token):
            return _refused(
                403,
                "The link was used",
                "It works once. Stop `ddib web` with Ctrl-C and start it again for a new one.",
            )
        answer = page("notice.html", title="ddib", text="", url="./", icon=True)
        answer.set_cookie(
            COOKIE, self._session.cookie, path=f"/{self._session.folder}/", httponly=True, samesite="strict"
        )
        return answer

    def _has_cookie(self, headers: Headers) -> bool:
        return _same(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""), self._session.cookie)


def _refused(status: int, title: str, text: str) -> Response:
    return page("notice.html", status, title=title, text=text, url="", icon=False)


def page(template: str, status: int = 200, **values: Any) -> Response:
    return HTMLResponse(render(template, **values), status)


def application(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application that answers errors with `error_values`."""
    return Starlette(
        routes=[*routes, Mount("/static", StaticFiles(directory=STATIC))],
        exception_handlers=dict.fromkeys((DdibError, OSError, Exception), _error_answer),
    )


def _error_answer(request: Request, raised: Exception) -> Response:
    error = explained(raised)
    values = error_values(error)
    status = 404 if isinstance(error, NotFoundError) else 500 if isinstance(error, InternalError) else 400
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(values, status)
    below = request.scope["path"].removeprefix(request.scope.get("root_path", "")).count("/") - 1
    return page("error.html", status, error=values, root="/".join([".."] * below) or ".")


def error_values(error: DdibError) -> dict[str, str]:
    """Return what a page shows of an error: problem, place and next step."""
    return {
        "detail": error.detail or error.sentence,
        "reason": error.reason,
        "hop": error.hop,
        "hint": error.hint,
        "incident": error.incident,
    }


@contextmanager
def hinted_in_words() -> Iterator[None]:
    """Replace the hint of an error by `step_in_words`."""
    try:
        yield
    except DdibError as error:
        error.hint = step_in_words(error)
        raise


def listening(port: int) -> socket.socket:
    try:  # it listens now, so that the link works from the moment that it is printed
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        hint = "another --port, or none"
        raise UsageError(f"port {port} of 127.0.0.1 cannot be used: {why}", hint=hint) from error


class _Connection(H11Protocol):
    """A connection; it ends if no request comes in time, or if a newer one needs its place."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expected = self.loop.call_later(REQUEST_S, self._end_without_request)
        # Those that are closing end by themselves: counted, they would cost the newest its place.
        held = [
            each
            for each in self.connections
            if isinstance(each, _Connection) and not each.transport.is_closing()
        ]
        if len(held) > MOST_CONNECTIONS:
            waiting = (each for each in held if each.waits)
            min(waiting, key=lambda each: each.expected.when()).transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.expected.cancel()  # it holds this object

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.expected.cancel()
        self.expected = self.loop.call_later(REQUEST_S, self._end_without_request)

    @property
    def waits(self) -> bool:
        """Whether it is open, and the head of its next request has yet to come."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def _end_without_request(self) -> None:
        if self.waits:
            self.transport.close()


def serve(app: ASGIApp, *, port: int, folder: Path, on_stop: Callable[[], None]) -> None:
    with listening(port) as opened:
        session = Session(opened.getsockname()[1])

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                on_stop()
                await super().shutdown(sockets)

        config = uvicorn.Config(
            Guard(app, session),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            http=_Connection,
            loop="asyncio",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_S,
        )
        say("open this link; it works once, on this machine only:", f"  {session.link}", "stop with Ctrl-C")
        # Over SSH the machine usually has no graphical browser, and a text browser would occupy the terminal.
        if sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ:
            open_in_browser(session.link, folder)
        with suppress(KeyboardInterrupt):
            if threading.current_thread() is threading.main_thread():
                # A closed terminal and SIGTERM end it as Ctrl-C does, without an error: folders are removed.
                for number in (signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
            Server(config).run([opened])


def open_in_browser(link: str, folder: Path) -> None:
    """Open the link through a private file: others on the machine can read what a program was started with."""
    path = folder / "open.html"
    write_file(
        path, render("notice.html", title="ddib", text="", url=link, icon=False).encode(), private=True
    )
    webbrowser.open(path.as_uri())
