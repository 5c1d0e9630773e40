"""The power of the latent gate: what share of latents that are none it refuses, and how many honest ones.

    python -m benchmarks.privacy.power [--domain satellite ...]

Pictures: attacks on each test picture of a shipped domain, which neither training nor the bounds have seen, judged by
whoever encodes (with gate.json, and by encoding again) and by whoever receives the latent. Points: sets of 1 to 1,024
points. One thread.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import options
from benchmarks.privacy.usual import PARTS, encoded, honest_rows
from ddib_fed.datasets import DOMAINS, draw, load_shipped
from ddib_fed.diffusion.plans import soften
from ddib_fed.engine.gate import Made, pass_latent
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Leg
from ddib_fed.errors import DdibError, LatentNotGaussian
from ddib_fed.files import write_json
from ddib_fed.models.bundle import pretrained

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "privacy" / "gate"
PICTURES = ("satellite", "relief", "brain-t1", "brain-t2")
FLOOR = 8
"""Evaluations that a node demands by default."""
SIZES, SETS = (1, 8, 16, 64, 128, 256, 1024), 40
POOL = 16_384
"""Points of a domain that sets are drawn from."""


@dataclass(frozen=True, slots=True)
class Case:
    """Latents of one kind."""

    name: str
    strength: str
    honest: bool
    each: list[Tensor]
    evaluations: int = 48
    of: list[Tensor] | None = None


def main() -> int:
    """Measure what was asked."""
    parser = options(__doc__)
    parser.add_argument("--domain", nargs="+", default=[*DOMAINS, *PICTURES], choices=[*DOMAINS, *PICTURES])
    given = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for domain in given.domain:
        found = measured_pictures(domain) if domain in PICTURES else measured_points(domain)
        write_json(OUT / f"{domain}.json", found)
        print(domain, flush=True)
        for row in found["cases"]:
            print(
                f"  {row['name']} {row['strength']}: "
                + ", ".join(f"{k} {row[k]}" for k in ("source", "target"))
            )
    return 0


def measured_pictures(domain: str) -> dict[str, Any]:
    """Refusals of latents of a domain's test pictures, and of what is none."""
    model = DomainModel(pretrained(domain))
    sigma = model.manifest.soften_sigma
    plain = torch.from_numpy(model.normalise(load_shipped(domain).test))
    generator = torch.Generator().manual_seed(7)
    x = soften(plain, sigma, torch.randn(plain.shape, generator=generator))
    rows = []
    latents = {count: encoded(model, x, count) for count in (48, 24, 12, 8, 4, 2, 1)}
    for case in _picture_cases(latents, plain, generator):
        honest = torch.split(latents[case.evaluations], 1)
        made = [
            (z[None], Made(case.evaluations, picture[None], again.__getitem__, model.bundle.allowances))
            for z, picture, again in zip(case.each, x, honest, strict=True)
        ]
        rows.append(_row(case, made))
    return {"model": model.bundle.digest, "domain": domain, "pictures": len(x), "cases": rows}


def _picture_cases(latents: dict[int, Tensor], plain: Tensor, generator: torch.Generator) -> Iterator[Case]:
    noise = torch.randn(plain.shape, generator=generator)
    for count in (48, 24, 12, 8):
        yield Case("honest latents", f"{count} evaluations", True, [*latents[count]], count)
    for count in (4, 2, 1):
        yield Case("too few evaluations", f"{count}", False, [*latents[count]], count)
        yield Case("the same, by the figures alone", f"{count}", False, [*latents[count]])
    for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        yield Case("noise and picture", f"a = {share:g}", False, [*(_mixed(noise, share) + share * plain)])
    for share in (0.3, 0.5, 0.7):
        yield Case(
            "latent and picture", f"a = {share:g}", False, [*(_mixed(latents[48], share) + share * plain)]
        )
    yield Case("pixels in another order", "", False, [*_permuted(plain, generator)])
    yield Case(
        "pixels in another order", "of unit deviation", False, [*_standard(_permuted(plain, generator))]
    )
    hidden = _by_rank(_permuted(plain, generator), noise)
    yield Case("pixels in another order", "ranks made normal", False, [*hidden])
    window = latents[48].clone()
    side = plain.shape[-1] // 4
    window[..., side : 3 * side, side : 3 * side] = _standard(plain)[..., side : 3 * side, side : 3 * side]
    yield Case("a quarter of the latent is the picture", "", False, [*window])
    for scale in (0.55, 0.7, 0.8, 0.9, 1.1, 1.25, 1.4, 1.8):
        yield Case("noise, scaled", f"by {scale:g}", False, [*(scale * noise)])
    yield Case("noise, no latent of any picture", "", False, [*noise])
    yield Case("the latent of another picture", "", False, [*latents[48].roll(1, 0)])


def _mixed(z: Tensor, share: float) -> Tensor:
    return math.sqrt(1 - share * share) * z


def _permuted(x: Tensor, generator: torch.Generator) -> Tensor:
    orders = [torch.randperm(x[0, 0].numel(), generator=generator) for _ in x]
    return torch.stack(
        [one.flatten(1)[:, order].reshape(one.shape) for one, order in zip(x, orders, strict=True)]
    )


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


def _by_rank(x: Tensor, noise: Tensor) -> Tensor:
    found = torch.empty_like(x)
    for one, drawn, into in zip(x, noise, found, strict=True):
        into.view(-1)[one.flatten().argsort()] = drawn.flatten().sort().values
    return found


def _made(model: DomainModel, samples: Tensor, evaluations: int) -> Made:
    def again(rows: list[int]) -> Tensor:
        return encoded(model, samples[rows], evaluations)

    return Made(evaluations, samples, again, model.bundle.allowances)


def measured_points(domain: str) -> dict[str, Any]:
    """Refusals of honest sets, and of others, by their size."""
    model = DomainModel(pretrained(domain))
    samples = draw(domain, POOL, 90)
    x = torch.from_numpy(model.normalise(samples))
    latents = {count: encoded(model, x, count) for count in (48, 12, FLOOR)}
    rng = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        rows += [
            _row(
                case,
                [
                    (each, _made(model, x[rows_of], case.evaluations))
                    for each, rows_of in zip(case.each, case.of or [], strict=True)
                ],
            )
            for case in _point_cases(samples, x, latents, size, rng)
        ]
    return {"model": model.bundle.digest, "domain": domain, "cases": rows}


def _point_cases(
    samples: np.ndarray, x: Tensor, latents: dict[int, Tensor], size: int, rng: np.random.Generator
) -> Iterator[Case]:
    chosen = [torch.from_numpy(rows) for rows in honest_rows(samples, size, SETS, rng)]
    said = f"{size} points" if size > 1 else "1 point"
    for number, part in enumerate(PARTS):
        for count, z in latents.items():
            of = chosen[number :: len(PARTS)]
            yield Case(
                f"honest sets, {part}, {count} evaluations", said, True, [z[rows] for rows in of], count, of
            )
    fair = chosen[:: len(PARTS)]
    generator = torch.Generator().manual_seed(size)
    noise = [torch.randn(size, x.shape[1], generator=generator) for _ in fair]
    made: dict[str, list[Tensor]] = {
        "raw data": [x[rows] for rows in fair],
        "zeros": [torch.zeros(size, x.shape[1]) for _ in fair],
        "uniform noise": [(torch.special.ndtr(n) - 0.5) * math.sqrt(12.0) for n in noise],
        "noise, no latent of any point": noise,
        **{f"noise, scaled by {scale:g}": [scale * n for n in noise] for scale in (0.55, 0.8, 1.25, 1.8)},
        **{
            f"noise and data, a = {share:g}": [
                _mixed(n, share) + share * x[rows] for n, rows in zip(noise, fair, strict=True)
            ]
            for share in (0.5, 0.7, 0.9)
        },
    }
    for name, each in made.items():
        yield Case(name, said, False, each, of=fair)


def _row(case: Case, made: list[tuple[Tensor, Made]]) -> dict[str, Any]:
    leg = Leg(least_evaluations=FLOOR)
    checks: dict[str, Callable[[Tensor, Made], object]] = {
        "source": lambda z, how: pass_latent(z, leg, how),
        "target": lambda z, how: _received(z, leg, how),
    }
    refused = {who: sum(_refused(check, z, how) for z, how in made) for who, check in checks.items()}
    about = {"name": case.name, "strength": case.strength, "honest": case.honest, "count": len(made)}
    return {**about, **refused}


def _received(z: Tensor, leg: Leg, how: Made) -> object:
    return pass_latent(z, leg, Made(how.evaluations))


def _refused(check: Callable[[Tensor, Made], object], z: Tensor, how: Made) -> bool:
    try:
        check(z, how)
    except LatentNotGaussian:
        return True
    except DdibError as error:
        return error.reason == "POLICY_DENIED"
    return False


if __name__ == "__main__":
    sys.exit(main())
