"""Results of a translation as a notebook shows them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.bridge.records.translation_record import Part, Translation, WrittenFile, file_name
from ddib_fed.errors import AlreadyExists, UsageError
from ddib_fed.files import write_file
from ddib_fed.samples.images import decode_image, image_format
from ddib_fed.samples.points import parse_npy

_SHOWN = 256
"""Pixels of the longer side of a picture in a notebook; smaller ones are enlarged by a whole factor."""


@dataclass(frozen=True, eq=False)
class Translated:
    """One translated sample.

    Attributes:
        files: Contents of its files by `Part`: the translation (PNG or .npy), the one returned by a cycle, the latent.
        record: Its provenance and figures, the same that `ddib translate` writes as JSON.
    """

    files: Mapping[str, bytes]
    record: Translation

    @cached_property
    def array(self) -> NDArray[Any]:
        """The translation: (H, W, C) numbers of its file, or points (N, D) float32."""
        return _array(self.files[Part.TRANSLATION])

    @cached_property
    def returned(self) -> NDArray[Any] | None:
        """What the cycle returned, like `array`; None without a cycle."""
        content = self.files.get(Part.RETURNED)
        return None if content is None else _array(content)

    @cached_property
    def latent(self) -> NDArray[np.float32] | None:
        """The latent (N, *shape), where it was asked for. It is an invertible encoding: treat it as the sample."""
        content = self.files.get(Part.LATENT)
        return None if content is None else np.load(io.BytesIO(content), allow_pickle=False)

    @property
    def picture(self) -> Image.Image:
        """The translation as a PIL picture.

        Raises:
            UsageError: It is a set of points.
        """
        return _picture(self.files[Part.TRANSLATION])

    @property
    def returned_picture(self) -> Image.Image | None:
        """What the cycle returned, as a PIL picture; None without a cycle."""
        content = self.files.get(Part.RETURNED)
        return None if content is None else _picture(content)

    def save(self, folder: str | Path, name: str) -> Path:
        """Write NAME.png or NAME.npy with its other files and NAME.json, as `ddib translate` does; gives the first.

        Raises:
            AlreadyExists: One of them is there.
        """
        folder = Path(folder)
        names = {part: file_name(name, part, _suffix(content)) for part, content in self.files.items()}
        for each in (*names.values(), f"{name}.json"):
            if (folder / each).exists():
                raise AlreadyExists(f"{folder / each} is there already", hint="choose another name")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = dict[str, WrittenFile]()
        for part, content in self.files.items():
            write_file(folder / names[part], content, private=True)
            written[str(part)] = WrittenFile(file=names[part], sha256=hashlib.sha256(content).hexdigest())
        write_file(folder / f"{name}.json", self.record.with_(files=written).to_json(), private=True)
        return folder / names[Part.TRANSLATION]

    def __repr__(self) -> str:
        record = self.record
        size = " x ".join(map(str, self.array.shape[: 1 if record.picture is None else 2]))
        parts = [f"{size} {'points' if record.picture is None else 'picture'}"]
        if record.picture is not None and record.picture.lost:
            parts.append(record.picture.lost)
        if record.picture is not None and record.picture.cycle_psnr is not None:
            parts.append(f"round trip {record.picture.cycle_psnr:.1f} dB")
        if record.cycle is not None:
            parts.append(f"cycle error median {record.cycle.median:.1e}")
        if record.doubtful:
            parts.append(f"doubtful ({', '.join(record.doubts or ())})")
        return f"<Translated {record.source_domain} to {record.target_domain}: {', '.join(parts)}>"

    def _repr_html_(self) -> str | None:
        if self.record.picture is None:
            return None
        shown = [self.files[part] for part in (Part.TRANSLATION, Part.RETURNED) if part in self.files]
        return " ".join(map(_html, shown)) + f"<br>{_escaped(repr(self))}"


class Translations(Sequence[Translated]):
    """Translated samples, in the order in which they were given."""

    def __init__(self, each: Sequence[Translated]) -> None:
        self._each = tuple(each)

    @overload
    def __getitem__(self, index: int) -> Translated: ...

    @overload
    def __getitem__(self, index: slice) -> Translations: ...

    def __getitem__(self, index: int | slice) -> Translated | Translations:
        return self._each[index] if isinstance(index, int) else Translations(self._each[index])

    def __len__(self) -> int:
        return len(self._each)

    def __iter__(self) -> Iterator[Translated]:
        return iter(self._each)

    @property
    def pictures(self) -> list[Image.Image]:
        """All as PIL pictures.

        Raises:
            UsageError: They are points.
        """
        return [each.picture for each in self]

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All as arrays, see `Translated.array`."""
        return [each.array for each in self]

    def __repr__(self) -> str:
        lines = [f"{len(self)} translated:", *(f"  {each!r}" for each in self[:10])]
        return "\n".join(lines + (["  ..."] if len(self) > 10 else []))

    def _repr_html_(self) -> str | None:
        shown = [each._repr_html_() for each in self[:10]]
        return None if None in shown else "".join(f"<p>{each}</p>" for each in shown)


def _suffix(content: bytes) -> str:
    return ".npy" if image_format(content) == "NPY" else ".png"


def _array(content: bytes) -> NDArray[Any]:
    if image_format(content) == "NPY":
        return parse_npy(content, max_bytes=len(content), max_points=len(content))
    return decode_image(content).pixels


def _picture(content: bytes) -> Image.Image:
    if image_format(content) == "NPY":
        raise UsageError("the translation is a set of points, not a picture", hint="use .array")
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def _html(content: bytes) -> str:
    """An <img> of a PNG; small ones enlarged without smoothing."""
    width, height = Image.open(io.BytesIO(content)).size
    factor = max(1, _SHOWN // max(width, height))
    data = base64.b64encode(content).decode()
    style = "image-rendering: pixelated"
    size = f'width="{width * factor}" height="{height * factor}"'
    return f'<img src="data:image/png;base64,{data}" {size} style="{style}">'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
