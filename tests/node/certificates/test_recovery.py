"""A node that was off until its certificate expired gets a new one from its issuer, with one for that alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ddib_fed.errors import PolicyDenied, Unauthenticated
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.certificates import RenewalThread, certificate_status, recover_at_start
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.policy import Policy
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore
from ddib_fed.security.pki import certificate_pem, issue_leaf, make_request, read_request
from tests.node.certificates.issuing import HOUR, NOW, Server, second_node

DAY = timedelta(days=1)
NODE = Identity("north.example", "node", "node-2")


@pytest.fixture
def two(issuer: NodeConfig, server: Server, tmp_path: Path) -> NodeConfig:
    config = second_node(issuer, tmp_path, f'issuer = "node-1@{server.address}"\n', age=17 * HOUR)
    assert "renewed" in (recover_at_start(config) or "")
    return config


def off_for(issuer: NodeConfig, config: NodeConfig, time: timedelta) -> None:
    """Make both certificates what they are after the node was off for so long since its last renewal."""
    folder, authority = config.paths.pki, pki.load_authority(issuer.paths.pki)
    (key,) = pki.load_keys((folder / "leaf.key").read_bytes(), folder / "leaf.key")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    for kind, name in (("node", "leaf.pem"), ("recovery", "recovery.pem")):
        made = issue_leaf(authority, kind, "node-2", public_key=key.public_key(), now=NOW - time)
        (folder / name).write_bytes(certificate_pem(made))


def test_a_node_that_was_off_for_a_week_comes_back_by_itself(issuer: NodeConfig, two: NodeConfig) -> None:
    """`check` says so, the start does it, with a new key and a new certificate for the next time."""
    off_for(issuer, two, 8 * DAY)
    assert "renewed at the start" in certificate_status(two)[1]
    before = (two.paths.pki / "recovery.pem").read_bytes()
    assert "renewed" in (recover_at_start(two) or "")
    assert pki.load_identity(two.paths.pki).not_after > datetime.now(UTC)
    assert (two.paths.pki / "recovery.pem").read_bytes() != before
    recovery = pki.load_recovery(two.paths.pki)
    assert recovery is not None
    assert recovery.not_after - recovery.not_before == 30 * DAY


def test_a_node_that_was_off_for_too_long_is_enrolled_again(issuer: NodeConfig, two: NodeConfig) -> None:
    """The certificate for recovery has expired as well; `check` and the start say the same."""
    off_for(issuer, two, 31 * DAY)
    for call in (certificate_status, recover_at_start):
        with pytest.raises(Unauthenticated, match="expired"):
            call(two)


def test_a_withdrawn_node_does_not_come_back(issuer: NodeConfig, two: NodeConfig) -> None:
    """Its key was lost: neither with its leaf nor with the other certificate."""
    off_for(issuer, two, 8 * DAY)
    peer_store(issuer).withdraw(NODE)
    with pytest.raises(Unauthenticated, match="could not be renewed"):
        recover_at_start(two)


def test_an_issuer_may_give_no_certificate_for_recovery(
    issuer: NodeConfig, server: Server, tmp_path: Path
) -> None:
    """`recovery_days = 0` in its node.toml."""
    server.servicer.recovery = timedelta(0)
    config = second_node(issuer, tmp_path, f'issuer = "node-1@{server.address}"\n', age=17 * HOUR)
    recover_at_start(config)
    assert pki.load_recovery(config.paths.pki) is None


def test_a_node_just_enrolled_asks_once_for_what_it_needs_to_recover(
    issuer: NodeConfig, server: Server, tmp_path: Path
) -> None:
    """Before its leaf is due; not again where the issuer gives none."""
    asked: list[int] = []
    server.on_renewal = lambda: asked.append(1)
    server.servicer.recovery = timedelta(0)
    config = second_node(issuer, tmp_path, f'issuer = "node-1@{server.address}"\n', age=HOUR)
    thread = RenewalThread(config)
    for _ in range(3):
        thread.look()
    assert len(asked) == 1


@pytest.mark.parametrize(
    "method",
    [
        "/ddib_fed.v1.TranslationService/SubmitJob",
        "/ddib_fed.v1.DecodingService/Decode",
        "/ddib_fed.v1.CalibrationService/GetUnits",
        "/grpc.health.v1.Health/Check",
    ],
)
def test_a_certificate_for_recovery_is_good_for_nothing_else(issuer: NodeConfig, method: str) -> None:
    """No call but Renew, at no node; nor is another institution's taken for it."""
    policy = Policy(institution="north.example", roles=("source", "target"), issuer=True)
    paths = issuer.paths
    peers = PeerStore(paths.state, "north.example").snapshot()
    own = Identity("north.example", "recovery", "node-2")
    with pytest.raises(PolicyDenied):
        policy.authorise(own, method, peers)
    policy.authorise(own, "/ddib_fed.v1.IdentityService/Renew", peers)
    with pytest.raises(PolicyDenied):
        policy.authorise(
            Identity("south.example", "recovery", "node-2"), "/ddib_fed.v1.IdentityService/Renew", peers
        )


def test_no_file_asks_for_a_certificate_for_recovery(tmp_path: Path) -> None:
    """An operator who signs requests cannot be made to sign one."""
    request = make_request(tmp_path / "x", Identity("north.example", "recovery", "node-2"))
    with pytest.raises(PolicyDenied, match="recovery"):
        read_request(request)
