"""What `device` measures: networks, and the ways to place one on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.imagenet import ADM_256
from benchmarks.speed.shared.harness import Form
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.running import Plain, Run
from ddib_fed.diffusion.schedule import Level
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.networks.placement import placed
from ddib_fed.networks.registry import build_network

SECONDS = 0.4
"""Of calls that one value is the mean of, at least."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to place a network."""

    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiling: bool | None = False
    """None: the network is called, and nothing remembered."""

    def __str__(self) -> str:
        words = [str(self.dtype).removeprefix("torch.")]
        words += ["channels_last"] if self.channels_last else []
        words += {None: ["nothing remembered"], False: [], True: ["compiled"]}[self.compiling]
        return ", ".join(words)


BASELINE = Variant()
HALF = (torch.bfloat16, torch.float16)


def variants(device: torch.device, form: Form, *, pictures: bool) -> Iterator[Variant]:
    """What is measured on a device."""
    yield BASELINE
    yield replace(BASELINE, compiling=None)
    yield Variant(torch.bfloat16)
    if pictures:
        yield Variant(channels_last=True)
        yield Variant(torch.bfloat16, channels_last=True)
    if device.type == "cuda":
        yield Variant(torch.float16)
        for dtype in (torch.float32, *HALF):
            yield Variant(dtype, pictures and dtype in HALF, compiling=True)
    else:
        yield Variant(torch.float16)  # without instructions for it; see `_measure` of the command
        if not form.short:
            yield Variant(compiling=True)


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to measure."""

    name: str
    make: Callable[[], nn.Module]
    sample_shape: tuple[int, ...]
    classes: int
    level: Level
    rows: tuple[int, ...]
    bundle: Bundle | None = None


def shipped(domain: str, rows: tuple[int, ...]) -> Subject:
    bundle = pretrained(domain)
    level = bundle.schedule.level(0.5)
    return Subject(domain, bundle.network, tuple(bundle.manifest.sample_shape), 0, level, rows, bundle)


def adm() -> Subject:
    """The shape of ADM at 256 px."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(ADM_256).eval().requires_grad_(requires_grad=False)
            for parameter in network.parameters():  # branches that start as zero would have no rounding
                if not parameter.any():
                    parameter.normal_(std=0.02)
            return network

    return Subject("ADM-256", make, (3, 256, 256), 1000, Level(0.8, 0.6, 300.0), (1, 4, 16))


@dataclass(frozen=True, slots=True)
class Placed:
    """A subject, placed."""

    denoiser: Denoiser

    @classmethod
    def of(cls, subject: Subject, variant: Variant, device: torch.device) -> Placed:
        """The subject's network placed so."""
        network = subject.make().to(device, variant.dtype)
        if variant.channels_last:
            network = network.to(memory_format=torch.channels_last)
        run: Run = Plain(network)
        if variant.compiling is not None:
            run = placed(network, compiling=variant.compiling)
        if subject.bundle is None:
            return cls(Denoiser(network, "eps", "timestep", run))
        manifest = subject.bundle.manifest
        return cls(Denoiser(network, manifest.parameterisation, manifest.time_input, run))

    def per_second(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None) -> float:
        """Samples per second of one evaluation."""
        calls, started = 0, time.perf_counter()
        with torch.no_grad():
            while time.perf_counter() - started < SECONDS or calls < 3:
                self.denoiser(x, level, cond)
                calls += 1
            _wait(x.device)
        return calls * len(x) / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
