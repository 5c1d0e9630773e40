"""The six bundles that ship: how far what they draw is from their domain, and how white their latents are.

python -m benchmarks.points.models        writes docs/benchmarks/models.json
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ddib_fed.datasets import DOMAINS, draw, sample
from ddib_fed.diffusion.gaussianity import check, measure
from ddib_fed.diffusion.plans import decode, encode
from ddib_fed.files import write_json
from ddib_fed.metrics import POOL_SEED, domain_sliced_w2_floor, sliced_w2
from ddib_fed.models.bundle import pretrained

OUT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "models.json"
POINTS = 10_000
DRAWS = 5


def main() -> None:
    torch.set_num_threads(1)
    rows = [row(domain) for domain in DOMAINS]
    write_json(OUT, {"points": POINTS, "rows": rows})
    print(*rows, sep="\n")


def row(domain: str) -> dict[str, Any]:
    bundle = pretrained(domain)
    denoiser = bundle.denoiser()
    latent = encode(torch.from_numpy(sample(domain, POINTS, 0)), denoiser, bundle.schedule)
    found = []
    for seed in range(DRAWS):
        noise = torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(seed))
        drawn = decode(noise, denoiser, bundle.schedule).numpy()
        found.append(sliced_w2(drawn, draw(domain, POINTS, POOL_SEED, step=1 + seed)))
    statistics = measure(latent)
    check(statistics)
    return {
        "domain": domain,
        "digest": bundle.digest,
        "cpu_seconds": bundle.manifest.training.figures["cpu_seconds"],
        "sliced_w2": found,
        "sliced_w2_mean": sum(found) / DRAWS,
        "sliced_w2_floor": domain_sliced_w2_floor(domain, POINTS),
        "latent": asdict(statistics),
    }


if __name__ == "__main__":
    main()
