"""Who may call what, what the policy allows, and quotas that no kill gives back."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType

import pytest

from ddib_fed import errors
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.node import policy as policies
from ddib_fed.node.config import PolicySection
from ddib_fed.record import Guidance
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, Snapshot
from ddib_fed.security.pki import new_authority
from ddib_fed.store import NodeStore
from tests.source_node.jobs.job_examples import Clock

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


def may(
    identity: Identity, method: str, *, roles=("source", "target"), issuer: bool = True, **policy
) -> bool:
    authoriser = policies.Policy(
        institution="north.example", roles=roles, issuer=issuer, section=PolicySection(**policy)
    )
    try:
        authoriser.authorise(identity, method, SNAPSHOT)
    except errors.RefusedError:
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
        ("/ddib_fed.v1.AdminService/Drain", set()),
        ("/ddib_fed.v1.TranslationServiceX/SubmitJob", set()),
        ("", set()),
    ],
)
def test_who_may_call_what(method: str, allowed: set[Identity]) -> None:
    assert {identity for identity in EVERYBODY if may(identity, method)} == allowed


def test_nobody_of_a_suspended_institution_may_call_anything() -> None:
    """Health neither, which needs no admission of the single identity; the own institution goes on."""
    policy = policies.Policy(institution="north.example", roles=("source", "target"), issuer=True)
    snapshot = replace(SNAPSHOT, suspended={"south.example": "since today"})
    for identity in (PEER_NODE, PEER_OTHER_NODE, PEER_CLIENT):
        with pytest.raises(errors.PeerSuspended):
            policy.authorise(identity, HEALTH, snapshot)
    policy.authorise(OWN_CLIENT, HEALTH, snapshot)


def test_a_role_that_the_node_does_not_have_is_refused() -> None:
    assert not may(OWN_CLIENT, SUBMIT, roles=("target",))
    assert not may(PEER_NODE, DECODE, roles=("source",))
    assert not may(PEER_NODE, SIGN, roles=("source",))
    assert not may(OWN_CLIENT, RENEW, issuer=False)


def test_another_node_of_an_admitted_institution_is_unknown() -> None:
    """A wrong name under the right root: the reason says that admitting is what is missing."""
    policy = policies.Policy(institution="north.example", roles=("target",), issuer=False)
    with pytest.raises(errors.PeerUnknown):
        policy.authorise(PEER_OTHER_NODE, DECODE, SNAPSHOT)
    with pytest.raises(errors.PolicyDenied):
        policy.authorise(PEER_CLIENT, DECODE, SNAPSHOT)


def test_a_share_that_shows_more_is_allowed_down_to_the_least() -> None:
    policies.check_settings(SolverSettings(), PolicySection(), where="here")
    policies.check_settings(SolverSettings(share=0.75), PolicySection(least_share=0.75), where="here")
    for share, least in ((0.5, 0.75), (0.0, 0.5), (0.99, 1.0)):
        with pytest.raises(errors.PolicyDenied, match="a share of") as denied:
            policies.check_settings(
                SolverSettings(share=share), PolicySection(least_share=least), where="here"
            )
        assert denied.value.facts["policy"] == "least_share"


def test_a_peer_has_a_quota_of_its_own_where_the_policy_names_one() -> None:
    policy = PolicySection(
        evaluations_per_day=100, samples_per_day=7, quotas={"south.example": 5}, client_evaluations_per_day=3
    )

    def limits(institution: str) -> dict[str, int]:
        charges = policies.peer_charges(policy, institution, samples=1, evaluations=2)
        return {charge.quota: charge.limit for charge in charges}

    assert limits("south.example") == {"evaluations_per_day": 5, "samples_per_day": 7}
    assert limits("west.example") == {"evaluations_per_day": 100, "samples_per_day": 7}
    assert policies.client_charges(policy, "alice", 2)[0].limit == 3


@pytest.mark.parametrize(
    ("uses", "decode", "sign"),
    [
        ({"*": ("decode",), "south.example": ("calibrate",)}, False, True),
        ({}, False, False),
        ({"south.example": ("decode", "send")}, True, False),
    ],
)
def test_a_table_of_peers_denies_what_it_does_not_list(uses, decode: bool, sign: bool) -> None:
    assert (may(PEER_NODE, DECODE, peers=uses), may(PEER_NODE, SIGN, peers=uses)) == (decode, sign)


@pytest.mark.parametrize(
    ("clients", "targets"),
    [
        ({}, set()),
        ({"alice": ("south.example/relief",)}, {"south.example/relief"}),
        ({"alice": (), "*": ("*",)}, set()),
        ({"*": ("west.example/relief",)}, {"west.example/relief"}),
    ],
)
def test_a_table_of_clients_denies_what_it_does_not_list(clients, targets: set[str]) -> None:
    """Each name by itself, the star for the others; nothing allowed is no call at all."""
    found = set()
    for target in ("south.example/relief", "south.example/other", "west.example/relief"):
        with suppress(errors.PolicyDenied):
            policies.check_target("alice", *target.split("/"), PolicySection(clients=clients))
            found.add(target)
    assert found == targets
    assert may(OWN_CLIENT, SUBMIT, clients=clients) == bool(targets)


@pytest.fixture
def clock():
    made = Clock()
    made.now = 1e9
    return made


@pytest.fixture
def store(tmp_path):
    made = NodeStore(tmp_path / "node.sqlite")
    yield made
    made.close()


def charge(amount: int, limit: int = 100, who: str = "north.example") -> list[policies.Charge]:
    return [policies.Charge("evaluations_per_day", who, amount, limit)]


def test_what_does_not_fit_is_refused_and_says_what_is_left_and_when_it_renews(clock) -> None:
    quotas = policies.Quotas(None, clock=clock)
    quotas.charge(charge(60))
    with pytest.raises(errors.QuotaSpent) as spent:
        quotas.charge(charge(41))
    assert spent.value.retry_after_s == policies.DAY_S
    assert spent.value.facts == {
        "quota": "evaluations_per_day", "of": "north.example", "limit": "100", "left": "40", "asked": "41",
        "renews": "2001-09-10T01:46:40+00:00",
    }  # fmt: skip
    quotas.charge(charge(40))


def test_a_day_begins_with_the_first_charge_and_each_has_its_own(clock) -> None:
    quotas = policies.Quotas(None, clock=clock)
    quotas.charge(charge(100))
    clock.now += policies.DAY_S / 2
    quotas.charge(charge(100, who="west.example"))
    clock.now += policies.DAY_S / 2 - 60
    for who in ("north.example", "west.example"):
        with pytest.raises(errors.QuotaSpent):
            quotas.charge(charge(1, who=who))
    clock.now += 60
    quotas.charge(charge(100))
    with pytest.raises(errors.QuotaSpent):
        quotas.charge(charge(1, who="west.example"))


def test_a_restart_gives_nothing_back_and_an_orderly_one_takes_nothing(store, clock) -> None:
    quotas = policies.Quotas(store, clock=clock)
    quotas.charge(charge(123_456, 10**6))
    quotas.close()
    with pytest.raises(errors.QuotaSpent) as spent:
        policies.Quotas(store, clock=clock).charge(charge(10**6, 10**6))
    assert spent.value.facts["left"] == str(10**6 - 123_456)


def test_a_kill_gives_nothing_back_and_takes_at_most_a_part_of_the_limit(tmp_path) -> None:
    """Of a process that charges as fast as it can, and is killed with -9 in the middle of it."""
    path = tmp_path / "node.sqlite"
    program = f"""
from pathlib import Path
from ddib_fed.node.policy import Charge, Quotas
from ddib_fed.store import NodeStore
quotas, count = Quotas(NodeStore(Path({str(path)!r}))), 0
while True:
    quotas.charge([Charge("evaluations_per_day", "north.example", 7, 10**6)])
    count += 7
    print(count, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(60):
            last = process.stdout.readline()
        process.kill()
        last = process.stdout.read().rpartition("\n")[0].rpartition("\n")[2] or last
    store = NodeStore(path)
    (account,) = store.read("SELECT spent FROM quotas")
    store.close()
    # What was printed had been charged; one more charge may have been booked and not printed.
    assert int(last) <= account["spent"] <= int(last) + 7 + 10**6 // policies.AHEAD + 7


def test_works_are_charged_in_their_order_as_many_as_fit_with_one_write(store, clock) -> None:
    quotas = policies.Quotas(store, clock=clock)
    assert quotas.charge_each([charge(amount) for amount in (8, 40, 30, 30, 1)]) == 3
    assert store.commits == 1
    with pytest.raises(errors.QuotaSpent) as spent:
        quotas.charge_each([charge(30), charge(1)])
    assert spent.value.facts["left"] == "22"
    quotas.charge(charge(22))


def test_a_clock_that_was_set_back_makes_no_day_longer_than_a_day(clock) -> None:
    quotas = policies.Quotas(None, clock=clock)
    clock.now += 1_000 * policies.DAY_S
    quotas.charge(charge(100))
    clock.now -= 1_000 * policies.DAY_S
    with pytest.raises(errors.QuotaSpent) as spent:
        quotas.charge(charge(1))
    assert spent.value.retry_after_s == policies.DAY_S
    clock.now += policies.DAY_S
    quotas.charge(charge(100))


def test_pictures_count_their_pixels_and_guided_legs_twice() -> None:
    """Points count one each, channels nothing; a way back counts as another leg, guided if it is."""
    assert policies.evaluations_of(10, (2,), 48) == 480
    assert policies.evaluations_of(2, (3, 32, 16), 10) == 2 * 512 * 10
    assert policies.evaluations_of(1, (1, 8, 8), 10, round_trip=True) == 2 * 640
    guided = Guidance(guidance=3.0)
    assert policies.evaluations_of(1, (1, 8, 8), 10, guided) == 2 * 640
    assert policies.evaluations_of(1, (1, 8, 8), 10, guided, round_trip=True) == 3 * 640
