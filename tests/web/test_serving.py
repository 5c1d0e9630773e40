"""The server: on loopback alone, over a private folder that does not outlive it."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
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


@pytest.mark.slow
def test_it_serves_until_it_is_stopped(tmp_path: Path, capsys, monkeypatch) -> None:
    """The printed link works, and stopping tells the application before it waits for open answers."""
    import uvicorn

    running: list[uvicorn.Server] = []
    run, stopped = uvicorn.Server.run, threading.Event()

    def remembered(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        running.append(self)
        run(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", remembered)
    thread = threading.Thread(
        target=serving.serve,
        args=(Starlette(),),
        kwargs={
            "port": 0,
            "command": "ddib web",
            "folder": tmp_path,
            "browser": False,
            "on_stop": stopped.set,
        },
    )
    thread.start()
    try:
        for _ in range(1200):
            if running and running[0].started:
                break
            thread.join(0.05)
        (link,) = [line.strip() for line in capsys.readouterr().out.split("\n") if "token=" in line]
        with urllib.request.urlopen(link, timeout=60) as answer:
            assert b"Continue" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(link, timeout=60)
    finally:
        running[0].should_exit = True
        thread.join(60)
    assert stopped.is_set()
