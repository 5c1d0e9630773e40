"""Encode and decode inside one node with `alf` and its auxiliary state: how exactly the points come back.

    python -m benchmarks.points.reversibility   writes docs/benchmarks/reversibility.json; non-zero when out of bounds

The scheme is algebraically reversible, so what is left is rounding. It says nothing about accuracy: with the
auxiliary carried, any scheme of this kind is the identity, whatever it translates to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from ddib_fed.datasets.synthetic import DOMAINS, sample
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.solvers import alf_pair
from ddib_fed.files import write_json
from ddib_fed.metrics.points import cycle_error
from ddib_fed.models.shipped import pretrained

OUT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "reversibility.json"
POINTS = 10_000
EVALUATIONS = 48
BOUNDS = {"float32": {"mean": 1e-6, "max": 1e-4}, "float64": {"max": 1e-11}}


def main() -> int:
    torch.set_num_threads(1)
    rows = [measure(domain, dtype) for domain in DOMAINS for dtype in ("float32", "float64")]
    write_json(OUT, {"points": POINTS, "evaluations": EVALUATIONS, "bounds": BOUNDS, "rows": rows})
    for row in rows:
        verdict = "ok" if row["ok"] else "OUT OF BOUNDS"
        print(f"{row['domain']:20} {row['dtype']}  mean {row['mean']:.1e}  max {row['max']:.1e}  {verdict}")
    return 0 if all(row["ok"] for row in rows) else 1


def measure(domain: str, dtype: str) -> dict[str, Any]:
    precision = getattr(torch, dtype)
    bundle = pretrained(domain)
    denoiser = bundle.denoiser(precision)
    grids = plan(SolverSettings("alf", 0, EVALUATIONS), bundle.schedule)
    x = torch.from_numpy(sample(domain, POINTS, 0)).to(precision)
    latent, aux = integrate(alf_pair(x, grids.encode_grid), denoiser)
    returned, _ = integrate(alf_pair(latent, grids.decode_grid, aux=aux), denoiser)
    error = cycle_error(x.numpy(), returned.numpy())
    ok = all(error[name] <= bound for name, bound in BOUNDS[dtype].items())
    return {"domain": domain, "dtype": dtype, **error, "ok": ok}


if __name__ == "__main__":
    sys.exit(main())
