"""How much noise an epsilon takes, and what the steps of a run have spent: opacus' accountants.

Each step is the Gaussian mechanism on a Poisson sample (Abadi et al., arXiv 1607.00133). The steps are composed by
numerical convolution of their privacy losses (prv; Gopi et al., arXiv 2106.02848) or by Renyi divergences (rdp;
Mironov et al., arXiv 1908.10530).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from ddib_fed.errors import SettingsInvalid
from ddib_fed.extras import extra

Mechanism = Literal["prv", "rdp"]


def require_opacus() -> None:
    """Return if the extra is installed."""
    with extra(
        "dp", "opacus", "training with differential privacy needs opacus", otherwise="leave --dp-epsilon out"
    ):
        import opacus  # noqa: F401


def noise_for(mechanism: Mechanism, *, epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier with which `steps` steps spend at most `epsilon`, to 0.01 of it."""
    require_opacus()
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with _quiet():
            found: float = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=mechanism,
            )
    except ValueError as error:
        raise SettingsInvalid(
            f"no noise is enough for epsilon {epsilon:g} at delta {delta:g} by the accountant {mechanism}",
            hint="a larger --dp-epsilon, or --dp-accountant prv",
        ) from error
    return found


class Ledger:
    """What the steps of a run have spent."""

    def __init__(self, mechanism: Mechanism, rate: float, noise_multiplier: float) -> None:
        require_opacus()
        from opacus.accountants import create_accountant

        self.rate, self.noise_multiplier = rate, noise_multiplier
        self._accountant = create_accountant(mechanism)

    @property
    def steps(self) -> int:
        return int(sum(steps for _, _, steps in self._accountant.history))

    def count(self) -> None:
        self._accountant.step(noise_multiplier=self.noise_multiplier, sample_rate=self.rate)

    def epsilon(self, delta: float) -> float:
        """What was spent; 0 before the first step."""
        if not self._accountant.history:
            return 0.0
        with _quiet():
            return float(self._accountant.get_epsilon(delta))

    def tensors(self) -> dict[str, Tensor]:
        return {"history": torch.tensor(self._accountant.history, dtype=torch.float64).reshape(-1, 3)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take a history that was stored; what follows has the noise of its last step."""
        rows = tensors["history"].tolist()
        self._accountant.history = [(noise, rate, int(steps)) for noise, rate, steps in rows]
        if rows:
            self.noise_multiplier = rows[-1][0]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
