"""`ddib translate --credentials`: puts content credentials into the pictures that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.bridge.records.translation_record import Part, WrittenFile
from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.files import write_file

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials


def load_credentials(given: tuple[Path, Path] | None) -> Credentials | None:
    """The certificate and key of the option, before anything is sent.

    Raises:
        ExtraMissing, ConfigError, FileMissing, InputError: As `Credentials.load`.
    """
    if given is None:
        return None
    from ddib_fed.formats.credentials import Credentials

    return Credentials.load(*given)


def mark_delivered(delivered: Sequence[Delivered], credentials: Credentials | None) -> list[Delivered]:
    """Put credentials into each translated PNG or JPEG, and its new digest into its record; points stay as they are.

    Raises:
        InputError: The certificate is not accepted.
    """
    return list(delivered) if credentials is None else [_marked(each, credentials) for each in delivered]


def _marked(each: Delivered, credentials: Credentials) -> Delivered:
    from ddib_fed.formats.credentials import MEDIA_TYPES, mark

    path = each.files[Part.TRANSLATION]
    if path.suffix.lower() not in MEDIA_TYPES:
        return each
    content = mark(path.read_bytes(), path.suffix, each.provenance, credentials)
    write_file(path, content)
    file = WrittenFile(file=path.name, sha256=hashlib.sha256(content).hexdigest())
    record = each.provenance.with_(files={**each.provenance.files, Part.TRANSLATION.value: file})
    write_file(each.record, record.to_json())
    return replace(each, provenance=record)
