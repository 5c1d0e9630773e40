"""What attacks found on the model that is served, as a section of the officer's page; or that nothing was measured."""

from __future__ import annotations

import shlex

from ddib_fed.models.privacy import Figure, PrivacyReport, Reading
from ddib_fed.node.officer.facts import Facts
from ddib_fed.node.officer.section import Section

TITLE = "Measured leak"


def leak(facts: Facts) -> Section:
    """Figures for the model's own weights, from the report beside them."""
    found = facts.privacy
    if found is None:
        place = facts.place or facts.config.paths.bundle
        command = f"ddib privacy report --model {shlex.quote(str(place))} --data HELD_OUT"
        return Section(
            TITLE,
            (
                f"Not measured for this model. What an attacker reads from its latents: {command}",
                "Measured for the shipped models: SECURITY.md.",
            ),
        )
    unit = (
        "PSNR in dB: more is nearer"
        if found.sample_kind == "picture"
        else "error in deviations: less is nearer"
    )
    columns = (
        "latents",
        f"right one of {found.attacked} by correlation",
        f"read with {found.known} known pairs",
        "right one by that",
        "read with a model of the attacker's",
        "right one by that",
    )
    lines = (
        (
            f"What was read from {found.attacked} latents, as {unit}; and how often the sample of a latent was found "
            f"among all of them, where guessing finds {_share(1 / found.attacked)}. In brackets the 95 % intervals."
        ),
        *_members(found),
        f"By {found.command or 'ddib privacy report'}, for the weights with SHA-256 {found.weights_sha256}.",
    )
    return Section(TITLE, lines, columns, tuple(_row(each, facts) for each in found.readings))


def _row(reading: Reading, facts: Facts) -> tuple[str, ...]:
    policy = facts.config.policy
    kind = f"depth {reading.depth:g}, {reading.encoder}"
    if reading.soften_sigma:
        kind += f", softened to {reading.soften_sigma:g}"
    if facts.manifest is not None and reading.soften_sigma != facts.manifest.soften_sigma:
        kind += "; for comparison, this model softens otherwise"
    elif reading.depth < policy.least_depth or reading.encoder not in policy.encoders:
        kind += "; not allowed here"
    return (
        kind,
        _found(reading.found_by_correlation),
        _read(reading.read),
        _found(reading.found_by_reading),
        _read(reading.model_read),
        _found(reading.found_by_model),
    )


def _members(found: PrivacyReport) -> list[str]:
    """Sentences on the training data."""
    lines = [
        f"Whether a sample was trained on, softened to {each.soften_sigma:g} (area under the curve, a guess is 0.5): "
        f"{_read(each.norm)} by the norm of its latent, which the peer has; {_read(each.loss)} by the loss of the "
        "model, which never leaves."
        for each in found.membership
    ]
    if found.copies is not None:
        lines.append(
            f"Of {found.copies.drawn} pictures that the model drew, {_found(found.copies.near)} are nearer to a "
            "training picture than 99 of 100 held-out pictures are."
        )
    return lines


def _read(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def _found(figure: Figure | None) -> str:
    if figure is None:
        return ""
    if figure.low == figure.high:
        return _share(figure.value)
    return f"{_share(figure.value)} ({100 * figure.low:.3g} to {100 * figure.high:.3g})"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
