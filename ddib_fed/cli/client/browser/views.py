"""Pictures that the page shows of slices and maps: 8 bits, in one window for the whole volume.

They lie in the private folder of the page, because the parts of a volume are removed when its output is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ddib_fed.bridge.records.translation_record import Part, PictureFigures
from ddib_fed.cli.client.delivery import Delivered, Input
from ddib_fed.errors import ImageUnreadable
from ddib_fed.formats.geotiff import GeoTiffStudy, read_geotiff
from ddib_fed.formats.parts import WrittenStudy
from ddib_fed.formats.pictures import PictureStudy, read_picture
from ddib_fed.formats.study import Options, Study
from ddib_fed.samples.formats.decoded import Pixels
from ddib_fed.samples.images import encode_png, read_image
from ddib_fed.web.backend import Result
from ddib_fed.web.previews import Window, own_window, preview, shown

LOOKED_AT: Final = 12
"""Slices of which the window of a volume is taken."""
MAP_SIDE: Final = 2048
"""Pixels of the longer side of a map on the page at most."""


def tiled_map(study: Study) -> GeoTiffStudy | PictureStudy | None:
    return study if isinstance(study, GeoTiffStudy | PictureStudy) and study.planes > 1 else None


@dataclass(frozen=True, slots=True)
class SliceViews:
    """Makes what the page shows of the items of a study."""

    number: int
    label: str
    plane_word: str
    items: Mapping[str, Path]
    folder: Path
    window: Window

    @classmethod
    def of(cls, number: int, label: str, plane_word: str, paths: Sequence[Path], folder: Path) -> SliceViews:
        """For the items at some paths."""
        return cls(
            number, label, plane_word, {path.stem: path for path in paths}, folder, source_window(paths)
        )

    def called(self, name: str) -> str:
        return f"{self.label}, {self.plane_word} {int(Path(name).stem)}" if self.plane_word else self.label

    def result(self, given: Input, result: Delivered) -> Result:
        """What is shown of a result."""
        found = {Part.SOURCE: preview(self.items[given.name], self.window)[0]}
        figures = result.provenance.picture
        windows = {Part.TRANSLATION: target_window(figures), Part.RETURNED: None}
        for part, window in windows.items():
            if part in result.files:
                found[part] = preview(result.files[part], window)[0]
        files = _written(self.folder / str(self.number) / given.name, found)
        return Result(
            self.called(given.name),
            files,
            result.provenance,
            study=self.number,
            plane=int(given.name),
        )


def source_window(paths: Sequence[Path]) -> Window:
    step = max(1, len(paths) // LOOKED_AT)
    return own_window(np.concatenate([read_image(path).pixels.reshape(-1) for path in paths[::step]]))


def target_window(figures: PictureFigures | None) -> Window | None:
    """The numbers of a translation's file that are the ends of the target's range; None where they are not known."""
    if figures is None or figures.low is None or figures.high is None:
        return None
    slope, intercept = figures.output_scale
    return (figures.low - intercept) / slope, (figures.high - intercept) / slope


def map_result(
    number: int, label: str, study: GeoTiffStudy | PictureStudy, written: WrittenStudy, folder: Path
) -> Result | None:
    """What is shown of a map that was put together; None where all of it is of one colour."""
    try:
        read = read_geotiff if isinstance(study, GeoTiffStudy) else read_picture
        made = read(written.shown, Options(intensity="values")).tiles.numbers
    except ImageUnreadable:
        return None
    reduced = {Part.SOURCE: _reduced(study.tiles.numbers), Part.TRANSLATION: _reduced(made)}
    contents = {part: encode_png(shown(each, own_window(each))) for part, each in reduced.items()}
    files = _written(folder / str(number) / "map", contents)
    return Result(label, files, written.provenance, study=number, plane=1)


def _reduced(pixels: Pixels) -> Pixels:
    step = -(-max(pixels.shape[:2]) // MAP_SIDE)
    return pixels[::step, ::step]


def _written(start: Path, contents: Mapping[Part, bytes]) -> dict[Part, Path]:
    start.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {part: start.with_name(f"{start.name}.{part.value}.png") for part in contents}
    for part, path in files.items():
        path.write_bytes(contents[part])
    return files
