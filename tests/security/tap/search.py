"""Looks for secrets in what a tap kept: raw bytes, streams of calls, every field; and judges the latents in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from ddib_fed.telemetry import TAKES_KEY, TRACE_KEY
from ddib_fed.v1 import calibration_pb2, decoding_pb2
from tests.protocol.surface import METADATA
from tests.security.tap.relay import Call
from tests.security.tap.secrets import Secrets, Windows
from tests.security.tap.views import parts, unwrapped

SERVICES = {
    service.full_name: service
    for module in (decoding_pb2, calibration_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}
# What gRPC itself sends and shows.
HEADERS = frozenset({"grpc-message", "grpc-accept-encoding", "accept-encoding"})
# Ours. No run over the tap has [telemetry] peers, so the keys of traces must not cross in any.
OURS = METADATA.keys() - {TRACE_KEY, TAKES_KEY}


@dataclass(frozen=True, slots=True)
class Found:
    """A secret that crossed."""

    what: str
    where: str


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes that are looked through."""

    where: str
    data: bytes
    numbers: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """A latent that crossed."""

    where: str
    shape: tuple[int, ...]
    data: bytes

    def values(self) -> np.ndarray:
        """Float32, of its shape."""
        return np.frombuffer(self.data, "<f4").reshape(self.shape)


class Traffic:
    """What a tap kept, taken apart."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = list(calls)
        self.raw = [
            Place(f"call {number} {call.path} {way}, whole", getattr(call, way).data)
            for number, call in enumerate(self.calls)
            for way in ("asked", "answered")
        ]
        self.tensors: list[Tensor] = []
        self.unknown: list[str] = []
        self.headers: list[Found] = []
        """Of names that are neither gRPC's nor ours, or longer than the list of metadata says."""
        self.payload = {"asked": 0, "answered": 0}
        """Bytes of chunks: of latents on the way out, of files and latents on the way back."""
        self.places = list(self._places())

    def _places(self) -> Iterator[Place]:
        yield from self.raw
        for number, call in enumerate(self.calls):
            for way in ("asked", "answered"):
                where = f"call {number} {call.path} {way}"
                for name, value in getattr(call, way).headers:
                    if name not in HEADERS and (name not in OURS or len(value) > METADATA[name].most):
                        self.headers.append(Found(f"a header {name} of {len(value)} bytes", where))
                    yield Place(f"{where}, header {name}", value)
                yield from self._messages(call, way, where)

    def _messages(self, call: Call, way: str, where: str) -> Iterator[Place]:
        kind = _message_kind(call.path, way)
        texts: dict[str, bytearray] = {}
        chunks = bytearray()
        header: Message | None = None
        for data in getattr(call, way).messages if kind else ():
            try:
                message = kind.FromString(data)  # type: ignore[union-attr]
            except DecodeError:
                yield Place(f"{where}, unreadable message", data)
                continue
            if has_unknown_fields(message):
                self.unknown.append(where)
            which = message.WhichOneof("message") if "message" in message.DESCRIPTOR.oneofs_by_name else None
            if which is not None:  # the one before it is whole
                self._tensor(where, header, bytes(chunks))
                yield Place(f"{where}, data", bytes(chunks), numbers=True)
                chunks = bytearray()
                header = getattr(message, which)
            if "data" in message.DESCRIPTOR.fields_by_name:
                chunks += message.data
                self.payload[way] += len(message.data)
            for name, value in _leaves(message):
                texts.setdefault(name, bytearray()).extend(value)
        self._tensor(where, header, bytes(chunks))
        yield Place(f"{where}, data", bytes(chunks), numbers=True)
        for name, value in texts.items():
            if not name.endswith(".data"):
                yield Place(f"{where}, field {name}", bytes(value), numbers=True)

    def _tensor(self, where: str, header: Message | None, data: bytes) -> None:
        if isinstance(header, decoding_pb2.LatentHeader):
            tensor = header.tensor
            self.tensors.append(Tensor(where, tuple(tensor.shape), data))

    def look(self, secrets: Secrets) -> list[Found]:
        """The secrets that are in it, each once for each place; unknown fields and headers count as one."""
        fields = [Found("an unknown field", where) for where in self.unknown]
        return [*fields, *self.headers, *look(self.places, secrets)]


def look(places: Iterable[Place], secrets: Secrets) -> list[Found]:
    """The secrets that are somewhere, each once for each place."""
    found: dict[Found, None] = {}
    for place in places:
        for how, data in _views(place):
            where = f"{place.where} ({how})" if how else place.where
            lowered = data.lower()
            hits = [name for name, word in secrets.words.items() if word in lowered]
            for windows in (secrets.long, secrets.short):
                hits += _windows_in(data, windows)
            found |= {Found(hit, where): None for hit in hits}
    return list(found)


def _views(place: Place) -> Iterator[tuple[str, bytes]]:
    """Everything that is looked through in one place."""
    for how, data in unwrapped(place.data):
        yield how, data
        if place.numbers and (not how or how.endswith("png")):
            for part, inner in parts(data):
                yield from unwrapped(inner, f"{how} {part}".strip(), 1)


def _message_kind(path: str, way: str) -> type[Message] | None:
    service, _, method = path.strip("/").partition("/")
    if service not in SERVICES:
        return None
    described = SERVICES[service].methods_by_name[method]
    return GetMessageClass(described.input_type if way == "asked" else described.output_type)


def has_unknown_fields(message: Message) -> bool:
    inner = (value for field, value in message.ListFields() if field.message_type is not None)
    messages = (each for value in inner for each in ([value] if isinstance(value, Message) else value))
    return len(UnknownFieldSet(message)) > 0 or any(
        has_unknown_fields(each) for each in messages if isinstance(each, Message)
    )


def _leaves(message: Message) -> Iterator[tuple[str, bytes]]:
    """Each field that is no message, with its bytes; numbers as they lie in memory, little-endian."""
    for field, value in message.ListFields():
        name = f"{message.DESCRIPTOR.name}.{field.name}"
        entries = value if field.is_repeated and not hasattr(value, "keys") else [value]
        for each in entries:
            if isinstance(each, Message):
                yield from _leaves(each)
            elif hasattr(each, "keys"):
                yield name, repr(dict(each)).encode()
            else:
                yield name, _bytes_of(field, each)


def _bytes_of(field: FieldDescriptor, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, float):
        return np.float64(value).tobytes()
    return int(value).to_bytes(8, "little")  # type: ignore[call-overload]


def _windows_in(data: bytes, windows: Windows) -> list[str]:
    """Names of the chunks of windows of which one is in the data, at any byte."""
    if len(data) < windows.length or not windows.rows:
        return []
    keys, owners, rows = windows.index
    raw = np.frombuffer(data, np.uint8)
    here = np.lib.stride_tricks.sliding_window_view(raw, 8)[: len(raw) - windows.length + 1]
    heads = np.ascontiguousarray(here).view("<u8").ravel()
    places = np.searchsorted(keys, heads)
    places[places == len(keys)] = 0
    hits: set[int] = set()
    for at in np.flatnonzero(keys[places] == heads):
        window = data[at : at + windows.length]
        place = int(places[at])
        while place < len(keys) and keys[place] == heads[at]:
            if rows[place].tobytes() == window:
                hits.add(int(owners[place]))
            place += 1
    return sorted({windows.names[owner] for owner in hits})


MOST_SHARED = 0.01
"""Of the numbers of a latent; those of an honest one are float32 and meet the picture's by accident alone."""
SAME = 1e-4
"""Of a number of a latent that is computed again in another process and another batch: 2e-5 at most here."""


def judged(
    traffic: Traffic, pictures: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> list[Found]:
    """What a search for bytes cannot find: latents of which no picture is known, or that have numbers of a picture."""
    found = []
    for tensor in traffic.tensors:
        values = tensor.values()
        for name, picture in pictures.items():
            shared = np.isin(values.reshape(-1), picture.astype(np.float32).reshape(-1)).mean()
            if shared > MOST_SHARED:
                found.append(Found(f"{shared:.0%} of the numbers of {name}", tensor.where))
        known = any(
            values.shape == other.shape and float(np.abs(values - other).max()) < SAME
            for other in expected.values()
        )
        if tensor.where.endswith("asked") and not known:
            found.append(Found("a latent that no picture has", tensor.where))
    return found
