"""How fast, and how exactly, a network computes where it is placed: types, memory formats, CUDA graphs, torch.compile.

Run it on the day a GPU is there: `python -m benchmarks.speed.device`. It takes the first GPU, or else the CPU. On
a GPU it measures, beside the shipped models, a network of the shape of guided-diffusion's class-conditional ADM at
256 px (Dhariwal, Nichol, arXiv 2105.05233), with random weights: only its time and its rounding mean anything.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.imagenet import ADM_256
from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from ddib_fed.bridge.threads import torch_threads
from ddib_fed.diffusion.bridge import decode, encode
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.running import Plain, Run
from ddib_fed.diffusion.schedule import Level
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.networks.placed.placement import Probe, placed
from ddib_fed.networks.registry import build_network

SETTINGS = SolverSettings()
CONVERGED = 8
"""Times as many evaluations for the solver's own error."""
SECONDS = 0.4
"""Of calls that one value is the mean of, at least."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to place a network.

    Attributes:
        dtype: Of its weights and activations.
        channels_last: Memory format of its weights, which activations follow.
        compiling: A name in `placement.COMPILE`; None calls the network as it is, remembering nothing.
    """

    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiling: str | None = "none"

    def __str__(self) -> str:
        words = [str(self.dtype).removeprefix("torch.")]
        words += ["channels_last"] if self.channels_last else []
        words += ["nothing remembered"] if self.compiling is None else []
        return ", ".join([*words, *([self.compiling] if self.compiling not in (None, "none") else [])])


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
            for compiling in ("graphs", "compile"):
                yield Variant(dtype, pictures and dtype in HALF, compiling)
    else:
        yield Variant(torch.float16)  # without instructions for it; see `_measure`
        if not form.short:
            yield Variant(compiling="compile")


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to measure.

    Attributes:
        name: Of it.
        make: A new network with its weights, float32 on the CPU.
        probe: For the check of what runs it.
        level: Where calls are timed.
        rows: Numbers of samples of a call.
        bundle: The model, for the error of legs; None for random weights.
    """

    name: str
    make: Callable[[], nn.Module]
    probe: Probe
    level: Level
    rows: tuple[int, ...]
    bundle: Bundle | None = None


def shipped(domain: str, rows: tuple[int, ...]) -> Subject:
    """A shipped model."""
    bundle = pretrained(domain)
    level = bundle.schedule.level(0.5)
    return Subject(domain, bundle.network, bundle.probe(), level, rows, bundle)


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

    return Subject(
        "ADM-256", make, Probe((3, 256, 256), (300.0, 700.0), 1000), Level(0.8, 0.6, 300.0), (1, 4, 16)
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """A subject, placed."""

    denoiser: Denoiser

    @classmethod
    def of(cls, subject: Subject, variant: Variant, device: torch.device) -> Placed:
        """The subject's network placed so.

        Raises:
            SettingsInvalid: It cannot be run so here.
        """
        network = subject.make().to(device, variant.dtype)
        if variant.channels_last:
            network = network.to(memory_format=torch.channels_last)
        run: Run = Plain(network)
        if variant.compiling is not None:
            run = placed(network, variant.compiling, subject.probe)
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


def measure(form: Form) -> Report:
    """Samples per second of one evaluation, and errors against float32, by type, memory format and way to run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, one thread"
    report = Report(
        f"Evaluations of a placed network on {named}: samples per second, and the root mean square difference "
        "from float32 in the units of the network, of one call and of whole legs of 48 evaluations."
    )
    subjects = [shipped("satellite", (1, 16, 64)), shipped("moons", (1, 64, 2_048, 5_000))]
    if device.type == "cuda":
        subjects.append(adm())
    with torch_threads(1 if device.type == "cpu" else torch.get_num_threads()):
        for subject in subjects:
            _measure(subject, device, form, report)
        if device.type == "cpu" and sys.platform.startswith("linux"):
            _measure_memory(form, report)
    if device.type == "cpu":
        report.note(
            "No GPU was there: CUDA graphs, float16 and copies beside the computation were not measured."
        )
    return report


def _measure(subject: Subject, device: torch.device, form: Form, report: Report) -> None:
    ways: dict[str, Placed] = {}
    for variant in variants(device, form, pictures=len(subject.probe.sample_shape) > 1):
        try:
            ways[str(variant)] = Placed.of(subject, variant, device)
        except SettingsInvalid as error:
            report.note(f"{subject.name}, {variant}: {error.detail}")
    for rows in subject.rows:
        x = _noise(subject, rows).to(device)
        cond = {"y": torch.arange(rows, device=device)} if subject.probe.classes else None
        fast = {
            name: way
            for name, way in ways.items()
            # float16 on a CPU takes up to twenty times as long: one sample says so
            if rows == 1 or device.type != "cpu" or way.denoiser.dtype != torch.float16
        }
        _speeds(subject, fast, x, cond, form, report)
    _errors(subject, ways, device, form, report)


def _speeds(
    subject: Subject,
    ways: Mapping[str, Placed],
    x: Tensor,
    cond: Mapping[str, Tensor] | None,
    form: Form,
    report: Report,
) -> None:
    def speed(way: Placed) -> Callable[[], float]:
        way.per_second(x, subject.level, cond)  # not counted
        return lambda: way.per_second(x, subject.level, cond)

    found = interleaved({name: speed(way) for name, way in ways.items()}, repeats=form.pick(3, 9))
    for name, values in found.items():
        report.add(f"{subject.name}, {len(x)} samples, {name}", values, "samples/s")
    plain = str(replace(BASELINE, compiling=None))
    if len(x) == 1:
        # What remembering a level is for is small calls; it must cost large ones nothing.
        gain = ratio(found, str(BASELINE), plain)
        report.bound(f"{subject.name}, 1 sample: speed as placed / of the network called", gain, at_least=1.0)


def _errors(
    subject: Subject, ways: Mapping[str, Placed], device: torch.device, form: Form, report: Report
) -> None:
    """Of one call, and of both legs beside the solver's own error."""
    x = _noise(subject, form.pick(4, 16) if subject.probe.sample_shape[1:] else 256).to(device)
    cond = {"y": torch.arange(len(x), device=device)} if subject.probe.classes else None
    exact = ways[str(BASELINE)].denoiser
    with torch.no_grad():
        v = exact(x, subject.level, cond)
        for name, way in ways.items():
            if way.denoiser is not exact:
                report.add(
                    f"{subject.name}, one call: error of {name}",
                    [_rms(way.denoiser(x, subject.level, cond) - v)],
                    "",
                )
    if subject.bundle is None:
        return
    schedule = subject.bundle.schedule
    long = replace(SETTINGS, evaluations=CONVERGED * SETTINGS.evaluations)
    sample = decode(x, exact, schedule, SETTINGS)
    latent = encode(sample, exact, schedule, SETTINGS)
    solver = [
        _rms(decode(x, exact, schedule, long) - sample),
        _rms(encode(sample, exact, schedule, long) - latent),
    ]
    for leg, error in zip(("decode", "encode"), solver, strict=True):
        report.add(f"{subject.name}, {leg}: error of the solver at 48 evaluations, float32", [error], "rms")
    for name, way in ways.items():
        if way.denoiser.dtype in HALF:
            found = (
                _rms(decode(x, way.denoiser, schedule, SETTINGS) - sample),
                _rms(encode(sample, way.denoiser, schedule, SETTINGS) - latent),
            )
            for leg, error in zip(("decode", "encode"), found, strict=True):
                report.add(f"{subject.name}, {leg}: error of {name}", [error], "rms")


def _rms(difference: Tensor) -> float:
    """Median over samples of the root mean square over each one's numbers."""
    return float(difference.double().flatten(1).square().mean(1).sqrt().median())


def _noise(subject: Subject, rows: int) -> Tensor:
    return torch.randn(rows, *subject.probe.sample_shape, generator=torch.Generator().manual_seed(rows))


MEMORY = """
import statistics, sys, time, torch
torch.set_num_threads(1)
from ddib_fed.models.shipped import pretrained
from ddib_fed.networks.placed import memory, placement
if sys.argv[1] == "returned":
    placement.keep_freed_memory = lambda: False
bundle = pretrained("satellite")
denoiser, level, x = bundle.denoiser(), bundle.schedule.level(0.5), torch.randn(64, 3, 32, 32)
with torch.no_grad():
    seconds = []
    for _ in range(12):
        started = time.process_time()
        denoiser(x, level)
        seconds.append(time.process_time() - started)
print(64 / statistics.median(seconds[2:]))
"""


def _measure_memory(form: Form, report: Report) -> None:
    """What keeping freed memory is worth, in processes of their own: it cannot be undone."""

    def speed(word: str) -> Callable[[], float]:
        line = [sys.executable, "-c", MEMORY, word]
        return lambda: float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)

    found = interleaved({"kept": speed("kept"), "returned": speed("returned")}, repeats=form.pick(2, 7))
    for word, values in found.items():
        report.add(f"satellite, 64 samples, freed memory {word}", values, "samples per second of CPU")
    gain = statistics.median(ratio(found, "kept", "returned"))
    report.note(f"Keeping freed memory makes calls of 64 pictures {gain:.2f} times as fast.")


if __name__ == "__main__":
    raise SystemExit(main("device", measure))
