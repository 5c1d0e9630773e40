"""The power of the latent gate: what share of latents that are none it refuses, and how many honest ones.

    python -m benchmarks.privacy.power [--domain satellite ...]   measure, then write the tables of docs/latents.md
    python -m benchmarks.privacy.power --report                   only the tables

Pictures: attacks on each test picture of a shipped domain, which neither training nor the bounds have seen, judged by
whoever encodes (with gate.json) and by whoever receives the latent. "Before" is the check of release 0.1 as both made
it. Points: sets of 64, 256 and 1,024 points. Intervals are Clopper and Pearson's, 95 %. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from benchmarks.pages import between, markdown
from ddib_fed.bridge.gate import Made, pass_latent
from ddib_fed.bridge.judging.measuring import PARTS, honest_rows
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.bridge.party import Leg
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.datasets.synthetic import draw
from ddib_fed.diffusion import gaussianity
from ddib_fed.diffusion.bridge import integrate, soften
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import DdibError, LatentNotGaussian
from ddib_fed.files import write_file, write_json
from ddib_fed.models.shipped import pretrained

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "privacy" / "gate"
PAGE = ROOT / "docs" / "latents.md"
PICTURES = ("satellite", "relief", "brain-t1", "brain-t2")
POINTS = (
    "moons",
    "checkerboards",
    "concentric-rings",
    "parallel-squares",
    "concentric-squares",
    "parallel-rings",
)
FLOOR = 8
"""Evaluations that a node demands by default."""
SIZES, SETS = (64, 256, 1024), 100
POOL = 16_384
"""Points of a domain that sets are drawn from."""


@dataclass(frozen=True, slots=True)
class Case:
    """Latents of one kind.

    Attributes:
        name: Of the kind.
        strength: How strong, in words; empty where there is no such thing.
        honest: Whether none should be refused.
        each: The latents, (N, *sample_shape) or sets of points.
        evaluations: That they are made with, where that matters.
    """

    name: str
    strength: str
    honest: bool
    each: list[Tensor]
    evaluations: int = 48


def main() -> int:
    """Measure what was asked, then write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", nargs="+", default=[*POINTS, *PICTURES], choices=[*POINTS, *PICTURES])
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for domain in () if given.report else given.domain:
        found = measured_pictures(domain) if domain in PICTURES else measured_points(domain)
        write_json(OUT / f"{domain}.json", found)
        print(domain, flush=True)
        for row in found["cases"]:
            print(
                f"  {row['name']} {row['strength']}: "
                + ", ".join(f"{k} {row[k]}" for k in ("before", "source", "target"))
            )
    text = PAGE.read_text(encoding="utf-8")
    for name, domains in (("gate-pictures", PICTURES), ("gate-points", POINTS)):
        text = between(text, name, "benchmarks/privacy/power.py", table(domains))
    write_file(PAGE, text.encode())
    return 0


def measured_pictures(domain: str) -> dict[str, Any]:
    """Refusals of latents of a domain's test pictures, and of what is none."""
    model = DomainModel(pretrained(domain))
    sigma = model.manifest.soften_sigma
    plain = torch.from_numpy(model.normalise(load_shipped(domain).test))
    generator = torch.Generator().manual_seed(7)
    x = soften(plain, sigma, torch.randn(plain.shape, generator=generator))
    rows = []
    for case in _picture_cases(model, plain, x, generator):
        made = [
            (z[None], Made(case.evaluations, model.bundle.allowances, picture[None]))
            for z, picture in zip(case.each, x, strict=True)
        ]
        rows.append(_row(case, made))
    return {"model": model.bundle.digest, "domain": domain, "pictures": len(x), "cases": rows}


def _picture_cases(
    model: DomainModel, plain: Tensor, x: Tensor, generator: torch.Generator
) -> Iterator[Case]:
    noise = torch.randn(x.shape, generator=generator)
    latents = {count: _encoded(model, x, count) for count in (48, 24, 12, 8, 4, 2, 1)}
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
    side = x.shape[-1] // 4
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
    """Numbers of white noise in the order of x: an invertible encoding that needs no model."""
    found = torch.empty_like(x)
    for one, drawn, into in zip(x, noise, found, strict=True):
        into.view(-1)[one.flatten().argsort()] = drawn.flatten().sort().values
    return found


def _encoded(model: DomainModel, x: Tensor, evaluations: int) -> Tensor:
    sigma = model.manifest.soften_sigma if model.is_picture else 0.0
    laid = model.plan(SolverSettings(evaluations=evaluations), sigma)
    size = 16 if model.is_picture else 4_096
    return torch.cat([integrate(laid.encoder(part), model.denoiser()) for part in torch.split(x, size)])


def measured_points(domain: str) -> dict[str, Any]:
    """Refusals of honest sets, and of others, by their size."""
    model = DomainModel(pretrained(domain))
    samples = draw(domain, POOL, 90)
    x = torch.from_numpy(model.normalise(samples))
    latents = {count: _encoded(model, x, count) for count in (48, 12, FLOOR)}
    rng = np.random.default_rng(3)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        rows += [
            _row(case, [(each, Made(case.evaluations, model.bundle.allowances)) for each in case.each])
            for case in _point_cases(samples, x, latents, size, rng)
        ]
    return {"model": model.bundle.digest, "domain": domain, "cases": rows}


def _point_cases(
    samples: np.ndarray, x: Tensor, latents: dict[int, Tensor], size: int, rng: np.random.Generator
) -> Iterator[Case]:
    chosen = [torch.from_numpy(rows) for rows in honest_rows(samples, size, SETS, rng)]
    said = f"{size} points"
    for number, part in enumerate(PARTS):
        for count, z in latents.items():
            name = f"honest sets, {part}, {count} evaluations"
            yield Case(name, said, True, [z[rows] for rows in chosen[number :: len(PARTS)]], count)
    fair = chosen[:: len(PARTS)]
    generator = torch.Generator().manual_seed(size)

    def drawn(make: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [make(torch.randn(size, x.shape[1], generator=generator)) for _ in range(SETS)]

    yield Case("raw data", said, False, [x[rows] for rows in fair])
    yield Case("zeros", said, False, [torch.zeros(size, x.shape[1])])
    yield Case("ones", said, False, [torch.ones(size, x.shape[1])])
    yield Case("uniform noise", said, False, drawn(lambda n: (torch.special.ndtr(n) - 0.5) * math.sqrt(12.0)))
    for scale in (0.55, 0.8, 1.25, 1.8):
        yield Case(f"noise, scaled by {scale:g}", said, False, drawn(lambda n, s=scale: s * n))  # type: ignore[misc]
    for share in (0.5, 0.7, 0.9):
        yield Case(
            f"noise and data, a = {share:g}",
            said,
            False,
            [
                _mixed(torch.randn(size, x.shape[1], generator=generator), share) + share * x[rows]
                for rows in fair
            ],
        )
    yield Case("noise, no latent of any point", said, False, drawn(lambda n: n))


def _row(case: Case, made: list[tuple[Tensor, Made]]) -> dict[str, Any]:
    leg = Leg(least_evaluations=FLOOR)
    checks: dict[str, Callable[[Tensor, Made], object]] = {
        "before": lambda z, _: gaussianity.examine(z),
        "source": lambda z, how: pass_latent(z, leg, how),
        "target": lambda z, how: _received(z, leg, how),
    }
    refused = {who: sum(_refused(check, z, how) for z, how in made) for who, check in checks.items()}
    about = {"name": case.name, "strength": case.strength, "honest": case.honest, "count": len(made)}
    return {**about, **refused}


def _received(z: Tensor, leg: Leg, how: Made) -> object:
    """The target's part: it knows the number of evaluations that was asked for, and nothing else."""
    return pass_latent(z, leg, Made(how.evaluations))


def _refused(check: Callable[[Tensor, Made], object], z: Tensor, how: Made) -> bool:
    try:
        check(z, how)
    except LatentNotGaussian:
        return True
    except DdibError as error:
        return error.reason == "POLICY_DENIED"
    return False


def table(domains: tuple[str, ...]) -> str:
    """Refused of all domains together, by case."""
    there = [json.loads(path.read_text()) for domain in domains if (path := OUT / f"{domain}.json").exists()]
    if not there:
        return ""
    total: dict[tuple[str, str], list[int]] = {}
    for found in there:
        for row in found["cases"]:
            sums = total.setdefault((row["name"], row["strength"]), [0, 0, 0, 0])
            for place, key in enumerate(("count", "before", "source", "target")):
                sums[place] += row[key]
    rows = tuple(
        (name, strength or "–", count, *(_share(k, count) for k in refused))
        for (name, strength), (count, *refused) in total.items()
    )
    columns = (
        "latents",
        "strength",
        "judged",
        "refused before",
        "refused by the source",
        "refused by the target",
    )
    return f"Of {', '.join(found['domain'] for found in there)}.\n\n" + markdown(columns, rows)


def _share(refused: int, count: int) -> str:
    low = 0.0 if refused == 0 else float(beta.ppf(0.025, refused, count - refused + 1))
    high = 1.0 if refused == count else float(beta.ppf(0.975, refused + 1, count - refused))
    return f"{refused / count:.3f} ({low:.3f}–{high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
