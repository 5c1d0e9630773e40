"""`ddib_fed.Rehearsal` (`ddib try`): two folders are checked, trained on, translated both ways and evaluated.

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

from ddib_fed.calibration.record import Calibration
from ddib_fed.client.folder_run import Run
from ddib_fed.client.jobs import Event, Progress, Request
from ddib_fed.data import folder as folders
from ddib_fed.data.folder import Entry, Folder, require_outside
from ddib_fed.errors import AlreadyExists, DdibError, UsageError
from ddib_fed.evaluation.pages import SideFound, WayFound, write_rehearsal
from ddib_fed.evaluation.sheets import contact_sheet
from ddib_fed.evaluation.translations import DOMAIN_PICTURES
from ddib_fed.figures import Figures, evaluate
from ddib_fed.metrics import picture_rule
from ddib_fed.model import Model
from ddib_fed.record import Record, Settings
from ddib_fed.terminal import require_alone
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import RUN_FOLDER, read_progress, train
from ddib_fed.training.sources import name_of, normalisation, open_source

TRAINING_SHARE = 0.9  # of the time; the rest goes to reading, translating and judging
PAGE = "index.html"
OnProgress = Callable[[str, int, int, str], None]  # stage, done, in all, remark


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


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A rehearsal of two institutions in one process: two folders become two models and translations both ways.

    Attributes
    ----------
    a, b : Path
        The folders; without `b`, `a` holds trainA and trainB.
    out : Path
        The results; models that nodes can serve are in out/a and out/b.
    config
        Of both trainings; its `images` is replaced.
    time_s : float or None
        Seconds for the whole; None for the config's steps.
    pictures, evaluations : int
        Held-out pictures translated in each direction, at most; network evaluations of each leg.
    calibration
        Under which its source is translated.
    """

    a: Path
    b: Path | None
    out: Path
    config: TrainConfig
    time_s: float | None = None
    pictures: int = 64
    evaluations: int = 48
    calibration: Calibration | None = None

    @property
    def sides(self) -> folders.Sides:
        """The two folders, and their test pictures or None; UsageError where one is missing."""
        sides = folders.two_sides(self.a) if self.b is None else (self.a, self.b, None, None)
        if sides is None:
            raise UsageError(
                f"{self.a} does not hold trainA and trainB", hint="name two folders: ddib try A/ B/ --out DIR"
            )
        return sides

    def run(
        self,
        *,
        force: bool = False,
        say: Callable[[str], None] = lambda _: None,
        on_progress: OnProgress = lambda *_: None,
    ) -> tuple[Path, tuple[Model, Model]]:
        """Finish the rehearsal, continuing unless `force` removes the earlier one; return its page and the two models.

        `say` is called with remarks, `on_progress` with (stage, done, in all, remark). Raises InputError for a folder
        that cannot be trained on, StateConflict if `out` holds a rehearsal of other settings.
        """
        require_alone("a rehearsal")
        pictures_a, pictures_b, test_a, test_b = sides = self.sides
        for folder in sides:
            if folder is not None:
                require_outside(self.out, folder)
        a = _look("a", pictures_a, test_a, self, on_progress)
        b = _look("b", pictures_b, test_b, self, on_progress)
        shared = [
            f"{mine} and {theirs}" for mine, theirs in folders.shared(a.folder.entries, b.folder.entries)
        ]
        if shared:
            say(f"{len(shared)} pictures are in both folders; the first: {shared[0]}")
        coloured = any(
            2 * sum(entry.looks.channels == 3 for entry in side.folder.entries) > len(side.folder.entries)
            for side in (a, b)
        )
        config = self.config.model_copy(
            update={
                "channels": self.config.channels or (3 if coloured else 1),
                "time_s": None if self.time_s is None else TRAINING_SHARE * self.time_s / 2,
            }
        )

        def config_of(side: _Side) -> TrainConfig:
            name = f"{side.name}-{side.letter}" if a.name == b.name else side.name
            fields = config.model_dump() | {"images": side.folder.root, "name": name}
            return TrainConfig.model_validate(fields)

        def trained(side: _Side) -> Model:
            bundle = train(
                config_of(side),
                self.out / side.letter,
                lambda p: on_progress(f"training {side.name}", p.step, p.steps, f"loss {p.loss:.4f}"),
                resume=not force,
                force=force,
                say=lambda text: say(f"{side.name}: {text}"),
            )
            on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
            device = "cuda:0" if on_gpu else "cpu"
            return Model(bundle, self.out / side.letter, device=device, threads=config.threads)

        # Pictures of b that cannot be trained on are refused before half of the time has gone into a.
        normalisation(config_of(b), open_source(config_of(b)))
        models = trained(a), trained(b)
        ways = (
            _translate(a, b, models, self, on_progress),
            _translate(b, a, models[::-1], self, on_progress),
        )
        reports = _found(a, models[0]), _found(b, models[1])
        write_rehearsal(self.out / PAGE, reports, ways, shared)
        return self.out / PAGE, models


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
    source: _Side, target: _Side, models: tuple[Model, Model], wanted: Rehearsal, show: OnProgress
) -> WayFound:
    out = wanted.out / f"{source.letter}-to-{target.letter}"
    domains = models[0].domain, models[1].domain
    title, agreed = " to ".join(domains), wanted.calibration
    if agreed is not None and domains != (agreed.source.domain, agreed.target.domain):
        agreed = None
    client = models[0].to(models[1])
    request = Request(
        Settings(evaluations=wanted.evaluations), cycle=True, calibration=agreed, seed=wanted.config.seed
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
    figures, notes = _judge(out, source, target, *models)
    if refused:
        count = f"{len(refused)} of {len(pictures)} pictures"
        notes.append(f"Refused, as a node would refuse them: {count}{first}")
    if fitted := Record.fitted_line([(each.file, each.provenance) for each in run.delivered]):
        notes.insert(0, f"{fitted}.")
    return WayFound(title, out, dict(figures.report), _sheet(figures), tuple(notes))


def _sheet(figures: Figures) -> bytes:
    """Draw some held-out pictures, spread evenly, their translations and what came back."""
    translations = figures.translations
    count = len(translations.names)
    rows = np.linspace(0, count - 1, min(48, count)).astype(int)
    stacks = {
        "source": translations.source,
        "the map alone": translations.mapped,
        "map, through the autoencoder": figures.through.get("map_through"),
        "translated": translations.translated,
        "returned": translations.back,
    }
    return contact_sheet(
        {kind: stack[rows] for kind, stack in stacks.items() if stack is not None},
        names=[Path(translations.names[row]).name for row in rows],
        doubtful=[bool(figures.report["pictures"][row].get("doubtful")) for row in rows],
    )


class _StepProgress(Progress):
    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self._show = show

    def event(self, event: Event) -> None:
        if event.steps:
            self._show(event.step, event.steps, f"{event.items_done} of {event.items} pictures")


def _judge(out: Path, source: _Side, target: _Side, own: Model, other: Model) -> tuple[Figures, list[str]]:
    """Return the figures of a folder of translations at the models' size, and notes on it."""
    rule, theirs = picture_rule(own.manifest), picture_rule(other.manifest)
    # In the files the source's fit is undone, on whatever side they are.
    reading: dict[str, Any] = {
        "source": source.held_root,
        "size": rule.height,
        "fit": rule.fit,
        "target": other,
    }
    domain = folders.load(target.train[:DOMAIN_PICTURES], theirs)
    notes = []
    try:
        figures = evaluate(out, domain=domain, **reading)
    except DdibError as error:
        notes.append(f"Not measured: the distance to the target domain. {error.detail}: {error.hint}")
        figures = evaluate(out, **reading)
    return figures, [*notes, *figures.report["notes"]]


def _found(side: _Side, model: Model) -> SideFound:
    assert model.folder is not None
    run_folder = model.folder / RUN_FOLDER
    losses = [row.held_out for row in read_progress(run_folder / "progress.csv")]
    return SideFound(
        side.folder.root,
        side.lines,
        model.manifest,
        model.folder,
        (run_folder / "loss.png").read_bytes(),
        (run_folder / "samples.png").read_bytes(),
        (run_folder / "held-out.png").read_bytes() if (run_folder / "held-out.png").is_file() else None,
        tuple(loss for loss in losses if loss is not None),
    )
