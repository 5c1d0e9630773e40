"""Commands whose help fits a screen, groups of commands that are imported when they are called, and what to type next.

A command with many options explains its everyday options in `--help` and names the others; `--help-all` explains all.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from ddib_fed.names import CONFIG_VARIABLE, NODE_FILE
from ddib_fed.terminal import say

FOLDED_FROM = 13
"""Options from which on a command's help is folded."""
PARAGRAPHS = 3
"""Of a description, in folded help."""
WIDEST = 100
"""Columns of help, at most."""
RARE = frozenset(
    {
        "target_class", "source_class", "pairs", "labels", "guidance", "classifier", "classifier_scale",
        "limit", "quality", "evaluations", "solver", "grid", "depth", "encoder", "soften", "soften_sigma",
        "calibration", "generator", "sets", "no_calibration", "deadline", "detach", "quiet", "fit", "range",
        "classes", "flip", "colours", "intensity", "slices", "tile", "overlap", "keep_parts", "scene",
        "batch", "init", "seed", "device", "dtype", "preset", "keep_latent", "doubtful_below",
        "credentials", "flags", "skip_bad", "epsilon", "days", "page", "again", "clip", "compat",
        "diffusion_steps", "noise_schedule", "timestep_respacing", "eta", "ddpm", "threads",
    }
)  # fmt: skip
"""Parameters that are only named in folded help."""


class Command(click.Command):
    """A command with folded help, if it has many options."""

    @property
    def is_folded(self) -> bool:
        return sum(isinstance(each, click.Option) and not each.hidden for each in self.params) >= FOLDED_FROM

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        return [*params[:-1], _HELP_ALL, params[-1]] if self.is_folded else params

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the command does: where help is folded its first paragraphs, and with `--help-all` all of them."""
        text = self.help
        if self.is_folded and not ctx.meta.get(_HELP_ALL_KEY):
            self.help = "\n\n".join((text or "").split("\n\n")[:PARAGRAPHS])
        try:
            super().format_help_text(ctx, formatter)
        finally:
            self.help = text

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options: all of them, or the everyday ones and the names of the others."""
        records, folded = [], []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if self.is_folded and not ctx.meta.get(_HELP_ALL_KEY) and param.name in RARE:
                folded.append(param.opts[0])
            else:
                records.append((re.sub(r"\b(INTEGER|FLOAT)( RANGE)?\b", "N", record[0]), record[1]))
        with formatter.section("Options"):
            formatter.write_dl(records)
        if folded:
            with formatter.section("More, which --help-all explains"):
                rows = textwrap.wrap("  ".join(folded), formatter.width - 2, break_on_hyphens=False)
                formatter.write_text("\n".join(["\b", *rows]))


class Group(click.Group):
    """A group whose commands have such help; `hooks` are commands by name, `module:attribute`, imported when called."""

    command_class = Command
    group_class = type

    def __init__(
        self, *args: Any, hooks: Mapping[str, str] = MappingProxyType({}), **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.hooks = hooks
        self.commands = {**self.commands, **{name: click.Command(name) for name in hooks}}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find the command."""
        if (place := self.hooks.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found


def _show_all(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    if not value or ctx.resilient_parsing:
        return
    ctx.meta[_HELP_ALL_KEY] = True
    click.echo(ctx.get_help(), color=ctx.color)
    ctx.exit()


_HELP_ALL_KEY = "ddib_fed.help_all"
_HELP_ALL = click.Option(
    ["--help-all"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    help="Explain every option and exit.",
)


def command(name: str | None = None, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    return click.command(name, cls=Command, **attributes)


def group(**attributes: Any) -> Callable[[Callable[..., Any]], Group]:
    return click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]}, **attributes)


def with_config(path: Path) -> str:
    found = Path(os.environ.get(CONFIG_VARIABLE) or NODE_FILE)
    return "" if path == found else f" --config {shlex.quote(str(path))}"


def say_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the next commands, each on a line of its own below its purpose."""
    say("next:")
    for command, purpose in steps:
        say(f"  {purpose}:", f"    {command}")
