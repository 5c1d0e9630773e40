"""Converts a client's file to the model's array and a model's output to the client's file, within a budget of memory.

A picture's own size stays at the node that decoded its file. The target knows only the model's size; the source
inverts the fit on the result. No metadata survives: output files are written from pixels.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import Cancelled, DdibError, ImageTooLarge, ShapeMismatch
from ddib_fed.models.manifest import Manifest, PictureFormat
from ddib_fed.node.config import LimitsSection
from ddib_fed.samples.images import (
    Fitted,
    Geometry,
    ImageLimits,
    PictureRule,
    decode_image,
    encode_png,
    fit_picture,
    from_array,
    to_array,
)
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contracts.contract import (
    MAX_CLASS_NAMES,
    REFUSE,
    VALUE_RANGES,
    ContractSide,
    PictureTerms,
    is_class_name,
)

Array = NDArray[np.float32]
MIB = 1 << 20
SMALL: Final = 4
"""Small files share a quarter of the budget in addition to it."""
LOOK_S: Final = 0.5
"""How often a waiting file looks whether its call has ended."""

MEDIA_FORMATS = {
    common_pb2.MEDIA_TYPE_NPY: "NPY",
    common_pb2.MEDIA_TYPE_PNG: "PNG",
    common_pb2.MEDIA_TYPE_JPEG: "JPEG",
    common_pb2.MEDIA_TYPE_TIFF: "TIFF",
}


def limits_of(section: LimitsSection) -> ImageLimits:
    """The limits on a client's picture, from node.toml."""
    return ImageLimits(
        max_bytes=section.max_item_bytes, max_pixels=section.max_pixels, formats=tuple(section.formats)
    )


def terms_of(manifest: Manifest) -> PictureTerms | None:
    """The contract's description of the values in this model's files; None for points."""
    if manifest.sample_kind != "picture":
        return None
    form = manifest.picture or PictureFormat()
    return PictureTerms(form.low, form.high, form.bits)


def value_range_of(manifest: Manifest) -> str:
    usual, *others = VALUE_RANGES[manifest.sample_kind]
    return usual if manifest.normalisation.colours == "rgb" else others[0]


def rule_of(manifest: Manifest) -> PictureRule:
    """How files become pictures of this model; without it in the manifest, 8-bit files are resized."""
    channels, height, width = manifest.sample_shape
    form = manifest.picture or PictureFormat()
    return PictureRule(channels, height, width, form.fit, form.low, form.high, form.bits)


def class_names_of(manifest: Manifest) -> tuple[str, ...]:
    names = manifest.classes
    return tuple(names) if len(names) <= MAX_CLASS_NAMES and all(map(is_class_name, names)) else ()


def size_rule_of(manifest: Manifest, *, allowed: str) -> str:
    """How a node fits pictures to a model's size, as a contract names it; `allowed` is `[policy] size_rule`."""
    if manifest.sample_kind != "picture":
        return "none"
    return REFUSE if allowed == REFUSE else rule_of(manifest).fit


def read_picture(content: bytes, rule: PictureRule, limits: ImageLimits) -> Fitted:
    return fit_picture(decode_image(content, limits), rule)


def check_size(geometry: Geometry, rule: PictureRule, size_rule: str) -> None:
    """Return if a contract's size rule accepts a picture of this size; "refuse" accepts only the model's own."""
    if size_rule == REFUSE and (geometry.height, geometry.width) != (rule.height, rule.width):
        said, wanted = f"{geometry.height}x{geometry.width}", f"{rule.height}x{rule.width}"
        raise ShapeMismatch(
            f"a picture of {said} pixels where {wanted} alone is taken",
            hint="resize it to that size, or let both operators set policy.size_rule to model",
            facts={"size": said, "expected": wanted, "size_rule": REFUSE},
        )


def write_translation(samples: Array, rule: PictureRule) -> bytes:
    return encode_png(from_array(samples[0], rule))


def read_answer(content: bytes, side: ContractSide) -> Array:
    """The picture that a peer answered with, at the model's size."""
    rule = rule_of_side(side)
    limits = ImageLimits(max_bytes=len(content), max_pixels=rule.height * rule.width, formats=("PNG",))
    picture = decode_image(content, limits)
    agreed = (rule.height, rule.width, rule.channels)
    if picture.pixels.shape != agreed or picture.bits != rule.bits:
        said = f"{'x'.join(map(str, picture.pixels.shape))} of {picture.bits} bits"
        wanted = f"{'x'.join(map(str, agreed))} of {rule.bits} bits"
        raise ShapeMismatch(
            f"a picture of {said} came, {wanted} was agreed", facts={"got": said, "agreed": wanted}
        )
    array, _ = to_array(picture, _in_numbers(rule))
    return array[None]


def write_translated(samples: Array, side: ContractSide, size_rule: str, geometry: Geometry) -> bytes:
    return encode_png(from_array(samples[0], _in_numbers(rule_of_side(side, size_rule)), geometry))


def write_own(samples: Array, rule: PictureRule, geometry: Geometry) -> bytes:
    return encode_png(from_array(samples[0], rule, geometry))


def rule_of_side(side: ContractSide, size_rule: str = REFUSE) -> PictureRule:
    """The other side's rule; if sizes are refused there is nothing to invert, and any fit will do."""
    assert side.picture is not None  # a contract of pictures has it
    channels, height, width = side.sample_shape
    terms = side.picture
    fit = "resize" if size_rule == REFUSE else size_rule
    # A contract's size rule is one of the rule's own names.
    return PictureRule(channels, height, width, fit, terms.low, terms.high, terms.bits)  # type: ignore[arg-type]


def _in_numbers(rule: PictureRule) -> PictureRule:
    if rule.output_scale == (1.0, 0.0):
        return rule
    return dataclasses.replace(rule, low=0.0, high=float(rule.top))


class DecodingMemory:
    """The budget of one node for decoding and writing files, shared fairly by the clients.

    A file's need is computed from its header before it is decoded; one over the budget is refused. What does not fit
    now waits, the clients in turn, so that nobody waits behind all files of another. Small files have memory of their
    own, so that they do not wait for large ones, nor large ones for ever.
    """

    def __init__(self, total_bytes: int, of_one: int = max(1, (os.cpu_count() or 1) // 2)) -> None:
        self._total = total_bytes
        self._of_one = of_one
        self._small, self._large = _Part(total_bytes // SMALL), _Part(total_bytes)
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()

    @property
    def taken_bytes(self) -> int:
        return sum(part.total_bytes - part.free_bytes for part in (self._small, self._large))

    @property
    def waiting(self) -> int:
        with self._changed:
            return sum(len(files) for part in (self._small, self._large) for files in part.waiting.values())

    @contextmanager
    def file(
        self,
        client: str,
        size_bytes: int,
        load: Callable[[], bytes],
        cost: Callable[[bytes], int],
        *,
        ended: Callable[[], bool] = lambda: False,
        too_large: type[DdibError] = ImageTooLarge,
    ) -> Iterator[bytes]:
        """A file's content, with its memory reserved while it is used."""
        with self.work(client, size_bytes, ended=ended, too_large=too_large):
            need = size_bytes + cost(load())
        with self.work(client, need, ended=ended, too_large=too_large):
            yield load()

    @contextmanager
    def work(
        self,
        client: str,
        size_bytes: int,
        *,
        ended: Callable[[], bool] = lambda: False,
        too_large: type[DdibError] = ImageTooLarge,
    ) -> Iterator[None]:
        """Reserve memory."""
        if size_bytes > self._total:
            raise too_large(
                f"it takes {size_bytes // MIB} MiB of memory to decode, {self._total // MIB} are the limit",
                hint="make the picture smaller, or let the node's operator raise limits.decode_memory_mib",
                facts={"memory_mib": size_bytes // MIB, "limit_mib": self._total // MIB},
            )
        part = self._large if size_bytes > self._small.total_bytes else self._small
        file = _File(client, size_bytes)
        with self._changed:
            part.waiting.setdefault(client, deque()).append(file)
        try:
            with self._changed:
                self._hand_out()
                while not ended():
                    if file.has_memory:
                        break
                    self._changed.wait(LOOK_S)
                else:
                    raise Cancelled("the call has ended for which a file was to be decoded")
            yield
        finally:
            with self._changed:
                if file.has_memory:
                    part.free_bytes += size_bytes
                    self._running[client] -= 1
                    self._running += Counter()  # forgets clients that have none
                else:
                    part.take(file)
                self._hand_out()

    def _hand_out(self) -> None:
        """Memory to those whose turn it is."""
        for part in (self._small, self._large):
            while (file := self._next(part)) is not None:
                part.take(file)
                part.free_bytes -= file.size_bytes
                file.has_memory = True
                self._running[file.client] += 1
        self._changed.notify_all()

    def _next(self, part: _Part) -> _File | None:
        for client, files in part.waiting.items():
            if self._running[client] < self._of_one:
                return files[0] if files[0].size_bytes <= part.free_bytes else None
        return None


@dataclass(slots=True, eq=False)
class _File:
    client: str
    size_bytes: int
    has_memory: bool = False


class _Part:
    """A part of the budget, and the clients' files that wait for it, in the order of the clients' turns."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = self.free_bytes = total_bytes
        self.waiting: dict[str, deque[_File]] = {}

    def take(self, file: _File) -> None:
        """A file waits no longer: its client's next turn is after those of all others."""
        files = self.waiting.pop(file.client)
        files.remove(file)
        if files:
            self.waiting[file.client] = files
