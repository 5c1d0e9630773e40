"""Trains the node's own model from the `[train]` table of node.toml, with a progress bar, resumable."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, TimeRemainingColumn

from ddib_fed.node.config import NodeConfig
from ddib_fed.terminal import column, console, say
from ddib_fed.training.loop import Progress as Step
from ddib_fed.training.presets import TrainConfig
from ddib_fed.training.run import train


def train_node(config: NodeConfig, *, force: bool = False) -> None:
    """Train into the bundle that node.toml names; goes on with an unfinished run of the same settings.

    Args:
        config: The node's configuration; without `train.domain` and `train.data` it trains `model.domain`.
        force: Start again, whatever is there.

    Raises:
        DdibError: As `ddib_fed.training.run.train`.
    """
    section = config.train
    data = None if section.data is None else config.folder / section.data
    settings = TrainConfig(
        domain=section.domain
        if data is None and section.domain
        else (config.model.domain if data is None else None),
        data=data,
        name=config.model.domain,
        seed=section.seed,
        steps=section.steps,
        time_s=section.time_s,
        threads=config.engine.threads or 1,
        command=f"{config.command} train --config node.toml",
    )
    columns = (
        column("{task.description}"),
        BarColumn(),
        column("step {task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[rate]} steps/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(f"training {config.model.domain}", total=None, loss="-", rate="-")

        def show(step: Step) -> None:
            bar.update(
                task,
                completed=step.step,
                total=step.steps,
                loss=f"{step.loss:.4f}",
                rate=f"{step.rate:.1f}",
            )

        bundle = train(settings, config.paths.bundle, show, resume=not force, force=force)
    say(
        f"model of {config.model.domain}: {bundle.manifest.parameters:,} parameters, digest {bundle.digest[:12]}, "
        f"in {config.paths.bundle}",
        "next: serve it, with the same command and --config, and `serve` for `train`",
        err=True,
    )
