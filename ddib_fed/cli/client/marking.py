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


def mark_delivered(delivered: Sequence[Delivered], credentials: Credentials | None) -> tuple[Delivered, ...]:
    """Put credentials into each translated PNG or JPEG, and its new digest into its record.

    Points, and what an earlier run has marked, stay as they are.

    Raises:
        InputError: The certificate is not accepted.
    """
    return tuple(each if credentials is None else _marked(each, credentials) for each in delivered)


def _marked(each: Delivered, credentials: Credentials) -> Delivered:
    from ddib_fed.formats.credentials import MEDIA_TYPES, mark, read_mark

    path = each.files[Part.TRANSLATION]
    if path.suffix.lower() not in MEDIA_TYPES:
        return each
    content = path.read_bytes()
    if read_mark(content, path.suffix) is not None:
        return each
    content = mark(content, path.suffix, each.provenance, credentials)
    write_file(path, content)
    file = WrittenFile(file=path.name, sha256=hashlib.sha256(content).hexdigest())
    record = each.provenance.with_(files={**each.provenance.files, Part.TRANSLATION.value: file})
    write_file(each.record, record.to_json())
    return replace(each, provenance=record)
