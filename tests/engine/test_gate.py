"""Whoever encodes counts evaluations and encodes again what is unusual; whoever decodes has fixed bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed.data.synthetic import sample
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.gate import NAMES, Made, pass_latent
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.engine.party import Failed, Leg, ToEncode
from ddib_fed.engine.stack import Ending
from ddib_fed.errors import LatentNotGaussian, PolicyDenied
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.sidecars import Allowances, PictureAllowances
from tests.node.tiny_nodes import gaussian, tiny_bundle
from tests.runs.tiny_models import pictures, tiny

FLOOR = Leg(SolverSettings(evaluations=8), least_evaluations=8)


def narrow(soften_sigma: float = 0.0, weights_sha256: str = "ab" * 32) -> Allowances:
    """Bounds within which no latent of a picture is."""
    return Allowances(
        weights_sha256=weights_sha256,
        soften_sigma=soften_sigma,
        measured=1,
        checked=0,
        beyond=0,
        pictures=PictureAllowances(names=NAMES, low=(50.0,) * len(NAMES), high=(51.0,) * len(NAMES)),
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


class Wrong:
    """An executor that gives back something else than what the model makes."""

    def __init__(
        self, party: LocalParty, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        self._inner, self._change = party.executor, change
        self.rows, self.width, self.beside, self.close = party.executor.rows, 1, False, party.executor.close

    def submit(self, trajectory, **how):
        made, given = Ending(), self._inner.submit(trajectory, **how)
        made.end(self._change(given.result(), trajectory.x), given.evaluations)
        return made


def outcome(party: LocalParty, samples: np.ndarray, **leg):
    item = ToEncode(0, samples, noise=lambda x: np.random.default_rng(0).standard_normal(x.shape, np.float32))
    (found,) = party.encode_each([item], Leg(SolverSettings(evaluations=12), **leg))
    return found


WRONG = {
    "raw data": lambda z, x: x,
    "raw data of the latent's deviation": lambda z, x: (x - x.mean()) * (z.std() / x.std()),
    "noise": lambda z, x: torch.randn(z.shape, generator=torch.Generator().manual_seed(7)),
    "a tenth smaller": lambda z, x: 0.9 * z,
    "another's latent": lambda z, x: z.roll(1, 0),
    "in its last quarter": lambda z, x: torch.where(
        torch.arange(z.numel()).reshape(z.shape) < 3 * z.numel() // 4, z, 0.5 * x
    ),
}


@pytest.mark.parametrize("count", [8, 16, 64, 200])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_no_set_of_points_leaves_that_the_model_did_not_make(change, count):
    """Of whatever size from eight points on; of a shipped model, whose latents are none of its data."""
    party = open_party(pretrained("moons"))
    samples = sample("moons", count, 5)
    assert not isinstance(outcome(party, samples), Failed)
    refused = outcome(LocalParty(party.model, Wrong(party, change)), samples)
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, LatentNotGaussian)


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_picture_that_is_unlike_the_usual_ones_passes_as_the_model_makes_it_and_in_no_other_way(change):
    """Bounds that no latent keeps to: each is encoded again."""
    bundle = tiny("north", size=16, soften_sigma=0.05)
    bundle = replace(bundle, allowances=narrow(0.05, bundle.manifest.weights_sha256))
    party = open_party(bundle)
    samples = 0.8 * pictures(1, size=16)
    assert not isinstance(outcome(party, samples), Failed)
    other = change if change is not WRONG["another's latent"] else lambda z, x: z.flip(-1)
    refused = outcome(LocalParty(party.model, Wrong(party, other)), samples)
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, LatentNotGaussian)


def test_whoever_decodes_has_neither_the_samples_nor_the_bounds():
    """The same numbers pass there."""
    drawn = torch.Generator().manual_seed(0)
    latent, picture = torch.randn(2, 1, 3, 16, 16, generator=drawn)
    pass_latent(latent, Leg(), Made(48))
    pass_latent(latent, Leg())
    for other in (picture, torch.full_like(picture, torch.nan)):
        with pytest.raises(LatentNotGaussian, match="encoded again"):
            pass_latent(latent, Leg(), Made(48, picture, lambda rows, other=other: other[rows], narrow()))


UNUSUAL = {
    "nearly uniform": lambda side: np.full((1, 3, side, side), 0.3, np.float32),
    "of only 2 different values": lambda side: np.broadcast_to(
        np.eye(side, dtype=np.float32), (1, 3, side, side)
    ),
    "of one value, as where there are no data": lambda side: np.where(
        np.arange(side) < side // 2, -1, np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side))
    ).astype(np.float32),
}


@pytest.mark.parametrize("words", UNUSUAL)
def test_a_refused_picture_is_described(words):
    """By what is to be seen in it, in the error and in the fact that crosses to the client."""
    picture = UNUSUAL[words](16)
    made = Made(48, torch.from_numpy(picture.copy()), given=picture)
    with pytest.raises(LatentNotGaussian, match=words) as refused:
        pass_latent(torch.full((1, 3, 16, 16), 0.5), Leg(), made)
    assert words in refused.value.facts["picture"]


@pytest.mark.parametrize(
    "leg",
    [Leg(SolverSettings(evaluations=12, depth=0.5)), Leg(SolverSettings(evaluations=12), soften=0.3)],
    ids=["partial depth", "another softening"],
)
def test_own_bounds_hold_only_for_latents_as_they_were_measured(leg):
    """Of the whole depth, and softened as the model says: no other is encoded again."""
    bundle = tiny("north", size=16, soften_sigma=0.05)
    party = open_party(replace(bundle, allowances=narrow(0.05, bundle.manifest.weights_sha256)))
    wrong = LocalParty(party.model, Wrong(party, lambda z, x: torch.randn(z.shape)))
    item = ToEncode(0, 0.8 * pictures(1, size=16), noise=lambda x: torch.randn(x.shape).numpy())
    (made,) = wrong.encode_each([item], leg)
    assert not isinstance(made, Failed)
