"""The wheel: whole, without what only the checkout needs, and working from outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_contract_and_the_models_are_in_the_wheel(wheel: Path) -> None:
    """Protos, type marker, licence and the six bundles travel with the package."""
    inside = names(wheel)
    assert {
        f"ddib_fed/protos/ddib_fed/v1/{p.name}" for p in (ROOT / "protos/ddib_fed/v1").glob("*.proto")
    } <= inside
    assert "ddib_fed/py.typed" in inside
    assert sum(name.endswith("model.safetensors") for name in inside) == 10


def test_switches_and_artefacts_of_tests_are_not(wheel: Path) -> None:
    """Nothing of tests or benchmarks is shipped."""
    packages = {name.split("/")[0] for name in names(wheel)}
    assert {p for p in packages if not p.endswith(".dist-info")} == {"ddib_fed", "source_node", "target_node"}


def test_a_bundle_is_small(wheel: Path) -> None:
    """Under 2 MB each."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = [info.file_size for info in archive.infolist() if info.filename.endswith(".safetensors")]
    assert max(sizes) < 4_000_000


@pytest.mark.e2e
def test_the_demo_runs_from_the_wheel_with_a_dead_proxy(wheel: Path, tmp_path: Path) -> None:
    """Unpacked outside the checkout, with https_proxy pointing nowhere: exit 0, both files, every bound held."""
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    dead = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    package = str(installed / "ddib_fed" / "__init__.py")
    code = f"import ddib_fed, ddib_fed.cli.main as m; assert ddib_fed.__file__ == {package!r}; m.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--points", "2000", "--out", "shown"],
        cwd=tmp_path,
        env={**os.environ, **dead, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "shown" / "translation.png").stat().st_size > 50_000
    assert (tmp_path / "shown" / "report.json").exists()
