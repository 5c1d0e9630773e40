"""Who may call what, as a table, and how much a peer may have decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import ConfigError, PeerSuspended, PeerUnknown, PolicyDenied, RefusedError
from ddib_fed.node.config import NodeConfig, PolicySection
from ddib_fed.node.policy import (
    Policy,
    check_settings,
    check_softening,
    check_target,
    client_charges,
    peer_charges,
)
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, Snapshot
from ddib_fed.security.pki import new_authority
from tests.node.tiny_nodes import make_config

NORTH = new_authority("north.example").certificate
SOUTH = new_authority("south.example").certificate
PEER = Peer("south.example", Identity("south.example", "node", "node-1"), "127.0.0.1:1", (SOUTH,))
SNAPSHOT = Snapshot(
    "north.example",
    (NORTH,),
    MappingProxyType({"south.example": PEER}),
    MappingProxyType({"north.example": (NORTH,), "south.example": (SOUTH,)}),
)
OWN_NODE = Identity("north.example", "node", "node-1")
OWN_CLIENT = Identity("north.example", "client", "alice")
PEER_NODE = PEER.identity
PEER_OTHER_NODE = Identity("south.example", "node", "node-2")
PEER_CLIENT = Identity("south.example", "client", "bob")
OWN_RECOVERY = Identity("north.example", "recovery", "node-1")
EVERYBODY = (OWN_NODE, OWN_CLIENT, OWN_RECOVERY, PEER_NODE, PEER_OTHER_NODE, PEER_CLIENT)

SUBMIT = "/ddib_fed.v1.TranslationService/SubmitJob"
DECODE = "/ddib_fed.v1.DecodingService/Decode"
SIGN = "/ddib_fed.v1.CalibrationService/SignCalibration"
RENEW = "/ddib_fed.v1.IdentityService/Renew"
HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LIST = "/grpc.health.v1.Health/List"


def may(
    identity: Identity, method: str, *, roles: tuple[str, ...] = ("source", "target"), issuer: bool = True
) -> bool:
    policy = Policy(institution="north.example", roles=roles, issuer=issuer)
    try:
        policy.authorise(identity, method, SNAPSHOT)
    except RefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        (SUBMIT, {OWN_CLIENT}),
        (DECODE, {PEER_NODE}),
        (SIGN, {PEER_NODE}),
        (RENEW, {OWN_NODE, OWN_CLIENT, OWN_RECOVERY}),
        (HEALTH, set(EVERYBODY) - {OWN_RECOVERY}),
        (WATCH, {OWN_NODE, OWN_CLIENT}),
        (LIST, {OWN_NODE, OWN_CLIENT}),
        ("/ddib_fed.v1.AdminService/Drain", set()),
        ("/ddib_fed.v1.TranslationServiceX/SubmitJob", set()),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", set()),
        ("", set()),
    ],
)
def test_who_may_call_what(method: str, allowed: set[Identity]) -> None:
    """Everything else is refused."""
    assert {identity for identity in EVERYBODY if may(identity, method)} == allowed


def test_nobody_of_a_suspended_institution_may_call_anything() -> None:
    """Health neither, which needs no admission of the single identity; the own institution goes on."""
    policy = Policy(institution="north.example", roles=("source", "target"), issuer=True)
    snapshot = replace(SNAPSHOT, suspended={"south.example": "since today"})
    for identity in (PEER_NODE, PEER_OTHER_NODE, PEER_CLIENT):
        with pytest.raises(PeerSuspended):
            policy.authorise(identity, HEALTH, snapshot)
    policy.authorise(OWN_CLIENT, HEALTH, snapshot)


def test_a_role_that_the_node_does_not_have_is_refused() -> None:
    """Whoever asks."""
    assert not may(OWN_CLIENT, SUBMIT, roles=("target",))
    assert not may(PEER_NODE, DECODE, roles=("source",))
    assert not may(PEER_NODE, SIGN, roles=("source",))
    assert not may(OWN_CLIENT, RENEW, issuer=False)


def test_another_node_of_an_admitted_institution_is_unknown() -> None:
    """A wrong name under the right root: the reason says that admitting is what is missing."""
    policy = Policy(institution="north.example", roles=("target",), issuer=False)
    with pytest.raises(PeerUnknown):
        policy.authorise(PEER_OTHER_NODE, DECODE, SNAPSHOT)
    with pytest.raises(PolicyDenied):
        policy.authorise(PEER_CLIENT, DECODE, SNAPSHOT)


def test_encoders_that_show_more_are_allowed_by_name() -> None:
    """Without a word the ODE alone."""
    check_settings(SolverSettings(), PolicySection(), where="here")
    check_settings(SolverSettings(encoder="mixed"), PolicySection(encoders=("ode", "mixed")), where="here")
    with pytest.raises(PolicyDenied, match="allows ode") as denied:
        check_settings(SolverSettings(encoder="mixed"), PolicySection(), where="here")
    assert denied.value.facts == {"policy": "encoders", "encoder": "mixed", "allowed": "ode"}


def test_a_peer_has_a_quota_of_its_own_where_the_policy_names_one() -> None:
    """Any other has that of all; a client has another."""
    policy = PolicySection(
        evaluations_per_day=100, samples_per_day=7, quotas={"south.example": 5}, client_evaluations_per_day=3
    )

    def limits(institution: str) -> dict[str, int]:
        charges = peer_charges(policy, institution, samples=1, evaluations=2)
        return {charge.quota: charge.limit for charge in charges}

    assert limits("south.example") == {"evaluations_per_day": 5, "samples_per_day": 7}
    assert limits("west.example") == {"evaluations_per_day": 100, "samples_per_day": 7}
    assert client_charges(policy, "alice", 2)[0].limit == 3


def test_quotas_of_evaluations_are_finite_unless_they_are_switched_off() -> None:
    """Without a word in node.toml."""
    policy = PolicySection()
    assert policy.evaluations_per_day > 0
    assert policy.client_evaluations_per_day > 0


def rewritten(config: NodeConfig, text: str) -> NodeConfig:
    """A node.toml read with these lines in [policy]."""
    before, _, after = config.path.read_text().partition("[policy]\n")
    rest = after[after.index("# round_trip") :]
    config.path.write_text(f"{before}[policy]\n{text}\n{rest}")
    return NodeConfig.load(config.path)


def allowed(policy: PolicySection, identity, method: str) -> bool:
    authoriser = Policy(institution="north.example", roles=("source", "target"), issuer=False, section=policy)
    try:
        authoriser.authorise(identity, method, SNAPSHOT)
    except PolicyDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("uses", "decode", "sign"),
    [
        ({"*": ("send", "decode", "calibrate")}, True, True),
        ({"*": ("decode",), "south.example": ("calibrate",)}, False, True),
        ({}, False, False),
        ({"west.example": ("decode",)}, False, False),
        ({"south.example": ()}, False, False),
        ({"south.example": ("decode",)}, True, False),
        ({"south.example": ("calibrate", "send")}, False, True),
    ],
)
def test_a_table_of_peers_denies_what_it_does_not_list(uses, decode: bool, sign: bool) -> None:
    """An entry of its own counts instead of the star's."""
    policy = PolicySection(peers=uses)
    assert (allowed(policy, PEER_NODE, DECODE), allowed(policy, PEER_NODE, SIGN)) == (decode, sign)


@pytest.mark.parametrize(
    ("clients", "targets"),
    [
        ({"*": ("*",)}, {"south.example/relief", "south.example/other", "west.example/relief"}),
        ({}, set()),
        ({"bob": ("*",)}, set()),
        ({"alice": ()}, set()),
        ({"alice": ("south.example/relief",)}, {"south.example/relief"}),
        ({"alice": ("south.example",)}, {"south.example/relief", "south.example/other"}),
        ({"alice": (), "*": ("*",)}, set()),
        ({"*": ("west.example/relief",)}, {"west.example/relief"}),
    ],
)
def test_a_table_of_clients_denies_what_it_does_not_list(clients, targets: set[str]) -> None:
    """Each name by itself, the star for the others; nothing allowed is no call at all."""
    policy = PolicySection(clients=clients)
    found = set()
    for target in ("south.example/relief", "south.example/other", "west.example/relief"):
        try:
            check_target("alice", *target.split("/"), policy)
        except PolicyDenied:
            continue
        found.add(target)
    assert found == targets
    assert allowed(policy, OWN_CLIENT, SUBMIT) == bool(targets)


def test_softening_has_a_floor() -> None:
    """Of the contract, which is the models'."""
    policy = PolicySection(least_soften_sigma=0.05)
    check_softening(0.05, policy)
    with pytest.raises(PolicyDenied, match=r"0\.02, where at least 0\.05"):
        check_softening(0.02, policy)


@pytest.mark.parametrize(
    "text",
    [
        'peers = { "South" = ["send"] }',
        'peers = { "south.example" = ["read"] }',
        'clients = { "Alice!" = [] }',
        'clients = { "alice" = ["south.example/"] }',
        'clients = { "alice" = ["relief"] }',
        "least_soften_sigma = 2",
        'peer = { "south.example" = [] }',
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, text: str) -> None:
    config = make_config(tmp_path / "north", "north.example", "source")
    with pytest.raises(ConfigError, match="policy"):
        rewritten(config, text)
