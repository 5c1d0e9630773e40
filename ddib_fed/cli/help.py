"""Commands whose help fits a screen, and groups that suggest a name for a misspelt one.

A command with many options lists its everyday options in `--help`, and the others by name, a line for each subject;
`--help-all` explains every option, subject by subject. An option belongs to a subject by the name of its parameter, so
that the same option is found in the same place in every command; one that is in no subject is an everyday option.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from ddib_fed.names import CONFIG_VARIABLE, NODE_FILE, nearest
from ddib_fed.terminal import say

FOLDED_FROM = 13
"""Options from which on a command's help is folded."""
PARAGRAPHS = 3
"""Of a description, in folded help."""
WIDEST = 100
"""Columns of help, at most."""

SUBJECTS: Mapping[str, frozenset[str]] = {
    title: frozenset(names.split())
    for title, names in {
        "Classes, guidance": "target_class source_class class_ pairs labels guidance classifier classifier_scale guide "
        "label_dropout limit",
        "Solver": "quality evaluations solver order grid depth encoder soften calibration",
        "Public code": "flags diffusion_steps noise_schedule rescale_timesteps predict_xstart",
        "Between nodes": "no_calibration deadline detach quiet",
        "Reading pictures": "fit range classes held_out flip crop dequantise colours channels",
        "Volumes and maps": "intensity slices tile scene",
        "Learning": "batch microbatch learning_rate ema checkpoint_every init predict seed",
        "Network": "width blocks network preset",
        "Privacy": "dp_epsilon dp_delta dp_clip dp_draws dp_accountant",
        "Machine": "device threads precision dtype",
        "Results": "thresholds keep_latent doubtful_below samples soften_sigma credentials",
    }.items()
}
EVERYDAY = "Options"


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
        text, shown = self.help, (self.help or "").split("\n\n")[:PARAGRAPHS]
        if self.is_folded and not ctx.meta.get(_HELP_ALL_KEY):
            self.help = "\n\n".join(shown)
        try:
            super().format_help_text(ctx, formatter)
        finally:
            self.help = text

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options: all of them under their subjects, or the everyday ones and the names of the others."""
        subjects = by_subject(param for param in self.get_params(ctx) if isinstance(param, click.Option))
        whole = not self.is_folded or bool(ctx.meta.get(_HELP_ALL_KEY))
        folded = []
        for title, options in subjects.items():
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            if title == EVERYDAY or whole:
                with formatter.section(title):
                    formatter.write_dl([(_written(first), text) for first, text in records])
            else:
                folded.append((title, [option.opts[0] for option in options]))
        if folded:
            room = formatter.width - max(len(title) for title, _ in folded) - 6
            with formatter.section("More, which --help-all explains"):
                formatter.write_dl([(title, _packed(names, room)) for title, names in folded])


class Group(click.Group):
    """A group whose commands have such help; it suggests a name for a misspelt command."""

    command_class = Command
    group_class = type

    def __init__(
        self, *args: Any, hooks: Mapping[str, str] = MappingProxyType({}), **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.hooks = hooks
        """Commands of leaf packages: `module:attribute` by name, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.hooks])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find the command."""
        if (place := self.hooks.get(cmd_name)) is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            close = nearest(name, self.list_commands(ctx))
            path = ctx.command_path
            meant = f" Did you mean {close!r}?" if close else f" `{path} --help` lists the commands."
            raise click.UsageError(f"There is no command {name!r}.{meant}", ctx=ctx)
        return super().resolve_command(ctx, args)


def by_subject(options: Iterable[click.Option]) -> dict[str, list[click.Option]]:
    """The options that are shown under the titles of `SUBJECTS`, everyday ones first; of a command with few all are."""
    shown = [option for option in options if not option.hidden]
    if len(shown) < FOLDED_FROM:
        return {EVERYDAY: shown}
    found: dict[str, list[click.Option]] = {title: [] for title in (EVERYDAY, *SUBJECTS)}
    for option in shown:
        title = next((title for title, names in SUBJECTS.items() if option.name in names), EVERYDAY)
        found[title].append(option)
    return {title: members for title, members in found.items() if members}


def _packed(names: Iterable[str], room: int) -> str:
    lines = [""]
    for name in names:
        longer = f"{lines[-1]}  {name}" if lines[-1] else name
        lines[-1:] = [longer] if len(longer) <= room else [lines[-1], name]
    return "\b\n" + "\n".join(lines)


def _written(option: str) -> str:
    return re.sub(r"\b(INTEGER|FLOAT)( RANGE)?\b", "N", option)


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
    return click.group(cls=Group, **attributes)


def with_config(path: Path) -> str:
    found = Path(os.environ.get(CONFIG_VARIABLE) or NODE_FILE)
    return "" if path == found else f" --config {shlex.quote(str(path))}"


def say_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the next commands, each on a line of its own below its purpose."""
    say("next:")
    for command, purpose in steps:
        say(f"  {purpose}:", f"    {command}")
