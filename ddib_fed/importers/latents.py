"""What importers of latent models share: an autoencoder is tried on own samples, which alone show a wrong number of
groups or a wrong scale; the scale of its latents is given, read or measured, never assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.files import first_problem
from ddib_fed.importing import (
    Bundle,
    Fact,
    Imported,
    ImportOptions,
    LatentSpace,
    LibraryConfig,
    Manifest,
    Normalisation,
    Parameterisation,
    PictureFormat,
    ScheduleConfig,
    Training,
    import_note,
)

LEAST_PSNR = 20.0
"""Of an autoencoder on own samples, dB: trained ones reach 25 to 40, random ones about 0. Wrong groups alone may leave
more than 20, so others are tried too (`better_groups`)."""
GROUPS_ON = 2  # samples
BETTER = 1.0  # dB
SIDE = {2: 512, 3: 64}  # of a reconstruction, by dimensions
BETAS = {
    "linear_beta": "linear", "linear": "linear", "scaled_linear_beta": "scaled-linear",
    "scaled_linear": "scaled-linear", "sigmoid_beta": "sigmoid", "sigmoid": "sigmoid", "cosine": "cosine",
}  # fmt: skip
"""Schedules by the names of diffusers (with a cosine that has another name there), MONAI, and `generative`."""
PREDICTIONS: Mapping[str, Parameterisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


class Read(NamedTuple):
    """A network of a library, its weights, and the file that they are from."""

    network: LibraryConfig
    state: Mapping[str, Tensor]
    source: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """Content of a folder: an autoencoder, a network on its latents, or one on pixels."""

    folder: Path
    given: ImportOptions
    autoencoder: Read | None
    denoiser: Read | None
    sides: tuple[int, ...]
    units: Normalisation
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...] = ()
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    parameterisation: Parameterisation = "eps"
    scale: Fact | None = None
    moved: tuple[Any, Any] = (0.0, 1.0)
    picture: PictureFormat = field(default_factory=PictureFormat)
    classes: tuple[str, ...] = ()

    def imported(self) -> Imported:
        read, encoder = self.denoiser, None if self.autoencoder is None else self._bundle(self.autoencoder)
        if self.given.scale_factor is not None and (encoder is None or read is None):
            what = "no autoencoder" if encoder is None else "no model of latents"
            raise SettingsInvalid(
                f"{self.folder} holds {what}: --scale-factor says nothing", hint="leave it out"
            )
        tried = None if encoder is None else self._tried(encoder)
        facts, warnings, latents = [*self.facts], [*self.warnings], None
        if self.given.check is not None and encoder is None:
            warnings.append(f"{self.folder} holds no autoencoder, which --check tries: nothing was checked")
        if tried is not None:
            facts.append(Fact("reconstruction", f"{tried.psnr:.1f} dB", "--check"))
        if read is None:
            assert encoder is not None
            return Imported(encoder.manifest, encoder.state, tuple(facts), {}, (), tuple(warnings))
        inside = None
        if encoder is not None:
            inside, scale = Imported(encoder.manifest, encoder.state), self._scale(tried)
            facts.append(scale)
            latents = self._latents(encoder, float(scale.value))
            deviation = 1.0 if tried is None else float(scale.value) * tried.deviation
            if not 0.5 < deviation < 2.0 and self.moved == (0.0, 1.0):
                warnings.append(
                    f"with the scale factor {scale.value} latents of own samples deviate by {deviation:.2g}, and not 1"
                )
        channels = read.network.in_channels if encoder is None else encoder.manifest.sample_shape[0]
        manifest = self._manifest(
            read, "generator", channels,
            parameterisation=self.parameterisation, time_input="timestep", schedule=self.schedule,
            soften_sigma=self.given.soften_sigma or 0.0, latents=latents, classes=self.classes,
        )  # fmt: skip
        return Imported(manifest, read.state, tuple(facts), {}, (), tuple(warnings), inside)

    def _latents(self, encoder: Bundle, scale: float) -> LatentSpace:
        network, (mean, deviation) = encoder.manifest.network, self.moved
        assert isinstance(network, LibraryConfig)
        std = tuple(each / scale for each in deviation) if isinstance(deviation, tuple) else deviation / scale
        return LatentSpace(
            shape=(network.latent_channels, *(side // network.divisor for side in self.sides)),
            autoencoder_sha256=encoder.manifest.autoencoder_sha256,
            normalisation=Normalisation(mean=mean, std=std),
        )

    def _manifest(self, read: Read, role: str, channels: int, **fields: Any) -> Manifest:
        whole = self.folder.resolve().name
        try:
            return Manifest(
                name=(self.given.name or whole)[:100],
                domain=self.given.domain,
                role=role,
                network=read.network,
                sample_kind="picture" if read.network.dims == 2 else "volume",
                sample_shape=(channels, *self.sides),
                normalisation=self.units,
                picture=self.picture,
                data=import_note("the folder", self.warnings),
                training=Training(command=f"imported from the folder {whole}"[:2000]),
                **fields,
            )
        except ValidationError as error:
            raise SettingsInvalid(
                f"{read.source}: {first_problem(error)[1]}",
                hint="--size says the sides that it was trained on, as 128x128 or 128x128x64",
                facts={"field": "size"},
            ) from error

    def _bundle(self, read: Read) -> Bundle:
        manifest = self._manifest(read, "autoencoder", read.network.in_channels)
        return Imported(manifest, read.state).bundle(read.source)

    def _tried(self, encoder: Bundle) -> Tried | None:
        if self.given.check is None:
            return None
        samples = list(self.given.samples(encoder.manifest))
        tried, better = try_autoencoder(encoder, samples), better_groups(encoder, samples)
        if tried.psnr < LEAST_PSNR and not better:
            better = f"below {LEAST_PSNR:g} dB its settings are wrong, or the samples are not its own"
        if better:
            raise BundleInvalid(
                f"{self.folder}: its autoencoder reconstructs own samples at {tried.psnr:.1f} dB; {better}",
                hint="look at norm_num_groups in the configuration, at --range LOW:HIGH, and at whether --check names "
                "pictures as it was trained on",
                facts={"psnr": round(tried.psnr, 2)},
            )
        return tried

    def _scale(self, tried: Tried | None) -> Fact:
        if self.given.scale_factor is not None:
            return Fact("scale_factor", repr(self.given.scale_factor), "--scale-factor")
        if self.scale is not None:
            return self.scale
        if tried is not None:
            return Fact("scale_factor", repr(1.0 / tried.deviation), "measured, --check: 1 / deviation")
        raise SettingsInvalid(
            f"{self.folder}: no file says the latents' scale_factor, and 1 would give wrong pictures without an error",
            hint="--scale-factor NUMBER, which the training printed or saved; or --check FOLDER with pictures as it "
            "was trained on, which measures it",
            facts={"field": "scale_factor"},
        )


class Tried(NamedTuple):
    """Median PSNR of reconstructions, dB; deviation of the latents."""

    psnr: float
    deviation: float


@torch.no_grad()
def try_autoencoder(autoencoder: Bundle, samples: Iterable[NDArray[np.float32]]) -> Tried:
    """Reconstruct samples (C, *sides) in [-1, 1], the middle of large ones."""
    network: Any = autoencoder.network()
    units, config = autoencoder.manifest.normalisation, autoencoder.manifest.network
    assert isinstance(config, LibraryConfig)
    psnrs, latents = [], []
    for sample in samples:
        x = sample[(None, slice(None), *_middle(sample.shape[1:], SIDE[config.dims], config.divisor))]
        z = network.encode(torch.from_numpy(units.apply(x)))
        error = float(np.square(units.undo(network.decode(z).numpy()) - x).mean())
        psnrs.append(10 * math.log10(4 / max(error, 1e-12)))
        latents.append(z.flatten())
    return Tried(float(np.median(psnrs)), float(torch.cat(latents).std()))


def better_groups(autoencoder: Bundle, samples: Sequence[NDArray[np.float32]]) -> str:
    """Name a number of groups that reconstructs better than the autoencoder's; empty if none does."""
    whole, few = autoencoder.manifest, samples[:GROUPS_ON]
    network = whole.network
    assert isinstance(network, LibraryConfig)
    if not network.name.startswith("AutoencoderK"):
        return ""
    configured, psnrs = int(str(network.arguments.get("norm_num_groups", 32))), dict[int, float]()
    for groups in (1, 2, 4, 8, 16, 32, 64):
        with suppress(SettingsInvalid):  # channels that do not divide
            arguments = {**network.arguments, "norm_num_groups": groups}
            other = whole.model_copy(update={"network": network.model_copy(update={"arguments": arguments})})
            psnrs[groups] = try_autoencoder(replace(autoencoder, manifest=other), few).psnr
    best = max(psnrs, key=lambda groups: psnrs[groups])
    if psnrs[best] < psnrs.get(configured, 0.0) + BETTER:
        return ""
    return f"norm_num_groups is {configured}, and with {best} it would be {psnrs[best]:.1f} dB"


def _middle(sides: tuple[int, ...], most: int, divisor: int) -> Iterator[slice]:
    for side in sides:
        length = min(side, most) // divisor * divisor
        yield slice((side - length) // 2, (side - length) // 2 + length)


def step_schedule(name: str, steps: int, ends: tuple[float, float]) -> ScheduleConfig:
    """Return a schedule of integer steps between two betas, left out for cosine and the public linear one."""
    if name == "cosine" or (name == "linear" and (steps, *ends) == (1000, 0.0001, 0.02)):
        return ScheduleConfig(name, steps)
    return ScheduleConfig(name, steps, beta_start=ends[0], beta_end=ends[1])


def negated(read: Read, layer: str) -> Read:
    """Return the network with minus its output: `layer` is its last, and linear."""
    turned = {key: -value if key.startswith(f"{layer}.") else value for key, value in read.state.items()}
    return read._replace(state=turned)
