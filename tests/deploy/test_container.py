"""The container's files: rootless, a read-only root, a probe, and nothing of an institution in the image."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from ddib_fed.node.config import LimitsSection

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "deploy" / "container"
TEXT = (FOLDER / "Containerfile").read_text()
HADOLINT = shutil.which("hadolint")


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


def test_any_image_is_probed(services) -> None:
    """The OCI format has no HEALTHCHECK: the documented builds ask for the other, and compose has the same check."""
    options, command = re.search(r"^HEALTHCHECK (.*) \\\n +CMD (.*)$", TEXT, re.MULTILINE).groups()
    check = services["node"]["healthcheck"]
    assert check["test"] == ["CMD", *json.loads(command)]
    durations = dict(re.findall(r"--([a-z-]+)=(\w+)", options))
    assert {name.replace("-", "_"): value for name, value in durations.items()} == {
        name: str(value) for name, value in check.items() if name != "test"
    }
    for page in (FOLDER / "Containerfile", ROOT / "docs" / "deploying.md"):
        builds = re.findall(r"podman build.*-f docs/deploy.*", page.read_text())
        assert builds
        assert all("--format docker" in build for build in builds)


def test_the_image_holds_the_program_alone() -> None:
    """What is copied is the wheel and the pinned versions; everything else is left out of the context."""
    copied = [line.split()[1:-1] for line in TEXT.splitlines() if line.startswith("COPY ")]
    assert copied == [["constraints.txt", "dist/ddib_fed-*.whl"], ["--from=build", "/opt/ddib"]]
    ignored = (FOLDER / "Containerfile.containerignore").read_text().split()
    assert ignored == ["*", "!constraints.txt", "!dist/"]


def test_its_extras_are_extras() -> None:
    """Those that the comment names, too."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"ARG EXTRAS=(\w+)", TEXT)[1] in extras
    assert {"node", "otel"} <= set(extras)


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


def test_podman_starts_it_without_root(services) -> None:
    """No pod, which refuses user namespaces; no limit on files above the host's; callers keep their addresses; and
    podman-restart.service, which looks for `always`, starts it after a reboot."""
    assert yaml.safe_load(COMPOSE)["x-podman"] == {"in_pod": False}
    node = services["node"]
    assert "nofile" not in node["ulimits"]
    assert node["network_mode"] == "${DDIB_NETWORK:-pasta}"
    assert node["userns_mode"].startswith("${DDIB_USERNS:-keep-id:")
    assert node["restart"] == "always"


def test_documented_commands_name_the_profile(services) -> None:
    """podman-compose finds a service of a profile by `--profile` alone; docker compose takes the same command."""
    text = COMPOSE + (ROOT / "docs" / "deploying.md").read_text()
    commands = re.findall(r"podman compose ([^`\n]*(?:run --rm|up --detach)) (\w+)", text)
    assert {service for _, service in commands} == {"ddib", "node"}
    for options, service in commands:
        assert all(f"--profile {profile} " in options for profile in services[service].get("profiles", []))


def test_docker_is_told_of_what_only_podman_has() -> None:
    """The comment names each variable whose default docker does not know."""
    comment = COMPOSE.partition("\nname:")[0]
    for variable in re.findall(r"(?:userns|network)_mode: \$\{(\w+):-", COMPOSE):
        assert f"{variable}=" in comment


def test_a_node_may_finish_before_it_is_killed(services) -> None:
    """The grace period is longer than it drains."""
    assert float(services["node"]["stop_grace_period"].rstrip("s")) > LimitsSection().drain_s


@pytest.mark.parametrize("name", ["north", "south"])
def test_both_hosts_have_their_settings(name: str) -> None:
    """Every variable that has no default."""
    found = dict(
        line.split("=", 1)
        for line in (FOLDER / f"{name}.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    needed = set(re.findall(r"\$\{(\w+):\?", COMPOSE))
    assert needed <= set(found)
    assert found["DDIB_FOLDER"].endswith(name)


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint")
def test_hadolint_finds_nothing() -> None:
    """At any level."""
    done = subprocess.run([HADOLINT, FOLDER / "Containerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
