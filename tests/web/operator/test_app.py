"""`ddib status --web` over a real admin socket, files and an audit log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ddib_fed.node.config import NodeConfig
from ddib_fed.node.running.admin import AdminServicer, serve_admin
from ddib_fed.trust.audit.log import RECEIPT, AuditLog, Exchanged
from ddib_fed.v1 import admin_pb2 as pb
from ddib_fed.web.operator.app import Operator
from ddib_fed.web.operator.overview import Overview, duration
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_config, make_institution, save_model


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """North's source node, which admits south; something was sent, and something refused."""
    made = make_config(tmp_path / "north", "north.example", "source")
    north = make_institution(tmp_path / "north", "north.example")
    north.admit(Institution("south.example", tmp_path / "south"), "south.example:7555")
    save_model(made)
    log = AuditLog(made.paths.audit)
    log.write(RECEIPT, peer="south.example", **Exchanged(1_234, 5_000_000, 7, 70_000).values())
    log.write("refused", reason="PEER_UNKNOWN", identity="x", times=7)
    log.write("refused", reason="NO_CALL", times=2)
    return made


@pytest.fixture
def running(config: NodeConfig) -> Iterator[pb.StatusResponse]:
    """What the node answers."""
    status = pb.StatusResponse(
        institution="north.example", name="node-1", roles=["source"], state="serving",
        jobs={"queued": 3, "finished": 1_500}, uptime_s=93_784, active_streams=1,
    )  # fmt: skip
    status.peers.add(
        institution="south.example", identity="spiffe://south.example/node/node-1", address="south:7",
        problem="<script>alert(1)</script> does not answer\u202e", failed=1e9,
    )  # fmt: skip
    servicer = AdminServicer(lambda: status, list, lambda: 0, lambda _: pb.WorkersResponse())
    server = serve_admin(config.paths.admin_socket, servicer, [])
    yield status
    server.stop(None).wait()


@pytest.fixture
def page(config: NodeConfig) -> TestClient:
    return TestClient(Operator.of(config).app())


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_the_page_says_what_the_node_says(page: TestClient, running: pb.StatusResponse) -> None:
    """State, queue, peers and the last day's figures."""
    said = text_of(page.get("/").text)
    for text in ("serving", "up 1 day 2 h", "queued 3", "finished 1,500", "running 0", "1,234", "4.8 MiB",
                 "PEER_UNKNOWN 7", "NO_CALL 2", "ddib peer test south.example --config /"):  # fmt: skip
        assert text in said, text


def test_what_a_peer_says_is_text(page: TestClient, running: pb.StatusResponse) -> None:
    """Its words are neither markup nor do they turn the line around."""
    shown = page.get("/live").text
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "\u202e" not in shown


def test_a_peer_that_is_suspended_is_told(page: TestClient, running: pb.StatusResponse) -> None:
    """Before its last failure."""
    running.peers[0].suspended = "since Monday: contract ended"
    assert "suspended since Monday" in text_of(page.get("/live").text)


def test_a_node_that_does_not_run_has_a_page(page: TestClient) -> None:
    """What lies on the disk is shown: certificates, the log, what leaves; and how to start the node."""
    said = text_of(page.get("/").text)
    assert "does not run" in said
    assert "serve --config" in said
    assert "Root of south.example" in said
    assert "1,234" in said
    assert "Latents of your clients&#39; pictures or points leave, to south.example." in said


def test_days_left_on_certificates(config: NodeConfig, page: TestClient) -> None:
    """Of the node, its root and the pinned root of each peer; roots live ten years."""
    found = {each.what: each for each in Overview(config).live().certificates}
    assert set(found) == {"This node", "Your institution's root", "Root of south.example"}
    assert re.fullmatch(r"3,6\d\d days", found["Root of south.example"].left)
    assert not any(each.advice for each in found.values())


def test_a_certificate_that_ends_soon_says_what_to_do(config: NodeConfig, monkeypatch) -> None:
    """An expired one as well."""
    from ddib_fed.web.operator import overview

    class Later(datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.now(zone).replace(year=datetime.now(UTC).year + 10, day=1)

    monkeypatch.setattr(overview, "datetime", Later)
    found = {each.what: each for each in Overview(config).live().certificates}
    assert found["This node"].left == "expired"
    assert "renews by itself" in found["This node"].advice
    assert "peer file" in found["Root of south.example"].advice


def test_the_page_changes_nothing(page: TestClient, config: NodeConfig) -> None:
    """It only reads; every other method is refused."""
    before = {path: path.stat().st_mtime_ns for path in config.path.parent.rglob("*") if path.is_file()}
    page.get("/")
    assert page.post("/").status_code == 405
    assert page.delete("/live").status_code == 405
    assert {
        path: path.stat().st_mtime_ns for path in config.path.parent.rglob("*") if path.is_file()
    } == before


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 min"), (59 * 60, "59 min"), (3_600, "1 h 0 min"), (86_400, "1 day 0 h"), (29.5 * 86_400, "29 days 12 h"),
     (3_650 * 86_400, "3,650 days")],
)  # fmt: skip
def test_times_in_words(seconds: float, words: str) -> None:
    """In their two largest units."""
    assert duration(seconds) == words
