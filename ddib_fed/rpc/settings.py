"""Solver settings between the wire, the job store and the engine."""

from __future__ import annotations

from typing import Protocol

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import SettingsInvalid
from ddib_fed.v1 import common_pb2


class SettingsLike(Protocol):
    """Whatever carries the settings: a message, a row, a dataclass."""

    @property
    def solver(self) -> str:
        """Name of the solver."""

    @property
    def order(self) -> int:
        """Its order, 0 for its default."""

    @property
    def evaluations(self) -> int:
        """Network evaluations a leg."""

    @property
    def grid(self) -> str:
        """Name of the grid."""

    @property
    def depth(self) -> float:
        """Fraction of the way, 0 for the whole."""


def solver_settings(like: SettingsLike) -> SolverSettings:
    """Settings for the engine; an empty name or a zero is the default's."""
    default = SolverSettings()
    return SolverSettings(
        solver=like.solver or default.solver,
        order=like.order or default.order,
        evaluations=like.evaluations or default.evaluations,
        grid=like.grid or default.grid,
        depth=like.depth or default.depth,
    )


def settings_message(settings: SettingsLike) -> common_pb2.SolverSettings:
    """Settings for the wire.

    Raises:
        SettingsInvalid: There is something in them that the wire does not carry, and that would be dropped.
    """
    if isinstance(settings, SolverSettings) and settings.in_one_process:
        raise SettingsInvalid(
            "noise in decoding, and the public code's schedules and respacings, do not travel between nodes",
            hint="leave them out, or use `ddib bridge translate` in one process",
        )
    return common_pb2.SolverSettings(
        solver=settings.solver,
        order=settings.order,
        evaluations=settings.evaluations,
        grid=settings.grid,
        # The default depth is left out, so that earlier peers understand the message.
        depth=0.0 if settings.depth == 1.0 else settings.depth,
    )
