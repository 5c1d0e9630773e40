"""Two nodes of tuned models: the name of the grid crosses, and each follows the steps of its own model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.points import to_npy
from ddib_fed.data.synthetic import sample
from ddib_fed.diffusion.grids import make_grid
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import Asked, translate_array
from ddib_fed.engine.local_party import open_party
from ddib_fed.engine.record import Part
from ddib_fed.models.bundle import Bundle, pretrained
from ddib_fed.models.sidecars import Tuned
from ddib_fed.v1 import common_pb2
from tests.e2e.two_nodes import TwoNodes
from tests.models.test_tuned import leg

pytestmark = pytest.mark.e2e

X = sample("moons", 60, 0)
WITHIN = 1e-4
"""Of a coordinate after four legs in float32, integrated together or in ranges of rows."""


def tuned(domain: str, order: int, *numbers: int) -> Bundle:
    """A shipped model with steps of both directions, of an order that is not the default's."""
    bundle = pretrained(domain)
    legs = []
    for number in numbers:
        lams = tuple(level.lam for level in make_grid(bundle.schedule, "default", number).levels)
        legs += [leg(stage, number, order=order, lams=lams) for stage in ("encode", "decode")]
    return replace(bundle, tuned=Tuned(weights_sha256=bundle.manifest.weights_sha256, legs=tuple(legs)))


@pytest.fixture
def bundles() -> tuple[Bundle, Bundle]:
    return tuned("moons", 2, 20, 24), tuned("checkerboards", 4, 20)


@pytest.fixture
def nodes(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> Iterator[TwoNodes]:
    made = TwoNodes(tmp_path / "nodes", *bundles)
    yield made
    made.close()


@pytest.fixture
def points(tmp_path: Path) -> Path:
    (tmp_path / "points.npy").write_bytes(to_npy(X))
    return tmp_path / "points.npy"


def learned(evaluations: int) -> common_pb2.SolverSettings:
    return common_pb2.SolverSettings(evaluations=evaluations, grid="learned")


def test_a_translation_there_and_back_is_that_of_one_process(tmp_path, bundles, nodes, points) -> None:
    """Latent, translation and what came back, to rounding; along other steps they differ."""
    parties = [open_party(bundle) for bundle in bundles]
    asked = SolverSettings(evaluations=20, grid="learned")
    found, other = (
        translate_array(X, *parties, Asked(settings, cycle=True))
        for settings in (asked, replace(asked, grid="default"))
    )
    job = nodes.submit(points, solver=learned(20), cycle=True, keep_latent=True)
    result = nodes.results(job, Part.LATENT, Part.RETURNED)[0]
    for part, mine in (
        (Part.LATENT, found.latent),
        (Part.TRANSLATION, found.translated),
        (Part.RETURNED, found.back),
    ):
        (tmp_path / "part.npy").write_bytes(result.files[part].data)
        np.testing.assert_allclose(np.load(tmp_path / "part.npy"), mine, atol=WITHIN)
    assert np.abs(other.translated - found.translated).max() > 10 * WITHIN
    assert result.provenance.solver.grid == "learned"


def test_a_number_that_the_target_has_not_learned_ends_the_job_with_that_reason(nodes, points) -> None:
    """The source has it, the target says which there are."""
    job = nodes.ended(nodes.submit(points, solver=learned(24)))
    assert job.error.reason == "SETTINGS_INVALID"
    assert dict(job.error.facts)["learned"] == "20"
