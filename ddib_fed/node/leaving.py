"""The page of what leaves a node, to whom, under which settings, and the measured leak (`ddib status --leaving`).

Every line is what node.toml, the model's folder and the stores of peers and calibrations say; the node need not run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddib_fed.calibration.signed import CalibrationStore
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
from ddib_fed.security.peers import Peer, PeerStore
from ddib_fed.v1.admin_pb2 import CalibrationStatus

BOUNDS = {
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
    "encoders": "ways to make latents; others than ode show more of the picture",
    "max_guidance": "largest scale of guidance and of a classifier; 0 is none",
    "calibration": "kinds of calibration that may be agreed on; none by default",
    "calibration_units": "whether peers may read the units of the model, without noise",
}
"""What each setting of [policy] bounds."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """An admitted peer, and what the policy, suspensions and withdrawals let it have now."""

    peer: Peer
    barred: str
    latents: bool
    translations: bool
    calibrates: bool

    @property
    def row(self) -> tuple[str, ...]:
        names = {"latents": self.latents, "translations": self.translations, "calibrations": self.calibrates}
        given = ", ".join(name for name, may in names.items() if may)
        nothing = f"nothing: {self.barred}" if self.barred else "nothing: [policy.peers] or [policy.clients]"
        return self.peer.institution, self.peer.identity.uri, self.peer.address, given or nothing


@dataclass(frozen=True, slots=True)
class Leaving:
    """What leaves a node at one moment."""

    config: NodeConfig
    manifest: Manifest | None
    recipients: tuple[Recipient, ...]
    calibrations: tuple[CalibrationStatus, ...]
    privacy: PrivacyReport | None
    problems: tuple[str, ...]

    @classmethod
    def of(cls, config: NodeConfig) -> Leaving:
        """What leaves the node of a configuration; changes nothing."""
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
        return cls(
            config,
            manifest,
            tuple(_recipients(config, store)),
            tuple(overview(config, CalibrationStore(config.paths.calibrations), store)),
            privacy,
            tuple(problems),
        )

    def write(self, path: Path) -> None:
        """Write the page; a file that is there stays."""
        node, bundle = self.config.node, self.config.paths.bundle
        write_page(
            path,
            "leaving.html",
            overwrite=False,
            title=f"What leaves node {node.name}.{node.institution}",
            at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            found=self,
            day=lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}",
            config=self.config,
            shape=self._shape(),
            usual_is_known=(bundle / Allowances.file).is_file(),
            settings=self.settings(),
            readings=[] if self.privacy is None else [self._reading(each) for each in self.privacy.readings],
            measuring=f"ddib privacy report --model {shlex.quote(str(bundle))} --data HELD_OUT",
            share=_share,
            interval=_interval,
            share_interval=_share_interval,
        )

    def settings(self) -> list[tuple[str, str, str]]:
        """(setting, value, what it bounds)."""
        policy, limits = self.config.policy.model_dump(mode="json"), self.config.limits
        rows = [(f"policy.{name}", _setting(value), BOUNDS.get(name, "")) for name, value in policy.items()]
        days = "days for which results that were not fetched are kept"
        return [*rows, ("limits.result_days", _setting(limits.result_days), days)]

    def names(self, what: str) -> str:
        """The peers that may have something."""
        return ", ".join(each.peer.institution for each in self.recipients if getattr(each, what))

    def _shape(self) -> str:
        if self.manifest is None:
            return ""
        shape, scene = self.manifest.sample_shape, self.config.model.scene
        if scene is not None:
            shape = (shape[0], *size_from(scene))
        return " x ".join(map(str, shape))

    def _reading(self, reading: Reading) -> tuple[str, ...]:
        policy = self.config.policy
        kind = f"depth {reading.depth:g}, {reading.encoder}"
        if reading.soften_sigma:
            kind += f", softened to {reading.soften_sigma:g}"
        if self.manifest is not None and reading.soften_sigma != self.manifest.soften_sigma:
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


def _recipients(config: NodeConfig, store: PeerStore) -> Iterator[Recipient]:
    policy, roles = config.policy, config.node.roles
    snapshot = store.snapshot()
    suspended, withdrawn = snapshot.suspended, snapshot.withdrawn
    targets = {target.partition("/")[0] for each in policy.clients.values() for target in each}
    for peer in store.list():
        barred = ""
        if peer.identity in withdrawn:
            barred = "its node is withdrawn"
        elif peer.institution in suspended:
            barred = f"suspended {suspended[peer.institution]}"
        uses = () if barred else uses_of(peer.institution, policy)
        yield Recipient(
            peer,
            barred,
            latents="source" in roles and "send" in uses and bool({EVERY, peer.institution} & targets),
            translations="target" in roles and "decode" in uses,
            calibrates="calibrate" in uses and bool(policy.calibration),
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
