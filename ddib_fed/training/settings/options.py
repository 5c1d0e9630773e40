"""The options of a training run, given on the command line or in [train] of node.toml, as one checked config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ddib_fed.errors import UsageError
from ddib_fed.training.settings.config import AnyConfig, PictureTrainConfig, PointTrainConfig
from ddib_fed.training.settings.fields import TrainConfig
from ddib_fed.training.settings.presets import PUBLIC

Config = TypeVar("Config", bound=TrainConfig)
Spell = Callable[[str], str]
"""How a front end writes the option of a field."""

SHIPPED: Final = ("satellite", "relief", "etopo", "satellite-64", "relief-64", "brain-t1", "brain-t2")
"""As `ddib_fed.datasets.shipped.SHIPPED`, which needs numpy; a test holds the two together."""
OPTIONS: Final = (
    "domain", "data", "images", "name", "steps", "time_s", "seed", "batch", "learning_rate", "width", "blocks",
    "schedule", "diffusion_steps", "threads", "precision", "dtype", "preset", "size", "channels", "network", "fit",
    "range", "intensity", "slices", "classes", "skip_bad", "held_out", "flip", "crop", "dequantise", "colours",
    "sampler", "microbatch", "ema", "checkpoint_every", "device", "label_dropout", "parameterisation", "learn_sigma",
    "init", "calibration", "soften_sigma", "dp_epsilon", "dp_delta", "dp_clip", "dp_draws", "dp_accountant",
)  # fmt: skip
"""Fields of the configs that can be asked for, in the order of the help."""
RENAMED: Final = {"time_s": "time", "parameterisation": "predict", "schedule": "noise_schedule"}
"""Options that are not called as their field."""
OF_POINTS: Final = frozenset(OPTIONS) & frozenset(PointTrainConfig.model_fields)
OF_PICTURES: Final = frozenset(OPTIONS) & frozenset(PictureTrainConfig.model_fields) - {"schedule"}
OF_FOLDERS: Final = frozenset({"channels", "fit", "intensity", "slices", "skip_bad", "held_out"})
"""Options that pictures which packages carry have no use for; `PictureTrainConfig` refuses the others."""
_PUBLIC_FIELDS = frozenset({"num_channels", "num_res_blocks", "dropout"})
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def option_name(field: str) -> str:
    return RENAMED.get(field, field)


def field_of(name: str) -> FieldInfo:
    return (PictureTrainConfig if name in OF_PICTURES else PointTrainConfig).model_fields[name]


def train_config(given: Mapping[str, Any], *, spell: Spell, hint: str, command: str = "") -> AnyConfig:
    """The run that the options ask for."""
    given = {**given, "command": command}
    refuse_idle(given, spell, hint)
    if is_on_pictures(given):
        return checked(PictureTrainConfig, _picture_fields(given), hint)
    return checked(PointTrainConfig, _point_fields(given, spell), hint)


def is_on_pictures(given: Mapping[str, Any]) -> bool:
    return "images" in given or given.get("domain") in SHIPPED


def refuse_idle(given: Mapping[str, Any], spell: Spell, hint: str) -> None:
    """Refuse the first option that would have no effect."""
    pictures = is_on_pictures(given)
    kind, other = ("pictures", "points") if pictures else ("points", "pictures")
    for name in OPTIONS:
        if name in given and name not in (OF_PICTURES if pictures else OF_POINTS):
            raise UsageError(f"{spell(name)} is for {other}, and this run is on {kind}", hint=hint)
        if name in given and name in OF_FOLDERS and "images" not in given:
            raise UsageError(
                f"{spell(name)} is for a folder of pictures, not for {given['domain']}", hint="leave it out"
            )


def checked(kind: type[Config], fields: Mapping[str, Any], hint: str) -> Config:
    """The config of these fields."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"the options contradict each other: {where + ': ' if where else ''}{message}", hint=hint
        ) from error


def with_preset(fields: dict[str, Any]) -> dict[str, Any]:
    return {"preset": "small-64" if (fields.get("size") or 0) >= 64 else "tiny-32", **fields}


def network_fields(asked: str | Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a network from a table, or from texts such as model_channels=48; the text public is {"public": True}."""
    if isinstance(asked, Mapping):
        return dict(asked)
    texts = [asked] if isinstance(asked, str) else asked
    return dict(("public", True) if text == "public" else _field_value(text) for text in texts)


def seconds(text: str) -> float:
    """Seconds from text such as 90, 90s, 2m or 1h30m; ValueError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms]?)", text.strip().lower())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text.strip().lower() or not total > 0:
        raise ValueError(f"{text!r} is no time: write 90, 90s, 2m or 1h30m")
    return total


def _picture_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(given)
    if "network" in fields:
        fields["network"] = network_fields(fields["network"])
    return with_preset(fields)


def _point_fields(given: Mapping[str, Any], spell: Spell) -> dict[str, Any]:
    fields = {name: value for name, value in given.items() if name != "network"}
    if "network" in given:
        fields = {**PUBLIC, **fields, **_public_network(given, spell)}
    batch = fields.setdefault("batch", PointTrainConfig.model_fields["batch"].default)
    fields["levels"] = _divisor(batch, fields["diffusion_steps"] if "network" in given else 256)
    # With differential privacy the target of a point may depend on no other point.
    fields.setdefault("reference", 0 if "dp_epsilon" in given else _divisor(batch, 1024))
    return fields


def _public_network(given: Mapping[str, Any], spell: Spell) -> dict[str, Any]:
    """Fields of the public network, which is the only one for points that can be asked for."""
    fields = network_fields(given["network"])
    if not fields.pop("public", False):
        raise UsageError(
            f"{spell('network')} {next(iter(fields), '')} is for pictures, or goes with {spell('network')} public, and "
            "this run is on points",
            hint=f"{spell('network')} public; {spell('width')} and {spell('blocks')} are for the network without it",
        )
    wrong = sorted({"width", "blocks"} & given.keys())
    if wrong:
        raise UsageError(
            f"{spell(wrong[0])} is not for the public network",
            hint=f"{spell('network')} num_channels=256 {spell('network')} num_res_blocks=3",
        )
    strange = sorted(fields.keys() - _PUBLIC_FIELDS)
    if strange:
        raise UsageError(
            f"the public network has no field {strange[0]!r}", hint="num_channels, num_res_blocks and dropout"
        )
    return fields


def _field_value(text: str) -> tuple[str, Any]:
    """A name and a value from model_channels=48, channel_mult=1,2,3 or use_scale_shift_norm=true."""
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise UsageError(f"{text!r} is no FIELD=VALUE", hint="write a field so: model_channels=48")
    parts = [_scalar(part.strip()) for part in value.split(",") if part.strip()]
    many = name in {"channel_mult", "attention_resolutions"}
    return name, (parts if many or len(parts) != 1 else parts[0])


def _scalar(text: str) -> Any:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _divisor(batch: int, most: int) -> int:
    return next(k for k in range(min(most, batch), 0, -1) if batch % k == 0)
