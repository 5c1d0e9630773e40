"""`ddib model import` reads one file of another code, lists what it rests on, and refuses what contradicts itself."""

from __future__ import annotations

import json

import pytest
import torch

from ddib_fed.cli.model import model
from ddib_fed.errors import AlreadyExists, BundleInvalid
from ddib_fed.models.bundle import load_bundle
from ddib_fed.networks.build import network_shapes
from ddib_fed.networks.config import UNetConfig
from tests.models.importers.test_guided import FLAGS, SMALL, random_state


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(random_state(SMALL), tmp_path / "ema_0.9999_020000.pt")
    return tmp_path / "ema_0.9999_020000.pt"


def test_a_checkpoint_becomes_a_bundle_and_every_setting_is_shown(ddib, checkpoint, tmp_path):
    out = tmp_path / "m"
    said = ddib(
        model, "import", checkpoint, "--out", out, "--flags", FLAGS, "--domain", "dogs", "--name", "ADM"
    ).output
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert rows["num_channels"] == ["32", "--flags"]
    assert rows["num_head_channels"] == ["16", "--flags"]
    assert rows["noise_schedule"] == ["linear", "public", "default"]
    assert "--use_fp16 is not used" in said
    assert "averaged over training (rate 0.9999, step 020000)" in said
    made = load_bundle(out).manifest
    assert (made.domain, made.name, made.network) == ("dogs", "ADM", SMALL)


def test_nothing_is_written_over_or_half(ddib, checkpoint, tmp_path):
    with pytest.raises(BundleInvalid):
        ddib(model, "import", checkpoint, "--out", tmp_path / "m", "--flags", "--num_channels 64")
    assert not (tmp_path / "m").exists()
    ddib(model, "import", checkpoint, "--out", tmp_path / "m", "--flags", FLAGS)
    with pytest.raises(AlreadyExists):
        ddib(model, "import", checkpoint, "--out", tmp_path / "m", "--flags", FLAGS)
    ddib(model, "import", checkpoint, "--out", tmp_path / "m", "--flags", FLAGS, "--name", "again", "--force")
    assert load_bundle(tmp_path / "m").manifest.name == "again"


def test_public_defaults_alone_are_a_warning_everywhere(ddib, checkpoint, tmp_path):
    """On the terminal, in JSON and in the manifest's record; with --flags there is none."""
    usual = UNetConfig(
        image_size=64, model_channels=128, out_channels=3, num_res_blocks=2, num_heads=4, attention_resolutions=(4, 8),
        channel_mult=(1, 2, 3, 4), use_scale_shift_norm=True,
    )  # fmt: skip
    torch.save(
        {key: torch.zeros(value.shape) for key, value in network_shapes(usual).items()}, tmp_path / "u.pt"
    )
    said = ddib(model, "import", tmp_path / "u.pt", "--out", tmp_path / "m")
    assert "warning: without --flags" in said.stderr
    assert "num_heads" in said.stderr
    warned = json.loads(
        ddib(model, "import", tmp_path / "u.pt", "--out", tmp_path / "j", "--format", "json").stdout
    )["warnings"]
    assert "noise_schedule" in warned[0]
    assert warned[0] in load_bundle(tmp_path / "m").manifest.data.note
    told = ddib(model, "import", checkpoint, "--out", tmp_path / "f", "--flags", FLAGS, "--format", "json")
    assert json.loads(told.stdout)["warnings"] == []


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("blocks.0.adaLN_modulation.1.weight", "diffusion transformer"),
        ("model.diffusion_model.input_blocks.0.0.weight", "latent diffusion"),
    ],
)
def test_files_of_other_models_are_named(ddib, tmp_path, tensor, named):
    torch.save({tensor: torch.zeros(4, 4), "x_embedder.proj.bias": torch.zeros(4)}, tmp_path / "x.pt")
    with pytest.raises(BundleInvalid) as caught:
        ddib(model, "import", tmp_path / "x.pt", "--out", tmp_path / "m")
    assert named in f"{caught.value.detail} {caught.value.hint}"
    assert not (tmp_path / "m").exists()


def test_a_tensor_under_two_names_is_refused(ddib, checkpoint, tmp_path):
    """With and without the prefix of a wrapper: one of the two won before, in silence."""
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "module.out.2.bias": state["out.2.bias"] + 1.0}, tmp_path / "twice.pt")
    with pytest.raises(BundleInvalid, match=r"out\.2\.bias.*two"):
        ddib(model, "import", tmp_path / "twice.pt", "--out", tmp_path / "m")
