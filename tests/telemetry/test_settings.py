"""Telemetry is off by default, imports nothing then, and goes nowhere unencrypted but on this machine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from ddib_fed.errors import ExtraMissing
from ddib_fed.telemetry.opening import check_telemetry, client_tracing, node_telemetry
from ddib_fed.telemetry.settings import NodeTelemetry, TelemetrySettings
from ddib_fed.telemetry.tracing import OFF
from tests.node.tiny_nodes import make_config

ROOT = Path(__file__).parents[2]


def test_it_is_off_by_default() -> None:
    """Of a client and of a node."""
    assert client_tracing(TelemetrySettings(), "north.example") is OFF
    found = node_telemetry(NodeTelemetry(), None, institution="north.example", roles=("source",))
    assert (found.tracing, found.metrics, check_telemetry(NodeTelemetry())) == (OFF, None, "off")
    found.close()
    with OFF.span("anything") as span:
        span.set({"a": 1})
        assert span.context is None


@pytest.mark.slow
def test_a_client_imports_nothing_of_it_while_it_is_off() -> None:
    """In a process of its own."""
    code = "import sys, ddib_fed.client.client; print({'opentelemetry', 'requests'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_only_its_own_modules_import_it_and_they_are_imported_when_they_are_called() -> None:
    """So a node does not either: no other module names the packages, and none imports those two at its top."""
    own = {"ddib_fed.telemetry.otel", "ddib_fed.telemetry.otel_metrics"}
    for path in (
        path for top in ("ddib_fed", "source_node", "target_node") for path in (ROOT / top).rglob("*.py")
    ):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        found = {word for node in ast.walk(tree) for word in imported(node)}
        assert name in own or not {
            word for word in found if word.startswith(("opentelemetry", "requests"))
        }, name
        assert name in own or not own & {word for node in tree.body for word in imported(node)}, name


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {node.module or ""}
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://collector.north.example:4318",
        "http://10.0.0.1:4318",
        "grpc://localhost:4317",
        "localhost:4318",
        "https://",
        "https://a:b@collector:4318",
        "https://collector:4318?key=1",
    ],
)
def test_an_endpoint_that_is_not_allowed(endpoint: str) -> None:
    """Plain HTTP beyond loopback, other schemes, logins."""
    with pytest.raises(ValidationError, match=r"unencrypted|not the URL|login"):
        TelemetrySettings(endpoint=endpoint)


def test_endpoints_that_are_allowed() -> None:
    """Without the slash at their end."""
    for endpoint in ("http://127.0.0.1:4318/", "http://[::1]:4318", "https://collector.north.example/otlp/"):
        assert TelemetrySettings(endpoint=endpoint).endpoint == endpoint.rstrip("/")


def test_peers_are_institutions() -> None:
    """No pattern stands for all."""
    assert NodeTelemetry(peers=("south.example",)).peers == ("south.example",)
    with pytest.raises(ValidationError, match="no institution"):
        NodeTelemetry(peers=("*",))


def test_the_keys_of_the_template_are_settings(tmp_path) -> None:
    """Each comment of node.toml, uncommented."""
    settings = {
        "endpoint": '"http://127.0.0.1:4318"',
        "sample": "0.5",
        "metrics_every_s": "5.0",
        "peers": '["south.example"]',
    }
    text = (make_config(tmp_path, "north.example", "source").path).read_text().partition("[telemetry]")[2]
    assert all(f"# {name} = " in text for name in settings)
    assert set(settings) == set(NodeTelemetry.model_fields)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """At `check` and at the start, not when the first span ends."""
    for name in [
        name for name in sys.modules if name.startswith(("opentelemetry", "ddib_fed.telemetry.otel"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    settings = NodeTelemetry(endpoint="http://127.0.0.1:4318")
    with pytest.raises(ExtraMissing) as caught:
        check_telemetry(settings)
    assert "-m pip install opentelemetry-exporter-otlp-proto-http" in caught.value.hint
    with pytest.raises(ExtraMissing):
        client_tracing(settings, "north.example")
