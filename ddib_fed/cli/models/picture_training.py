"""Options of training on pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddib_fed.errors import UsageError

if TYPE_CHECKING:
    from ddib_fed.training.pictures.config import PictureTrainConfig

Config = TypeVar("Config", bound="PictureTrainConfig")

PRESETS = ("tiny-32", "small-64", "adm-128", "adm-256")
_FOLDER = click.Path(file_okay=False, path_type=Path)

LEARNING = (
    click.option(
        "--preset",
        type=click.Choice(PRESETS),
        help="Pictures: network and all that goes with its size; `ddib model presets` lists them. "
        "Without it tiny-32, or small-64 from --size 64 on.",
    ),
    click.option("--size", type=click.IntRange(8, 1024), help="Pictures: height and width for the network."),
    click.option(
        "--channels", type=click.Choice(["1", "3"]), help="Pictures: grey or RGB; without it, as most are."
    ),
    click.option(
        "--network",
        multiple=True,
        metavar="FIELD=VALUE",
        help="Pictures: another value of a field of the network, e.g. model_channels=48 or channel_mult=1,2,3. Points: "
        "public, for the public DDIB code's network and objective, and with it num_channels, num_res_blocks, dropout.",
    ),
    click.option(
        "--fit",
        type=click.Choice(["resize", "crop", "pad"]),
        help="Pictures: how those of another size are fitted, undone on output: resize without it; pad suits scans.",
    ),
    click.option(
        "--range",
        "range_",
        metavar="LOW:HIGH",
        help="Pictures: raw values that become -1 and 1, as -1000:2000, p1:p99 or type (the default).",
    ),
    click.option(
        "--classes",
        type=click.Choice(["folders", "prefix"]),
        help="Pictures: learn classes, from sub-folders or from the file name up to the first underscore.",
    ),
    click.option("--skip-bad", is_flag=True, help="Pictures: list files that cannot be read, and go on."),
    click.option(
        "--held-out",
        type=click.FloatRange(0, 0.9, min_open=True, max_open=True),
        help="Pictures: share never trained on; 0.1 without it.",
    ),
    click.option("--flip", is_flag=True, help="Pictures: mirror half of them, left to right."),
    click.option(
        "--crop", is_flag=True, help="Pictures: cut random windows, from pictures an eighth larger."
    ),
    click.option("--no-dequantise", is_flag=True, help="Pictures: add no noise within a quantisation step."),
    click.option(
        "--colours",
        type=click.Choice(["rgb", "opponent"]),
        help="Pictures: what the network's channels are, rgb without it; opponent (lightness, blue against red, green "
        "against both) lets hues find hues where light and dark are exchanged. Both sides alike.",
    ),
    click.option(
        "--sampler",
        type=click.Choice(["grid", "uniform", "loss-second-moment"]),
        help="Pictures: how noise levels are drawn; grid without it, as the solvers place their steps.",
    ),
    click.option(
        "--microbatch",
        type=click.IntRange(1),
        help="Pictures: how many at once; halved by itself when memory runs out.",
    ),
    click.option("--ema", type=click.FloatRange(0, 1, max_open=True), help="Decay of the averaged weights."),
    click.option(
        "--checkpoint-every",
        type=click.IntRange(1),
        help="Pictures: steps between checkpoints and sample sheets.",
    ),
    click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]), help="Pictures: cpu without it."),
)
"""What a generator and a classifier are told alike."""
PICTURES = (
    *LEARNING,
    click.option(
        "--label-dropout",
        type=click.FloatRange(0, 1, max_open=True),
        help="Pictures: share of samples without their class, for classifier-free guidance, e.g. 0.1.",
    ),
    click.option(
        "--predict",
        type=click.Choice(["v", "eps"]),
        help="Pictures: what the network predicts; v without it.",
    ),
    click.option("--learn-sigma", is_flag=True, help="Pictures: learn variances too, by the hybrid loss."),
    click.option(
        "--init", type=_FOLDER, metavar="BUNDLE", help="Pictures: start from these weights, RGB or grey."
    ),
    click.option(
        "--soften-sigma",
        type=click.FloatRange(0, 1),
        help="Pictures: noise level from which they will be encoded; goes into the manifest; 0.05 without it.",
    ),
    click.option(
        "--recipe",
        "recipe_path",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Pictures: settings that were agreed on, from `ddib recipe export`; see also --init.",
    ),
)
NAMES = frozenset(
    {
        "preset", "size", "channels", "network", "fit", "range_", "classes", "label_dropout", "skip_bad", "held_out",
        "flip", "crop", "no_dequantise", "colours", "predict", "learn_sigma", "sampler", "microbatch", "ema",
        "checkpoint_every", "device", "init", "soften_sigma", "recipe_path", "images",
    }
)  # fmt: skip
_SHARED = (
    "domain",
    "name",
    "steps",
    "time_s",
    "batch",
    "learning_rate",
    "threads",
    "precision",
    "dtype",
    "seed",
)
"""Options of runs on points, too."""
_RENAMED = {"range_": "range", "predict": "parameterisation"}


def picture_config(settings: Mapping[str, Any], given: Sequence[str], command: str) -> PictureTrainConfig:
    """The options as a run on pictures.

    Args:
        settings: All options by name.
        given: Those that were on the command line: only they override a recipe.
        command: To be recorded.

    Raises:
        UsageError: Options that contradict each other, or the recipe.
    """
    from ddib_fed.training.pictures.config import PictureTrainConfig

    fields = picture_fields(settings, given, NAMES)
    if settings["recipe_path"] is not None:
        from ddib_fed.training.pictures.recipes import read_recipe

        fields = read_recipe(settings["recipe_path"]).settings(fields)
    elif "preset" not in fields:
        fields["preset"] = "small-64" if (settings["size"] or 0) >= 64 else "tiny-32"
    return checked(PictureTrainConfig, {**fields, "command": command}, "ddib model train --help")


def picture_fields(
    settings: Mapping[str, Any], given: Sequence[str], names: frozenset[str]
) -> dict[str, Any]:
    """Those of the options that were given, as fields of a config."""
    fields = {
        _RENAMED.get(name, name): settings[name]
        for name in given
        # Flags that are off and options given not once say nothing; a number 0 does.
        if name in names and settings[name] is not False and settings[name] not in (None, ())
    }
    fields |= {name: settings[name] for name in given if name in _SHARED}
    fields.pop("recipe_path", None)
    if fields.pop("no_dequantise", False):
        fields["dequantise"] = False
    if "channels" in fields:
        fields["channels"] = int(fields["channels"])
    if "network" in fields:
        fields["network"] = dict(field_value(text) for text in fields["network"])
    return fields


def checked(kind: type[Config], fields: Mapping[str, Any], hint: str) -> Config:
    """The config of these fields.

    Raises:
        UsageError: They contradict each other.
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"the options contradict each other: {where + ': ' if where else ''}{message}", hint=hint
        ) from error


def field_value(text: str) -> tuple[str, Any]:
    """A name and a value from model_channels=48, channel_mult=1,2,3 or use_scale_shift_norm=true."""
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise UsageError(f"{text!r} is no FIELD=VALUE", hint="--network model_channels=48")
    parts = [_scalar(part.strip()) for part in value.split(",") if part.strip()]
    many = name in {"channel_mult", "attention_resolutions"}
    return name, (parts if many or len(parts) != 1 else parts[0])


def _scalar(text: str) -> Any:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
