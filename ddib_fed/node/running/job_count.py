"""Work of all roles by state, also after they have closed their stores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from ddib_fed.node.role import RoleService

log = logging.getLogger(__name__)


class JobCount:
    """Counts the jobs of a node's roles, from any thread."""

    def __init__(self, roles: Sequence[RoleService]) -> None:
        self._roles = roles
        self._lock = threading.Lock()
        self._last: dict[str, int] | None = None

    def now(self) -> dict[str, int]:
        with self._lock:
            return self._count() if self._last is None else self._last

    def keep(self) -> None:
        """Keep the present count: the operator is answered to the end, but a closed store cannot be counted."""
        last: dict[str, int] = {}
        try:
            last = self.now()
        except Exception:
            log.exception("the jobs could not be counted")
        with self._lock:
            self._last = last

    def _count(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for role in self._roles:
            for name, count in role.jobs().items():
                found[name] = found.get(name, 0) + count
        return found
