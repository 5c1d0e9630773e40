"""Runs a network for inference where it lies: remembers what depends on a level alone, or compiles it.

Every leg on one grid asks at the same levels. The embeddings of the times, the scales and shifts that blocks make of
them, and the terms of a spectrum are computed at a level's first call and kept.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import Plain, Run
from ddib_fed.networks.layers import Kept


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` threads of torch, and put the former number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


log = logging.getLogger(__name__)


CALLS_AHEAD = 2
"""Calls that the host may be ahead of a CUDA device: else it would queue whole trajectories, report progress too early,
and merge nobody who comes meanwhile."""
MOST_LEVELS = 256
"""Levels (or pairs of them) that are remembered: both ways of several grids of 48."""
MOST_TABLES = 16
"""Tables of levels into which rows of many requests point, that are remembered: each of a few grids together."""
FEW_ROWS = 2
"""Rows of the calls that the copy answers."""
MOST_COPIED = 16_000_000
"""Parameters of a network that is copied: 64 MB. In larger ones convolutions are not small."""


class Remembering(Plain):
    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._remembers = bool(getattr(network, "remembers", False))
        self._tables = self._remembers and bool(getattr(network, "remembers_tables", False))
        self._kept: dict[tuple[float, ...], Kept] = {}
        self._kept_tables: dict[int, tuple[Tensor, Kept]] = {}
        self._lock = threading.Lock()
        self._copies = _gains_from_channels_last(network)
        self._for_few: nn.Module | None = None

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        alone = rows is None and len(times) == 1
        if not (self._remembers if alone else self._tables and rows is not None) or torch.is_grad_enabled():
            return super().__call__(x, times, rows, extra)
        if alone:
            kept = self._of((float(times), *(float(extra[key]) for key in ("to",) if key in extra)))
        else:
            kept = self._of_table(times)
        # The times themselves, on their device, are remembered with what was made of them.
        placed = kept.get("times")
        if placed is None:
            placed = kept["times"] = self.placed(times, extra)
        return self._answer(x, placed[0], rows, {**extra, **placed[1], "kept": kept})

    def network_for(self, rows: int) -> nn.Module:
        if rows > FEW_ROWS or not self._copies:
            return self.network
        with self._lock:
            if self._for_few is None:
                copied = copy.deepcopy(self.network)
                self._for_few = copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return self._for_few

    def _of(self, key: tuple[float, ...]) -> Kept:
        with self._lock:
            if key not in self._kept:
                if len(self._kept) >= MOST_LEVELS:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = {}
            return self._kept[key]

    def _of_table(self, times: Tensor) -> Kept:
        """What was made of these times: this very tensor, which is held, so that no other can take its place."""
        with self._lock:
            found = self._kept_tables.pop(id(times), None)
            if found is None:
                if len(self._kept_tables) >= MOST_TABLES:
                    del self._kept_tables[next(iter(self._kept_tables))]
                found = times, {}
            self._kept_tables[id(times)] = found
            return found[1]


def _gains_from_channels_last(network: nn.Module) -> bool:
    parameters = list(network.parameters())
    small = sum(parameter.numel() for parameter in parameters) <= MOST_COPIED
    suitable = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    return small and suitable and any(isinstance(module, nn.Conv2d) for module in network.modules())


class Compiled(Plain):
    """Calls a network through torch.compile: on CUDA as graphs, whose replay launches all kernels at once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._eager = Remembering(network)
        self._compiled = torch.compile(network, mode="reduce-overhead")
        self._usable = True

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled() or not self._usable:
            return self._eager(x, times, rows, extra)
        there, further = self.placed(times, extra)
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            out: Tensor = self._compiled(x, there, rows=rows, **{**extra, **further})
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever torch's compilers raise
            log.warning("the network runs without torch.compile: %s: %s", type(error).__name__, error)
            self._usable = False
            return self._eager(x, times, rows, extra)
        return out.clone()  # the next call writes to it


class Paced:
    """Runs a network on a CUDA device, waiting first for the call that was queued `CALLS_AHEAD` calls before."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self._run, self._device = run, device
        self._queued: deque[torch.cuda.Event] = deque()

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        if len(self._queued) >= CALLS_AHEAD:
            self._queued.popleft().synchronize()
        answer = self._run(x, times, rows, extra)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._queued.append(event)
        return answer


def placed(network: nn.Module, *, compiling: bool = False) -> Run:
    """How to run `network`, which lies where it computes, in its dtype, with weights that do not change."""
    run = Compiled(network) if compiling else Remembering(network)
    if run.device.type == "cpu":
        keep_freed_memory()
    return Paced(run, run.device) if run.device.type == "cuda" else run


# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Keep up to 256 MiB that tensors freed for the next ones: else page faults take 8 % of a call of 64 pictures."""
    return _mallopt({_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 256 << 20})


@lru_cache(maxsize=1)
def share_heaps() -> bool:
    """Have two heaps for all threads: else each of eight a core keeps the memory of the largest job it has seen."""
    return _mallopt({_ARENA_MAX: 2})


def _mallopt(parameters: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    answers = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in parameters.items()]
    return all(answers)
