"""Whoever encodes judges by the model's own latents and counts evaluations; whoever decodes has fixed bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddib_fed.bridge.engine.batcher import Batcher
from ddib_fed.bridge.gate import Made, pass_latent
from ddib_fed.bridge.judging.point_sets import SIZES
from ddib_fed.bridge.judging.profile import NAMES
from ddib_fed.bridge.local_party import LocalParty, open_party
from ddib_fed.bridge.party import Failed, Leg, ToEncode
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import LatentNotGaussian, PolicyDenied
from ddib_fed.models.allowances import Allowances, PictureAllowances, SetAllowances
from tests.node.tiny_nodes import gaussian, tiny_bundle

FLOOR = Leg(SolverSettings(evaluations=8), least_evaluations=8)
NOTHING_PASSES = tuple(
    SetAllowances(count=count, slope_low=50.0, slope_high=51.0, shift=0.01, dimension=0.99) for count in SIZES
)


def narrow() -> Allowances:
    """Bounds within which no set is."""
    return Allowances(
        weights_sha256=tiny_bundle().manifest.weights_sha256,
        soften_sigma=0.0,
        measured=1,
        checked=0,
        refused=0,
        points=NOTHING_PASSES,
    )


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0))


def test_a_latent_of_fewer_evaluations_is_not_given_out():
    """By the count, not by what was asked for; a flow map is trained for few."""
    with pytest.raises(PolicyDenied) as refused:
        pass_latent(noise(10), FLOOR, Made(7))
    assert refused.value.facts == {"policy": "least_evaluations", "evaluations": "7", "least": "8"}
    pass_latent(noise(10), FLOOR, Made(8))
    pass_latent(noise(10), replace(FLOOR, settings=SolverSettings("flow-map", evaluations=4)), Made(4))


@pytest.mark.parametrize("beside", [False, True])
def test_the_engine_counts_the_evaluations_of_a_leg(beside):
    """On the calling thread and in the batcher, where items are cut into ranges."""
    party = open_party(tiny_bundle())
    executor = Batcher(party.model, rows=8) if beside else party.executor
    counted = LocalParty(party.model, executor)
    try:
        items = [ToEncode(0, gaussian(3)), ToEncode(1, gaussian(30, 1))]
        assert not any(isinstance(each, Failed) for each in counted.encode_each(items, FLOOR))
        fewer = replace(FLOOR, settings=SolverSettings(evaluations=4))
        with pytest.raises(PolicyDenied):
            list(counted.encode_each(items, fewer))
    finally:
        counted.close()


def test_the_models_own_bounds_are_the_sources_alone():
    """The same latents are refused where they are made, and accepted by whoever knows another model."""
    bundle = replace(tiny_bundle(), allowances=narrow())
    party = open_party(bundle)
    (refused,) = party.encode_each([ToEncode(0, gaussian(200))], Leg(SolverSettings(evaluations=12)))
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, LatentNotGaussian)
    plain = open_party(tiny_bundle())
    (made,) = plain.encode_each([ToEncode(0, gaussian(200))], Leg(SolverSettings(evaluations=12)))
    pass_latent(torch.from_numpy(made.latent.data.copy()), Leg())


def test_a_picture_is_held_against_the_models_own_bounds_where_it_was_encoded():
    """Whoever decodes has neither the picture nor the bounds."""
    drawn = torch.Generator().manual_seed(0)
    latent, picture = torch.randn(2, 1, 3, 16, 16, generator=drawn)
    low, high = (50.0,) * len(NAMES), (51.0,) * len(NAMES)
    own = Allowances(
        weights_sha256="ab" * 32,
        soften_sigma=0.02,
        measured=1,
        checked=0,
        refused=0,
        pictures=PictureAllowances(names=NAMES, low=low, high=high),
    )
    pass_latent(latent, Leg(), Made(48))
    pass_latent(latent, Leg())
    with pytest.raises(LatentNotGaussian, match="a picture's latent unlike"):
        pass_latent(latent, Leg(), Made(48, own, picture))


@pytest.mark.parametrize(
    "leg",
    [Leg(SolverSettings(evaluations=12, depth=0.5)), Leg(SolverSettings(evaluations=12), soften=0.3)],
    ids=["partial depth", "another softening"],
)
def test_own_bounds_hold_only_for_latents_as_they_were_measured(leg):
    """Of the whole depth, and softened as the model says."""
    party = open_party(replace(tiny_bundle(), allowances=narrow()))
    item = ToEncode(0, gaussian(200), noise=lambda x: torch.randn(x.shape).numpy())
    (made,) = party.encode_each([item], leg)
    assert not isinstance(made, Failed)
