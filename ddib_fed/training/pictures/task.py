"""Learning a model, or a classifier, of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.diffusion.transfers import on_device
from ddib_fed.errors import ExtraMissing
from ddib_fed.metrics.sample_verdict import SAMPLES
from ddib_fed.metrics.structure import Thresholds
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.networks.registry import network_with
from ddib_fed.networks.spectrum import Moments
from ddib_fed.networks.unet import UNet
from ddib_fed.samples.folders import expand
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.levels import level_sampler
from ddib_fed.training.loop.prefetch import Piece
from ddib_fed.training.loop.trainer import Trainer
from ddib_fed.training.objective import Objective
from ddib_fed.training.pictures import sheet
from ddib_fed.training.pictures.batches import Batches, Samples
from ddib_fed.training.pictures.initial import Start, channels_last, new_network
from ddib_fed.training.pictures.sources import PictureSource, normalisation

HELD_OUT_PICTURES = 256
MEASURED_PICTURES, MEASURED_NUMBERS = 8_192, 1 << 28
"""At most so many pictures, and numbers in them, that a spectrum is measured of."""
_MEASURED_AT_ONCE = 64


class PictureTask:
    private = False
    """Whether training pictures may tell nothing but through gradients: then figures are of held-out pictures alone."""

    def __init__(self, config: TrainConfig, source: PictureSource, start: Start) -> None:
        self.config, self.source, self.start = config, source, start
        self.figures: dict[str, float] = {}
        self.normal = start.normal or normalisation(config, source)
        schedule = schedule_from_config(start.schedule)
        self._levels = level_sampler(config.sampler, schedule)
        self._even = level_sampler("grid", schedule)
        self._drawn: tuple[int, Tensor, Tensor] | None = None
        self._batches = Batches(config, source, self.normal)
        self._objective = Objective(
            schedule,
            start.parameterisation,
            start.time_input,
            learn_sigma=config.learn_sigma,
            half_bin=_half_bin(source, self.normal),
        )

    def initial_network(self) -> nn.Module:
        network = new_network(self.start, self.config.seed)
        # Of a private run the spectrum stays that of the initial weights.
        if isinstance(network, UNet) and network.spectrum is not None and not self.private:
            network.spectrum.measure(self._moments())
        return network

    def averaged(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        return channels_last(network_with(self.start.network, state, device=device))

    def fetch(self, piece: Piece, device: torch.device) -> Samples:
        found = self._batches.take(piece.step, piece.first, piece.stop - piece.first)
        labels = None if found.labels is None else on_device(found.labels, device)
        return Samples(on_device(found.x0, device), on_device(found.eps, device), labels)

    def loss(self, network: nn.Module, piece: Piece, samples: Samples) -> tuple[Tensor, Tensor]:
        lams, weights = self._draw(piece.step)
        part = slice(piece.first, piece.stop)
        # Only dropout asks torch for numbers; its masks are the one thing that the cut of a batch changes.
        torch.manual_seed((self.config.seed * 1_000_003 + piece.step) * 65_537 + piece.first & 2**63 - 1)
        found = self._losses(network, samples, lams[part])
        own = on_device(weights[part].float(), found.device)
        return (found * own).sum() / len(lams), found

    def learn(self, step: int, losses: Tensor) -> Tensor:
        lams, weights = self._draw(step)
        self._drawn = None
        self._levels.learn(lams, losses)
        return (losses * on_device(weights, losses.device)).mean()

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        samples = self._batches.held_out(HELD_OUT_PICTURES)
        count = len(samples.x0)
        places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        lams = self._even.draw(places)[0]
        losses = []
        for first in range(0, count, at_once):
            part = slice(first, first + at_once)
            labels = None if samples.labels is None else samples.labels[part]
            piece = Samples(samples.x0[part], samples.eps[part], labels)
            losses.append(self._losses(network, piece, lams[part]).cpu())
        return float(torch.cat(losses).double().mean())

    def aside(self) -> NDArray[np.float32] | None:
        if self.start.classifies:
            return None
        held_out = sheet.middle(self.source.held_out, self.source.shape[1:])
        return expand(held_out[np.random.default_rng(self.config.seed).permutation(len(held_out))])

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        if self.start.classifies:
            return ""
        judged = last and sheet.can_judge(self.source, private=self.private)
        drawn = sheet.draw(
            trainer.averaged(),
            self.start,
            self.normal,
            max(self.config.samples, SAMPLES if judged else 0),
            shape=self.source.shape,
            classes=len(self.source.classes) if self.config.classes is not None else None,
            at_once=trainer.microbatch,
            fine=last,
        )
        shown = drawn[: self.config.samples]
        sheet.draw_sheet(shown, folder / "samples.png")
        near = sheet.nearness(self.source, shown, flip=self.config.flip)
        if not self.private:
            self.figures = {
                "nearest_training_picture": round(near.samples, 5),
                "nearest_training_picture_held_out": round(near.held_out, 5),
            }
        if last:
            real = sheet.middle(self.source.held_out[: self.config.samples], self.source.shape[1:])
            sheet.draw_sheet(expand(real), folder / "held-out.png")
        if judged:
            self._judge(trainer, drawn)
        return near.warning

    def _judge(self, trainer: Trainer, drawn: NDArray[np.float32]) -> None:
        """Compare samples with held-out pictures: have it said, and recorded among the figures."""
        try:
            found = sheet.verdict(
                self.source, drawn, private=self.private, by_class=self.config.classes is not None
            )
        except ExtraMissing as error:
            trainer.notes.append(
                f"samples are not compared with held-out pictures: {error.detail}; {error.hint}"
            )
            return
        if found is not None:
            self.figures |= found.figures()
            trainer.notes.append(found.sentence(trainer.step))

    def state(self) -> dict[str, Tensor]:
        return self._levels.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self._drawn = None
        self._levels.restore(state)

    def manifest(self) -> dict[str, Any]:
        config, source, start = self.config, self.source, self.start
        return {
            "role": "classifier" if start.classifies else "generator",
            "sample_kind": "picture",
            "sample_shape": source.shape,
            "network": start.network,
            "parameterisation": start.parameterisation,
            "time_input": start.time_input,
            "schedule": start.schedule,
            "normalisation": self.normal,
            "soften_sigma": config.soften_sigma,
            "picture": source.picture,
            "classes": source.classes if config.classes is not None else (),
            "data": source.note,
            "structure": None if start.classifies else self._thresholds(),
        }

    def _thresholds(self) -> Thresholds | None:
        return sheet.thresholds(self.source, self.normal, private=self.private)

    def _draw(self, step: int) -> tuple[Tensor, Tensor]:
        if self._drawn is None or self._drawn[0] != step:
            self._drawn = step, *self._levels.draw(self._batches.levels(step))
        return self._drawn[1:]

    def _moments(self) -> Moments:
        """Of the first training pictures, as a step would have them."""
        channels, size, _ = self.source.shape
        found = Moments(channels, size)
        count = max(
            1, min(len(self.source.train), MEASURED_PICTURES, MEASURED_NUMBERS // (channels * size**2))
        )
        for first in range(0, count, _MEASURED_AT_ONCE):
            found.add(self._batches.take(0, first, min(_MEASURED_AT_ONCE, count - first)).x0)
        return found

    def _losses(self, network: nn.Module, samples: Samples, lams: Tensor) -> Tensor:
        device = next(network.parameters()).device
        x0, eps = (on_device(part, device) for part in (samples.x0, samples.eps))
        question = self._objective.ask(x0, eps, lams)
        labels = None if samples.labels is None else on_device(samples.labels, device)
        extra = {} if labels is None or self.start.classifies else {"y": labels}
        x = question.x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            answer = network(x, question.times, **extra)
        if labels is not None and self.start.classifies:
            return functional.cross_entropy(answer.float(), labels, reduction="none")
        return self._objective.losses(question, answer, x0, lams)


def _half_bin(source: PictureSource, normal: Normalisation) -> Tensor:
    deviations = torch.tensor(normal.std, dtype=torch.float32).reshape(-1)
    return source.quantum / 2 / deviations
