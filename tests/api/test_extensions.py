"""Another distribution adds an importer and a solver; one that is broken is named, and breaks nothing else."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from safetensors.torch import save_file

import ddib_fed
from ddib_fed import Imported, ImportOptions, Model, Settings
from ddib_fed.errors import ConfigError, SettingsInvalid, UsageError
from ddib_fed.extensions import extensions
from tests.models.examples import manifest, state

MODULE = """
from itertools import pairwise

from ddib_fed.importing import Imported, Manifest, read_tensors

uses = ("soften_sigma",)


def recognises(path):
    return path.suffix == ".mine"


def read(path, options):
    manifest = Manifest(name="mine", domain=options.domain, sample_shape=(2,), network=NETWORK)
    return Imported(manifest, read_tensors(path.with_suffix(".safetensors")).state)


def euler(x, levels, order):
    for level, following in pairwise(levels):
        v = yield x, level
        x = x + (following.phi - level.phi) * v
    return x


def lazy(x, levels, order):
    v = yield x, levels[0]
    return x + (levels[-1].phi - levels[0].phi) * v
"""
POINTS = """
[ddib_fed.importers]
mine = mine_of_tests
broken = no_such_module
guided = mine_of_tests

[ddib_fed.solvers]
euler = mine_of_tests:euler
lazy = mine_of_tests:lazy
broken = mine_of_tests:no_such_function
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A distribution that is installed while the test runs."""
    place = tmp_path / "site"
    info = place / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    network = manifest().network.model_dump(mode="json")
    (place / "mine_of_tests.py").write_text(f"NETWORK = {network!r}\n{MODULE}")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(place))
    importlib.invalidate_caches()
    extensions.cache_clear()
    yield tmp_path
    extensions.cache_clear()


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
    found = Imported.read(mine / "weights.mine", ImportOptions("points"))
    assert "mine: its 'broken' of ddib_fed.importers cannot be loaded" in found.warnings[0]
    assert found.save(mine / "model").domain == "points"
    assert ddib_fed.Model.open(mine / "model").shape == (2,)
    assert extensions("ddib_fed.importers")["guided"].dist.name == "ddib-fed"  # its names are its own
    with pytest.raises(UsageError, match="--modality says nothing"):
        Imported.read(mine / "weights.mine", ImportOptions(modality="ct"))


def test_an_extension_that_cannot_be_loaded_is_named(mine) -> None:
    with pytest.raises(ConfigError, match=r"mine: its 'broken' of ddib_fed\.solvers cannot be loaded"):
        Model.open("moons").sample(2, Settings("broken"))
    assert Model.open("moons").sample(2, Settings(evaluations=3)).shape == (2, 2)
