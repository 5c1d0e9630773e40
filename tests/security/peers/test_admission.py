"""For how long a certificate that was verified is taken as good."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from ddib_fed.errors import PeerUnknown, Unauthenticated
from ddib_fed.node.policy import Policy
from ddib_fed.security.admission import Admission, Verifier
from ddib_fed.security.identity import Identity
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


def test_a_call_ends_when_its_institution_names_another_node(tmp_path) -> None:
    """The root is still pinned and the certificate still good: only the peer file names another node now."""
    north, south = (Institution(f"{n}.example", tmp_path / n) for n in ("north", "south"))
    south.admit(north)
    store = south.store
    policy = Policy(institution="south.example", roles=("target",), issuer=False)
    leaf = forge(north.authority, names("north.example"))
    call = Admission(leaf, "/ddib_fed.v1.DecodingService/Decode", Verifier(store, lambda: NOW), policy)
    call.check()
    other = dataclasses.replace(north.peer(), identity=Identity("north.example", "node", "node-2"))
    store.add(other, fingerprints=[], replace=True)
    with pytest.raises(PeerUnknown):
        call.check()
