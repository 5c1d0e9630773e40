"""Rules and dashboard name metrics that a node has, with labels and values that it gives them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from ddib_fed.node.admin import Metrics

FOLDER = Path(__file__).parents[2] / "docs" / "deploy" / "monitoring"
PROMTOOL = shutil.which("promtool")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# What the code gives to labels.
VALUES = {
    "stage": {"encode", "decode", "return"},
    "outcome": {"ok", "failed"},
    "direction": {"in", "out"},
    "status": {code.name for code in grpc.StatusCode},
}
RECORDED = re.compile(r"\bddib:[a-z_0-9:]+")
USED = re.compile(r"(?<![\w:])(ddib_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|=|!=)"([^"]*)"')


def series() -> dict[str, set[str]]:
    """The labels of each series, by its name."""
    metrics = Metrics()
    found = {}
    for collector in vars(metrics).values():
        for family in collector.describe() if hasattr(collector, "describe") else ():
            for suffix in SUFFIXES[family.type]:
                labels = {*collector._labelnames, *({"le"} if suffix == "_bucket" else ())}
                found[family.name + suffix] = labels
    return found


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_metric_label_and_value_exists(expression: str) -> None:
    """A metric that is renamed, or a label that is mistyped, is an alert that never comes."""
    names = series()
    used = USED.findall(expression)
    recorded = RECORDED.findall(expression)
    assert used or recorded or expression.startswith("up{")
    assert set(recorded) <= {rule["record"] for rule in rules() if "record" in rule}
    for name, matchers in used:
        assert name in names, name
        for label, _, value in MATCHER.findall(matchers):
            assert label in {*names[name], "instance"}, (name, label)
            for each in value.split("|") if label in VALUES else ():
                assert each in VALUES[label], (label, each)
    known = {"instance", *(label for labels in names.values() for label in labels)}
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= known


def test_every_alert_says_what_to_do() -> None:
    """With the node that it is about."""
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning", "info"}
            assert "$labels.instance" in rule["annotations"]["summary"]
            assert rule["annotations"]["what_to_do"]


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")
def test_prometheus_accepts_the_rules_and_they_fire() -> None:
    """`promtool check` and `promtool test rules`, with the cases beside the rules."""
    for command in (
        ("check", "rules", "rules.yaml"),
        ("check", "config", "--syntax-only", "prometheus.yaml"),
        ("test", "rules", "rules.test.yaml"),
    ):
        done = subprocess.run([PROMTOOL, *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
