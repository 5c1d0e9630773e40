"""Who may use a page on loopback: the browser that was given the one-time token, and no other page or program.

Steps, each of which a request must pass before an application sees it:
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
_PAGE: Final = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{more}</head>'
    "<body><h1>{title}</h1><p>{text}</p></body></html>"
)


@dataclass(slots=True)
class Session:
    """The secrets of one run of the server."""

    port: int
    command: str
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
        """Whether this is the token, which is spent with it."""
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
        await self._app(inner, receive, sending)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that does not pass; None for one that does."""
        headers, session = Headers(scope=scope), self._session
        host = headers.get("host", "")
        if host not in session.hosts:
            return _refused(421, "Another host", "This server answers only under its own address.")
        path = scope["path"]
        if not path.startswith(f"/{session.folder}/"):
            return _refused(404, "Nothing here", f"Open the link that `{session.command}` printed.")
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
                f"Open the link that `{session.command}` printed. It works once, in one browser; stop and start the "
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
                f"It works once. Stop `{self._session.command}` with Ctrl-C and start it again for a new one.",
            )
        more = '<link rel="icon" href="static/icon.svg"><meta http-equiv="refresh" content="0; url=./">'
        answer = HTMLResponse(_PAGE.format(title="ddib", more=more, text='<a href="./">Continue</a>'))
        answer.set_cookie(
            COOKIE, self._session.cookie, path=f"/{self._session.folder}/", httponly=True, samesite="strict"
        )
        return answer

    def _has_cookie(self, headers: Headers) -> bool:
        return _same(cookie_parser(headers.get("cookie", "")).get(COOKIE, ""), self._session.cookie)


def _refused(status: int, title: str, text: str) -> Response:
    return HTMLResponse(_PAGE.format(title=title, text=text, more=""), status)
