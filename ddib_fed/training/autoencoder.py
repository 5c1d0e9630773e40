"""Learning an autoencoder of pictures, which makes them into the latents z that a model is trained on, and back.

loss    mean |decode(z) - x| + PERCEPTUAL_WEIGHT d(decode(z), x) + KL_WEIGHT KL(N(mean, deviation) || N(0, 1)),
        z = mean + deviation eps

x are windows of pictures in [-1, 1]: many windows tell a convolutional network more than few pictures. d is the
perceptual loss of Johnson et al. (2016), of pictures of one or three channels. Whole held-out pictures are measured.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddib_fed import metrics
from ddib_fed.datasets import generator_of, uniforms
from ddib_fed.diffusion.denoiser import kind_of
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.evaluation.features import perceptual_distance
from ddib_fed.evaluation.sheets import save_sheet
from ddib_fed.models.units import opponent_to_rgb
from ddib_fed.networks.config import LibraryConfig
from ddib_fed.networks.principal import begin_linear
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures import COLUMNS, PictureTask, Samples, Start, require_divided, require_followed
from ddib_fed.training.sources import Floats, PictureSource
from ddib_fed.training.trainer import Piece, Trainer

TARGET = "monai.networks.nets.AutoencoderKL"
KL_WEIGHT = 2.5e-4
"""Of the mean over the numbers of a latent, 1e-6 of their sum for a window: keeps their scale, and costs no PSNR."""
PERCEPTUAL_WEIGHT = 0.1
WINDOW = 64
"""Side of a window, or the picture's: at an equal number of pixels a step, smaller windows are more different ones."""
BEGIN_NUMBERS = 1 << 23  # of the windows that the first weights follow from, about so many
HELD_OUT, MEASURED = 32, 256
"""Held-out pictures of which the loss is taken as the run goes, and figures at its end; at most."""
_AT_ONCE = 8


def autoencoder_network(config: TrainConfig, source: PictureSource) -> LibraryConfig:
    channels, *sides = source.shape
    follows = {"spatial_dims": len(sides), "in_channels": channels, "out_channels": channels}
    require_followed(config, follows)
    network = LibraryConfig(target=TARGET, arguments={**config.network, **follows})
    require_divided(sides, network.divisor)
    return network


class AutoencoderTask(PictureTask):
    """Batches of windows; a sample's `eps` is the noise of its latent."""

    network: LibraryConfig

    def __init__(self, config: TrainConfig, source: PictureSource) -> None:
        start = Start(autoencoder_network(config, source), ScheduleConfig())
        super().__init__(config, replace(source, size=min(WINDOW, source.shape[-1])), start)
        self.pictures = source

    def initial_network(self) -> nn.Module:
        network = super().initial_network()
        windows = BEGIN_NUMBERS // math.prod(self.source.shape)
        begin_linear(network, self.take(0, 0, max(1, min(windows, len(self.source.train)))).x0)
        return network

    def take(self, step: int, first: int, count: int) -> Samples:
        u = uniforms(self.config.seed, step, count, COLUMNS + (self.source.train.ndim == 5), first=first)
        chosen = self._chosen(step * self.config.batch + first, count)
        x = self.normal.apply(self.changed(chosen, u, step, first))
        shape = self.network.latent_channels, *(side // self.network.divisor for side in x.shape[2:])
        each = (generator_of(self.config.seed, step, row) for row in range(first, first + count))
        eps = np.stack([generator.standard_normal(shape, np.float32) for generator in each])
        return Samples(torch.from_numpy(x), torch.from_numpy(eps), None)

    def loss(self, network: nn.Module, piece: Piece, samples: Samples) -> tuple[Tensor, Tensor]:
        del piece  # which the samples hold all of
        losses = self._errors(network, samples.x0, samples.eps)
        return losses.sum() / self.config.batch, losses

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        x = torch.from_numpy(self.normal.apply(self._held_out_pictures(HELD_OUT)))
        losses = [self._errors(network, part, None).cpu() for part in torch.split(x, min(at_once, _AT_ONCE))]
        return float(torch.cat(losses).double().mean())

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        shown = slice(self.config.samples)
        pictures = self._held_out_pictures(MEASURED if last else self.config.samples)
        made = self.reconstructed(trainer.averaged(), pictures)
        save_sheet(folder / "samples.png", {"held out": pictures[shown], "decoded": made[shown]})
        flat = (*pictures.shape[:2], -1, pictures.shape[-1])
        figures = {"reconstruction_psnr": metrics.psnr(made.reshape(flat), pictures.reshape(flat))}
        if pictures.ndim == 4 and min(pictures.shape[2:]) >= metrics.WINDOW:
            figures["reconstruction_ssim"] = metrics.ssim(made, pictures)
        self.figures = {name: round(float(np.median(values)), 4) for name, values in figures.items()}
        return ""

    def reconstructed(self, network: Any, pictures: Floats) -> Floats:
        """Encode and decode pictures (N, C, *sides) in [-1, 1]."""
        parts = torch.split(torch.from_numpy(self.normal.apply(pictures)), _AT_ONCE)
        with torch.no_grad():
            made = [network.decode(network.encode(part.to(kind_of(network)[1]))).cpu() for part in parts]
        return np.clip(self.normal.undo(torch.cat(made).numpy()), -1, 1)

    def aside(self) -> None:
        return None

    def manifest(self) -> dict[str, Any]:
        return {
            "role": "autoencoder",
            "sample_kind": "picture" if len(self.pictures.shape) == 3 else "volume",
            "sample_shape": self.pictures.shape,
            "network": self.network,
            "normalisation": self.normal,
            "soften_sigma": self.config.soften_sigma,
            "picture": self.pictures.picture,
            "data": self.pictures.note,
        }

    def _errors(self, network: Any, x: Tensor, eps: Tensor | None) -> Tensor:
        """Return the loss of each picture (n,), without `eps` from the mean of its latent."""
        x = x.to(kind_of(network)[1])
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            mean, deviation = network.posterior(x)
            decoded = network.decode(mean if eps is None else mean + deviation * eps)
        mean, deviation = mean.float(), deviation.float()
        gap = 0.5 * (mean.square() + deviation.square() - 1.0) - deviation.log()
        made, real = self._in_pixels(decoded.float()), self._in_pixels(x)
        losses: Tensor = (made - real).abs().flatten(1).mean(1) + KL_WEIGHT * gap.flatten(1).mean(1)
        if made.ndim == 4 and made.shape[1] in {1, 3}:
            losses = losses + PERCEPTUAL_WEIGHT * perceptual_distance(made, real)
        return losses

    def _in_pixels(self, x: Tensor) -> Tensor:
        """Return pictures in [-1, 1] of normalised ones (n, C, *sides), as `Normalisation.undo`, with gradients."""
        mean, std = (
            x.new_tensor(part).reshape(-1, *(1,) * (x.ndim - 2))
            for part in (self.normal.mean, self.normal.std)
        )
        raw = x * std + mean
        return raw if self.normal.colours == "rgb" else torch.stack(opponent_to_rgb(*raw.unbind(1)), dim=1)
