"""Signs calibrations with the keys of nodes, and verifies the two signatures of one.

    signature = ECDSA-SHA-256(key of the leaf, PREFIX + statement + newline + canonical JSON of the calibration)

The statement names the side, the node and the second of signing, so that none of them can be exchanged. The leaf
is kept beside the signature: it must have been valid at that second and come from a root that is pinned now.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from ddib_fed.calibration.record import CalibratedSide, Calibration
from ddib_fed.errors import (
    CalibrationAltered,
    CalibrationExpired,
    CalibrationForeign,
    CalibrationInvalid,
    CalibrationSigner,
    CalibrationUnknown,
    CalibrationUnsigned,
    DdibError,
    ExhaustedError,
    RefusedError,
)
from ddib_fed.files import canonical_json, private_folder, read_small, sync_folder, write_file
from ddib_fed.security.identity import (
    MAX_CERTIFICATE_BYTES,
    Identity,
    Pins,
    read_certificates,
    verify_peer_certificate,
)
from ddib_fed.security.pki import CLOCK_SKEW, Credentials
from ddib_fed.v1 import calibration_pb2 as pb

Side = Literal["source", "target"]
SIDES: Final[tuple[Side, Side]] = ("source", "target")
PREFIX: Final = b"ddib-fed calibration signature 1\n"
"""Domain separation: nothing else that a node signs begins with it."""
MAX_SIGNATURE_BYTES: Final = 256
MAX_CALIBRATION_BYTES: Final = 16 << 10
"""Of the canonical JSON."""
RECALIBRATE: Final = "calibrate again: ddib calibrate --peer INSTITUTION/DOMAIN"


class Signature(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    signed_at: AwareDatetime
    certificate: Annotated[str, Field(max_length=MAX_CERTIFICATE_BYTES)]
    signature: Annotated[str, Field(max_length=MAX_SIGNATURE_BYTES * 4 // 3 + 4)]

    @field_validator("signed_at")
    @classmethod
    def _whole_second(cls, value: datetime) -> datetime:
        if value.microsecond:
            raise ValueError("a signature is of a whole second")
        return value


class SignedCalibration(BaseModel):
    """A calibration with the signatures that it has so far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Calibration
    source: Signature | None = None
    target: Signature | None = None

    @property
    def sha256(self) -> bytes:
        """Digest of the calibration, 32 bytes; the signatures are not part of it."""
        return self.calibration.sha256

    @property
    def complete(self) -> bool:
        """Whether both sides have signed; says nothing of whether the signatures are good."""
        return self.source is not None and self.target is not None

    def signature_of(self, side: Side) -> Signature | None:
        return self.source if side == "source" else self.target


def sign(calibration: Calibration, side: Side, credentials: Credentials, *, now: datetime) -> Signature:
    """Sign for one side with the key of this node.

    Args:
        calibration: What is signed.
        side: The side that this node's institution has in it.
        credentials: Of the node.
        now: The time, with a time zone.

    Raises:
        CalibrationForeign: The side is of another institution.
        CalibrationExpired: It has ended.
    """
    identity = credentials.identity
    if identity.institution != _side(calibration, side).institution:
        raise CalibrationForeign(
            f"{identity} cannot sign as the {side}, which is {_side(calibration, side).institution or 'unnamed'}"
        )
    refuse_expired(calibration, now)
    moment = now.astimezone(UTC).replace(microsecond=0)
    key = serialization.load_pem_private_key(credentials.key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # `load_identity` reads no other
    made = key.sign(_signed(calibration, side, identity, moment), ec.ECDSA(hashes.SHA256()))
    return Signature(
        signed_at=moment,
        certificate=credentials.cert_chain_pem.decode(),
        signature=base64.b64encode(made).decode(),
    )


def signature_to_pb(signature: Signature) -> pb.CalibrationSignature:
    return pb.CalibrationSignature(
        signed_at=int(signature.signed_at.timestamp()),
        certificate=signature.certificate,
        signature=base64.b64decode(signature.signature),
    )


def signature_from_pb(message: pb.CalibrationSignature) -> Signature:
    """A signature from a message whose fields were checked."""
    return Signature(
        signed_at=datetime.fromtimestamp(message.signed_at, UTC),
        certificate=message.certificate,
        signature=base64.b64encode(message.signature).decode(),
    )


def parse_calibration(data: bytes, what: str) -> Calibration:
    """Read the canonical JSON of a calibration."""
    if len(data) > MAX_CALIBRATION_BYTES:
        raise CalibrationInvalid(
            f"{what} is larger than {MAX_CALIBRATION_BYTES} bytes", facts={"limit": MAX_CALIBRATION_BYTES}
        )
    try:
        found = Calibration.model_validate_json(data)
        canonical = found.canonical
    except (ValidationError, ValueError) as error:
        raise CalibrationInvalid(f"{what} is no calibration: {_first(error)}") from error
    if canonical != data:
        raise CalibrationInvalid(f"{what} is not in the canonical form that is signed")
    return found


def parse_signed(data: bytes, what: str) -> SignedCalibration:
    """Read a signed calibration in JSON; nothing is verified."""
    try:
        return SignedCalibration.model_validate_json(data)
    except ValidationError as error:
        raise CalibrationInvalid(f"{what} is no signed calibration: {_first(error)}") from error


def _first(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def verify(
    signed: SignedCalibration,
    *,
    pins: Pins,
    now: datetime,
    withdrawn: Container[Identity] = (),
) -> Calibration:
    """The calibration, if both institutions have signed it and it has not ended.

    Args:
        signed: As it was stored or received.
        pins: For each institution known here, its own roots.
        now: The time, with a time zone.
        withdrawn: Identities that are refused whatever their certificates say.

    Raises:
        CalibrationExpired: It has ended.
        CalibrationUnsigned: A signature is missing.
        CalibrationSigner: A signer is no node of its institution, its root is not pinned here (e.g. the peer was
            removed), it is withdrawn, its certificate was not valid when it signed, or it signed in the future.
        CalibrationAltered: A signature is not one over this content.
    """
    refuse_expired(signed.calibration, now)
    for side in SIDES:
        verify_side(signed, side, pins=pins, now=now, withdrawn=withdrawn)
    return signed.calibration


def verify_side(
    signed: SignedCalibration,
    side: Side,
    *,
    pins: Pins,
    now: datetime,
    withdrawn: Container[Identity] = (),
) -> Identity:
    """The node that signed for one side."""
    signature, named = signed.signature_of(side), _side(signed.calibration, side)
    if signature is None:
        raise CalibrationUnsigned(
            f"the calibration {signed.sha256.hex()[:12]} has no signature of the {side} {named.institution}",
            hint=f"have the operator of {named.institution} accept it: ddib calibrate accept",
            facts={"side": side},
        )
    identity = _signer(signature, side, named, pins)
    if identity in withdrawn:
        raise CalibrationSigner(
            f"{identity}, which signed as the {side}, is withdrawn here",
            hint=f"ddib pki reinstate {identity}, or {RECALIBRATE}",
            facts={"side": side},
        )
    if signature.signed_at > now + CLOCK_SKEW:
        raise CalibrationSigner(
            f"the {side}'s signature is of {signature.signed_at:%Y-%m-%d %H:%M} UTC, which is in the future",
            hint="compare the clocks of both machines: date -u",
            facts={"side": side},
        )
    _check_signature(signed.calibration, side, signature, identity)
    return identity


def _signer(signature: Signature, side: Side, named: CalibratedSide, pins: Pins) -> Identity:
    """The identity that the enclosed certificate proved at the time of signing."""
    pem = signature.certificate.encode("ascii", "replace")
    try:
        identity = verify_peer_certificate(pem, pins=pins, now=signature.signed_at)
    except RefusedError as error:
        raise CalibrationSigner(
            f"the {side}'s signature of the calibration: {error.detail}",
            hint=error.hint or RECALIBRATE,
            facts={"side": side},
        ) from error
    if identity.kind != "node" or identity.institution != named.institution:
        raise CalibrationSigner(
            f"{identity} signed as the {side}, which must be a node of {named.institution or 'an institution'}",
            hint=RECALIBRATE,
            facts={"side": side},
        )
    return identity


def _check_signature(calibration: Calibration, side: Side, signature: Signature, identity: Identity) -> None:
    """Return if the signature is one over this content by the key of the enclosed certificate."""
    key = read_certificates(signature.certificate.encode())[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CalibrationSigner(f"the key of {identity} is on no elliptic curve", facts={"side": side})
    try:
        made = base64.b64decode(signature.signature, validate=True)
        key.verify(made, _signed(calibration, side, identity, signature.signed_at), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise CalibrationAltered(
            f"the {side}'s signature is not one by {identity} over this calibration: one of them was altered",
            hint=RECALIBRATE,
            facts={"side": side},
        ) from error


def _signed(calibration: Calibration, side: Side, identity: Identity, moment: datetime) -> bytes:
    at = f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    statement = canonical_json({"side": side, "node": identity.uri, "signed_at": at})
    return PREFIX + statement + b"\n" + calibration.canonical


def _side(calibration: Calibration, side: Side) -> CalibratedSide:
    return calibration.source if side == "source" else calibration.target


def refuse_expired(calibration: Calibration, now: datetime) -> None:
    """Return if a calibration has not ended."""
    if calibration.expired(now):
        raise CalibrationExpired(
            f"the calibration {calibration.sha256.hex()[:12]} ended at {calibration.expires:%Y-%m-%d %H:%M} UTC",
            hint=RECALIBRATE,
        )


MAX_OF_PEER: Final = 32
"""Calibrations with one institution, in any state; more are refused until some are deleted."""
MIN_PREFIX: Final = 8
"""Hexadecimal digits of a digest that name a calibration on the command line."""
_SUFFIX: Final = ".json"
Place = tuple[str, str]
"""An institution and a domain."""


class Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    signed: SignedCalibration
    active: bool = True
    added: AwareDatetime

    @property
    def sha256(self) -> bytes:
        return self.signed.sha256

    def state(self, now: datetime) -> str:
        """In one word: removed from use, expired, proposed (one signature is missing) or active."""
        if not self.active:
            return "inactive"
        if self.signed.calibration.expired(now):
            return "expired"
        return "active" if self.signed.complete else "proposed"


class CalibrationStore:
    """The calibrations in a folder; each is written whole and durably, mode 0600."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def add(self, signed: SignedCalibration, *, now: datetime | None = None) -> Stored:
        """Store a calibration, or the further signatures of one that is there; it becomes active."""
        with self._lock:
            known = self.find(signed.sha256)
            pair = _institutions(signed)
            if known is None and sum(_institutions(s.signed) == pair for s in self.list()) >= MAX_OF_PEER:
                raise ExhaustedError(
                    f"{MAX_OF_PEER} calibrations between {' and '.join(sorted(pair))} are stored",
                    hint="the node's operator deletes some: ddib calibrate list, "
                    "ddib calibrate remove DIGEST --forget",
                )
            added = known.added if known else (now or datetime.now(UTC))
            stored = Stored(signed=signed, added=added)
            self._write(stored)
            return stored

    def find(self, sha256: bytes) -> Stored | None:
        """The calibration of a digest; None if there is none, or its file was altered."""
        try:
            return self._read(self._path(sha256))
        except (CalibrationInvalid, DdibError):
            return None

    def named(self, prefix: str) -> Stored:
        """The calibration whose digest in hexadecimal begins with `prefix`, of at least `MIN_PREFIX` digits."""
        found = [s for s in self.list() if s.sha256.hex().startswith(prefix.lower())]
        if len(prefix) < MIN_PREFIX or len(found) != 1:
            raise CalibrationUnknown(
                f"{len(found)} calibrations here begin with {prefix!a}; one is needed, named by {MIN_PREFIX} or "
                "more digits",
                hint="ddib calibrate list",
            )
        return found[0]

    def list(self) -> tuple[Stored, ...]:
        """Every readable calibration, the newest first."""
        found = [stored for path in self._paths() if (stored := self.find(bytes.fromhex(path.stem)))]
        return tuple(sorted(found, key=lambda stored: (stored.added, stored.sha256), reverse=True))

    def problems(self) -> tuple[str, ...]:
        """A line for each file that cannot be used."""
        found = []
        for path in self._paths():
            try:
                self._read(path)
            except DdibError as error:
                found.append(error.detail)
        return tuple(found)

    def between(self, source: Place, target: Place) -> tuple[Stored, ...]:
        """Every calibration from a source's domain to a target's, whatever its state, the newest first."""
        return tuple(
            stored
            for stored in self.list()
            if place_of(stored.signed.calibration.source) == source
            and place_of(stored.signed.calibration.target) == target
        )

    def active(self, source: Place, target: Place, *, now: datetime) -> Stored | None:
        """The newest calibration from a source's domain to a target's that both signed and that has not ended."""
        return next((s for s in self.between(source, target) if s.state(now) == "active"), None)

    def deactivate(self, sha256: bytes) -> Stored:
        """Keep a calibration and use it no longer."""
        with self._lock:
            stored = self._existing(sha256).model_copy(update={"active": False})
            self._write(stored)
            return stored

    def remove(self, sha256: bytes) -> None:
        """Delete a calibration; durable when this returns."""
        try:
            self._path(sha256).unlink()
        except FileNotFoundError as error:
            raise _unknown(sha256) from error
        sync_folder(self._folder)

    def _existing(self, sha256: bytes) -> Stored:
        stored = self.find(sha256)
        if stored is None:
            raise _unknown(sha256)
        return stored

    def _read(self, path: Path) -> Stored:
        try:
            stored = Stored.model_validate_json(read_small(path))
            digest = stored.sha256.hex()
        except (ValidationError, ValueError) as error:
            raise CalibrationInvalid(f"{path} is no stored calibration") from error
        if digest != path.stem:
            raise CalibrationInvalid(f"{path} holds the calibration {digest[:12]}: one of both was altered")
        return stored

    def _write(self, stored: Stored) -> None:
        private_folder(self._folder)
        text = stored.model_dump_json(indent=1, exclude_none=True) + "\n"
        write_file(self._path(stored.sha256), text.encode(), private=True)

    def _path(self, sha256: bytes) -> Path:
        return self._folder / f"{sha256.hex()}{_SUFFIX}"

    def _paths(self) -> tuple[Path, ...]:
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - glob hides errors
        except FileNotFoundError:
            return ()
        digests = [
            name for name in names if name.endswith(_SUFFIX) and _is_digest(name.removesuffix(_SUFFIX))
        ]
        return tuple(self._folder / name for name in sorted(digests))


def _is_digest(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def place_of(side: CalibratedSide) -> Place:
    return side.institution, side.domain


def _institutions(signed: SignedCalibration) -> frozenset[str]:
    return frozenset({signed.calibration.source.institution, signed.calibration.target.institution})


def _unknown(sha256: bytes) -> CalibrationUnknown:
    return CalibrationUnknown(
        f"no calibration {sha256.hex()[:12]} is stored here", hint="ddib calibrate list"
    )
