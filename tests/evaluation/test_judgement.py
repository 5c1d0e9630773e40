"""All that can be said of translations, and nothing that cannot; baselines need no network."""

import numpy as np
import pytest

from ddib_fed.evaluation.judgement import (
    histogram_match,
    judge,
    tables,
    worst_first,
)
from ddib_fed.evaluation.metrics import calibrate_by_chance, mse
from ddib_fed.models.units import Normalisation
from tests.runs.picture_folders import blocks
from tests.runs.tiny_models import pictures


@pytest.fixture(scope="module")
def whole():
    """Truth is the negative; the translation is nearly that."""
    source = blocks(12)
    truth = -source
    thresholds = calibrate_by_chance(source, blocks(12, seed=5), units=Normalisation()).model_copy(
        update={"edge_correlation": 0.99}
    )
    return judge(
        np.clip(0.8 * truth + 0.1 * blocks(12, seed=1), -1, 1),
        source=source,
        truth=truth,
        back=np.clip(source + 0.02, -1, 1),
        domain=-blocks(16, seed=2),
        thresholds=thresholds,
        clusters=np.arange(12) // 2,
    )


@pytest.mark.slow
def test_the_translation_beats_what_knows_nothing(whole):
    psnr = {name: found["psnr"]["value"] for name, found in whole["ways"].items() if "psnr" in found}
    own = psnr.pop("translated")
    assert set(psnr) == {"source", "histogram", "mean", "random"}
    assert own > max(psnr.values())


def test_each_picture_has_its_row_and_each_figure_its_spread(whole):
    rows = whole["pictures"]
    for key in ("psnr", "ssim", "edge_correlation", "cycle_psnr"):
        each = np.array([row[key] for row in rows])
        assert whole["spread"][key]["min"] == each.min()
        assert whole["spread"][key]["median"] == np.median(each)
    assert whole["doubtful"] == sum(row["doubtful"] for row in rows) > 0


def test_every_mean_share_and_distance_has_its_interval(whole):
    figures = [
        one
        for name, found in whole["ways"].items()
        if name not in {"chance", "floor"}
        for one in found.values()
    ]
    assert len(figures) > 20
    assert all(one["low"] <= one["value"] <= one["high"] for one in figures)


def test_tables_have_every_section(whole):
    made = tables(whole)
    assert [table.title for table in made] == [
        "Translation and truth",
        "Round trip and structure",
        "True partner among the 5 nearest",
        "Feature distance to the target domain",
    ]
    assert all(len(row) == len(table.columns) for table in made for row in table.rows)
    assert all("6 clusters" in table.note for table in made if table.title != "Round trip and structure")
    assert made[3].rows[-1][0] == "real pictures among themselves"
    assert made[2].rows[-1][0] == "by chance"


def test_what_is_not_given_is_not_in_the_report():
    report = judge(blocks(5))
    assert (report["count"], report["ways"], report["spread"], report["doubtful"]) == (5, {}, {}, None)
    assert tables(report) == []
    report = judge(blocks(1), source=blocks(1), truth=blocks(1))  # one picture is enough for its own figures
    assert report["spread"]["ssim"]["mean"] == pytest.approx(1.0)
    assert report["spread"]["edge_correlation"]["chance"] is None
    assert "partner_pixels" not in report["ways"]["translated"]


def test_a_monotone_tone_curve_is_found_without_pairs():
    source, unseen = pictures(60, channels=3), pictures(60, channels=3, seed=1)
    new = pictures(4, channels=3, seed=2)
    assert mse(histogram_match(new, source, unseen**3), new**3).max() < 1e-3


def row(cycle, edges, **more):
    return {"cycle_psnr": cycle, "edge_correlation": edges, **more}


def test_doubtful_pictures_come_first_then_those_with_one_bad_figure():
    """By the round trip alone, the best returned of the first four would be last; NaN is the worst figure."""
    rows = [row(38.0, 0.5), row(39.0, 0.6), row(44.0, 0.02), row(33.0, 0.7), row(40.0, 0.5, doubtful=True)]
    assert worst_first(rows)[:3] == [rows[4], rows[2], rows[3]]
    rows = [row(40.0, 0.4), row(float("nan"), 0.5), row(38.0, 0.6)]
    assert worst_first(rows)[0] is rows[1]
    rows = [row(40.0, None), row(39.0, 0.1), row(38.0, 0.9)]  # a figure that some lack does not count
    assert worst_first(rows) == rows[::-1]
    assert worst_first([]) == []
