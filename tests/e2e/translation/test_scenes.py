"""Pictures larger than the models', through two nodes: in tiles, at a size that both nodes agree on, or fitted."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddib_fed.cli.main import run
from ddib_fed.datasets import cut_scene
from ddib_fed.errors import ExitCode
from tests.e2e.harness import two_nodes

pytestmark = pytest.mark.e2e

SCENE = cut_scene("satellite", 3, (330, 378), detail=1).transpose(1, 2, 0)
TRUTH = cut_scene("relief", 3, (330, 378), detail=1).transpose(1, 2, 0)
Translate = Callable[..., int]


def unit(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.float64) / 127.5 - 1


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(4 / np.square(first - second).mean()))


def record(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def translate() -> Iterator[Translate]:
    """Runs `ddib translate FILES --to south.example/relief --cycle --evaluations 24` with what else is given."""
    with (
        tempfile.TemporaryDirectory(prefix="ddib-scenes-") as name,
        two_nodes(Path(name), "satellite", "relief") as pair,
    ):
        given = ("--to", pair.to, "--cycle", "--evaluations", 24, "--profile", pair.profile)
        yield lambda *words: run(["translate", *map(str, (*words, *given))])


def test_a_larger_picture_is_translated_in_tiles_at_its_own_size(translate, tmp_path, capsys):
    """Detail that a fitted picture loses is there, and the round trip is measured at the picture's own size."""
    Image.fromarray(SCENE).save(tmp_path / "coast.png")
    Image.fromarray(SCENE[:32, :32]).save(tmp_path / "small.png")
    assert translate(tmp_path / "coast.png", tmp_path / "small.png", "--out", tmp_path / "out") == 0
    found = record(tmp_path / "out" / "coast.json")
    assert found["study"]["tiles"]["count"] == len(found["study"]["items"]) == 8
    assert (found["picture"]["height"], found["picture"]["width"]) == SCENE.shape[:2]
    made, back = (unit(tmp_path / "out" / f"coast{part}.png") for part in ("", ".returned"))
    assert made.shape == SCENE.shape
    given = SCENE.astype(np.float64) / 127.5 - 1
    assert found["picture"]["cycle_psnr"] == pytest.approx(psnr(back, given), abs=0.1)
    assert found["doubtful"] is ("cycle_psnr" in found["doubts"]) is (psnr(back, given) < 30)
    said = capsys.readouterr().out
    assert f"round trip {found['picture']['cycle_psnr']:.1f} dB at its own 75x48 pixels" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 of 2 files are translated" in page
    assert translate(tmp_path / "coast.png", "--tile", "none", "--out", tmp_path / "fitted") == 0
    steps = {
        way: np.abs(np.diff(unit(tmp_path / way / "coast.png"), axis=1)).mean() for way in ("out", "fitted")
    }
    truth = np.abs(np.diff(TRUTH / 127.5, axis=1)).mean()
    assert steps["fitted"] < 0.65 * truth < 0.9 * truth < steps["out"]


def test_a_fitted_picture_says_so_first_and_its_round_trip_is_that_of_its_own_size(
    translate: Translate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of too many tiles: in the terminal before all else, in the record and at the head of the page."""
    huge = Image.fromarray(SCENE).resize((1200, 900), Image.Resampling.LANCZOS)
    for name in ("one.png", "two.png"):
        huge.save(tmp_path / name)
    assert translate(tmp_path / "one.png", tmp_path / "two.png", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out.splitlines()
    first = "2 of 2 pictures were not translated at their own size; one.png was computed at 32 x 32 pixels"
    assert said[0].startswith(f"{first}, not at its own 1200 x 900, and enlarged: 1,055 pixels became one")
    assert said[1] == "  at their own size, in tiles: --tile PIXELS"
    picture = record(tmp_path / "out" / "one.json")["picture"]
    assert (picture["fitted_height"], picture["fitted_width"]) == (32, 32)
    given = np.asarray(huge).astype(np.float64) / 127.5 - 1
    measured = psnr(unit(tmp_path / "out" / "one.returned.png"), given)
    assert picture["cycle_psnr"] == pytest.approx(measured, abs=0.1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index(first) < page.index("2 of 2 files are translated")


def test_refused_tiles_are_background_with_the_reason_and_a_mask(translate, tmp_path, capsys):
    """The rest of the picture is there; the command ends with what was left out."""
    broken = SCENE.copy()
    blocks = np.random.default_rng(0).integers(0, 2, (6, 5, 3), dtype=np.uint8) * 255
    broken[:, 40:] = np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:, :35]
    Image.fromarray(broken).save(tmp_path / "coast.png")
    assert translate(tmp_path / "coast.png", "--out", tmp_path / "out") == ExitCode.LEFT_OUT
    found = record(tmp_path / "out" / "coast.json")
    refused = [item for item in found["study"]["items"] if item.get("refused")]
    assert 0 < len(refused) < len(found["study"]["items"])
    assert {item["why"].rpartition(" ")[2] for item in refused} == {"[LATENT_NOT_GAUSSIAN]"}
    mask = np.asarray(Image.open(tmp_path / "out" / "coast.mask.png"))
    assert mask.shape == SCENE.shape[:2]
    assert set(np.unique(mask)) == {0, 255}
    assert (unit(tmp_path / "out" / "coast.png")[mask == 0] == -1).all()
    said = capsys.readouterr()
    assert f"{len(refused)} of 8 items were refused, and are background" in said.out
    share = 100 * (mask == 0).mean()
    assert f"{share:.1f} % of it was not translated and is background: coast.mask.png" in said.out
