"""What must not cross, in every form that a search looks for, as windows of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

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
    halves = (
        torch.from_numpy(np.ascontiguousarray(values, np.float32))
        .to(torch.bfloat16)
        .view(torch.int16)
        .numpy()
    )
    for order in "<>":
        yield f"{order}bfloat16", halves.astype(f"{order}i2").tobytes(), 2
