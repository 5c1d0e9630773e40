"""The server: on loopback alone, over a private folder that does not outlive it."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette

from ddib_fed.errors import UsageError
from ddib_fed.web import serving


def test_the_folder_is_private_and_goes() -> None:
    """Nobody else may read it, and nothing of it stays."""
    with serving.temporary_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "x").mkdir()
        (folder / "x" / "scan.png").write_bytes(b"x")
    assert not folder.exists()


def test_it_listens_on_loopback_alone() -> None:
    """A port that is taken is an error that names it."""
    with serving.listening(0) as opened:
        host, port = opened.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UsageError, match=f"port {port}"):
            serving.listening(port)


def test_the_link_is_given_to_the_browser_in_a_private_file(tmp_path: Path, monkeypatch) -> None:
    """Others on the machine can read what a program was started with."""
    opened: list[str] = []
    monkeypatch.setattr(serving.webbrowser, "open", opened.append)
    serving.open_in_browser("http://127.0.0.1:1/f/start?token=secret", tmp_path)
    (url,) = opened
    assert "secret" not in url
    page = tmp_path / "open.html"
    assert url == page.as_uri()
    assert "token=secret" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600


class Serving:
    """A server in a thread; `link` opens it, and `stopped` is set when it told the application."""

    def __init__(self, folder: Path, capsys, monkeypatch) -> None:
        running: list[uvicorn.Server] = []
        run, self.stopped = uvicorn.Server.run, threading.Event()

        def remembered(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
            running.append(server)
            run(server, sockets)

        monkeypatch.setattr(uvicorn.Server, "run", remembered)
        asked = {"port": 0, "command": "ddib web", "folder": folder, "browser": False}
        self._thread = threading.Thread(
            target=serving.serve, args=(Starlette(),), kwargs={**asked, "on_stop": self.stopped.set}
        )
        self._thread.start()
        for _ in range(1200):
            if running and running[0].started:
                break
            self._thread.join(0.05)
        self._server = running[0]
        (self.link,) = [line.strip() for line in capsys.readouterr().out.split("\n") if "token=" in line]
        self.address = ("127.0.0.1", int(self.link.split(":")[2].split("/")[0]))

    def end(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)


@pytest.fixture
def served(tmp_path: Path, capsys, monkeypatch) -> Iterator[Serving]:
    made = Serving(tmp_path, capsys, monkeypatch)
    yield made
    made.end()


@pytest.mark.slow
def test_it_serves_until_it_is_stopped(served: Serving) -> None:
    """The printed link works, and stopping tells the application before it waits for open answers."""
    with urllib.request.urlopen(served.link, timeout=60) as answer:
        assert b"Continue" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(served.link, timeout=60)
    served.end()
    assert served.stopped.is_set()


@pytest.mark.slow
def test_connections_without_a_request_keep_nobody_out(served: Serving) -> None:
    """Of many the oldest ends at once, and each after some seconds: silent, half a request, or a second one begun."""
    with ExitStack() as ends:
        crowd = [
            ends.enter_context(socket.create_connection(served.address, timeout=60))
            for _ in range(serving.MOST_WAITING + 20)
        ]
        assert [end.recv(1) for end in crowd[:20]] == [b""] * 20
        crowd[-1].sendall(b"GET / HTTP/1.1\r\nHost:")
        crowd[-2].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        with urllib.request.urlopen(served.link, timeout=60) as answer:
            assert b"Continue" in answer.read()
        for end in crowd[-3:]:
            while end.recv(10_000):
                pass
