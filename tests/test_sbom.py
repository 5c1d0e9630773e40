"""The bill of materials: CycloneDX, of what a node needs and nothing that only developers need."""

from __future__ import annotations

from importlib import metadata

from benchmarks.trust.sbom import bill
from ddib_fed.models.catalogue import shipped_names


def test_a_node_needs_its_packages_and_the_shipped_models_and_no_tools() -> None:
    """Each component once, with version and package URL, and every reference leads to one."""
    found = bill(frozenset({"node"}))
    names = {each["name"]: each for each in found["components"]}
    assert len(names) == len(found["components"])
    assert {"torch", "grpcio", "cryptography", "pillow"} <= names.keys()
    assert not {"pytest", "ruff", "mypy", "ray"} & names.keys()
    assert names["torch"]["version"] == metadata.version("torch")
    shipped = {name for name, each in names.items() if each["type"] == "machine-learning-model"}
    assert shipped == set(shipped_names())
    known = {each["bom-ref"] for each in found["components"]} | {found["metadata"]["component"]["bom-ref"]}
    for each in found["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= known


def test_the_client_needs_no_torch() -> None:
    """Without the extra."""
    assert "torch" not in {each["name"] for each in bill(frozenset())["components"]}
