"""Two photographs exchange colours: models of their own, pictures at full size, figures that hold."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import AlreadyExists, ExitCode, StateConflict, UsageError
from ddib_fed.paper.colours import ColourSettings, palette, photograph, transfer

pytestmark = pytest.mark.slow

QUICK = ColourSettings(train_steps=300, width=32, batch=256, solver=SolverSettings(evaluations=12), both=True)


def cloud(seed, mean, spread, size=(24, 36)):
    rng = np.random.default_rng(seed)
    values = np.array(mean) + rng.normal(size=(*size, 3)) * np.array(spread)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def umask():
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


PIXELS = {"warm": cloud(1, (190, 120, 70), (20, 14, 10)), "cold": cloud(2, (60, 110, 160), (10, 14, 22))}


@pytest.fixture(scope="module")
def photos():
    return [photograph(name, pixels) for name, pixels in PIXELS.items()]


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("colours")
    return out, transfer(*photos, QUICK, out)


def test_the_picture_has_its_own_size_and_the_colours_of_the_other(made):
    out, _ = made
    got = read_image(out / "warm-to-cold.png").pixels
    assert got.shape == PIXELS["warm"].shape
    want = PIXELS["cold"].reshape(-1, 3)
    assert np.abs(got.reshape(-1, 3).mean(axis=0) - want.mean(axis=0)).max() < 6
    assert np.abs(got.reshape(-1, 3).std(axis=0) - want.std(axis=0)).max() < 6


def test_the_models_of_the_colours_are_private_and_the_pictures_are_not(made):
    """A model of a photograph's colours is a model; the pictures are what was asked for."""
    out, _ = made
    assert (out / "models").stat().st_mode & 0o777 == 0o700
    weights = list((out / "models").rglob("*.safetensors"))
    assert weights
    assert {path.stat().st_mode & 0o777 for path in weights} == {0o600}
    assert (out / "warm-to-cold.png").stat().st_mode & 0o777 == 0o666 & ~umask()


def test_between_gaussians_it_is_near_the_linear_map(made):
    """The baseline that is exact here; the content itself is thirty times further away."""
    for direction in made[1]["directions"]:
        assert direction["mse"]["linear"] < 0.015
        assert direction["mse"]["content"] > 0.3
        assert direction["colours"]["ddib"] < 0.2 * direction["colours"]["content"]


def test_what_was_moved_comes_back(made):
    for direction in made[1]["directions"]:
        assert direction["round_trip"]["median"] < 1
        assert direction["latent"]["std"] == pytest.approx(1, abs=0.15)


def test_every_picture_is_there_and_the_report_says_so(made):
    out, report = made
    assert json.loads((out / "report.json").read_text()) == report
    for stem in ("warm-to-cold", "cold-to-warm"):
        assert all((out / f"{stem}{tail}.png").exists() for tail in ("", "-emd", "-sinkhorn", "-linear"))
    assert {d["picture"] for d in report["directions"]} == {"warm-to-cold.png", "cold-to-warm.png"}
    assert not list((out / "models").glob("*.npy"))


def test_the_figures_are_those_of_the_pictures(made):
    """MSE over the pixels of the written files, up to their rounding to whole levels."""
    out, report = made
    first, second = (
        read_image(out / f"warm-to-cold{tail}.png").pixels / 127.5 - 1 for tail in ("", "-linear")
    )
    assert report["directions"][0]["mse"]["linear"] == pytest.approx(np.mean((first - second) ** 2), abs=5e-5)


def test_models_are_used_again_by_the_same_pixels_alone(photos, made):
    out, report = made
    with pytest.raises(AlreadyExists):
        palette(photos[0], QUICK, out)
    with pytest.raises(StateConflict):
        palette(photos[0], replace(QUICK, seed=1), out, resume=True)
    again = palette(photos[0], QUICK, out, resume=True)
    assert again.bundle.digest == report["photographs"][0]["model"]["digest"]
    other = photograph("warm", PIXELS["warm"][::-1, :, ::-1])
    assert (
        palette(other, replace(QUICK, train_steps=2), out, resume=True).bundle.digest != again.bundle.digest
    )


def test_the_same_name_twice_is_refused(photos, tmp_path):
    with pytest.raises(UsageError):
        transfer(photos[0], photos[0], QUICK, tmp_path)


@pytest.mark.long
def test_the_command_gives_a_16_bit_picture_other_colours(tmp_path, capsys):
    """From files to a picture of the same bits and size; a second call keeps what is there."""
    deep = (PIXELS["warm"].astype(np.uint16) << 8) + 77
    (tmp_path / "a.png").write_bytes(encode_png(deep))
    (tmp_path / "b.png").write_bytes(encode_png(PIXELS["cold"]))
    call = ["colours", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out", str(tmp_path / "o")]
    call += ["--space", "lab", "--train-steps", "3", "--steps", "4", "--no-baselines"]
    assert run(call) == ExitCode.OK
    written = read_image(tmp_path / "o" / "a-to-b.png").pixels
    assert (written.dtype, written.shape) == (np.uint16, deep.shape)
    assert "MSE" in capsys.readouterr().out
    assert run(call) == ExitCode.CONFLICT
    assert run([*call, "--resume"]) == ExitCode.OK


def test_the_command_names_a_grey_picture(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(encode_png(np.repeat(PIXELS["warm"][:, :, :1], 3, axis=2)))
    assert run(["colours", str(tmp_path / "a.png"), "sklearn:china", "--out", str(tmp_path / "o")]) == 3
    assert "line" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
