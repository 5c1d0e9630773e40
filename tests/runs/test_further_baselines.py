"""Baselines of `ddib evaluate` from other pairs and from the target's model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.errors import InputError, ShapeMismatch
from ddib_fed.models.bundle import save_bundle
from ddib_fed.reports.folder import Folders, evaluate_folder, tables
from ddib_fed.runs import further_baselines
from ddib_fed.runs.further_baselines import FurtherBaselines
from ddib_fed.runs.supervised import supervised
from tests.runs.picture_folders import blocks, write
from tests.runs.tiny_models import tiny


@pytest.fixture
def judged(tmp_path: Path) -> Folders:
    """Five translations that are too dark, with sources and truths: the truth is the negative."""
    write(tmp_path / "t" / "one", -blocks(5) * 0.5)
    write(tmp_path / "s" / "one", blocks(5))
    write(tmp_path / "truth" / "one", -blocks(5))
    return Folders(tmp_path / "t", source=tmp_path / "s", truth=tmp_path / "truth")


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "a", blocks(9, seed=1)), write(tmp_path / "b", -blocks(9, seed=1))


def test_colour_maps_and_networks_on_pairs_stand_in_the_tables(judged, pairs, monkeypatch) -> None:
    monkeypatch.setattr(further_baselines, "supervised", partial(supervised, steps=2))
    further = FurtherBaselines(pairs, networks=True)
    report, _ = evaluate_folder(judged, further=further)
    assert report["baselines"]["colour_map_8"]["psnr"] > 40
    assert {"colour_map_2", "supervised_2", "supervised_8"} <= set(report["baselines"])
    assert "colour_map_32" not in report["baselines"]
    titles = [row[0] for table in tables(report) for row in table.rows]
    assert "quadratic colour map on 8 pairs" in titles
    assert "small supervised network on 2 pairs" in titles


def test_pairs_without_partners_judged_pictures_and_missing_sources_are_refused(judged, pairs) -> None:
    (pairs[1] / "p03.png").unlink()
    with pytest.raises(InputError, match="hold no pairs by name: p03"):
        evaluate_folder(judged, further=FurtherBaselines(pairs))
    assert judged.source is not None
    assert judged.truth is not None
    with pytest.raises(InputError, match="5 pairs have the names of judged pictures, first one/p00"):
        evaluate_folder(judged, further=FurtherBaselines((judged.source, judged.truth)))
    alone = Folders(judged.translations, truth=judged.truth)
    with pytest.raises(InputError, match="sources, which are not there"):
        evaluate_folder(alone, further=FurtherBaselines(pairs))


def test_the_oracle_is_the_truth_through_the_targets_own_model(judged, tmp_path) -> None:
    model = tmp_path / "model"
    own = tiny(size=16)
    save_bundle(model, own.manifest, own.state)
    report, _ = evaluate_folder(judged, further=FurtherBaselines(target_model=model))
    assert report["baselines"]["oracle"]["psnr"] > report["baselines"]["source"]["psnr"]
    small = tmp_path / "small"
    other = tiny()
    save_bundle(small, other.manifest, other.state)
    with pytest.raises(ShapeMismatch, match=r"--size 8|\(1, 16, 16\)"):
        evaluate_folder(judged, further=FurtherBaselines(target_model=small))


def test_pictures_of_one_folder_are_one_cluster(tmp_path: Path) -> None:
    names = [f"patient{n // 3}/slice{n}" for n in range(12)]
    noise = np.repeat(np.random.default_rng(0).normal(0, 0.2, 4), 3).astype(np.float32)
    write(tmp_path / "t", np.clip(blocks(12) + noise[:, None, None, None], -1, 1), names=names)
    write(tmp_path / "truth", blocks(12), names=names)
    widths = []
    for by_folder in (False, True):
        report, _ = evaluate_folder(Folders(tmp_path / "t", truth=tmp_path / "truth", by_folder=by_folder))
        assert report["intervals"]["clusters"] == (4 if by_folder else None)
        bounds = report["intervals"]["translated"]["psnr"]
        widths.append(bounds["high"] - bounds["low"])
    assert widths[1] > 1.3 * widths[0]
