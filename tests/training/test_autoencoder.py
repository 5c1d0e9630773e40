"""An autoencoder learns to give pictures back, resumes bit for bit, and refuses what does not fit it."""

import numpy as np
import pytest
import torch

from ddib_fed.training.autoencoder import WINDOW, AutoencoderTask
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import latest_checkpoint, read_progress, train
from ddib_fed.training.sources import array_source
from tests.training.examples import blobs, stop_at

TINY = {"channels": [8, 16], "num_res_blocks": [0, 1], "attention_levels": [False] * 2, "latent_channels": 2}


def tiny(**changes):
    usual = {
        "kind": "autoencoder", "network": TINY, "batch": 8, "steps": 40, "warmup": 2, "checkpoint_every": 20,
        "samples": 2, "dtype": "float32",
    }  # fmt: skip
    return TrainConfig(**usual | changes)


def source(size=16):
    found = blobs(64, size=size)
    return array_source("spots", found[:56], found[56:])


@pytest.mark.slow
def test_it_learns_to_give_held_out_pictures_back(tmp_path):
    made = train(tiny(), tmp_path, source=source()).manifest
    losses = [row.held_out for row in read_progress(tmp_path / "run" / "progress.csv") if row.held_out]
    assert losses[-1] < losses[0]
    assert (made.role, made.domain, made.sample_shape) == ("autoencoder", "spots", (3, 16, 16))
    assert (made.network.latent_channels, made.network.divisor, made.soften_sigma) == (2, 2, 0.0)
    assert made.training.figures["reconstruction_psnr"] > 20
    assert 0 < made.training.figures["reconstruction_ssim"] <= 1
    assert (tmp_path / "run" / "samples.png").exists()


@pytest.mark.slow
def test_volumes_are_learned_as_pictures_are(tmp_path):
    x = np.linspace(-1, 1, 8)
    centres = np.random.default_rng(0).uniform(-0.5, 0.5, (24, 3, 1, 1, 1))
    grid = np.stack(np.meshgrid(x, x, x, indexing="ij"))
    balls = np.rint(255 * np.exp(-4 * ((grid - centres) ** 2).sum(1))).astype(np.uint8)[:, None]
    made = train(tiny(steps=3), tmp_path, source=array_source("balls", balls[:16], balls[16:])).manifest
    assert (made.role, made.sample_kind, made.sample_shape) == ("autoencoder", "volume", (1, 8, 8, 8))
    assert made.training.figures["reconstruction_psnr"] > 20
    assert (tmp_path / "run" / "samples.png").exists()


@pytest.mark.slow
def test_stopped_and_resumed_is_the_run_that_was_not(tmp_path):
    """To the last bit, between checkpoints too: the noise of the latents is a function of seed and step."""
    config, whole, halves = tiny(precision="bfloat16", steps=9), tmp_path / "whole", tmp_path / "halves"
    train(config, whole, source=source())
    with pytest.raises(KeyboardInterrupt):
        train(config, halves, stop_at(4), source=source())
    torch.manual_seed(99)
    train(config, halves, source=source(), resume=True)
    last = [latest_checkpoint(folder / "run")[1] for folder in (whole, halves)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_a_batch_is_of_windows_and_the_same_however_it_is_cut():
    """Whole pictures are what is held out."""
    large = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1) * np.ones(
        (1, 3, WINDOW + 32, WINDOW + 32), np.uint8
    )
    task = AutoencoderTask(tiny(augment="scan"), array_source("large", large[:8], large[8:]))
    whole = task.take(3, 0, 8)
    assert (whole.x0 - AutoencoderTask(tiny(), task.pictures).take(3, 0, 8).x0).abs().mean() > 0.01
    assert (whole.x0.shape, whole.eps.shape) == ((8, 3, WINDOW, WINDOW), (8, 2, WINDOW // 2, WINDOW // 2))
    pieces = [task.take(3, first, count) for first, count in ((0, 3), (3, 5))]
    for part in ("x0", "eps"):
        assert torch.equal(getattr(whole, part), torch.cat([getattr(piece, part) for piece in pieces]))
    assert task.manifest()["sample_shape"] == (3, WINDOW + 32, WINDOW + 32)
