"""The officer's page as sections of plain text and tables, each from the node's facts.

Every line is what the configuration, the files or the audit log say; what was not measured is said to be so.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from ddib_fed.node.officer.callers import callers, ports
from ddib_fed.node.officer.facts import Facts, stored
from ddib_fed.node.officer.leak import leak
from ddib_fed.node.officer.leaving import leaving
from ddib_fed.node.officer.recipients import Recipient, recipients
from ddib_fed.node.officer.section import Section
from ddib_fed.node.officer.thresholds import thresholds
from ddib_fed.node.officer.traffic import Traffic
from ddib_fed.version import __version__

IN_WORDS: Final = "What leaves, in plain words"
AMOUNTS: Final = "What crosses, to whom, in which form and amount"
THREATS: Final = "docs/threat-model.md"
ROLES: Final = {
    "source": "source: encodes pictures of its own clients to latents, and sends these",
    "target": "target: decodes latents of admitted peers to pictures of its own domain",
}


def title(facts: Facts) -> str:
    node = facts.config.node
    return f"Node {node.name}.{node.institution}: what it may do, and what it did"


def sections(facts: Facts) -> tuple[Section, ...]:
    """The whole page."""
    return (
        _node(facts),
        Section(IN_WORDS, leaving(facts)),
        _crossing(facts),
        _stored(facts),
        leak(facts),
        thresholds(facts),
        callers(facts),
        ports(facts),
        _audit(facts),
        _residual(),
        _sign_off(facts),
    )


def _node(facts: Facts) -> Section:
    config, manifest = facts.config, facts.manifest
    model = "cannot be read"
    if manifest is not None:
        shape = " x ".join(map(str, facts.sample_shape))
        kind = f"{manifest.sample_kind}s of {shape} numbers"
        model = (
            f"{config.model.domain}: {kind}, {manifest.parameters:,} parameters, "
            f"SHA-256 {manifest.digest()}, in {facts.place}"
        )
    rows = [
        ("state", facts.state),
        ("roles", "; ".join(ROLES[role] for role in config.node.roles)),
        ("model", model),
        *([("classifier", f"guides it on request, SHA-256 {facts.classifier}")] if facts.classifier else []),
        ("node.toml", f"{config.path}, SHA-256 {facts.config_sha256}"),
        ("policy", _policy(facts)),
        ("release", __version__),
        (
            "certificate",
            "none" if facts.certificate_until is None else f"until {_when(facts.certificate_until)}",
        ),
        (
            "root key",
            "lies on this node: whoever has it can act as any identity of the institution"
            if facts.issues
            else "does not lie on this node",
        ),
    ]
    rows += [("attention", problem) for problem in facts.problems]
    return Section("The node", (f"Written on {_when(facts.at)}.",), ("", ""), tuple(rows))


def _policy(facts: Facts) -> str:
    text = f"SHA-256 {facts.policy_sha256}"
    if facts.log.policy and facts.log.policy != facts.policy_sha256:
        text += f"; the node applied {facts.log.policy} last: ddib reload, or a restart"
    return text


def _crossing(facts: Facts) -> Section:
    """What leaves, to whom, in which form and amount."""
    known = {each.institution: each for each in recipients(facts)}
    rows = []
    for institution in sorted(known.keys() | facts.log.peers.keys()):
        traffic, peer = facts.log.peers.get(institution, Traffic()), known.get(institution)
        name = institution if peer is not None else f"{institution} (no longer admitted)"
        rows.append((f"to {name}", _form(facts, peer, sent=True), *_amount(traffic, sent=True)))
        rows.append((f"from {name}", _form(facts, peer, sent=False), *_amount(traffic, sent=False)))
    lines = [
        "Bytes are those of latents and files by the receipts in the audit log, without headers and TLS"
        + (f", since {_minute(facts.log.since)} UTC." if facts.log.since else "."),
    ]
    lines += [
        f"{institution}: {sent:,} latents sent and {received:,} received without a receipt, "
        "in calls that a kill ended; their bytes are not below."
        for institution, traffic in sorted(facts.log.peers.items())
        if (sent := max(0, traffic.latents_sent - traffic.sent_items))
        + (received := max(0, traffic.latents_received - traffic.received_items))
    ]
    published = facts.log.acts["aggregate_published"]
    served = facts.log.acts["aggregate_served"]
    if published or served:
        lines.append(
            f"For calibrations: {published} noised histogram(s) published, given out {served} times."
        )
    units = facts.log.acts["units_served"]
    if units:
        lines.append(
            f"Units of the model (mean and deviation of the channels, not noised): given out {units} times."
        )
    lines += [
        f"Calibration {each.sha256[:12]}, {each.kind}, {each.source} to {each.target}: {each.state} until "
        f"{each.expires:%Y-%m-%d}."
        for each in facts.calibrations
    ]
    if not rows:
        lines.append("No peer is admitted, and nothing has crossed.")
        return Section(AMOUNTS, tuple(lines))
    columns = ("direction", "allowed now", "number so far", "bytes so far", "last")
    return Section(AMOUNTS, tuple(lines), columns, tuple(rows))


def _form(facts: Facts, peer: Recipient | None, *, sent: bool) -> str:
    """In what form something may cross between this node and a peer now."""
    policy, manifest = facts.config.policy, facts.manifest
    forms = []
    if peer is not None and peer.latents:
        depth = "full depth" if policy.least_depth == 1 else f"depth at least {policy.least_depth:g}"
        latents = f"latents ({depth}"
        if manifest is not None and manifest.soften_sigma:
            latents += f", softened to {manifest.soften_sigma:g}"
        forms.append(f"{latents})" if sent else "translations, and latents of round trips")
    if peer is not None and peer.translations:
        translations = "translations of the peer's latents"
        if policy.round_trip:
            translations += ", and their latents for a cycle check"
        forms.append(translations if sent else "latents")
    return "; ".join(forms) or "nothing"


def _amount(traffic: Traffic, *, sent: bool) -> tuple[str, str, str]:
    items = traffic.sent_items if sent else traffic.received_items
    size = traffic.sent_bytes if sent else traffic.received_bytes
    return f"{items:,}", f"{size:,}", _minute(traffic.last) or "never"


def _stored(facts: Facts) -> Section:
    rows = tuple(
        (
            _below(each.path, facts.config.folder),
            each.what,
            each.kept,
            "not there" if each.size_bytes is None else f"{each.size_bytes:,}",
        )
        for each in stored(facts.config)
    )
    lines = [
        f"Paths are below {facts.config.folder}.",
        "Nothing is encrypted by the node: the disk must be. A backup of the state folder is worth as much as it.",
    ]
    if facts.config.node.roles == ("target",):
        lines.append("A target keeps no latent and no translation: they are in memory while a call runs.")
    return Section(
        "What is stored where, and how long", tuple(lines), ("path", "content", "kept", "bytes now"), rows
    )


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _audit(facts: Facts) -> Section:
    log, verified = facts.log, facts.verified
    if verified is None:
        return Section("Audit log", ("There is none yet: a node writes it when it serves.",))
    whole = "its chain is whole" if verified.ok else f"BROKEN: {verified.problem}"
    lines = [f"{verified.lines:,} lines; {whole}. Head: {verified.head}."]
    if log.altered:
        lines.append(f"The running node noted {log.altered} time(s) that somebody had altered it.")
    refused = ", ".join(f"{times:,} {reason}" for reason, times in sorted(log.refused.items()))
    lines.append(f"Refused: {refused or 'none'}.")
    lines.append(
        "The chain does not show a cut end or a log written anew: ask each peer for `ddib audit anchors`, and run "
        "`ddib audit verify --anchor FILE`."
    )
    rows = tuple(
        (institution, f"{traffic.peer_lines:,}" if traffic.peer_lines else "none: protocol before 1.5")
        for institution, traffic in sorted(log.peers.items())
    )
    return Section(
        "Audit log", tuple(lines), ("peer", "newest line of its log that lies here") if rows else (), rows
    )


def _residual() -> Section:
    return Section(
        "What remains",
        (
            "A peer can keep, share and invert what it was sent; only an agreement prevents that.",
            "The check of latents shows that an encoder ran. It does not show that nothing leaks.",
            f"Whoever controls the machine sees everything on it. All residual risks, with figures: {THREATS}.",
        ),
    )


def _sign_off(facts: Facts) -> Section:
    people = ("security officer", "data protection officer", "operator of the node", "owner of the data")
    return Section(
        "Sign-off",
        (_signed_for(facts),),
        ("role", "name", "date", "signature"),
        tuple((person, "_" * 24, "_" * 12, "_" * 30) for person in people),
    )


def _signed_for(facts: Facts) -> str:
    """What a signature below is for; another one is needed when any of it changes."""
    model = "no model" if facts.manifest is None else f"the model {facts.manifest.digest()[:16]}"
    peers = ", ".join(each.institution for each in facts.peers) or "no peer"
    return (
        f"For the configuration {facts.config_sha256[:16]} and {model} (the first characters of SHA-256), with "
        f"{peers} admitted, as of {_when(facts.at)}. When one of these changes, write the page again."
    )


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
