"""`--credentials`: the certificate and key of the command, and the results of earlier runs that get credentials now.

A new result is written with them (`delivery.write_result`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.bridge.records.translation_record import Part, WrittenFile
from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.client.client import Client
from ddib_fed.errors import UsageError
from ddib_fed.files import write_file

if TYPE_CHECKING:
    from ddib_fed.formats.credentials import Credentials

POINT = "point"
_LEAVE_OUT = "leave --credentials out; docs/formats.md says which results hold them"


def load_credentials(given: tuple[Path, Path] | None) -> Credentials | None:
    """The certificate and key of the option, before anything is sent."""
    if given is None:
        return None
    from ddib_fed.formats.credentials import Credentials

    return Credentials.load(*given)


def may_be_points(paths: Sequence[Path]) -> bool:
    return all(path.suffix.lower() == ".npy" for path in paths)


def refuse_points(client: Client) -> None:
    if client.domains().sample_kind == POINT:
        raise UsageError("--credentials: points hold no content credentials", hint=_LEAVE_OUT)


def refuse_without_pictures(studies: Sequence[Path]) -> None:
    """Refuse the option for a command whose results are series, volumes, maps and the like alone."""
    raise UsageError(
        f"--credentials: what {studies[0]} becomes holds no content credentials", hint=_LEAVE_OUT
    )


def mark_earlier(each: Delivered, credentials: Credentials | None) -> Delivered:
    """Put credentials into the PNG or JPEG of a result that an earlier run has written, and its digest into
    the record.
    """
    path = each.files[Part.TRANSLATION]
    if credentials is None:
        return each
    from ddib_fed.formats.credentials import MEDIA_TYPES, mark, without_mark

    if path.suffix.lower() not in MEDIA_TYPES:
        return each
    content = path.read_bytes()
    if without_mark(content, path.suffix) == content:
        content = mark(content, path.suffix, each.provenance, credentials)
        write_file(path, content)
    file = WrittenFile(file=path.name, sha256=hashlib.sha256(content).hexdigest())
    if each.provenance.files[Part.TRANSLATION.value] == file:
        return each
    record = each.provenance.with_(files={**each.provenance.files, Part.TRANSLATION.value: file})
    write_file(each.record, record.to_json())
    return replace(each, provenance=record)
