"""What a running node answers its operator about its model, its peers and its calibrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from ddib_fed.errors import DdibError
from ddib_fed.node.calibration.overview import overview
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.role import NodeContext
from ddib_fed.trust.pki import Credentials, load_identity
from ddib_fed.v1 import admin_pb2 as pb


def model_status(node: NodeContext) -> pb.ModelStatus:
    """The active model."""
    engine = node.running_engine
    manifest = engine.model.bundle.manifest
    return pb.ModelStatus(
        domain=node.config.model.domain,
        kind=manifest.sample_kind,
        sample_shape=manifest.sample_shape,
        sha256=engine.model.bundle.digest,
        parameters=manifest.parameters,
        device=engine.place,
    )


def peer_statuses(node: NodeContext) -> Iterator[pb.PeerStatus]:
    """Each admitted peer, with what was last wrong with it."""
    suspended = node.peers.snapshot().suspended
    for peer in node.peers.list():
        failed, problem = node.peer_problems.of(peer.institution)
        yield pb.PeerStatus(
            institution=peer.institution,
            identity=str(peer.identity),
            address=peer.address,
            fingerprint=" ".join(peer.fingerprints),
            problem=problem,
            failed=failed,
            suspended=suspended.get(peer.institution, ""),
        )


def calibration_statuses(node: NodeContext) -> Iterator[pb.CalibrationStatus]:
    """Each calibration that the node has a part in."""
    for each in overview(node.config, node.calibrations, node.peers):
        yield pb.CalibrationStatus(
            sha256=each.sha256,
            kind=each.kind,
            source=each.source,
            target=each.target,
            state=each.state,
            expires=each.expires.timestamp(),
            warning=each.warning,
        )


def certificate_expires(config: NodeConfig) -> float:
    return _ends(config, lambda own: own.not_after)


def root_expires(config: NodeConfig) -> float:
    return _ends(config, lambda own: own.root_not_after)


def _ends(config: NodeConfig, of: Callable[[Credentials], datetime]) -> float:
    try:
        return of(load_identity(config.paths.pki)).timestamp()
    except (DdibError, OSError):
        return 0.0
