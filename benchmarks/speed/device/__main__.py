"""How fast, and how exactly, a network computes where it is placed: types, memory formats, torch.compile.

Run it on the day a GPU is there: `python -m benchmarks.speed.device`. It takes the first GPU, or else the CPU. On
a GPU it measures, beside the shipped models, a network of the shape of guided-diffusion's class-conditional ADM at
256 px (Dhariwal, Nichol, arXiv 2105.05233), with random weights: only its time and its rounding mean anything.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.speed.device.subjects import BASELINE, HALF, Placed, Subject, adm, shipped, variants
from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from ddib_fed.bridge.threads import torch_threads
from ddib_fed.diffusion.bridge import decode, encode
from ddib_fed.diffusion.plans import SolverSettings

SETTINGS = SolverSettings()
CONVERGED = 8
"""Times as many evaluations for the solver's own error."""


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
    for variant in variants(device, form, pictures=len(subject.sample_shape) > 1):
        ways[str(variant)] = Placed.of(subject, variant, device)
    for rows in subject.rows:
        x = _noise(subject, rows).to(device)
        cond = {"y": torch.arange(rows, device=device)} if subject.classes else None
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
    x = _noise(subject, form.pick(4, 16) if subject.sample_shape[1:] else 256).to(device)
    cond = {"y": torch.arange(len(x), device=device)} if subject.classes else None
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
    return float(difference.double().flatten(1).square().mean(1).sqrt().median())


def _noise(subject: Subject, rows: int) -> Tensor:
    return torch.randn(rows, *subject.sample_shape, generator=torch.Generator().manual_seed(rows))


MEMORY = """
import statistics, sys, time, torch
torch.set_num_threads(1)
from ddib_fed.models.shipped import pretrained
from ddib_fed.networks import placement
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
