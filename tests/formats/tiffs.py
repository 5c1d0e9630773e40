"""TIFFs of tags alone: what tells a map from any other TIFF, without a package that writes maps."""

import struct
from collections.abc import Mapping


def tiff(*pages: Mapping[int, int], order: str = "<", big: bool = False, loops: bool = False) -> bytes:
    """Pages with these tags: the number of doubles of each by its tag, all of them 0, behind the pages."""
    count, entry, place = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    opening = struct.pack(f"{order}2sHHHQ", *_mark(order), 43, 8, 0, 16) if big else b""
    opening = opening or struct.pack(f"{order}2sHI", *_mark(order), 42, 8)
    sizes = [
        struct.calcsize(order + count + place) + len(page) * struct.calcsize(order + entry) for page in pages
    ]
    starts = [len(opening) + sum(sizes[:at]) for at in range(len(pages) + 1)]
    made = opening
    for at, page in enumerate(pages):
        following = starts[at + 1] if at + 1 < len(pages) else starts[0] if loops else 0
        made += struct.pack(order + count, len(page))
        for tag, number in sorted(page.items()):
            made += struct.pack(order + entry, tag, 12, number, starts[-1])
        made += struct.pack(order + place, following)
    return made + bytes(8 * max((number for page in pages for number in page.values()), default=0))


def _mark(order: str) -> tuple[bytes]:
    return (b"II" if order == "<" else b"MM",)
