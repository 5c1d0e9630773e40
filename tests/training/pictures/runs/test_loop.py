"""Microbatches change nothing but rounding and halve when memory runs out; copies of training pictures are noticed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddib_fed.data.folder import expand
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.spectrum import cosines
from ddib_fed.training import pictures as sheet
from ddib_fed.training.distributed import World
from ddib_fed.training.pictures import PictureTask
from ddib_fed.training.sources import array_source, open_source, open_start
from ddib_fed.training.trainer import Trainer
from tests.training.pictures.examples import spots_source
from tests.training.stepping import losses_of

ALONE = World(0, 1, torch.device("cpu"))


def trainer(config, source):
    settled = config.settled()
    return Trainer(PictureTask(settled, source, open_start(settled, source)), ALONE)


@pytest.mark.slow
def test_microbatches_change_nothing_but_rounding(tiny, spots):
    found = []
    for microbatch in (8, 3):
        one = trainer(tiny.model_copy(update={"microbatch": microbatch}), spots)
        found.append((losses_of(one, 4), torch.cat([p.detach().flatten() for p in one.network.parameters()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 1e-5


@pytest.mark.parametrize("colours", ["rgb", "opponent"])
def test_the_spectrum_is_that_of_the_pictures_as_the_network_gets_them(tiny, spots, colours):
    """Measured before the first step, of normalised pictures; the averages, and so the bundle, have it too."""
    one = trainer(tiny.model_copy(update={"colours": colours, "flip": False, "dequantise": False}), spots)
    x = one.task.normal.apply(expand(spots.train).astype(np.float64))
    found = cosines(torch.from_numpy(x).double())
    spectrum = one.network.spectrum
    assert torch.allclose(spectrum.mean.double(), torch.from_numpy(x).double().mean(0), atol=2e-3)
    assert torch.allclose(
        spectrum.log_variance.double().exp(), found.var(0, correction=0), rtol=1e-2, atol=1e-4
    )
    one.advance()
    assert torch.equal(one.averaged().spectrum.log_variance, spectrum.log_variance)


def test_networks_of_eps_and_grey_pictures_have_no_use_for_either(tiny, spots):
    """A spectrum is for v, opponent colours for colours."""
    network = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    eps = type(tiny)(**{**tiny.model_dump(), "predict": "eps", "network": network})
    assert trainer(eps, spots).network.spectrum is None
    with pytest.raises(SettingsInvalid, match="grey"):
        open_source(tiny.model_copy(update={"colours": "opponent"}), spots_source(channels=1))


SHORT_OF_MEMORY = """
import resource
import torch
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.trainer import Trainer
from ddib_fed.training.sources import open_start
from ddib_fed.training.pictures import PictureTask
from ddib_fed.training.distributed import World
from tests.training.pictures.examples import spots_source
torch.set_num_threads(1)
network = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "spectral": False}
config = TrainConfig(kind="pictures", network=network, batch=1024, microbatch=1024, steps=5).settled()
source = spots_source()
one = Trainer(PictureTask(config, source, open_start(config, source)), World(0, 1, torch.device("cpu")))
one.microbatch = 64
one.advance()
one.microbatch = 1024
for line in open("/proc/self/status"):
    if line.startswith("VmSize"):
        used = int(line.split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)
loss = one.advance()
print(one.microbatch, one.step, round(float(loss), 2), one.notes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory as Linux does")
@pytest.mark.timeout(600)
def test_when_memory_runs_out_the_microbatch_is_halved_and_the_step_still_taken():
    """In a process that may have 60 MiB more than it has."""
    command = [sys.executable, "-c", SHORT_OF_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[4], check=True)
    microbatch, step, loss, *notes = done.stdout.split()
    assert 1 <= int(microbatch) < 1024
    assert (step, float(loss)) == ("2", pytest.approx(1.0, abs=0.1))
    assert "out of memory with 1024 pictures at once: continuing with 512" in " ".join(notes)


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tiny, spots):
    one = trainer(tiny.model_copy(update={"learning_rate": 1e30, "clip": 1e30, "steps": 100}), spots)
    with pytest.raises(SettingsInvalid, match="after"):
        losses_of(one, 100)


def test_the_sheet_shows_the_pictures_in_rows(tmp_path):
    pictures = np.stack([np.full((1, 8, 8), value, np.float32) for value in (-1, 0, 1)])
    sheet.draw_sheet(pictures, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        scale = image.width // 18
        found = [image.getpixel((x * scale, y * scale)) for x, y in ((4, 4), (14, 4), (4, 14))]
    assert found == [0, 128, 255]


def test_copies_of_training_pictures_are_noticed_and_new_pictures_are_not(spots):
    copies = spots.train[:8].astype(np.float32) / 127.5 - 1
    fresh = spots.held_out.astype(np.float32) / 127.5 - 1
    assert "overfitting" in sheet.nearness(spots, copies, flip=True).warning
    assert "overfitting" in sheet.nearness(spots, np.ascontiguousarray(copies[..., ::-1]), flip=True).warning
    assert not sheet.nearness(spots, fresh, flip=True).warning


def test_faint_pictures_are_no_copies():
    """What a network draws at first is near to the mean, and so to every picture."""
    generator = np.random.default_rng(0)
    shapes = generator.uniform(-1, 1, (40, 1, 8, 8))
    weights = generator.normal(0, 0.05, (480, 40)) * generator.uniform(0.1, 1, (480, 1))
    made = np.tensordot(weights, shapes, 1).astype(np.float32)
    source = array_source("shapes", made[:400], made[400:])
    assert not sheet.nearness(source, made[400:] * np.float32(0.2), flip=True).warning
