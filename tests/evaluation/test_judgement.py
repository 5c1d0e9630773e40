"""All that can be said of translations, and nothing that cannot."""

import numpy as np
import pytest

from ddib_fed.evaluation.folder import per_picture, tables
from ddib_fed.evaluation.judgement import Domain, judge
from ddib_fed.evaluation.structure import calibrate_by_chance
from tests.runs.picture_folders import blocks


@pytest.fixture(scope="module")
def whole():
    """Truth is the negative; the translation is nearly that."""
    source = blocks(12)
    truth = -source
    translated = np.clip(0.8 * truth + 0.1 * blocks(12, seed=1), -1, 1)
    thresholds = calibrate_by_chance(source, blocks(12, seed=5)).model_copy(update={"edge_correlation": 0.99})
    domain = Domain(-blocks(16, seed=2), blocks(16, seed=3))
    return judge(
        translated,
        source=source,
        truth=truth,
        back=np.clip(source + 0.02, -1, 1),
        domain=domain,
        thresholds=thresholds,
        clusters=np.arange(12) // 2,
    )


@pytest.mark.slow
def test_the_translation_beats_what_knows_nothing_and_not_the_fitted_map(whole):
    own, others = whole["paired"]["psnr"]["mean"], whole["baselines"]
    assert set(others) == {"source", "histogram", "mean", "random", "colour_map"}
    assert own > max(others[name]["psnr"] for name in ("source", "histogram", "mean", "random"))
    assert others["colour_map"]["psnr"] > own


@pytest.mark.slow
def test_partners_are_found_and_chance_stands_beside(whole):
    found = whole["retrieval"]
    assert found["translated"]["pixels"]["found"] == 1.0
    assert found["translated"]["features"]["count"] == 12
    assert found["source"]["pixels"]["found"] < 0.5
    assert found["source"]["pixels"]["chance"] == 5 / 12


def test_each_picture_has_its_row_and_sections_have_their_spread(whole):
    rows = whole["pictures"]
    assert len(rows) == 12
    for section, key in (("paired", "psnr"), ("paired", "ssim"), ("structure", "edge_correlation")):
        each = np.array([row[key] for row in rows])
        assert whole[section][key]["min"] == each.min()
        assert whole[section][key]["median"] == np.median(each)
    assert whole["cycle"]["psnr"]["median"] == pytest.approx(np.median([row["cycle_psnr"] for row in rows]))
    assert whole["structure"]["doubtful"] == sum(row["doubtful"] for row in rows) > 0


def test_every_mean_share_and_distance_has_its_interval(whole):
    bounds = whole["intervals"]
    assert bounds["clusters"] == 6
    figures = [(whole["paired"][key]["mean"], bounds["translated"][key]) for key in ("psnr", "ssim", "mse")]
    figures += [
        (means[key], bounds["baselines"][name][key])
        for name, means in whole["baselines"].items()
        for key in ("psnr", "ssim", "mse")
    ]
    figures += [
        (one["found"], bounds["retrieval"][name][by])
        for name, found in whole["retrieval"].items()
        for by, one in found.items()
    ]
    figures += [
        (value, bounds["features"][name][key])
        for name, found in whole["features"]["distance"].items()
        for key, value in found.items()
    ]
    assert len(figures) > 40
    for value, interval in figures:
        assert interval["value"] == pytest.approx(value)
        assert interval["low"] <= value <= interval["high"]
    assert any("[" in str(cell) for table in tables(whole) for row in table.rows for cell in row)
    assert all(
        "6 clusters" in table.note for table in tables(whole) if table.title != "Round trip and structure"
    )


def test_tables_have_every_section_and_the_worst_picture_comes_first(whole):
    titles = [table.title for table in tables(whole)]
    assert titles == [
        "Translation and truth",
        "Round trip and structure",
        "True partner among the 5 nearest of 12",
        "Feature distance to the target domain",
    ]
    assert all(len(row) == len(table.columns) for table in tables(whole) for row in table.rows)
    rows = per_picture(whole)
    figures = ("cycle_psnr", "psnr", "ssim", "edge_correlation", "mutual_information")
    assert any(rows[0][key] == min(row[key] for row in rows) for key in figures)


def test_without_anything_beside_there_is_nothing_to_say():
    report = judge(blocks(5))
    assert report["count"] == 5
    for section in ("paired", "cycle", "structure", "baselines", "retrieval", "features"):
        assert report[section] is None
    assert tables(report) == []


def test_with_sources_alone_structure_is_measured():
    report = judge(-blocks(3), source=blocks(3))
    assert report["structure"]["edge_correlation"]["min"] == pytest.approx(1.0)
    assert report["structure"]["doubtful"] is None
    assert report["structure"]["chance"]["edge_correlation"] < 0.9


def test_one_picture_is_enough_for_its_own_figures():
    report = judge(blocks(1), source=blocks(1), truth=blocks(1))
    assert report["paired"]["ssim"]["mean"] == pytest.approx(1.0)
    assert report["retrieval"] is None
    assert report["structure"]["chance"] is None
