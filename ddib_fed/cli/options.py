"""Groups of commands that are imported when they are called, and the options that several commands share."""

from __future__ import annotations

import functools
import importlib
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import click
from click.core import ParameterSource

import ddib_fed
from ddib_fed.errors import AlreadyExists, ConfigError, UsageError
from ddib_fed.extensions import extension, extensions
from ddib_fed.names import CONFIG_VARIABLE, NODE_FILE, nearest, size_from
from ddib_fed.terminal import escape, print_table, say, sentences_aside

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_KINDS: Mapping[str, Any] = {
    "FILE": click.Path(dir_okay=False, path_type=Path),
    "DIR": click.Path(file_okay=False, path_type=Path),
    "PATH": click.Path(path_type=Path),
    "N": int,
}
"""Types by what stands for the value in the help: `--out DIR` takes a path that is no file."""


class Group(click.Group):
    """A group with `hooks`: commands by name, as `module:attribute`, that are imported when they are called.

    Further ones come in by the entry points of the group `extended`; one that cannot be loaded says so.
    """

    group_class = type

    def __init__(
        self,
        *args: Any,
        hooks: Mapping[str, str] = MappingProxyType({}),
        extended: str = "",
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self.hooks, self.extended = hooks, extended
        self.commands = {**self.commands, **{name: click.Command(name) for name in hooks}}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *extensions(self.extended)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (place := self.hooks.get(cmd_name)) is not None:
            module, _, attribute = place.partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        known = super().get_command(ctx, cmd_name)
        return self._extension(cmd_name) if known is None and cmd_name in extensions(self.extended) else known

    def _extension(self, name: str) -> click.Command:
        try:
            command: click.Command = extension(self.extended, name)
        except ConfigError as error:
            problem = error
        else:
            return command

        def fail(rest: tuple[str, ...]) -> NoReturn:
            del rest
            raise problem

        anything = {"ignore_unknown_options": True, "help_option_names": []}
        rest = click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED)
        return click.Command(name, anything, fail, [rest], help=problem.detail)


def group(**attributes: Any) -> Callable[[Callable[..., Any]], Group]:
    return click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]}, **attributes)


def option(written: str, text: str, kind: Any = None, **attributes: Any) -> Decorator:
    """Return an option from how the help writes it, such as `--out DIR`.

    What stands for the value gives its type, without one the option is a flag; `kind` is another type, or the values to
    choose from. A bare name before the option is that of the parameter. A default is shown.
    """
    words = written.split()
    last = max(place for place, word in enumerate(words) if word.startswith("-"))
    declared, metavar = words[: last + 1], " ".join(words[last + 1 :])
    if isinstance(kind, (list, tuple)):
        kind = click.Choice(kind)
    if kind is None and not metavar:
        attributes["is_flag"] = True
    shown = attributes.get("default") not in {None, "", Path()} and (kind or metavar)
    return click.option(
        *declared,
        type=kind or _KINDS.get(metavar.split("|")[0].removesuffix("..."), None),
        metavar=metavar or None,
        help=text,
        **{"show_default": bool(shown), **attributes},
    )


def read_by(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """Return the callback of an option whose text `parse` reads; its ValueError becomes the message."""

    def call(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return call


def refuse_idle(names: Collection[str], why: str, *, hint: str = "leave it out") -> None:
    """Refuse the first option of the running command that was given and would have no effect."""
    context = click.get_current_context(silent=True)
    if context is None:
        return
    for param in context.command.params:
        source = context.get_parameter_source(str(param.name))
        if param.name in names and source is ParameterSource.COMMANDLINE:
            raise UsageError(f"{param.opts[0]} {why}", hint=hint)


def is_given(name: str) -> bool:
    """Return whether the option of a parameter was given to the running command."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (ParameterSource.DEFAULT, None)


def refuse_both_ways(*, resume: bool, force: bool) -> None:
    if resume and force:
        raise UsageError("--resume continues a run, --force starts it again", hint="omit one of them")


def refuse_overwriting(out: Path, *, force: bool) -> None:
    if (out / "report.json").exists() and not force:
        raise AlreadyExists(f"{out} holds results already", hint="choose another folder, or --force")


def with_config(path: Path | None = None) -> str:
    """Return the option of a following command that names a configuration, by default this command's; or nothing."""
    path = path or click.get_current_context().params["config_path"]
    usual = Path(os.environ.get(CONFIG_VARIABLE) or NODE_FILE)
    return "" if path == usual else f" --config {shlex.quote(str(path))}"


def say_next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the next commands, each on a line of its own below its purpose."""
    say("next:")
    for command, purpose in steps:
        say(f"  {purpose}:", f"    {command}")


def note(*texts: str) -> None:
    """Write each text to stderr, for the operator."""
    for text in texts:
        say(text, err=True)


def confirm(question: str) -> bool:
    return bool(click.confirm(escape(question), default=False))


def usual_threads() -> int:
    """Return the threads of torch: OMP_NUM_THREADS, else one, because more are often slower."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else 1


def _share(text: str) -> float | str:
    if text == MAP_ALONE:
        return text
    share = float(text)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{share:g} is not in 0 to 1")
    return share


MAP_ALONE = "map"
SHARE = option(
    "--share FRACTION|map",
    "Of the network in encoding; the rest is linear. Below 1 the latent shows more of the picture: both nodes must "
    "allow it ([policy] least_share). map: the calibration's map alone, for which no latent crosses. Default: the "
    "calibration's, else 1.",
    str,
    callback=read_by(_share),
)
SEED = option("--seed N", "All random draws follow from it.", click.IntRange(0), default=0)
SIDES = read_by(size_from)
DEVICE = option("--device NAME", "Pictures: cpu, cuda or cuda:1.", default="cpu")
PROFILE = option(
    "profile_path --profile FILE",
    "The client's profile; default: $DDIB_PROFILE, ./client.toml, ./client/client.toml or ~/.config/ddib/client.toml.",
)


CONFIG = option(
    "config_path --config FILE",
    "The node's configuration; default: $DDIB_CONFIG, or ./node.toml.",
    envvar=CONFIG_VARIABLE,
    default=Path(NODE_FILE),
    show_default=False,
)


def _sentences_aside(ctx: click.Context, param: click.Parameter, value: str) -> None:
    del param
    if value == "json" and not ctx.resilient_parsing:
        ctx.with_resource(sentences_aside())


OUTCOME = option(
    "output_format --format",
    "Sentences for people, or one JSON document for scripts (sentences then go to stderr).",
    ("text", "json"),
    default="text",
    expose_value=False,
    callback=_sentences_aside,
)


def for_node(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config and --format to an operator's command, and call it with the node."""

    @functools.wraps(command)
    def opened(config_path: Path, **further: Any) -> Any:
        return command(ddib_fed.Node.open(config_path), **further)

    return CONFIG(OUTCOME(opened))


def for_client(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --format and --profile to a command, and call it with an open client."""

    @functools.wraps(command)
    def opened(profile_path: Path | None, **further: Any) -> Any:
        with ddib_fed.Client.for_command(profile_path) as client:
            return command(client, **further)

    return OUTCOME(PROFILE(opened))


OUT_RESULTS = option("--out DIR", "Folder for the results; created if missing.", required=True)
FORCE = option("--force", "Overwrite existing results.")
EVALUATIONS = option(
    "--evaluations N", "Network evaluations of each leg.", click.IntRange(1, 10_000), default=48
)
QUALITY = option(
    "--quality",
    "Instead of solver, --evaluations and grid: draft takes 12 evaluations along learned steps (each model tuned "
    "by `ddib model tune`), standard the default's 48, exact 96.",
    ("draft", "standard", "exact"),
)
TARGET_CLASS = option(
    "--target-class CLASS", "Class to translate to or to sample, by name or number.", default=""
)
INTENSITY = option(
    "--intensity RULE",
    "How values of volumes and maps become the model's numbers: values, hu, window:CENTRE,WIDTH[@LOW:HIGH] or "
    "percentile:LEAST,MOST[@LOW:HIGH]; auto is what the source's model was trained with, else hu for CT, values for 8 "
    "bits, percentile:0.5,99.5 for all else.",
    str,
    default="auto",
)
SEND = option(
    "--send AE@HOST:PORT|URL",
    "Send derived DICOM series there: C-STORE; to a URL by DICOMweb (STOW-RS).",
    str,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of `--set NAME=VALUE`."""

    name: str
    metavar: str
    kind: click.ParamType[Any] | Callable[[str], Any]  # a function's ValueError says what is wrong
    text: str
    here: bool = False  # for two models of one process alone

    def read(self, text: str) -> Any:
        """Return the value of a text; raise UsageError if it is none."""
        try:
            if isinstance(self.kind, click.ParamType):
                return self.kind.convert(text, None, None)
            return self.kind(text)
        except (ValueError, click.BadParameter) as error:
            why = error.message if isinstance(error, click.BadParameter) else str(error)
            raise UsageError(f"--set {self.name}: {why}", hint=TABLE) from error


TABLE = "ddib translate --set help   lists the settings and their values"
SETTINGS = {
    each.name: each
    for each in (
        Setting("solver", "NAME", click.Choice(("unipc", "ddim", "flow-map")),
                "Solver of the ODE; flow-map takes 1 to 8 evaluations of a model from `ddib model distil`. Default: "
                "unipc."),
        Setting("grid", "NAME", click.Choice(("default", "uniform-lambda", "integer", "learned")),
                "Grid of the steps; learned are those that `ddib model tune` found for each model."),
        Setting("depth", "X", click.FloatRange(0, 1, min_open=True),
                "Fraction of the path to noise; less keeps more structure and reveals more: both nodes must allow it. "
                "Default: 1."),
        Setting("temperature", "SCALE", click.FloatRange(0.8, 1),
                "Of the latent where it is decoded: below 1 less is invented, and edges are softer. Default: the "
                "calibration's, else 1."),
        Setting("blend", "FRACTION", click.FloatRange(0, 1),
                "Under a calibration: of the source's own picture, mapped by it, in the result. More is nearer to what "
                "the source shows, and less sharp; nothing more leaves. Default: the calibration's, else 0."),
        Setting("guidance", "SCALE", click.FloatRange(0, 1000),
                "Classifier-free guidance towards --target-class, if the model was trained with dropped labels; 1 is "
                "none."),
        Setting("classifier-scale", "SCALE", click.FloatRange(0, 1000),
                "Guidance towards --target-class by the classifier of the model that decodes, with this weight."),
        Setting("pairs", "FROM:TO,...", click.STRING,
                "Translate the classes of a folder to classes of the target (260:261,282:283), under the public code's "
                "names."),
        Setting("limit", "N", click.IntRange(1), "With pairs: only the first N pictures of each class."),
        Setting("soften-sigma", "SIGMA", click.FloatRange(0, 1),
                "Noise level of softening before encoding pictures. Default: each model's own.", here=True),
        Setting("seed", "N", click.IntRange(0), "Of the noise of softening and of flags. Default: 0.", here=True),
        Setting("size", "HxW", size_from,
                "Bring all pictures to this height and width, and translate them so in overlapping tiles by one ODE. "
                "Volumes: DxHxW.", here=True),
        Setting("classifier", "MODEL", click.STRING,
                "Bundle of the classifier for guidance; classifier-scale weighs it, by default 1.", here=True),
        Setting("flags", "FLAGS", click.STRING,
                "Sample models with integer steps as the public code: --diffusion_steps, --noise_schedule, "
                "--timestep_respacing, --eta, --use_ddpm True, --clip_denoised; others have no effect.", here=True),
        Setting("batch", "N", click.IntRange(1, 4096), "Pictures that the network evaluates at once. Default: 16.",
                here=True),
        Setting("dtype", "NAME", click.Choice(("float32", "bfloat16", "float16")),
                "Of the networks; the integrated state stays float32 (docs/operating.md has the error of each). "
                "bfloat16 is faster on a CPU with instructions for it; float16 is for GPUs.", here=True),
    )
}  # fmt: skip


def _read_settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings by name; print their table for `--set help`."""
    del param
    if "help" in values and not ctx.resilient_parsing:
        print_table("", ["setting", "here", "meaning"], [
            [f"{each.name}={each.metavar}", "yes" if each.here else "", each.text] for each in SETTINGS.values()
        ])  # fmt: skip
        ctx.exit()
    read: dict[str, Any] = {}
    for each in values:
        name, mark, value = each.partition("=")
        if not mark:
            raise UsageError(f"--set {each}: NAME=VALUE is expected", hint=TABLE)
        if (setting := SETTINGS.get(name)) is None:
            close = nearest(name, SETTINGS)
            raise UsageError(
                f"--set: there is no setting {name!r}{close and f'; did you mean {close}?'}", hint=TABLE
            )
        if name in read:
            raise UsageError(f"--set {name} is given twice", hint="leave one out")
        read[name] = setting.read(value)
    return read


SET = option(
    "settings --set NAME=VALUE",
    "A further setting, such as temperature=0.9; may be repeated. `--set help` lists all.",
    str,
    multiple=True,
    callback=_read_settings,
)


def asked(settings: Mapping[str, Any], **further: Any) -> ddib_fed.Request:
    """Return the request of `--set` and of what other options say, such as `quality`, `evaluations` and `share`."""
    quality, evaluations = further.pop("quality", None), further.pop("evaluations", None)
    chosen = ddib_fed.Settings(solver=settings.get("solver", "unipc"), grid=settings.get("grid", "default"))
    chosen = replace(chosen, evaluations=evaluations or chosen.evaluations).of_quality(quality)
    weight = 1.0 if "classifier" in settings else None
    if (share := further.pop("share", None)) == MAP_ALONE:
        refuse_settings(
            settings, ("blend", "temperature", "depth"), "has no effect on the map alone", hint="omit it"
        )
        settings = {**settings, "share": 1.0, "blend": 1.0}
    elif share is not None:
        settings = {**settings, "share": share}
    own = {field.name for field in fields(ddib_fed.Settings)} - {"solver", "grid"}  # which are in `chosen`
    names = [name for name in settings if name in own]
    if is_given("evaluations"):
        names.append("evaluations")
        settings = {**settings, "evaluations": chosen.evaluations}
    return ddib_fed.Request(
        replace(chosen, **{name: settings[name] for name in names}),
        ddib_fed.Guidance(settings.get("guidance"), settings.get("classifier-scale", weight)),
        left=[name for name in ("share", "temperature", "blend", "evaluations") if name not in names],
        soften=settings.get("soften-sigma"),
        seed=settings.get("seed", 0),
        flags=settings.get("flags", ""),
        **further,
    )


def refuse_settings(settings: Mapping[str, Any], names: Iterable[str], why: str, *, hint: str) -> None:
    """Refuse the first of these settings that was given and would have no effect."""
    for name in names:
        if name in settings:
            raise UsageError(f"--set {name} {why}", hint=hint)


def open_model(name: str, settings: Mapping[str, Any], device: str) -> ddib_fed.Model:
    """Open a model as `--set` says; raise UsageError for the weight of a classifier that is not given."""
    if "classifier" not in settings:
        why = "weighs the classifier, which is not given"
        refuse_settings(settings, ("classifier-scale",), why, hint="add --set classifier=MODEL")
    return ddib_fed.Model.open(
        name,
        device=device,
        dtype=settings.get("dtype", "float32"),
        classifier=settings.get("classifier"),
        size=settings.get("size"),
        threads=usual_threads(),
        batch=settings.get("batch", 0),
    )


JOB_ID = click.argument("job_id", metavar="JOB")
MODEL = click.argument("which", metavar="MODEL")
