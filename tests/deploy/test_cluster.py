"""What docs/deploy gives to an operator can be read by what it is for, and is private."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from ddib_fed.node.config import EngineSection

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
# The fields of KubeRay 1.6, https://docs.ray.io/en/master/cluster/kubernetes/references/api.html


@pytest.fixture(scope="module")
def manifests():
    found = list(yaml.safe_load_all((DEPLOY / "ray-cluster.yaml").read_text()))
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


@pytest.fixture(scope="module")
def cluster(manifests):
    return manifests["RayCluster", "ddib"]


def containers(cluster):
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_cluster_asks_for_a_token_and_tells_nobody_of_its_use(cluster, manifests):
    """The node has the same token, from the same secret; one image is everywhere."""
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "ddib-ray"}
    (node,) = manifests["StatefulSet", "node-1"]["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each for each in node["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": "ddib-ray",
        "key": "auth_token",
    }
    for container in (*containers(cluster), node):
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert container["image"] == node["image"]


def test_nobody_else_reaches_the_cluster(manifests):
    """Its pods take connections from each other and from the node alone; the node takes others on its own port."""
    rays = manifests["NetworkPolicy", "ddib-ray"]["spec"]
    assert rays["podSelector"]["matchLabels"] == {"ray.io/cluster": "ddib"}
    allowed = [each["podSelector"]["matchLabels"] for rule in rays["ingress"] for each in rule["from"]]
    assert allowed == [{"ray.io/cluster": "ddib"}, {"app": "ddib-node"}]
    nodes = manifests["NetworkPolicy", "ddib-node"]["spec"]["ingress"]
    assert [rule.get("ports") for rule in nodes if "from" not in rule] == [
        [{"port": 7443, "protocol": "TCP"}]
    ]


def test_the_settings_of_the_node_are_settings(cluster):
    """The table in the comment is one that a node reads, and names the service that KubeRay makes for the head."""
    text = (DEPLOY / "ray-cluster.yaml").read_text()
    lines = re.search(r"(?m)^#   \[engine\]\n((?:#   .+\n)+)", text)[1]
    engine = EngineSection(**tomllib.loads(lines.replace("#   ", "")))
    assert engine.executor == "ray"
    assert engine.ray_address == f"{cluster['metadata']['name']}-head-svc:6379"
    assert engine.workers == sum(group["replicas"] for group in cluster["spec"]["workerGroupSpecs"])
