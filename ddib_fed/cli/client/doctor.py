"""`ddib doctor`: checks each step from the profile to the source node, and names the cause of the first failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from ddib_fed.cli import options
from ddib_fed.cli.client.session import open_client
from ddib_fed.cli.help import command
from ddib_fed.cli.output import print_json
from ddib_fed.client.profile import Profile
from ddib_fed.errors import ConfigError, DdibError, Unauthenticated
from ddib_fed.rpc.details import TOLERATED_S, described
from ddib_fed.terminal import say
from ddib_fed.trust.diagnosis import diagnose, own_validity
from ddib_fed.trust.pki import load_identity

Step = tuple[str, Callable[[], str]]


@command()
@options.FORMAT
@options.PROFILE
def doctor(output_format: str, profile_path: Path | None) -> None:
    """Check the client's profile, its connection to the source node, and both clocks.

    Step by step, with the cause at the first failure. Every other command names the same causes when it cannot reach
    the node.
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
    clocks: list[float | None] = []
    yield "service", lambda: _service(profile, clocks)
    yield "clock", lambda: _clock(profile, clocks[0])


def _certificate(profile: Profile) -> str:
    """Check that the folder's certificate is the profile's and valid now; a root that ends soon is named."""
    own, expected = load_identity(profile.pki_folder), f"spiffe://{profile.institution}/client/{profile.name}"
    if own.identity.uri != expected:
        raise Unauthenticated(
            f"the certificate names {own.identity}, the profile {expected}",
            hop="client",
            hint=f"edit {profile.path}, or make a client anew: ddib init client --help",
        )
    if (finding := own_validity(own)) is not None:
        raise finding.as_error("client")
    warning = own.root_warning(datetime.now(UTC))
    return f"{own.identity}, valid until {own.not_after:%Y-%m-%d %H:%M} UTC{warning and f'; {warning}'}"


def _connection(profile: Profile) -> str:
    """Check that both sides accept the other's certificate over TLS 1.3."""
    finding = diagnose(
        profile.source_address,
        server_name=profile.source_identity,
        pki_folder=profile.pki_folder,
        proxy=profile.way,
        asks_environment=True,
    )
    if not finding.ok:
        raise finding.as_error(profile.hop)
    through = f" through the proxy {profile.way.address}" if profile.way is not None else ""
    return f"{profile.source_address}{through}: {finding.text}"


def _clock(profile: Profile, ahead_s: float | None) -> str:
    """Check that the node's clock and this machine's agree: certificates and deadlines depend on both."""
    if ahead_s is None:
        return "the node does not say its time: its release is older"
    if abs(ahead_s) >= TOLERATED_S:
        raise ConfigError(
            f"the clock of the node is {described(ahead_s)}",
            hop=profile.hop,
            hint="compare both with a third: `timedatectl` shows whether this machine's is synchronised",
        )
    return f"within {max(1.0, abs(ahead_s)):.0f} s of the node's"


def _service(profile: Profile, clocks: list[float | None]) -> str:
    """Check that the node serves this client, and list what it can reach; notes the difference of the clocks."""
    try:
        with open_client(profile, patience_s=0) as client:
            found = client.domains()
            clocks.append(client.clock_s)
    except DdibError as error:
        error.hint = error.hint or "ask the operator of the node: its log says why"
        raise
    targets = ", ".join(f"{d.target} {d.status}" for d in found.targets) or "no targets yet"
    return f"{found.institution}/{found.domain}; {targets}"
