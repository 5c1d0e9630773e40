"""`ddib model train` and `ddib try`: points or pictures into bundles. Heavy imports wait until a command runs.

The options are fields of `TrainConfig`, whose descriptions are the help; `--set` reaches those without an option.
"""

from __future__ import annotations

import shlex
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click

import ddib_fed
from ddib_fed import TrainConfig
from ddib_fed.cli import options
from ddib_fed.cli.options import Decorator
from ddib_fed.errors import UsageError
from ddib_fed.terminal import bars, emit, leads, lines, listed, outcome, plain, say

OUT = options.option("--out DIR", "The bundle's folder.", required=True)
RESUME = options.option("--resume", "Resume the unfinished run in --out.")
FORCE = options.option("--force", "Start over, replacing the run in --out.")
SET = options.option(
    "sets --set FIELD=VALUE",
    "Another field of the run, e.g. ema=0.999, crop=true or channels=1, or of its network, e.g. model_channels=48 or "
    "channel_mult=1,2,3; network=public is the public DDIB code's for points.",
    multiple=True,
)


def train_options(names: Iterable[str], config: type[TrainConfig] = TrainConfig) -> Decorator:
    """Return a decorator that adds an option for each of these fields, with None as default.

    OMP_NUM_THREADS sets the threads.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed([name for name in names if name != "threads"]):
            command = _option(name, config)(command)
        return command

    return add


def _option(name: str, config: type[TrainConfig]) -> Decorator:
    info = config.model_fields[name]
    text, only = str(info.description), {"points", "pictures"} & set(config.kinds_of(name))
    if isinstance(info.default, str | int | float) and info.annotation is not bool:
        text += "" if "default" in text.lower() else f" Default: {info.default}."
    if len(only) == 1 and name not in {"data", "images"}:
        text = f"{only.pop().title()}: {text[0].lower() if text[1].islower() else text[0]}{text[1:]}"
    kind: Any = info.annotation
    while get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    written = f"{name} {config.option(name)}"
    if kind is bool:
        return options.option(written, text, default=None)
    choices = list(config.presets()) if name == "preset" else []
    if get_origin(kind) is Literal:
        choices = [value for value in get_args(kind) if value != "given"]
    if choices:
        return options.option(written, text, choices)
    metavar = "TIME" if name == "time_s" else {Path: "PATH", int: "N", float: "X"}.get(kind, "VALUE")
    return options.option(f"{written} {metavar}", text, float if kind is float else None)


def given(settings: Mapping[str, Any], **further: Any) -> dict[str, Any]:
    """Return the options that were typed, and the command line."""
    said = {name: value for name, value in settings.items() if value is not None}
    threads = {"threads": options.usual_threads()}
    return {**threads, **said, **further, "command": shlex.join(["ddib", *sys.argv[1:]])[:2000]}


@click.command()
@OUT
@train_options(TrainConfig.options_of("points", "pictures", "autoencoder"))
@options.option(
    "generator --model MODEL",
    "Train a classifier of noisy pictures that guides the model in this folder: its noise levels, units and picture "
    "size are used, and --classes folders is the default.",
    click.Path(file_okay=False, path_type=Path),
)
@SET
@RESUME
@FORCE
@options.OUTCOME
def train(
    *, out: Path, generator: Path | None, sets: tuple[str, ...], resume: bool, force: bool, **settings: Any
) -> None:
    """Train a model and write its bundle, with progress.csv, loss curve, samples and checkpoints in DIR/run.

    A killed and resumed run ends bit for bit as an uninterrupted one. Several processes or GPUs share the work of one
    run: torchrun --nproc-per-node 4 --no-python ddib model train --images FOLDER ...
    """
    fields = given(settings)
    if generator is not None:
        options.refuse_idle(("colours",), "is as the model of --model has it")
        fields = {"classes": "folders", **_as_guided(generator), **fields}
        fields |= {"kind": "classifier", "generator": generator}
    run(TrainConfig.checked(fields, "ddib model train --help", sets), out, resume=resume, force=force)


def _as_guided(generator: Path) -> dict[str, Any]:
    """Return how the model that is to be guided reads its pictures."""
    model = ddib_fed.Model.open(f"./{generator}" if not generator.is_absolute() else generator)
    fields: dict[str, Any] = {"size": model.shape[-1]}
    if (picture := model.manifest.picture) is not None:
        fields |= {"fit": picture.fit, "range": f"{picture.low!r}:{picture.high!r}"}
        fields |= {"intensity": picture.intensity, "slices": picture.slices}
    return fields


def run(config: TrainConfig, out: Path, *, resume: bool, force: bool) -> None:
    """Train, and print the result, unless another process prints it."""
    options.refuse_both_ways(resume=resume, force=force)
    model = ddib_fed.train(config, out, resume=resume, force=force, at_terminal=True)
    if leads():
        values = trained(model)
        shown = plain(values)
        shown |= shown.pop("distilled") or {"shown in": str(out / "run" / "samples.png")}
        emit(values, lambda: lines(listed("", shown)))


def trained(model: ddib_fed.Model) -> dict[str, object]:
    """Return what a training made, as JSON values."""
    manifest, verdict = model.manifest, model.verdict
    return {
        "out": model.folder,
        "domain": model.domain,
        "digest": model.digest,
        "parameters": manifest.parameters,
        "steps": manifest.training.steps,
        "figures": manifest.training.figures,
        "samples": None if verdict is None else verdict.level,
        "distilled": manifest.distilled,
    }


@click.command("try")
@click.argument("a", type=click.Path(file_okay=False, path_type=Path))
@click.argument("b", type=click.Path(file_okay=False, path_type=Path), required=False)
@options.option(
    "time_s --time TIME",
    "Time for the whole run, with what a finished one took before; default without --steps: 2 hours.",
    callback=options.read_by(TrainConfig.seconds),
)
@options.option("--steps N", "Optimiser steps of each model, instead of --time.", click.IntRange(1))
@train_options(("size", "preset", "fit", "range", "flip", "batch", "skip_bad", "seed", "device"))
@options.option(
    "soften --soften-sigma SIGMA", "Softening before encoding.", click.FloatRange(0, 1), default=0.05
)
@options.option("--evaluations N", "Network evaluations of each leg.", click.IntRange(3, 10_000), default=48)
@options.option(
    "--pictures N", "Held-out pictures translated each way, at most.", click.IntRange(1), default=64
)
@options.option(
    "--calibration FILE", "Translate under this one (`ddib calibrate --local`), or a shipped model's."
)
@options.OUT_RESULTS
@options.FORCE
@options.OUTCOME
def try_(
    *,
    a: Path,
    b: Path | None,
    out: Path,
    force: bool,
    time_s: float | None,
    steps: int | None,
    pictures: int,
    evaluations: int,
    soften: float,
    calibration: Path | None,
    **settings: Any,
) -> None:
    """Train on two folders of pictures, translate held-out pictures both ways, and write one page.

    Checks both folders, trains a model of each for half the time, translates held-out pictures there and back, and
    writes index.html: pictures, figures and what to try next. It rehearses in one process what two
    institutions do; nodes can serve its models (DIR/a, DIR/b) unchanged. The same command continues a
    stopped run, and with more --time or --steps a finished one. One folder with trainA and
    trainB is accepted instead of two. After `ddib calibrate --local DIR/a DIR/b`, the same command with --calibration
    translates again, under the calibration.
    """
    if time_s is not None and steps is not None:
        raise UsageError("--time and --steps both say how long", hint="omit one of them")
    if steps is None and time_s is None:
        time_s = 7200.0
    # A range belongs to one folder, so it is filled in for each side.
    fields = {
        "images": Path(),
        "soften_sigma": soften,
        "device": "auto",
        **given({"steps": steps, **settings}),
    }
    config = TrainConfig.checked(fields, "ddib try --help")
    config = config.model_copy(
        update={"command": f"ddib model train --images FOLDER --preset {config.preset}"}
    )
    agreed = None if calibration is None else ddib_fed.Calibration.open(calibration)
    rehearsal = ddib_fed.Rehearsal(a, b, out, config, time_s, pictures, evaluations, agreed)
    with bars() as on_progress:
        tell = partial(say, err=True)
        page, models = rehearsal.run(force=force, say=tell, on_progress=on_progress)
    lines(
        {
            "models": f"{out / 'a'}, {out / 'b'}",
            "pictures": f"{out / 'a-to-b'}, {out / 'b-to-a'}",
            "page": str(page),
        }
    )
    outcome(page=page, models=[trained(model) for model in models])
