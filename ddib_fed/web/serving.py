"""Serves an application on loopback until Ctrl-C, and shows how to open it; nothing else can reach it."""

from __future__ import annotations

import asyncio
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import ClassVar, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddib_fed.errors import UsageError
from ddib_fed.files import write_file
from ddib_fed.terminal import say
from ddib_fed.web.guard import Guard, Session

STOP_S: Final = 2
"""Seconds that open answers, such as the progress of a job, have to end."""
REQUEST_S: Final = 10.0
"""Seconds that a connection has for a request."""
MOST_WAITING: Final = 64
"""Connections without a request; a browser opens six."""


class _Connection(H11Protocol):
    """Ends when it has no request for too long, or is the oldest of too many without one; uvicorn waits for ever."""

    waiting: ClassVar[dict[_Connection, asyncio.TimerHandle]] = {}  # the oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering:
            self._forget()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answering:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self in self.waiting or self.transport.is_closing():
            return
        if len(self.waiting) >= MOST_WAITING:
            next(iter(self.waiting)).end()
        self.waiting[self] = self.loop.call_later(REQUEST_S, self.end)

    def _forget(self) -> None:
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def end(self) -> None:
        self._forget()
        self.transport.close()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ddib-web-") as name:
        yield Path(name)


def listening(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(("127.0.0.1", port))
        opened.listen()  # now, so that the link works from the moment that it is printed
    except OSError as error:
        opened.close()
        raise UsageError(
            f"port {port} of 127.0.0.1 cannot be used: {error.strerror}", hint="another --port, or none"
        ) from error
    return opened


def serve(
    app: ASGIApp,
    *,
    port: int,
    command: str,
    folder: Path,
    browser: bool,
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    with listening(port) as opened:
        session = Session(opened.getsockname()[1], command)

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
        say("open this link; it works once, on this machine only:")
        say(f"  {session.link}")
        say("stop with Ctrl-C")
        if browser:
            open_in_browser(session.link, folder)
        with _ending_as_ctrl_c():
            Server(config).run([opened])


@contextmanager
def _ending_as_ctrl_c() -> Iterator[None]:
    """A closed terminal and SIGTERM end what is inside as Ctrl-C does, which is no error, so that folders are
    removed.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.raise_signal(signal.SIGINT)

    with suppress(KeyboardInterrupt):
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def open_in_browser(link: str, folder: Path) -> None:
    """Open the link through a private file: others on the machine can read what a program was started with."""
    page = folder / "open.html"
    text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={link}">'
    write_file(page, text.encode(), private=True)
    webbrowser.open(page.as_uri())
