"""A node's party: a local one whose batcher merges the work of all callers, warmed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddib_fed.bridge.engine.budget import Recipe
from ddib_fed.bridge.engine.executors import Pool
from ddib_fed.bridge.local_party import LocalParty
from ddib_fed.bridge.model import DomainModel
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle import Bundle


class ServingParty(LocalParty):
    """A node's model, warm."""

    def __init__(
        self, bundle: Bundle, *, classifier: Bundle | None = None, pool: Pool | None = None, **recipe: Any
    ) -> None:
        """Warm it up here, with the other fields of a `Recipe`; or leave that to a pool's workers."""
        self.pool = pool
        if pool is not None:  # here is only what checks, and turns units into the model's
            self.threads = recipe.get("threads") or 1
            super().__init__(DomainModel(bundle, classifier=classifier), pool)
            return
        made = Recipe(bundle, classifier, **recipe).warm()
        self.threads = made.threads
        super().__init__(made.model, made.batcher)

    @property
    def place(self) -> str:
        return str(self.model.device) if self.pool is None else self.pool.describe()

    @property
    def problem(self) -> str | None:
        return None if self.pool is None else self.pool.problem

    def resize(self, workers: int) -> None:
        """Have so many workers from now on."""
        if self.pool is None:
            raise SettingsInvalid(
                "the engine of this node runs in the node itself, and has no workers",
                hint='executor = "processes" or "ray" in [engine] of node.toml, and a restart',
            )
        self.pool.resize(workers)

    @property
    def counters(self) -> Mapping[str, int]:
        return self.executor.counters
