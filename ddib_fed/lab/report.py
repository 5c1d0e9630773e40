"""The privacy report of a bundle: attacks on its owner's own latents and samples, stored beside the weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddib_fed import Model, Settings, metrics
from ddib_fed.errors import InputError
from ddib_fed.lab.tuning import softened

Array = NDArray[np.float32]
Numbers = NDArray[Any]
Inverse = Callable[[Array], Array]  # from latents (N, C, H, W) to pictures of that shape
Latents = dict[float, Array]  # by depth, each (N, *sample_shape)
Say = Callable[[str], None]
TINY = 1e-9
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of a regression, as multiples of the mean square of what it sees
SET_ASIDE = 8  # one pair in so many chooses penalties and the inverter
WIDTH, BLOCKS, BATCH, RATE = 24, (1, 2, 4), 24, 2e-3
WIDTHS = (0.3, 1.0, 3.0)  # of the kernel, in deviations of the latents
MOST_POINTS = 1_500  # pairs of points that are fitted to; the time grows with their cube
SAMPLES = 256  # that the attacker knows; half as many are attacked
FEWEST, EVERY = 32, 1 << 20
DEPTHS, SHARES = (0.85, 0.7, 0.5), (1.0, 0.75, 0.5)
STEPS = 150  # of the training of a convolutional inverter
DECODING = Settings(evaluations=24)
DRAWS = 400
LEVELS = (2.0, 1.0, 0.0, -1.0)  # lambda at which the loss is taken
NOISES = 2  # draws of noise at each
SEED = 41


class Inverter(NamedTuple):
    name: str
    inverse: Inverse


def fit_inverter(latents: Array, originals: Array, *, steps: int = 300, seed: int = 0) -> Inverter:
    """Fit the surrogates to latents and their pictures (N, C, H, W); without `steps` the linear one alone."""
    fitted, held = _set_aside(latents, originals)
    linear = _best([metrics.by_frequency(*fitted, penalty) for penalty in PENALTIES], held)
    inverters = [Inverter("frequency", linear)]
    if steps:
        inverters.append(Inverter("network", _network(*fitted, linear, steps, seed)))
    return min(inverters, key=lambda each: _error(each.inverse, held))


def fit_point_inverter(latents: Array, originals: Array) -> Inverter:
    """Fit a kernel ridge regression of points on their latents, each (N, D)."""
    fitted, held = _set_aside(latents[:MOST_POINTS], originals[:MOST_POINTS])
    choices = product(WIDTHS, (1e-6, 1e-3, 1e-1))
    return Inverter("kernel ridge", _best([_kernel_ridge(*fitted, *choice) for choice in choices], held))


def _set_aside(latents: Array, originals: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return pairs to fit to, and those that choose."""
    aside = np.arange(len(latents)) % SET_ASIDE == SET_ASIDE - 1
    return (latents[~aside], originals[~aside]), (latents[aside], originals[aside])


def _error(inverse: Inverse, pairs: tuple[Array, Array]) -> float:
    return float(np.square(inverse(pairs[0]).astype(np.float64) - pairs[1]).mean())


def _best(candidates: list[Inverse], pairs: tuple[Array, Array]) -> Inverse:
    return min(candidates, key=lambda inverse: _error(inverse, pairs))


def _kernel_ridge(latents: Array, originals: Array, width: float, penalty: float) -> Inverse:
    scale = width * float(latents.std())
    own, x = torch.from_numpy(latents).double() / scale, torch.from_numpy(originals).double()
    centre = x.mean(0)

    def kernel(given: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(given, own).square() / 2)

    dual = torch.linalg.solve(kernel(own) + penalty * torch.eye(len(own), dtype=own.dtype), x - centre)

    def inverse(given: Array) -> Array:
        estimate: Array = (kernel(torch.from_numpy(given).double() / scale) @ dual + centre).float().numpy()
        return estimate

    return inverse


class _Corrector(nn.Module):
    """Residual convolutions with growing reach; starts as the estimate that it corrects."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2 * channels, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=reach, dilation=reach),
                nn.SiLU(),
                nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            )
            for reach in BLOCKS
        )
        self.leave = nn.Conv2d(WIDTH, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, latent: Tensor, estimate: Tensor) -> Tensor:
        h = self.enter(torch.cat([latent, estimate], dim=1))
        for block in self.blocks:
            h = h + block(h)
        predicted: Tensor = estimate + self.leave(nn.functional.silu(h))
        return predicted


def _network(latents: Array, originals: Array, first: Inverse, steps: int, seed: int) -> Inverse:
    z, guess, x = (torch.from_numpy(each) for each in (latents, first(latents), originals))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Corrector(z.shape[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(z), (BATCH,), generator=generator)
            loss = (network(z[rows], guess[rows]) - x[rows]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            fall.step()
    network.requires_grad_(requires_grad=False)

    def inverse(given: Array) -> Array:
        estimate: Array = network(torch.from_numpy(given), torch.from_numpy(first(given))).numpy()
        return estimate

    return inverse


def correlation_matrix(latents: Numbers, originals: Numbers) -> NDArray[np.float64]:
    """Correlation of the numbers of each latent with those of each sample, (N, M); 0 for one that is constant."""
    flat = [each.reshape(len(each), -1).astype(np.float64) for each in (latents, originals)]
    flat = [each - each.mean(axis=1, keepdims=True) for each in flat]
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), TINY) for each in flat]
    correlations: NDArray[np.float64] = unit[0] @ unit[1].T
    return correlations


def first_by_correlation(found: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each latent correlates most with its own sample, of (N, N); a tie counts against it."""
    own = np.diagonal(found)
    hits: NDArray[np.bool_] = (found >= own[:, None]).sum(axis=1) == 1
    return hits


def area(inside: Numbers, outside: Numbers) -> float:
    """Area under the curve of hits over false alarms: how often a member's score is above a stranger's, ties half."""
    ordered = np.sort(outside.ravel())
    below, upto = (np.searchsorted(ordered, inside.ravel(), side=side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / ordered.size)


class Attack(NamedTuple):
    """What is attacked, and how hard: `data` the model was not trained on, `training` it was; both may ship."""

    data: Path | None = None
    training: Path | None = None
    seed: int = SEED
    command: str = ""
    samples: int = SAMPLES
    evaluations: int = 24
    say: Say = lambda _: None


def privacy_report(model: Model, attack: Attack) -> dict[str, Any]:
    """Attack a model; return the figures of privacy.json (`Model.put_privacy`)."""
    kind, most, few = model.manifest.sample_kind, attack.samples, attack.samples // 2
    members = None
    if attack.data is None and kind == "picture":
        data = model.data(train=EVERY, held_out=EVERY, test=EVERY)
        members = data.train
        # Heads are held out by the handful: their test slabs stand in, and the attacker knows training pictures.
        enough = len(data.held_out) >= 2 * FEWEST
        known, others = (data.held_out, data.held_out) if enough else (data.train, data.test)
        known, attacked, others = spaced(known, most), spaced(data.test, few), spaced(others, most)
    else:
        every = model.data(attack.data, train=most + few, held_out=most + few).mixed()
        cut = min(most, 2 * len(every) // 3)
        known, attacked = every[:cut], every[cut:][:few]
        others = known
    if min(map(len, (known, attacked, others))) < FEWEST:
        problem = f"{len(attacked) + len(known)} samples are too few for an attack"
        raise InputError(problem, hint=f"give {3 * FEWEST} or more")
    readings = list(_readings(model, known, attacked, attack))
    if attack.training is not None:
        members = model.data(attack.training, train=4 * most, held_out=4 * most).mixed()
    return {
        "command": attack.command,
        "sample_kind": kind,
        "calibration": "" if model.manifest.normalisation.calibrated is None else "its own map",
        "known": len(known),
        "attacked": len(attacked),
        "readings": readings,
        "membership": [] if members is None else membership_of(model, members, others, attack),
        "copies": None if members is None else copies_of(model, members, others, attack),
    }


def spaced(samples: Array, most: int) -> Array:
    """Return at most so many rows, evenly spaced."""
    rows = np.linspace(0, len(samples) - 1, min(most, len(samples)))
    return samples[np.unique(rows.round().astype(np.int64))]


def _readings(model: Model, known: Array, attacked: Array, attack: Attack) -> Iterator[dict[str, Any]]:
    """Yield one of each kind of latent: softened and not, of each depth, and of each share where it works."""
    own, pictures = model.manifest.soften_sigma, model.manifest.sample_kind != "point"
    for sigma in (own, 0.0) if own else (0.0,):
        for share in SHARES if sigma == own and model.is_spectral else (1.0,):
            attack.say(f"latents of a share of {share:g}, softened {sigma:g}")
            depths = DEPTHS if share == 1.0 and pictures else ()
            how: dict[str, Any] = {"share": share, "evaluations": attack.evaluations, "sigma": sigma}
            latents = [
                latents_along(model, model.units(samples), depths=depths, seed=attack.seed + turn, **how)
                for turn, samples in enumerate((known, attacked))
            ]
            for depth in sorted(latents[0], reverse=True):
                pairs = (latents[0][depth], known), (latents[1][depth], attacked)
                reading = _reading(model, *pairs, attack.seed)
                yield {"soften_sigma": sigma, "depth": depth, "share": share, **reading}


def _reading(
    model: Model, known: tuple[Array, Array], attacked: tuple[Array, Array], seed: int
) -> dict[str, Any]:
    """Return what is read from attacked latents, by whoever has known ones, each with their samples."""
    (latents, truth), (seen, originals) = attacked, (known[0], model.units(known[1]))
    correlations, pictures = (
        correlation_matrix(latents, model.units(truth)),
        model.manifest.sample_kind != "point",
    )
    inverter = (
        fit_inverter(seen, originals, steps=STEPS, seed=seed)
        if pictures
        else fit_point_inverter(seen, originals)
    )
    read = model.out_of_units(inverter.inverse(latents))
    if pictures:
        cut = np.clip(read, -1.0, 1.0).astype(np.float32)
        quality, hits = metrics.compare(cut, truth).psnr, metrics.hits_by_pixels(cut, truth, nearest=1)
    else:
        quality = np.sqrt(np.square((read - truth) / truth.std(axis=0)).mean(axis=1))
        hits = metrics.ranks(read, truth) < 1
    return {
        "correlation": _figure(np.mean, np.diagonal(correlations)),
        "found_by_correlation": _figure(np.mean, first_by_correlation(correlations)),
        "surrogate": inverter.name,
        "read": _figure(np.mean, quality),
        "found_by_reading": _figure(np.mean, hits),
    }


def latents_along(
    model: Model,
    x: Array,
    *,
    depths: Sequence[float] = (),
    share: float = 1.0,
    evaluations: int = 24,
    sigma: float = 0.0,
    seed: int = 0,
) -> Latents:
    """Return latents of samples in the model's units: of full depth (1.0), and of `depths`."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).numpy()
    x = softened(x, sigma, noise)
    settings = {
        depth: Settings(evaluations=evaluations, depth=depth, share=share) for depth in (*depths, 1.0)
    }
    return {depth: model.integrate(x, each, sigma=sigma) for depth, each in settings.items()}


def membership_of(model: Model, members: Array, others: Array, attack: Attack) -> list[dict[str, Any]]:
    """Tell training samples from others, by the norm of the latent and by the model's loss; return how well."""
    own, chosen, scores = model.manifest.soften_sigma, spaced(members, len(others)), []
    for sigma in (own, 0.0) if own else (0.0,):
        attack.say(f"membership, softened {sigma:g}")
        norms, losses = [], []
        for turn, samples in enumerate((chosen, others)):
            x, seed = model.units(samples), attack.seed + turn
            z = latents_along(model, x, evaluations=attack.evaluations, sigma=sigma, seed=seed)[1.0]
            norms.append(np.linalg.norm(z.reshape(len(z), -1), axis=1))
            losses.append(-_losses(model, x, attack.seed))
        sizes = {"soften_sigma": sigma, "members": len(chosen), "others": len(others)}
        figures = {"norm": norms, "loss": losses}
        scores.append({**sizes, **{key: _figure(_told_apart(*each), *each) for key, each in figures.items()}})
    return scores


def _told_apart(inside: Numbers, outside: Numbers) -> Callable[[Numbers, Numbers], float]:
    """Return the function for the area under the curve, in the direction that tells these apart."""
    sign = 1.0 if area(inside, outside) >= 0.5 else -1.0
    return lambda own, other: area(sign * own, sign * other)


def _losses(model: Model, x: Array, seed: int) -> NDArray[np.float64]:
    """Return the mean squared error of the predicted v of each sample, (N,), with the same noise for all."""
    total = np.zeros(len(x))
    for lam, turn in product(LEVELS, range(NOISES)):
        noise = torch.randn(
            x.shape[1:], generator=torch.Generator().manual_seed(seed * NOISES + turn)
        ).numpy()
        alpha, sigma = (1.0 + math.exp(-2.0 * lam)) ** -0.5, (1.0 + math.exp(2.0 * lam)) ** -0.5
        v = model.velocity((alpha * x + sigma * noise).astype(np.float32), lam)
        wrong = v.astype(np.float64) - (alpha * noise - sigma * x)
        total += np.square(wrong).reshape(len(x), -1).mean(axis=1)
    return total / (len(LEVELS) * NOISES)


def _figure(statistic: Callable[..., Any], *samples: Numbers) -> dict[str, float]:
    """Return a statistic of sets of samples, with its interval over samples of each."""
    rng = np.random.default_rng(0)
    drawn = [statistic(*(rng.choice(each, len(each)) for each in samples)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(statistic(*samples)), "low": float(low), "high": float(high)}


def copies_of(model: Model, train: Array, held_out: Array, attack: Attack) -> dict[str, Any] | None:
    """Measure how near what the model draws is to its training pictures (N, C, H, W), beside pictures held out."""
    if model.manifest.sample_kind == "point":
        return None
    attack.say("training pictures in what the model draws")
    count = min(64, len(held_out))
    own = metrics.reduced(train)
    pictures = model.sample(count, DECODING, seed=attack.seed), held_out
    samples, others = (metrics.nearest(metrics.reduced(each), own) for each in pictures)
    return {
        "drawn": count,
        "samples": _figure(np.median, samples),
        "held_out": _figure(np.median, others),
        "near": _figure(np.mean, samples < np.quantile(others, 0.01)),
    }
