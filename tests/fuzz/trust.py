"""What trust rests on: certificates, peers, calibrations, the audit log, records."""

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from ddib_fed.calibration.aggregate import read_aggregate
from ddib_fed.calibration.record import (
    Calibration,
    Signature,
    SignedCalibration,
    parse_calibration,
    parse_signed,
)
from ddib_fed.record import Record
from ddib_fed.security import pki
from ddib_fed.security.audit import EMPTY, Head, digest, encoded, verify
from ddib_fed.security.identity import Identity, verify_peer_certificate
from ddib_fed.security.peers import Peer, Trust, parse_peer
from tests.calibration.examples import calibration
from tests.fuzz.target import NOW, Target, as_file


@cache
def _north() -> pki.Authority:
    return pki.new_authority("north.example", now=NOW)


def certificate(data: bytes) -> None:
    """A caller's certificate."""
    verify_peer_certificate(data, pins={"north.example": (_north().certificate,)}, now=NOW)


def _certificates() -> list[bytes]:
    leaf = pki.issue_leaf(_north(), "node", "node-1", public_key=pki.new_key().public_key(), now=NOW)
    return [pki.certificate_pem(leaf), pki.certificate_pem(_north().certificate)]


def certificates(data: bytes) -> None:
    """A file of roots."""
    pki.parse_certificates(data, "roots.pem")


def request(data: bytes) -> None:
    """A request for a certificate."""
    pki.read_request(data)


def _requests() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [pki.make_request(Path(folder), Identity("north.example", "node", "node-2"))]


def peer(data: bytes) -> None:
    """A peer file."""
    parse_peer(data, "a file")


def _peers() -> list[bytes]:
    name = Identity("north.example", "node", "node-1")
    return [Peer("north.example", name, "north.example:7443", (_north().certificate,)).to_bytes()]


def trust(data: bytes) -> None:
    """The file of peers and withdrawn identities."""
    Trust.parse(data, "south.example")


def _trusts() -> list[bytes]:
    name = Identity("north.example", "node", "node-1")
    peer = Peer("north.example", name, "north.example:7443", (_north().certificate,))
    alice = Identity("south.example", "client", "alice")
    return [Trust({"north.example": peer}, {"north.example": "since"}, {alice: "lost"}).to_bytes()]


def signed(data: bytes) -> None:
    """A calibration with its signatures."""
    parse_signed(data, "a calibration")


def proposed(data: bytes) -> None:
    """A calibration that a peer proposes."""
    parse_calibration(data, "a calibration")


def _calibrations() -> list[bytes]:
    return [calibration().canonical]


def _signed() -> list[bytes]:
    signature = Signature(signed_at=1, certificate="-----BEGIN", signature=b"0123")
    made = SignedCalibration(calibration=calibration(), source=signature, added=NOW)
    return [made.model_dump_json(exclude_none=True).encode()]


def calibration_file(data: bytes) -> None:
    """A calibration that somebody was given as a file."""
    with as_file(data, "calibration.json") as path:
        Calibration.open(path)


def aggregate(data: bytes) -> None:
    """An aggregate that a peer published."""
    read_aggregate(data)


def _aggregates() -> list[bytes]:
    from ddib_fed.models.units import Normalisation
    from tests.calibration.examples import make_aggregate

    drawn = np.random.default_rng(0).uniform(-1, 1, (220, 1, 4, 4)).astype(np.float32)
    made = make_aggregate(drawn, Normalisation(std=0.5), "drawings", generator=np.random.default_rng(1))
    return [made.model_dump_json().encode()]


def audit(data: bytes) -> None:
    """An audit log."""
    verify(data.decode("utf-8", "replace").split("\n"))


def record(data: bytes) -> None:
    """The record of a translation beside a result."""
    with as_file(data, "a.json") as path:
        Record.read(path)


def _audits() -> list[bytes]:
    head, made = EMPTY, list[str]()
    for number in range(3):
        made.append(encoded(head, "2026-01-01T00:00:00+00:00", "act", {"number": number}))
        head = Head(number, digest(made[-1]))
    return ["\n".join(made).encode()]


def _records_json() -> list[bytes]:
    return [json.dumps({"format": 1, "job_id": "x", "samples": 3, "solver": {"solver": "unipc"}}).encode()]


TARGETS: Final[Mapping[str, Target]] = {
    "certificate": Target(certificate, _certificates),
    "roots": Target(certificates, _certificates),
    "request": Target(request, _requests),
    "peer-file": Target(peer, _peers),
    "trust": Target(trust, _trusts),
    "signed-calibration": Target(signed, _signed),
    "calibration": Target(proposed, _calibrations),
    "calibration-file": Target(calibration_file, _calibrations, slow=True),
    "aggregate": Target(aggregate, _aggregates),
    "audit-log": Target(audit, _audits, slow=True),
    "record": Target(record, _records_json, slow=True),
}
