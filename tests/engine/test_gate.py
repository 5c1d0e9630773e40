"""Whoever encodes counts evaluations and encodes again what is unusual; whoever decodes has fixed bounds."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed.datasets import DOMAINS, sample
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.gate import (
    FEWEST_PICTURES,
    KEY_BYTES,
    NAMES,
    Made,
    Softener,
    beyond,
    measure_allowances,
    pass_latent,
    picture_allowances,
    profile,
    standard_normal,
    unmeasurable,
)
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Failed, Leg, ToEncode
from ddib_fed.engine.stack import End
from ddib_fed.errors import LatentNotGaussian, PolicyDenied
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.sidecars import Allowances, PictureAllowances
from tests.node.tiny_nodes import gaussian, tiny_bundle
from tests.runs.tiny_models import pictures, tiny

FLOOR = Leg(SolverSettings(evaluations=8), least_evaluations=8)


def narrow(soften_sigma: float = 0.0, weights_sha256: str = "ab" * 32) -> Allowances:
    """Bounds within which no latent of a picture is."""
    return Allowances(
        weights_sha256=weights_sha256, soften_sigma=soften_sigma, measured=1, checked=0, beyond=0,
        pictures=PictureAllowances(names=NAMES, low=(50.0,) * len(NAMES), high=(51.0,) * len(NAMES)),
    )  # fmt: skip


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_latent_of_fewer_evaluations_is_not_given_out():
    """By the count, not by what was asked for; a flow map is trained for few."""
    with pytest.raises(PolicyDenied) as refused:
        pass_latent(noise(10, 2), FLOOR, Made(7))
    assert refused.value.facts == {"policy": "least_evaluations", "evaluations": "7", "least": "8"}
    pass_latent(noise(10, 2), FLOOR, Made(8))
    pass_latent(noise(10, 2), replace(FLOOR, settings=SolverSettings("flow-map", evaluations=4)), Made(4))


class Other:
    """An executor that gives back something else than what the model makes, or says so."""

    width, beside = 1, True

    def __init__(self, party: LocalParty, change: Callable[[End, torch.Tensor], End]) -> None:
        self._inner, self._change, self.rows = party.executor, change, party.executor.rows

    @contextmanager
    def together(self):
        yield

    def submit(self, trajectory, **how):
        with self._inner.together():
            given = self._inner.submit(trajectory, **how)
        made: Future[End] = Future()
        made.set_result(self._change(given.result(), trajectory.x))
        return made


@pytest.mark.parametrize("beside", [False, True])
def test_the_engine_counts_the_evaluations_of_a_leg(beside):
    """On the calling thread and in the batcher, where items are cut into ranges; no range hides another's few."""
    party = open_party(tiny_bundle())
    counted = LocalParty(party.model, Batcher(party.model, rows=8, beside=beside))
    items = [ToEncode(0, gaussian(3)), ToEncode(1, gaussian(30, 1))]
    assert not any(isinstance(each, Failed) for each in counted.encode_each(items, FLOOR))
    with pytest.raises(PolicyDenied):
        list(counted.encode_each(items, replace(FLOOR, settings=SolverSettings(evaluations=4))))
    ends = iter([8, 8, 1, 8])
    hasty = LocalParty(party.model, Other(counted, lambda end, x: End(end.x, next(ends))))
    with pytest.raises(PolicyDenied, match="made with 1 evaluations"):
        hasty.encode(items[1], FLOOR)
    counted.close()


def wrong(party: LocalParty, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> LocalParty:
    return LocalParty(party.model, Other(party, lambda end, x: End(change(end.x, x), end.evaluations)))


def outcome(party: LocalParty, samples: np.ndarray, **leg):
    item = ToEncode(
        0, samples, noise=lambda x, _: np.random.default_rng(0).standard_normal(x.shape, np.float32)
    )
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


@pytest.mark.parametrize("count", [8, 200])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_no_set_of_points_leaves_that_the_model_did_not_make(change, count):
    """Of whatever size from eight points on; of a shipped model, whose latents are none of its data."""
    party = open_party(pretrained("moons"))
    samples = sample("moons", count, 5)
    assert not isinstance(outcome(party, samples), Failed)
    refused = outcome(wrong(party, change), samples)
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
    refused = outcome(wrong(party, other), samples)
    assert isinstance(refused, Failed)
    assert isinstance(refused.error, LatentNotGaussian)


def test_whoever_decodes_has_neither_the_samples_nor_the_bounds():
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
    other = wrong(party, lambda z, x: torch.randn(z.shape))
    item = ToEncode(0, 0.8 * pictures(1, size=16), noise=lambda x, _: torch.randn(x.shape).numpy())
    (made,) = other.encode_each([item], leg)
    assert not isinstance(made, Failed)


def test_sets_of_every_size_and_dimension_pass():
    """Few points say nothing; bounds are relative to true noise of the same dimension; any part may be translated."""
    for count in (1, 2, 7, 8, 63, 64, 100, 5_000):
        pass_latent(noise(count, 2), Leg())
    for dim in (1, 3, 8, 9, 40):
        pass_latent(noise(600, dim), Leg())
    z = noise(4_000, 2)
    for part in (z[:, 0] > 0, (z - 0.7).norm(dim=1) < 0.6, (z.norm(dim=1) > 0.8) & (z.norm(dim=1) < 1.6)):
        pass_latent(z[part][:1_000], Leg())


def test_raw_data_and_noise_of_another_scale_are_refused():
    """1,024 points as they are, whose norms are those of noise; a density that falls with another slope."""
    for domain in DOMAINS:
        with pytest.raises(LatentNotGaussian) as refused:
            pass_latent(torch.from_numpy(sample(domain, 1_024, 0)), Leg())
        assert refused.value.facts.keys() & {"slope", "shift", "dimension"}
    for scale in (0.7, 1.4):
        with pytest.raises(LatentNotGaussian) as refused:
            pass_latent(scale * noise(1_024, 2), Leg())
        assert "slope" in refused.value.facts


def test_half_of_a_set_may_lie_on_another_point_and_no_more():
    """Just below and just above the half; from eight points on."""
    z = noise(100, 2)
    pass_latent(torch.cat([z[:51], z[:1].expand(49, 2)]), Leg())
    for repeated in (torch.cat([z[:49], z[:1].expand(51, 2)]), torch.full((8, 2), 1.0)):
        with pytest.raises(LatentNotGaussian, match="lie on another one"):
            pass_latent(repeated, Leg())


def test_the_gate_is_wider_for_a_share_and_is_one_still():
    """A flat picture's whitened latent is weak; noise of that strength is none of the network's."""
    mixed = Leg(SolverSettings(share=0.5))
    weak = 0.45 * noise(1, 3, 32, 32)
    assert pass_latent(weak, mixed).std == pytest.approx(0.45, abs=0.02)
    for latent, leg in ((weak, Leg()), (0.25 * weak, mixed), (torch.ones(1, 3, 32, 32), mixed)):
        with pytest.raises(LatentNotGaussian):
            pass_latent(latent, leg)


# Bounds of a model's own latents


def figures(count: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.stack([profile(scale * z, x).numpy() for z, x in noise(count, 2, 3, 16, 16, seed=seed)])


@pytest.fixture(scope="module")
def allowed():
    return picture_allowances(figures(200))


def test_further_latents_of_the_same_kind_pass_and_noise_of_another_scale_does_not(allowed):
    """One in a hundred may not, by the promise; smaller changes show beside the picture, see SECURITY.md."""
    assert np.mean([bool(beyond(row, allowed)) for row in figures(300, seed=1)]) <= 0.01
    for scale in (0.55, 1.8):
        assert all(beyond(row, allowed) for row in figures(20, seed=2, scale=scale))


def test_a_model_of_pictures_is_measured_however_little_time_there_is():
    """Its allowances name its weights; the fewest pictures are encoded in any case, and the cause is said of others."""
    model, some = DomainModel(tiny("north", size=16)), pictures(50, size=16)
    found = measure_allowances(model, some, command="c")
    assert found.weights_sha256 == model.manifest.weights_sha256
    assert (found.measured, found.checked, found.command) == (40, 10, "c")
    hurried = measure_allowances(model, some, within_s=0.0)
    assert FEWEST_PICTURES <= hurried.measured + hurried.checked < 50
    assert unmeasurable(model, FEWEST_PICTURES) == ""
    assert f"and there are {FEWEST_PICTURES - 1}" in unmeasurable(model, FEWEST_PICTURES - 1)
    assert "points" in unmeasurable(DomainModel(tiny_bundle()), 10_000)


# The noise that softens pictures: the same for the same request, and nobody else's


MODEL = "ab" * 32
PINNED = [-0.07283834367990494, 0.33368682861328125, -0.505881667137146, -0.41130873560905457]
PICTURE = np.linspace(-2, 2, 3 * 8 * 8, dtype=np.float32).reshape(1, 3, 8, 8)


@pytest.fixture
def softener() -> Softener:
    return Softener(bytes(KEY_BYTES), MODEL)


@pytest.mark.parametrize(
    ("key", "model", "picture", "peer"),
    [
        (b"\1" * KEY_BYTES, MODEL, PICTURE, "south.example"),
        (bytes(KEY_BYTES), "cd" * 32, PICTURE, "south.example"),
        (bytes(KEY_BYTES), MODEL, np.nextafter(PICTURE, np.float32(9)), "south.example"),
        (bytes(KEY_BYTES), MODEL, PICTURE, "west.example"),
    ],
    ids=["key", "model", "picture", "peer"],
)
def test_another_key_model_picture_or_peer_gives_unrelated_noise(softener, key, model, picture, peer):
    """Two peers that compare their latents of one picture cannot take the noise out."""
    ours = softener.for_picture(PICTURE, "south.example").ravel()
    theirs = Softener(key, model).for_picture(picture, peer).ravel()
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 0.3
    assert np.abs(ours - theirs).max() > 1


def test_slices_of_one_volume_have_one_noise_and_those_of_two_have_two():
    """Which no other peer, model, key or picture has: not the one either whose digest a client names as a volume's."""
    softener, other = Softener(bytes(KEY_BYTES), MODEL), -PICTURE
    first, second = bytes(32), b"\1" * 32
    shared = softener.for_picture(PICTURE, "south.example", volume_sha256=first)
    np.testing.assert_array_equal(shared, softener.for_picture(other, "south.example", volume_sha256=first))
    own = hashlib.sha256(PICTURE.tobytes()).digest()
    for noise in (
        softener.for_picture(PICTURE, "south.example", volume_sha256=second),
        softener.for_picture(PICTURE, "west.example", volume_sha256=first),
        Softener(bytes(KEY_BYTES), "cd" * 32).for_picture(PICTURE, "south.example", volume_sha256=first),
        Softener(b"\1" * KEY_BYTES, MODEL).for_picture(PICTURE, "south.example", volume_sha256=first),
        softener.for_picture(PICTURE, "south.example"),
    ):
        assert abs(np.corrcoef(shared.ravel(), noise.ravel())[0, 1]) < 0.3
    named = softener.for_picture(PICTURE, "south.example", volume_sha256=own)
    assert np.abs(named - softener.for_picture(PICTURE, "south.example")).max() > 1


def test_the_noise_is_pinned():
    """A change of the recipe would give every picture a second latent: it is a change of the format."""
    n = standard_normal(b"ddib-fed", (4,))
    np.testing.assert_allclose(n, PINNED, rtol=1e-6)
