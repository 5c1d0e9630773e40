"""What docs/deploy gives to an operator can be read by what it is for, names what exists, and is closed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grpc
import pytest
import yaml
from click.testing import CliRunner

from ddib_fed.cli.main import cli
from ddib_fed.client.profile import Profile
from ddib_fed.node.admin import Metrics
from ddib_fed.node.command import node_command
from ddib_fed.node.config import EngineSection, LimitsSection, NodeConfig, peer_store
from ddib_fed.node.connections import WANTED_FILES
from ddib_fed.pacs.exchange import settings_of

FOLDER = Path(__file__).parents[1] / "docs" / "deploy"
CONTAINER, MONITORING, SYSTEMD = (FOLDER / name for name in ("container", "monitoring", "systemd"))

# systemd

SERVICES = sorted(path.name for path in SYSTEMD.glob("*.service"))
MOST_EXPOSED = 1.5
"""Of 10; the network, torch's code at run time, and the machine's devices of random numbers and time are left."""


def settings(name: str) -> dict[str, list[str]]:
    """The values of each setting; lines that end with a backslash go on."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text().replace("\\\n", " ").splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value.strip())
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_every_unit_gives_up_what_it_does_not_need(name: str) -> None:
    found = settings(name)
    assert (found["CapabilityBoundingSet"], found["ProtectSystem"]) == ([""], ["strict"])
    assert (found["UMask"], found["SystemCallFilter"][0]) == (["0077"], "@system-service")
    assert found["SystemCallFilter"][1].startswith("~@privileged ")
    assert found.get("User") == ["ddib"] or found["DynamicUser"] == ["yes"]
    for key in (
        "NoNewPrivileges", "LockPersonality", "PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectControlGroups",
        "ProtectKernelTunables", "ProtectKernelModules", "RestrictNamespaces", "RestrictSUIDSGID",
    ):  # fmt: skip
        assert found[key] == ["yes"], key


def test_the_unit_of_a_node_gives_it_its_files_its_time_and_its_commands() -> None:
    found = settings("ddib-node@.service")
    assert int(found["LimitNOFILE"][0]) >= WANTED_FILES
    assert float(found["TimeoutStopSec"][0]) > LimitsSection().drain_s
    assert found["StateDirectory"] == ["ddib/%i"]
    assert "MemoryDenyWriteExecute" not in found  # torch needs it: see the comment in the unit
    assert "-m ddib_fed.node serve --config" in found["ExecStart"][0]
    assert "--config" in CliRunner().invoke(node_command(None), ["serve", "--help"]).output
    words = re.search(r"/ddib reload (.*)", found["ExecReload"][0])
    assert words
    shown = CliRunner().invoke(cli, ["reload", "--help"]).output
    assert all(option in shown for option in re.findall(r"--[a-z-]+", words[1]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_reads_the_unit_and_finds_it_closed(name: str, tmp_path: Path) -> None:
    text = (SYSTEMD / name).read_text()
    text = re.sub(r"/opt/ddib/bin/\w+|/usr/bin/ssh", "/bin/true", text)  # which are not on this machine
    unit = tmp_path / name.replace("@", "@north")
    unit.write_text(text)
    (tmp_path / name).write_text(text)

    def analyze(*words: object) -> subprocess.CompletedProcess[str]:
        command = ["systemd-analyze", *map(str, words), str(unit)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    verified = analyze("verify", "--man=no")
    assert (verified.returncode, verified.stderr) == (0, "")
    shown = analyze("security", "--offline=yes", "--no-pager").stdout
    assert float(re.search(r"Overall exposure level for \S+ ([0-9.]+)", shown)[1]) <= MOST_EXPOSED


# Containers


def test_the_image_runs_as_a_user_with_a_probe_and_holds_the_program_alone() -> None:
    text = (CONTAINER / "Containerfile").read_text()
    last = text.rpartition("\nFROM ")[2]
    assert last.index("USER 10001:10001") < last.index("ENTRYPOINT")
    assert "http://127.0.0.1:9464/readyz" in last
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    assert copied == [["constraints.txt", "dist/ddib_fed*.whl"], ["--from=build", "/opt/ddib"]]
    ignored = (CONTAINER / "Containerfile.containerignore").read_text().split()
    assert ignored == ["*", "!constraints.txt", "!dist/"]


def test_the_services_are_closed_and_only_the_nodes_port_is_published() -> None:
    text = (CONTAINER / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service
    assert {services[name]["user"] for name in ("node", "ddib")} == {"10001:10001"}
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert published == {"node": ["${DDIB_PORT:-7443}:7443"]}
    assert services["prometheus"]["network_mode"] == "service:node"
    assert float(services["node"]["stop_grace_period"].removesuffix("s")) > LimitsSection().drain_s


def test_the_trial_with_a_pacs_is_set_up_by_its_own_commands(tmp_path: Path) -> None:
    """Both nodes admit each other, the client knows the PACS, and the receiver's words are those of the command."""
    text = (CONTAINER / "pacs.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    for name, service in services.items():
        if name != "pacs":
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
    places = dict(reversed(volume.split(":")) for volume in services["setup"]["volumes"])
    for place in places:
        (tmp_path / place.removeprefix("/srv/")).mkdir()
    (script,) = services["setup"]["command"]
    script = script.replace("$$", "$").replace("cd /srv", f"cd {tmp_path}")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = script.replace("chown -R", "true")
    done = subprocess.run(["sh", "-euc", script], env={**os.environ, "PATH": path}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for side, other in (("north", "south"), ("south", "north")):
        node = NodeConfig.load(tmp_path / side / side / "node.toml")
        assert (peer_store(node).get(f"{other}.example")).address == f"node-1.{other}.example:7443"
        assert services[side]["command"] == ["serve", "--config", f"/srv/ddib/{side}/node.toml"]
        assert services[side]["networks"]["default"]["aliases"] == [f"node-1.{side}.example"]
    # What decodes files of the PACS has the client's files alone, and a bound of memory.
    (volume,) = services["receiver"]["volumes"]
    name, _, mounted = volume.partition(":")
    (held,) = (tmp_path / place.removeprefix("/srv/") for place, volume in places.items() if volume == name)
    files = {str(path.relative_to(held)) for path in held.rglob("*") if path.is_file()}
    assert files == {"client.toml", "pki/leaf.key", "pki/leaf.pem", "pki/roots.pem"}
    assert services["receiver"]["mem_limit"].endswith("g")
    (option,) = [word for word in services["receiver"]["command"] if word.startswith("--profile=")]
    profile = Profile.load(held / Path(option.partition("=")[2]).relative_to(mounted))
    settings = json.loads((CONTAINER / "orthanc.json").read_text())
    assert settings_of(profile).peers == (f"{settings['DicomAet']}@pacs:{settings['DicomPort']}",)
    assert settings["DicomModalities"]["ddib"] == [
        settings_of(profile).aet,
        "receiver",
        settings_of(profile).port,
    ]
    assert services["receiver"]["entrypoint"] == ["ddib", "dicom", "receive"]
    words = [word.partition("=")[0] for word in services["receiver"]["command"]]
    shown = CliRunner().invoke(cli, ["dicom", "receive", "--help"]).output
    assert all(word in shown for word in words)


# Kubernetes


def test_the_pod_of_a_node_is_closed_and_unpacks_its_keys_once(tmp_path: Path) -> None:
    manifests = {each["kind"]: each for each in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())}
    assert {*manifests} == {"PersistentVolumeClaim", "Deployment", "Service"}
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    assert manifests["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}
    assert pod["terminationGracePeriodSeconds"] > LimitsSection().drain_s
    (node,), (prepare,) = pod["containers"], pod["initContainers"]
    for each in (node, prepare):
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        assert each["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert node["securityContext"]["runAsUser"] == 10001
    service = manifests["Service"]["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == ("NodePort", "Local")
    assert service["selector"] == manifests["Deployment"]["spec"]["selector"]["matchLabels"]
    # The first container's script, on a folder that `ddib init node` made: a second start changes nothing.
    words = ["init", "node", "--institution", "north.example", "--role", "source", "--model", "moons"]
    words += ["--address", "localhost:30443", "--listen", "0.0.0.0:7443", "--out", str(tmp_path / "north")]
    assert CliRunner().invoke(cli, words).exit_code == 0
    subprocess.run(
        ["tar", "-C", tmp_path / "north", "--exclude=./model", "-czf", tmp_path / "node.tgz", "."], check=True
    )
    (script,) = prepare["args"]
    script = script.replace("/secret", str(tmp_path)).replace("/data", str(tmp_path / "data"))
    script = script.replace("chown -R 10001:10001", "true")
    (tmp_path / "data" / "node" / "model").mkdir(parents=True)
    for name in ("manifest.json", "model.safetensors"):
        shutil.copy(tmp_path / "north" / "model" / name, tmp_path / "data" / "node" / "model")
    subprocess.run(["sh", "-euc", script], check=True, timeout=30)
    config = tmp_path / "data" / "node" / "node.toml"
    assert CliRunner().invoke(node_command(None), ["check", "--config", str(config)]).exit_code == 0
    config.write_text(config.read_text() + "# of the operator\n")
    subprocess.run(["sh", "-euc", script], check=True, timeout=30)
    assert config.read_text().endswith("# of the operator\n")
    assert config.stat().st_mode & 0o077 == 0


# A Ray cluster


def test_the_cluster_of_ray_asks_for_a_token_and_is_reached_by_its_node_alone() -> None:
    text = (FOLDER / "ray-cluster.yaml").read_text()
    manifests = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}
    cluster = manifests["RayCluster", "ddib"]["spec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ddib-ray"}
    (node,) = manifests["StatefulSet", "node-1"]["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each for each in node["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    secret = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "ddib-ray", "key": "auth_token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in (*(each for group in groups for each in group["template"]["spec"]["containers"]), node):
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert container["image"] == node["image"]
    rules = manifests["NetworkPolicy", "ddib-ray"]["spec"]["ingress"]
    allowed = [each["podSelector"]["matchLabels"] for rule in rules for each in rule["from"]]
    assert allowed == [{"ray.io/cluster": "ddib"}, {"app": "ddib-node"}]
    # The table [engine] in the comment is one that a node reads.
    lines = re.search(r"(?m)^#   \[engine\]\n((?:#   .+\n)+)", text)[1]
    engine = EngineSection(**tomllib.loads(lines.replace("#   ", "")))
    assert (engine.executor, engine.ray_address) == ("ray", "ddib-head-svc:6379")
    assert engine.workers == sum(group["replicas"] for group in cluster["workerGroupSpecs"])


# Prometheus

SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "info": ("_info",),
    "histogram": ("_bucket", "_sum", "_count"),
}
VALUES = {
    "stage": {"encode", "decode", "return"}, "outcome": {"ok", "failed"}, "direction": {"in", "out"},
    "status": {code.name for code in grpc.StatusCode}, "state": {"queued", "running", "decoding"},
}  # fmt: skip
"""What the code gives to labels."""
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]


def series() -> dict[str, set[str]]:
    """The labels of each series, by its name."""
    found = {}
    for collector in vars(Metrics()).values():
        for family in collector.describe() if hasattr(collector, "describe") else ():
            for suffix in SUFFIXES[family.type]:
                labels = {*collector._labelnames, *({"le"} if suffix == "_bucket" else ())}
                found[family.name + suffix] = labels
    return found


def expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return [*(rule["expr"] for rule in RULES), *panels, *(each["query"]["query"] for each in variables)]


def test_every_metric_label_and_value_exists() -> None:
    """A metric that is renamed, or a label that is mistyped, is an alert that never comes."""
    names = series()
    known = {"instance", *(label for labels in names.values() for label in labels)}
    for expression in expressions():
        used = re.findall(r"(?<![\w:])(ddib_\w+)(?:\{([^}]*)\})?", expression)
        recorded = set(re.findall(r"\bddib:[a-z_0-9:]+", expression))
        assert used or recorded or expression.startswith("up{")
        assert recorded <= {rule["record"] for rule in RULES if "record" in rule}
        for name, matchers in used:
            assert name in names, name
            for label, value in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers):
                assert label in {*names[name], "instance"}, (name, label)
                assert label not in VALUES or set(value.split("|")) <= VALUES[label], (label, value)
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in grouped.split(",")} <= known


def test_every_alert_says_what_to_do() -> None:
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert "$labels.instance" in rule["annotations"]["summary"]
            assert rule["annotations"]["what_to_do"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_accepts_the_rules_and_they_fire() -> None:
    for command in (
        ("check", "rules", "rules.yaml"),
        ("check", "config", "--syntax-only", "prometheus.yaml"),
        ("test", "rules", "rules.test.yaml"),
    ):
        line = ["promtool", *command]
        done = subprocess.run(line, cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
