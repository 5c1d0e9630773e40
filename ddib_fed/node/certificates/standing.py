"""Checks whether others would accept a node's certificate now, and who could renew it.

It changes nothing; `renewal` acts on the result.
"""

from __future__ import annotations

import shlex
import shutil
from datetime import UTC, datetime
from pathlib import Path

from ddib_fed.errors import ConfigError, Unauthenticated
from ddib_fed.node.config import NodeConfig
from ddib_fed.trust.identity import Identity, verify_peer_certificate
from ddib_fed.trust.pki import (
    Authority,
    Credentials,
    check_root,
    has_authority,
    load_authority,
    load_identity,
    load_recovery,
    parse_certificates,
)


def own_authority(config: NodeConfig) -> Authority:
    """The root in the node's folder."""
    folder = config.paths.pki
    authority = load_authority(folder)
    if authority.institution != config.node.institution:
        raise ConfigError(
            f"the root in {folder} is of {authority.institution}, node.toml says {config.node.institution}",
            hint="ddib pki show",
        )
    return authority


def own_credentials(config: NodeConfig) -> Credentials:
    """The node's certificate and key; they may have expired."""
    credentials = load_identity(config.paths.pki)
    expected = Identity(config.node.institution, "node", config.node.name)
    if credentials.identity != expected:
        raise ConfigError(
            f"the certificate in {config.paths.pki} names {credentials.identity}, node.toml says {expected}",
            hint="ddib pki show",
        )
    return credentials


def not_accepted(credentials: Credentials, now: datetime) -> str | None:
    """Why the certificate is not acceptable now: expired, not yet valid, of another root; None if it is."""
    roots = parse_certificates(credentials.roots_pem, "roots.pem")
    try:
        verify_peer_certificate(
            credentials.cert_chain_pem, pins={credentials.identity.institution: roots}, now=now
        )
    except Unauthenticated as error:
        return error.detail
    return None


def _recovers(folder: Path, now: datetime) -> bool:
    recovery = load_recovery(folder)
    return recovery is not None and not_accepted(recovery, now) is None


def look_at_identity(config: NodeConfig, *, now: datetime | None = None) -> list[str]:
    """The state of the node's certificate at a start: a line, and warnings if the operator should act."""
    moment, folder = now or datetime.now(UTC), config.paths.pki
    issues, command = has_authority(folder), config.identity.renew_command
    if issues:
        own_authority(config)
    elif command is not None and shutil.which(command[0]) is None:
        raise ConfigError(
            f"identity.renew_command: there is no program {command[0]!a}",
            hint=f"ls -l {shlex.quote(command[0])}; or correct identity.renew_command in {config.path}",
        )
    if issues and not (folder / "leaf.pem").exists():
        return [f"{config.node.name} of {config.node.institution}, whose certificate is made at the start"]
    credentials = own_credentials(config)
    text = f"{credentials.identity}, until {credentials.not_after:%Y-%m-%d %H:%M} UTC"
    problem, root = not_accepted(credentials, moment), credentials.root_warning(moment)
    if problem is None:
        renewable = issues or command is not None or config.identity.issuer is not None
        nothing = "" if renewable else "nothing renews it: set identity.issuer or identity.renew_command"
        return [text, *filter(None, (nothing, root))]
    if issues:
        check_root(own_authority(config), moment)
    if issues or command is not None or (config.identity.issuer is not None and _recovers(folder, moment)):
        return [str(credentials.identity), f"{problem}; it is renewed at the start"]
    raise Unauthenticated(
        f"{problem}, and a start cannot renew it",
        hint="compare the clock (date -u); else ddib pki request, have it signed by the issuer, then ddib pki install",
    )
