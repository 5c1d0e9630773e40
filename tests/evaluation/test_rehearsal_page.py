"""Each piece of advice follows from its figure, and from nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ddib_fed.evaluation.pages import SideFound, WayFound, advice
from ddib_fed.models.manifest import Training
from tests.runs.tiny_models import tiny


def side(name="cats", **figures):
    manifest = tiny(name).manifest.model_copy(update={"training": Training(figures=figures)})
    return SideFound(Path(name), (), 5000, manifest, Path("out"), b"", b"", None, (0.5, 0.4, 0.405))


def way(title="cats to dogs", **changes):
    report = {
        "cycle": {"psnr": {"median": 40.0}},
        "structure": {"edge_correlation": {"median": 0.6}, "chance": {"edge_correlation": 0.1}},
        "latent": {"std": 1.0, "ratio": 1.1},
        "features": {
            "distance": {"translated": {"frechet_early": 3.0}, "source": {"frechet_early": 9.0}},
        },
    }
    return WayFound(title, Path("out/a-to-b"), report | changes, b"")


GOOD = (side(), side("dogs"))
WAYS = (way(), way("dogs to cats"))


def test_where_nothing_stands_out_nothing_is_wrong():
    """The last piece is always how to go on."""
    found = advice(GOOD, WAYS, ())
    assert found[0].startswith("Nothing stands out")
    assert "ddib translate FOLDER --source" in found[-1]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (replace(GOOD[0], held_out_losses=(0.5, 0.3, 0.4)), "rose from 0.3000 to 0.4000"),
        (replace(GOOD[0], held_out_losses=(0.5, 0.4, 0.3)), "still falling"),
        (replace(GOOD[0], pictures=200), "200 training pictures are few"),
        (side(nearest_training_picture=0.01, nearest_training_picture_held_out=0.1), "repeats its pictures"),
    ],
)
def test_a_sides_figures_are_read(changed, said):
    found = advice((changed, GOOD[1]), WAYS, ())
    assert said in found[0]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cycle": {"psnr": {"median": 21.0}}}, "21.0 dB"),
        ({"latent": {"std": 0.8, "ratio": 1.0}}, "deviation of 0.800"),
        ({"latent": {"std": 1.0, "ratio": 2.5}}, "2.50 times"),
        (
            {"structure": {"edge_correlation": {"median": 0.1}, "chance": {"edge_correlation": 0.09}}},
            "hardly any structure",
        ),
        (
            {
                "features": {
                    "distance": {"translated": {"frechet_early": 9.5}, "source": {"frechet_early": 9.0}}
                }
            },
            "no nearer to the target domain",
        ),
    ],
)
def test_a_ways_figures_are_read(changed, said):
    found = advice(GOOD, (way(**changed), WAYS[1]), ())
    assert said in found[0]
    assert len(found) == 2


def test_what_could_not_be_measured_gives_no_advice():
    bare = way(cycle=None, structure=None, latent=None, features=None)
    assert len(advice(GOOD, (bare, WAYS[1]), ())) == 2


def test_pictures_in_both_folders_come_first():
    assert "a.png and b.png" in advice(GOOD, WAYS, ["a.png and b.png"])[0]
