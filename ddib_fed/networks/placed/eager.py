"""Calls a network as it is, and remembers what it derived from a level alone.

Every leg on one grid asks at the same levels. The embeddings of the times, the scales and shifts that blocks make of
them, and the terms of a spectrum are computed at a level's first call and kept.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.running import Plain
from ddib_fed.networks.layers import Kept

MOST_LEVELS = 256
"""Levels (or pairs of them) that are remembered: both ways of several grids of 48."""
MOST_TABLES = 16
"""Tables of levels into which rows of many requests point, that are remembered: each of a few grids together."""
FEW_ROWS = 2
"""Rows of the calls that the copy answers."""
MOST_COPIED = 16_000_000
"""Parameters of a network that is copied: 64 MB. In larger ones convolutions are not small."""


class Remembering(Plain):
    """Calls a network whose weights do not change."""

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
        """The network, or its copy."""
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
