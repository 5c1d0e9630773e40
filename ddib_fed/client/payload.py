"""The messages of SubmitJob from files and bytes; files are read again for every try.

File names stay here: an item is a number, a media type, a size and a digest. So do headers of DICOM, NIfTI and
georeferenced TIFFs, whichever way they came: `payload` is the only way to an item, and refuses them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from opentelemetry.trace import Span

from ddib_fed.client.views import Media
from ddib_fed.errors import (
    DdibError,
    FileMissing,
    ImageUnreadable,
    InputError,
    PointsUnreadable,
    UsageError,
)
from ddib_fed.formats.recognition import (
    DICOM_SUFFIX,
    OPENINGS,
    TAKEN,
    Format,
    beginning,
    beginning_of,
    format_of,
    format_of_content,
)
from ddib_fed.protocol import details
from ddib_fed.protocol.streams import stream
from ddib_fed.telemetry import trace_entries
from ddib_fed.v1 import common_pb2, translation_pb2
from ddib_fed.v1.translation_pb2_grpc import TranslationServiceStub

MAX_ITEM_BYTES = 1 << 30
"""The client's limit on one item; the node's own limit is usually lower, and in its refusal."""

ANSWER_S = 30.0
SLOWEST_BYTES_PER_S = 128 * 1024
"""A submission may take as long as its bytes take on a slow line, and the node its time to answer."""

_BYTES = "an item"
"""What bytes without a file are called."""
_NPY = "numpy.save writes such a file: points (N, D), or one picture (H, W) or (H, W, C)"


@dataclass(frozen=True, slots=True)
class Payload:
    media: Media
    size_bytes: int
    sha256: bytes
    origin: Path | bytes

    def read(self) -> bytes:
        """The bytes, unchanged since the first read."""
        data = self.origin if isinstance(self.origin, bytes) else self.origin.read_bytes()
        if len(data) != self.size_bytes or hashlib.sha256(data).digest() != self.sha256:
            raise InputError(
                f"{self.origin!s} changed while it was being sent", hint="the same command again"
            )
        return data

    def header(self) -> common_pb2.FileHeader:
        return common_pb2.FileHeader(
            media_type=f"MEDIA_TYPE_{self.media.name}", size_bytes=self.size_bytes, sha256=self.sha256
        )


def payload(origin: str | Path | bytes) -> Payload:
    """Read one item and determine its type."""
    if isinstance(origin, bytes):
        media = next((m for m in Media if origin.startswith(OPENINGS[m.value])), Media.NPY)
        return _checked(media, origin, origin)
    origin = Path(origin)
    _require_file(origin)
    suffix = origin.suffix.lower()
    if kind := format_of(origin):
        raise _kept_here(str(origin), kind)
    if suffix not in TAKEN:
        what, how = beginning_of(origin)
        why = f"has no suffix that says what it is; known are {', '.join(sorted(TAKEN))}"
        if suffix == DICOM_SUFFIX:
            why = "does not begin as a DICOM file does"
        raise InputError(f"{origin} {why}: it {what}", hop="client", hint=how)
    return _checked(Media(TAKEN[suffix]), origin, origin.read_bytes())


def payloads(origins: Iterable[str | Path | bytes | Payload]) -> list[Payload]:
    """Read each item of a job, in order."""
    items = []
    for number, origin in enumerate(origins):
        try:
            items.append(origin if isinstance(origin, Payload) else payload(origin))
        except DdibError as error:
            error.facts["item"] = str(number)
            raise
    return items


def _require_file(path: Path) -> None:
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise InputError(f"{path} cannot be read", hop="client", hint=f"ls -ld {shlex.quote(str(path))}")
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, files are expected", hop="client", hint=f"{path}/*.png or {path}/*.npy"
        )
    if not path.exists():
        raise FileMissing(f"there is no {path}", hop="client")
    size = path.stat().st_size
    if size > MAX_ITEM_BYTES:
        raise InputError(f"{path} has {size} bytes; at most {MAX_ITEM_BYTES} go into one item", hop="client")


def _checked(media: Media, origin: Path | bytes, data: bytes) -> Payload:
    name = _BYTES if isinstance(origin, bytes) else str(origin)
    if not data.startswith(OPENINGS[media.value]):
        what, how = beginning(data, Path("FILE") if isinstance(origin, bytes) else origin)
        unreadable = PointsUnreadable if media is Media.NPY else ImageUnreadable
        raise unreadable(
            f"{name} does not begin as a {media} file does: it {what}",
            hop="client",
            hint=_NPY if media is Media.NPY else how,
        )
    if kind := format_of_content(data):
        raise _kept_here(name, kind)
    return Payload(media, len(data), hashlib.sha256(data).digest(), origin)


def _kept_here(name: str, kind: Format) -> InputError:
    """The error about a file of which pixels alone may leave."""
    file = "FILE" if name == _BYTES else shlex.quote(name)
    return InputError(
        f"{name} is a {kind}: its header stays on this machine, and it is not sent as it is",
        hop="client",
        hint=f"ddib translate {file} --to INSTITUTION/DOMAIN --out DIR   (sends pixels alone)",
        facts={"format": kind.name},
    )


def refused_items(error: DdibError) -> dict[int, str]:
    """Number and reason of each item for which a node refused a job; empty where it did not refuse one for an item."""
    found = details.refused_items(error.facts)
    first = error.facts.get("item", "")
    if details.is_number(first):
        found.setdefault(int(first), error.reason)
    return found


def name_item(error: DdibError, items: Sequence[Payload]) -> None:
    """The error with the file's name, if the node named the item, and with what does not fit."""
    number = error.facts.get("item", "")
    if not (details.is_number(number) and int(number) < len(items)):
        return
    # Only for an error: it imports numpy, a third of what a client loads.
    from ddib_fed.data.points import name_file

    origin = items[int(number)].origin
    name = f"item {number}" if isinstance(origin, bytes) else str(origin)
    found = name_file(error, name)
    error.detail, error.hint = found.detail, found.hint
    error.args = (error.detail,)


def send_job(
    stub: TranslationServiceStub,
    header: translation_pb2.JobHeader,
    items: Sequence[Payload],
    trace: Span | None = None,
) -> translation_pb2.SubmitJobResponse:
    """One try of SubmitJob; an item that cannot be read ends it with its own error."""
    unread: list[Exception] = []

    def messages() -> Iterator[translation_pb2.SubmitJobRequest]:
        yield translation_pb2.SubmitJobRequest(header=header)
        try:
            for item in items:
                data = memoryview(item.read())
                yield from stream(translation_pb2.SubmitJobRequest, "item", item.header(), data)
        except (DdibError, OSError) as error:
            unread.append(error)
            raise

    timeout_s = ANSWER_S + sum(item.size_bytes for item in items) / SLOWEST_BYTES_PER_S
    try:
        return stub.SubmitJob(messages(), timeout=timeout_s, **trace_entries(trace))
    except grpc.RpcError:
        for error in unread:
            raise error from None
        raise


def split_target(target: str) -> tuple[str, str]:
    """`INSTITUTION/DOMAIN` in two."""
    institution, slash, domain = target.partition("/")
    if not slash or not institution or not domain or "/" in domain:
        raise UsageError(
            f"{target!r} is no target: INSTITUTION/DOMAIN is expected, e.g. south.example/checkerboards",
            hop="client",
            hint="ddib domains",
        )
    return institution, domain
