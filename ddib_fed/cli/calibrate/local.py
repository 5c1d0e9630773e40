"""`ddib calibrate --local A B`: a calibration between two models of this process."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.cli import options
from ddib_fed.cli.calibrate.evaluating import two_folders
from ddib_fed.cli.calibrate.showing import show_calibration
from ddib_fed.cli.models.opening import open_model
from ddib_fed.cli.output import print_json
from ddib_fed.errors import AlreadyExists
from ddib_fed.terminal import console, say

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.record import Calibration, Kind
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.runs.calibration.making import Wanted

Folders = tuple[Path, Path]


def make(
    *,
    local: tuple[str, str],
    kind: Kind,
    pictures: tuple[str, ...],
    anchors: Folders | None,
    epsilon: float,
    delta: float,
    days: int,
    seed: int,
    threads: int,
    out: Path,
    force: bool,
    output_format: str,
) -> None:
    """Make a calibration of two models, write it, and print what is known of it."""
    from ddib_fed.bridge.calibration.files import write_calibration
    from ddib_fed.bridge.threads import torch_threads
    from ddib_fed.runs.calibration.making import Wanted, check_models, side

    if out.exists():
        raise AlreadyExists(f"{out} exists", hint="name another file with --out, or remove this one")
    folders = two_folders(pictures)
    if anchors is not None:
        options.refuse_idle(
            ("pictures", "epsilon", "delta"), "is for aggregates, not for --anchors", hint="leave it out"
        )
    source, target = (open_model(name) for name in local)
    check_models(source.manifest, target.manifest, kind, anchored=anchors is not None)
    how = "--anchors" if anchors is not None else f"--epsilon {epsilon:g} --delta {delta:g}"
    wanted = Wanted(
        kind,
        side(source.manifest),
        side(target.manifest),
        days,
        f"ddib calibrate --local {shlex.join(each.manifest.domain for each in (source, target))} "
        f"--kind {kind} --seed {seed} {how}",
        seed,
        force,
    )
    with torch_threads(threads), console(stderr=True).status(f"fitting the {kind}"):
        if anchors is not None:
            found = _from_anchors(source, target, anchors, wanted)
        else:
            found = _from_aggregate(source, target, folders, (epsilon, delta), wanted)
    write_calibration(found, out)
    if output_format == "json":
        print_json(found)
        return
    show_calibration(found)
    say(f"written      {out}", "next:", f"  {_next(found, local, out)}")


def _from_aggregate(
    source: Bundle,
    target: Bundle,
    folders: tuple[str | None, str | None],
    privacy: tuple[float, float],
    wanted: Wanted,
) -> Calibration:
    import numpy as np

    from ddib_fed.runs.calibration.making import from_aggregate
    from ddib_fed.runs.calibration.pictures import count_pictures, domain_pictures

    own, other = folders
    epsilon, delta = privacy
    counted = count_pictures(target, other, epsilon=epsilon)
    for line in counted.notes:
        say(line, err=True)
    # Nothing leaves: noise that the seed repeats shows what an aggregate of this epsilon would give.
    generator = np.random.default_rng((wanted.seed, 1))  # another stream than the search's
    aggregate = counted.noised(epsilon, delta, generator)
    pictures = domain_pictures(source, own).train
    return from_aggregate(pictures, source.manifest.normalisation, aggregate, wanted)


def _from_anchors(source: Bundle, target: Bundle, folders: Folders, wanted: Wanted) -> Calibration:
    from ddib_fed.runs.calibration.making import from_anchors
    from ddib_fed.runs.calibration.pictures import folder_anchors

    found = folder_anchors(source, target, folders)
    return from_anchors(found, (source.manifest.normalisation, target.manifest.normalisation), wanted)


def _next(found: Calibration, local: tuple[str, str], out: Path) -> str:
    """The command that uses a calibration."""
    from ddib_fed.bridge.calibration.record import RETRAINED

    first, second = (shlex.quote(name) for name in local)
    file = shlex.quote(str(out))
    if found.kind in RETRAINED:
        return (
            f"ddib model train {_data(found, first)} --init {first} --calibration {file} --steps 600 "
            f"--out {shlex.quote(found.source.domain)}-calibrated"
        )
    return f"ddib translate PICTURES --source {first} --target {second} --calibration {file} --out calibrated"


def _data(found: Calibration, model: str) -> str:
    from ddib_fed.datasets.shipped import SHIPPED

    domain = found.source.domain
    return f"--domain {domain}" if domain in SHIPPED and model == domain else "--images PICTURES"
