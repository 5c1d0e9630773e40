"""What leaves a node in plain words: the contract and the policy as sentences, for people who do not read node.toml."""

from __future__ import annotations

from collections.abc import Iterator

from ddib_fed.node.officer.facts import Facts
from ddib_fed.node.officer.telemetry import telemetry_lines

TYPES = {
    "float32": "32-bit numbers",
    "float16": "16-bit numbers (float16)",
    "bfloat16": "16-bit numbers (bfloat16)",
}


def leaving(facts: Facts) -> tuple[str, ...]:
    """Sentences, the most important first; each states what the configuration, the model and the peers say now."""
    roles = facts.config.node.roles
    names = ", ".join(peer.institution for peer in facts.peers)
    lines: list[str] = []
    if "source" in roles:
        leaves = f"Latents of your clients' pictures or points leave, to {names}."
        lines += [leaves if names else "No latents leave: no peer is admitted.", *_latents(facts)]
    if "target" in roles:
        leaves = f"Translations leave: what this node makes of the latents of {names}."
        lines += [leaves if names else "No translations leave: no peer is admitted.", *_translations(facts)]
    lines += _calibrations(facts)
    lines += telemetry_lines(facts.config)
    lines.append(
        "Your own pictures and points, their file names and the weights of your model never leave: no message between "
        "nodes has a field for them."
    )
    return tuple(lines)


def _latents(facts: Facts) -> Iterator[str]:
    config, manifest = facts.config, facts.manifest
    policy = config.policy
    yield (
        "A latent is an invertible encoding: who has a model like yours can turn it back into the picture. Treat it as "
        "the picture."
    )
    if manifest is not None:
        shape = " x ".join(map(str, manifest.sample_shape))
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
        yield "Encoders mixed or linear are allowed: their latents show more of the picture."
    yield "Each latent is checked before it leaves; one that is not noise for your own model is refused."


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


def _calibrations(facts: Facts) -> Iterator[str]:
    policy, roles = facts.config.policy, facts.config.node.roles
    if not policy.calibration:
        yield "No calibration is allowed: nothing about the colours or values of your domain leaves."
        return
    yield f"Calibrations of the kind {', '.join(policy.calibration)} are allowed."
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
