"""The wheels of the client and of the models: whole, without what only the checkout needs, and working outside it."""

import json
import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder

import ddib_fed
from ddib_fed.demo import NODES
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.catalogue import shipped_names

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory, ".")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory, "models")


def build(factory: pytest.TempPathFactory, project: str) -> Path:
    """The wheel of a project, from what `make dist` builds it from."""
    folder = factory.mktemp("release")
    command = ["make", "--silent", "--directory", str(ROOT), "release-tree", f"RELEASE={folder / 'tree'}"]
    subprocess.run(command, check=True)
    builder = WheelBuilder(str(folder / "tree" / project))
    return Path(next(builder.build(directory=str(folder), versions=["standard"])))


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_contract_and_the_models_are_in_the_wheels(wheel: Path, models: Path) -> None:
    inside = names(wheel)
    assert {
        f"ddib_fed/protos/ddib_fed/v1/{p.name}" for p in (ROOT / "protos/ddib_fed/v1").glob("*.proto")
    } <= inside
    assert "ddib_fed/py.typed" in inside
    pages = [
        path for folder in ("web/static", "templates") for path in (ROOT / "ddib_fed" / folder).iterdir()
    ]
    assert {path.relative_to(ROOT).as_posix() for path in pages} <= inside
    inside = names(models)
    assert sum(name.endswith("/model.safetensors") for name in inside) == len(shipped_names())
    latent = [name for name in shipped_names() if pretrained(name).manifest.latents is not None]
    assert sum(name.endswith("/autoencoder.safetensors") for name in inside) == len(latent) >= 3


def test_the_client_is_small_and_both_wheels_are_of_one_release(wheel: Path, models: Path) -> None:
    """Below 2 MB, because the models are the other wheel's; neither names a folder of the machine that built it."""
    assert wheel.stat().st_size < 2_000_000
    assert not [name for name in names(wheel) if name in names(models) or "/pretrained/" in name]
    assert {metadata(each)["Version"] for each in (wheel, models)} == {ddib_fed.__version__}
    needed = metadata(wheel).get_all("Requires-Dist")
    assert "ddib-fed-models; extra == 'node'" in needed
    assert not [each for each in needed if "file:" in each]
    for each in (wheel, models):
        licences = {name.rpartition("/")[2] for name in names(each) if ".dist-info/licenses/" in name}
        assert licences == {"LICENSE", "NOTICE"}


@pytest.mark.slow
def test_a_client_without_models_says_what_to_install(wheel: Path, tmp_path: Path) -> None:
    done = program_from([wheel], tmp_path, "model", "list")
    assert done.returncode == 2, done.stderr
    assert "the models that ship are not installed" in done.stderr
    assert "ddib-fed-models" in done.stderr.partition("try:")[2]


def test_no_failpoint_or_switch_of_a_test_is_in_the_wheel(wheel: Path) -> None:
    """Nodes are killed, and their disks fail, by what tests plant: the wheel knows nothing of it."""
    packages = {name.split("/")[0] for name in names(wheel)}
    assert {p for p in packages if not p.endswith(".dist-info")} == {"ddib_fed", "source_node", "target_node"}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            content = archive.read(name).lower()
            assert not [word for word in (b"failpoint", b"ddib_tests") if word in content], name


PROGRAM = """
import ddib_fed, ddib_fed.cli.main as program, ddib_fed.demo as demo
assert ddib_fed.__file__ == {package!r}
assert (demo.POINTS, demo.PICTURES) == (10_000, 16)
demo.POINTS, demo.PICTURES = {counts}
program.main()
"""
FEW, ALL = (2_000, 6), (10_000, 16)
"""Points and pictures: of `make test`, and of the demo as it is."""


@pytest.mark.e2e
@pytest.mark.timeout(1_800)
def test_the_demo_runs_from_the_wheels_with_a_dead_proxy(wheel, models, tmp_path, amount):
    """Unpacked outside the checkout, with https_proxy pointing nowhere: exit 0, every file, every bound held."""
    out, (points, pictures) = tmp_path / "ddib-demo", amount(FEW, ALL)
    done = program_from([wheel, models], tmp_path, "demo", counts=(points, pictures))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert (report["points"]["count"], report["pictures"]["count"]) == (points, pictures)
    assert report["pictures"]["below_autoencoder"]["median"] < 1.0
    assert report["pictures"]["ways"]["bridge"]["mse"] < report["pictures"]["ways"]["source"]["mse"]
    assert [bound["ok"] for bound in report["bounds"]] == [True] * 9
    assert (out / "translation.png").stat().st_size > 50_000
    assert (out / "pictures.png").read_bytes().startswith(b"\x89PNG")
    # Every picture is there and back; the latents that were measured are those that crossed.
    sent = sorted((out / "pictures" / "in").iterdir())
    assert len(sent) == pictures
    for path in sent:
        result = out / "pictures" / "translated" / path.name
        record = json.loads(result.with_suffix(".json").read_text())
        assert (
            Latent.from_array(np.load(result.with_suffix(".latent.npy"))).sha256.hex()
            == record["latent_sha256"]
        )
        assert result.exists()
        assert result.with_suffix(".returned.png").exists()
    digests = [json.loads((out / name / "model" / "manifest.json").read_text())["digest"] for name in NODES]
    assert len(set(digests)) == len(NODES)


def program_from(
    wheels: list[Path], folder: Path, *words: str, counts: tuple[int, int] = ALL
) -> subprocess.CompletedProcess[str]:
    """A `ddib` command of unpacked wheels, in a process of its own in this folder."""
    installed = folder / "site"
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(installed)
    dead = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    package = str(installed / "ddib_fed" / "__init__.py")
    code = PROGRAM.format(package=package, counts=counts)
    environment = {**os.environ, **dead, "HTTPS_PROXY": dead["https_proxy"], "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1_500
    )
