"""The plans of one model that its legs ask for again and again: each item of a job has its job's."""

from __future__ import annotations

from functools import lru_cache, partial

from ddib_fed.diffusion.levels.learned import LearnedLegs
from ddib_fed.diffusion.plans import Plan, SolverSettings, plan
from ddib_fed.diffusion.recurrence import Recurrence, recurrence_of
from ddib_fed.diffusion.schedule import Schedule

MAX_PLANS = 64


class KeptPlans:
    """Plans on one schedule, and the recurrences that their solvers follow, each made once."""

    def __init__(self, schedule: Schedule, learned: LearnedLegs) -> None:
        self._plan = lru_cache(MAX_PLANS)(partial(_laid, schedule, learned))
        self._recurrence = lru_cache(MAX_PLANS)(partial(_recurrence, schedule, learned))

    def plan(self, settings: SolverSettings, soften_sigma: float = 0.0) -> Plan:
        return self._plan(settings, soften_sigma)

    def recurrence(
        self, settings: SolverSettings, soften_sigma: float, *, encoding: bool
    ) -> Recurrence | None:
        return None if settings.stochastic else self._recurrence(settings, soften_sigma, encoding)


def _laid(schedule: Schedule, learned: LearnedLegs, settings: SolverSettings, soften_sigma: float) -> Plan:
    return plan(settings, schedule, soften_sigma=soften_sigma, learned=learned)


def _recurrence(
    schedule: Schedule, learned: LearnedLegs, settings: SolverSettings, soften_sigma: float, encoding: bool
) -> Recurrence | None:
    laid = _laid(schedule, learned, settings, soften_sigma)
    steps = None if laid.learned is None else laid.learned[0 if encoding else 1]
    if steps is not None and steps.coordinates != "angle":
        return None  # its numbers differ from frequency to frequency
    return recurrence_of(laid.encoder if encoding else laid.decoder, laid.evaluations)
