"""A classifier of noisy pictures learns the classes, and is resumed like every other run."""

import pytest
from pydantic import ValidationError

from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from ddib_fed.training.sources import array_source
from tests.training.pictures.examples import blobs


@pytest.fixture
def dark_and_bright():
    """Dark pictures are of class 0, bright ones of class 1."""
    pixels = blobs(40)
    pixels[1::2] = 255 - pixels[1::2]
    labels = [number % 2 for number in range(40)]
    parts = {"labels": labels[:30], "held_out_labels": labels[30:], "classes": ("dark", "bright")}
    return array_source("tones", pixels[:30], pixels[30:], **parts)


@pytest.fixture
def config():
    return TrainConfig(
        kind="classifier",
        network={"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1},
        classes="given",
        batch=16,
        steps=30,
        warmup=2,
        learning_rate=3e-3,
        ema=0.8,
        checkpoint_every=15,
        dtype="float32",
    )


@pytest.mark.slow
def test_it_learns_classes_that_can_be_told_apart(config, dark_and_bright, tmp_path):
    """Chance is log 2 = 0.69; at the noise end nothing can be told."""
    made = train(config, tmp_path, source=dark_and_bright).manifest
    assert made.training.figures["held_out_loss"] < 0.5
    assert (made.role, made.num_classes, made.classes) == ("classifier", 2, ("dark", "bright"))
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"loss.png"}


@pytest.mark.slow
def test_stopped_and_gone_on_with_it_is_the_same(config, dark_and_bright, tmp_path):
    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    short = config.model_copy(update={"steps": 4})
    whole = train(short, tmp_path / "whole", source=dark_and_bright)
    with pytest.raises(KeyboardInterrupt):
        train(short, tmp_path / "halves", stop, source=dark_and_bright)
    halves = train(short, tmp_path / "halves", source=dark_and_bright, resume=True)
    assert halves.manifest.weights_sha256 == whole.manifest.weights_sha256


@pytest.mark.parametrize("change", [{"classes": None}, {"label_dropout": 0.1}])
def test_what_a_classifier_cannot_be_told_is_refused(config, change):
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(config.model_dump() | change)
