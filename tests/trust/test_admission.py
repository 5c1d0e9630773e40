"""For how long a certificate that was verified is taken as good."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ddib_fed.errors import Unauthenticated
from ddib_fed.trust.admission import Verifier
from tests.node.institutions import NOW, Institution, forge, names


def test_a_certificate_is_verified_again_when_its_root_has_ended(tmp_path) -> None:
    """The leaf itself is good for longer, and nothing else has changed."""
    north, south = (Institution(f"{n}.example", tmp_path / n) for n in ("north", "south"))
    south.admit(north)
    now = NOW
    verifier = Verifier(south.store, lambda: now)
    end = north.root.not_valid_after_utc
    leaf = forge(north.authority, names("north.example"), end=end + timedelta(days=400))
    assert verifier.verify(leaf) is verifier.verify(leaf)
    now = end - timedelta(seconds=1)
    verifier.verify(leaf)
    now = end
    with pytest.raises(Unauthenticated, match="the root of north"):
        verifier.verify(leaf)
