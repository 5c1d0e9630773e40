"""Who may call what, as a table, and how much a peer may have decoded."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import PeerUnknown, PolicyDenied, QuotaSpent, RefusedError
from ddib_fed.node.config import PolicySection
from ddib_fed.node.policy import DAY_S, MAX_REPEATS, Policy, Quota, check_depth, check_encoder
from ddib_fed.trust.certificates import new_authority
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.peers.file import Peer
from ddib_fed.trust.peers.store import Snapshot

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
EVERYBODY = (OWN_NODE, OWN_CLIENT, PEER_NODE, PEER_OTHER_NODE, PEER_CLIENT)

SUBMIT = "/ddib_fed.v1.TranslationService/SubmitJob"
DECODE = "/ddib_fed.v1.DecodingService/Decode"
SIGN = "/ddib_fed.v1.CalibrationService/SignCalibration"
RENEW = "/ddib_fed.v1.IdentityService/Renew"
HEALTH = "/grpc.health.v1.Health/Check"


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
        (RENEW, {OWN_NODE, OWN_CLIENT}),
        (HEALTH, set(EVERYBODY)),
        ("/ddib_fed.v1.AdminService/Drain", set()),
        ("/ddib_fed.v1.TranslationServiceX/SubmitJob", set()),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", set()),
        ("", set()),
    ],
)
def test_who_may_call_what(method: str, allowed: set[Identity]) -> None:
    """Everything else is refused."""
    assert {identity for identity in EVERYBODY if may(identity, method)} == allowed


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


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_quota_is_spent_by_samples() -> None:
    """What does not fit is refused whole, and says when to come again."""
    quota = Quota(100, clock=Clock())
    quota.charge("south.example", "r", 0, 60)
    with pytest.raises(QuotaSpent) as spent:
        quota.charge("south.example", "r", 1, 41)
    assert spent.value.retry_after_s == DAY_S
    assert spent.value.facts == {"limit": "100", "spent": "60", "asked": "41"}
    quota.charge("south.example", "r", 2, 40)


def test_an_item_is_charged_once() -> None:
    """It is sent again after a crash; and again without end it is not the same item."""
    quota = Quota(100, clock=Clock())
    for _ in range(1 + MAX_REPEATS):
        quota.charge("south.example", "r", 0, 60)
    with pytest.raises(QuotaSpent):
        quota.charge("south.example", "r", 0, 60)


def test_an_item_that_has_grown_is_another() -> None:
    """A small item does not pay for a large one."""
    quota = Quota(100, clock=Clock())
    quota.charge("south.example", "r", 0, 1)
    with pytest.raises(QuotaSpent):
        quota.charge("south.example", "r", 0, 100)


def test_each_peer_has_its_own_quota_and_its_own_day() -> None:
    """A new day begins a day after the first item."""
    clock = Clock()
    quota = Quota(10, clock=clock)
    quota.charge("south.example", "r", 0, 10)
    quota.charge("west.example", "r", 0, 10)
    clock.now = DAY_S - 1
    with pytest.raises(QuotaSpent):
        quota.charge("south.example", "r", 1, 1)
    clock.now = DAY_S
    quota.charge("south.example", "r", 1, 1)


def test_no_quota_is_no_limit() -> None:
    """Zero switches it off."""
    Quota(0).charge("south.example", "r", 0, 10**12)


def test_the_least_depth_itself_is_allowed() -> None:
    """And anything below it is not."""
    policy = PolicySection(least_depth=0.8)
    check_depth(SolverSettings(depth=0.8), policy)
    check_depth(SolverSettings(), policy)
    with pytest.raises(PolicyDenied) as denied:
        check_depth(SolverSettings(depth=0.79), policy)
    assert denied.value.facts["least"] == "0.8"


def test_encoders_that_show_more_are_allowed_by_name() -> None:
    """Without a word the ODE alone."""
    check_encoder(SolverSettings(), PolicySection())
    check_encoder(SolverSettings(encoder="mixed"), PolicySection(encoders=("ode", "mixed")))
    with pytest.raises(PolicyDenied, match="allows ode") as denied:
        check_encoder(SolverSettings(encoder="linear"), PolicySection())
    assert denied.value.facts == {"policy": "encoders", "encoder": "linear", "allowed": "ode"}


def test_items_of_another_request_or_number_are_charged_for_themselves() -> None:
    """Only the same item of the same request of the same peer is free."""
    quota = Quota(10, clock=Clock())
    for peer, request, item in (("a.example", "r", 0), ("a.example", "s", 0), ("a.example", "r", 1)):
        quota.charge(peer, request, item, 3)
    with pytest.raises(QuotaSpent):
        quota.charge("a.example", "s", 1, 3)
    quota.charge("b.example", "r", 0, 10)
