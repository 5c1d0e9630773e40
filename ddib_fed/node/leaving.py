"""Writes the page of `ddib status --leaving`: what leaves a node, to whom, under which settings, the measured leak.

Every line is what node.toml, the model's folder and the stores of peers and calibrations say; the node need not run.
"""

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddib_fed.calibration.record import CalibrationStore
from ddib_fed.errors import DdibError
from ddib_fed.models.bundle import parse_manifest, read_beside
from ddib_fed.models.catalogue import MANIFEST_FILE
from ddib_fed.models.sidecars import Allowances, Figure, PrivacyReport, Reading
from ddib_fed.names import size_from
from ddib_fed.node.calibrations import overview
from ddib_fed.node.config import EVERY, NodeConfig, peer_store, toml_text
from ddib_fed.node.policy import uses_of
from ddib_fed.pages import write_page
from ddib_fed.record import Frozen
from ddib_fed.security.peers import PeerStore


def write_leaving(config: NodeConfig, path: Path) -> list[str]:
    """Write the page, never over a file; return what could not be read."""
    problems: list[str] = []
    manifest, privacy, shape = None, None, [0]
    bundle, store, scene = config.paths.bundle, peer_store(config), config.model.scene
    try:
        manifest = parse_manifest((bundle / MANIFEST_FILE).read_bytes(), str(bundle))
        sides = manifest.sample_shape[1:] if scene is None else size_from(scene)
        channels, *inner = manifest.latent_shape
        pairs = zip(sides, inner, manifest.sample_shape[1:], strict=True)
        shape = [channels, *(-(-side * within // whole) for side, within, whole in pairs)]
        privacy = read_beside(PrivacyReport, bundle, manifest, str(bundle))
    except (DdibError, OSError) as error:
        problems.append(f"the model {bundle} cannot be read: {error}")
    if store.problem:
        problems.append(store.problem)
    recipients = _recipients(config, store)
    usual_sigma = None if manifest is None else manifest.soften_sigma
    write_page(
        path,
        "leaving.html",
        overwrite=False,
        title=f"What leaves node {config.node.name}.{config.node.institution}",
        at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        config=config,
        problems=problems,
        manifest=manifest,
        privacy=privacy,
        recipients=recipients,
        names=lambda what: ", ".join(entry["institution"] for entry in recipients if what in entry["may"]),
        calibrations=overview(config, CalibrationStore(config.paths.calibrations), store),
        shape=" x ".join(map(str, shape)),
        usual_is_known=(bundle / Allowances.file).is_file(),
        settings=[*_settings("policy", config.policy), *_settings("limits", config.limits, "result_days")],
        readings=[_reading(entry, config, usual_sigma) for entry in (privacy.readings if privacy else ())],
        measuring=f"ddib privacy report --model {shlex.quote(str(bundle))} --data HELD_OUT",
        figure=_figure,
        share=_share,
    )
    return problems


def _recipients(config: NodeConfig, store: PeerStore) -> list[dict[str, Any]]:
    """Return each admitted peer, and what policy, suspensions and withdrawals allow it now."""
    policy, roles, snapshot = config.policy, config.node.roles, store.snapshot()
    targets = {
        target.partition("/")[0] for allowed_targets in policy.clients.values() for target in allowed_targets
    }
    recipients = []
    for peer in store.list():
        barred = ""
        if peer.identity in snapshot.withdrawn:
            barred = "its node is withdrawn"
        elif peer.institution in snapshot.suspended:
            barred = f"suspended {snapshot.suspended[peer.institution]}"
        uses = () if barred else uses_of(peer.institution, policy)
        allowed = {
            "latents": "source" in roles and "send" in uses and bool({EVERY, peer.institution} & targets),
            "translations": "target" in roles and "decode" in uses,
            "calibrations": "calibrate" in uses and bool(policy.calibration),
        }
        may = [name for name, yes in allowed.items() if yes]
        nothing = f"nothing: {barred or '[policy.peers] or [policy.clients]'}"
        row = (peer.institution, peer.identity.uri, peer.address, ", ".join(may) or nothing)
        recipients.append({"institution": peer.institution, "barred": barred, "may": may, "row": row})
    return recipients


def _settings(table: str, section: Frozen, *only: str) -> list[tuple[str, str, str]]:
    return [
        (f"{table}.{name}", toml_text(value), type(section).model_fields[name].description or "")
        for name, value in section.model_dump(mode="json", include=set(only) or None).items()
    ]


def _reading(reading: Reading, config: NodeConfig, usual_sigma: float | None) -> tuple[str, ...]:
    policy = config.policy
    kind = f"depth {reading.depth:g}, share {reading.share:g}"
    if reading.soften_sigma:
        kind += f", softened to {reading.soften_sigma:g}"
    if usual_sigma is not None and reading.soften_sigma != usual_sigma:
        kind += "; for comparison, this model softens otherwise"
    elif reading.depth < policy.least_depth or reading.share < policy.least_share:
        kind += "; not allowed here"
    return (
        kind,
        _share(reading.found_by_correlation),
        _figure(reading.read),
        _share(reading.found_by_reading),
    )


def _figure(figure: Figure | None, factor: float = 1, unit: str = "") -> str:
    if figure is None:
        return ""
    within = f" ({factor * figure.low:.3g} to {factor * figure.high:.3g})"
    return f"{factor * figure.value:.3g}{unit}{within if figure.low != figure.high else ''}"


def _share(figure: Figure | None) -> str:
    return _figure(figure, 100, " %")
