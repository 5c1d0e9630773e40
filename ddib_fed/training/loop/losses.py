"""The losses of the steps that were taken, read without holding up the device that computes them."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from ddib_fed.errors import SettingsInvalid


class Losses:
    """Losses in the order of the steps; on CUDA each becomes readable some time after its step was asked for."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, loss: Tensor) -> None:
        """Take in the loss of a step."""
        event = None
        if loss.device.type == "cuda":
            loss = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._coming.append((step, loss, event))

    def read(self, *, wait: bool = True) -> list[float]:
        """Those that were not read yet."""
        found = []
        while self._coming:
            step, loss, event = self._coming[0]
            if event is not None:
                if not wait and not event.query():  # type: ignore[no-untyped-call]
                    break
                event.synchronize()
            self._coming.popleft()
            found.append(float(loss))
            if not math.isfinite(found[-1]):
                raise SettingsInvalid(
                    f"the loss is {found[-1]} after {step} steps",
                    hint="look for outliers, lower the learning rate, or train in float32",
                )
        return found
