"""What a run on pictures begins with, what its batches hold, and what is measured of what it draws."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from ddib_fed.calibration.record import CalibratedSide
from ddib_fed.data.folder import expand
from ddib_fed.errors import (
    CalibrationExpired,
    CalibrationForeign,
    CalibrationUnits,
    SettingsInvalid,
    StateConflict,
)
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.networks.spectrum import cosines
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures import NEAR, PictureTask, augmented, nearness, open_start
from ddib_fed.training.run import train
from ddib_fed.training.sources import array_source
from ddib_fed.training.trainer import Trainer, World
from tests.calibration.examples import calibration
from tests.training.examples import TINY_NETWORK, blobs, spots_source, stop_at, tiny_pictures


def batches(source, **change):
    config = tiny_pictures(**change)
    return PictureTask(config, source, open_start(config, source)._replace(normal=Normalisation()))


def test_every_picture_comes_once_an_epoch_within_a_step_of_its_numbers():
    """The order is another one in each epoch; noise fills the quantisation step."""
    numbers = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1) * np.ones((1, 1, 8, 8), np.uint8)
    made = batches(array_source("numbers", numbers, numbers[:1]), flip=False)
    steps = [(made.take(step, 0, 8).x0 + 1) * 127.5 for step in range(4)]
    seen = [step.mean((1, 2, 3)).round().int().tolist() for step in steps]
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(16))] * 2
    assert epochs[0] != epochs[1]
    off = (steps[0] - steps[0].round()).abs()
    assert 0.45 < float(off.max()) <= 0.5


@pytest.mark.parametrize("colours", ["rgb", "opponent"])
def test_the_spectrum_is_that_of_the_pictures_as_the_network_gets_them(spots, colours):
    """Measured before the first step, of normalised pictures; the averages, and so the bundle, have it too."""
    config, source = tiny_pictures(colours=colours, flip=False), replace(spots, quantum=0.0)
    task = PictureTask(config, source, open_start(config, source))
    one = Trainer(task, World(0, 1, torch.device("cpu")))
    x = torch.from_numpy(task.normal.apply(expand(spots.train).astype(np.float64))).double()
    spectrum = one.network.spectrum
    assert torch.allclose(spectrum.mean.double(), x.mean(0), atol=2e-3)
    variance = cosines(x).var(0, correction=0)
    assert torch.allclose(spectrum.log_variance.double().exp(), variance, rtol=1e-2, atol=1e-4)
    one.advance()
    assert torch.equal(one.averaged().spectrum.log_variance, spectrum.log_variance)


def test_copies_of_training_pictures_are_noticed_and_new_pictures_are_not(spots):
    copies = spots.train[:8].astype(np.float32) / 127.5 - 1
    fresh = spots.held_out.astype(np.float32) / 127.5 - 1
    for drawn, near in ((copies, True), (np.ascontiguousarray(copies[..., ::-1]), True), (fresh, False)):
        own, held_out = nearness(spots, drawn, flip=True)
        assert (own < NEAR * held_out) == near


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A model of spots whose last layer is no longer zero."""
    out = tmp_path_factory.mktemp("begun")
    network = {**TINY_NETWORK, "patch": 2, "global_mean": True, "spectral": False}
    train(tiny_pictures(network=network, steps=3, warmup=0, ema=0.0), out, source=spots_source())
    return out


def first_network(config, source):
    return PictureTask(config, source, open_start(config, source)).initial_network()


def test_initial_weights_are_taken_and_classes_that_are_new_start_fresh(begun, spots):
    for change in ({"network": {"model_channels": 64}}, {"predict": "eps"}):
        with pytest.raises(SettingsInvalid, match="in the initial weights"):
            open_start(tiny_pictures(**{"network": {}, "init": begun, **change}), spots)
    bundle = load_bundle(begun)
    plain = first_network(tiny_pictures(network={}, init=begun), spots)
    assert all(torch.equal(value, bundle.state[name]) for name, value in plain.state_dict().items())
    config = tiny_pictures(network={}, init=begun, classes="given")
    network = first_network(config, spots).eval()
    with torch.no_grad():
        answer = network(torch.randn(2, 3, 8, 8), torch.tensor([0.5]), y=torch.tensor([0, 1]))
    assert answer.shape == (2, 3, 8, 8)
    assert float(answer.abs().max()) > 0.0


@pytest.mark.parametrize(
    ("network", "said", "hint"),
    [
        ({"channel_mult": (1, 1, 1, 1), "patch": 2}, "divide", "a size that divides by 16"),
        ({"in_channels": 1}, "in_channels follows from the pictures", "leave in_channels out"),
        ({"channel_mult": (0,)}, "greater than 0", "leave out --set of the network's fields"),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_the_reason_and_what_helps(spots, network, said, hint):
    with pytest.raises(SettingsInvalid, match=said) as caught:
        open_start(tiny_pictures(network={**TINY_NETWORK, **network}), spots)
    assert hint in caught.value.hint


@pytest.mark.slow
def test_a_classifier_learns_classes_that_can_be_told_apart(tmp_path):
    """Chance is log 2 = 0.69; at the noise end nothing can be told."""
    pixels, labels = blobs(40), np.arange(40) % 2
    pixels[1::2] = 255 - pixels[1::2]
    parts = {"labels": labels[:30], "held_out_labels": labels[30:], "classes": ("dark", "bright")}
    source = array_source("tones", pixels[:30], pixels[30:], **parts)
    config = tiny_pictures(
        kind="classifier", classes="given", flip=False, batch=16, steps=30, learning_rate=3e-3, ema=0.8
    )
    made = train(config, tmp_path, source=source).manifest
    assert made.training.figures["held_out_loss"] < 0.5
    assert (made.role, made.num_classes, made.classes) == ("classifier", 2, ("dark", "bright"))
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"loss.png"}


FLIP = ChannelMap(curve=((-3.0, 2.0), (6.0, -2.5)))
SWAP = ChannelMap(rotation=((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


def tone(units, **changed):
    """From spots to dots."""
    source = CalibratedSide(domain="spots", units=units)
    target = CalibratedSide(domain="dots", units=Normalisation(std=0.1))
    return calibration(**{"kind": "tone", "source": source, "target": target, "map": FLIP, **changed})


def grey_spots():
    return replace(spots_source(1), labels=None, classes=())


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A grey model of spots, softened."""
    out = tmp_path_factory.mktemp("grey")
    network = {**TINY_NETWORK, "patch": 2, "spectral": True}
    train(tiny_pictures(network=network, steps=2, soften_sigma=0.07), out, source=grey_spots())
    return out


def calibrated(grey, tmp_path, made, **fields):
    file = tmp_path / f"{len(list(tmp_path.glob('*.json')))}.json"
    made.save(file)
    usual = {"batch": 8, "steps": 4, "samples": 1, "dtype": "float32"}
    return TrainConfig(kind="pictures", init=grey, calibration=file, **{**usual, **fields})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"kind": "rotation", "map": SWAP}, SettingsInvalid, "no model is trained"),
        ({"expires": datetime(2026, 2, 1, tzinfo=UTC)}, CalibrationExpired, "2026-02-01"),
        ({"source": CalibratedSide(domain="spots", units=Normalisation(std=0.2))}, CalibrationUnits, "does not have"),
        ({"source": CalibratedSide(domain="rings", units=Normalisation(std=0.2))}, CalibrationForeign, "rings"),
    ],
    ids=["rotation", "expired", "units", "foreign"],
)  # fmt: skip
def test_a_calibration_that_is_not_the_runs_is_refused(grey, tmp_path, change, error, says):
    made = tone(load_bundle(grey).manifest.normalisation, **change)
    with pytest.raises(error, match=says) as refused:
        open_start(calibrated(grey, tmp_path, made), grey_spots())
    assert refused.value.hint


@pytest.mark.slow
def test_a_calibrated_run_resumes_where_it_was_stopped_and_not_with_another_map(grey, tmp_path):
    """Its spectrum is that of mapped pictures; softening and domain stay those of the initial model."""
    plain, source = load_bundle(grey), replace(grey_spots(), name="a-folder")
    units = plain.manifest.normalisation
    config = calibrated(grey, tmp_path, tone(units))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "made", stop_at(2), source=source)
    made = train(config, tmp_path / "made", source=source, resume=True)
    assert made.manifest.normalisation == units.model_copy(update={"calibrated": FLIP})
    assert (made.manifest.soften_sigma, made.manifest.domain) == (0.07, "spots")
    means = [float(bundle.state["spectrum.mean"].mean()) for bundle in (plain, made)]
    assert np.sign(means[0]) != np.sign(means[1]) or abs(means[0] - means[1]) > 0.1
    other = tone(units, map=ChannelMap(curve=((-3.0, 2.1), (6.0, -2.5))))
    with pytest.raises(StateConflict):
        train(calibrated(grey, tmp_path, other), tmp_path / "made", source=source, resume=True)


def test_a_picture_is_changed_by_its_number_alone_and_a_mask_stays_one() -> None:
    """A resumed run sees the same pictures, however a step is cut; black stays black and nothing is saturated."""
    x = np.full((4, 1, 32, 32), -1.0, np.float32)
    x[:, :, 8:24, 8:24] = np.random.default_rng(0).uniform(-0.5, 0.9, (4, 1, 16, 16))
    scans = tiny_pictures(augment="scan", seed=3)
    whole = augmented(x, scans, 7, 0)
    np.testing.assert_array_equal(whole[2:], augmented(x[2:], scans, 7, 2))
    assert (np.abs(whole - x).mean((1, 2, 3)) > 0.02).all()
    assert (np.abs(whole - augmented(x, scans, 8, 0)).mean((1, 2, 3)) > 0.02).all()
    assert (whole[:, :, :3] == -1.0).all()
    assert (whole == 1.0).mean() < 0.01
    x[:, :, 8:24, 8:24] = 0.25
    shaped = augmented(x, tiny_pictures(augment="shape", seed=3), 7, 0)  # Hounsfield units stay
    assert (np.abs(shaped[:, :, 13:19, 13:19] - 0.25) < 1e-5).all()
    assert ((shaped - x) != 0).any((1, 2, 3)).all()
    with pytest.raises(SettingsInvalid, match="volumes"):
        augmented(x[:, :, None], scans, 7, 0)
