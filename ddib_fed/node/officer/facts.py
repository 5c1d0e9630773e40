"""Gathers what the officer's page says from node.toml, the state folder, the audit log and the running node."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ddib_fed.errors import DdibError
from ddib_fed.models.allowances import GATE_FILE
from ddib_fed.models.bundle_files import parse_manifest, read_file
from ddib_fed.models.catalogue import MANIFEST_FILE
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.privacy import MAX_PRIVACY_BYTES, PRIVACY_FILE, PrivacyReport, parse_privacy
from ddib_fed.names import size_from
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.calibration.overview import Overview, overview
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.officer.traffic import Logged, logged
from ddib_fed.node.policy import policy_digest
from ddib_fed.node.running.admin import AdminClient
from ddib_fed.trust import pki
from ddib_fed.trust.audit.reading import Verified, verify
from ddib_fed.trust.calibrations.store import CalibrationStore
from ddib_fed.trust.peers import Peer
from ddib_fed.trust.withdrawn import load_withdrawn


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a node at one moment."""

    config: NodeConfig
    config_sha256: str
    at: datetime
    state: str
    place: Path | None
    manifest: Manifest | None
    running: str
    bounds: bool
    classifier: str
    peers: tuple[Peer, ...]
    suspended: Mapping[str, str]
    withdrawn: tuple[str, ...]
    issues: bool
    certificate_until: datetime | None
    calibrations: tuple[Overview, ...]
    log: Logged
    verified: Verified | None
    policy_sha256: str
    privacy: PrivacyReport | None
    problems: tuple[str, ...]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of what the node translates: a sample of the model, or a scene of node.toml; empty without a model."""
        shape = () if self.manifest is None else self.manifest.sample_shape
        scene = self.config.model.scene
        return (shape[0], *size_from(scene)) if shape and scene is not None else shape


def gather(config: NodeConfig) -> Facts:
    """The facts of a node, which need not run; changes nothing."""
    paths = config.paths
    problems: list[str] = []
    place, manifest = _model(config, problems)
    state, running = _running(config)
    if running and manifest is not None and running != manifest.digest():
        problems.append(
            f"the running node serves the model {running}, and from its next start another, {manifest.digest()}: "
            "restart it, then write this page again"
        )
    store = peer_store(config)
    if store.problem:
        problems.append(store.problem)
    until = None
    with suppress(DdibError, OSError):
        until = pki.load_identity(paths.pki).not_after
    return Facts(
        config=config,
        config_sha256=hashlib.sha256(config.path.read_bytes()).hexdigest(),
        at=datetime.now(UTC),
        state=state,
        place=place,
        manifest=manifest,
        running=running,
        bounds=place is not None and (place / GATE_FILE).is_file(),
        classifier=_classifier(config, problems),
        peers=store.list(),
        suspended=store.snapshot().suspended,
        withdrawn=tuple(entry.identity.uri for entry in load_withdrawn(paths.pki).entries),
        issues=pki.has_authority(paths.pki),
        certificate_until=until,
        calibrations=tuple(overview(config, CalibrationStore(paths.calibrations), store)),
        log=logged(paths.audit),
        verified=verify(paths.audit) if paths.audit.exists() else None,
        policy_sha256=policy_digest(config),
        privacy=None if place is None else _privacy(place, manifest, problems),
        problems=tuple(problems),
    )


def _privacy(bundle: Path, manifest: Manifest | None, problems: list[str]) -> PrivacyReport | None:
    """The report beside the weights, if it is about them."""
    path = bundle / PRIVACY_FILE
    if manifest is None or not path.exists():
        return None
    try:
        return parse_privacy(
            read_file(bundle, PRIVACY_FILE, MAX_PRIVACY_BYTES, str(bundle)),
            manifest.weights_sha256,
            str(bundle),
        )
    except DdibError as error:
        problems.append(f"{error.detail}: {error.hint}")
    return None


def _model(config: NodeConfig, problems: list[str]) -> tuple[Path | None, Manifest | None]:
    """The folder and the manifest of the model to be served now."""
    place = config.paths.bundle
    try:
        return place, _manifest(place)
    except (DdibError, OSError) as error:
        problems.append(f"the model {place} cannot be read: {error}")
    return place, None


def _classifier(config: NodeConfig, problems: list[str]) -> str:
    """The digest of the classifier that node.toml names; empty for none."""
    place = config.paths.classifier
    try:
        return "" if place is None else _manifest(place).digest()
    except (DdibError, OSError) as error:
        problems.append(f"the classifier {place} cannot be read: {error}")
    return ""


def _manifest(place: Path) -> Manifest:
    return parse_manifest((place / MANIFEST_FILE).read_bytes(), str(place))


def _running(config: NodeConfig) -> tuple[str, str]:
    try:
        status = AdminClient(config).status()
    except DdibError:
        return "it does not run now", ""
    return status.state, status.model.sha256


@dataclass(frozen=True, slots=True)
class Stored:
    """One file or folder of a node."""

    path: Path
    what: str
    kept: str
    size_bytes: int | None


def stored(config: NodeConfig) -> Iterator[Stored]:
    """What the node keeps on its disk, and for how long."""
    paths, limits = config.paths, config.limits
    days = f"{limits.result_days:g} days"
    rows: list[tuple[Path, str, str]] = []
    if "source" in config.node.roles:
        rows = [
            (
                paths.spool,
                "pictures or points of clients, their latents and translations, unencrypted",
                f"until the client has its result, at most {days} after the job's end",
            ),
            (
                paths.jobs,
                "jobs: who, to whom, settings, digests and figures; no picture, no file name",
                f"until the job is deleted, at most {days} after its end",
            ),
        ]
    rows += [
        (paths.audit, "identities, acts, digests, byte counts; no picture, no latent", "without limit"),
        (paths.pki, "private keys and certificates", "until they are replaced"),
        (paths.peers, "admitted peers: name, address, root certificate", "until removed"),
        (paths.quotas, "what each peer and client used of its quotas today: names and numbers", "a day"),
        (paths.bundle, "the model of node.toml: weights and manifest", "until replaced"),
        (paths.softening_key, "secret from which softening noise is derived", "without limit"),
        (paths.calibrations, "calibrations signed by both nodes", "until removed"),
        (paths.aggregate, "the noised histogram published for calibrations", "until published again"),
    ]
    if config.node.proxy_login is not None:
        what = "user and password for the proxy"
        rows.append((config.folder / config.node.proxy_login, what, "until removed by hand"))
    for path, what, kept in rows:
        yield Stored(path, what, kept, _size(path))


def _size(path: Path) -> int | None:
    """Bytes of a file, or of the files in a folder; None if there is nothing."""
    if not path.exists():
        return None
    files = (
        [path]
        if path.is_file()
        else [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    )
    total = 0
    for file in files:
        with suppress(OSError):  # gone meanwhile
            total += file.stat().st_size
    return total
