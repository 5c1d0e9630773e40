"""`ddib doctor`: checks each step from the profile to the source node, and names the cause of the first failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click

from ddib_fed.cli import options
from ddib_fed.cli.client.session import open_client
from ddib_fed.cli.output import print_json
from ddib_fed.client.diagnosis import diagnose
from ddib_fed.client.profile import Profile
from ddib_fed.errors import DdibError, PeerUnreachable, Unauthenticated
from ddib_fed.terminal import say
from ddib_fed.trust.pki import load_identity

Step = tuple[str, Callable[[], str]]


@click.command()
@options.FORMAT
@options.PROFILE
def doctor(output_format: str, profile_path: Path | None) -> None:
    """Check the client's profile and its connection to the source node.

    Step by step, with the cause at the first failure. Its own TLS handshake names what gRPC cannot: a wrong root,
    a wrong name, an expired certificate, no TLS at all.
    """
    findings: list[dict[str, object]] = []
    failure: DdibError | None = None
    for what, check in _steps(profile_path):
        try:
            findings.append({"step": what, "ok": True, "finding": check()})
        except DdibError as error:
            findings.append({"step": what, "ok": False, "finding": error.detail})
            failure = error
        if output_format == "text":
            _show(findings[-1])
        if failure is not None:
            break
    if output_format == "json":
        print_json(findings)
    if failure is not None:
        raise failure


def _show(finding: dict[str, object]) -> None:
    """One line of output; the cause of a failed step is printed once, as the command's error."""
    if finding["ok"]:
        say(f"ok    {finding['step']:<12} {finding['finding']}")
    else:
        say(f"FAIL  {finding['step']}")


def _steps(profile_path: Path | None) -> Iterator[Step]:
    """The steps; each runs only if the earlier ones succeeded."""
    found: list[Profile] = []

    def load() -> str:
        found.append(Profile.load(profile_path))
        return str(found[0].path)

    yield "profile", load
    profile = found[0]
    yield "certificate", lambda: _certificate(profile)
    yield "connection", lambda: _connection(profile)
    yield "service", lambda: _service(profile)


def _certificate(profile: Profile) -> str:
    """Check that the folder's certificate is the profile's; its validity is checked by the connection."""
    own, expected = load_identity(profile.pki_folder), f"spiffe://{profile.institution}/client/{profile.name}"
    if own.identity.uri != expected:
        raise Unauthenticated(
            f"the certificate names {own.identity}, the profile {expected}",
            hop="client",
            hint=f"edit {profile.path}, or make a client anew: ddib init client",
        )
    return f"{own.identity}, valid until {own.not_after:%Y-%m-%d %H:%M} UTC"


def _connection(profile: Profile) -> str:
    """Check that both sides accept the other's certificate over TLS 1.3."""
    finding = diagnose(
        profile.source_address, server_name=profile.source_identity, pki_folder=profile.pki_folder
    )
    if finding.ok:
        return f"{profile.source_address}: {finding.text}"
    kind = Unauthenticated if finding.cause in {"own-certificate", "refused-us"} else PeerUnreachable
    hop = "client" if finding.cause == "own-certificate" else f"source {profile.institution}"
    raise kind(f"{finding.text} [{finding.cause}]", hop=hop, hint=finding.remedy)


def _service(profile: Profile) -> str:
    """Check that the node serves this client, and list what it can reach."""
    with open_client(profile, patience_s=0) as client:
        found = client.domains()
    targets = ", ".join(f"{d.target} {d.status}" for d in found.targets) or "no targets yet"
    return f"{found.institution}/{found.domain}; {targets}"
