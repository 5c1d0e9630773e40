"""Writes a CycloneDX bill of materials: the packages that an installation of ddib-fed needs, and the models it ships.

    python -m benchmarks.trust.sbom [--extra node] [--out dist/ddib-fed.cdx.json]

The versions are those installed here, which `make` takes from constraints.txt; development tools are not among them.
The file says the same for the same installation: nothing of it is drawn or timed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = "ddib-fed"
SPEC_VERSION: Final = "1.6"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str], seen: dict[str, set[str]]) -> None:
    """Add what a package needs, with these extras, to `seen`: for each package those that it needs itself."""
    own = seen.setdefault(canonical(name), set())
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        try:
            metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # an optional part that is not installed here
        own.add(canonical(requirement.name))
        if canonical(requirement.name) not in seen:
            needed(requirement.name, frozenset(requirement.extras), seen)


def component(name: str) -> dict[str, Any]:
    """A package as a component."""
    about = metadata.metadata(name)
    version = metadata.version(name)
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl(name),
        "name": canonical(name),
        "version": version,
        "purl": purl(name),
    }
    if licence := about.get("License-Expression"):
        found["licenses"] = [{"expression": licence}]
    elif licence := next(
        (c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")), ""
    ):
        found["licenses"] = [{"license": {"name": licence}}]
    return found


def purl(name: str) -> str:
    return f"pkg:pypi/{canonical(name)}@{metadata.version(name)}"


def models() -> Iterator[dict[str, Any]]:
    """The bundles that ship, with the digests of their weights."""
    for manifest in sorted((ROOT / "ddib_fed" / "models" / "pretrained").glob("*/manifest.json")):
        weights = hashlib.sha256((manifest.parent / "model.safetensors").read_bytes()).hexdigest()
        yield {
            "type": "machine-learning-model",
            "bom-ref": f"model:{manifest.parent.name}",
            "name": manifest.parent.name,
            "version": json.loads(manifest.read_text(encoding="utf-8"))["digest"][:12],
            "hashes": [{"alg": "SHA-256", "content": weights}],
        }


def bill(extras: frozenset[str]) -> dict[str, Any]:
    """The whole document."""
    seen: dict[str, set[str]] = {}
    needed(PACKAGE, extras, seen)
    packages = [component(name) for name in sorted(seen) if name != PACKAGE]
    shipped = list(models())
    root = component(PACKAGE) | {"type": "application"}
    content: dict[str, Any] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {"component": root},
        "components": [*packages, *shipped],
        "dependencies": [
            {
                "ref": purl(name),
                "dependsOn": [
                    *sorted(map(purl, needs)),
                    *(each["bom-ref"] for each in shipped if name == PACKAGE),
                ],
            }
            for name, needs in sorted(seen.items())
        ],
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    return content | {"serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}"}


def main() -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extra", action="append", default=[], help="an extra that is installed, e.g. node")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "ddib-fed.cdx.json")
    options = parser.parse_args()
    found = bill(frozenset(options.extra))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(found['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
