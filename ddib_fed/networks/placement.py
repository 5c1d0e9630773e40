"""Runs a network for inference where it lies, and keeps what depends on a level alone: embeddings of times, the scales
and shifts that blocks make of them, the terms of a spectrum.
"""

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import Run, kind_of, on_device, run_plain

T = TypeVar("T")
Kept = dict[Hashable, Any]
"""Values that a network with fixed weights derived from one level, or pair of levels, by their maker."""

CALLS_AHEAD = 2
"""Calls that the host may be ahead of a CUDA device: else it would queue whole trajectories, report progress too early,
and merge no request that comes meanwhile."""
MOST_LEVELS = 256  # levels (or pairs of them) that are remembered: both ways of several grids of 48
MOST_TABLES = 16
"""Tables of levels into which rows of many requests point, that are remembered: each of a few grids together."""


def spread(embedding: Tensor, rows: Tensor | None) -> Tensor:
    return embedding if rows is None else embedding.index_select(0, rows)


def remembered(kept: Kept | None, key: Hashable, make: Callable[[], T]) -> T:
    """Return what `make` returns; kept under `key`, and made once, if `kept` is a dictionary."""
    if kept is None:
        return make()
    if key not in kept:
        kept[key] = make()
    return cast("T", kept[key])


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    # torch knows no autocast, not even none, for tensors without values.
    lowered = device_type != "meta" and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if lowered else nullcontext()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with `count` threads of torch, and put the former number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Remembering:
    """A `Run` that keeps what the network makes of times alone."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._remembers = bool(getattr(network, "remembers", False))
        self._remembers_tables = self._remembers and bool(getattr(network, "remembers_tables", False))
        self._levels: dict[Hashable, Kept] = {}
        self._tables: dict[Hashable, Kept] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        alone = rows is None and len(times) == 1
        keeps = self._remembers if alone else self._remembers_tables and rows is not None
        if torch.is_grad_enabled() or not keeps:
            return run_plain(self._network, x, times, rows, extra)
        if alone:
            key = (float(times), *(float(extra[name]) for name in ("to",) if name in extra))
            kept = self._kept(self._levels, key, MOST_LEVELS, times)
        else:
            kept = self._kept(self._tables, id(times), MOST_TABLES, times)
        # The times themselves, on their device, are remembered with what was made of them.
        if "placed" not in kept:
            to = {"to": on_device(extra["to"], x.device)} if "to" in extra else {}
            kept["placed"] = on_device(times, x.device), to
        placed, to = kept["placed"]
        return run_plain(self._network, x, placed, rows, {**extra, **to, "kept": kept})

    def _kept(self, cache: dict[Hashable, Kept], key: Hashable, most: int, times: Tensor) -> Kept:
        with self._lock:
            # A table is known by its identity: it is held, so that no other tensor can take its place.
            kept = cache.pop(key, None) or {"times": times}
            if len(cache) >= most:
                del cache[next(iter(cache))]
            cache[key] = kept
            return kept


class Paced:
    """A `Run` on a CUDA device that waits first for the call that was queued `CALLS_AHEAD` calls before."""

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


def placed(network: nn.Module) -> Run:
    """How to run `network`, which lies where it computes, in its dtype, with weights that do not change."""
    run: Run = Remembering(network)
    device = kind_of(network)[1]
    if device.type == "cpu":
        keep_freed_memory()
    return Paced(run, device) if device.type == "cuda" else run


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
