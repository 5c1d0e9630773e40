"""What leaves a node in plain words: the contract and the policy as sentences, for people who do not read node.toml."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ddib_fed.node.officer.facts import Facts
from ddib_fed.node.officer.recipients import Recipient, left_out, recipients
from ddib_fed.node.officer.telemetry import telemetry_lines

TYPES = {
    "float32": "32-bit numbers",
    "float16": "16-bit numbers (float16)",
    "bfloat16": "16-bit numbers (bfloat16)",
}


def leaving(facts: Facts) -> tuple[str, ...]:
    """Sentences, the most important first; each states what the configuration, the model and the peers say now."""
    roles, found = facts.config.node.roles, recipients(facts)
    lines: list[str] = []
    if "source" in roles:
        to = _names(each for each in found if each.latents)
        leaves = f"Latents of your clients' pictures or points leave, to {to}."
        lines += [leaves if to else _none("latents", facts), *_latents(facts)]
    if "target" in roles:
        to = _names(each for each in found if each.translations)
        leaves = f"Translations leave: what this node makes of the latents of {to}."
        lines += [leaves if to else _none("translations", facts), *_translations(facts)]
    lines += left_out(found, roles)
    lines += _calibrations(facts, _names(each for each in found if each.calibrates))
    lines += telemetry_lines(facts.config)
    lines.append(
        "Your own pictures and points, their file names and the weights of your model never leave: no message between "
        "nodes has a field for them."
    )
    return tuple(lines)


def _names(found: Iterable[Recipient]) -> str:
    return ", ".join(each.institution for each in found)


def _none(what: str, facts: Facts) -> str:
    why = "no admitted peer may get any" if facts.peers else "no peer is admitted"
    return f"No {what} leave: {why}."


def _latents(facts: Facts) -> Iterator[str]:
    policy, manifest = facts.config.policy, facts.manifest
    yield (
        "A latent is an invertible encoding: who has a model like yours can turn it back into the picture. Treat it as "
        "the picture."
    )
    if manifest is not None:
        shape = " x ".join(map(str, facts.sample_shape))
        types = " or ".join(TYPES.get(each, each) for each in policy.latent_types)
        yield f"For each {manifest.sample_kind} it has {shape} numbers, as {types}."
        if manifest.soften_sigma:
            yield f"Pictures are softened first: noise of {manifest.soften_sigma:g} is added, and is not sent."
    if policy.least_depth < 1:
        yield (
            f"Latents of less than full depth may leave (down to {policy.least_depth:g}): part of the picture is "
            "visible in them as it is."
        )
    else:
        yield (
            "Only latents of full depth leave; docs/latents.md says what could be read from them without your model."
        )
    if set(policy.encoders) != {"ode"}:
        yield "The encoder mixed is allowed: its latents show more of the picture."
    yield from _gate(facts)


def _gate(facts: Facts) -> Iterator[str]:
    """What is checked before a latent leaves, and what is not."""
    policy = facts.config.policy
    usual = (
        "One that is unlike the usual ones of your model is encoded again, and kept back where the two differ. "
        if facts.bounds
        else "What is usual for pictures was not measured with your model (ddib model gate). "
    )
    yield (
        f"Before it leaves, a latent of full depth is compared with noise, by bounds for every model. {usual}"
        "That shows that an encoder ran; it does not show that nothing of the picture can be read from it."
    )
    if policy.least_depth < 1:
        yield "A latent of less depth is not noise: it is not compared, and none is kept back."
    if set(policy.encoders) != {"ode"}:
        yield "Latents of the encoder mixed are compared by wider bounds, which are the same for every model."


def _translations(facts: Facts) -> Iterator[str]:
    policy = facts.config.policy
    yield (
        "They are pictures or points of your model's domain, drawn by your model. How much of training pictures is in "
        "them is what `ddib privacy report` measures."
    )
    if policy.round_trip:
        yield "On request the latent of a translation goes back with it, so that the sender can check its round trip."
    limit = policy.samples_per_day
    yield (
        f"Each peer gets at most {limit:,} samples a day."
        if limit
        else "How many samples a peer gets in a day is not limited ([policy] samples_per_day)."
    )


def _calibrations(facts: Facts, peers: str) -> Iterator[str]:
    policy, roles = facts.config.policy, facts.config.node.roles
    if not policy.calibration:
        yield "No calibration is allowed: nothing about the colours or values of your domain leaves."
        return
    kinds = ", ".join(policy.calibration)
    if not peers:
        yield f"Calibrations of the kind {kinds} are allowed, but with none of the peers."
    else:
        yield f"Calibrations of the kind {kinds} are allowed, with {peers}."
    if "source" in roles:
        yield (
            "For one that you propose, its map and its figures leave, signed: the numbers of the map tell roughly how "
            "your values are distributed."
        )
    if "target" in roles:
        yield (
            "For one, a noised histogram of your colours or values leaves, once you publish it "
            "(`ddib calibrate publish`); one that you sign leaves with your signature."
        )
        if policy.calibration_units:
            yield (
                "Peers that calibrate with anchors get the units of your model, mean and deviation of the channels of "
                "its training data, without noise ([policy] calibration_units)."
            )
    for each in facts.calibrations:
        if each.state == "active":
            yield (
                f"In use: {each.kind}, {each.source} to {each.target}, until {each.expires:%Y-%m-%d} "
                f"({each.sha256[:12]})."
            )
