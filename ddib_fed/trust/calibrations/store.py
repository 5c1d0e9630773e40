"""The calibrations of a node: one private file for each, named by its digest.

A stored calibration is not trusted for lying here: whoever uses one verifies its signatures (`calibrations.verify`).
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ddib_fed.bridge.calibration.record import CalibratedSide
from ddib_fed.errors import CalibrationInvalid, CalibrationUnknown, DdibError, ExhaustedError
from ddib_fed.files import private_folder, read_small, sync_folder, write_file
from ddib_fed.trust.calibrations.signing import SignedCalibration

MAX_OF_PEER: Final = 32
"""Calibrations with one institution, in any state; more are refused until some are deleted."""
MIN_PREFIX: Final = 8
"""Hexadecimal digits of a digest that name a calibration on the command line."""
_SUFFIX: Final = ".json"
Place = tuple[str, str]
"""An institution and a domain."""


class Stored(BaseModel):
    """A calibration in the store.

    Attributes:
        format: Version of this layout.
        signed: The calibration and the signatures that it has so far.
        active: Whether it may be used, once both have signed.
        added: When it was stored first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    signed: SignedCalibration
    active: bool = True
    added: AwareDatetime

    @property
    def sha256(self) -> bytes:
        """Digest of the calibration, 32 bytes."""
        return self.signed.sha256

    def state(self, now: datetime) -> str:
        """In one word: removed from use, expired, proposed (one signature is missing) or active."""
        if not self.active:
            return "inactive"
        if self.signed.calibration.expired(now):
            return "expired"
        return "active" if self.signed.complete else "proposed"


class CalibrationStore:
    """The calibrations in a folder; each is written whole and durably, mode 0600.

    Args:
        folder: It need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def add(self, signed: SignedCalibration, *, now: datetime | None = None) -> Stored:
        """Store a calibration, or the further signatures of one that is there; it becomes active.

        Raises:
            ExhaustedError: There are `MAX_OF_PEER` others of the same two institutions.
        """
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
        """The calibration whose digest in hexadecimal begins with `prefix`, of at least `MIN_PREFIX` digits.

        Raises:
            CalibrationUnknown: None or several do.
        """
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
        """Keep a calibration and use it no longer.

        Raises:
            CalibrationUnknown: It is not there.
        """
        with self._lock:
            stored = self._existing(sha256).model_copy(update={"active": False})
            self._write(stored)
            return stored

    def remove(self, sha256: bytes) -> None:
        """Delete a calibration; durable when this returns.

        Raises:
            CalibrationUnknown: It is not there.
        """
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
    """Institution and domain of a side."""
    return side.institution, side.domain


def _institutions(signed: SignedCalibration) -> frozenset[str]:
    return frozenset({signed.calibration.source.institution, signed.calibration.target.institution})


def _unknown(sha256: bytes) -> CalibrationUnknown:
    return CalibrationUnknown(
        f"no calibration {sha256.hex()[:12]} is stored here", hint="ddib calibrate list"
    )
