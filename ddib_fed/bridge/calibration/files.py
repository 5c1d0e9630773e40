"""Calibrations as files: JSON for people, or one with signatures as `ddib calibrate show` writes it."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.errors import CalibrationInvalid
from ddib_fed.files import parse_json, read_small, write_file


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file, or of the shipped model of this name; signatures beside it are not verified here.

    Raises:
        FileMissing: There is no such file.
        CalibrationInvalid: It is no calibration.
    """
    content = _shipped(str(path)) if not path.exists() else None
    content = content or read_small(path, hint="ddib calibrate makes one")
    try:
        found = parse_json(content)
        inner = found.get("calibration", found) if isinstance(found, dict) else found
        return Calibration.model_validate_json(json.dumps(inner))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CalibrationInvalid(f"{path} is no calibration: {where}: {first['msg']}") from error
    except ValueError as error:
        raise CalibrationInvalid(f"{path} is no calibration: it is not JSON") from error


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write it as JSON with one field on a line; its digest is of the canonical form, whatever the file's.

    Raises:
        AlreadyExists: There is a file.
    """
    text = json.dumps(calibration.model_dump(mode="json", exclude_none=True), indent=2)
    write_file(path, text.encode() + b"\n", overwrite=False)


def _shipped(name: str) -> bytes | None:
    # Bundles load torch, which a file does not need.
    from ddib_fed.models.shipped import shipped_calibration

    return shipped_calibration(name)
