"""The privacy report of a bundle: attacks on its owner's own latents and samples, stored beside the weights.

What an attacker reads from latents, by correlation and by surrogate inverters; whether a sample was among the training
data, and whether the model draws these again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddib_fed.data.shipped import load_shipped
from ddib_fed.diffusion.plans import SolverSettings, soften
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.engine.arrays import ArraySettings, draw_samples
from ddib_fed.engine.local_party import open_party
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import InputError
from ddib_fed.evaluation import judgement, metrics
from ddib_fed.evaluation.metrics import compare
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import carried_domain
from ddib_fed.models.sidecars import Copies, Figure, Membership, PrivacyReport, Reading
from ddib_fed.training.sources import own_samples, spaced

Array = NDArray[np.float32]
Numbers = NDArray[np.floating]
Inverse = Callable[[Array], Array]  # from latents (N, C, H, W) to pictures of that shape
Latents = dict[float, Array]  # by depth, each (N, *sample_shape)
Say = Callable[[str], None]
TINY = 1e-9
PENALTIES = (0.01, 0.1, 1.0, 10.0)  # of a regression, as multiples of the mean square of what it sees
SET_ASIDE = 8
"""One pair in so many chooses penalties and the inverter."""
WIDTH, BLOCKS, BATCH, RATE = 24, (1, 2, 4), 24, 2e-3
WIDTHS = (0.3, 1.0, 3.0)  # of the kernel, in deviations of the latents
MOST_POINTS = 1_500  # pairs of points that are fitted to; the time grows with their cube
SAMPLES = 256  # that the attacker knows; half as many are attacked
FEWEST = 32
DEPTHS, SHARES = (0.85, 0.7, 0.5), (1.0, 0.75, 0.5)
STEPS = 150  # of the training of a convolutional inverter
DECODING = SolverSettings(evaluations=24)
DRAWS = 400
LEVELS = (2.0, 1.0, 0.0, -1.0)  # lambda at which the loss is taken
NOISES = 2
"""Draws of noise at each."""
SEED = 41


class Inverter(NamedTuple):
    name: str
    inverse: Inverse


def fit_inverter(latents: Array, originals: Array, *, steps: int = 300, seed: int = 0) -> Inverter:
    """Fit the surrogates to latents and their pictures (N, C, H, W); without `steps` the linear one alone."""
    fitted, held = _set_aside(latents, originals)
    linear = _best([metrics.by_frequency(*fitted, penalty) for penalty in PENALTIES], held)
    found = [Inverter("frequency", linear)]
    if steps:
        found.append(Inverter("network", _network(*fitted, linear, steps, seed)))
    return min(found, key=lambda each: _error(each.inverse, held))


def fit_point_inverter(latents: Array, originals: Array) -> Inverter:
    """Kernel ridge regression of points on their latents, each (N, D)."""
    fitted, held = _set_aside(latents[:MOST_POINTS], originals[:MOST_POINTS])
    choices = product(WIDTHS, (1e-6, 1e-3, 1e-1))
    return Inverter("kernel ridge", _best([_kernel_ridge(*fitted, *choice) for choice in choices], held))


def _set_aside(latents: Array, originals: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Pairs to fit to, and those that choose."""
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
        found: Array = (kernel(torch.from_numpy(given).double() / scale) @ dual + centre).float().numpy()
        return found

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
        found: Tensor = estimate + self.leave(nn.functional.silu(h))
        return found


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
        found: Array = network(torch.from_numpy(given), torch.from_numpy(first(given))).numpy()
        return found

    return inverse


def correlation_matrix(latents: Numbers, originals: Numbers) -> NDArray[np.float64]:
    """Correlation of the numbers of each latent with those of each sample, (N, M); 0 for one that is constant."""
    flat = [each.reshape(len(each), -1).astype(np.float64) for each in (latents, originals)]
    flat = [each - each.mean(axis=1, keepdims=True) for each in flat]
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), TINY) for each in flat]
    found: NDArray[np.float64] = unit[0] @ unit[1].T
    return found


def first_by_correlation(found: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each latent correlates most with its own sample, of (N, N); a tie counts against it."""
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


def privacy_report(bundle: Bundle, attack: Attack) -> PrivacyReport:
    model, manifest = DomainModel(bundle), bundle.manifest
    most, few = attack.samples, attack.samples // 2
    shipped = None
    if attack.data is None and manifest.sample_kind == "picture" and (name := carried_domain(manifest)):
        shipped = load_shipped(name)
        # Heads are held out by the handful: their test slabs stand in, and the attacker knows training pictures.
        enough = len(shipped.held_out) >= 2 * FEWEST
        known, others = (shipped.held_out, shipped.held_out) if enough else (shipped.train, shipped.test)
        known, attacked, others = spaced(known, most), spaced(shipped.test, few), spaced(others, most)
    else:
        every = own_samples(manifest, attack.data, most + few, most + few).mixed()
        cut = min(most, 2 * len(every) // 3)
        known, attacked = every[:cut], every[cut:][:few]
        others = known
    if min(map(len, (known, attacked, others))) < FEWEST:
        problem = f"{len(attacked) + len(known)} samples are too few for an attack"
        raise InputError(problem, hint=f"give {3 * FEWEST} or more")
    readings = tuple(_readings(model, known, attacked, attack))
    members = None if shipped is None else shipped.train
    if attack.training is not None:
        members = own_samples(manifest, attack.training, 4 * most, 4 * most).mixed()
    calibrated = manifest.normalisation.calibrated
    return PrivacyReport(
        weights_sha256=manifest.weights_sha256,
        command=attack.command,
        sample_kind=manifest.sample_kind,
        calibration="" if calibrated is None else "its own map",
        known=len(known),
        attacked=len(attacked),
        readings=readings,
        membership=() if members is None else membership_of(model, members, others, attack),
        copies=None if members is None else copies_of(model, members, others, attack),
    )


def _readings(model: DomainModel, known: Array, attacked: Array, attack: Attack) -> Iterator[Reading]:
    """One of each kind of latent: softened and not, of each depth, and of each share where it works."""
    own = model.manifest.soften_sigma
    for sigma in (own, 0.0) if own else (0.0,):
        for share in SHARES if sigma == own and model.frame() is not None else (1.0,):
            attack.say(f"latents of a share of {share:g}, softened {sigma:g}")
            depths = DEPTHS if share == 1.0 and model.is_picture else ()
            latents = [
                latents_along(
                    model,
                    _units(model, samples),
                    depths=depths,
                    share=share,
                    evaluations=attack.evaluations,
                    sigma=sigma,
                    seed=attack.seed + turn,
                )
                for turn, samples in enumerate((known, attacked))
            ]
            for depth in sorted(latents[0], reverse=True):
                pairs = (latents[0][depth], known), (latents[1][depth], attacked)
                found = _reading(model, *pairs, attack.seed)
                yield Reading(soften_sigma=sigma, depth=depth, share=share, **found)


def _reading(
    model: DomainModel, known: tuple[Array, Array], attacked: tuple[Array, Array], seed: int
) -> dict[str, Any]:
    """What is read from attacked latents, by whoever has known ones, each with their samples."""
    (latents, truth), (seen, originals) = attacked, (known[0], _units(model, known[1]))
    drawn = judgement.resample(len(truth))
    found = correlation_matrix(latents, _units(model, truth))
    inverter = (
        fit_inverter(seen, originals, steps=STEPS, seed=seed)
        if model.is_picture
        else fit_point_inverter(seen, originals)
    )
    quality, hits = _judged(model, model.out_of_units(torch.from_numpy(inverter.inverse(latents))), truth)
    return {
        "correlation": Figure(**drawn.mean(np.diagonal(found))),
        "found_by_correlation": Figure(**drawn.mean(first_by_correlation(found))),
        "surrogate": inverter.name,
        "read": Figure(**drawn.mean(quality)),
        "found_by_reading": Figure(**drawn.mean(hits)),
    }


def _judged(model: DomainModel, read: Array, truth: Array) -> tuple[np.ndarray, np.ndarray]:
    if model.is_picture:
        cut = np.clip(read, -1.0, 1.0).astype(np.float32)
        return compare(cut, truth).psnr, metrics.hits_by_pixels(cut, truth, nearest=1)
    errors = np.sqrt(np.square((read - truth) / truth.std(axis=0)).mean(axis=1))
    return errors, metrics.ranks(read, truth) < 1


def latents_along(
    model: DomainModel,
    x: Array,
    *,
    depths: Sequence[float] = (),
    share: float = 1.0,
    evaluations: int = 24,
    sigma: float = 0.0,
    seed: int = 0,
) -> Latents:
    """Latents of samples in the model's units: of full depth (1.0), and of `depths`."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    parts = torch.split(soften(torch.from_numpy(x), sigma, noise), _together(model))
    denoiser = model.denoiser(share=share)
    found: Latents = {}
    for depth in (*depths, 1.0):
        laid = model.plan(SolverSettings(evaluations=evaluations, depth=depth), sigma)
        ends = [
            integrate(laid.encoder(part, model.condition(model.class_rows(None, len(part)))), denoiser)
            for part in parts
        ]
        found[depth] = torch.cat(ends).numpy()
    return found


def membership_of(
    model: DomainModel, members: Array, others: Array, attack: Attack
) -> tuple[Membership, ...]:
    """How well training samples are distinguished from others, by the norm of the latent and by the model's loss."""
    own, chosen, found = model.manifest.soften_sigma, spaced(members, len(others)), []
    for sigma in (own, 0.0) if own else (0.0,):
        attack.say(f"membership, softened {sigma:g}")
        norms, losses = [], []
        for turn, samples in enumerate((chosen, others)):
            x = _units(model, samples)
            seed = attack.seed + turn
            z = latents_along(model, x, evaluations=attack.evaluations, sigma=sigma, seed=seed)[1.0]
            norms.append(np.linalg.norm(z.reshape(len(z), -1), axis=1))
            losses.append(-_losses(model, torch.from_numpy(x), attack.seed))
        found.append(
            Membership(
                soften_sigma=sigma,
                members=len(chosen),
                others=len(others),
                norm=_figure(_told_apart(*norms), *norms),
                loss=_figure(_told_apart(*losses), *losses),
            )
        )
    return tuple(found)


def _told_apart(inside: Numbers, outside: Numbers) -> Callable[[Numbers, Numbers], float]:
    """The area under the curve, whichever way these tell."""
    sign = 1.0 if area(inside, outside) >= 0.5 else -1.0
    return lambda own, other: area(sign * own, sign * other)


def _losses(model: DomainModel, x: Tensor, seed: int) -> NDArray[np.float64]:
    """Mean squared error of the predicted v of each sample, (N,), with the same noise for all."""
    denoiser, total = model.denoiser(), torch.zeros(len(x), dtype=torch.float64)
    for level, turn in product(map(model.bundle.schedule.level, LEVELS), range(NOISES)):
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed * NOISES + turn))
        for rows in torch.split(torch.arange(len(x)), _together(model)):
            with torch.no_grad():
                v = denoiser(
                    level.alpha * x[rows] + level.sigma * noise,
                    level,
                    model.condition(model.class_rows(None, len(rows))),
                )
            wrong = v - (level.alpha * noise - level.sigma * x[rows])
            total[rows] += wrong.double().flatten(1).square().mean(1)
    return (total / (len(LEVELS) * NOISES)).numpy()


def _figure(statistic: Callable[..., float], *samples: Numbers) -> Figure:
    """A statistic of sets of samples, with its interval over samples of each."""
    rng = np.random.default_rng(0)
    drawn = [statistic(*(rng.choice(each, len(each)) for each in samples)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(value=float(statistic(*samples)), low=float(low), high=float(high))


def copies_of(model: DomainModel, train: Array, held_out: Array, attack: Attack) -> Copies | None:
    """How near what the model draws is to its training pictures (N, C, H, W), beside pictures held out."""
    if not model.is_picture:
        return None
    attack.say("training pictures in what the model draws")
    count = min(64, len(held_out))
    drawn = draw_samples(open_party(model.bundle), count, ArraySettings(DECODING, seed=attack.seed))
    own = metrics.reduced(train)
    samples, others = (metrics.nearest(metrics.reduced(each), own) for each in (drawn, held_out))
    near = samples < np.quantile(others, 0.01)
    return Copies(
        drawn=count,
        samples=_figure(np.median, samples),
        held_out=_figure(np.median, others),
        near=Figure(**judgement.resample(count).mean(near)),
    )


def _units(model: DomainModel, samples: Array) -> Array:
    return model.into_units(samples).cpu().numpy()


def _together(model: DomainModel) -> int:
    return 16 if model.is_picture else 4_096
