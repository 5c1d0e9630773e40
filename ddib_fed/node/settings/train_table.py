"""The table [train] of node.toml: the options of `ddib model train`, with paths relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, create_model

from ddib_fed.errors import DdibError
from ddib_fed.training.settings.config import AnyConfig
from ddib_fed.training.settings.options import (
    OPTIONS,
    field_of,
    option_name,
    seconds,
    train_config,
)

_PATHS = frozenset({"data", "images", "init", "calibration"})
_NOT_HERE = frozenset({"name"})
"""The bundle is named after the domain that the node hosts."""
_FIELDS = {option_name(name): name for name in OPTIONS if name not in _NOT_HERE} | {"time_s": "time_s"}
_HINT = "`ddib model train --help` explains the options"


def _duration(value: Any) -> Any:
    return seconds(value) if isinstance(value, str) else value


def spell(field: str) -> str:
    return f"train.{option_name(field)}"


class _Table(BaseModel):
    """The methods of `TrainTable`, whose fields are made from those of the training configs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, domain: str) -> None:
        """Refuse contradicting options, as far as that needs no other file."""
        given = self._given(Path(), domain)
        try:
            train_config(given, spell=spell, hint=_HINT)
        except DdibError as error:
            raise ValueError(f"train: {error.detail}; {error.hint}") from error

    def config(self, folder: Path, domain: str, *, name: str, threads: int, command: str) -> AnyConfig:
        given = {"threads": threads, **self._given(folder, domain), "name": name}
        return train_config(given, spell=spell, hint=_HINT, command=command)

    def pictures(self, folder: Path) -> str | None:
        found = {_FIELDS[key]: getattr(self, key) for key in self.model_fields_set}
        return str(folder / found["images"]) if found.get("images") else found.get("domain")

    def _given(self, folder: Path, domain: str) -> dict[str, Any]:
        values = {_FIELDS[key]: getattr(self, key) for key in self.model_fields_set}
        given = {name: folder / value if name in _PATHS else value for name, value in values.items()}
        return given if given.keys() & {"domain", "data", "images"} else {"domain": domain, **given}


def _fields() -> dict[str, Any]:
    """Type and default of each key."""
    found: dict[str, Any] = {}
    for key, name in _FIELDS.items():
        if name == "network":
            found[key] = (str | list[str] | dict[str, Any] | None, None)
        else:
            found[key] = (
                Annotated[_annotation(name) | None, BeforeValidator(_duration)]
                if name == "time_s"
                else _annotation(name) | None,
                None,
            )
    return found


def _annotation(name: str) -> Any:
    info = field_of(name)
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


if TYPE_CHECKING:
    TrainTable = _Table
else:
    TrainTable = create_model("TrainTable", __base__=_Table, **_fields())
