"""Binary PGM (netpbm) of 8 or 16 bits: its comments stay on this machine, and the result is a PGM."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ddib_fed import Reader, studies

HEADER = re.compile(rb"P5\s(?:\s*#[^\n]*\n)*\s*(\d+)\s+(\d+)\s+(\d+)\s")


class Pgm(Reader):
    kind = "PGM picture"
    suffixes = (".pgm",)
    uses = ("intensity", "tile")

    def recognises(self, name: str, file: BinaryIO) -> bool:
        return name.endswith(self.suffixes) or file.read(3) == b"P5\n"

    def read(self, origin: studies.Origin, options: studies.Options) -> studies.Study:
        values = decoded(origin.given)
        return PgmStudy(origin, studies.Tiles.of(values, studies.chosen_rule(options, values), options.tile))


class PgmStudy(studies.TiledStudy):
    kind = "PGM picture"

    def assemble(self, translated: studies.StudyResults) -> studies.Assembled:
        numbers, _, report = self.pixels.result(translated)
        figures, _ = self.pixels.figures(translated)
        return studies.Assembled({self.origin.outputs[0]: encoded(numbers)}, report, figures=figures)


def decoded(path: Path) -> studies.Pixels:
    """Return (H, W, 1), uint8 or uint16."""
    content, limits = studies.read_content(path, studies.ImageLimits()), studies.ImageLimits()
    with studies.faults(f"{path} cannot be read as PGM", "copy it again"):
        header = HEADER.match(content)
        width, height, most = map(int, header.groups())
        limits.check_size(height, width)
        kind = np.dtype(">u2" if most > 255 else "u1")
        limits.check_memory(height * width * kind.itemsize)
        values = np.frombuffer(content, kind, height * width, header.end())
        return values.astype(kind.newbyteorder("=")).reshape(height, width, 1)


def encoded(pixels: studies.Pixels) -> bytes:
    """Write (H, W, C); PGM is grey, so that the channels of a model in colours become their mean."""
    (height, width), kind = pixels.shape[:2], pixels.dtype
    grey = np.rint(pixels.mean(2)).astype(kind.newbyteorder(">"))
    most = 65535 if pixels.itemsize == 2 else 255
    return b"P5\n%d %d\n%d\n" % (width, height, most) + grey.tobytes()


PGM = Pgm()
