"""How often one identity renews in a day: each certificate is a line of the issuer's audit log."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.errors import NotReady, QuotaSpent
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.policy import Charge, Quotas
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.renewal import renew_through
from ddib_fed.store import NodeStore
from tests import audit_rows
from tests.node.certificates.issuing import Server, enrolled


def test_an_identity_renews_so_often_in_a_day_and_no_more(
    issuer: NodeConfig, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Due or not; each is a line of the audit log. Others are not affected, and a restart gives nothing back."""
    monkeypatch.setattr("ddib_fed.node.certificates.RENEWALS_PER_DAY", 2)
    monkeypatch.setattr("ddib_fed.node.certificates.TRIES_PER_LIFE", 0)
    one, other = (tmp_path / name for name in ("alice", "bob"))
    for folder in (one, other):
        enrolled(issuer, folder, Identity("north.example", "client", folder.name))

    def renew(folder: Path) -> None:
        renew_through(folder, address=server.address, server_name="node-1.north.example", hop="issuer x")

    for _ in range(2):
        renew(one)
    with pytest.raises(QuotaSpent) as caught:
        renew(one)
    assert (caught.value.facts["quota"], caught.value.facts["limit"]) == ("renewals_per_day", "2")
    assert "renews" in caught.value.facts
    renew(other)
    lines = [line for line in audit_rows.records(issuer.paths.store) if line.get("by") == "renewal"]
    assert len(lines) == 3
    again = Quotas(NodeStore(issuer.paths.store, shared=True))
    with pytest.raises(QuotaSpent):
        again.charge([Charge("renewals_per_day", "spiffe://north.example/client/alice", 1, 2)])


def test_a_certificate_that_cannot_be_written_down_is_neither_given_nor_counted(
    issuer: NodeConfig, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk of the issuer spends nobody's renewals."""
    folder = tmp_path / "alice"
    enrolled(issuer, folder, Identity("north.example", "client", "alice"))
    audit_rows.full_disk(monkeypatch)
    before = pki.load_identity(folder)
    with pytest.raises(NotReady):
        renew_through(folder, address=server.address, server_name="node-1.north.example", hop="issuer x")
    assert pki.load_identity(folder) == before
    (account,) = server.quotas._accounts.values()
    assert account.spent == 0
