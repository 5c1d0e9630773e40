"""`ddib_fed.evaluate`: what the target's autoencoder makes of the baselines."""

import json

import numpy as np
import pytest
from PIL import Image

import ddib_fed
from ddib_fed import Model, Request, Settings, datasets
from ddib_fed.testing import ddib

SOURCE, TARGET = "satellite-256-as-relief-256", "relief-256"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sources, their true partners, and translations under the calibration that ships."""
    place = tmp_path_factory.mktemp("evaluate")
    for domain, name in (("satellite-256", "in"), ("relief-256", "truth")):
        (place / name).mkdir()
        for number, picture in enumerate(datasets.shipped_bytes(domain, ["test"])[0][:2]):
            Image.fromarray(picture.transpose(1, 2, 0)).save(place / name / f"{number}.png")
    client = Model.open(SOURCE).to(Model.open(TARGET))
    request = Request(Settings(evaluations=2), calibration=SOURCE)
    run = ddib_fed.Run(client, client.target, place / "out", request)
    run.open([place / "in"])
    run.read()
    run.translate()
    run.conclude()
    return place


def test_a_model_of_latents_gives_the_map_alone_and_the_truth_through_its_autoencoder(folders):
    figures = ddib_fed.evaluate(
        folders / "out", source=folders / "in", truth=folders / "truth", target=TARGET
    )
    ways, target = figures.report["ways"], Model.open(TARGET)
    assert [*ways][:2] == ["translated", "map"]
    truth, through = figures.translations.truth, figures.through
    np.testing.assert_array_equal(through["truth_through"], target.reconstruct(truth))
    assert 25.0 < ways["truth_through"]["psnr"]["value"] < 60.0
    assert ways["map_through"]["ssim"]["value"] != ways["map"]["ssim"]["value"]
    figures.write_page(folders / "page.html", "Translations")
    page = (folders / "page.html").read_text()
    assert "the truth, through the target&#39;s autoencoder" in page
    assert "mapped, through the autoencoder" in page


def test_without_a_truth_the_map_alone_has_its_line_and_a_model_of_pixels_adds_none(folders):
    domain = np.concatenate([figures_of(folders / "truth")] * 2)
    given = {"source": folders / "in", "domain": domain}
    assert [*ddib_fed.evaluate(folders / "out", target=TARGET, **given).through] == ["map_through"]
    plain = Model.open("relief")
    assert ddib_fed.evaluate(folders / "out", target=plain, **given).through == {}
    drawn = plain.sample(1, Settings(evaluations=2))
    np.testing.assert_array_equal(plain.reconstruct(drawn), drawn)


def test_the_command_takes_the_targets_model(folders):
    line = ["evaluate", folders / "out", "--source", folders / "in", "--truth", folders / "truth"]
    report = json.loads(ddib(*line, "--target", TARGET, "--format", "json"))
    assert {"map_through", "truth_through"} <= report["ways"].keys()


def figures_of(folder):
    levels = [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(folder.iterdir())]
    return np.stack(levels) / np.float32(127.5) - 1
