"""The public code's options: training its network, its steps, eta, clipping; what contradicts a model is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ddib_fed.cli.model import model
from ddib_fed.cli.translate import translate
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.errors import AlreadyExists, SettingsInvalid, UsageError
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.config import SyntheticConfig
from tests.models.examples import state

SMALL = ("--set", "network=public", "--set", "num_channels=32", "--set", "num_res_blocks=1")


@pytest.mark.slow
def test_the_public_network_is_trained_sampled_exported_and_imported(ddib, tmp_path):
    """Every step of the way by commands; what comes back from the public form is the same network."""
    out, again = tmp_path / "m", tmp_path / "again"
    sets = ("--set", "noise_schedule=cosine", "--set", "diffusion_steps=200")
    ddib(model, "train", "--domain", "moons", *SMALL, *sets, "--batch", 64, "--steps", 5, "--out", out)
    ddib(model, "sample", out, "--flags", "--timestep_respacing ddim20", "--n", 50, "--out", tmp_path / "s")
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["settings"]["evaluations"] == 20
    said = ddib(model, "export", out, "--out", tmp_path / "log2D0" / "model000000.pt").output
    assert "--num_channels 32 --num_res_blocks 1" in said
    assert "--diffusion_steps 200 --noise_schedule cosine" in said
    file = tmp_path / "log2D0" / "model000000.pt"
    flags = ("--flags", "--diffusion_steps 200 --noise_schedule cosine")
    ddib(model, "import", "--synthetic", file, *flags, "--domain", "moons", "--out", again)
    made, read = load_bundle(out), load_bundle(again)
    assert read.manifest.network == made.manifest.network.model_copy(update={"dropout": 0.0})
    assert read.manifest.schedule == made.manifest.schedule
    assert all(torch.equal(read.state[key], value) for key, value in made.state.items())
    with pytest.raises(AlreadyExists):
        ddib(model, "export", out, "--out", file)


@pytest.mark.parametrize(
    ("flags", "options", "error", "word"),
    [
        ("--diffusion_steps 4000", (), SettingsInvalid, "trained with 1000 diffusion steps"),
        ("--timestep_respacing ddim50", ("--evaluations", 48), SettingsInvalid, "keeps 50, not 48"),
        ("--eta 0.5", ("--solver", "flow-map"), UsageError, "omit|ddim"),
    ],
    ids=str,
)
def test_what_contradicts_the_model_or_itself_is_refused(ddib, tmp_path, flags, options, error, word):
    network, schedule = SyntheticConfig(num_channels=32, num_res_blocks=1), ScheduleConfig("linear", 1000)
    made = Manifest(
        name="small", domain="moons", sample_shape=(2,), network=network, parameterisation="eps",
        time_input="timestep", schedule=schedule,
    )  # fmt: skip
    save_bundle(tmp_path / "model", made, state(network))
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32))
    way = (tmp_path / "points.npy", "--source", tmp_path / "model", "--target", tmp_path / "model")
    with pytest.raises(error, match=word):
        ddib(translate, *way, "--flags", flags, *options, "--out", tmp_path / "t")
    assert not list((tmp_path / "t").glob("points*"))
