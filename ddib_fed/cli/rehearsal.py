"""A rehearsal (`ddib try`): two folders are checked, trained on, translated both ways and evaluated.

out/a, out/b                   the two models, as `train` writes them
out/a-to-b, out/b-to-a         held-out pictures there and back, as `ddib translate` writes them
out/index.html                 one page, written last
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed.calibration.record import Calibration, map_beside
from ddib_fed.client.folder_run import Run
from ddib_fed.client.in_process import InProcess
from ddib_fed.client.jobs import Event, Progress, Request
from ddib_fed.data import folder as folders
from ddib_fed.data.folder import Entry, Folder, require_outside
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import AlreadyExists, DdibError, UsageError
from ddib_fed.evaluation.judgement import Figures
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.evaluation.pages import SideFound, WayFound, write_rehearsal
from ddib_fed.evaluation.sheets import contact_sheet
from ddib_fed.evaluation.translations import DOMAIN_PICTURES, Translations, evaluate_folder
from ddib_fed.models.bundle import Bundle
from ddib_fed.record import Record, Settings
from ddib_fed.terminal import require_alone
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import RUN_FOLDER, read_progress, train
from ddib_fed.training.sources import name_of, normalisation, open_source

# Of the time that is given, this goes to training; the rest to looking, translating and judging.
TRAINING_SHARE = 0.9
PAGE = "index.html"
MOST_ON_SHEET = 48
OnProgress = Callable[[str, int, int, str], None]
"""Told (what is being done, done, in all, remark)."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    sides: folders.Sides
    out: Path
    config: TrainConfig
    time_s: float | None = None
    pictures: int = 64
    evaluations: int = 48
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class _Side:
    """A folder of pictures, what is said of it, and which of its pictures train a model or are held out."""

    letter: str
    name: str
    folder: Folder
    lines: tuple[str, ...]
    train: tuple[Entry, ...]
    held_root: Path
    held_out: tuple[Entry, ...]


def rehearse(
    wanted: Rehearsal,
    *,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    on_progress: OnProgress = lambda *_: None,
) -> Path:
    """Do what of a rehearsal is not done, and write its page."""
    require_alone("a rehearsal")
    for folder in wanted.sides:
        if folder is not None:
            require_outside(wanted.out, folder)
    pictures_a, pictures_b, test_a, test_b = wanted.sides
    a = _look("a", pictures_a, test_a, wanted, on_progress)
    b = _look("b", pictures_b, test_b, wanted, on_progress)
    shared = [f"{mine} and {theirs}" for mine, theirs in folders.shared(a.folder.entries, b.folder.entries)]
    if shared:
        say(f"{len(shared)} pictures are in both folders; the first: {shared[0]}")
    coloured = any(
        2 * sum(each.looks.channels == 3 for each in side.folder.entries) > len(side.folder.entries)
        for side in (a, b)
    )
    config = wanted.config.model_copy(
        update={
            "channels": wanted.config.channels or (3 if coloured else 1),
            "time_s": None if wanted.time_s is None else TRAINING_SHARE * wanted.time_s / 2,
        }
    )

    def config_of(side: _Side) -> TrainConfig:
        name = f"{side.name}-{side.letter}" if a.name == b.name else side.name
        fields = config.model_dump() | {"images": side.folder.root, "name": name}
        return TrainConfig.model_validate(fields)

    def trained(side: _Side) -> Bundle:
        return train(
            config_of(side),
            wanted.out / side.letter,
            lambda p: on_progress(f"training {side.name}", p.step, p.steps, f"loss {p.loss:.4f}"),
            resume=not force,
            force=force,
            say=lambda text: say(f"{side.name}: {text}"),
        )

    # Pictures of b that cannot be trained on are refused before half of the time has gone into a.
    normalisation(config_of(b), open_source(config_of(b)))
    models = trained(a), trained(b)
    ways = (
        _translate(a, b, models, config, wanted, on_progress),
        _translate(b, a, models[::-1], config, wanted, on_progress),
    )
    found = _found(a, models[0], wanted.out), _found(b, models[1], wanted.out)
    write_rehearsal(wanted.out / PAGE, found, ways, shared)
    return wanted.out / PAGE


def _look(letter: str, path: Path, test: Path | None, wanted: Rehearsal, show: OnProgress) -> _Side:
    skip, check = wanted.config.skip_bad, folders.range_check(wanted.config.range)
    folder = folders.scan(
        path, skip_bad=skip, check=check, progress=lambda done, total: show("looking", done, total, str(path))
    )
    train, held_out = folders.split(folder.entries, wanted.config.held_out)
    lines = [*folders.survey(folder).lines, *(f"{bad}: {reason}" for bad, reason in folder.bad)]
    if test is not None:
        held_out = folders.scan(test, skip_bad=skip, check=check).entries
    held_out = tuple(sorted(held_out, key=lambda entry: entry.digest))[: wanted.pictures]
    return _Side(letter, name_of(path), folder, tuple(lines), train, test or path, held_out)


def _translate(
    source: _Side,
    target: _Side,
    models: tuple[Bundle, Bundle],
    config: TrainConfig,
    wanted: Rehearsal,
    show: OnProgress,
) -> WayFound:
    out = wanted.out / f"{source.letter}-to-{target.letter}"
    domains = models[0].manifest.domain, models[1].manifest.domain
    title, agreed = " to ".join(domains), wanted.calibration
    if agreed is not None and domains != (agreed.source.domain, agreed.target.domain):
        agreed = None
    on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    own, other = (open_party(each, "cuda:0" if on_gpu else "cpu", threads=config.threads) for each in models)
    client = InProcess(own, other)
    request = Request(
        Settings(evaluations=wanted.evaluations), cycle=True, calibration=agreed, seed=config.seed
    )
    pictures = [entry.path for entry in source.held_out]
    progress = _StepProgress(functools.partial(show, f"translating {title}"))
    for again in (False, True):
        run = Run(client, client.target, out, request, progress, skip_bad=True)
        run.open_below(source.held_root, pictures)
        run.read()
        try:
            run.translate()
            break
        except AlreadyExists:  # of other models or settings: the folder is the rehearsal's own
            if again:
                raise
            shutil.rmtree(out)
    run.page()
    refused = [*run.left_out, *run.failed]
    first = f"; the first, {refused[0].line()}" if refused else ""
    if not run.delivered:
        why = (
            f"Refused, as a node would refuse it: none of {len(refused)} pictures could be translated{first}"
        )
        return WayFound(title, out, {}, None, (why,))
    report, found, notes = _judge(out, source, target, *models)
    if refused:
        count = f"{len(refused)} of {len(pictures)} pictures"
        notes.append(f"Refused, as a node would refuse them: {count}{first}")
    if fitted := Record.fitted_line([(each.file, each.provenance) for each in run.delivered]):
        notes.insert(0, f"{fitted}.")
    return WayFound(title, out, report, _sheet(report, found), tuple(notes))


def _sheet(report: Figures, found: Translations) -> bytes:
    """Some held-out pictures, spread evenly, their translations and what came back."""
    count = len(found.names)
    rows = np.linspace(0, count - 1, min(MOST_ON_SHEET, count)).astype(int)
    stacks = {
        "source": found.source,
        "the map alone": found.mapped,
        "translated": found.translated,
        "returned": found.back,
    }
    return contact_sheet(
        {kind: stack[rows] for kind, stack in stacks.items() if stack is not None},
        names=[Path(found.names[row]).name for row in rows],
        doubtful=[bool(report["pictures"][row].get("doubtful")) for row in rows],
    )


class _StepProgress(Progress):
    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self._show = show

    def event(self, event: Event) -> None:
        if event.steps:
            self._show(event.step, event.steps, f"{event.items_done} of {event.items} pictures")


def _judge(
    out: Path, source: _Side, target: _Side, own: Bundle, other: Bundle
) -> tuple[Figures, Translations, list[str]]:
    """The report of `ddib evaluate` on a folder of translations, at the models' size, its pictures, and notes on it."""
    rule, theirs = picture_rule(own.manifest), picture_rule(other.manifest)
    # In the files the source's fit is undone, on whatever side they are.
    reading: dict[str, Any] = {
        "source": source.held_root,
        "size": rule.height,
        "fit": rule.fit,
        "mapping": map_beside(out),
    }
    domain = folders.load(target.train[:DOMAIN_PICTURES], theirs)
    notes = []
    try:
        report, found = evaluate_folder(out, domain=domain, **reading)
    except DdibError as error:
        notes.append(f"Not measured: the distance to the target domain. {error.detail}: {error.hint}")
        report, found = evaluate_folder(out, **reading)
    return report, found, [*notes, *report["notes"]]


def _found(side: _Side, model: Bundle, out: Path) -> SideFound:
    run_folder = out / side.letter / RUN_FOLDER
    losses = [row.held_out for row in read_progress(run_folder / "progress.csv")]
    return SideFound(
        side.folder.root,
        side.lines,
        model.manifest,
        out / side.letter,
        (run_folder / "loss.png").read_bytes(),
        (run_folder / "samples.png").read_bytes(),
        (run_folder / "held-out.png").read_bytes() if (run_folder / "held-out.png").is_file() else None,
        tuple(loss for loss in losses if loss is not None),
    )


def sides_of(a: Path, b: Path | None) -> folders.Sides:
    """The two sides of two folders, or of one that is laid out as trainA, trainB."""
    found = folders.two_sides(a) if b is None else (a, b, None, None)
    if found is None:
        raise UsageError(
            f"{a} does not hold trainA and trainB", hint="name two folders: ddib try A/ B/ --out DIR"
        )
    return found
