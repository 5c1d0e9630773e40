"""Trajectories that do to their worker what a bad model would, in a module that workers can import."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.stack import Integration, Trajectory


@dataclass(frozen=True, eq=False)
class Deadly(Trajectory):
    """Ends the process that begins it."""

    def on(self, model: DomainModel) -> Integration:
        os._exit(9)


@dataclass(frozen=True, eq=False)
class Broken(Trajectory):
    """Fails in a way of torch's own."""

    def on(self, model: DomainModel) -> Integration:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
