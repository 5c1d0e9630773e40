"""A run on pictures as a folder: started, resumed, finished; `train_pictures` is what commands and nodes call.

    out/manifest.json, out/model.safetensors      the finished bundle; the manifest is moved in last
    out/run/run.json                              the run, settled
    out/run/checkpoint-00000500/                  see `training.checkpoint`
    out/run/progress.csv, loss.png, samples.png   as it goes

The rule: as in `training.run`, nothing that is there is overwritten unless the caller said which of the two is meant,
go on or start again. Of several processes the leader alone touches the folder.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from ddib_fed.errors import AlreadyExists, BundleInvalid, StateConflict
from ddib_fed.evaluation.report import sync_folder, write_bytes
from ddib_fed.evaluation.threads import torch_threads
from ddib_fed.models.bundle import MANIFEST_FILE, WEIGHTS_FILE, Bundle, load_bundle, save_bundle
from ddib_fed.models.manifest import Manifest, Training
from ddib_fed.training import record
from ddib_fed.training.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    latest_checkpoint,
    latest_identity,
    write_checkpoint,
)
from ddib_fed.training.pictures import sheet
from ddib_fed.training.pictures.config import ClassifierTrainConfig, PictureTrainConfig
from ddib_fed.training.pictures.loop import OnProgress, PictureTrainer, measure, settle
from ddib_fed.training.pictures.progress import Log
from ddib_fed.training.pictures.sources import PictureSource, open_source
from ddib_fed.training.pictures.starts import Start, open_start
from ddib_fed.training.pictures.world import World, open_world

RUN_FOLDER = "run"
SETTLE_S, LOOK_S = 20.0, 3.0
"""Seconds in which the cost of a step is measured: to fit a time, and only to tell it."""
Say = Callable[[str], None]
OnScan = Callable[[int, int], None]
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def train_pictures(
    config: PictureTrainConfig,
    out: Path,
    on_progress: OnProgress | None = None,
    *,
    source: PictureSource | None = None,
    resume: bool = False,
    force: bool = False,
    say: Say | None = None,
    on_scan: OnScan | None = None,
) -> Bundle:
    """Train a model of pictures and write its bundle; under torchrun, together with the other processes.

    Args:
        config: The run; a `ClassifierTrainConfig` for a classifier.
        out: The bundle's folder; made when missing.
        on_progress: Told after every step; what it raises ends the run after a checkpoint. Under torchrun it is
            called in the leading process alone and must not raise.
        source: Pictures in memory (`array_source`), when the config names none.
        resume: Go on with an unfinished run in `out` (or start, when there is none); a finished bundle of the
            same run is returned as it is.
        force: Start again, whatever is in `out`.
        say: Told, a sentence each, what a folder is like, what a step costs before the first is taken, and on the way
            what goes wrong: memory that runs out, signs of overfitting.
        on_scan: Called with (pictures looked at, in all) while a folder is checked and loaded.

    Returns:
        The bundle, as read back from `out`.

    Raises:
        AlreadyExists: There is a bundle or an unfinished run in `out`, and neither resume nor force.
        StateConflict: The run in `out` is another one than `config`.
        BundleInvalid: A checkpoint or the starting weights are damaged, or do not fit.
        DomainNotFound: There is no such domain.
        ExtraMissing: The package that carries the domain's pictures is not installed.
        ModelNotFound: There are no such starting weights.
        InputError: The pictures cannot be used (see `sources`).
        SettingsInvalid: Settings that cannot be, or the loss is no longer finite.
        MemoryExhausted: Not even one picture at a time fits into memory.
    """
    with torch_threads(config.threads), torch.random.fork_rng(), open_world(config.device) as world:
        say = say if say is not None and world.leads else None
        pictures = open_source(config, source, say=say, progress=on_scan if world.leads else None)
        start = open_start(config, pictures)
        if start.bundle is not None:
            config = config.model_copy(update={"init_digest": start.bundle.digest})
        if isinstance(config, ClassifierTrainConfig) and config.generator is not None:
            config = config.model_copy(update={"generator_digest": load_bundle(config.generator).digest})
        run = _open_run(config, out, pictures, start, world, say, resume=resume, force=force)
        if not world.decide(run.finished):
            trainer = run.trainer()
            run.follow(trainer, on_progress)
            world.decide(lambda: run.finish(trainer))
        return world.decide(lambda: load_bundle(out))


@dataclass(slots=True)
class _Run:
    """One run in its folder.

    Attributes:
        config: Settled.
        source: Its pictures.
        start: Its network.
        out: The bundle's folder.
        world: The processes that share it.
        say: Told what is to be said.
        cpu_before: CPU seconds that earlier processes spent on it.
        cpu_started: CPU seconds of this process when it began it.
    """

    config: PictureTrainConfig
    source: PictureSource
    start: Start
    out: Path
    world: World
    say: Say | None = None
    cpu_before: float = 0.0
    cpu_started: float = field(default_factory=time.process_time)

    @property
    def folder(self) -> Path:
        return self.out / RUN_FOLDER

    @property
    def identity(self) -> str:
        """What the weights depend on."""
        return hashlib.sha256(f"{self.config.identity()} {self.source.digest}".encode()).hexdigest()

    @property
    def cpu_seconds(self) -> float:
        return self.cpu_before + time.process_time() - self.cpu_started

    def finished(self) -> bool:
        """Whether the bundle is there.

        Raises:
            StateConflict: It is, and was trained on something else.
        """
        if not (self.out / MANIFEST_FILE).exists():
            return False
        if latest_identity(self.folder) not in (None, self.identity):
            raise _other_run(self.out)
        return True

    def trainer(self) -> PictureTrainer:
        """A trainer at the newest checkpoint, or at step 0."""
        trainer = PictureTrainer(self.config, self.source, self.start, self.world)
        checkpoint = _shared_checkpoint(self.folder, self.world)
        if checkpoint is None:
            return trainer
        if checkpoint.info.identity != self.identity:
            raise _other_run(self.out)
        trainer.restore(checkpoint)
        trainer.microbatch = int(checkpoint.info.config.get("microbatch") or trainer.microbatch)
        self.cpu_before = checkpoint.info.cpu_seconds
        if self.say is not None:
            self.say(f"going on after step {trainer.step} of {trainer.steps}")
        return trainer

    def follow(self, trainer: PictureTrainer, on_progress: OnProgress | None) -> None:
        """Take the steps that remain, with lines in progress.csv, checkpoints, sheets and reports."""
        log = Log(self.folder, trainer, lambda: self.cpu_seconds) if self.world.leads else None
        while trainer.step < trainer.steps:
            loss = trainer.advance()
            if log is None:
                continue
            due = trainer.step % int(self.config.checkpoint_every or 1) == 0 or trainer.step == trainer.steps
            log.add(trainer, loss, validate=due)
            if due:
                self.checkpoint(trainer)
                log.draw(trainer)
            self.tell(trainer)
            if on_progress is not None:
                try:
                    on_progress(log.progress(trainer))
                except BaseException:
                    if not due:
                        self.checkpoint(trainer)
                    raise

    def tell(self, trainer: PictureTrainer) -> None:
        """Say what the trainer wants said."""
        if self.say is not None:
            for note in trainer.notes:
                self.say(note)
        trainer.notes.clear()

    def checkpoint(self, trainer: PictureTrainer) -> None:
        config = self.config.model_copy(update={"microbatch": trainer.microbatch})
        info = CheckpointInfo(
            step=trainer.step,
            config=config.model_dump(mode="json"),
            identity=self.identity,
            cpu_seconds=self.cpu_seconds,
        )
        write_checkpoint(self.folder, info, trainer.tensors())

    def finish(self, trainer: PictureTrainer) -> None:
        """Measure, draw, and move the bundle into its place."""
        dtype = _DTYPES[self.config.dtype]
        state = {name: value.to("cpu", dtype) for name, value in trainer.ema.state_dict().items()}
        spent = self.cpu_seconds
        figures = {
            "held_out_loss": round(trainer.held_out_loss(), 6),
            "cpu_seconds": round(spent, 1),
            "processes": float(self.world.size),
        }
        if not self.start.classifies:
            drawn = sheet.draw(trainer, fine=True)
            sheet.draw_sheet(drawn, self.folder / "samples.png")
            near = sheet.nearness(trainer, drawn)
            figures["nearest_training_picture"] = round(near.samples, 5)
            figures["nearest_training_picture_held_out"] = round(near.held_out, 5)
        record.draw_loss(record.read_progress(self.folder / "progress.csv"), self.folder / "loss.png")
        staged = self.folder / "bundle"
        save_bundle(staged, self._manifest(trainer, figures), state, overwrite=True)
        for name in (WEIGHTS_FILE, MANIFEST_FILE):
            (staged / name).replace(self.out / name)
            sync_folder(self.out)
        shutil.rmtree(staged)

    def _manifest(self, trainer: PictureTrainer, figures: dict[str, float]) -> Manifest:
        config, source, start = self.config, self.source, self.start
        name = config.name or config.domain or source.name
        return Manifest(
            name=name,
            domain=name,
            role="classifier" if start.classifies else "generator",
            sample_kind="picture",
            sample_shape=source.shape,
            network=start.network,
            parameterisation=start.parameterisation,
            time_input=start.time_input,
            schedule=start.schedule,
            normalisation=trainer.normal,
            soften_sigma=config.soften_sigma,
            picture=source.picture,
            classes=source.classes if config.classes is not None else (),
            data=source.note,
            training=Training(
                command=config.command, seed=config.seed, steps=config.steps or 0, figures=figures
            ),
            created=datetime.now(UTC).date().isoformat(),
        )


def _open_run(
    config: PictureTrainConfig,
    out: Path,
    source: PictureSource,
    start: Start,
    world: World,
    say: Say | None,
    *,
    resume: bool,
    force: bool,
) -> _Run:
    """The run in `out`, new or found, settled and with run.json written."""
    stored = world.decide(lambda: _found(config, out, resume=resume, force=force))
    if stored is not None:
        return _Run(stored, source, start, out, world, say)
    cost = None
    if world.decide(lambda: config.time_s is not None or say is not None):
        within = SETTLE_S if config.time_s is not None else LOOK_S
        cost = measure(config, source, start, world, within_s=within)
    if say is not None and cost is not None:
        say(f"{config.preset}: {cost}")

    def write() -> PictureTrainConfig:
        settled = settle(config, cost)
        (out / RUN_FOLDER).mkdir(parents=True, exist_ok=True)
        write_bytes(out / RUN_FOLDER / "run.json", settled.model_dump_json(indent=2).encode())
        return settled

    return _Run(world.decide(write), source, start, out, world, say)


def _found(config: PictureTrainConfig, out: Path, *, resume: bool, force: bool) -> PictureTrainConfig | None:
    """The stored run to go on with, or None when there is none (any more)."""
    folder = out / RUN_FOLDER
    if force:
        for name in (MANIFEST_FILE, WEIGHTS_FILE):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    stored = _stored(folder / "run.json", type(config))
    if resume and stored is not None:
        return _same_run(config, stored, out)
    if (out / MANIFEST_FILE).exists():
        raise AlreadyExists(
            f"{out} holds a finished model", hint="choose another folder, or --force to replace it"
        )
    if stored is not None:
        raise AlreadyExists(
            f"{out} holds an unfinished run", hint="--resume to go on with it, --force to start again"
        )
    return None


def _stored(path: Path, kind: type[PictureTrainConfig]) -> PictureTrainConfig | None:
    if not path.exists():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleInvalid(f"{path} cannot be read: {error}", hint="--force starts the run again") from error


def _same_run(asked: PictureTrainConfig, stored: PictureTrainConfig, out: Path) -> PictureTrainConfig:
    """The stored run, if it is what was asked: a time, or no length at all, means the length that was settled."""
    if asked.settled(steps=asked.steps or stored.steps).identity() != stored.settled().identity():
        raise _other_run(out)
    return stored


def _other_run(out: Path) -> StateConflict:
    return StateConflict(
        f"the run in {out} was started with other settings or other pictures",
        hint=f"the settings are in {out / RUN_FOLDER / 'run.json'}; --force starts again",
    )


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

    told = world.decide(read)
    if told is None:
        return None
    info, shapes = told
    tensors: dict[str, Tensor] = {
        name: own[0].tensors[name] if own[0] is not None else torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in shapes.items()
    }
    world.hand_out(list(tensors.values()))
    return Checkpoint(info, tensors)
