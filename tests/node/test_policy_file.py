"""The policy of node.toml: who may use the node for what, its digest, and changes of it while the node runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, PolicyDenied
from ddib_fed.node.applied import Applied
from ddib_fed.node.config import NodeConfig, PolicySection
from ddib_fed.node.policy import (
    Policy,
    check_softening,
    check_target,
    check_use,
    policy_digest,
)
from ddib_fed.node.policy_file import PolicyFile, policy_changes
from ddib_fed.node.role import NodeContext
from ddib_fed.server.probes import Metrics
from ddib_fed.trust.audit.log import AuditLog
from tests.node.test_policy import DECODE, OWN_CLIENT, PEER_NODE, SIGN, SNAPSHOT, SUBMIT
from tests.node.tiny_nodes import make_config, make_institution


@pytest.fixture
def node(tmp_path: Path) -> NodeContext:
    config = make_config(tmp_path / "north", "north.example", "source")
    institution = make_institution(tmp_path / "north", "north.example")
    return NodeContext(Applied(config), institution.store, AuditLog(config.paths.audit), Metrics())


def rewrite(node: NodeContext, text: str) -> None:
    """node.toml with these lines in [policy]."""
    path = node.config.path
    before, _, after = path.read_text().partition("[policy]\n")
    rest = after[after.index("# round_trip") :]
    path.write_text(f"{before}[policy]\n{text}\n{rest}")


def lines(node: NodeContext, act: str) -> list[dict]:
    found = map(json.loads, node.config.paths.audit.read_text().splitlines())
    return [record for record in found if record["act"] == act]


def allowed(policy: PolicySection, identity, method: str) -> bool:
    authoriser = Policy(
        institution="north.example", roles=("source", "target"), issuer=False, section=lambda: policy
    )
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


def test_a_peer_that_nothing_may_be_sent_to_is_no_target() -> None:
    """Whoever asks."""
    policy = PolicySection(peers={"south.example": ("decode",)})
    with pytest.raises(PolicyDenied, match="'send'"):
        check_target("alice", "south.example", "relief", policy)
    check_use("south.example", "decode", policy)


def test_by_default_admission_decides() -> None:
    """As in nodes of earlier releases, whose node.toml has neither table."""
    assert allowed(PolicySection(), PEER_NODE, DECODE)
    check_target("alice", "south.example", "relief", PolicySection())


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
def test_what_is_no_policy_is_refused(node: NodeContext, text: str) -> None:
    """At a start as at a reload."""
    rewrite(node, text)
    with pytest.raises(ConfigError, match="policy"):
        NodeConfig.load(node.config.path)


def test_the_digest_is_that_of_the_settings(node: NodeContext, tmp_path: Path) -> None:
    """Not of the file: comments, order and defaults that are written out change nothing; each setting does."""
    before = policy_digest(node.config)
    rewrite(node, "# a comment\nleast_depth = 1.0\nmax_guidance = 10")
    assert policy_digest(NodeConfig.load(node.config.path)) == before
    digests = {before}
    for text in ("least_depth = 0.9", "peers = {}", 'calibration = ["tone"]', "samples_per_day = 5"):
        rewrite(node, text)
        digests.add(policy_digest(NodeConfig.load(node.config.path)))
    other = make_config(tmp_path / "other", "west.example", "target", result_days=1)
    assert len(digests | {policy_digest(other)}) == 6


def test_a_change_is_applied_and_written_down(node: NodeContext) -> None:
    """What changed, and both digests; what needs a restart is said to."""
    before = node.policy_sha256
    text = node.config.path.read_text().replace("# stall_s = 60.0", "stall_s = 30.0")
    text = text.replace("[node]\n", '[node]\nproxy = "http://proxy.north.example:3128"\n', 1)
    node.config.path.write_text(text)
    rewrite(node, "least_depth = 0.5\npeers = {}")
    told = PolicyFile(node).reload()
    assert told == [
        "policy.peers['*']: ['send', 'decode', 'calibrate'] to no entry",
        "policy.least_depth: 1.0 to 0.5",
        f"[node] changed in {node.config.path}: a restart applies it",
        f"[limits] changed in {node.config.path}: a restart applies it",
    ]
    assert (node.config.policy.least_depth, node.config.limits.stall_s) == (0.5, 60.0)
    (line,) = lines(node, "policy_changed")
    assert (line["before"], line["policy"]) == (before, node.policy_sha256)
    assert PolicyFile(node).reload() == told[2:]
    assert len(lines(node, "policy_changed")) == 1


def test_of_a_long_table_what_changed_is_written_and_nothing_is_cut(node: NodeContext) -> None:
    """One client of a hundred may translate to one more domain; before and after would share the beginning."""
    table = {f"client-{n:03}": ["south.example/relief", "west.example"] for n in range(100)}
    many = [f"institution-{n:03}.example" for n in range(60)]

    def written(clients: dict[str, list[str]], quotas: str = "") -> list[str]:
        entries = ", ".join(f'"{name}" = {json.dumps(targets)}' for name, targets in clients.items())
        rewrite(node, f"clients = {{ {entries} }}\n{quotas}")
        PolicyFile(node).reload()
        return [change for line in lines(node, "policy_changed") for change in line["changes"]]

    before = len(written(table))
    table["client-077"] = ["south.example/relief", "east.example/maps"]
    del table["client-099"]
    told = written(table, 'quotas = { "west.example" = 5 }')[before:]
    assert told == [
        "policy.clients['client-077']: removed 'west.example'; added 'east.example/maps'",
        "policy.clients['client-099']: ['south.example/relief', 'west.example'] to no entry",
        "policy.quotas['west.example']: no entry to 5",
    ]
    before += len(told)
    table["client-077"] = many
    pieces = written(table, 'quotas = { "west.example" = 5 }')[before:]
    assert all(name in "".join(piece.removeprefix("...") for piece in pieces) for name in many)


def test_an_order_that_means_something_is_written_whole() -> None:
    """A list of which only the order changed is written as it was and as it is."""
    before = PolicySection(latent_types=("float32",), clients={"a": ("x.example", "y.example")})
    after = PolicySection(latent_types=("float16", "float32"), clients={"a": ("y.example", "x.example")})
    assert policy_changes(before, after) == [
        "policy.clients['a']: ['x.example', 'y.example'] to ['y.example', 'x.example']",
        "policy.latent_types: ['float32'] to ['float16', 'float32']",
    ]


@pytest.mark.parametrize("text", ["least_depth = 7", "least_depth", 'peers = { "south.example" = ["read"] }'])
def test_a_bad_file_keeps_the_policy_that_is_applied(node: NodeContext, text: str) -> None:
    """The node says so with the remedy until the file is good again; nothing of it is applied."""
    file = PolicyFile(node)
    rewrite(node, "least_depth = 0.5")
    file.reload()
    good = node.policy_sha256
    rewrite(node, text)
    (told,) = file.reload()
    assert told.startswith("not read: policy: ")
    assert (node.policy_sha256, node.config.policy.least_depth) == (good, 0.5)
    assert "ddib reload" in (file.problem or "")
    assert lines(node, "policy_refused")[0]["policy"] == good
    rewrite(node, "least_depth = 0.5")
    assert file.reload() == []
    assert file.problem is None


def test_a_policy_that_cannot_be_written_down_is_not_applied(
    node: NodeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line comes first."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = node.policy_sha256
    monkeypatch.setattr(node.audit, "write", full)
    rewrite(node, "least_depth = 0.5")
    with pytest.raises(OSError, match="No space"):
        PolicyFile(node).reload()
    assert node.policy_sha256 == before
