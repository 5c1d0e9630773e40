"""What a hospital sends to a receiver: `benchmarks.pacs.load` says what each case is.

A case sends, and returns how many instances are to come back, and its figures.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pydicom

from benchmarks.command import Run
from benchmarks.pacs.series import brain_series, send, write_frames
from benchmarks.pacs.site import Site
from benchmarks.pacs.wires import fill, wire


def series(folder: Path, slices: int, number: int = 1) -> list[Path]:
    return brain_series(folder / str(number), pydicom.uid.generate_uid(), number, slices)


def together(site: Site, lots: list[list[Path]]) -> dict[str, Any]:
    """Send lots at once, each on an association of its own; return how many were not all taken."""
    with ThreadPoolExecutor(len(lots)) as senders:
        return {"failed_senders": sum(map(any, senders.map(lambda paths: send(site.port, paths), lots)))}


def burst(site: Site, folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    count, slices = run.pick(smoke=(2, 1), long=(100, 100))
    files = [series(folder, slices, number) for number in range(count)]
    return count * slices, together(site, [[*chain(*files[n::5])] for n in range(min(count, 5))])


def slow(site: Site, folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    apart, late = series(folder, run.pick(smoke=1, long=6)), series(folder, run.pick(smoke=1, long=3), 2)
    send(site.port, apart, pause_s=run.pick(smoke=0.1, long=7.0))
    with wire(site.port, per_second=run.pick(smoke=50_000, long=1_500)) as port:
        return len(apart) + len(late), {"late": send(port, late)}


def broken(site: Site, folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    statuses, ways = [], (False, True)[: run.pick(smoke=1, long=2)]
    for number, silent in enumerate(ways):
        paths = series(folder, run.pick(smoke=2, long=5), number)
        with wire(site.port, most=run.pick(smoke=4_000, long=15_000), silent=silent) as port:
            statuses.append(send(port, paths))
        statuses.append(send(site.port, paths))
    return len(ways) * len(paths), {"statuses": statuses}


def large(site: Site, folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    write_frames(folder / "large.dcm", *run.pick(smoke=(2, 64), long=(1024, 512)))
    return 1, {"statuses": send(site.port, folder)}


def huge(site: Site, folder: Path, _: Run) -> tuple[int, dict[str, Any]]:
    write_frames(folder / "huge.dcm", 4096)
    statuses = send(site.port, folder)
    return 5, {"statuses": statuses + send(site.port, series(folder, 5))}


def duplicates(site: Site, folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    paths = series(folder, run.pick(smoke=1, long=10))
    return len(paths), together(site, [paths] * 3)


def interleaved(site: Site, folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    both = [series(folder, run.pick(smoke=1, long=10), number) for number in (1, 2)]
    return 2 * len(both[0]), {"statuses": send(site.port, chain(*zip(*both, strict=True)))}


def full(site: Site, folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    lots = [series(folder, run.pick(smoke=1, long=60), number) for number in range(run.pick(smoke=1, long=8))]
    disk, left, refused = site.folder / "disk" / "ballast", dict(enumerate(lots)), {}
    for state, size in {"little": 29, "none": 200, "room": 0}.items():
        if not run.smoke:
            fill(disk, size)
        left = {number: paths for number, paths in left.items() if any(send(site.port, paths))}
        refused[state] = [*left]
    return sum(map(len, lots)), {"refused_series": refused}


Case = Callable[[Site, Path, Run], tuple[int, dict[str, Any]]]
CASES: dict[str, Case] = {
    each.__name__: each for each in (burst, slow, broken, large, huge, duplicates, interleaved, full)
}
