"""Another distribution adds a format, an importer, a command and a solver; broken ones are named and break nothing."""

import importlib
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import ddib_fed
from ddib_fed import Model, Run, Settings, TrainConfig
from ddib_fed.cli.main import run
from ddib_fed.client.files import payload
from ddib_fed.errors import ConfigError, InputError, SettingsInvalid, UsageError
from ddib_fed.extensions import extensions, loaded
from ddib_fed.importing import Imported, ImportOptions
from ddib_fed.models.bundle import save_bundle
from ddib_fed.training.studies import look_at_studies
from tests.models.examples import state
from tests.runs.tiny_models import tiny

THEIRS = Path(__file__).parents[1] / "extension"
BROKEN = {
    "formats": {"broken": "no_such_module", "odd": "mine.pgm", "nifti": "mine.pgm:PGM"},
    "importers": {"broken": "no_such_module", "guided": "mine.importer"},
    "commands": {"broken": "no_such_module"},
    "solvers": {"broken": "mine.solvers:no_such_function"},
}
"""Entry points beside those of its pyproject.toml: some that cannot be loaded, some with names of this package."""


def install(place: Path, monkeypatch, more=BROKEN) -> None:
    """Put the distribution on sys.path, as an editable installation does."""
    groups = tomllib.loads((THEIRS / "pyproject.toml").read_text())["project"]["entry-points"]
    written = [
        "\n".join([f"[{group}]", *(f"{name} = {where}" for name, where in points.items())])
        for group, own in groups.items()
        for points in [{**own, **more.get(group.removeprefix("ddib_fed."), {})}]
    ]
    info = place / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n\n".join(written))
    for each in (place, THEIRS):
        monkeypatch.syspath_prepend(str(each))
    importlib.invalidate_caches()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The distribution is installed while the test runs."""
    install(tmp_path / "site", monkeypatch)
    caches = (extensions, loaded)
    for each in caches:
        each.cache_clear()
    yield tmp_path
    for each in caches:
        each.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.fixture
def pictures(mine, monkeypatch):
    """PGM pictures with a comment, of 8 and 16 bits, and models that take them."""
    monkeypatch.chdir(mine)
    for name, seed in (("north", 1), ("south", 2)):
        bundle = tiny(name, seed=seed, soften_sigma=0.02)
        save_bundle(mine / name, bundle.manifest, bundle.state)
    rng = np.random.default_rng(0)
    for name, most, kind in (("bytes", 255, "u1"), ("words", 65535, ">u2")):
        values = rng.integers(0, most, (12, 10)).astype(kind)
        path = mine / "in" / "ward" / f"{name}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5\n# Doe^John\n10 12\n%d\n" % most + values.tobytes())
    return mine


MODELS = ("--source", "north", "--target", "south", "--evaluations", "3")


def test_a_format_of_another_distribution_is_translated_by_the_command(pictures, capsys) -> None:
    """Its pixels alone are sent, and results are files of its own; a broken reader is named, and the rest goes on."""
    rule = "--intensity=percentile:0,100"
    assert run(["translate", "in", *MODELS, rule, "--out", "out"]) == 0
    said = capsys.readouterr().err
    assert "warning: mine: its 'broken' of ddib_fed.formats cannot be loaded" in said
    assert "warning: mine: its 'odd' of ddib_fed.formats is no Reader" in said
    assert {path.relative_to("out").as_posix() for path in Path("out").rglob("*.pgm")} == {
        "ward/bytes.pgm", "ward/words.pgm",
    }  # fmt: skip
    for path in Path("out").rglob("*.pgm"):
        assert path.read_bytes().startswith(b"P5\n10 12\n255\n")
        record = ddib_fed.Record.read(path.with_suffix(".json"))
        assert record.input == path.name
        assert "Doe" not in path.with_suffix(".json").read_text()
    assert run(["translate", "in", *MODELS, rule, "--out", "out"]) == 0  # it is finished
    assert "earlier run" in capsys.readouterr().out


def test_every_reader_of_files_asks_the_same_readers(pictures) -> None:
    path = pictures / "in" / "ward" / "bytes.pgm"
    assert Run.look(path, "ward/bytes.pgm") == (False, ())
    with pytest.raises(InputError, match="is a PGM picture: its header stays"):
        payload(path)
    config = TrainConfig(images=pictures / "in", size=8, intensity="percentile:0,100")
    looked = look_at_studies(pictures / "in", config, 8, None)
    assert "2 x PGM picture, 8 planes" in looked.lines[0]
    (pictures / "in" / "ward" / "odd.pgm").write_bytes(b"P5\n")
    with pytest.raises(InputError, match=r"odd\.pgm cannot be read as PGM"):
        Run.look(pictures / "in" / "ward" / "odd.pgm", "odd.pgm")


def test_a_solver_of_another_distribution_is_chosen_by_name(mine) -> None:
    """Its error falls with its steps; a rule that does not evaluate once an interval is refused."""
    moons = Model.open("moons")
    points = moons.sample(64)
    latents = moons.encode(points, Settings(evaluations=200))
    errors = [
        float(np.abs(moons.encode(points, Settings("euler", evaluations=count)) - latents).max())
        for count in (50, 100)
    ]
    assert errors[1] < 0.7 * errors[0] < 0.1
    with pytest.raises(SettingsInvalid, match="1 evaluations where 5 were asked for"):
        moons.encode(points, Settings("lazy", evaluations=5))
    with pytest.raises(SettingsInvalid, match="no solver 'heun'"):
        moons.encode(points, Settings("heun"))


def test_an_importer_of_another_distribution_is_asked_first(mine) -> None:
    """It makes a bundle with the face alone; an option that it does not use is refused."""
    (mine / "weights.mine").touch()
    save_file(state(), mine / "weights.safetensors")
    imported = Imported.read(mine / "weights.mine", ImportOptions("points"))
    assert "mine: its 'broken' of ddib_fed.importers cannot be loaded" in imported.warnings[0]
    assert imported.save(mine / "model").domain == "points"
    assert Model.open(mine / "model").shape == (2,)
    with pytest.raises(UsageError, match="--modality says nothing"):
        Imported.read(mine / "weights.mine", ImportOptions(modality="ct"))


def test_a_command_of_another_distribution_is_in_the_help_and_runs(pictures, capsys) -> None:
    """The help says which cannot be loaded; a command that can is not touched."""
    assert run(["--help"]) == 0
    assert "Say how many bits the PGM pictures" in (said := " ".join(capsys.readouterr().out.split()))
    assert "mine: its 'broken' of ddib_fed.commands cannot be loaded" in said
    assert run(["depth", "in/ward"]) == 0
    assert capsys.readouterr().out.split() == ["bytes.pgm", "8", "words.pgm", "16"]
    assert run(["broken"]) == ConfigError("").exit_code


@pytest.mark.parametrize(("group", "name"), [("formats", "nifti"), ("importers", "guided")])
def test_names_of_this_package_are_its_own(mine, group, name) -> None:
    assert extensions(f"ddib_fed.{group}")[name].dist.name == "ddib-fed"


def test_without_this_package_s_readers_nothing_is_sent(mine, monkeypatch) -> None:
    """A picture could be a DICOM file in its guise."""
    monkeypatch.setattr("ddib_fed.extensions.entry_points", lambda **_: [])
    path = mine / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n".ljust(128, b"\0") + b"DICM")
    with pytest.raises(ConfigError, match="no installed package reads formats"):
        payload(path)
