"""Recipes: the settings that two parties agree on before each trains alone; no data and no weights.

{"format": "ddib recipe 1", "settings": {"preset": ..., "seed": ..., "size": ..., "range": ...}, "start": DIGEST}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import AlreadyExists, BundleInvalid, FileMissing, InputError, UsageError
from ddib_fed.files import write_file
from ddib_fed.training.settings.config import PictureTrainConfig
from ddib_fed.training.settings.private import DP_FIELDS

OWN = frozenset(
    {
        "domain", "images", "name", "microbatch", "threads", "device", "skip_bad", "held_out", "init", "init_digest",
        "checkpoint_every", "samples", "command", "recipe", "time_s", "timed_s", "planned", "calibration",
        "calibration_digest", "intensity", "slices", *DP_FIELDS,
    }
)  # fmt: skip
"""Settings that are each party's own affair."""
MAX_BYTES = 1 << 20


class Recipe(BaseModel):
    """A recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["ddib recipe 1"] = "ddib recipe 1"
    agreed: dict[str, Any]
    start: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    def digest(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def settings(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a config: the agreed fields with the user's own."""
        for name, value in own.items():
            if name not in OWN and value != self.agreed.get(name, value if name == "steps" else None):
                raise UsageError(
                    f"the recipe says {name} = {self.agreed.get(name)!r}, the options {value!r}",
                    hint=f"leave {name} out, or agree on another recipe",
                )
        if bool(self.start) != (own.get("init") is not None):
            needed = (
                f"needs the initial weights {self.start[:16]}..." if self.start else "has no initial weights"
            )
            raise UsageError(
                f"the recipe {needed}", hint="--init BUNDLE" if self.start else "leave --init out"
            )
        return {**self.agreed, **own, "init_digest": self.start, "recipe": self.digest()}


def make_recipe(config: PictureTrainConfig, start: str = "") -> Recipe:
    fields = config.settled().model_dump(mode="json", exclude=set(OWN), exclude_none=True)
    return Recipe(agreed=fields, start=start)


def write_recipe(recipe: Recipe, path: Path, *, force: bool = False) -> None:
    """Write a recipe as JSON."""
    if path.exists() and not force:
        raise AlreadyExists(f"{path} exists", hint="choose another name, or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (recipe.model_dump_json(indent=2) + "\n").encode())


def read_recipe(path: Path) -> Recipe:
    """A recipe from a file, its settings checked."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    hint = "a recipe is made by `ddib recipe export`"
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is too large for a recipe", hint=hint)
    try:
        recipe = Recipe.model_validate_json(content)
        foreign = sorted(recipe.agreed.keys() & OWN)
        if foreign:
            raise InputError(f"{path} sets {foreign[0]}, which no recipe may", hint=hint)
        # Whose pictures they will be is open; only folders have ranges and windows.
        PictureTrainConfig.model_validate({**recipe.agreed, "images": path.parent})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg']}", hint=hint) from error
    return recipe


def recipe_of_run(out: Path) -> Recipe:
    """The recipe of a run that was started in `out`, finished or not."""
    path = out / "run" / "run.json"
    if not path.exists():
        raise FileMissing(f"there is no run in {out}", hint="name the folder that was --out of a training")
    try:
        config = PictureTrainConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleInvalid(f"{path} is no run on pictures", hint="recipes are for pictures") from error
    return make_recipe(config, config.init_digest)
