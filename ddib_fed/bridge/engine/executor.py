"""Who carries trajectories out: the `Executor` protocol, and the one that works on its caller's thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.trajectory import Ending, Trajectory
from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.bridge.threads import torch_threads
from ddib_fed.diffusion.bridge import OnStep, integrate


class Executor(Protocol):
    """Carries trajectories out, whole or as ranges of their rows."""

    @property
    def rows(self) -> int:
        """How many samples one network call takes best; a larger trajectory is given in ranges of so many."""

    @property
    def width(self) -> int:
        """How many network calls it makes at once."""

    @property
    def beside(self) -> bool:
        """Whether it works beside its caller; otherwise `submit` returns when all is done."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Network "calls" made, and "rows" evaluated in them, since it began."""

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Ending:
        """Take a trajectory; the future gives where it ends, (N, *sample_shape), or the error that ended it."""

    def close(self) -> None:
        """Take no more work; what is unfinished fails with `Draining`."""


class CallingThread:
    """Integrates on the calling thread, at once."""

    width = 1
    beside = False

    def __init__(self, model: DomainModel, rows: int, threads: int | None = None) -> None:
        self._model = model
        self.rows = rows
        self.threads = threads
        self._calls = self._evaluated = 0

    @property
    def counters(self) -> Mapping[str, int]:
        return {"calls": self._calls, "rows": self._evaluated}

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Ending:
        done = Ending()
        try:
            done.end(*self._integrate(trajectory, control, on_step))
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to who asks the future
            done.set_exception(error)
        return done

    def _integrate(
        self, trajectory: Trajectory, control: Control | None, on_step: OnStep | None
    ) -> tuple[Tensor, int]:
        count = 0

        def tell(done: int, of: int) -> None:
            nonlocal count
            count += 1
            self._calls += 1
            self._evaluated += trajectory.rows
            if on_step is not None:
                on_step(done, of)
            if control is not None and done < of:
                control.check()

        if control is not None:
            control.check()
        with torch_threads(self.threads or torch.get_num_threads()):
            work = trajectory.on(self._model)
            x = integrate(work.solver, work.denoiser, on_step=tell, evaluations=work.evaluations)
        return x, count

    def close(self) -> None: ...
