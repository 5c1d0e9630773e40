"""The public code's 2-D network is trained on its own objective, and a run is resumed bit for bit."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.data import synthetic
from ddib_fed.diffusion.schedule import discrete_schedule
from ddib_fed.errors import SettingsInvalid, StateConflict
from ddib_fed.networks.config import SyntheticConfig
from ddib_fed.training.checkpoint import latest_checkpoint
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.objective import make_step_batch
from ddib_fed.training.run import train


@pytest.fixture
def small():
    """A run of a second with all that is peculiar to this network."""
    return TrainConfig(
        domain="moons",
        network={"public": True, "num_channels": 32, "num_res_blocks": 1},
        batch=64,
        diffusion_steps=100,
        learning_rate=1e-3,
        ema=0.9,
        steps=30,
        levels=32,
        checkpoint_every=7,
        samples=200,
    )


def test_the_objective_is_the_noise_at_integer_steps_of_the_schedule():
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, told t, answered by eps; every step can come."""
    schedule = discrete_schedule("linear", 50)
    u = synthetic.uniforms(0, 0, 100, 6)
    x0 = torch.from_numpy(synthetic.from_uniforms("moons", u[:, :4]))
    eps = torch.from_numpy(synthetic.normals(u[:, 4:])).float()
    batch = make_step_batch(x0, eps, torch.arange(50) / 50 + 0.01, schedule)
    bars = torch.cumprod(1 - schedule.betas, 0)[batch.rows, None].float()
    assert batch.times.tolist() == list(range(50))
    assert batch.rows.tolist() == [*range(50), *range(50)]
    assert torch.allclose(batch.x, bars.sqrt() * x0 + (1 - bars).sqrt() * eps, atol=1e-6)
    assert torch.equal(batch.target, eps)


@pytest.mark.slow
def test_training_lowers_the_loss_and_makes_a_bundle_of_the_public_kind(small, tmp_path):
    """The manifest says what an imported checkpoint's says; the network's noise is half explained in 30 steps."""
    manifest = train(small, tmp_path).manifest
    assert manifest.network == SyntheticConfig(num_channels=32, num_res_blocks=1, dropout=0.2)
    assert (manifest.parameterisation, manifest.time_input) == ("eps", "timestep")
    assert (manifest.schedule.name, manifest.schedule.steps) == ("linear", 100)
    assert manifest.training.figures["held_out_loss"] < 0.75


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(small, tmp_path):
    """Dropout too is a function of the seed and the step."""

    def stop(progress):
        if progress.step == 17:
            raise KeyboardInterrupt

    train(small, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        train(small, tmp_path / "stopped", stop)
    torch.manual_seed(99)
    train(small.model_copy(update={"steps": None}), tmp_path / "stopped", resume=True)
    folders = [tmp_path / name for name in ("through", "stopped")]
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other
    last = [latest_checkpoint(folder / "run").tensors for folder in folders]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    other = small.model_copy(update={"network": {**small.network, "dropout": 0.1}})
    with pytest.raises(StateConflict):
        train(other, tmp_path / "stopped", resume=True)


def test_the_public_network_is_told_how_long(small, tmp_path):
    """The public code goes on until it is stopped: no number of steps is made up."""
    with pytest.raises(SettingsInvalid, match="until it is stopped"):
        train(small.model_copy(update={"steps": None}), tmp_path)
    assert not (tmp_path / "run").exists()
