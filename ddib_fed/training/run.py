"""A training run as a folder: started, resumed, finished; `train` is what commands and nodes call.

out/run/progress.csv, loss.png, samples.png   as it goes; everything else as in `checkpoint`
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ddib_fed.data.folder import require_outside
from ddib_fed.data.synthetic import domain_name
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.manifest import Manifest, Training
from ddib_fed.networks.placement import torch_threads
from ddib_fed.terminal import bar, say
from ddib_fed.training.checkpoint import (
    DTYPES,
    Checkpoint,
    CheckpointInfo,
    RunFolder,
    latest_checkpoint,
    run_identity,
    write_checkpoint,
)
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.distributed import World, open_world
from ddib_fed.training.own_samples import after_training
from ddib_fed.training.pictures import PictureTask
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.report import LOG_EVERY, Log
from ddib_fed.training.sources import PictureSource, map_digest, open_source, open_start
from ddib_fed.training.trainer import (
    PROBE_MARGIN,
    Losses,
    OnProgress,
    Progress,
    Task,
    Trainer,
    measure,
    settle,
)

Say = Callable[[str], None]
OnScan = Callable[[int, int], None]


def _ordinary(task: Task, world: World, run: Path, checkpoint: Checkpoint | None) -> Trainer:
    del run, checkpoint
    return Trainer(task, world)


@dataclass(frozen=True, slots=True)
class Opened:
    """A run whose data were read."""

    config: Any
    name: str
    digest: str
    task: Callable[[Any], Task]
    samples: int = 0
    trainer: Callable[[Any, World, Path, Checkpoint | None], Trainer] = _ordinary
    """What takes the steps, given the run's folder and the checkpoint that it resumes from."""
    fixed_length: bool = False
    """Whether the number of steps is never fitted to a time, nor added to."""
    after: Callable[[Path], None] = lambda _: None
    """Called with the run's folder once the bundle is there."""


def open_run(
    config: TrainConfig,
    source: PictureSource | None,
    out: Path,
    say: Say | None,
    on_scan: OnScan | None,
    tasks: tuple[type[PointTask], type[PictureTask]] = (PointTask, PictureTask),
) -> Opened:
    """Read what a run on points or pictures learns from."""
    if config.kind == "points":
        if config.domain is not None:
            config = config.model_copy(update={"domain": domain_name(config.domain)})
        points = open_points(config)
        return Opened(
            config, config.label, points.digest, lambda settled: tasks[0](settled, points), len(points.train)
        )
    if config.images is not None:
        require_outside(out, config.images)
    pictures = open_source(config, source, say=say, progress=on_scan)
    found: dict[str, Any] = {}
    name = config.domain or pictures.name
    if config.images is not None:
        found["channels"] = pictures.shape[0]
    start = open_start(config, pictures)
    if start.bundle is not None:
        found["init_digest"] = start.bundle.digest
    if start.bundle is not None and start.normal is not None and start.normal.calibrated is not None:
        found["calibration_digest"] = map_digest(start.normal.calibrated)
        name = start.bundle.manifest.domain  # the calibration's: a node of that domain is to serve it
        if "soften_sigma" not in config.model_fields_set:
            # Both sides of a bridge soften alike, so the run keeps what the model had.
            found["soften_sigma"] = start.bundle.manifest.soften_sigma
    if config.generator is not None:
        found["generator_digest"] = load_bundle(config.generator).digest
    return Opened(
        config.model_copy(update=found),
        name,
        pictures.digest,
        lambda settled: tasks[1](settled, pictures, start),
        len(pictures.train),
    )


def open_data(
    config: TrainConfig, source: PictureSource | None, out: Path, say: Say | None, on_scan: OnScan | None
) -> Opened:
    """The run with its data read, by what the type of its settings names."""
    module, _, name = config.opener.partition(":")
    found: Opened = getattr(importlib.import_module(module), name)(config, source, out, say, on_scan)
    return found


MEASURE_S = 3.0
"""Seconds in which the cost of a step is measured before the first."""
LOOK_S, LOOKS = 0.2, 50
"""A run that is to fit a time looks at the clock after so many seconds, or that part of what is left."""
NEGLIGIBLE = 0.01
"""A share of the steps that are left by which they are not planned anew."""
CHANGEABLE = ("name", "soften_sigma", "dtype")
"""Settings that no weight depends on: of a run that is resumed or finished, they become what is asked for now."""
UNSAVED_S, WRITING_SHARE = 60.0, 50.0
"""Seconds of training that a kill may cost at most, and that in multiples of what writing a checkpoint takes."""


def train(
    config: TrainConfig,
    out: Path,
    on_progress: OnProgress | None = None,
    *,
    source: PictureSource | None = None,
    resume: bool = False,
    force: bool = False,
    lengthen: bool = False,
    say: Say | None = None,
    on_scan: OnScan | None = None,
) -> Bundle:
    """Train a model and write its bundle; under torchrun, together with the other processes."""
    with torch_threads(config.threads), torch.random.fork_rng(), open_world(config.device) as world:
        say = say if say is not None and world.leads else None
        opened = open_data(config, source, out, say, on_scan if world.leads else None)
        run = _open_run(opened, out, world, say, resume=resume, force=force, lengthen=lengthen)
        if not world.decide(run.finished):
            with closing(run.trainer()) as trainer:
                run.follow(trainer, on_progress)
            world.decide(lambda: run.finish(trainer))
        opened.after(run.place.run)
        return world.decide(lambda: load_bundle(out))


@dataclass(slots=True)
class _Run:
    """One run in its folder."""

    config: TrainConfig
    opened: Opened
    place: RunFolder
    world: World
    say: Say | None = None
    changed: bool = False
    cpu_before: float = 0.0
    cpu_started: float = field(default_factory=time.process_time)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def identity(self) -> str:
        return self.identities[0]

    @property
    def identities(self) -> list[str]:
        return [run_identity(each, self.opened.digest) for each in self.config.identities()]

    @property
    def name(self) -> str:
        return self.config.name or self.opened.name

    @property
    def cpu_seconds(self) -> float:
        return self.cpu_before + time.process_time() - self.cpu_started

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def finished(self) -> bool:
        """Whether the bundle is there and says what this run says of it."""
        if not self.place.finished(self.identities):
            return False
        made = load_bundle(self.place.out).manifest
        if made.training.steps < self.config.total_steps:
            return False
        same = (made.name, made.soften_sigma) == (self.name, self.config.soften_sigma)
        if same and not self.changed:
            return True
        checkpoint = latest_checkpoint(self.place.run)
        if checkpoint is None or checkpoint.info.step != self.config.steps:
            return True
        if self.say is not None:
            self.say("the weights are there; their bundle is written again with what was changed")
        return False

    def trainer(self) -> Trainer:
        """A trainer at the newest checkpoint, or at step 0."""
        checkpoint = _shared_checkpoint(self.place.run, self.world)
        trainer = self._at_start(checkpoint)
        if checkpoint is None:
            return trainer
        self.place.require_own(checkpoint, self.identities)
        trainer.restore(checkpoint)
        self.cpu_before = checkpoint.info.cpu_seconds
        self.seconds_before = checkpoint.info.seconds
        if self.say is not None:
            self.say(f"resuming after step {trainer.step} of {trainer.steps}")
        return trainer

    def _at_start(self, checkpoint: Checkpoint | None) -> Trainer:
        task = self.opened.task(self.config)
        return self.opened.trainer(task, self.world, self.place.run, checkpoint)

    def follow(self, trainer: Trainer, on_progress: OnProgress | None) -> None:
        """Take the steps that remain, with lines in progress.csv, checkpoints, sheets and reports."""
        log = Log(self.place.run, trainer, lambda: self.cpu_seconds) if self.world.leads else None
        pause, losses = _Pause(), Losses()
        pace = _Pace(self, trainer)
        while trainer.step < trainer.steps:
            if trainer.step == pace.next:
                pace.look()
            loss = trainer.advance()
            losses.add(trainer.step, loss)
            last = trainer.step == trainer.steps
            due = last or trainer.step % self.config.checkpoint_every == 0
            validate = last or trainer.step % self.config.validate_every == 0
            save = due or (log is not None and pause.over())
            # Waits for the device where a line or a checkpoint is due, which must not hold what is not finite, and
            # before the clock is looked at, which counts the steps that were taken.
            wait = save or validate or trainer.step in {pace.next, trainer.steps}
            found = losses.read(wait=wait or trainer.step % LOG_EVERY == 0)
            if log is None:
                continue
            log.add(trainer, found, validate=validate)
            if save:
                with pause:
                    self.checkpoint(trainer)
            if due:
                log.draw(trainer)
            self.tell(trainer)
            if on_progress is not None:
                try:
                    on_progress(log.progress(trainer))
                except BaseException:
                    losses.read()
                    if not due:
                        self.checkpoint(trainer)
                    raise

    def tell(self, trainer: Trainer) -> None:
        """Say what the trainer wants said."""
        if self.say is not None:
            for note in trainer.notes:
                self.say(note)
        trainer.notes.clear()

    def checkpoint(self, trainer: Trainer) -> None:
        settings = {**self.config.model_dump(mode="json"), "microbatch": trainer.microbatch}
        info = CheckpointInfo(
            step=trainer.step,
            config=settings,
            identity=self.identity,
            cpu_seconds=self.cpu_seconds,
            seconds=self.seconds,
        )
        write_checkpoint(self.place.run, info, trainer.tensors())

    def finish(self, trainer: Trainer) -> None:
        """Measure, draw, and move the bundle into its place."""
        dtype = DTYPES[self.config.dtype]
        state = {name: value.to("cpu", dtype) for name, value in trainer.ema.state_dict().items()}
        spent = self.cpu_seconds
        Log(self.place.run, trainer, lambda: spent).draw(trainer, last=True)
        self.tell(trainer)
        figures = {
            "held_out_loss": round(trainer.held_out_loss(), 6),
            "cpu_seconds": round(spent, 1),
            "processes": float(self.world.size),
            **trainer.task.figures,
        }
        self.place.put(self._manifest(trainer, figures), state)
        held_out = trainer.task.aside()
        if held_out is None:
            return
        why = after_training(self.place.out, held_out, command="at the end of training", spent_s=spent)
        if why and self.say is not None:
            self.say(
                f"the gate's bounds were not measured: {why}; ddib model measure measures with other pictures"
            )

    def _manifest(self, trainer: Trainer, figures: dict[str, float]) -> Manifest:
        config = self.config
        return Manifest(
            name=self.name,
            domain=self.name,
            training=Training(
                command=config.command, seed=config.seed, steps=config.total_steps, figures=figures
            ),
            created=datetime.now(UTC).date().isoformat(),
            differential_privacy=trainer.spent(),
            **trainer.task.manifest(),
        )


class _Pause:
    """Between two checkpoints, where the steps between them take long: so much, and a multiple of what one takes."""

    def __init__(self) -> None:
        self._next = time.monotonic() + UNSAVED_S
        self._began = 0.0

    def over(self) -> bool:
        return time.monotonic() > self._next

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self._next = now + max(UNSAVED_S, WRITING_SHARE * (now - self._began))


class _Pace:
    """Fits the steps of a run to its time, also where the machine's speed changes."""

    def __init__(self, run: _Run, trainer: Trainer) -> None:
        self._run, self._trainer = run, trainer
        planned = run.config.planned
        self.next = -1
        if run.config.timed_s is not None:
            self.next = max(trainer.step, planned[-1][0] if planned else 0)
        self._step, self._seconds, self._cost = self.next, 0.0, 0.0

    def look(self) -> None:
        config, self.next = self._run.world.decide(self._plan)
        self._run.config = self._trainer.config = config

    def _plan(self) -> tuple[TrainConfig, int]:
        config, step, now = self._run.config, self._trainer.step, self._run.seconds
        left, since = float(config.timed_s or 0.0) * PROBE_MARGIN - now, step - self._step
        if not since:  # the first look: nothing was measured yet
            self._cost = max(0.0, left) / (config.total_steps - step)
        else:
            self._cost = (self._cost + (now - self._seconds) / since) / 2.0
            steps, planned = max(1, round(left / self._cost)), config.total_steps - step
            if abs(steps - planned) > NEGLIGIBLE * planned:
                config = config.replanned(step, step + steps)
                self._run.place.begin(config)
        self._step, self._seconds = step, now
        ahead = int(max(LOOK_S, left / LOOKS) / self._cost) if self._cost else 1
        ahead = min(ahead, 2 * since or 1)  # until much was measured, little is relied on
        return config, step + max(1, min(ahead, config.total_steps - step - 1))


def _open_run(
    opened: Opened, out: Path, world: World, say: Say | None, *, resume: bool, force: bool, lengthen: bool
) -> _Run:
    """The run in `out`, new or found, settled and with run.json written."""
    config = opened.config
    place = RunFolder(out, config.learns_from)
    stored = world.decide(lambda: place.found(type(config), resume=resume, force=force))
    if stored is not None:
        return _found_run(stored, opened, place, world, say, lengthen=lengthen)
    cost = None
    told = say is not None and config.preset != "" and not opened.fixed_length
    if world.decide(lambda: config.time_s is not None or told):
        cost = measure(config, opened.task, world, within_s=MEASURE_S)
    if say is not None and cost is not None and config.preset:
        say(f"{config.preset}: {cost}")

    def write() -> TrainConfig:
        settled = settle(config, cost)
        place.begin(settled)
        return settled

    return _Run(world.decide(write), opened, place, world, say)


def _found_run(
    stored: TrainConfig, opened: Opened, place: RunFolder, world: World, say: Say | None, *, lengthen: bool
) -> _Run:
    """The run in a folder, as long as it was, or longer; what no weight depends on becomes what is asked for."""
    config = opened.config
    longer = _longer(stored, opened, place, world) if lengthen else None
    # A time, or no length at all, means the length that was settled.
    asked = config.settled(stored.steps if longer else config.steps or stored.steps)
    asked = asked.model_copy(update={"planned": stored.planned})
    if asked.identity() != stored.settled().identity():
        raise place.other_run()
    if longer is not None:
        if say is not None:
            say(f"given more: {longer.steps} steps instead of {stored.steps}; the learning rate rises again")
        stored = longer
        place.begin(stored)
    elif say is not None and config.time_s not in {None, stored.timed_s}:
        length = f"{stored.steps} steps" if stored.timed_s is None else f"{stored.timed_s:g} s"
        say(f"this run was begun with {length}; --force starts again with another time")
    own = {name: getattr(asked, name) for name in CHANGEABLE}
    changed = any(getattr(stored, name) != value for name, value in own.items())
    if changed:
        stored = stored.model_copy(update=own)
        world.decide(lambda: place.begin(stored))
    return _Run(stored, opened, place, world, say, changed)


def _longer(stored: TrainConfig, opened: Opened, place: RunFolder, world: World) -> TrainConfig | None:
    """The settings of the run with the steps or the time that are asked for now; None if these are not more."""
    asked = opened.config
    if opened.fixed_length or not asked.preset:
        return None
    checkpoint = latest_checkpoint(place.run)
    done, seconds = (0, 0.0) if checkpoint is None else (checkpoint.info.step, checkpoint.info.seconds)
    total = asked.steps or 0
    if asked.time_s is not None and asked.time_s > (stored.timed_s or 0.0):
        cost = measure(asked, opened.task, world, within_s=MEASURE_S).seconds
        total = done + int((asked.time_s * PROBE_MARGIN - seconds) / cost)
    if total <= stored.total_steps:
        return None
    return stored.replanned(done, total, share=done / total).model_copy(update={"timed_s": asked.time_s})


def _shared_checkpoint(folder: Path, world: World) -> Checkpoint | None:
    """The newest checkpoint, read by the leader and handed to all."""
    if world.size == 1:
        return latest_checkpoint(folder)
    own: list[Checkpoint | None] = [None]

    def read() -> tuple[CheckpointInfo, dict[str, tuple[torch.Size, torch.dtype]]] | None:
        own[0] = latest_checkpoint(folder)
        if own[0] is None:
            return None
        return own[0].info, {name: (value.shape, value.dtype) for name, value in own[0].tensors.items()}

    shared = world.decide(read)
    if shared is None:
        return None
    info, shapes = shared
    tensors: dict[str, Tensor] = {
        name: own[0].tensors[name] if own[0] is not None else torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in shapes.items()
    }
    world.hand_out(list(tensors.values()))
    return Checkpoint(info, tensors)


def train_at_terminal(config: TrainConfig, out: Path, *, resume: bool, force: bool) -> Bundle | None:
    """Train with a progress bar on stderr; Ctrl-C and SIGTERM stop it so that it can be resumed."""
    with bar("training") as show, bar("checking") as look, _stopping() as stop:

        def on_progress(progress: Progress) -> None:
            held_out = "" if progress.held_out is None else f"  held out {progress.held_out:.4f}"
            show(
                progress.step,
                progress.steps,
                f"loss {progress.loss:.4f}{held_out}  {progress.rate:.2g} steps/s",
            )
            stop(progress.step)

        done = train(
            config,
            out,
            on_progress,
            resume=resume,
            force=force,
            say=partial(say, err=True),
            on_scan=lambda count, total: look(count, total, "pictures"),
        )
    return done if os.environ.get("RANK", "0") == "0" else None


@contextmanager
def _stopping() -> Iterator[Callable[[int], None]]:
    """Let Ctrl-C and SIGTERM end a run after the step that it is in, so that nothing is lost."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        say("stopping after this step; once more stops at once", err=True)

    def stop(step: int) -> None:
        if asked:
            say(f"stopped after step {step}; resume it with the same command", err=True)
            raise KeyboardInterrupt

    alone = "RANK" not in os.environ and threading.current_thread() is threading.main_thread()
    before = (
        {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if alone else {}
    )
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
