"""A training run as a folder: started, resumed, finished; `train` is what the commands and the nodes call.

    out/run/progress.csv, loss.png, samples.png   see `record`; everything else as `folder` has it

The rule: a run that was stopped and gone on with is the run that was not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from ddib_fed.bridge.threads import torch_threads
from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.models.bundle import Bundle, load_bundle, make_bundle
from ddib_fed.models.manifest import Manifest, Training
from ddib_fed.models.normalisation import Normalisation
from ddib_fed.processes import require_alone
from ddib_fed.training import record
from ddib_fed.training.checkpoint import CheckpointInfo, latest_checkpoint, write_checkpoint
from ddib_fed.training.config import PointTrainConfig, learning_rate
from ddib_fed.training.folder import DTYPES, RunFolder, run_identity
from ddib_fed.training.loop import OnProgress, Progress, Trainer, network_config, point_schedule, settle
from ddib_fed.training.sources import Source, open_source

LOG_EVERY = 10
HELD_OUT_EVERY = 100


def train(
    config: PointTrainConfig,
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
        SettingsInvalid: The loss is no longer finite, there is no such schedule, or the public network is told no
            length.
        InputError: The points cannot be used (see `sources.points_source`).
        UsageError: Several processes were started, and each would train the whole run.
    """
    require_alone("training on points")
    source = open_source(config)
    with torch_threads(config.threads), torch.random.fork_rng(devices=[]):
        run = _open_run(config, out, source, resume=resume, force=force)
        if run.place.finished(run.identity):
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
        place: Its folder.
        cpu_before: CPU seconds that earlier processes spent on it.
        started: When this process began it, monotonic.
        cpu_started: CPU seconds of this process when it began it.
    """

    config: PointTrainConfig
    source: Source
    place: RunFolder
    cpu_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=time.process_time)

    @property
    def identity(self) -> str:
        """What the weights depend on."""
        return run_identity(self.config.identity(), self.source.digest)

    @property
    def cpu_seconds(self) -> float:
        return self.cpu_before + time.process_time() - self.cpu_started

    def trainer(self) -> Trainer:
        """A trainer at the newest checkpoint, or at step 0."""
        trainer = Trainer(self.config, self.source)
        checkpoint = latest_checkpoint(self.place.run)
        if checkpoint is None:
            return trainer
        self.place.require_own(checkpoint, self.identity)
        trainer.restore(checkpoint)
        self.cpu_before = checkpoint.info.cpu_seconds
        return trainer

    def follow(self, trainer: Trainer, on_progress: OnProgress | None) -> None:
        """Take the steps that remain, with lines in progress.csv, checkpoints and reports."""
        log = record.ProgressFile(self.place.run / "progress.csv", trainer.step)
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
        write_checkpoint(self.place.run, info, trainer.tensors())

    def finish(self, trainer: Trainer) -> Bundle:
        """Measure, draw, and move the bundle into its place."""
        dtype = DTYPES[self.config.dtype]
        state = {name: value.to(dtype) for name, value in trainer.ema.state_dict().items()}
        spent = self.cpu_seconds
        draft = make_bundle(self._manifest({}), state)
        drawn = record.sample(draft.side(), self.source.dim, self.config.samples)
        figures = record.figures(self.config, self.source, drawn)
        figures |= {"held_out_loss": round(trainer.held_out_loss(), 6), "cpu_seconds": round(spent, 1)}
        record.draw_samples(self.config, self.source, drawn, self.place.run / "samples.png")
        record.draw_loss(record.read_progress(self.place.run / "progress.csv"), self.place.run / "loss.png")
        self.place.put(self._manifest(figures), state)
        return load_bundle(self.place.out)

    def _row(self, trainer: Trainer, loss: float) -> record.Row:
        due = trainer.step % HELD_OUT_EVERY == 0 or trainer.step == trainer.steps
        return record.Row(
            step=trainer.step,
            loss=loss,
            held_out=trainer.held_out_loss() if due else None,
            learning_rate=learning_rate(self.config, trainer.step - 1),
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
            network=network_config(config, source.dim),
            parameterisation="v" if config.network == "mlp" else "eps",
            time_input="lambda" if config.network == "mlp" else "timestep",
            schedule=point_schedule(config),
            normalisation=Normalisation(mean=source.mean, std=source.std),
            training=training,
            created=datetime.now(UTC).date().isoformat(),
        )


def _open_run(config: PointTrainConfig, out: Path, source: Source, *, resume: bool, force: bool) -> _Run:
    """The run in `out`, new or found, with its number of steps settled and run.json written."""
    schedule_from_config(point_schedule(config))
    place = RunFolder(out, "points")
    stored = place.found(PointTrainConfig, resume=resume, force=force)
    if stored is not None:
        # A time, or no length at all, means the length that was settled.
        asked = config.settled(config.steps or stored.steps)
        if asked.identity() != stored.identity():
            raise place.other_run()
        return _Run(stored, source, place)
    settled = settle(config, source)
    place.begin(settled)
    return _Run(settled, source, place)
