"""Options of the commands that train, made from the fields of the training configs."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from ddib_fed.training.settings.config import PictureTrainConfig, PointTrainConfig
from ddib_fed.training.settings.fields import TrainConfig
from ddib_fed.training.settings.options import OF_PICTURES, OF_POINTS, field_of, option_name, seconds
from ddib_fed.training.settings.presets import PRESETS

Decorator = Callable[[Any], Any]

_METAVARS: Mapping[str, str] = {
    "domain": "NAME",
    "name": "NAME",
    "data": "FILE",
    "images": "FOLDER",
    "time_s": "2m",
    "diffusion_steps": "T",
    "network": "FIELD=VALUE",
    "range": "LOW:HIGH",
    "intensity": "RULE",
    "init": "BUNDLE",
    "generator": "BUNDLE",
    "calibration": "FILE",
}
_FILES = frozenset({"data", "calibration"})
_NEGATED = frozenset({"dequantise"})
"""Flags that are on by default: their option switches them off."""


def spell(field: str) -> str:
    name = option_name(field).replace("_", "-")
    return f"--no-{name}" if field in _NEGATED else f"--{name}"


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Callback of --time."""
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def training_options(names: Iterable[str], kind: type[TrainConfig] | None = None) -> tuple[Decorator, ...]:
    return tuple(_option(name, kind) for name in names)


def asked_for(ctx: click.Context, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options given on the command line: only these override a preset."""
    return {
        name: value
        for name, value in settings.items()
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE
    }


def _option(name: str, kind: type[TrainConfig] | None) -> Decorator:
    info = field_of(name) if kind is None else kind.model_fields[name]
    text = str(info.description)
    if kind is None and (name in OF_POINTS) != (name in OF_PICTURES) and name not in {"data", "images"}:
        first = text[0].lower() if _is_word(text) else text[0]
        text = f"{'Points' if name in OF_POINTS else 'Pictures'}: {first}{text[1:]}"
    if name == "time_s":
        return click.option("--time", "time_s", callback=duration, metavar=_METAVARS[name], help=text)
    inner = _without_none(info.annotation)
    if inner is bool:
        flag = name not in _NEGATED
        return click.option(spell(name), name, is_flag=True, flag_value=flag, default=not flag, help=text)
    default = info.default if _is_shown(name, info, kind) else None
    return click.option(
        spell(name),
        name,
        type=_type(name, inner, info),
        multiple=name == "network",
        default=default,
        show_default=default is not None,
        metavar=_METAVARS.get(name),
        help=text,
    )


def _is_word(text: str) -> bool:
    first = text.split(maxsplit=1)[0]
    return first[1:] == first[1:].lower()


def _is_shown(name: str, info: FieldInfo, kind: type[TrainConfig] | None) -> bool:
    """Whether the help ends with the default: where the text does not say what happens without the option."""
    if info.default is None or name in {"network", "preset"} or "default" in str(info.description).lower():
        return False
    others = [
        k.model_fields[name].default for k in (PointTrainConfig, PictureTrainConfig) if name in k.model_fields
    ]
    return name not in {"range", "label_dropout"} and (
        kind is not None or all(d == info.default for d in others)
    )


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _type(name: str, inner: Any, info: FieldInfo) -> Any:
    if name == "preset":
        return click.Choice(list(PRESETS))
    if get_origin(inner) is Literal:
        return click.Choice([value for value in get_args(inner) if value != "given"])
    if inner is Path:
        return click.Path(dir_okay=name not in _FILES, file_okay=name in _FILES, path_type=Path)
    limits: dict[str, Any] = {}
    for limit in info.metadata:
        for key, edge, is_open in (
            ("ge", "min", False),
            ("gt", "min", True),
            ("le", "max", False),
            ("lt", "max", True),
        ):
            if hasattr(limit, key):
                limits[edge] = getattr(limit, key)
                limits |= {f"{edge}_open": True} if is_open else {}
    if inner is int:
        limits.pop("max", None) if limits.pop("max_open", False) else None
        return click.IntRange(**limits)
    return click.FloatRange(**limits) if inner is float else str
