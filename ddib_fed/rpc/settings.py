"""Solver settings of the engine, from the wire or the job store and back."""

from __future__ import annotations

from dataclasses import fields

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import SettingsInvalid
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.jobs import Settings, settings_to_pb


def solver_settings(like: Settings | common_pb2.SolverSettings) -> SolverSettings:
    """Settings for the engine; an empty name or a zero means the default."""
    default = SolverSettings()
    return SolverSettings(
        solver=like.solver or default.solver,
        order=like.order or default.order,
        evaluations=like.evaluations or default.evaluations,
        grid=like.grid or default.grid,
        depth=like.depth or default.depth,
        encoder=like.encoder or default.encoder,
    )


def settings_message(settings: SolverSettings) -> common_pb2.SolverSettings:
    """Settings for the wire."""
    if settings.in_one_process:
        raise SettingsInvalid(
            "noise in decoding, and the public code's schedules and respacings, do not travel between nodes",
            hint="leave them out, or use `ddib translate --source` in one process",
        )
    return settings_to_pb(Settings(*(getattr(settings, field.name) for field in fields(Settings))))
