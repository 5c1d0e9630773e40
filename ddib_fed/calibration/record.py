"""A calibration as it is agreed on, signed, stored and named in contracts.

Its digest is SHA-256 over the canonical JSON (RFC 8785) of all fields. Each institution signs it with a node's key:

    signature = ECDSA-SHA-256(key of the leaf, PREFIX + statement + newline + canonical JSON of the calibration)

The statement names the side, the node and the second of signing. The leaf, kept beside the signature, must have been
valid at that second and come from a root that is pinned now.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import threading
from collections.abc import Collection, Container, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, Field, FiniteFloat, ValidationError, field_serializer, model_validator

from ddib_fed.errors import (
    CalibrationAltered,
    CalibrationExpired,
    CalibrationForeign,
    CalibrationInvalid,
    CalibrationModel,
    CalibrationRefused,
    CalibrationSigner,
    CalibrationUnits,
    CalibrationUnknown,
    CalibrationUnsigned,
    DdibError,
    ExhaustedError,
    RefusedError,
    SettingsInvalid,
)
from ddib_fed.files import (
    canonical_json,
    parse_json,
    private_folder,
    problem_text,
    read_small,
    sync_folder,
    write_file,
)
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation, PictureMap
from ddib_fed.names import is_domain, is_institution
from ddib_fed.protocol.contract import CalibrationKind
from ddib_fed.record import CALIBRATION_FILE, Frozen
from ddib_fed.security.identity import (
    MAX_CERTIFICATE_BYTES,
    Identity,
    Pins,
    read_certificates,
    verify_peer_certificate,
)
from ddib_fed.security.pki import CLOCK_SKEW, TlsCredentials
from ddib_fed.v1 import calibration_pb2 as pb
from ddib_fed.v1.common_pb2 import CalibrationTerms, SolverSettings

RETRAINED: Final[frozenset[CalibrationKind]] = frozenset({"tone", "colour-map"})
"""Kinds that need the source's model trained on its mapped pictures."""
Side = Literal["source", "target"]
SIDES: Final[tuple[Side, Side]] = ("source", "target")
Contrast = Literal["", "same", "inverted"]
State = Literal["proposed", "active", "expired", "inactive"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Place = tuple[str, str]  # an institution and a domain
PREFIX: Final = b"ddib-fed calibration signature 1\n"
"""Domain separation: nothing else that a node signs begins with it."""
MAX_CALIBRATION_BYTES: Final = 16 << 10  # of the canonical JSON
MAX_OF_PEER: Final = 32
"""Calibrations with one institution, in any state; more are refused until some are deleted."""
MIN_PREFIX: Final = 8  # hexadecimal digits of a digest that name a calibration on the command line
RECALIBRATE: Final = (
    "calibrate again: ddib calibrate --peer INSTITUTION/DOMAIN, or ddib calibrate --local A B"
)


class CalibratedSide(Frozen):
    """One side: its institution (empty in one process), domain, and its model's units before a calibration."""

    institution: str = Field(default="", max_length=253)
    domain: str = Field(max_length=64)
    units: Normalisation

    @property
    def units_sha256(self) -> str:
        return units_digest(self.units)

    @property
    def place(self) -> Place:
        return self.institution, self.domain

    def __str__(self) -> str:
        return place_name(self.place)

    @model_validator(mode="after")
    def _named(self) -> CalibratedSide:
        if self.institution and not is_institution(self.institution):
            raise ValueError("the institution is no DNS name in lower case")
        if not is_domain(self.domain):
            raise ValueError("the domain is no name of a domain")
        if self.units.calibrated is not None:
            raise ValueError("the units are those of a model that was trained with a calibration")
        return self


def place_name(place: Place) -> str:
    return "/".join(filter(None, place))


class Making(Frozen):
    """How a calibration was made, and what crossed for it, or would have, in one process."""

    method: Literal["aggregates", "anchors"]
    source_pictures: int = Field(default=0, ge=0)
    target_pictures: int = Field(default=0, ge=0)  # or groups of them
    target_unit: Literal["picture", "group"] = "picture"
    anchors: int = Field(default=0, ge=0)
    aggregate_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    crossed_bytes: int = Field(default=0, ge=0)  # before the calibration itself
    epsilon: float | None = Field(default=None, gt=0)  # of one of the target's units
    delta: float | None = Field(default=None, gt=0, lt=1)
    contrast: Contrast = ""
    """Of a tone without anchors: what its operators say of the grey values of both sides."""
    # That repeats it, without names of files and folders: the other institution reads it.
    command: str = Field(default="", max_length=2000, pattern=r"^[ -~]*$")
    created: AwareDatetime


def _save(record: Frozen, path: str | Path) -> None:
    text = record.model_dump_json(indent=2, exclude_none=True)
    write_file(Path(path), text.encode() + b"\n", overwrite=False)


class Effect(Frozen):
    distance_before: Figure
    distance: Figure
    margin: Figure
    figures: dict[Annotated[str, Field(pattern=r"^[a-z0-9_.-]{1,64}$")], Figure] = Field(
        default_factory=dict, max_length=32
    )
    forced: bool = False

    @field_serializer("forced")
    def _forced(self, value: bool) -> int:
        return int(value)  # canonical JSON has no booleans


class Dial(Frozen):
    """What jobs under the calibration take where they name no other: see `record.Settings`."""

    share: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] = 1.0
    temperature: Annotated[FiniteFloat, Field(ge=0.8, le=1.0)] = 1.0
    blend: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] = 0.0

    @classmethod
    def fill(cls, solver: SolverSettings, calibration: Calibration | None) -> None:
        """Set what a request leaves open: as the calibration has it, or as without one."""
        partial = 0.0 < solver.depth < 1.0  # a depth of its own stands for the dial
        for name, value in cls() if calibration is None or partial else calibration.dial:
            if not solver.HasField(name):
                setattr(solver, name, value)

    def __str__(self) -> str:
        return f"share {self.share:g}, temperature {self.temperature:g}, blend {self.blend:g}"


class Calibration(Frozen):
    """How two domains correspond, in a few numbers: the source applies `map` to its own pictures.

    The map leads to the target's units. `calibrate` makes one of two models; between nodes both institutions sign it
    (`Node.calibrations`). Its digest is of the canonical form, whatever the file's.

    Examples
    --------
    >>> from ddib_fed import Calibration
    >>> calibration = Calibration.open("satellite-as-relief")
    >>> print(calibration.kind, calibration.source, calibration.target, calibration.dial, sep="; ")
    colour-map; satellite; relief; share 0.75, temperature 0.9, blend 0.3
    """

    format: Literal[1] = 1
    kind: CalibrationKind
    source: CalibratedSide
    target: CalibratedSide
    map: ChannelMap
    made: Making
    effect: Effect
    dial: Dial = Dial()
    expires: AwareDatetime

    @classmethod
    def open(cls, path: str | Path) -> Calibration:
        """Read the calibration in a file, or of the shipped model of this name.

        Parameters
        ----------
        path
            A file as `save` or `ddib calibrate show --out` writes it. Signatures in it are not verified.

        Raises
        ------
        FileMissing
            There is no such file or model.
        CalibrationInvalid
            The file holds no calibration.
        """
        content, place = None, Path(path)
        if not place.exists():
            from ddib_fed.models.bundle import shipped_calibration  # loads torch, which a file does not need

            content = shipped_calibration(str(path))
        content = content or read_small(place, hint="ddib calibrate makes one")
        try:
            document = parse_json(content)
            inner = document.get("calibration", document) if isinstance(document, dict) else document
            return cls.model_validate_json(json.dumps(inner))
        except ValueError as error:
            raise CalibrationInvalid(f"{path} is no calibration: {_problem(error)}") from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON, one field on a line; raise AlreadyExists if the file exists."""
        _save(self, path)

    @property
    def canonical(self) -> bytes:
        """The canonical JSON that is hashed and signed."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.canonical).digest()

    @property
    def terms(self) -> CalibrationTerms:
        return CalibrationTerms(sha256=self.sha256, kind=self.kind, expires=int(self.expires.timestamp()))

    @property
    def institutions(self) -> frozenset[str]:
        return frozenset({self.source.institution, self.target.institution})

    @property
    def alone(self) -> PictureMap | None:
        """Its map alone, without a model; None where it maps latents."""
        if self.source.units.autoencoder is not None:
            return None
        units = self.source.units, self.map, self.target.units
        return PictureMap(*units, self.sha256.hex(), self.effect.forced)

    def dialled(self, dial: Dial, created: datetime) -> Calibration:
        """Return the same map with a setting; made at another time it is another calibration."""
        made = self.made.model_copy(update={"created": created})
        return self.model_copy(update={"dial": dial, "made": made})

    def side(self, side: Side) -> CalibratedSide:
        return self.source if side == "source" else self.target

    def expired(self, now: datetime | None = None) -> bool:
        return self.expires <= (now or datetime.now(UTC))

    def check_between(self, source: Place, target: Place, units: Mapping[Side, Collection[str]]) -> None:
        """Raise unless it leads between the places (of any institution if that is empty), in units of these models."""
        for side, (institution, domain) in zip(SIDES, (source, target), strict=True):
            own = self.side(side)
            if own.domain != domain or institution not in {"", own.institution}:
                raise CalibrationForeign(
                    f"the calibration leads from {self.source} to {self.target}, not from {place_name(source)} to "
                    f"{place_name(target)}",
                    hint=RECALIBRATE,
                    facts={"source": str(self.source), "target": str(self.target)},
                )
        for side, known in units.items():
            own = self.side(side)
            if own.units_sha256 not in known:
                now = " and ".join(each[:12] for each in known)
                raise CalibrationUnits(
                    f"the calibration was made for a model of {own} with the units {own.units_sha256[:12]}; the model "
                    f"there now has {now}",
                    hint=RECALIBRATE,
                    facts={"side": side},
                )

    @model_validator(mode="after")
    def _fits(self) -> Calibration:
        rotated = self.map.rotation is not None
        if (self.kind == "rotation") != rotated or (self.kind == "tone") != (
            self.map.channels == 1 and not rotated
        ):
            raise ValueError(f"the map is not one of the kind {self.kind}")
        for units in (self.source.units, self.target.units):
            if units.calibrated is not None or not units.channels <= {self.map.channels}:
                raise ValueError(f"units of a map of {self.map.channels} channels are plain and of as many")
        encoders = {self.source.units.autoencoder, self.target.units.autoencoder}
        if len(encoders) > 1 or (self.kind != "rotation" and encoders != {None}):
            raise ValueError("only a rotation is of latents, and both sides have one autoencoder")
        return self


def plain_units(units: Normalisation) -> bytes:
    """Return the canonical JSON of a model's units before a calibration, in which a calibration's numbers are."""
    return canonical_json(units.model_dump(mode="json", exclude_none=True, exclude={"calibrated"}))


def units_digest(units: Normalisation) -> str:
    return hashlib.sha256(plain_units(units)).hexdigest()


def units_of(manifest: Manifest) -> tuple[str, ...]:
    """Return the digests of the units that a model's calibrations may be in."""
    return tuple(map(units_digest, manifest.calibrated_units))


def leg_map(calibration: Calibration | None, source: Manifest) -> ChannelMap | None:
    """Return the map for `Leg.calibration`, of a rotation; None if the model's own units have it, or without any.

    CalibrationModel if the source's model cannot encode under the calibration, or without one, as it is trained now.
    """
    held = source.normalisation.calibrated
    if calibration is not None and calibration.kind in RETRAINED:
        if held == calibration.map:
            return None
        why = "was not trained with it" if held is None else "was trained with the map of another one"
        raise _unusable(
            source,
            f"the {calibration.kind} {calibration.sha256.hex()[:12]} needs a source model trained with it, and "
            f"{source.name} {why}",
            "ddib model train --init OWN --calibration FILE --out NEW, then serve NEW",
        )
    if calibration is not None:
        of = calibration.source.units.autoencoder
        if of != (source.latents and source.latents.autoencoder_sha256):
            what = "latents of an autoencoder that" if of else "colours, and behind the autoencoder of"
            raise _unusable(
                source,
                f"the rotation {calibration.sha256.hex()[:12]} is of {what} {source.name} "
                + ("does not have" if of else "the ODE runs on latents"),
                "ddib calibrate --kind rotation again, between models of one autoencoder; or --kind colour-map",
            )
    if held is not None:
        raise _unusable(
            source,
            f"{source.name} was trained with the map of a calibration, and this translation has "
            + ("none" if calibration is None else f"a {calibration.kind}"),
            "ddib calibrate list shows a node's calibrations, --calibration FILE names one in one process; or use the "
            "model from before that training",
        )
    return None if calibration is None else calibration.map


def misfit(calibration: Calibration | None, source: Manifest) -> str:
    """Return why a model cannot encode under a calibration as it is trained now, with the remedy; empty if it can."""
    try:
        leg_map(calibration, source)
    except CalibrationModel as error:
        return f"{error.detail}: {error.hint}"
    return ""


def map_between(calibration: Calibration | None, source: Manifest, target: Manifest) -> ChannelMap | None:
    """Return `leg_map` of two models in one process; raise unless the calibration is between them."""
    if calibration is not None:
        units: dict[Side, Collection[str]] = {"source": units_of(source), "target": units_of(target)}
        calibration.check_between(("", source.domain), ("", target.domain), units)
        check_target(target)
    return leg_map(calibration, source)


def check_blend(blend: float, calibration: Calibration | None, *, of_latent: bool = False) -> None:
    """Raise SettingsInvalid without a map, or where a blend of 1, of which there is no latent, needs one."""
    if blend and (calibration is None or calibration.alone is None):
        raise SettingsInvalid(
            f"a blend of {blend:g} is with a picture that a calibration maps, and there is none",
            hint="leave blend out, or translate under a calibration",
            facts={"field": "blend"},
        )
    if blend == 1.0 and of_latent:
        raise SettingsInvalid(
            "the map alone has no latent to keep or to translate back",
            hint="leave --cycle and --keep-latents out, or add --share 1 --set blend=0",
            facts={"field": "blend"},
        )


def map_beside(folder: Path) -> PictureMap | None:
    """Return the map of the calibration that is kept beside results in a folder."""
    path = folder / CALIBRATION_FILE
    try:
        return Calibration.open(path).alone if path.is_file() else None
    except CalibrationRefused as error:
        error.hint = f"rm {shlex.quote(str(path))} leaves out what its map alone gives"
        raise


def check_target(target: Manifest) -> None:
    """Raise unless a model can decode what was encoded under a calibration: the map leads to its plain units."""
    if target.normalisation.calibrated is not None:
        raise _unusable(
            target,
            f"{target.name} was trained with the map of a calibration, and latents under another one lead to its units "
            "without that map",
            "decode by the model from before that training; ddib model show MODEL lists the map",
        )


def _unusable(model: Manifest, detail: str, remedy: str) -> CalibrationModel:
    return CalibrationModel(detail, hint=remedy, facts={"model": model.name, "remedy": remedy})


class Signature(Frozen, ser_json_bytes="base64", val_json_bytes="base64"):
    """As pb.CalibrationSignature, whose limits it has: Unix seconds, the leaf in PEM, ECDSA in DER (base64 in JSON)."""

    signed_at: Annotated[int, Field(ge=0, le=253_402_300_799)]
    certificate: Annotated[str, Field(max_length=MAX_CERTIFICATE_BYTES)]
    signature: Annotated[bytes, Field(max_length=256)]

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.signed_at, UTC)

    def to_pb(self) -> pb.CalibrationSignature:
        return pb.CalibrationSignature(**self.model_dump())

    @classmethod
    def from_pb(cls, message: pb.CalibrationSignature) -> Signature:
        return cls(signed_at=message.signed_at, certificate=message.certificate, signature=message.signature)


class SignedCalibration(Frozen):
    """A calibration with the signatures that it has so far, and whether this node's operator lets it be used."""

    calibration: Calibration
    source: Signature | None = None
    target: Signature | None = None
    active: bool = True
    added: AwareDatetime | None = None  # when this node stored it

    def save(self, path: str | Path) -> None:
        _save(self, path)

    @property
    def sha256(self) -> bytes:
        """Digest of the calibration, 32 bytes; the signatures are not part of it."""
        return self.calibration.sha256

    @property
    def short(self) -> str:
        return self.sha256.hex()[:12]

    @property
    def complete(self) -> bool:
        """Whether both sides have signed; the signatures may be bad."""
        return self.source is not None and self.target is not None

    def signature(self, side: Side) -> Signature | None:
        return self.source if side == "source" else self.target

    def state(self, now: datetime) -> State:
        """Return whether it was removed from use, has expired, lacks a signature (proposed), or is active."""
        if not self.active:
            return "inactive"
        if self.calibration.expired(now):
            return "expired"
        return "active" if self.complete else "proposed"

    def sign(self, side: Side, credentials: TlsCredentials, *, now: datetime) -> SignedCalibration:
        """Sign it for the side of this node's institution."""
        identity, named = credentials.identity, self.calibration.side(side).institution
        if identity.institution != named:
            raise CalibrationForeign(f"{identity} cannot sign as the {side}, which is {named or 'unnamed'}")
        self.refuse_expired(now)
        key = serialization.load_pem_private_key(credentials.key_pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # `load_identity` reads no other
        second = int(now.timestamp())
        made = key.sign(self._statement(side, identity, second), ec.ECDSA(hashes.SHA256()))
        certificate = credentials.cert_chain_pem.decode()
        return self.model_copy(
            update={side: Signature(signed_at=second, certificate=certificate, signature=made)}
        )

    def verify(self, *, pins: Pins, now: datetime, withdrawn: Container[Identity] = ()) -> Calibration:
        """Return the calibration; raise unless both institutions have signed it and it has not ended."""
        self.refuse_expired(now)
        for side in SIDES:
            self.verify_side(side, pins=pins, now=now, withdrawn=withdrawn)
        return self.calibration

    def verify_side(
        self, side: Side, *, pins: Pins, now: datetime, withdrawn: Container[Identity] = ()
    ) -> Identity:
        """Return the node that signed for one side; raise CalibrationRefused, of a kind for each cause."""
        signature, institution = self.signature(side), self.calibration.side(side).institution

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


def _problem(error: ValueError) -> str:
    """Describe the first problem that JSON or pydantic found."""
    return problem_text(error) if isinstance(error, ValidationError) else f"it is not JSON ({error})"


def parse_calibration(data: bytes, what: str) -> Calibration:
    """Read the canonical JSON of a calibration; raise CalibrationInvalid if it is not exactly that."""
    if len(data) > MAX_CALIBRATION_BYTES:
        raise CalibrationInvalid(
            f"{what} is larger than {MAX_CALIBRATION_BYTES} bytes", facts={"limit": MAX_CALIBRATION_BYTES}
        )
    try:
        calibration = Calibration.model_validate_json(data)
        canonical = calibration.canonical
    except ValueError as error:
        raise CalibrationInvalid(f"{what} is no calibration: {_problem(error)}") from error
    if canonical != data:
        raise CalibrationInvalid(f"{what} is not in the canonical form that is signed")
    return calibration


def parse_signed(data: bytes, what: str) -> SignedCalibration:
    """Read a signed calibration in JSON; nothing is verified."""
    try:
        signed = SignedCalibration.model_validate_json(data)
        _ = signed.sha256
    except ValueError as error:
        raise CalibrationInvalid(f"{what} is no signed calibration: {_problem(error)}") from error
    return signed


class CalibrationStore:
    """The calibrations of a node, a file each, named by its digest, written whole and durably, mode 0600."""

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
        """Return the calibration of a digest; None if there is none, or its file was altered."""
        try:
            return self._read(self._path(sha256))
        except DdibError:
            return None

    def named(self, prefix: str) -> SignedCalibration:
        """Return the calibration whose digest in hexadecimal begins with `prefix`, of at least `MIN_PREFIX` digits."""
        matching = [s for s in self.list() if s.sha256.hex().startswith(prefix.lower())]
        if len(prefix) < MIN_PREFIX or len(matching) != 1:
            raise CalibrationUnknown(
                f"{len(matching)} calibrations here begin with {prefix!a}; one is needed, named by {MIN_PREFIX} or "
                "more digits",
                hint="ddib calibrate list",
            )
        return matching[0]

    def list(self) -> tuple[SignedCalibration, ...]:
        """Return every readable calibration, the newest first."""
        signed = [each for each in self._all() if isinstance(each, SignedCalibration)]
        return tuple(
            sorted(signed, key=lambda s: (s.added or s.calibration.made.created, s.sha256), reverse=True)
        )

    def between(self, source: Place, target: Place) -> tuple[SignedCalibration, ...]:
        """Return every calibration from a source's domain to a target's, in any state, the newest first."""
        places = source, target
        return tuple(
            s for s in self.list() if (s.calibration.source.place, s.calibration.target.place) == places
        )

    def chosen(
        self, source: Place, target: Place, manifest: Manifest, now: datetime
    ) -> SignedCalibration | None:
        """Return what jobs take: the newest active one that fits the model, else the newest active, or expired, one."""
        held = self.between(source, target)
        active = [each for each in held if each.state(now) == "active"]
        fitting = [each for each in active if not misfit(each.calibration, manifest)]
        ended = [each for each in held if each.state(now) == "expired"]
        return next(iter((*fitting, *active, *ended)), None)

    def problems(self) -> tuple[str, ...]:
        """Return a line for each file that cannot be used."""
        return tuple(each.detail for each in self._all() if isinstance(each, DdibError))

    def deactivate(self, sha256: bytes) -> SignedCalibration:
        """Keep a calibration and use it no longer."""
        with self._lock:
            return self._write(self._read(self._path(sha256)).model_copy(update={"active": False}))

    def remove(self, sha256: bytes) -> None:
        """Delete a calibration; durable when this returns."""
        self._path(sha256).unlink(missing_ok=True)
        sync_folder(self._folder)

    def _all(self) -> Iterator[SignedCalibration | DdibError]:
        try:
            names = sorted(os.listdir(self._folder))  # noqa: PTH208 - glob hides errors
        except FileNotFoundError:
            return
        for name in names:
            if re.fullmatch(r"[0-9a-f]{64}\.json", name):
                try:
                    yield self._read(self._folder / name)
                except DdibError as error:
                    yield error

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
        return self._folder / f"{sha256.hex()}.json"
