"""Assembles the messages of FetchResults into `Result`s and checks sizes and digests.

An item is returned complete, with every part of its job and its provenance, or not at all.
No sockets: the caller brings the messages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from ddib_fed.bridge.records.translation_record import Part, Translation
from ddib_fed.client.views import MEDIA, PARTS, Result, ResultFile
from ddib_fed.errors import ChunkCorrupt, MessageInvalid
from ddib_fed.rpc.provenance import provenance_record
from ddib_fed.v1 import translation_pb2
from ddib_fed.wire.streams import Announced, Whole, assemble, open_file

MAX_PART_BYTES = 1 << 30


class Collector:
    """Gathers the parts of one item after the other."""

    def __init__(
        self, job_id: str, wanted: Collection[int], parts: frozenset[Part], max_bytes: int = MAX_PART_BYTES
    ) -> None:
        self._job_id = job_id
        self._due = set(wanted)
        self._parts = parts
        self._max_bytes = max_bytes
        self._item: int | None = None
        self._files: dict[Part, ResultFile] = {}
        self._provenance: Translation | None = None

    def results(self, messages: Iterable[translation_pb2.FetchResultsResponse]) -> Iterator[Result]:
        """Each result as soon as its last part is complete."""
        for whole in assemble(messages, {"result": self._open}):
            self._take(whole)
            if self._parts <= self._files.keys():
                yield self._result()
        if self._item is not None:
            missing = ", ".join(sorted(self._parts - self._files.keys()))
            raise ChunkCorrupt(f"item {self._item} came without its {missing}")

    def _open(self, header: translation_pb2.ResultHeader) -> Announced:
        """Check a header against the request and the parts received."""
        part = PARTS.get(header.part)
        if header.item not in self._due or self._item not in {None, header.item}:
            raise MessageInvalid(f"a part of item {header.item} is not expected here")
        if part is None or part not in self._parts or part in self._files:
            raise MessageInvalid(f"{part or header.part} of item {header.item} is not expected here")
        if self._item is None:
            self._begin(header)
        return open_file(header.file, max_bytes=self._max_bytes, accepted=MEDIA)

    def _begin(self, header: translation_pb2.ResultHeader) -> None:
        if not header.HasField("provenance"):
            raise MessageInvalid(f"item {header.item} came without provenance")
        if header.provenance.job_id != self._job_id:
            raise MessageInvalid(f"item {header.item} says that it is of another job")
        self._item, self._provenance = header.item, provenance_record(header.provenance)

    def _take(self, whole: Whole) -> None:
        header: translation_pb2.ResultHeader = whole.header
        media = MEDIA[header.file.media_type]
        self._files[PARTS[header.part]] = ResultFile(media, bytes(whole.data), header.file.sha256)

    def _result(self) -> Result:
        assert self._item is not None
        assert self._provenance is not None
        result = Result(self._item, dict(self._files), self._provenance)
        self._due.discard(self._item)
        self._item, self._files, self._provenance = None, {}, None
        return result
