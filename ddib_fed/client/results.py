"""The results of a run on the disk: written, found again, and their names kept, which never leave this machine.

A result is acknowledged only when its files and their folder are on the disk. An existing result is overwritten only
on request, and an input never.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed import errors
from ddib_fed.client.files import FileItem
from ddib_fed.files import has_sha256, is_disk_full, make_private_folders, write_file
from ddib_fed.record import CALIBRATION_FILE, Part, Record, WrittenFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from ddib_fed.data.previews import Window

STATE_PREFIX = ".ddib-job-"
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}")
"""How `files.write_file` calls a file that it has not yet renamed."""
_OURS = re.compile(rf"{re.escape(STATE_PREFIX)}.*|{re.escape(CALIBRATION_FILE)}|report(-\d+)?\.html")


@dataclass(frozen=True, slots=True)
class ResultFile:
    suffix: str
    data: bytes
    sha256: bytes


@dataclass(frozen=True, eq=False)
class Translated:
    """One translated sample: its files, each verified against its announced digest, and its record.

    Attributes
    ----------
    item
        Its place among the samples.
    files
        The translation (PNG or .npy), what a cycle returned, the latent, by `Part`.
    record
        Its provenance and figures, as `ddib translate` writes them as JSON.
    """

    item: int
    files: Mapping[Part, ResultFile]
    record: Record

    @property
    def sha256(self) -> bytes:
        """The digest of the translation's file, with which `Client.acknowledge` says that it is stored."""
        return self.files[Part.TRANSLATION].sha256

    @cached_property
    def array(self) -> NDArray[Any]:
        """The translation: (H, W, C) or (D, H, W, C) numbers of its file, or points (N, D) float32."""
        return self._array(self.files[Part.TRANSLATION].data)

    @cached_property
    def returned(self) -> NDArray[Any] | None:
        """What the cycle returned, like `array`; None without a cycle."""
        file = self.files.get(Part.RETURNED)
        return None if file is None else self._array(file.data)

    @cached_property
    def latent(self) -> NDArray[np.float32] | None:
        """The latent (N, *shape), where it was asked for. It is an invertible encoding: treat it as the sample."""
        import numpy as np

        file = self.files.get(Part.LATENT)
        return None if file is None else np.load(io.BytesIO(file.data), allow_pickle=False)

    @property
    def picture(self) -> Image.Image:
        """The translation as a PIL picture; raises UsageError if it is a set of points, or a volume."""
        from PIL import Image

        if self.files[Part.TRANSLATION].suffix == ".npy":
            what = "a set of points" if self.record.picture is None else "a volume"
            raise errors.UsageError(f"the translation is {what}, not a picture", hint="use .array")
        picture = Image.open(io.BytesIO(self.files[Part.TRANSLATION].data))
        picture.load()
        return picture

    def save(self, folder: str | Path, name: str) -> Path:
        """Write NAME.png or NAME.npy with its other files and NAME.json, as `ddib translate` does.

        A missing folder is made, with mode 700. Return the file of the translation; raise AlreadyExists if a file is
        there.
        """
        item, out = FileItem(name, name), Path(folder)
        check_free([item], (), out, force=False)
        return write_result(self, item, out).files[Part.TRANSLATION]

    def __repr__(self) -> str:
        record, picture = self.record, self.record.picture
        parts = [f"{len(self.array)} points"]
        if picture is not None:
            sides = [side for side in (picture.depth, picture.height, picture.width) if side]
            parts = [f"{' x '.join(map(str, sides))} {'volume' if picture.depth else 'picture'}"]
        if picture is not None and picture.lost:
            parts.append(picture.lost)
        if picture is not None and picture.cycle_psnr is not None:
            alone = picture.autoencoder_psnr
            of = "" if alone is None else f" (the autoencoder alone {alone:.1f} dB)"
            parts.append(f"round trip {picture.cycle_psnr:.1f} dB{of}")
        if record.cycle is not None:
            parts.append(f"cycle error median {record.cycle.median:.1e}")
        if record.doubtful:
            parts.append(f"doubtful ({', '.join(record.doubts or ())})")
        return f"<Translated {record.source_domain} to {record.target_domain}: {', '.join(parts)}>"

    def _repr_png_(self) -> bytes | None:
        from ddib_fed.data.pictures import encode_png, middle_slices

        if self.record.picture is None:
            return None
        if self.array.ndim == 4:
            return encode_png(middle_slices(self.array))
        return self.files[Part.TRANSLATION].data

    def _array(self, content: bytes) -> NDArray[Any]:
        from ddib_fed.data.pictures import decode_image, decode_volume, image_format
        from ddib_fed.data.points import parse_npy

        if image_format(content) != "NPY":
            return decode_image(content).pixels
        if self.record.picture is not None:
            return decode_volume(content)
        return parse_npy(content, max_bytes=len(content), max_points=len(content))


@dataclass(frozen=True, slots=True)
class JobFile:
    """The hidden file `DIR/.ddib-job-REQUEST_ID.json`, from before submission until all results are here."""

    request_id: str
    items: tuple[FileItem, ...]

    def path(self, out: Path) -> Path:
        return out / f"{STATE_PREFIX}{self.request_id}.json"

    def save(self, out: Path) -> None:
        kept = [field.name for field in fields(FileItem) if field.compare]
        items = [{name: getattr(item, name) for name in kept} for item in self.items]
        values = {"format": 1, "request_id": self.request_id, "items": items}
        write_file(self.path(out), json.dumps(values, indent=1).encode(), private=True)

    def remove(self, out: Path) -> None:
        self.path(out).unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> JobFile:
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            items = tuple(FileItem(**item) for item in values["items"])
            return cls(values["request_id"], items)
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = f"remove {path}; its job is then not attached to any more, and its items get numbers"
            raise errors.ConfigError(f"{path} cannot be read", hint=hint) from error


@dataclass(frozen=True, slots=True)
class Delivered:
    """One result on the disk."""

    item: int
    """Its number in its job."""
    file: str
    """The name of its input, for reports."""
    files: Mapping[Part, Path]
    record: Path
    """The file of `provenance`."""
    provenance: Record
    source: Path | None = None
    """The input, where it is known."""

    def place(self, part: str) -> Path | None:
        """Return a file of the result, or the input as its source; None if there is none."""
        files = {Part.SOURCE: self.source, **self.files}
        return next((path for name, path in files.items() if name == part), None)

    @staticmethod
    def window_of(paths: Sequence[Path]) -> Window:
        """Return the numbers between which the middle 99 % of the values of some files lie."""
        from ddib_fed.data.previews import window_of

        return window_of(paths)

    def preview(self, part: str, window: Window | None = None) -> tuple[bytes, str]:
        """Return bytes and media type of what a browser shows of one of `files`, or of "source".

        `window` has the numbers that are shown black and white, of pictures of more than 8 bits; by default the middle
        99 % of the values.
        """
        from ddib_fed.data.previews import preview

        if (path := self.place(part)) is None:
            raise errors.ItemNotFound(f"{self.file} has no {part}")
        return preview(path, window)


def check_free(items: Sequence[FileItem], inputs: Iterable[Path], out: Path, *, force: bool) -> None:
    """Raise if writing the results of these items would overwrite a file or one of the `inputs`."""
    read = {_place_of(path) for path in inputs} - {None}
    for item in items:
        for name, is_shared in item.file_names():
            path = out / name
            if not path.exists():
                continue
            if _place_of(path) in read:
                raise errors.UsageError(
                    f"the result would replace the input {path}", hint="another --out folder"
                )
            if not (force or is_shared):
                raise errors.AlreadyExists(
                    f"{path} is there already, and is no result of this request for {item.file}",
                    hint="choose another --out folder, or add --force, which translates everything again",
                )


def _place_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def not_written(error: OSError, out: Path, kept: str) -> errors.DdibError:
    """Return the error of a file that cannot be written; `kept` says where the other results are."""
    place, full = error.filename or out, is_disk_full(error)
    first = f"df -h {shlex.quote(str(out))}" if full else f"namei -l {shlex.quote(str(place))}"
    return (errors.DiskFull if full else errors.InputError)(
        f"{place} cannot be written: {error.strerror or error}; {kept}",
        hop="client",
        hint=f"{first}, then: the same command again",
    )


def write_result(
    result: Translated,
    item: FileItem,
    out: Path,
    *,
    force: bool = False,
) -> Delivered:
    """Write the files of a result, and its record last: the one place where a result becomes files."""
    files = {part: out / item.file_name(part, file.suffix) for part, file in result.files.items()}
    record = out / f"{item.name}.json"
    if not force:
        _check_ours(record, item, result)
    # Of a run that was killed before the record the same content is there.
    for part, path in () if force else files.items():
        if path.exists() and not has_sha256(path, result.files[part].sha256.hex()):
            raise errors.AlreadyExists(
                f"{path} exists already, with other content", hint="choose another --out, or add --force"
            )
    make_private_folders(record.parent)
    written = {}
    for part, path in files.items():
        data = result.files[part].data
        write_file(path, data, private=True)
        written[part.value] = WrittenFile(file=path.name, sha256=hashlib.sha256(data).hexdigest())
    provenance = result.record.with_(input=item.file, files=written, asked_sha256=item.asked or None).judged()
    write_file(record, provenance.to_json(), private=True)
    return Delivered(result.item, item.file, files, record, provenance, item.path if item.path.name else None)


def _check_ours(record: Path, item: FileItem, result: Translated) -> None:
    """Raise unless the record's place is free, or has one of the same request for the same input."""
    if not os.path.lexists(record):
        return
    earlier = Record.read(record)
    wanted = item.asked or None, result.record.input_sha256
    if earlier is None or (earlier.asked_sha256 or None, earlier.input_sha256) != wanted:
        raise errors.AlreadyExists(
            f"{record} exists already, and is no record of this result",
            hint="choose another --out, or add --force",
        )


def finished(items: Sequence[FileItem], out: Path) -> Iterator[Delivered]:
    """Yield the results of these files that are on the disk already, numbered as in `items`."""
    for number, item in enumerate(items):
        path = out / f"{item.name}.json"
        record = Record.read(path) if item.asked and path.exists() else None
        if record is None or Part.TRANSLATION not in record.files:
            continue
        if (record.asked_sha256, record.input_sha256) != (item.asked, item.sha256):
            continue
        written = {part: record.files[part] for part in Part if part in record.files}
        files = {part: path.parent / file.file for part, file in written.items()}
        if all(has_sha256(files[part], file.sha256) for part, file in written.items()):
            yield Delivered(number, item.file, files, path, record, item.path)


def unfinished(items: Sequence[FileItem], out: Path) -> list[JobFile]:
    """Return the unfinished jobs in a folder that share an unchanged item with `items`."""
    current = set(items)
    states = (JobFile.read(path) for path in sorted(out.glob(f"{STATE_PREFIX}*.json")))
    return [job for job in states if not current.isdisjoint(job.items)]


def remove_broken(out: Path, items: Sequence[FileItem]) -> None:
    """Remove what a killed run was writing: hidden files that never got the name of a result of these files."""
    names = {Path(item.name).name for item in items}
    for folder in {(out / item.name).parent for item in items} | {out}:
        for path in folder.glob(".*") if folder.is_dir() else ():
            if not (meant := _TEMPORARY.fullmatch(path.name)) or not path.is_file():
                continue
            stem = Path(meant[1]).stem
            for part in Part:
                stem = stem.removesuffix(f".{part.value}")
            if stem in names or _OURS.fullmatch(meant[1]):
                path.unlink(missing_ok=True)


def records_of(job_id: str, out: Path) -> int:
    return sum(job_id.encode() in path.read_bytes() for path in out.rglob("*.json") if path.name[0] != ".")
