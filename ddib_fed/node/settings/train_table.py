"""The table [train] of node.toml: the options of `ddib model train`, with paths relative to the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, create_model

from ddib_fed.errors import DdibError
from ddib_fed.training.config import TrainConfig, checked, options_of

_PATHS = frozenset({"data", "images", "init", "calibration"})
_HINT = "`ddib model train --help` explains the options"


class _Table(BaseModel):
    """The methods of `TrainTable`, whose keys are the options of a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def check(self, domain: str) -> None:
        """Refuse contradicting options, as far as that needs no other file."""
        try:
            checked(TrainConfig, self._given(Path(), domain), _HINT)
        except DdibError as error:
            raise ValueError(f"train: {error.detail}; {error.hint}") from error

    def config(self, folder: Path, domain: str, *, name: str, threads: int, command: str) -> TrainConfig:
        given = {"threads": threads, **self._given(folder, domain), "name": name, "command": command}
        return checked(TrainConfig, given, _HINT)

    def pictures(self, folder: Path) -> str | None:
        given = self._given(folder, "")
        return str(given["images"]) if "images" in given else given["domain"] or None

    def _given(self, folder: Path, domain: str) -> dict[str, Any]:
        found = {
            _KEYS[key]: value for key in self.model_fields_set if (value := getattr(self, key)) is not None
        }
        found |= {name: folder / found[name] for name in _PATHS & found.keys()}
        return found if found.keys() & {"domain", "data", "images"} else {"domain": domain, **found}


# The bundle is named after the domain that the node hosts.
_KEYS = {name.removesuffix("_s"): name for name in options_of("points", "pictures") if name != "name"}
if TYPE_CHECKING:
    TrainTable = _Table
else:
    TrainTable = create_model("TrainTable", __base__=_Table, **dict.fromkeys(_KEYS, (Any, None)))
