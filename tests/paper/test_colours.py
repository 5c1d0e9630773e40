"""A photograph takes the colours of another by models of their colours; what has no colours is refused."""

import json

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.errors import ExitCode, FileMissing, InputError
from ddib_fed.paper.colours import open_photograph, photograph, transfer


def noise(dtype=np.uint8, size=(20, 30, 3)):
    return np.random.default_rng(3).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_come_back_to_the_very_pixels_and_are_clipped(dtype):
    photo = photograph("noise", noise(dtype))
    back = photo.paint(photo.rgb())
    assert back.dtype == dtype
    assert np.array_equal(back, noise(dtype))
    assert photo.paint(np.full((len(photo.colours), 3), 1.3)).min() == np.iinfo(dtype).max


GREY = np.repeat(noise(size=(20, 30, 1)), 3, axis=2)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (GREY, "line"),
        (GREY[:, :, :1], "one channel"),
        (np.dstack([noise()[:, :, :2], np.full((20, 30, 1), 40, np.uint8)]), "plane"),
        (np.full((20, 30, 3), 90, np.uint8), "point"),
        (noise(size=(4, 4, 3)), "16 colours"),
        (noise().astype(np.float32), "float32"),
    ],
)
def test_a_picture_without_colours_is_refused_with_the_reason(pixels, said):
    with pytest.raises(InputError, match=said) as caught:
        photograph("it", pixels)
    assert caught.value.hint


def test_files_are_opened_or_named(tmp_path):
    pixels = noise(np.uint16)
    (tmp_path / "my photo (1).png").write_bytes(encode_png(pixels))
    photo = open_photograph(tmp_path / "my photo (1).png")
    assert (photo.name, photo.top) == ("my-photo-1", 65_535)
    assert np.array_equal(photo.paint(photo.rgb()), pixels)
    with pytest.raises(FileMissing, match=r"b\.png"):
        open_photograph(tmp_path / "b.png")


def cloud(seed, mean, spread, size=(24, 36)):
    rng = np.random.default_rng(seed)
    values = np.array(mean) + rng.normal(size=(*size, 3)) * np.array(spread)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


PIXELS = {"warm": cloud(1, (190, 120, 70), (20, 14, 10)), "cold": cloud(2, (60, 110, 160), (10, 14, 22))}
QUICK = {"steps": 120, "width": 32, "evaluations": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("colours")
    return out, transfer(*(photograph(name, pixels) for name, pixels in PIXELS.items()), out, **QUICK)


@pytest.mark.slow
def test_the_picture_has_its_own_size_and_the_colours_of_the_other(made):
    out, report = made
    got = read_image(out / "warm-to-cold.png").pixels
    assert got.shape == PIXELS["warm"].shape
    want = PIXELS["cold"].reshape(-1, 3)
    assert np.abs(got.reshape(-1, 3).mean(axis=0) - want.mean(axis=0)).max() < 6
    assert np.abs(got.reshape(-1, 3).std(axis=0) - want.std(axis=0)).max() < 6
    assert report["colours"]["ddib"] < 0.2 * report["colours"]["content"]
    assert json.loads((out / "report.json").read_text()) == report


@pytest.mark.slow
def test_the_command_gives_a_16_bit_picture_other_colours_and_names_a_grey_one(tmp_path, capsys):
    """From files to a picture of the same bits and size; a second call keeps what is there."""
    deep = (PIXELS["warm"].astype(np.uint16) << 8) + 77
    (tmp_path / "a.png").write_bytes(encode_png(deep))
    (tmp_path / "b.png").write_bytes(encode_png(PIXELS["cold"]))
    (tmp_path / "grey.png").write_bytes(encode_png(np.repeat(PIXELS["warm"][:, :, :1], 3, axis=2)))
    assert (
        run(["colours", str(tmp_path / "grey.png"), str(tmp_path / "b.png"), "--out", str(tmp_path / "o")])
        == 3
    )
    assert "line" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    call = ["colours", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--out", str(tmp_path / "o")]
    call += ["--steps", "3", "--evaluations", "4"]
    assert run(call) == ExitCode.OK
    written = read_image(tmp_path / "o" / "a-to-b.png").pixels
    assert (written.dtype, written.shape) == (np.uint16, deep.shape)
    assert "sliced-W2" in capsys.readouterr().out
    assert run(call) == ExitCode.CONFLICT
