"""`ddib privacy index`: which pictures are indexed, what sets the threshold, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ddib_fed.cli.models.privacy import privacy
from ddib_fed.errors import AlreadyExists, InputError, UsageError
from ddib_fed.metrics.attacks.training_index import file_name, parse_index
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.runs.privacy import indexing
from ddib_fed.runs.privacy.indexing import IndexRequest, build_index
from tests.models.examples import manifest, state
from tests.runs.tiny_models import tiny


def write(folder: Path, count: int, seed: int) -> Path:
    """Pictures of grey noise, 8 x 8, as PNGs."""
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tiny("north")
    save_bundle(tmp_path / "model", made.manifest, made.state)
    return tmp_path / "model"


def run(*words: object) -> str:
    """`ddib privacy index`; errors of ours come out as they are."""
    typed = ["index", *map(str, words)]
    return CliRunner().invoke(privacy, typed, catch_exceptions=False, standalone_mode=False).stdout


@pytest.mark.slow
def test_the_file_is_private_and_of_the_model(model: Path, tmp_path: Path) -> None:
    """What it prints is what goes into node.toml; the digest of the model stays."""
    before = load_bundle(model).digest
    out = tmp_path / "indexes"
    file = out / file_name(before)
    training, data = write(tmp_path / "t", 40, 0), write(tmp_path / "d", 60, 1)
    said = run("--model", model, "--training", training, "--data", data, "--out", out)
    index = parse_index(file.read_bytes(), "it")
    assert [each.stat().st_mode & 0o777 for each in (out, file)] == [0o700, 0o600]
    assert (index.facts.model_sha256, load_bundle(model).digest) == (before, before)
    assert (index.facts.pictures, index.facts.held_out) == (40, 60)
    assert 0.1 < index.facts.threshold < 0.5
    assert f'[policy] memorised = "{out}"' in said
    with pytest.raises(AlreadyExists):
        run("--model", model, "--training", training, "--data", data, "--out", out)
    given = json.loads(
        run("--model", model, "--training", training, "--threshold", 0.2, "--out", out, "--force",
            "--format", "json")
    )  # fmt: skip
    assert (given["threshold"], given["held_out"]) == (0.2, 0)


def test_what_training_held_out_is_not_indexed_and_sets_the_threshold(tmp_path: Path, monkeypatch) -> None:
    """Split as training splits the folder, by the pixels; in parts, where they do not fit into the memory."""
    monkeypatch.setattr(indexing, "AT_ONCE", 7)
    made = build_index(tiny("north"), IndexRequest(write(tmp_path / "t", 140, 0), share=0.5))
    assert made.facts.pictures + made.facts.held_out == 140
    assert 50 <= made.facts.held_out <= 90
    assert made.held_out.min() > 0.3


def test_held_out_pictures_that_were_trained_on_are_refused(tmp_path: Path) -> None:
    """They would set a threshold under which every copy passes."""
    folder = write(tmp_path / "t", 60, 0)
    with pytest.raises(InputError, match="60 of 60 held-out pictures are training pictures"):
        build_index(tiny("north"), IndexRequest(folder, folder))


def test_a_few_held_out_pictures_that_were_trained_on_change_nothing(tmp_path: Path) -> None:
    """They are left out of the estimate."""
    training, data = write(tmp_path / "t", 60, 0), write(tmp_path / "d", 60, 1)
    before = build_index(tiny("north"), IndexRequest(training, data)).facts
    shutil.copy(training / "000.png", data / "more.png")
    after = build_index(tiny("north"), IndexRequest(training, data)).facts
    assert (after.threshold, after.held_out) == (before.threshold, before.held_out)


def test_few_held_out_pictures_set_no_threshold(tmp_path: Path) -> None:
    """A tenth of 60 are six."""
    with pytest.raises(InputError, match="too few") as refused:
        build_index(tiny("north"), IndexRequest(write(tmp_path / "t", 60, 0)))
    assert "--threshold" in refused.value.hint


def test_more_pictures_than_an_index_holds_are_refused(tmp_path: Path, monkeypatch) -> None:
    """Before they are read."""
    monkeypatch.setattr(indexing, "MAX_PICTURES", 10)
    with pytest.raises(InputError, match="more than an index holds"):
        build_index(tiny("north"), IndexRequest(write(tmp_path / "t", 11, 0), threshold=0.1))


def test_a_model_of_points_or_of_unknown_pictures_has_none(tmp_path: Path) -> None:
    """Points have no copies that mean anything."""
    save_bundle(tmp_path / "points", manifest(), state())
    with pytest.raises(UsageError):
        build_index(load_bundle(tmp_path / "points"), IndexRequest(tmp_path))
    with pytest.raises(UsageError, match="do not ship"):
        build_index(tiny("north"), IndexRequest())


def test_a_users_model_that_is_called_as_a_domain_is_not_indexed_by_the_domains_pictures() -> None:
    """Its own training pictures would go out unrecognised."""
    with pytest.raises(UsageError, match="do not ship"):
        build_index(tiny("relief", channels=3, size=32), IndexRequest())


@pytest.mark.parametrize(
    "words",
    [
        ("--data", "d"),
        ("--held-out", 0.2),
        ("--training", "t", "--data", "d", "--threshold", 0.1),
        ("--training", "t", "--data", "d", "--held-out", 0.1),
    ],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, words) -> None:
    """By name, before anything is read."""
    with pytest.raises(UsageError, match=r"--data|--held-out|--threshold"):
        run("--model", "relief", "--out", tmp_path / "i", *words)
