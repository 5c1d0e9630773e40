"""Replacing an institution's root without a moment in which nobody is trusted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ddib_fed.errors import AlreadyExists, InputError, StateConflict
from ddib_fed.trust import pki, rollover
from ddib_fed.trust.enrolment import install, make_request, read_request, sign_request
from ddib_fed.trust.identity import Identity
from tests.node.institutions import Institution


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


def roots(north: Institution) -> tuple:
    return pki.parse_certificates((north.pki / "roots.pem").read_bytes(), "roots")


def test_the_steps_in_order(north: Institution) -> None:
    """Both trusted after start, the new one issues after switch, it alone is trusted after finish."""
    new = rollover.start(north.pki)
    assert roots(north) == (north.root, new.certificate)
    assert pki.load_authority(north.pki).certificate == north.root
    assert rollover.switch(north.pki).certificate == new.certificate
    assert roots(north) == (north.root, new.certificate)
    assert rollover.finish(north.pki).certificate == new.certificate
    assert roots(north) == (new.certificate,)


def test_leaves_of_both_roots_are_accepted_in_between(north: Institution) -> None:
    """The one from before the switch and the one from after it."""
    rollover.start(north.pki)
    old_leaf = pki.load_identity(north.pki)
    pki.issue_to_folder(rollover.switch(north.pki), north.pki, "node", "node-1")
    new_leaf = pki.load_identity(north.pki)
    pins = {"north.example": north.store.snapshot().own_roots}
    for leaf in (old_leaf, new_leaf):
        assert (
            pki.verify_peer_certificate(leaf.cert_chain_pem, pins=pins, now=leaf.not_before) == north.identity
        )


def test_the_old_key_is_kept_under_another_name(north: Institution) -> None:
    """No key is ever overwritten."""
    old = (north.pki / "ca.key").read_bytes()
    rollover.start(north.pki)
    rollover.switch(north.pki)
    assert old in [path.read_bytes() for path in north.pki.glob("old-*-ca.key")]


def test_a_second_start_is_refused(north: Institution) -> None:
    """Until the first has been finished."""
    rollover.start(north.pki)
    with pytest.raises(AlreadyExists):
        rollover.start(north.pki)
    rollover.switch(north.pki)
    with pytest.raises(AlreadyExists):
        rollover.start(north.pki)


def test_steps_out_of_order_are_refused(north: Institution) -> None:
    """Nothing is trusted less before something else is."""
    for step in (rollover.switch, rollover.finish):
        with pytest.raises(StateConflict):
            step(north.pki)
    rollover.start(north.pki)
    with pytest.raises(StateConflict):
        rollover.finish(north.pki)


def test_a_crash_in_the_middle_of_the_switch_is_repaired_by_another(north: Institution) -> None:
    """The key was exchanged, the certificate not yet."""
    new = rollover.start(north.pki)
    (north.pki / "ca-next.key").replace(north.pki / "ca.key")
    assert rollover.switch(north.pki).certificate == new.certificate


def test_a_switch_whose_key_is_lost_leaves_the_old_root_in_place(north: Institution) -> None:
    """Keys and certificates are compared before a file is moved, not after."""
    rollover.start(north.pki)
    (north.pki / "ca-next.key").unlink()
    with pytest.raises(InputError, match="key"):
        rollover.switch(north.pki)
    assert pki.load_authority(north.pki).certificate == north.root


def test_a_switch_to_a_root_that_is_not_trusted_yet_is_refused(north: Institution) -> None:
    """Whoever wrote ca-next.pem, it is not what `start` published in roots.pem."""
    rollover.start(north.pki)
    (north.pki / "roots.pem").write_bytes((north.pki / "ca.pem").read_bytes())
    with pytest.raises(StateConflict, match="roots"):
        rollover.switch(north.pki)
    assert pki.load_authority(north.pki).certificate == north.root


def test_another_node_learns_the_new_root_with_its_next_certificate(
    north: Institution, tmp_path: Path
) -> None:
    """Installed certificates bring both roots along."""
    node = Identity("north.example", "node", "node-2")
    two = tmp_path / "two"
    install(two, sign_request(north.authority, read_request(make_request(two, node)), roots(north)))
    rollover.start(north.pki)
    install(two, sign_request(north.authority, read_request(make_request(two, node)), roots(north)))
    assert (two / "roots.pem").read_bytes() == (north.pki / "roots.pem").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "act",
    [
        lambda north: rollover.start(north.pki),
        lambda north: pki.issue_to_folder(pki.load_authority(north.pki), north.pki, "node", "node-1"),
    ],
    ids=["start", "renewal"],
)
def test_who_changes_the_roots_waits_for_another_who_does(
    north: Institution, act: Callable[[Institution], object]
) -> None:
    """A renewal that read the roots before a new one was added would write them without it, and switch would fail."""
    thread = threading.Thread(target=act, args=(north,))
    before = (north.pki / "leaf.pem").read_bytes(), roots(north)
    with pki.changing_roots(north.pki):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert ((north.pki / "leaf.pem").read_bytes(), roots(north)) == before
    thread.join(20)
    assert ((north.pki / "leaf.pem").read_bytes(), roots(north)) != before
