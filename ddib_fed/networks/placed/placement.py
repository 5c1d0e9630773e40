"""Chooses how a placed network is run, and holds what is chosen against the network called as it is.

"none"      the network is called
"graphs"    CUDA graphs of a few numbers of rows
"compile"   torch.compile, for the same numbers of rows
"auto"      "graphs" on a GPU if the check passes, else "none"
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.running import Plain, Run
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.placed.buckets import Bucketed, Maker, buckets_up_to
from ddib_fed.networks.placed.compiled import compiled
from ddib_fed.networks.placed.eager import Remembering
from ddib_fed.networks.placed.graphs import Capturing
from ddib_fed.networks.placed.memory import keep_freed_memory
from ddib_fed.networks.placed.pacing import Paced, cuda_mark

log = logging.getLogger(__name__)

Compile = Literal["auto", "none", "graphs", "compile"]
COMPILE: Final[tuple[Compile, ...]] = ("auto", "none", "graphs", "compile")
MOST_PICTURES, MOST_POINTS = 128, 16_384
"""Rows of the largest bucket: beyond them kernels are so large that launching them costs nothing."""
TOLERANCES: Final[Mapping[torch.dtype, float]] = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}
"""Largest difference of an answer over the largest answer. Other kernels of the same type round otherwise: float32 on a
GPU multiplies in TF32 where that is allowed; a wrong capture differs by the answer itself."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the check asks a network."""

    sample_shape: tuple[int, ...]
    times: tuple[float, float]
    classes: int = 0
    flow_map: bool = False


def placed(
    network: nn.Module, compiling: str, probe: Probe, makers: Mapping[str, Maker] | None = None
) -> Run:
    """As `chosen`; on a GPU the host is kept from running ahead of it."""
    run = chosen(network, compiling, probe, makers)
    device = Plain(network).device
    return Paced(run, cuda_mark(device)) if device.type == "cuda" else run


def chosen(
    network: nn.Module, compiling: str, probe: Probe, makers: Mapping[str, Maker] | None = None
) -> Run:
    """How to run `network`, which lies where it computes, in its dtype, with weights that do not change."""
    if compiling not in COMPILE:
        raise SettingsInvalid(f"there is no compile {compiling!r}", hint=", ".join(COMPILE))
    eager = Remembering(network)
    device = eager.device
    if device.type == "cpu":
        keep_freed_memory()
    if compiling == "none" or (compiling == "auto" and device.type != "cuda"):
        return eager
    name = "graphs" if compiling == "auto" else compiling
    if name == "graphs" and makers is None and device.type != "cuda":
        raise SettingsInvalid(
            f"CUDA graphs need a CUDA device, and the network is on {device}",
            hint='compile = "none" runs everywhere; device = "cuda" needs a GPU',
            facts={"field": "compile"},
        )
    most = MOST_PICTURES if len(probe.sample_shape) > 1 else MOST_POINTS
    make = (makers or {"graphs": Capturing(), "compile": compiled})[name]
    run = Bucketed(eager, network, make, buckets_up_to(most))
    problem = _problem(run, eager, probe)
    if problem is None:
        return run
    if compiling != "auto":
        raise SettingsInvalid(
            f"compile = {compiling!a} cannot run this network on {device}: {problem}",
            hint='compile = "none" runs every network',
            facts={"field": "compile"},
        )
    log.warning("the network runs without CUDA graphs: %s", problem)
    return eager


def _problem(run: Run, eager: Plain, probe: Probe) -> str | None:
    """Why `run` must not answer for the network; None if it may."""
    dtype = next((p.dtype for p in eager.network.parameters() if p.is_floating_point()), torch.float32)
    try:
        for count in (1, 5):
            for rows in (None, torch.arange(count) % 2):
                asked = _question(probe, count, rows, dtype, eager.device)
                with torch.no_grad():
                    found, expected = (each(*asked).double() for each in (run, eager))
                scale = max(float(expected.abs().max()), 1e-6)
                difference = float((found - expected).abs().max()) / scale
                if not difference <= TOLERANCES[dtype]:
                    return f"its answers differ by {difference:.1e} of the largest, {TOLERANCES[dtype]:g} allowed"
    except Exception as error:  # noqa: BLE001 - whatever torch's compilers raise; the caller decides what it means
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def _question(
    probe: Probe, count: int, rows: Tensor | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
    noise = torch.randn(count, *probe.sample_shape, generator=torch.Generator().manual_seed(count))
    times = torch.tensor(probe.times if rows is not None else probe.times[:1], dtype=_wide(dtype))
    extra: dict[str, Tensor] = {}
    if probe.classes:
        extra["y"] = (torch.arange(count) % probe.classes).to(device)
    if probe.flow_map:
        extra["to"] = times.flip(0)
    return noise.to(device, dtype), times, None if rows is None else rows.to(device), extra


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
