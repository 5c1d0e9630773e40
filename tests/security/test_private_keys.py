"""A private key that somebody else could read, or put in place, is not used."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ddib_fed import files as private_files
from ddib_fed.engine.softening import load_key
from ddib_fed.errors import ConfigError
from ddib_fed.files import read_private, refuse_open_folder
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from ddib_fed.security.pki import make_request
from ddib_fed.security.tls import ServerCredentials
from tests.node.institutions import Institution

TWO = Identity("north.example", "node", "node-2")


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    made = Institution("north.example", tmp_path / "no r'th")  # a name that a shell must be given in quotes
    load_key(made.pki / "softening.key")
    make_request(made.pki, TWO)
    return made


READERS: list[tuple[str, Callable[[Institution], object]]] = [
    ("ca.key", lambda north: pki.load_authority(north.pki)),
    ("leaf.key", lambda north: pki.load_identity(north.pki)),
    ("leaf.key", lambda north: pki.issue_to_folder(north.authority, north.pki, "node", "node-1")),
    ("leaf.key", lambda north: ServerCredentials(north.pki, north.store)),
    ("request.key", lambda north: make_request(north.pki, TWO)),
    ("softening.key", lambda north: load_key(north.pki / "softening.key")),
]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601], ids=oct)
@pytest.mark.parametrize(("name", "use"), READERS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(READERS)])
def test_a_key_that_others_can_read_is_refused_with_the_command_that_closes_it(
    north: Institution, name: str, use: Callable[[Institution], object], mode: int
) -> None:
    """Its group is others too. The command can be pasted: after it the key is used."""
    key = north.pki / name
    key.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}") as refused:
        use(north)
    assert str(key) in refused.value.detail
    subprocess.run(["/bin/sh", "-c", refused.value.hint], check=True)
    assert key.stat().st_mode & 0o777 == 0o600
    use(north)


def test_a_link_is_as_private_as_what_it_leads_to(north: Institution, tmp_path: Path) -> None:
    """The mode of a link is 0777 and says nothing."""
    away, key = tmp_path / "vault" / "leaf.key", north.pki / "leaf.key"
    away.parent.mkdir(mode=0o700)
    key.rename(away)
    key.symlink_to(away)
    assert read_private(key) == away.read_bytes()
    away.chmod(0o640)
    with pytest.raises(ConfigError, match="0640"):
        pki.load_identity(north.pki)
    away.chmod(0o600)
    away.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="vault"):
        pki.load_identity(north.pki)


@pytest.mark.parametrize("mode", [0o777, 0o722, 0o770, 0o702], ids=oct)
def test_a_folder_in_which_others_can_exchange_keys_is_refused(north: Institution, mode: int) -> None:
    """They need not read one to put theirs there; the command can be pasted."""
    north.pki.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}") as refused:
        pki.load_identity(north.pki)
    subprocess.run(["/bin/sh", "-c", refused.value.hint], check=True)
    assert pki.load_identity(north.pki).identity == north.identity


def test_a_shared_folder_is_no_place_and_is_not_closed(tmp_path: Path) -> None:
    """Whoever pastes `chmod 700 /tmp` stops the machine."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    with pytest.raises(ConfigError) as refused:
        refuse_open_folder(tmp_path / "tmp")
    assert "chmod" not in refused.value.hint


def test_somebody_elses_key_is_refused(north: Institution, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can exchange it, whatever its mode. Root's are taken: root can anyway."""
    key = north.pki / "leaf.key"
    if os.geteuid() == 0:
        os.chown(key, 12345, -1)
    else:
        monkeypatch.setattr(private_files.os, "geteuid", lambda: key.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to the user") as refused:
        read_private(key)
    assert "chown" in refused.value.hint


def test_a_running_node_goes_on_with_the_last_good_key_and_says_so(north: Institution) -> None:
    """A backup that was put back with other modes: in the status, with the command."""
    credentials = ServerCredentials(north.pki, north.store)
    assert credentials.problem is None
    (north.pki / "leaf.key").chmod(0o644)
    assert "chmod 600" in (credentials.problem or "")
    (north.pki / "leaf.key").chmod(0o600)
    assert credentials.problem is None
