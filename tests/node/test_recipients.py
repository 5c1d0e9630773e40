"""Whom the officer's page names: peers that policy, suspensions and withdrawals leave; and what its sentences claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.node.admitting import peer_store
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.officer.facts import gather
from ddib_fed.node.officer.leaving import leaving
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.withdrawn import withdraw
from tests.node.institutions import Institution
from tests.node.test_officer import row, section, text_of
from tests.node.tiny_nodes import make_config, make_institution, save_model


def both_roles(folder: Path, **policy: str) -> NodeConfig:
    """North as source and target, with south and west admitted."""
    made = make_config(folder / "north", "north.example", "source")
    text = made.path.read_text().replace('roles = ["source"]', 'roles = ["source", "target"]')
    lines = "".join(f"{name} = {value}\n" for name, value in policy.items())
    made.path.write_text(text.replace("[policy]\n", f"[policy]\n{lines}", 1))
    made = NodeConfig.load(made.path)
    assert made.node.roles == ("source", "target")
    north = make_institution(folder / "north", "north.example")
    for name in ("south", "west"):
        north.admit(Institution(f"{name}.example", folder / name), f"{name}.example:7555")
    save_model(made)
    return made


def test_recipients_are_those_of_the_policy(tmp_path: Path) -> None:
    """A peer that may only send is no recipient of latents, and one that may only be sent to does not decode here."""
    config = both_roles(
        tmp_path, peers='{ "south.example" = ["send"], "*" = ["decode"] }', calibration='["rotation"]'
    )
    assert row(config, "What crosses", "to south.example")[0].startswith("latents")
    assert row(config, "What crosses", "from south.example")[0].startswith("translations")
    assert row(config, "What crosses", "to west.example")[0].startswith("translations")
    assert row(config, "What crosses", "from west.example")[0] == "latents"
    may = {cells[1].split(",")[0]: cells[2] for cells in section(config, "Who may call").rows}
    assert (
        may["spiffe://south.example/node/node-1"] == "whether this node is healthy, no more: [policy.peers]"
    )
    assert may["spiffe://west.example/node/node-1"] == "decoding"
    called = {cells[1]: cells[3] for cells in section(config, "Ports").rows}
    assert called["south.example:7555"] == "latents to south.example"
    assert called["west.example:7555"].endswith("no latents")
    said = leaving(gather(config))
    assert "Latents of your clients' pictures or points leave, to south.example." in said
    assert "Translations leave: what this node makes of the latents of west.example." in said
    assert "Calibrations of the kind rotation are allowed, but with none of the peers." in said
    for institution in ("west.example: [policy.peers]", "latents of south.example are decoded"):
        assert institution in " ".join(said)


def test_nobody_is_a_recipient_where_no_client_may_send(tmp_path: Path) -> None:
    """[policy.clients] decides too, by name; the page says what each client may do."""
    config = both_roles(tmp_path, clients='{ "alice" = ["south.example/relief"], "bob" = [] }')
    rows = [cells[1:] for cells in section(config, "Who may call").rows if cells[0].startswith("client")]
    assert rows == [
        ("spiffe://north.example/client/alice", "their own jobs, to south.example/relief"),
        ("spiffe://north.example/client/bob", "nothing: [policy.clients]"),
        ("any other certificate spiffe://north.example/client/NAME", "nothing: [policy.clients]"),
    ]
    said = " ".join(leaving(gather(config)))
    assert "leave, to south.example." in said
    assert "No latents go to west.example" in said
    nobody = both_roles(tmp_path / "again", clients="{}")
    assert "No latents leave: no admitted peer may get any." in leaving(gather(nobody))


@pytest.mark.parametrize("how", ["suspended", "withdrawn"])
def test_a_peer_that_is_suspended_or_withdrawn_is_no_recipient(tmp_path: Path, how: str) -> None:
    """Nothing goes to it and nothing is taken from it: said wherever it is named."""
    config = both_roles(tmp_path)
    if how == "suspended":
        peer_store(config).suspend("south.example", reason="a stolen disk")
    else:
        withdraw(config.paths.pki, Identity("south.example", "node", "node-1"))
    why = "a stolen disk" if how == "suspended" else "its node is withdrawn"
    for direction in ("to", "from"):
        assert row(config, "What crosses", f"{direction} south.example")[0] == "nothing"
    assert why in text_of(section(config, "What leaves"))
    (used,) = [
        cells[2]
        for cells in section(config, "Who may call").rows
        if "south" in cells[1] and "peer" in cells[0]
    ]
    assert used.startswith("no service")
    assert why in used
    (called,) = [cells[3] for cells in section(config, "Ports").rows if cells[1] == "south.example:7555"]
    assert called.startswith("not called")
    said = leaving(gather(config))
    assert "Latents of your clients' pictures or points leave, to west.example." in said
    assert f"south.example and nothing is taken from it: {how if how == 'suspended' else why}" in " ".join(
        said
    )


def test_what_the_gate_does_is_not_overstated(tmp_path: Path) -> None:
    """It judges latents of full depth alone, and knows what is usual only where that was measured."""
    full = both_roles(tmp_path / "full")
    said = " ".join(leaving(gather(full)))
    assert "by bounds for every model" in said
    assert "it does not show that nothing of the picture can be read from it" in said
    assert "less depth" not in said
    (full.paths.bundle / "gate.json").write_text("{}")
    assert "unlike the usual ones of your model is encoded again" in " ".join(leaving(gather(full)))
    shallow = both_roles(tmp_path / "shallow", least_depth="0.6")
    assert "A latent of less depth is not noise: it is not compared" in " ".join(leaving(gather(shallow)))
