"""Who may use a page on loopback: each refusal, and the one way in; and the server, which leaves nothing behind."""

import gc
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddib_fed.errors import UsageError
from ddib_fed.web import guard
from ddib_fed.web.guard import Guard, Session
from tests.e2e.harness import wait_until

PORT = 8123
OWN = f"http://127.0.0.1:{PORT}"


@pytest.fixture
def session() -> Session:
    return Session(PORT)


@pytest.fixture
def client(session: Session) -> TestClient:
    """A browser that has not opened the link yet."""

    def echo(request):
        return PlainTextResponse(request.url.path)

    app = Starlette(routes=[Route("/", echo), Route("/do", echo, methods=["POST"])])
    return TestClient(Guard(app, session), base_url=OWN)


@pytest.fixture
def opened(client: TestClient, session: Session) -> TestClient:
    assert client.get(session.link).status_code == 200
    return client


def page(session: Session, path: str = "") -> str:
    return f"/{session.folder}/{path}"


def test_the_link_lets_one_browser_in_once(client: TestClient, session: Session) -> None:
    """Its cookie is for this folder, for no script and no other site; a second browser is refused."""
    link = session.link
    first = client.get(link)
    cookie = first.headers["set-cookie"]
    assert {"HttpOnly", f"Path=/{session.folder}/", "SameSite=strict"} <= set(cookie.split("; "))
    assert client.get(page(session)).status_code == 200
    assert client.get(link).status_code == 200, "the same browser may open it again"
    second = TestClient(client.app, base_url=OWN)
    answer = second.get(link)
    assert answer.status_code == 403
    assert "The link was used" in answer.text
    assert second.get(page(session)).status_code == 403


@pytest.mark.parametrize("token", ["", "é"])
def test_another_token_does_not(client: TestClient, session: Session, token: str) -> None:
    """Nor does it spend the real one."""
    assert client.get(page(session, "start"), params={"token": token}).status_code == 403
    assert client.get(session.link).status_code == 200


@pytest.mark.parametrize("host", [f"evil.example:{PORT}", "127.0.0.1:1", ""])
def test_another_host_is_refused_even_with_the_cookie(opened, session, host):
    """A name that was rebound to loopback reaches this port, and is not this server."""
    assert opened.get(page(session), headers={"host": host}).status_code == 421


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_requests_of_other_pages_are_refused(opened: TestClient, session: Session, site: str) -> None:
    """A page on another port of loopback is "same-site": browsers send it the same cookies."""
    assert opened.get(page(session), headers={"sec-fetch-site": site}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", f"http://localhost:{PORT}", "null", None])
def test_a_change_must_name_this_origin(opened: TestClient, session: Session, origin: str | None) -> None:
    """Also where a browser sends no Sec-Fetch-Site; one that names it passes."""
    headers = {} if origin is None else {"origin": origin}
    assert opened.post(page(session, "do"), headers=headers).status_code == 403
    assert opened.post(page(session, "do"), headers={"origin": OWN}).status_code == 200


def test_what_is_outside_the_folder_is_not_there(opened: TestClient) -> None:
    """The root tells a port scan no more than that the page has a link."""
    answer = opened.get("/")
    assert answer.status_code == 404
    assert "ddib web" in answer.text


@pytest.mark.parametrize("path", ["", "start", "nothing"])
def test_every_answer_has_the_policy(opened: TestClient, session: Session, path: str) -> None:
    """Nothing is loaded from elsewhere, framed or kept, refusals included."""
    headers = opened.get(page(session, path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


def test_it_listens_on_loopback_alone() -> None:
    """A port that is taken is an error that names it."""
    with guard.listening(0) as opened:
        host, port = opened.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UsageError, match=f"port {port}"):
            guard.listening(port)


def test_the_link_is_given_to_the_browser_in_a_private_file(tmp_path: Path, monkeypatch) -> None:
    """Others on the machine can read what a program was started with."""
    opened: list[str] = []
    monkeypatch.setattr(guard.webbrowser, "open", opened.append)
    guard.open_in_browser("http://127.0.0.1:1/f/start?token=secret", tmp_path)
    (url,) = opened
    assert "secret" not in url
    page = tmp_path / "open.html"
    assert url == page.as_uri()
    assert "token=secret" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def served(tmp_path: Path, capsys, monkeypatch) -> Iterator[str]:
    """A server in a thread that takes three connections; the link that opens it."""
    monkeypatch.setattr(guard, "MOST_CONNECTIONS", 3)
    running: list[uvicorn.Server] = []
    run = uvicorn.Server.run

    def remembered(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        running.append(server)
        run(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", remembered)
    asked = {"port": 0, "folder": tmp_path, "on_stop": lambda: None}
    thread = threading.Thread(target=guard.serve, args=(Starlette(),), kwargs=asked)
    thread.start()
    for _ in range(1200):
        if running and running[0].started:
            break
        thread.join(0.05)
    (link,) = [line.strip() for line in capsys.readouterr().out.split("\n") if "token=" in line]
    yield link
    running[0].should_exit = True
    thread.join(60)


def connected(link: str, count: int, sent: bytes) -> list[socket.socket]:
    address = "127.0.0.1", urllib.parse.urlsplit(link).port
    made = [socket.create_connection(address, timeout=60) for _ in range(count)]
    for each in made:
        with suppress(ConnectionError):  # it may be ended already
            each.sendall(sent)
    return made


def ended(connection: socket.socket) -> bool:
    with suppress(ConnectionError):
        return connection.recv(1) == b""
    return True


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_a_connection_without_a_request_is_ended(served, sent, monkeypatch) -> None:
    """Otherwise any process of the machine could hold all that the server may open."""
    monkeypatch.setattr(guard, "REQUEST_S", 0.2)
    with connected(served, 1, sent)[0] as held:
        assert ended(held)


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_connections_without_a_request_shut_nobody_out(served, sent, monkeypatch) -> None:
    """The oldest of them end; the owner's browser is answered while the youngest are held."""
    monkeypatch.setattr(guard, "REQUEST_S", 600.0)
    held = connected(served, 20, sent)
    with urllib.request.urlopen(served, timeout=60) as answer:
        assert b"Continue" in answer.read()
    assert all(ended(each) for each in held[:18])
    for each in held:
        each.close()


def test_a_connection_that_was_closed_is_not_kept(served, monkeypatch) -> None:
    """Its time limit, which is still to come, does not hold it."""
    monkeypatch.setattr(guard, "REQUEST_S", 600.0)
    for each in connected(served, 20, b""):
        each.close()
    with urllib.request.urlopen(served, timeout=60) as answer:
        answer.read()

    def kept() -> int:
        gc.collect()
        return sum(issubclass(type(each), H11Protocol) for each in gc.get_objects())

    wait_until(lambda: kept() <= 1, what="connections that are gone")
