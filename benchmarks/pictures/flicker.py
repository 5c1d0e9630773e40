"""Slices of a volume with one draw of softening noise, and with one each: flicker, round trip, gate, what is read.

    python -m benchmarks.pictures.flicker [--only slices volumes]

Writes docs/benchmarks/pictures/flicker.json; one thread, 20 minutes for slices, 10 for volumes.

The study is the 48 coronal test slices of the packaged head, four slabs of 12 neighbours at 1 mm. Flicker is the mean
absolute difference of neighbouring slices of the translation, as a multiple of the same of the source's slices; of the
true pictures of the target's contrast it stands in `flicker_of_truth`. Figures of eight draws: mean, least, largest.

Of the models of volumes, 12 test blocks of 32^3 at 2 mm: the same of their coronal slices, without what is read; three
draws.

What is read, in dB, is the mean of all draws, with intervals over clusters of slices. Without the model somebody has
480 pairs of other studies, sheets of the training slabs, 48 with one draw or with one each as the study that is read,
and fits the surrogates of `lab.report` to
    latent          z, which becomes x
    mean            z less the mean of its study's latents, which becomes x
    known           z less that of a known slice of the study, which becomes x less that slice
and with the source's model takes u, the softened slice that z is the latent of, and
    model           one estimate of x from u by the network
    model, study    u less the noise, estimated by the mean of what the network takes for noise in all slices
    model, known    u less the noise of a known slice; all without what helps less than the line before
The known slice is the seventh of each slab (`guess`: it is taken for the others as it is); the others are read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import options
from benchmarks.calibration.directed import OUT, Directed
from ddib_fed.data.folder import expand
from ddib_fed.datasets import shipped_bytes, slabs_of
from ddib_fed.diffusion.plans import SolverSettings, soften
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.engine.gate import beyond, pass_latent, profile
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Leg
from ddib_fed.errors import LatentNotGaussian
from ddib_fed.files import write_json
from ddib_fed.lab.report import fit_inverter
from ddib_fed.metrics import psnr, resample
from ddib_fed.models.bundle import pretrained

FILE = OUT.parent / "pictures" / "flicker.json"
KINDS = ["slices", "volumes"]
VOLUME_DRAWS = 3
DRAWS, EVALUATIONS, STUDY, SLAB, KNOWN_PAIRS, STEPS = 8, 24, 48, 12, 480, 200
AT = 6
"""Place of the known slice in its slab."""
NEIGHBOURS = np.array([row for row in range(STUDY - 1) if row % SLAB != SLAB - 1])
NEAREST = np.arange(STUDY) // SLAB * SLAB + AT
UNKNOWN = np.arange(STUDY) % SLAB != AT


class Side:
    """One model: its ways from pictures in its units to latents, and back."""

    def __init__(self, model: DomainModel) -> None:
        self.model, self.sigma = model, model.manifest.soften_sigma
        self.plain = self._plan(0.0)
        self.soft = self._plan(self.sigma)
        self.to_soft = replace(self.soft, decode_grid=self.soft.encode_grid.reversed())
        self.denoiser = model.denoiser()

    def _plan(self, sigma: float) -> Any:
        return self.model.plan(SolverSettings(evaluations=EVALUATIONS), sigma)

    def each(self, x: Tensor, leg: Callable[[Tensor], Any]) -> Tensor:
        return torch.cat([integrate(leg(part), self.denoiser) for part in torch.split(x, 16)])

    def pictures(self, x: Tensor) -> np.ndarray:
        return np.clip(self.model.denormalise(x.float().numpy()), -1.0, 1.0)

    def estimate(self, u: Tensor) -> Tensor:
        """E[x0 | u] of softened pictures."""
        level = self.soft.encode_grid.levels[0]
        return level.alpha * u - level.sigma * self.denoiser(u, level)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="the others' rows stay")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    rows = [row for row in json.loads(FILE.read_text()) if row["kind"] not in only]
    for source, target in (("brain-t1", "brain-t2"), ("brain-t2", "brain-t1")):
        if "slices" in only:
            rows += [measured(Directed(source, target), shared=shared) for shared in (False, True)]
        if "volumes" in only:
            rows.append(of_volumes(f"{source}-volume", f"{target}-volume"))
        print(rows[-1], flush=True)
        write_json(FILE, sorted(rows, key=lambda row: (row["source"][:8], KINDS.index(row["kind"]))))
    return 0


def noise(like: Tensor, seed: int, *, shared: bool) -> Tensor:
    """Of studies of `STUDY` slices: one draw for each study, or for each slice."""
    generator = torch.Generator().manual_seed(seed)
    if not shared:
        return torch.randn(like.shape, generator=generator)
    drawn = torch.randn((len(like) // STUDY, *like.shape[1:]), generator=generator)
    return drawn.repeat_interleave(STUDY, 0)


def flicker(pictures: np.ndarray) -> float:
    return float(np.abs(pictures[NEIGHBOURS + 1] - pictures[NEIGHBOURS]).mean())


def measured(directed: Directed, *, shared: bool) -> dict[str, Any]:
    source, target = (Side(party.model) for party in directed.parties)
    x = torch.from_numpy(source.model.normalise(directed.test[0]))
    drawn: list[dict[str, float]] = []
    latents = []
    for seed in range(DRAWS):
        u = soften(x, source.sigma, noise(x, seed, shared=shared))
        z = source.each(u, source.soft.encoder)
        y = target.each(z, target.plain.decoder)
        back = source.each(target.each(y, target.plain.encoder), source.plain.decoder)
        cycle = psnr(source.pictures(back), directed.test[0])
        drawn.append(
            {
                "flicker": flicker(target.pictures(y)) / flicker(directed.test[0]),
                "round_trip": float(cycle.mean()),
                "psnr": float(psnr(target.pictures(y), directed.test[1]).mean()),
                "correlation": neighbours_correlate(z),
                "suspects": suspects(source.model, z, u),
                "refused": sum(map(refused, z)) / len(z),
            }
        )
        latents.append(z)
    figures = {name: spread([each[name] for each in drawn]) for name in drawn[0]}
    return {
        "kind": "slices",
        "source": directed.source_name,
        "target": directed.target_name,
        "shared": shared,
        "models": [bundle.digest for bundle in directed.bundles],
        "draws": DRAWS,
        "evaluations": EVALUATIONS,
        "flicker_of_truth": flicker(directed.test[1]) / flicker(directed.test[0]),
        **figures,
        "read": read_without_model(directed, source, latents, x, shared=shared)
        | read_with_model(directed, source, latents, x),
    }


def of_volumes(*names: str) -> dict[str, Any]:
    bundles = [pretrained(name) for name in names]
    source, target = (Side(DomainModel(bundle)) for bundle in bundles)
    given, truth = (expand(shipped_bytes(name, ["test"])[0][::2]) for name in names)
    x, drawn = torch.from_numpy(source.model.normalise(given)), []
    for seed in range(VOLUME_DRAWS):
        u = soften(x, source.sigma, noise(x, seed, shared=False))
        z = source.each(u, source.soft.encoder)
        y = target.each(z, target.plain.decoder)
        back = source.each(target.each(y, target.plain.encoder), source.plain.decoder)
        made = target.pictures(y)
        drawn.append(
            {
                "flicker": changes(made) / changes(given),
                "round_trip": float(psnr(source.pictures(back), given).mean()),
                "psnr": float(psnr(made, truth).mean()),
                "refused": sum(map(refused, z)) / len(z),
            }
        )
    return {
        "kind": "volumes",
        "source": names[0],
        "target": names[1],
        "models": [bundle.digest for bundle in bundles],
        "draws": VOLUME_DRAWS,
        "evaluations": EVALUATIONS,
        "flicker_of_truth": changes(truth) / changes(given),
        **{name: spread([each[name] for each in drawn]) for name in drawn[0]},
    }


def changes(volumes: np.ndarray) -> float:
    """From coronal slice to coronal slice, on the mean; volumes (N, 1, D, H, W)."""
    return float(np.abs(np.diff(volumes, axis=3)).mean())


def spread(values: list[float]) -> dict[str, float]:
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values)}


def neighbours_correlate(z: Tensor) -> float:
    flat = z.flatten(1).numpy()
    return float(np.mean([np.corrcoef(flat[row], flat[row + 1])[0, 1] for row in NEIGHBOURS]))


def suspects(model: DomainModel, z: Tensor, u: Tensor) -> float:
    """Share of latents outside the model's usual bounds, which the source encodes again."""
    allowed = model.bundle.allowances
    assert allowed is not None
    assert allowed.pictures is not None
    return float(
        np.mean([bool(beyond(profile(*each).numpy(), allowed.pictures)) for each in zip(z, u, strict=True)])
    )


def refused(z: Tensor) -> bool:
    """By the fixed bounds of both sides."""
    try:
        pass_latent(z[None], Leg())
    except LatentNotGaussian:
        return True
    return False


def read_without_model(
    directed: Directed, source: Side, latents: list[Tensor], x: Tensor, *, shared: bool
) -> dict[str, Any]:
    others = torch.from_numpy(source.model.normalise(directed.pictures[0].train[:KNOWN_PAIRS]))
    softened = soften(others, source.sigma, noise(others, 100, shared=shared))
    known = source.each(softened, source.soft.encoder)
    slabs = len(slabs_of(directed.pictures[0].domain.side, "train"))
    # Sheets go through the slabs in turn: that of the same slab which comes first in the study is the known one.
    rows = np.arange(KNOWN_PAIRS)
    first = rows // STUDY * STUDY + rows % STUDY % slabs

    def read(see: Callable[[Tensor, np.ndarray], Tensor], beside: float = 0.0) -> Any:
        surrogate = fit_inverter(
            see(known, first).numpy(), (others - beside * others[first]).numpy(), steps=STEPS
        )
        return figure(
            directed,
            source,
            [
                torch.from_numpy(surrogate.inverse(see(z, NEAREST).numpy())) + beside * x[NEAREST]
                for z in latents
            ],
        )

    return {
        "latent": read(lambda z, _: z),
        "mean": read(lambda z, _: z - mean_of_studies(z)),
        "guess": figure(directed, source, [x[NEAREST]]),
        "known": read(lambda z, at: z - z[at], beside=1.0),
    }


def mean_of_studies(z: Tensor) -> Tensor:
    return z.unflatten(0, (-1, STUDY)).mean(1).repeat_interleave(STUDY, 0)


def read_with_model(directed: Directed, source: Side, latents: list[Tensor], x: Tensor) -> dict[str, Any]:
    alpha = 1.0 / float(np.hypot(1.0, source.sigma))
    soft = [source.each(z, source.to_soft.decoder) / alpha for z in latents]
    plain = [source.estimate(alpha * u) for u in soft]
    study = [u - mean_of_studies(u - guess) for u, guess in zip(soft, plain, strict=True)]
    known = [u - (u - x)[NEAREST] for u in soft]
    found: dict[str, Any] = {}
    for name, each in (("model", plain), ("model, study", study), ("model, known", known)):
        ours = [*found.values(), figure(directed, source, each)]
        found[name] = max(ours, key=lambda one: float(one["value"]))
    return found


def figure(directed: Directed, source: Side, found: list[Tensor]) -> Any:
    """dB of what is read of the slices that are not known, the mean of all draws."""
    values = np.mean([psnr(source.pictures(each), directed.test[0]) for each in found], axis=0)
    return resample(int(UNKNOWN.sum()), directed.clusters[UNKNOWN]).mean(values[UNKNOWN])


if __name__ == "__main__":
    sys.exit(main())
