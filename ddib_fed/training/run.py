"""A training run as a folder: started, resumed, finished; `train` is what the commands and the nodes call.

    out/manifest.json, out/model.safetensors      the finished bundle; the manifest is moved in last
    out/run/run.json                              the run, its number of steps settled
    out/run/checkpoint-00000250/                  see `checkpoint`
    out/run/progress.csv, loss.png, samples.png   see `record`

The rule: nothing that is there is overwritten unless the caller said which of the two is meant, go on or start again.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError

from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import AlreadyExists, BundleInvalid, StateConflict
from ddib_fed.evaluation.report import sync_folder, write_bytes
from ddib_fed.evaluation.threads import torch_threads
from ddib_fed.models.bundle import MANIFEST_FILE, WEIGHTS_FILE, Bundle, load_bundle, make_bundle, save_bundle
from ddib_fed.models.manifest import Manifest, MlpConfig, Normalisation, Training
from ddib_fed.training import record
from ddib_fed.training.checkpoint import CheckpointInfo, latest_checkpoint, latest_identity, write_checkpoint
from ddib_fed.training.loop import OnProgress, Progress, Trainer, learning_rate, settle
from ddib_fed.training.presets import STEPS, TrainConfig
from ddib_fed.training.sources import Source, open_source

RUN_FOLDER = "run"
LOG_EVERY = 10
HELD_OUT_EVERY = 100
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def train(
    config: TrainConfig,
    out: Path,
    on_progress: OnProgress | None = None,
    *,
    resume: bool = False,
    force: bool = False,
) -> Bundle:
    """Train a model and write its bundle.

    Args:
        config: The run.
        out: The bundle's folder; made when missing.
        on_progress: Told after every step; what it raises ends the run, which can be resumed.
        resume: Go on with an unfinished run in `out` (or start, when there is none); a finished bundle of the
            same run is returned as it is.
        force: Start again, whatever is in `out`.

    Returns:
        The bundle, as read back from `out`.

    Raises:
        AlreadyExists: There is a bundle or an unfinished run in `out`, and neither resume nor force.
        StateConflict: The run in `out` is another one than `config`.
        BundleInvalid: A checkpoint is damaged.
        DomainNotFound: There is no such domain.
        SettingsInvalid: The loss is no longer finite, or there is no such schedule.
        InputError: The points cannot be used (see `sources.points_source`).
    """
    source = open_source(config)
    with torch_threads(config.threads), torch.random.fork_rng(devices=[]):
        run = _open_run(config, out, source, resume=resume, force=force)
        if run.finished():
            return load_bundle(out)
        trainer = run.trainer()
        run.follow(trainer, on_progress)
        return run.finish(trainer)


@dataclass(slots=True)
class _Run:
    """One run in its folder.

    Attributes:
        config: Its number of steps settled.
        source: Its points.
        out: The bundle's folder.
        cpu_before: CPU seconds that earlier processes spent on it.
        started: When this process began it, monotonic.
        cpu_started: CPU seconds of this process when it began it.
    """

    config: TrainConfig
    source: Source
    out: Path
    cpu_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
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

    def trainer(self) -> Trainer:
        """A trainer at the newest checkpoint, or at step 0."""
        trainer = Trainer(self.config, self.source)
        checkpoint = latest_checkpoint(self.folder)
        if checkpoint is None:
            return trainer
        if checkpoint.info.identity != self.identity:
            raise _other_run(self.out)
        trainer.restore(checkpoint)
        self.cpu_before = checkpoint.info.cpu_seconds
        return trainer

    def follow(self, trainer: Trainer, on_progress: OnProgress | None) -> None:
        """Take the steps that remain, with lines in progress.csv, checkpoints and reports."""
        log = record.ProgressFile(self.folder / "progress.csv", trainer.step)
        first, losses, smooth = trainer.step, [], 0.0
        while trainer.step < trainer.steps:
            loss = trainer.advance()
            losses.append(loss)
            smooth += (loss - smooth) / min(50, trainer.step - first)
            if trainer.step % LOG_EVERY == 0 or trainer.step == trainer.steps:
                log.add(self._row(trainer, sum(losses) / len(losses)))
                losses.clear()
            if trainer.step % self.config.checkpoint_every == 0 or trainer.step == trainer.steps:
                self.checkpoint(trainer)
            if on_progress is not None:
                rate = (trainer.step - first) / max(1e-9, time.monotonic() - self.started)
                on_progress(Progress(trainer.step, trainer.steps, smooth, rate))

    def checkpoint(self, trainer: Trainer) -> None:
        info = CheckpointInfo(
            step=trainer.step,
            config=self.config.model_dump(mode="json"),
            identity=self.identity,
            cpu_seconds=self.cpu_seconds,
        )
        write_checkpoint(self.folder, info, trainer.tensors())

    def finish(self, trainer: Trainer) -> Bundle:
        """Measure, draw, and move the bundle into its place."""
        dtype = _DTYPES[self.config.dtype]
        state = {name: value.to(dtype) for name, value in trainer.ema.state_dict().items()}
        spent = self.cpu_seconds
        draft = make_bundle(self._manifest({}), state)
        drawn = record.sample(draft.side(), self.source.dim, self.config.samples)
        figures = record.figures(self.config, self.source, drawn)
        figures |= {"held_out_loss": round(trainer.held_out_loss(), 6), "cpu_seconds": round(spent, 1)}
        record.draw_samples(self.config, self.source, drawn, self.folder / "samples.png")
        record.draw_loss(record.read_progress(self.folder / "progress.csv"), self.folder / "loss.png")
        staged = self.folder / "bundle"
        save_bundle(staged, self._manifest(figures), state, overwrite=True)
        for name in (WEIGHTS_FILE, MANIFEST_FILE):
            (staged / name).replace(self.out / name)
            sync_folder(self.out)
        shutil.rmtree(staged)
        return load_bundle(self.out)

    def _row(self, trainer: Trainer, loss: float) -> record.Row:
        due = trainer.step % HELD_OUT_EVERY == 0 or trainer.step == trainer.steps
        return record.Row(
            step=trainer.step,
            loss=loss,
            held_out=trainer.held_out_loss() if due else None,
            learning_rate=learning_rate(self.config, trainer.step - 1, trainer.steps),
            seconds=time.monotonic() - self.started,
            cpu_seconds=self.cpu_seconds,
        )

    def _manifest(self, figures: dict[str, float]) -> Manifest:
        config, source = self.config, self.source
        training = Training(
            command=config.command, seed=config.seed, steps=config.steps or 0, figures=figures
        )
        return Manifest(
            name=config.label,
            domain=config.label,
            sample_shape=(source.dim,),
            network=MlpConfig(dim=source.dim, width=config.width, blocks=config.blocks),
            schedule=ScheduleConfig(name=config.schedule),
            normalisation=Normalisation(mean=source.mean, std=source.std),
            training=training,
            created=datetime.now(UTC).date().isoformat(),
        )


def _open_run(config: TrainConfig, out: Path, source: Source, *, resume: bool, force: bool) -> _Run:
    """The run in `out`, new or found, with its number of steps settled and run.json written."""
    schedule_from_config(ScheduleConfig(name=config.schedule))
    folder = out / RUN_FOLDER
    if force:
        for name in (MANIFEST_FILE, WEIGHTS_FILE):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    stored = _stored(folder / "run.json")
    if resume and stored is not None:
        return _Run(_same_run(config, stored, out), source, out)
    if (out / MANIFEST_FILE).exists():
        raise AlreadyExists(
            f"{out} holds a finished model", hint="choose another folder, or --force to replace it"
        )
    if stored is not None:
        raise AlreadyExists(
            f"{out} holds an unfinished run", hint="--resume to go on with it, --force to start again"
        )
    settled = settle(config, source, STEPS)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "run.json", settled.model_dump_json(indent=2).encode())
    return _Run(settled, source, out)


def _stored(path: Path) -> TrainConfig | None:
    if not path.exists():
        return None
    try:
        return TrainConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleInvalid(f"{path} cannot be read: {error}", hint="--force starts the run again") from error


def _same_run(asked: TrainConfig, stored: TrainConfig, out: Path) -> TrainConfig:
    """The stored run, if it is what was asked: a time, or no length at all, means the length that was settled."""
    steps = asked.steps if asked.steps is not None else stored.steps
    if asked.with_steps(steps or STEPS).identity() != stored.identity():
        raise _other_run(out)
    return stored


def _other_run(out: Path) -> StateConflict:
    return StateConflict(
        f"the run in {out} was started with other settings or other points",
        hint=f"the settings are in {out / RUN_FOLDER / 'run.json'}; --force starts again",
    )
