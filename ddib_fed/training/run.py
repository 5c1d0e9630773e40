"""A training run as a folder: started, resumed, finished; `train` is what commands and nodes call.

out/manifest.json, out/model.safetensors        the finished bundle; the manifest is moved in last
out/run/run.json                                the settings, and the identity by which a run is resumed
out/run/checkpoint-00000250-DIGEST.safetensors  written whole; verified by the digest; the one before it is kept
out/run/progress.csv, loss.png, samples.png     as it goes; no weight depends on them
"""

import hashlib
import importlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ddib_fed.data.folder import require_outside
from ddib_fed.datasets import domain_name
from ddib_fed.engine.gate import measure_allowances, unmeasurable
from ddib_fed.engine.model import DTYPES, DomainModel
from ddib_fed.errors import AlreadyExists, BundleInvalid, SettingsInvalid, StateConflict
from ddib_fed.evaluation import sheets
from ddib_fed.files import model_folder, sync_folder, write_file
from ddib_fed.models.bundle import (
    AUTOENCODER,
    BESIDE,
    Bundle,
    autoencoder_folder,
    load_autoencoder,
    load_bundle,
    put_beside,
    save_bundle,
)
from ddib_fed.models.catalogue import MANIFEST_FILE, WEIGHTS_FILE
from ddib_fed.models.manifest import Manifest, Training
from ddib_fed.networks.placement import torch_threads
from ddib_fed.record import Frozen
from ddib_fed.terminal import bar, say
from ddib_fed.training.autoencoder import AutoencoderTask
from ddib_fed.training.config import RunPlan, TrainConfig, learning_rate
from ddib_fed.training.latents import LatentTask, as_latents, open_autoencoder
from ddib_fed.training.pictures import PictureTask, open_start
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.sources import PictureSource, normalisation, open_source
from ddib_fed.training.trainer import Task, Trainer, World, measure, open_world, place_of

RUN_FOLDER = "run"
KEPT = 2  # checkpoints
TIME_SHARE = 0.93  # share of a time that is given to steps; the rest goes to records and the last sheet
NEGLIGIBLE = 0.01  # a share of the steps that are left by which they are not planned anew
UNSAVED_S, WRITING_SHARE = 60.0, 50.0
"""Seconds of training that a kill may cost at most, and that in multiples of what writing a checkpoint takes."""
LOOKS = 20  # a run that is to fit a time is saved, and its steps are planned anew, so many times at least
GATE_PICTURES, GATE_SHARE = 300, 0.05
"""At most so many pictures, and that share of a run's CPU seconds, measure the bounds of the gate."""
LOG_EVERY = 10

Say = Callable[[str], None]
OnScan = Callable[[int, int], None]


class TrainingProgress(NamedTuple):
    step: int
    steps: int
    loss: float
    held_out: float | None
    rate: float


OnProgress = Callable[[TrainingProgress], None]


class RunState(Frozen):
    """What a checkpoint holds beside its tensors."""

    identity: str
    step: int
    plan: RunPlan
    microbatch: int
    cpu_seconds: float
    seconds: float


class RunRecord(Frozen):
    identity: str
    config: dict[str, Any]

    @property
    def length(self) -> tuple[int | None, float | None]:
        return self.config.get("steps"), self.config.get("time_s")


@dataclass(frozen=True, slots=True)
class Opened:
    """A run whose data were read; its identity follows from its config and `digest`."""

    config: Any
    name: str
    digest: str
    task: Callable[[Any], Task]
    samples: int = 0
    trainer: Callable[[Task, World, RunPlan, Path, RunState | None], Trainer] | None = None
    """What takes the steps instead of `Trainer`, given the run's folder and the state that it resumes from."""
    after: Callable[[Path], None] = lambda _: None  # called with the run's folder once the bundle is there


def open_run(
    config: TrainConfig,
    source: PictureSource | None,
    out: Path,
    say: Say | None,
    on_scan: OnScan | None,
    tasks: tuple[type[PointTask], type[PictureTask]] = (PointTask, PictureTask),
) -> Opened:
    if config.kind == "points":
        if config.domain is not None:
            config = config.model_copy(update={"domain": domain_name(config.domain)})
        points = open_points(config)
        samples = len(points.train)
        return Opened(config, config.label, points.digest, lambda one: tasks[0](one, points), samples)
    if config.images is not None:
        require_outside(out, config.images)
    if config.latent is not None and config.images is not None and config.size is None:
        folder = autoencoder_folder(str(config.latent)) or config.latent
        side = load_autoencoder(folder).manifest.sample_shape[-1]
        config = config.model_copy(update={"size": side})
    pictures = open_source(config, source, say=say, progress=on_scan)
    if config.kind == "autoencoder":
        task = partial(AutoencoderTask, source=pictures)
        return Opened(config, config.domain or pictures.name, pictures.digest, task, len(pictures.train))
    behind = open_autoencoder(config, pictures)
    start = open_start(config, pictures, behind and behind.space(pictures.shape).shape)
    name = config.domain or pictures.name
    if config.calibration is not None and start.bundle is not None:
        name = start.bundle.manifest.domain  # the calibration's: a node of that domain is to serve it
        if "soften_sigma" not in config.model_fields_set:
            # Both sides of a bridge soften alike, so the run keeps what the model had.
            config = config.model_copy(update={"soften_sigma": start.bundle.manifest.soften_sigma})
    if behind is None:
        digest = f"{pictures.digest} {start.digest}"
        return Opened(config, name, digest, lambda one: tasks[1](one, pictures, start), len(pictures.train))
    units = start.normal or normalisation(config, pictures)
    if say is not None:
        say(
            f"encoding {len(pictures.train):,} training pictures by the autoencoder {behind.bundle.manifest.name}"
        )
    latents = as_latents(config, pictures, behind, units, place_of(config.device), on_scan)
    digest = f"{latents.digest} {start.digest}"
    made = (pictures, latents, start, behind, units)
    return Opened(config, name, digest, lambda one: LatentTask(one, *made), len(latents.train))


def train(
    config: TrainConfig,
    out: Path,
    on_progress: OnProgress | None = None,
    *,
    source: PictureSource | None = None,
    resume: bool = False,
    force: bool = False,
    say: Say | None = None,
    on_scan: OnScan | None = None,
) -> Bundle:
    """Train a model and write its bundle; under torchrun, together with the other processes.

    `resume` continues a run of the same settings and data, a finished one with more steps or time; `force` removes it.
    """
    with torch_threads(config.threads), torch.random.fork_rng(), open_world(config.device) as world:
        told, say = say is not None, say if world.leads else None
        module, _, name = config.opener.partition(":")
        opener = getattr(importlib.import_module(module), name)
        opened: Opened = opener(config, source, out, say, on_scan if world.leads else None)
        run = _Run(opened, out, world, say or (lambda _: None))
        run.settle(resume=resume, force=force, told=told)
        if not world.decide(run.finished):
            with closing(run.trainer()) as trainer:
                run.follow(trainer, on_progress)
            world.decide(lambda: run.finish(trainer))
        opened.after(run.folder)
        return world.decide(lambda: load_bundle(out))


class _Run:
    def __init__(self, opened: Opened, out: Path, world: World, say: Say) -> None:
        self.opened, self.out, self.world, self.say = opened, out, world, say
        self.config: TrainConfig = opened.config
        self.folder = out / RUN_FOLDER
        self.identity = self.config.identity(opened.digest)
        self.name = self.config.name or opened.name
        self.state: RunState | None = None
        self.tensors: dict[str, Tensor] = {}
        self.plan = RunPlan(total=1)
        self.cpu_started, self.started = time.process_time(), time.monotonic()

    @property
    def cpu_seconds(self) -> float:
        before = 0.0 if self.state is None else self.state.cpu_seconds
        return before + time.process_time() - self.cpu_started

    @property
    def seconds(self) -> float:
        before = 0.0 if self.state is None else self.state.seconds
        return before + time.monotonic() - self.started

    def settle(self, *, resume: bool, force: bool, told: bool) -> None:
        """Begin the run, or find it in its folder; its plan follows from the checkpoint or from what is asked."""
        record, longer = self.world.decide(lambda: self._found(resume=resume, force=force)), None
        if record is not None:
            if record.identity != self.identity:
                raise self._other_run()
            self._read_checkpoint()
            # With differential privacy the noise follows from the number of steps.
            if self.state is not None and self.opened.trainer is None:
                longer = self._longer(record, self.state)
        asked = self.config.steps, self.config.time_s
        if record is not None and longer is None and (self.state is not None or asked == (None, None)):
            steps, time_s = record.length
            if asked[0] not in (None, steps):
                raise self._other_run()
            if asked[1] not in (None, time_s):
                begun = f"{steps} steps" if steps else f"{time_s:g} s"
                self.say(f"this run was begun with {begun}; --force starts again with another time")
            self.config = self.config.model_copy(update={"steps": steps, "time_s": time_s})
        if self.config.steps is None and self.config.time_s is None:
            self.config = self.config.model_copy(update={"steps": self.config.usual_steps()})
        if self.state is None:
            self._plan_first(told=told and record is None)
        elif longer is None:
            self.plan = self.state.plan
        else:
            before, self.plan = self.state.plan.total, longer
            self.say(f"given more: {longer.total} steps instead of {before}; the learning rate rises again")
        now = RunRecord(identity=self.identity, config=self.config.model_dump(mode="json"))
        if now != record:
            self.world.decide(lambda: self._write_record(now))

    def finished(self) -> bool:
        """Return whether the bundle is there and agrees with this run."""
        if not (self.out / MANIFEST_FILE).exists():
            return False
        made = load_bundle(self.out).manifest
        if self.state is None:
            return True
        if made.training.steps < self.plan.total:
            return False
        same = (made.name, made.soften_sigma) == (self.name, self.config.soften_sigma)
        if same or self.state.step != self.plan.total:
            return True
        self.say("the weights are there; their bundle is written again with what was changed")
        return False

    def trainer(self) -> Trainer:
        """Return a trainer at the newest checkpoint, or at step 0."""
        task = self.opened.task(self.config)
        if self.opened.trainer is None:
            trainer = Trainer(task, self.world, self.plan)
        else:
            trainer = self.opened.trainer(task, self.world, self.plan, self.folder, self.state)
        if self.state is not None:
            trainer.restore(self.tensors)
            trainer.step, trainer.microbatch = self.state.step, self.state.microbatch
            self.say(f"resuming after step {trainer.step} of {trainer.plan.total}")
        return trainer

    def follow(self, trainer: Trainer, on_progress: OnProgress | None) -> None:
        """Take the steps that remain, with lines in progress.csv, checkpoints, sheets and reports."""
        config, world = self.config, self.world
        log = _Log(self, trainer)
        pause = UNSAVED_S if config.time_s is None else min(UNSAVED_S, config.time_s / LOOKS)
        next_save = time.monotonic() + pause
        planned_at = trainer.step, self.seconds
        while trainer.step < trainer.plan.total:
            log.pending.append(trainer.advance())
            last = trainer.step == trainer.plan.total
            due = last or trainer.step % config.checkpoint_every == 0
            validate = (
                last or trainer.step % (100 if config.kind == "points" else config.checkpoint_every) == 0
            )
            save = due or (world.leads and time.monotonic() > next_save)
            # Reading a loss waits for the device, and a checkpoint must hold nothing that is not finite.
            if world.device.type == "cpu" or validate or save or trainer.step % LOG_EVERY == 0:
                log.read()
            if config.time_s is not None and not last and (due or (save and world.size == 1)):
                trainer.plan = world.decide(partial(self._planned_anew, trainer, planned_at))
                planned_at = trainer.step, self.seconds
            if not world.leads:
                continue
            log.write(validate=validate)
            if save:
                began = time.monotonic()
                self._write_checkpoint(trainer)
                now = time.monotonic()
                next_save = now + max(pause, WRITING_SHARE * (now - began))
            if due:
                log.draw()
            self._tell(trainer)
            if on_progress is not None:
                try:
                    on_progress(log.progress())
                except BaseException:
                    log.read()
                    if not save:
                        self._write_checkpoint(trainer)
                    raise

    def finish(self, trainer: Trainer) -> None:
        """Measure, draw, and move the bundle into its place."""
        config, spent = self.config, self.cpu_seconds
        dtype = DTYPES[config.dtype]
        state = {name: value.to("cpu", dtype) for name, value in trainer.ema.averages.items()}
        _Log(self, trainer).draw(last=True)
        self._tell(trainer)
        figures = {
            "held_out_loss": round(trainer.held_out_loss(), 6),
            "cpu_seconds": round(spent, 1),
            "processes": float(self.world.size),
            **trainer.task.figures,
        }
        steps = trainer.plan.total
        made = Manifest(
            name=self.name,
            domain=self.name,
            training=Training(command=config.command, seed=config.seed, steps=steps, figures=figures),
            created=datetime.now(UTC).date().isoformat(),
            differential_privacy=trainer.spent(),
            **trainer.task.manifest(),
        )
        self._put_bundle(made, state, trainer.task.autoencoder)
        held_out = trainer.task.aside()
        if held_out is None:
            return
        model, chosen = DomainModel(load_bundle(self.out)), held_out[:GATE_PICTURES]
        if why := unmeasurable(model, len(held_out)):
            other = "ddib model measure measures with other pictures"
            self.say(f"the gate's bounds were not measured: {why}; {other}")
            return
        how: dict[str, Any] = {"command": "at the end of training", "within_s": GATE_SHARE * spent}
        put_beside(self.out, measure_allowances(model, chosen, **how))

    def _found(self, *, resume: bool, force: bool) -> RunRecord | None:
        """Return the run to resume, or None when there is none, or none any more."""
        if force:
            for name in (MANIFEST_FILE, WEIGHTS_FILE, *AUTOENCODER, *BESIDE):
                (self.out / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        path = self.folder / "run.json"
        record = None
        if path.exists():
            try:
                record = RunRecord.model_validate_json(path.read_bytes())
            except ValidationError as error:
                problem = f"{path} cannot be read: {error}"
                raise BundleInvalid(problem, hint="--force starts the run again") from error
        if resume and record is not None:
            return record
        if (self.out / MANIFEST_FILE).exists():
            problem = f"{self.out} holds a finished model"
            raise AlreadyExists(problem, hint="choose another folder, or --force to replace it")
        if record is not None:
            problem = f"{self.out} holds an unfinished run"
            raise AlreadyExists(problem, hint="--resume to resume it, --force to start again")
        return None

    def _other_run(self) -> StateConflict:
        return StateConflict(
            f"the run in {self.out} was started with other settings or other data",
            hint=f"the settings are in {self.folder / 'run.json'}; --force starts again",
        )

    def _write_record(self, record: RunRecord) -> None:
        model_folder(self.out)
        model_folder(self.folder)
        write_file(self.folder / "run.json", record.model_dump_json(indent=2).encode(), private=True)

    def _plan_first(self, *, told: bool) -> None:
        """Return the number of steps, from the cost of a step where a time is asked for, and a microbatch that fits."""
        config = self.config
        told = told and config.preset != "" and self.opened.trainer is None
        total = config.steps or 1
        if config.time_s is not None or told:
            cost = measure(config, self.opened.task, self.world)
            if told:
                self.say(f"{config.preset}: {cost.told}")
            self.config = config.model_copy(update={"microbatch": min(cost.microbatch, config.batch)})
            if config.time_s is not None:
                total = max(1, int(config.time_s * TIME_SHARE / cost.seconds))
        self.plan = RunPlan(total=self.world.decide(lambda: total))

    def _longer(self, record: RunRecord, state: RunState) -> RunPlan | None:
        """Return the plan with the steps or the time that are asked for now; None if these are not more."""
        asked, total = self.config, self.config.steps or 0
        if asked.time_s is not None and asked.time_s > (record.length[1] or 0.0):
            total = int(asked.time_s * TIME_SHARE / state.seconds * state.step)
        if total <= state.plan.total:
            return None
        return RunPlan(total=total, step=state.step, share=state.step / total)

    def _planned_anew(self, trainer: Trainer, since: tuple[int, float]) -> RunPlan:
        """The plan as the speed since the last look says; after the last one it stays, so that the rate falls."""
        step, plan, now = trainer.step, trainer.plan, self.seconds
        done, ahead = step - since[0], plan.total - step
        if ahead <= done:
            return plan
        left = float(self.config.time_s or 0.0) * TIME_SHARE - now
        steps = max(1, round(left * done / (now - since[1])))
        return plan if abs(steps - ahead) <= NEGLIGIBLE * ahead else plan.renewed(step, step + steps)

    def _tell(self, trainer: Trainer) -> None:
        for note in trainer.notes:
            self.say(note)
        trainer.notes.clear()

    def _write_checkpoint(self, trainer: Trainer) -> None:
        """Write a checkpoint into the run's folder and drop those that are no longer needed."""
        state = RunState(
            identity=self.identity,
            step=trainer.step,
            plan=trainer.plan,
            microbatch=trainer.microbatch,
            cpu_seconds=self.cpu_seconds,
            seconds=self.seconds,
        )
        tensors = {name: value.contiguous() for name, value in trainer.tensors().items()}
        content = save(tensors, {"run": state.model_dump_json()})
        digest = hashlib.sha256(content).hexdigest()
        for old in (*self.folder.glob(f"checkpoint-{state.step:08d}-*"), *self.folder.glob(".checkpoint-*")):
            old.unlink()
        write_file(self.folder / f"checkpoint-{state.step:08d}-{digest}.safetensors", content, private=True)
        for path in sorted(self.folder.glob("checkpoint-*"))[:-KEPT]:
            path.unlink()

    def _read_checkpoint(self) -> None:
        """Take the newest checkpoint; all processes of the run read the same one."""
        checkpoint = latest_checkpoint(self.folder)
        step = None if checkpoint is None else checkpoint[0].step
        if self.world.decide(lambda: step) != step:
            problem = "the processes of a run do not see the same folder"
            raise SettingsInvalid(problem, hint="--out on a shared disk")
        if checkpoint is not None:
            self.state, self.tensors = checkpoint
            if self.state.identity != self.identity:
                raise self._other_run()

    def _put_bundle(self, manifest: Manifest, state: Mapping[str, Tensor], encoder: Path | None) -> None:
        model_folder(self.out)
        staged = self.folder / "bundle"
        saved = save_bundle(staged, manifest, state, autoencoder=encoder, overwrite=True)
        weights = saved.manifest.weights_sha256
        if (self.out / MANIFEST_FILE).exists() and load_bundle(self.out).manifest.weights_sha256 != weights:
            # Without its manifest no bundle is here until the new one is.
            for name in (MANIFEST_FILE, *BESIDE):
                (self.out / name).unlink(missing_ok=True)
        for name in (*(AUTOENCODER if encoder else ()), WEIGHTS_FILE, MANIFEST_FILE):
            (staged / name).replace(self.out / name)
            sync_folder(self.out)
        shutil.rmtree(staged)


def latest_checkpoint(folder: Path) -> tuple[RunState, dict[str, Tensor]] | None:
    """Read and verify the newest checkpoint of a run's folder; None where there is none."""
    path = max(folder.glob("checkpoint-*"), default=None)
    if path is None:
        return None
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == path.stem.rpartition("-")[2]:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            return RunState.model_validate_json(header["__metadata__"]["run"]), load(content)
    except (OSError, ValueError, KeyError, SafetensorError):
        pass
    problem = f"the checkpoint {path} is damaged: its digest is not the one in its name"
    raise BundleInvalid(problem, hint=f"remove {path} to resume from the checkpoint before it")


class Row(NamedTuple):
    step: int
    loss: float
    held_out: float | None
    learning_rate: float
    seconds: float
    cpu_seconds: float

    def line(self) -> str:
        held_out = "" if self.held_out is None else f"{self.held_out:.6g}"
        rest = f"{self.learning_rate:.6g},{self.seconds:.3f},{self.cpu_seconds:.3f}"
        return f"{self.step},{self.loss:.6g},{held_out},{rest}\n"


def read_progress(path: Path) -> list[Row]:
    """Read the lines of a progress.csv; a torn last line is left out."""
    rows: list[Row] = []
    for line in path.read_text("utf-8").splitlines()[1:] if path.exists() else ():
        try:
            step, loss, held_out, *rest = line.split(",")
            number = float(held_out) if held_out else None
            rows.append(Row(int(step), float(loss), number, *map(float, rest)))
        except (TypeError, ValueError):
            break
    return rows


class _Log:
    """progress.csv, the curve and the samples of a run as it goes, and what is to be said of them."""

    def __init__(self, run: _Run, trainer: Trainer) -> None:
        self._run, self._trainer = run, trainer
        self._file = run.folder / "progress.csv"
        self.pending: list[Tensor] = []  # losses that were not read yet
        self._losses: list[float] = []
        self._smooth, self._read = 0.0, 0
        self._first, self._begun = trainer.step, time.monotonic()
        self._warned = False
        self._held_out: list[float] = []
        if run.world.leads:
            # Lines after the checkpoint that is resumed from are dropped.
            kept = [row for row in read_progress(self._file) if row.step <= trainer.step]
            lines = [",".join(Row._fields) + "\n", *(row.line() for row in kept)]
            write_file(self._file, "".join(lines).encode(), private=True)
            self._held_out = [row.held_out for row in kept if row.held_out is not None]

    def read(self) -> None:
        """Read the losses of the last steps."""
        values = torch.stack(self.pending).tolist() if self.pending else []
        self.pending.clear()
        for ahead, loss in enumerate(values, start=1):
            if not torch.isfinite(torch.tensor(loss)):
                raise SettingsInvalid(
                    f"the loss is {loss} after {self._trainer.step - len(values) + ahead} steps",
                    hint="look for outliers, lower the learning rate, or train in float32",
                )
            self._losses.append(loss)
            self._read += 1
            self._smooth += (loss - self._smooth) / min(50, self._read)

    def write(self, *, validate: bool) -> None:
        """Write a line when one is due, with the held-out loss when `validate`."""
        trainer = self._trainer
        if validate:
            self._held_out.append(trainer.held_out_loss())
        if validate or trainer.step % LOG_EVERY == 0:
            row = Row(
                step=trainer.step,
                loss=sum(self._losses) / len(self._losses),
                held_out=self._held_out[-1] if validate else None,
                learning_rate=learning_rate(trainer.config, trainer.plan, trainer.step - 1),
                seconds=time.monotonic() - self._begun,
                cpu_seconds=self._run.cpu_seconds,
            )
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(row.line())
            self._losses.clear()

    def draw(self, *, last: bool = False) -> None:
        """Renew loss.png and samples.png, and compare the samples with training data."""
        trainer, folder = self._trainer, self._run.folder
        rows = read_progress(self._file)
        if rows and (last or trainer.config.kind != "points"):
            held_out = [(row.step, row.held_out) for row in rows if row.held_out is not None]
            sheets.loss_curve([(row.step, row.loss) for row in rows], folder / "loss.png", held_out=held_out)
        warning = trainer.task.show(trainer, folder, last=last)
        if warning and not self._warned:
            trainer.notes.append(warning)
            self._warned = True

    def progress(self) -> TrainingProgress:
        step = self._trainer.step
        rate = (step - self._first) / max(1e-9, time.monotonic() - self._begun)
        held_out = self._held_out[-1] if self._held_out else None
        return TrainingProgress(step, self._trainer.plan.total, self._smooth, held_out, rate)


def train_at_terminal(config: TrainConfig, out: Path, *, resume: bool, force: bool) -> Bundle:
    """Train with a progress bar on stderr; Ctrl-C and SIGTERM stop it so that it can be resumed."""
    with bar("training") as show, bar("checking") as look, _stopping() as stop:

        def on_progress(progress: TrainingProgress) -> None:
            held_out = "" if progress.held_out is None else f"  held out {progress.held_out:.4f}"
            remark = f"loss {progress.loss:.4f}{held_out}  {progress.rate:.2g} steps/s"
            show(progress.step, progress.steps, remark)
            stop(progress.step)

        return train(
            config,
            out,
            on_progress,
            resume=resume,
            force=force,
            say=partial(say, err=True),
            on_scan=lambda count, total: look(count, total, "pictures"),
        )


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
    numbers = (signal.SIGINT, signal.SIGTERM) if alone else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
