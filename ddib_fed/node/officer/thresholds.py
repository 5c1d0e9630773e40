"""The settings that the site answers for, with what each bounds, as a section of the officer's page."""

from __future__ import annotations

from ddib_fed.node.officer.facts import Facts
from ddib_fed.node.officer.section import Section


def thresholds(facts: Facts) -> Section:
    """The settings that the site answers for, with what each bounds."""
    policy, limits = facts.config.policy, facts.config.limits
    bounds: dict[str, str] = {
        "peers": "what each admitted peer may be used for; * is every other one",
        "clients": "where each client may translate to; * is every other one, and everywhere",
        "least_soften_sigma": "least noise level to which pictures are softened",
        "least_evaluations": "fewest network evaluations of a latent",
        "evaluations_per_day": "network evaluations times samples for each peer in a day",
        "client_evaluations_per_day": "network evaluations times samples for each own client in a day",
        "quotas": "evaluations_per_day of single peers",
        "round_trip": "whether a peer may have its translation encoded again",
        "size_rule": "pictures of other sizes: fitted, or refused",
        "samples_per_day": "samples decoded for each peer in a day; 0 is no limit",
        "least_depth": "1 is pure noise; less keeps part of the picture visible",
        "encoders": "ways to make latents; mixed shows more of the picture",
        "latent_types": "number formats of latents",
        "max_guidance": "largest guidance scale; 0 is none",
        "max_classifier_scale": "largest weight of a classifier; 0 is none",
        "calibration": "kinds of calibration that may be agreed on; none by default",
        "calibration_units": "whether peers may read the units of the model, not noised",
        "weights": "shares of the machine",
    }
    rows = [
        (f"policy.{name}", _setting(value), bounds.get(name, ""))
        for name, value in policy.model_dump(mode="json").items()
    ]
    rows += [
        ("limits.result_days", _setting(limits.result_days), "days for which unfetched results are kept"),
        ("limits.max_items_per_job", _setting(limits.max_items_per_job), "items of a job or stream"),
        ("limits.max_evaluations", _setting(limits.max_evaluations), "evaluations of the network per leg"),
    ]
    structure = facts.manifest.structure if facts.manifest else None
    if structure is not None:
        rows += [
            (
                "structure: edges",
                _setting(structure.edge_correlation),
                "below it a translation is called doubtful",
            ),
            ("structure: information", _setting(structure.mutual_information), "the same, in bits"),
        ]
    return Section(
        "Thresholds that this site owns",
        ("As node.toml says now; a running node takes what it read last.",),
        ("setting", "value", "what it bounds"),
        tuple(rows),
    )


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_setting(each)}" for key, each in value.items()) or "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
