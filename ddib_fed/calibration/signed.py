"""A calibration with the signatures of both institutions: how they are made and verified, and a node's store of them.

    signature = ECDSA-SHA-256(key of the leaf, PREFIX + statement + newline + canonical JSON of the calibration)

The statement names the side, the node and the second of signing, so that none of them can be exchanged. The leaf
is kept beside the signature: it must have been valid at that second and come from a root that is pinned now.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Container, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ddib_fed.calibration.record import Calibration, Place, first_problem
from ddib_fed.errors import (
    CalibrationAltered,
    CalibrationExpired,
    CalibrationForeign,
    CalibrationInvalid,
    CalibrationRefused,
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
from ddib_fed.security.pki import CLOCK_SKEW, TlsCredentials
from ddib_fed.v1 import calibration_pb2 as pb

Side = Literal["source", "target"]
SIDES: Final[tuple[Side, Side]] = ("source", "target")
State = Literal["proposed", "active", "expired", "inactive"]
PREFIX: Final = b"ddib-fed calibration signature 1\n"
"""Domain separation: nothing else that a node signs begins with it."""
MAX_SIGNATURE_BYTES: Final = 256
MAX_CALIBRATION_BYTES: Final = 16 << 10
"""Of the canonical JSON."""
MAX_OF_PEER: Final = 32
"""Calibrations with one institution, in any state; more are refused until some are deleted."""
MIN_PREFIX: Final = 8
"""Hexadecimal digits of a digest that name a calibration on the command line."""
RECALIBRATE: Final = "calibrate again: ddib calibrate --peer INSTITUTION/DOMAIN"
_SUFFIX: Final = ".json"


class Signature(BaseModel):
    """As pb.CalibrationSignature: Unix seconds, the leaf in PEM, ECDSA in DER (base64 in JSON)."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    signed_at: Annotated[int, Field(ge=0, le=253_402_300_799)]
    certificate: Annotated[str, Field(max_length=MAX_CERTIFICATE_BYTES)]
    signature: Annotated[bytes, Field(max_length=MAX_SIGNATURE_BYTES)]

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.signed_at, UTC)

    def to_pb(self) -> pb.CalibrationSignature:
        return pb.CalibrationSignature(**self.model_dump())

    @classmethod
    def from_pb(cls, message: pb.CalibrationSignature) -> Signature:
        """From a message whose fields were checked."""
        return cls(signed_at=message.signed_at, certificate=message.certificate, signature=message.signature)


class SignedCalibration(BaseModel):
    """A calibration with the signatures that it has so far, and whether this node's operator lets it be used."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    calibration: Calibration
    source: Signature | None = None
    target: Signature | None = None
    active: bool = True
    added: AwareDatetime | None = None
    """When this node stored it."""

    @property
    def sha256(self) -> bytes:
        """Digest of the calibration, 32 bytes; the signatures are not part of it."""
        return self.calibration.sha256

    @property
    def short(self) -> str:
        return self.calibration.sha256.hex()[:12]

    @property
    def complete(self) -> bool:
        """Whether both sides have signed; says nothing of whether the signatures are good."""
        return self.source is not None and self.target is not None

    def state(self, now: datetime) -> State:
        """Whether it was removed from use, has expired, lacks a signature (proposed), or is active."""
        if not self.active:
            return "inactive"
        if self.calibration.expired(now):
            return "expired"
        return "active" if self.complete else "proposed"

    def sign(self, side: Side, credentials: TlsCredentials, *, now: datetime) -> SignedCalibration:
        """The same with the signature of this node, whose institution is that side.

        Raises:
            CalibrationForeign: The side is of another institution.
            CalibrationExpired: It has ended.
        """
        identity, named = credentials.identity, self.calibration.side(side).institution
        if identity.institution != named:
            raise CalibrationForeign(f"{identity} cannot sign as the {side}, which is {named or 'unnamed'}")
        self.refuse_expired(now)
        key = serialization.load_pem_private_key(credentials.key_pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # `load_identity` reads no other
        second = int(now.timestamp())
        made = key.sign(self._statement(side, identity, second), ec.ECDSA(hashes.SHA256()))
        signature = Signature(
            signed_at=second, certificate=credentials.cert_chain_pem.decode(), signature=made
        )
        return self.model_copy(update={side: signature})

    def verify(self, *, pins: Pins, now: datetime, withdrawn: Container[Identity] = ()) -> Calibration:
        """The calibration, if both institutions have signed it and it has not ended.

        Args:
            pins: For each institution known here, its own roots.
            now: The time, with a time zone.
            withdrawn: Identities that are refused whatever their certificates say.

        Raises:
            CalibrationExpired: It has ended.
            CalibrationUnsigned, CalibrationSigner, CalibrationAltered: As of `verify_side`.
        """
        self.refuse_expired(now)
        for side in SIDES:
            self.verify_side(side, pins=pins, now=now, withdrawn=withdrawn)
        return self.calibration

    def verify_side(
        self, side: Side, *, pins: Pins, now: datetime, withdrawn: Container[Identity] = ()
    ) -> Identity:
        """The node that signed for one side; arguments as of `verify`.

        Raises:
            CalibrationUnsigned: The signature is missing.
            CalibrationSigner: The signer is no node of the institution, its root is not pinned here (e.g. the peer was
                removed), it is withdrawn, its certificate was not valid when it signed, or it signed in the future.
            CalibrationAltered: The signature is not one over this content.
        """
        signature = self.source if side == "source" else self.target
        institution = self.calibration.side(side).institution

        def refused(kind: type[CalibrationRefused], why: str, hint: str = RECALIBRATE) -> CalibrationRefused:
            return kind(why, hint=hint, facts={"side": side})

        if signature is None:  # 1
            raise refused(
                CalibrationUnsigned,
                f"the calibration {self.short} has no signature of the {side} {institution}",
                f"have the operator of {institution} accept it: ddib calibrate accept",
            )
        pem, moment = signature.certificate.encode("ascii", "replace"), signature.moment
        try:  # 2: what the certificate proved when it signed
            identity = verify_peer_certificate(pem, pins=pins, now=moment)
        except RefusedError as error:
            why = f"the {side}'s signature of the calibration: {error.detail}"
            raise refused(CalibrationSigner, why, error.hint or RECALIBRATE) from error
        signer = f"{identity}, which signed as the {side},"
        if identity.kind != "node" or identity.institution != institution:  # 3
            raise refused(CalibrationSigner, f"{signer} must be a node of {institution or 'an institution'}")
        if identity in withdrawn:  # 4
            hint = f"ddib pki withdraw --undo {identity}, or {RECALIBRATE}"
            raise refused(CalibrationSigner, f"{signer} is withdrawn here", hint)
        if moment > now + CLOCK_SKEW:  # 5
            why = f"the {side}'s signature is of {moment:%Y-%m-%d %H:%M} UTC, which is in the future"
            raise refused(CalibrationSigner, why, "compare the clocks of both machines: date -u")
        key = read_certificates(pem)[0].public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):  # 6
            raise refused(CalibrationSigner, f"the key of {identity} is on no elliptic curve")
        try:  # 7
            statement = self._statement(side, identity, signature.signed_at)
            key.verify(signature.signature, statement, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            why = f"the {side}'s signature is not one by {identity} over this calibration: one of them was altered"
            raise refused(CalibrationAltered, why) from error
        return identity

    def refuse_expired(self, now: datetime) -> None:
        if self.calibration.expired(now):
            raise CalibrationExpired(
                f"the calibration {self.short} ended at {self.calibration.expires:%Y-%m-%d %H:%M} UTC",
                hint=RECALIBRATE,
            )

    def _statement(self, side: Side, identity: Identity, second: int) -> bytes:
        at = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%SZ}"
        statement = canonical_json({"side": side, "node": identity.uri, "signed_at": at})
        return PREFIX + statement + b"\n" + self.calibration.canonical


def parse_calibration(data: bytes, what: str) -> Calibration:
    """Read the canonical JSON of a calibration; CalibrationInvalid if it is not exactly that."""
    if len(data) > MAX_CALIBRATION_BYTES:
        raise CalibrationInvalid(
            f"{what} is larger than {MAX_CALIBRATION_BYTES} bytes", facts={"limit": MAX_CALIBRATION_BYTES}
        )
    try:
        found = Calibration.model_validate_json(data)
        canonical = found.canonical
    except ValueError as error:
        raise CalibrationInvalid(f"{what} is no calibration: {first_problem(error)}") from error
    if canonical != data:
        raise CalibrationInvalid(f"{what} is not in the canonical form that is signed")
    return found


def parse_signed(data: bytes, what: str) -> SignedCalibration:
    """Read a signed calibration in JSON; nothing is verified."""
    try:
        found = SignedCalibration.model_validate_json(data)
        _ = found.sha256
    except ValueError as error:
        raise CalibrationInvalid(f"{what} is no signed calibration: {first_problem(error)}") from error
    return found


class CalibrationStore:
    """The calibrations in a folder; each is written whole and durably, mode 0600."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def add(self, signed: SignedCalibration, *, now: datetime | None = None) -> SignedCalibration:
        """Store a calibration, or the further signatures of one that is there; it becomes active."""
        with self._lock:
            known, pair = self.find(signed.sha256), signed.calibration.institutions
            if known is None and sum(s.calibration.institutions == pair for s in self.list()) >= MAX_OF_PEER:
                raise ExhaustedError(
                    f"{MAX_OF_PEER} calibrations between {' and '.join(sorted(pair))} are stored",
                    hint="the node's operator deletes some: ddib calibrate list, "
                    "ddib calibrate remove DIGEST, twice",
                )
            added = known.added if known else (now or datetime.now(UTC))
            return self._write(signed.model_copy(update={"added": added, "active": True}))

    def find(self, sha256: bytes) -> SignedCalibration | None:
        """The calibration of a digest; None if there is none, or its file was altered."""
        try:
            return self._read(self._path(sha256))
        except DdibError:
            return None

    def named(self, prefix: str) -> SignedCalibration:
        """The calibration whose digest in hexadecimal begins with `prefix`, of at least `MIN_PREFIX` digits."""
        found = [s for s in self.list() if s.sha256.hex().startswith(prefix.lower())]
        if len(prefix) < MIN_PREFIX or len(found) != 1:
            raise CalibrationUnknown(
                f"{len(found)} calibrations here begin with {prefix!a}; one is needed, named by {MIN_PREFIX} or "
                "more digits",
                hint="ddib calibrate list",
            )
        return found[0]

    def list(self) -> tuple[SignedCalibration, ...]:
        """Every readable calibration, the newest first."""
        found = [each for each in self._all() if isinstance(each, SignedCalibration)]
        return tuple(
            sorted(found, key=lambda s: (s.added or s.calibration.made.created, s.sha256), reverse=True)
        )

    def problems(self) -> tuple[str, ...]:
        """A line for each file that cannot be used."""
        return tuple(each.detail for each in self._all() if isinstance(each, DdibError))

    def _all(self) -> Iterator[SignedCalibration | DdibError]:
        try:
            names = sorted(os.listdir(self._folder))  # noqa: PTH208 - glob hides errors
        except FileNotFoundError:
            return
        for name in names:
            if re.fullmatch(rf"[0-9a-f]{{64}}\{_SUFFIX}", name):
                try:
                    yield self._read(self._folder / name)
                except DdibError as error:
                    yield error

    def between(self, source: Place, target: Place) -> tuple[SignedCalibration, ...]:
        """Every calibration from a source's domain to a target's, whatever its state, the newest first."""
        places = source, target
        return tuple(
            s for s in self.list() if (s.calibration.source.place, s.calibration.target.place) == places
        )

    def deactivate(self, sha256: bytes) -> SignedCalibration:
        """Keep a calibration and use it no longer."""
        with self._lock:
            signed = self.find(sha256)
            if signed is None:
                raise _unknown(sha256)
            return self._write(signed.model_copy(update={"active": False}))

    def remove(self, sha256: bytes) -> None:
        """Delete a calibration; durable when this returns."""
        try:
            self._path(sha256).unlink()
        except FileNotFoundError as error:
            raise _unknown(sha256) from error
        sync_folder(self._folder)

    def _read(self, path: Path) -> SignedCalibration:
        signed = parse_signed(read_small(path), str(path))
        if signed.sha256.hex() != path.stem:
            raise CalibrationInvalid(f"{path} holds the calibration {signed.short}: one of both was altered")
        return signed

    def _write(self, signed: SignedCalibration) -> SignedCalibration:
        private_folder(self._folder)
        text = signed.model_dump_json(indent=1, exclude_none=True) + "\n"
        write_file(self._path(signed.sha256), text.encode(), private=True)
        return signed

    def _path(self, sha256: bytes) -> Path:
        return self._folder / f"{sha256.hex()}{_SUFFIX}"


def _unknown(sha256: bytes) -> CalibrationUnknown:
    return CalibrationUnknown(
        f"no calibration {sha256.hex()[:12]} is stored here", hint="ddib calibrate list"
    )
