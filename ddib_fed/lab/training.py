"""`ddib privacy train`, and `ddib model distil` and `tune`. Heavy imports wait until a command runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import Field

from ddib_fed import TrainConfig
from ddib_fed.cli import options
from ddib_fed.cli.model import DATA, DEVICE
from ddib_fed.cli.train import FORCE, OUT, RESUME, SET, given, run, train_options
from ddib_fed.terminal import bar, emit, lines, listed


@click.command()
@OUT
@train_options(TrainConfig.Private.options_of("points", "pictures"), TrainConfig.Private)
@SET
@RESUME
@FORCE
@options.OUTCOME
def train(*, out: Path, sets: tuple[str, ...], resume: bool, force: bool, **settings: Any) -> None:
    """Train a model with differential privacy of each training sample (DP-SGD; needs the extra dp).

    Otherwise as `ddib model train`, with its options. It bounds what the weights tell of one training sample, and hides
    no picture that is translated (SECURITY.md). Delta is a tenth of 1 / training samples.
    """
    config = TrainConfig.Private.checked(given(settings), "ddib privacy train --help", sets)
    run(config, out, resume=resume, force=force)


class DistilConfig(TrainConfig):
    """One run that distils a model of points into a flow map of both directions."""

    free = TrainConfig.free | {"teacher"}
    opener = "ddib_fed.lab.distil:open_distil"

    kind: str = "distilled"
    teacher: str  # a shipped model by name, or a bundle's folder
    teacher_evaluations: int = Field(24, ge=8, le=1000)  # of a path
    uses: int = Field(16, ge=1)  # steps that ask each batch of paths before it is replaced

    @classmethod
    def usual(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "batch": 2048, "learning_rate": 1e-3, "ema": 0.999, "checkpoint_every": 500, "warmup": 100,
            "samples": 10_000, "preset": "", "microbatch": int(given.get("batch", 2048)),
        }  # fmt: skip

    def faults(self) -> Iterable[tuple[bool, str]]:
        both = self.domain is not None and self.data is not None
        yield both or self.images is not None, "give one of: domain, data (points)"
        yield self.steps is not None and self.time_s is not None, "give either steps or time_s"
        yield bool(self.batch % 2), "batch is even: half starts from data, half from noise"

    def usual_steps(self) -> int:
        return 4_000


_NAMES = ("domain", "data", "name", "steps", "time_s", "seed", "batch", "device", "threads", "dtype")


@click.command()
@click.argument("teacher", metavar="MODEL")
@OUT
@train_options(_NAMES, DistilConfig)
@SET
@RESUME
@FORCE
@options.OUTCOME
def distil(
    *, teacher: str, out: Path, sets: tuple[str, ...], resume: bool, force: bool, **settings: Any
) -> None:
    """Distil a model of points into one that encodes and decodes in 1, 2, 4 or 8 evaluations.

    It needs the model and points of its domain, and nothing of another party: --data, or nothing for a model of a
    domain that packages carry. The new model follows the ODE of the old one; its manifest names that and the
    measured error. Both models distilled, take --set solver=flow-map --evaluations 8; other solvers work too.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    config = DistilConfig.checked(given(settings, teacher=teacher), "ddib model distil --help", sets)
    run(config, out, resume=resume, force=force)


@click.command()
@click.argument("folder", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.argument("further", metavar="[NUMBER]...", nargs=-1, type=click.IntRange(2, 64))
@options.option(
    "--evaluations N",
    "Network evaluations of a leg to learn steps for; several numbers may follow.",
    click.IntRange(2, 64),
    multiple=True,
    show_default="12 16 20",
)
@DATA
@options.option(
    "--soften-sigma SIGMA", "Softening of pictures; default: the model's own.", click.FloatRange(0, 1)
)
@options.SEED
@DEVICE
@options.OUTCOME
def tune(
    *, folder: Path, further: tuple[int, ...], evaluations: tuple[int, ...], device: str, **given: Any
) -> None:
    """Learn where the solver steps on a model, so that fewer evaluations are as exact.

    The steps are learned for encoding and for decoding, from this model alone, and written into steps.json beside its
    weights with their error on held-out samples; the model's digest does not change. `--set grid=learned` uses them,
    with one of the numbers learned: for example `ddib model tune models/a --evaluations 12 16 20`. Steps of encoding
    belong to one softening. MODEL is the bundle's folder.
    """
    from ddib_fed import Model
    from ddib_fed.lab import tuning

    counts = sorted({*evaluations, *further}) or [12, 16, 20]
    model = Model.open(folder, device=device, threads=options.usual_threads())
    with bar("tuning") as show:
        tuned = tuning.tune(
            model, counts, on_progress=lambda what, done, total: show(done, total, what), **given
        )
    emit(tuned.values(), lambda: lines({"steps": tuned.digest(), **listed("", tuned.values())}))
