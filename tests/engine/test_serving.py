"""A local party lets nothing in and nothing out that it did not check; a node's is warm before it serves."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.errors import Draining, LatentNotGaussian, NotFinite, NotReady, ShapeMismatch
from ddib_fed.latent import Latent
from tests.node.tiny_nodes import Normalisation, decode, encode, gaussian, tiny_bundle, tiny_engine

SETTINGS = SolverSettings(evaluations=8)


@pytest.fixture(scope="module")
def engine():
    made = tiny_engine()
    yield made
    made.close()


@pytest.mark.parametrize("shape", [(5,), (5, 3), (0, 2), (5, 2, 1)])
def test_another_shape_is_refused_both_ways(engine, shape) -> None:
    """Samples and latents are (N, 2) with N of at least 1, or nothing is computed."""
    calls = engine.counters["calls"]
    with pytest.raises(ShapeMismatch) as refused:
        encode(engine, np.zeros(shape, np.float32), SETTINGS)
    assert refused.value.facts["expected"] == "(N, 2)"
    with pytest.raises(ShapeMismatch):
        decode(engine, Latent(np.zeros(shape, np.float32), bytes(32)), SETTINGS)
    assert engine.counters["calls"] == calls


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_both_ways(engine, value) -> None:
    """One bad number among good ones is found, and counted."""
    points = gaussian(50)
    points[7, 1] = value
    with pytest.raises(NotFinite) as refused:
        encode(engine, points, SETTINGS)
    assert refused.value.facts == {"not_finite": "1"}
    with pytest.raises(NotFinite):
        decode(engine, Latent(points, bytes(32)), SETTINGS)


def test_points_of_ones_own_units_come_back_in_them() -> None:
    """Raw data are normalised on the way in and brought back on the way out, to float32."""
    made = tiny_engine(normalisation=Normalisation(mean=100.0, std=20.0))
    raw = gaussian(400) * 20 + 100
    encoded = encode(made, raw, SETTINGS)
    decoded = decode(made, encoded.latent, SETTINGS)
    made.close()
    np.testing.assert_allclose(encoded.latent.data, (raw - 100) / 20, atol=1e-4)
    np.testing.assert_allclose(decoded.samples, raw, rtol=1e-4)
    np.testing.assert_allclose(decoded.normalised, made.model.normalise(raw), atol=1e-4)


def test_finite_points_that_overflow_in_the_models_units_are_refused() -> None:
    """3e38 is finite; over a standard deviation of 0.01 it is not, and the reason says so."""
    made = tiny_engine(normalisation=Normalisation(std=0.01))
    with pytest.raises(NotFinite):
        encode(made, np.full((4, 2), 3e38, np.float32), SETTINGS)
    made.close()


def test_a_latent_that_is_no_noise_does_not_leave(engine) -> None:
    """Data far from what the model knows become a latent far from N(0, I), which is refused with its figures."""
    with pytest.raises(LatentNotGaussian) as refused:
        encode(engine, gaussian(400) * 50, SETTINGS)
    assert refused.value.facts


@pytest.mark.parametrize("garbage", [np.full((400, 2), 30.0), 50 * gaussian(400), gaussian(400) - [[0, 40]]])
def test_a_latent_that_is_no_noise_is_not_decoded(engine, garbage) -> None:
    """A constant, scaled and shifted noise are refused before the network is asked."""
    calls = engine.counters["calls"]
    latent = Latent.from_array(garbage.astype(np.float32))
    with pytest.raises(LatentNotGaussian):
        decode(engine, latent, SETTINGS)
    assert engine.counters["calls"] == calls


def test_an_output_that_is_not_finite_does_not_leave() -> None:
    """A model that explodes gives an error, not NaN for a translation."""
    made = tiny_engine()
    with torch.no_grad():
        made.model.plain.network.leave.bias.fill_(3e38)
    noise = Latent.from_array(gaussian(50))
    with pytest.raises(NotFinite):
        decode(made, noise, SolverSettings(solver="rk4", evaluations=40))
    made.close()


def test_a_model_that_answers_nan_never_becomes_ready() -> None:
    """The warm-up finds it, and leaves no thread behind."""
    bundle = tiny_bundle()
    bundle.state["leave.bias"].fill_(float("nan"))
    threads = {t.name for t in threading.enumerate()}
    with pytest.raises(NotReady, match="NaN"):
        ServingParty(bundle, device="cpu", threads=1)
    assert {t.name for t in threading.enumerate()} <= threads


def test_a_closed_engine_refuses_work() -> None:
    """After close nothing is computed, and nobody waits for it."""
    made = tiny_engine()
    made.close()
    with pytest.raises(Draining):
        encode(made, gaussian(10), SETTINGS)
