"""Certificates that live for seconds, in a node of a test: node.toml allows no less than a minute."""

import os
from datetime import timedelta

LIFE = "DDIB_TESTS_LIFE_S"
PLANTED = "tests.chaos.short_lives:plant"
LOOK_S = 0.25


def plant() -> None:
    """In a node's process, before it starts: what it issues lives so long, and it looks often enough to renew it."""
    from ddib_fed.node import certificates
    from ddib_fed.node.config import IdentitySection
    from ddib_fed.security import pki

    life = timedelta(seconds=float(os.environ[LIFE]))
    IdentitySection.life = lambda self, kind: life  # type: ignore[method-assign]
    # Else what was back-dated for wrong clocks counts as life, and a new certificate is due for renewal at once.
    pki.LEAST_LIFETIME = timedelta(seconds=1)  # type: ignore[misc]
    certificates.CHECK_INTERVAL_S = LOOK_S  # type: ignore[misc]
