"""Writes the page of `ddib status --leaving`: what leaves a node, to whom, under which settings, the measured leak.

Every line is what node.toml, the model's folder and the stores of peers and calibrations say; the node need not run.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddib_fed.calibration.record import CalibrationStore
from ddib_fed.errors import DdibError
from ddib_fed.models.bundle import parse_manifest, read_beside
from ddib_fed.models.catalogue import MANIFEST_FILE
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.sidecars import Allowances, Figure, PrivacyReport, Reading
from ddib_fed.names import size_from
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.calibrations import overview
from ddib_fed.node.config import EVERY, NodeConfig
from ddib_fed.node.policy import uses_of
from ddib_fed.pages import write_page
from ddib_fed.security.peers import PeerStore


def write_leaving(config: NodeConfig, path: Path) -> list[str]:
    """Write the page, a file that is there stays; returns what could not be read."""
    problems: list[str] = []
    manifest = privacy = None
    bundle, store = config.paths.bundle, peer_store(config)
    try:
        manifest = parse_manifest((bundle / MANIFEST_FILE).read_bytes(), str(bundle))
        privacy = read_beside(PrivacyReport, bundle, manifest, str(bundle))
    except (DdibError, OSError) as error:
        problems.append(f"the model {bundle} cannot be read: {error}")
    if store.problem:
        problems.append(store.problem)
    recipients = _recipients(config, store)
    write_page(
        path,
        "leaving.html",
        overwrite=False,
        title=f"What leaves node {config.node.name}.{config.node.institution}",
        at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        config=config,
        problems=problems,
        manifest=manifest,
        day=lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}",
        privacy=privacy,
        recipients=recipients,
        names=lambda what: ", ".join(each["institution"] for each in recipients if what in each["may"]),
        calibrations=overview(config, CalibrationStore(config.paths.calibrations), store),
        shape=_shape(config, manifest),
        usual_is_known=(bundle / Allowances.file).is_file(),
        settings=_settings(config),
        readings=[_reading(each, config, manifest) for each in (privacy.readings if privacy else ())],
        measuring=f"ddib privacy report --model {shlex.quote(str(bundle))} --data HELD_OUT",
        share=_share,
        interval=_interval,
        share_interval=_share_interval,
    )
    return problems


def _recipients(config: NodeConfig, store: PeerStore) -> list[dict[str, Any]]:
    """Each admitted peer, and what the policy, suspensions and withdrawals let it have now."""
    policy, roles = config.policy, config.node.roles
    snapshot = store.snapshot()
    suspended, withdrawn = snapshot.suspended, snapshot.withdrawn
    targets = {target.partition("/")[0] for each in policy.clients.values() for target in each}
    found = []
    for peer in store.list():
        barred = ""
        if peer.identity in withdrawn:
            barred = "its node is withdrawn"
        elif peer.institution in suspended:
            barred = f"suspended {suspended[peer.institution]}"
        uses = () if barred else uses_of(peer.institution, policy)
        allowed = {
            "latents": "source" in roles and "send" in uses and bool({EVERY, peer.institution} & targets),
            "translations": "target" in roles and "decode" in uses,
            "calibrations": "calibrate" in uses and bool(policy.calibration),
        }
        may = [name for name, yes in allowed.items() if yes]
        nothing = f"nothing: {barred or '[policy.peers] or [policy.clients]'}"
        row = (peer.institution, peer.identity.uri, peer.address, ", ".join(may) or nothing)
        found.append({"institution": peer.institution, "barred": barred, "may": may, "row": row})
    return found


def _shape(config: NodeConfig, manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    shape, scene = manifest.sample_shape, config.model.scene
    return " x ".join(map(str, shape if scene is None else (shape[0], *size_from(scene))))


def _settings(config: NodeConfig) -> list[tuple[str, str, str]]:
    """(setting, value, what it bounds)."""
    fields = type(config.policy).model_fields
    rows = [
        (f"policy.{name}", _setting(value), fields[name].description or "")
        for name, value in config.policy.model_dump(mode="json").items()
    ]
    days = "days for which results that were not fetched are kept"
    return [*rows, ("limits.result_days", _setting(config.limits.result_days), days)]


def _reading(reading: Reading, config: NodeConfig, manifest: Manifest | None) -> tuple[str, ...]:
    policy = config.policy
    kind = f"depth {reading.depth:g}, {reading.encoder}"
    if reading.soften_sigma:
        kind += f", softened to {reading.soften_sigma:g}"
    if manifest is not None and reading.soften_sigma != manifest.soften_sigma:
        kind += "; for comparison, this model softens otherwise"
    elif reading.depth < policy.least_depth or reading.encoder not in policy.encoders:
        kind += "; not allowed here"
    return (
        kind,
        _share_interval(reading.found_by_correlation),
        _interval(reading.read),
        _share_interval(reading.found_by_reading),
        _interval(reading.model_read),
        _share_interval(reading.found_by_model),
    )


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_setting(each)}" for key, each in value.items()) or "none"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _interval(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def _share_interval(figure: Figure | None) -> str:
    if figure is None:
        return ""
    within = f" ({100 * figure.low:.3g} to {100 * figure.high:.3g})" if figure.low != figure.high else ""
    return _share(figure.value) + within


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
