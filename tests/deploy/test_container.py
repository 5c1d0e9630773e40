"""The container's files: rootless, a read-only root, a probe, and nothing of an institution in the image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ddib_fed.node.config import LimitsSection

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "deploy" / "container"
TEXT = (FOLDER / "Containerfile").read_text()


COMPOSE = (FOLDER / "compose.yaml").read_text()


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load(COMPOSE)["services"]


def test_the_image_runs_as_a_user_with_a_probe() -> None:
    """A number, so that nothing of the host's users is needed; the probe asks whether the node is ready."""
    lines = [line for line in TEXT.splitlines() if re.match(r"[A-Z]+ ", line)]
    last = TEXT.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert "http://127.0.0.1:9464/readyz" in last
    assert "STOPSIGNAL SIGTERM" in lines
    assert 'ENTRYPOINT ["python", "-P", "-m", "ddib_fed.node"]' in lines


def test_the_image_holds_the_program_alone() -> None:
    """What is copied is the wheel and the pinned versions; everything else is left out of the context."""
    copied = [line.split()[1:-1] for line in TEXT.splitlines() if line.startswith("COPY ")]
    assert copied == [["constraints.txt", "dist/ddib_fed-*.whl"], ["--from=build", "/opt/ddib"]]
    ignored = (FOLDER / "Containerfile.containerignore").read_text().split()
    assert ignored == ["*", "!constraints.txt", "!dist/"]


def test_the_services_are_closed(services) -> None:
    """Read-only root, no capability, no new privilege, a user that is not root; nothing is privileged."""
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
    for name in ("node", "ddib"):
        assert services[name]["user"] == "10001:10001"
        assert services[name]["volumes"] == ["${DDIB_FOLDER:?set the folder of the node}:/srv/ddib:Z"]


def test_only_the_nodes_port_is_published(services) -> None:
    """Prometheus shares the node's loopback instead."""
    assert {name: service.get("ports") for name, service in services.items() if service.get("ports")} == {
        "node": ["${DDIB_PORT:-7443}:7443"]
    }
    assert services["prometheus"]["network_mode"] == "service:node"


def test_a_node_may_finish_before_it_is_killed(services) -> None:
    """The grace period is longer than it drains."""
    assert float(services["node"]["stop_grace_period"].rstrip("s")) > LimitsSection().drain_s
