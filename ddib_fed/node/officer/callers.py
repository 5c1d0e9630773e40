"""Who may call the node and for what, and whom it calls, as sections of the officer's page."""

from __future__ import annotations

from collections.abc import Iterator

from ddib_fed.node.config import EVERY
from ddib_fed.node.officer.facts import Facts
from ddib_fed.node.officer.recipients import Recipient, recipients
from ddib_fed.node.officer.section import Section
from ddib_fed.node.officer.telemetry import telemetry_ports


def callers(facts: Facts) -> Section:
    """Everybody who is not refused, with what the policy lets them use."""
    config = facts.config
    rows = [
        ("peer node", f"{each.peer.identity}, root {', '.join(each.peer.fingerprints)}", _used(each, facts))
        for each in recipients(facts)
    ]
    if "source" in config.node.roles:
        rows += _clients(facts)
    if facts.issues:
        institution = config.node.institution
        rows.append(
            ("own identities", f"any certificate of {institution}", "renewal of their own certificate")
        )
    rows += [("withdrawn", identity, "nothing") for identity in facts.withdrawn]
    return Section(
        "Who may call",
        ("Everybody else is refused before a message is read.",),
        ("who", "identity", "may use"),
        tuple(rows),
    )


def _used(peer: Recipient, facts: Facts) -> str:
    """What a peer's node may use here."""
    if peer.barred:
        return f"no service: {peer.barred}"
    if "target" not in facts.config.node.roles:
        return "whether this node is healthy, no more"
    used = ["decoding"] if peer.translations else []
    used += ["calibrations"] if peer.calibrates else []
    return ", ".join(used) or "whether this node is healthy, no more: [policy.peers]"


def _clients(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """The own clients as the policy names them; the rest of them last."""
    config = facts.config
    named = {name: targets for name, targets in config.policy.clients.items() if name != EVERY}
    withdrawn = set(facts.withdrawn)
    for name, targets in sorted(named.items()):
        identity = f"spiffe://{config.node.institution}/client/{name}"
        if identity not in withdrawn:
            yield "client", identity, _translates(targets)
    others = f"any{' other' if named else ''} certificate spiffe://{config.node.institution}/client/NAME"
    yield "clients", others, _translates(config.policy.clients.get(EVERY, ()))


def _translates(targets: tuple[str, ...]) -> str:
    if not targets:
        return "nothing: [policy.clients]"
    return f"their own jobs, to {'every peer' if EVERY in targets else ', '.join(targets)}"


def ports(facts: Facts) -> Section:
    """Every connection that the node takes or makes."""
    config = facts.config
    rows = [("in", config.node.listen, "TLS 1.3 with certificates on both sides", "peers and clients above")]
    if "source" in config.node.roles:
        through = f", through the proxy {config.node.proxy}" if config.node.proxy else ""
        protection = f"TLS 1.3, that peer's root alone{through}"
        rows += [("out", each.peer.address, protection, _called(each)) for each in recipients(facts)]
    if config.identity.issuer:
        rows.append(("out", config.identity.issuer, "TLS 1.3", "renewal of the certificate"))
    if config.identity.renew_command:
        rows.append(("local", " ".join(config.identity.renew_command), "the operator's command", "the same"))
    if config.http.listen:
        rows.append(("in, loopback", config.http.listen, "plain HTTP", "probes and metrics"))
    rows.append(
        ("local", str(config.paths.admin_socket), "Unix socket, mode 0600", "the operator's commands")
    )
    if config.engine.executor == "ray":
        rows.append(("out", config.engine.ray_address, "Ray, not encrypted by the node", "the own cluster"))
    rows += telemetry_ports(config)
    return Section(
        "Ports and directions",
        ("No other connections are made: nothing is downloaded, and telemetry goes nowhere else.",),
        ("direction", "address", "protection", "for"),
        tuple(rows),
    )


def _called(peer: Recipient) -> str:
    if peer.barred:
        return f"not called: {peer.barred}"
    if not peer.latents:
        return f"what {peer.institution} offers; no latents"
    return f"latents to {peer.institution}"
