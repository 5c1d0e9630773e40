"""What must not cross, as windows of bytes; looks for it in what a tap kept, unwrapped in every way; judges latents."""

import base64
import binascii
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from PIL import Image
from safetensors.numpy import load_file

from ddib_fed.engine.gate import load_key
from ddib_fed.security import pki
from ddib_fed.telemetry import TAKES_KEY, TRACE_KEY
from ddib_fed.testing import NodeProcess
from ddib_fed.v1 import calibration_pb2, decoding_pb2
from tests.protocol.surface import METADATA
from tests.security.tap.relay import Call

# What must not cross

WINDOW = 16
"""Bytes of a window: no accident has them twice."""
HEAD, TAIL = 128, 16
"""Bytes of a file that are left out: sizes, tables and end marks are the same in every small file of a format."""
KEY_WINDOW = 8
"""Of keys and noise, whose bytes are random."""


@dataclass
class Windows:
    """Windows of one length, with what they are of."""

    length: int
    rows: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, name: str, data: bytes, step: int = 1) -> None:
        """The windows of some bytes, one every `step`; those of few different bytes are left out."""
        raw = np.frombuffer(data, np.uint8)
        if len(raw) < self.length:
            return
        windows = np.lib.stride_tricks.sliding_window_view(raw, self.length)[::step]
        ordered = np.sort(windows, axis=1)
        different = 1 + (np.diff(ordered, axis=1) != 0).sum(1)
        kept = windows[different >= min(7, self.length)]
        if len(kept):
            self.rows.append(np.ascontiguousarray(kept))
            self.names.append(name)

    @cached_property
    def index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First 8 bytes of each window as a number, sorted; the number of its chunk; the window. Complete by now."""
        rows = np.concatenate(self.rows)
        owners = np.repeat(np.arange(len(self.rows)), [len(chunk) for chunk in self.rows])
        keys = np.ascontiguousarray(rows[:, :8]).view("<u8").ravel()
        order = np.argsort(keys, kind="stable")
        return keys[order], owners[order], rows[order]


@dataclass
class Secrets:
    """Everything that is looked for."""

    long: Windows = field(default_factory=lambda: Windows(WINDOW))
    short: Windows = field(default_factory=lambda: Windows(KEY_WINDOW))
    words: dict[str, bytes] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def numbers(self, name: str, values: np.ndarray) -> None:
        """An array of numbers in every type and byte order, row by row and column by column."""
        for order, laid in (("", values), (" transposed", np.ascontiguousarray(values.T))):
            for form, data, step in _forms(laid):
                self.long.add(f"{name} as {form}{order}", data, step)

    def sample(self, name: str, raw: np.ndarray, units: np.ndarray) -> None:
        """A picture or a cloud of points."""
        self.numbers(f"{name}, raw", raw)
        self.numbers(f"{name}, in the model's units", units)
        self.numbers(f"{name}, negated", -units)
        self.arrays[name] = units.astype(np.float32)

    def file(self, name: str, content: bytes) -> None:
        """A file's own bytes, without the head and the end that every file of its format has."""
        self.long.add(name, content[HEAD:-TAIL])

    def weights(self, name: str, path: Path) -> None:
        """Every tensor of a safetensors file, in the types that weights are kept in; a window every 16 bytes."""
        for values in load_file(path).values():
            for form, data, _ in _forms(values.astype(np.float32).reshape(-1)):
                self.long.add(f"weights of {name} as {form}", data, WINDOW)

    def key(self, name: str, secret: bytes) -> None:
        """Random bytes: a key, a seed."""
        self.short.add(name, secret)

    def node(self, node: NodeProcess) -> None:
        """The weights of a node's model, its private keys as they lie on the disk and as numbers, its softening key."""
        owner, paths = node.institution, node.config.paths
        self.weights(owner, paths.bundle / "model.safetensors")
        for path in sorted(paths.pki.glob("*.key")):
            pem = path.read_bytes()
            # The private value in PKCS #8; what follows it is the public key, which every certificate has.
            self.long.add(f"{owner} {path.name}", b"".join(pem.splitlines()[1:-1])[48:88])
            for key in pki.load_keys(pem, path):
                number = key.private_numbers().private_value
                for order in ("big", "little"):
                    self.key(f"{owner} {path.name}", number.to_bytes(32, order))
        if paths.softening_key.exists():
            self.key(f"{owner} softening key", load_key(paths.softening_key))

    def size(self) -> tuple[int, int]:
        """Windows, and windows and words."""
        windows = sum(len(rows) for kind in (self.long, self.short) for rows in kind.rows)
        return windows, windows + len(self.words)

    def word(self, name: str, text: str) -> None:
        """A name or a text."""
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            self.words[f"{name} in {encoding}"] = text.lower().encode(encoding)


def _forms(values: np.ndarray) -> Iterator[tuple[str, bytes, int]]:
    """Names, bytes and size of a number."""
    whole = np.issubdtype(values.dtype, np.integer) or bool(np.all(values == np.rint(values)))
    if whole and values.size and values.min() >= 0 and values.max() < 256:
        yield "uint8", values.astype(np.uint8).tobytes(), 1
    if whole and values.size and values.min() >= 0 and values.max() < 65536:
        for order in "<>":
            yield f"{order}uint16", values.astype(f"{order}u2").tobytes(), 2
    with np.errstate(over="ignore"):
        for bits in (16, 32, 64):
            for order in "<>":
                yield f"{order}float{bits}", values.astype(f"{order}f{bits // 8}").tobytes(), bits // 8
    halves = torch.from_numpy(np.ascontiguousarray(values, np.float32)).bfloat16().view(torch.int16).numpy()
    for order in "<>":
        yield f"{order}bfloat16", halves.astype(f"{order}i2").tobytes(), 2


# Bytes that hold other bytes

DEPTH = 3
LEAST = 16
"""Shorter results hold no window that is looked for."""
MOST_INFLATED = 64 << 20
_HEX = re.compile(rb"[0-9a-fA-F]{32,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{22,}={0,2}")
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")
_PNG = b"\x89PNG\r\n\x1a\n"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def unwrapped(data: bytes, how: str = "", depth: int = DEPTH) -> Iterator[tuple[str, bytes]]:
    """The bytes, and what text encodings, compression and pictures in them hold; how each was reached."""
    yield how, data
    if depth == 0:
        return
    for name, found in _opened(data):
        if len(found) >= LEAST:
            yield from unwrapped(found, f"{how} {name}".strip(), depth - 1)


def _opened(data: bytes) -> Iterator[tuple[str, bytes]]:
    for run in _HEX.findall(data):
        for start in (0, 1):
            text = run[start:]
            yield "hex", binascii.unhexlify(text[: len(text) // 2 * 2])
    for run in _BASE64.findall(data):
        for start in range(4):
            text = run[start:].rstrip(b"=").translate(_TO_STANDARD)
            yield "base64", base64.b64decode(text[: len(text) // 4 * 4] + _tail(text))
    for match in _ZLIB.finditer(data):
        if inflated := _inflate(data[match.start() :], 47):
            yield "inflated", inflated
    if inflated := _inflate(data, -15):
        yield "inflated", inflated
    at = data.find(_PNG)
    while at >= 0:
        if pixels := _pixels(data[at:]):
            yield "png", pixels
        at = data.find(_PNG, at + 1)


def _tail(text: bytes) -> bytes:
    """The last, incomplete group of four, filled up."""
    rest = text[len(text) // 4 * 4 :]
    return rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""


def _inflate(data: bytes, window: int) -> bytes:
    """What inflates from the beginning; a stream that is damaged or cut off gives what came before that."""
    stream, found = zlib.decompressobj(window), bytearray()
    for at in range(0, len(data), 4096):
        try:
            found += stream.decompress(data[at : at + 4096], MOST_INFLATED)
        except zlib.error:
            # What the last piece held before its damage is found byte by byte in no reasonable time.
            break
        if stream.eof or len(found) >= MOST_INFLATED:
            break
    return bytes(found)


def _pixels(png: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(png)) as picture:
            return np.asarray(picture).tobytes()
    except (OSError, ValueError, SyntaxError):
        return b""


def parts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What could be hidden in words of numbers: the bytes at one place of each word."""
    raw = np.frombuffer(data, np.uint8)
    for width in (2, 4, 8):
        words = raw[: len(raw) // width * width].reshape(-1, width)
        for lane in range(width if len(words) >= 4 else 0):
            yield f"byte {lane} of {width}", words[:, lane].tobytes()


# The search

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
    """A latent that crossed, float32."""

    where: str
    values: np.ndarray


class Traffic:
    """What a tap kept, taken apart."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = list(calls)
        self.tensors: list[Tensor] = []
        self.alien: list[Found] = []
        """Unknown fields, and headers that are neither gRPC's nor ours, or longer than the list of metadata says."""
        self.payload = {"asked": 0, "answered": 0}
        """Bytes of chunks: of latents on the way out, of files and latents on the way back."""
        self.places = list(self._places())

    def _places(self) -> Iterator[Place]:
        for number, call in enumerate(self.calls):
            for way in ("asked", "answered"):
                where = f"call {number} {call.path} {way}"
                yield Place(f"{where}, whole", getattr(call, way).data)
                for name, value in getattr(call, way).headers:
                    if name not in HEADERS and (name not in OURS or len(value) > METADATA[name].most):
                        self.alien.append(Found(f"a header {name} of {len(value)} bytes", where))
                    yield Place(f"{where}, header {name}", value)
                yield from self._messages(call, way, where)

    def _messages(self, call: Call, way: str, where: str) -> Iterator[Place]:
        service, _, method = call.path.strip("/").partition("/")
        kind = None
        if service in SERVICES:
            described = SERVICES[service].methods_by_name[method]
            kind = GetMessageClass(described.input_type if way == "asked" else described.output_type)
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
                self.alien.append(Found("an unknown field", where))
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
            self.tensors.append(Tensor(where, np.frombuffer(data, "<f4").reshape(header.tensor.shape)))

    def look(self, secrets: Secrets) -> list[Found]:
        """The secrets that are in it, each once for each place; unknown fields and headers count as one."""
        return [*self.alien, *look(self.places, secrets)]


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


def has_unknown_fields(message: Message) -> bool:
    inner = (value for field, value in message.ListFields() if field.message_type is not None)
    messages = (each for value in inner for each in ([value] if isinstance(value, Message) else value))
    return len(UnknownFieldSet(message)) > 0 or any(
        has_unknown_fields(each) for each in messages if isinstance(each, Message)
    )


def _leaves(message: Message) -> Iterator[tuple[str, bytes]]:
    """Each field that is no message, with its bytes; numbers as they lie in memory, little-endian."""
    for described, value in message.ListFields():
        name = f"{message.DESCRIPTOR.name}.{described.name}"
        if hasattr(value, "keys"):  # a map
            yield name, repr(dict(value)).encode()
            continue
        for each in value if described.is_repeated else [value]:
            if isinstance(each, Message):
                yield from _leaves(each)
            elif isinstance(each, str | bytes):
                yield name, each.encode() if isinstance(each, str) else each
            else:
                yield (
                    name,
                    np.float64(each).tobytes() if isinstance(each, float) else each.to_bytes(8, "little"),
                )


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
        values = tensor.values
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
