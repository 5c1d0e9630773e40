"""What a reader of a format needs beside `ddib_fed.Reader`: pixels, rules of intensity, limits of memory, studies.

A reader makes a `Study` of a file: its `pixels` are `Slices` of a volume, `Volumes` on the grid of a model, or `Tiles`
of a picture, in numbers that `chosen_rule` makes of the file's values; its `assemble` makes files of `StudyResults`,
which hold a `ddib_fed.Record` of each item. Before it decodes a file it asks `ImageLimits.check_memory`.

>>> import numpy as np
>>> from ddib_fed.studies import Options, Slices, chosen_rule
>>> values = np.zeros((3, 8, 8, 1), np.float32)  # slices, rows, columns, channels
>>> values[1, 2:6, 2:6] = 1000.0
>>> slices = Slices.of(values, chosen_rule(Options(intensity="window:500,1000"), values))
>>> slices.sent, int(slices.numbers.max()), slices.rule  # slices of background alone are not sent
((1,), 255, 'window:500,1000@0:255')
"""

from ddib_fed.client.parts import WrittenStudy
from ddib_fed.data.pictures import (
    ImageLimits,
    Pixels,
    decode_pillow,
    faults,
    faults_as_unreadable,
    read_content,
)
from ddib_fed.data.study import (
    PERCENTILES,
    Assembled,
    Options,
    Origin,
    Planes,
    Study,
    StudyResults,
    Unread,
    chosen_rule,
    memory_of_values,
    parts_of,
    safe_name,
)
from ddib_fed.data.tiles import Mask, PictureStudy, TiledStudy, Tiles
from ddib_fed.data.volumes import (
    PLANES,
    Slices,
    VolumeGeometry,
    Volumes,
    VolumeStudy,
    orientation_of,
    sliced,
    spacing_of,
    unsliced,
)
from ddib_fed.recognition import COPY, FoundStudies, beginning_of

__all__ = [
    "COPY", "PERCENTILES", "PLANES", "Assembled", "FoundStudies", "ImageLimits", "Mask", "Options", "Origin",
    "PictureStudy", "Pixels", "Planes", "Slices", "Study", "StudyResults", "TiledStudy", "Tiles", "Unread",
    "VolumeGeometry", "VolumeStudy", "Volumes", "WrittenStudy", "beginning_of", "chosen_rule", "decode_pillow",
    "faults", "faults_as_unreadable", "memory_of_values", "orientation_of", "parts_of", "read_content", "safe_name",
    "sliced", "spacing_of", "unsliced",
]  # fmt: skip
