"""eps, x0 and v networks are one function, and guided ones; merged requests get what each gets alone; ends are finite.

Guides are held against Gaussians whose conditional scores are known; scenes are blended from tiles.
"""

import math
from itertools import pairwise

import pytest
import torch

from ddib_fed.diffusion.denoiser import Denoiser, LevelTable, Places, x0_from_v
from ddib_fed.diffusion.guidance import Classifier, ClassifierFree, ClassifierGuided, Clipped, Tiled, starts
from ddib_fed.diffusion.plans import SolverSettings, decode, encode
from ddib_fed.diffusion.schedule import (
    CosineSchedule,
    Level,
    LinearSchedule,
    ScheduleConfig,
    schedule_from_config,
)
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.config import MlpConfig, SyntheticConfig
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from tests.diffusion.gaussian_data import (
    GaussianNetwork,
    gaussian_denoiser,
    gaussian_map,
    gaussian_samples,
    merged,
)

COSINE = CosineSchedule()
MEANS = torch.tensor([[-2.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
SPREAD = 0.5
LEVELS = [Level(math.cos(p), math.sin(p), p) for p in (0.1, 0.7, 1.4)]


def angle(times, rows, x):
    lam = times if rows is None else times[rows]
    phi = torch.atan(torch.exp(-lam)).reshape(-1, 1).to(x.dtype)
    return torch.cos(phi), torch.sin(phi)


class Exact(torch.nn.Module):
    """A network of float64 without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.calls: list[int] = []


class Mixture(Exact):
    """Exact eps of two equally likely Gaussians, or of the one that y names; class 2 stands for none."""

    num_classes = 2

    def forward(self, x, times, rows=None, y=None):
        self.calls.append(len(x))
        alpha, sigma = angle(times, rows, x)
        precision = 1.0 / (alpha**2 * SPREAD**2 + sigma**2)
        # eps = -sigma grad log p
        each = torch.stack([sigma * precision * (x - alpha * mean) for mean in MEANS], dim=1)
        shares = torch.softmax(logits_of(x, alpha, precision), dim=-1)
        none = (shares[:, :, None] * each).sum(1)
        if y is None:
            return none
        table = torch.cat([each, none[:, None]], dim=1)
        return table[torch.arange(len(x)), y]


class Bayes(Exact):
    """Exact log p(y | x) of the mixture, as logits."""

    def forward(self, x, times, rows=None):
        alpha, sigma = angle(times, rows, x)
        return logits_of(x, alpha, 1.0 / (alpha**2 * SPREAD**2 + sigma**2))


def logits_of(x, alpha, precision):
    squares = [((x - alpha * mean) ** 2).sum(-1, keepdim=True) for mean in MEANS]
    return torch.cat([-0.5 * precision * square for square in squares], dim=-1)


class Unlabelled(torch.nn.Module):
    """The mixture by a network that knows no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = Mixture()

    def forward(self, x, times, rows=None):
        return self.mixture(x, times, rows)


def points(rows=6):
    return torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def labels(rows=6):
    return {"y": torch.arange(rows) % 2}


def test_a_bayes_classifier_turns_the_mixture_into_the_class():
    """grad log p(x | y) = grad log p(x) + grad log p(y | x): scale 1 gives the exact conditional."""
    guided = ClassifierGuided(Denoiser(Unlabelled(), "eps"), Classifier(Bayes()), 1.0)
    exact = Denoiser(Mixture(), "eps")
    for level in LEVELS:
        assert torch.allclose(guided(points(), level, labels()), exact(points(), level, labels()), atol=1e-10)


@pytest.mark.parametrize(("scale", "calls"), [(0.0, [6]), (1.0, [6]), (3.0, [12])])
def test_classifier_free_guidance_exaggerates_what_the_class_changes(scale, calls):
    """v_null + scale (v_y - v_null), from one network call."""
    network = Mixture()
    plain, guided = Denoiser(network, "eps"), ClassifierFree(Denoiser(network, "eps"), scale, 2)
    none = plain(points(), LEVELS[1], {"y": torch.full((6,), 2)})
    with_class = plain(points(), LEVELS[1], labels())
    network.calls.clear()
    assert torch.allclose(
        guided(points(), LEVELS[1], labels()), none + scale * (with_class - none), atol=1e-10
    )
    assert network.calls == calls
    assert torch.allclose(guided(points(), LEVELS[1]), none, atol=1e-12)


def test_clipping_holds_x0_and_leaves_the_rest():
    """Where x0 lies within the range v is untouched, elsewhere x0 is the range's end."""
    level, plain = LEVELS[1], Denoiser(Mixture(), "eps")
    v, held = plain(points(), level), Clipped(plain)(points(), level)
    x0 = x0_from_v(v, points(), level.alpha, level.sigma)
    assert torch.allclose(
        x0_from_v(held, points(), level.alpha, level.sigma), x0.clamp(-1.0, 1.0), atol=1e-12
    )
    inside = x0.abs() <= 1.0
    assert bool(inside.any())
    assert not bool(inside.all())
    assert torch.equal(held[inside], v[inside])


GUIDES = {
    "classifier": lambda: ClassifierGuided(Denoiser(Unlabelled(), "eps"), Classifier(Bayes()), 1.5),
    "classifier-free": lambda: ClassifierFree(Denoiser(Mixture(), "eps"), 2.5, 2),
    "clipped": lambda: Clipped(Denoiser(Mixture(), "eps")),
    "both": lambda: ClassifierGuided(Clipped(Denoiser(Mixture(), "eps")), Classifier(Bayes()), 1.0),
}


@pytest.mark.parametrize("name", GUIDES)
def test_merged_rows_agree_with_one_at_a_time(name):
    """As the batcher asks: three levels in one call."""
    guide, x, cond = GUIDES[name](), points(), labels()
    alone = torch.cat(
        [guide(x[2 * i : 2 * i + 2], LEVELS[i], {"y": cond["y"][2 * i : 2 * i + 2]}) for i in range(3)]
    )
    together = merged(guide, x, LEVELS, [2, 2, 2], cond)
    assert torch.allclose(together, alone, atol=1e-10)


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("level", [Level(1.0, 0.0, 0.0), Level(0.0, 1.0, 1.0)], ids=["data", "noise"])
def test_both_ends_are_finite(name, level):
    """alpha = 0 and sigma = 0, for all rows and by row."""
    guide = GUIDES[name]()
    assert bool(torch.isfinite(guide(points(), level, labels())).all())
    assert bool(torch.isfinite(merged(guide, points(), [level, LEVELS[0]], [3, 3], labels())).all())


# Scenes in overlapping tiles


class Pixelwise(torch.nn.Module):
    """An answer that needs no neighbours: tiles agree, so a scene gets what the model says of it as a whole."""

    def forward(self, x, times, rows=None, y=None):
        told = times[0] if rows is None else times[rows][:, None, None, None]
        kind = 0.0 if y is None else y[:, None, None, None].to(x.dtype)
        return torch.tanh(x) * torch.cos(told) + kind


class OfItsMean(torch.nn.Module):
    """An answer that hangs on the whole tile: tiles disagree. Smooth in x, as a trained network is."""

    def forward(self, x: torch.Tensor, times: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        del times, rows
        return 0.5 * torch.tanh(x - x.mean(dim=(2, 3), keepdim=True))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length", [64, 65, 150, 700])
def test_tiles_cover_a_side_evenly_and_overlap_by_half(length: int) -> None:
    found = starts(length, 64)
    assert found[0] == 0
    assert found[-1] == length - 64
    steps = [after - before for before, after in pairwise(found)]
    assert all(0 < step <= 32 for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1


def test_where_tiles_agree_a_scene_gets_the_answer_of_the_whole() -> None:
    inner = Denoiser(Pixelwise().double())
    tiled = Tiled(inner, (8, 8), (19, 30))
    x, labels = noise(3, 2, 19, 30), {"y": torch.tensor([0, 1, 2])}
    level = COSINE.level(0.3)
    assert torch.allclose(tiled(x, level), inner(x, level), atol=1e-6)
    assert torch.allclose(tiled(x, level, labels), inner(x, level, labels), atol=1e-6)
    # Rows at levels of their own, as the batcher merges them.
    table = LevelTable.of([COSINE.level(0.3), COSINE.level(0.8)])
    places = Places.by_row(x, table, torch.tensor([1, 0, 1]))
    assert torch.allclose(tiled.at(x, places, labels), inner.at(x, places, labels), atol=1e-6)


@pytest.mark.parametrize("sides", [(12, 28), (10, 12, 20)], ids=["scene", "volume"])
def test_a_round_trip_closes_where_tiles_disagree(sides) -> None:
    tiled = Tiled(Denoiser(OfItsMean().double()), (8,) * len(sides), sides)
    x, settings = noise(1, 1, *sides), SolverSettings(evaluations=48)
    latent = encode(x, tiled, COSINE, settings)
    assert (latent - x).abs().max() > 0.1
    assert (decode(latent, tiled, COSINE, settings) - x).abs().max() < 1e-3


# Networks by what they predict


class FlowOfGaussian(Exact):
    """E[eps - x0 | x_t] of flow matching where x0 ~ N(0.7, 0.5^2), asked in its own scale and time of 1,000 steps."""

    def forward(self, x, times, rows=None):
        t = (times if rows is None else times[rows]).reshape(-1, 1).to(x.dtype) / 1000
        score = (x - (1 - t) * 0.7) / ((1 - t) ** 2 * 0.25 + t**2)
        return t * score - (0.7 + (1 - t) * 0.25 * score)


def test_a_network_of_flow_matching_follows_the_same_ode() -> None:
    """Of Gaussian data the ODE keeps the distance from the mean, in deviations."""
    schedule = schedule_from_config(ScheduleConfig("flow", scale=1000.0))
    denoiser, x = Denoiser(FlowOfGaussian(), "flow", "timestep"), 0.7 + 0.5 * noise(64, 2)
    latent = encode(x, denoiser, schedule, SolverSettings(evaluations=48))
    assert (latent - (x - 0.7) / 0.5).abs().max() < 5e-3
    assert (decode(latent, denoiser, schedule, SolverSettings(evaluations=48)) - x).abs().max() < 1e-4
    for level in (Level(1.0, 0.0, 0.0), Level(0.0, 1.0, 1000.0)):
        assert torch.isfinite(denoiser(x, level)).all()


FIVE = LinearSchedule().levels(torch.tensor([5.3, 2.0, 0.0, -1.5, -5.0]))
DATA, NOISE = Level(1.0, 0.0, 0.0), Level(0.0, 1.0, 999.0)


def random_networks() -> dict[str, Denoiser]:
    """Networks in which every layer counts, with both ways to tell the time."""
    torch.manual_seed(0)
    found = {
        "mlp": Denoiser(ResidualMLP(MlpConfig(width=32, blocks=2)), "v", "lambda"),
        "synthetic": Denoiser(SyntheticModel(SyntheticConfig(num_channels=32)), "eps", "timestep"),
    }
    for denoiser in found.values():
        for parameter in denoiser.network.parameters():
            parameter.data.normal_(std=0.1)
    return found


@pytest.mark.parametrize("predicts", ["eps", "x0"])
@pytest.mark.parametrize("level", FIVE, ids=lambda level: f"{level.lam:.1f}")
def test_eps_x0_and_v_networks_agree(predicts, level):
    """The same data's three networks give the same v."""
    x = gaussian_samples(50, level)
    assert torch.allclose(gaussian_denoiser(predicts)(x, level), gaussian_denoiser("v")(x, level), atol=1e-9)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("level", [DATA, NOISE], ids=["data", "noise"])
def test_the_ends_are_finite_alone_and_merged(predicts, level):
    """At sigma = 0 and alpha = 0 there is an answer, never NaN."""
    denoiser = gaussian_denoiser(predicts, torch.float32)
    x = gaussian_samples(9, level).float()
    assert bool(torch.isfinite(denoiser(x, level)).all())
    assert bool(torch.isfinite(merged(denoiser, x, [level, FIVE[2]], [4, 5])).all())


@pytest.mark.parametrize("name", ["mlp", "synthetic"])
def test_merged_requests_get_what_each_gets_alone(name):
    """One call with a level for each request differs from one call each by at most 1e-6."""
    denoiser = random_networks()[name]
    counts = [1, 7, 2, 40, 3]
    x = torch.randn(sum(counts), 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = merged(denoiser, x, FIVE, counts)
        alone = torch.cat([denoiser(p, at) for p, at in zip(x.split(counts), FIVE, strict=True)])
    assert float((together - alone).abs().max()) <= 1e-6 * max(1.0, float(alone.abs().max()))


@pytest.mark.parametrize(
    ("time_input", "told"), [("timestep", 0.25), ("lambda", 0.5), ("scaled-lambda", 2.0)]
)
def test_a_network_hears_the_time_as_it_was_trained(time_input, told):
    """Weights know one scale: with another a shipped model answers with noise."""
    heard = []

    class Listening(torch.nn.Module):
        def forward(self, x, times, rows=None):
            heard.append(float(times))
            return x

    level = Level(math.exp(0.5), 1.0, 0.25)
    Denoiser(Listening(), time_input=time_input)(torch.zeros(1, 2), level)
    assert heard == [pytest.approx(told)]


# Flow maps, with the exact one of Gaussian data

FIRST, LAST = COSINE.level(COSINE.lambda_max), COSINE.level(COSINE.lambda_min)
HALF = COSINE.level(0.0)


class ExactMap(torch.nn.Module):
    """The mean velocity of Gaussian data from `times` to `to`, in closed form; their velocity without `to`."""

    flow_map = True

    def __init__(self):
        super().__init__()
        self.still = GaussianNetwork("v")

    def forward(self, x, times, rows=None, to=None):
        times = times if rows is None else times[rows]
        to = times if to is None else (to if rows is None else to[rows])
        out = self.still(x, times).clone()
        for k in range(len(x)):
            start, end = (COSINE.level(float(t[k % len(t)])) for t in (times, to))
            if abs(end.phi - start.phi) > 1e-9:
                moved = gaussian_map(x[k : k + 1], start, end)[0]
                out[k] = (moved - x[k]) / (end.phi - start.phi)
        return out


@pytest.fixture
def exact():
    return Denoiser(ExactMap(), "v", "lambda")


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_an_exact_map_is_exact_with_any_number_of_steps(exact, evaluations):
    """Encoding ends at the exact latent, and decoding takes it back."""
    settings = SolverSettings("flow-map", evaluations=evaluations)
    x = gaussian_samples(6, FIRST)
    z = encode(x, exact, COSINE, settings)
    assert torch.allclose(z, gaussian_map(x, FIRST, LAST), atol=1e-6)
    assert torch.allclose(decode(z, exact, COSINE, settings), x, atol=1e-5)


def test_merged_steps_get_what_each_gets_alone(exact):
    x = gaussian_samples(6, HALF)
    levels, to = [FIRST, LAST, HALF], [HALF, FIRST, None]
    together = merged(exact, x, levels, [2, 3, 1], None, to)
    alone = [
        exact(part, *pair) for part, *pair in zip(x.split([2, 3, 1]), levels, [None] * 3, to, strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_a_network_of_velocities_is_refused():
    """It does not know the mean over an interval, and must not be taken for a flow map."""
    settings = SolverSettings("flow-map", evaluations=4)
    with pytest.raises(SettingsInvalid, match="velocities at one level alone"):
        encode(gaussian_samples(2, FIRST), gaussian_denoiser(), COSINE, settings)
