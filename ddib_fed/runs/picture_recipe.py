"""The recipe of a run over a folder of pictures, and its fixed batches.

A recipe holds all that the results depend on and nothing else. Its digest with a picture's is the request
that the record beside a result answers, which is how a resumed run knows what is finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.bridge.records.translation_record import UNCERTAINTY, Part, file_name
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import SettingsInvalid, UsageError
from ddib_fed.guidance import Guidance

RUN_FILE, REPORT_FILE, SHEET_FILE = "run.json", "report.json", "sheet.png"
"""A run's own files, beside its results."""
RECORD = "record"
RESERVED = frozenset({RUN_FILE, REPORT_FILE, SHEET_FILE})
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How pictures are translated."""

    source: str
    target: str
    settings: SolverSettings
    soften: float | None = None
    depth: float = 1.0
    seed: int = 0
    cycle: bool = False
    classifier: str | None = None
    classifier_scale: float | None = None
    guidance: float | None = None
    guide_encoding: bool = False
    clip: bool = False
    dtype: Dtype = "float32"
    uncertainty: int = 0
    keep_latents: bool = False
    public_names: bool = False
    scene: tuple[int, int] | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.classifier_scale is not None and self.classifier is None:
            raise SettingsInvalid(
                f"classifier_scale {self.classifier_scale:g} weighs a classifier, and there is none",
                hint="add --classifier MODEL, or leave --classifier-scale out",
                facts={"field": "classifier_scale"},
            )
        _ = self.guides

    @property
    def guides(self) -> Guidance:
        """What is asked of each leg; a classifier without a weight weighs 1."""
        weight = (
            1.0 if self.classifier is not None and self.classifier_scale is None else self.classifier_scale
        )
        return Guidance(self.guidance, weight, encoding=self.guide_encoding, clip=self.clip)

    @property
    def legs(self) -> int:
        return (4 if self.cycle else 2) + 2 * self.uncertainty

    def described(self) -> dict[str, Any]:
        """The settings as JSON values, without the places of models."""
        fields = asdict(self)
        for place in ("source", "target", "classifier"):
            del fields[place]
        del fields["settings"]
        if self.scene is None:
            del fields["scene"]
        del fields["calibration"]
        if self.calibration is not None:
            fields["calibration"] = self.calibration.sha256.hex()
        # Written out, as every release did: a request of an older run is still the same request.
        fields["classifier_scale"] = 1.0 if self.classifier_scale is None else self.classifier_scale
        return self.settings.described() | fields


@dataclass(frozen=True, slots=True)
class Task:
    """One picture of a run."""

    path: Path
    shown: str
    name: str
    digest: str
    source_class: int | None = None
    target_class: int | None = None
    size: tuple[int, int] | None = None

    def request(self, recipe: Recipe, models: Sequence[str]) -> str:
        asked = [recipe.described(), list(models), self.digest, self.source_class, self.target_class]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def files(self, recipe: Recipe) -> dict[str, str]:
        """Names of the files that belong to it, below the run's folder, by `RECORD` and what they are in a record."""
        translated = file_name(self.name, Part.TRANSLATION, ".png")
        if recipe.public_names:
            translated = f"{self.name}_translated_{self.target_class}.PNG"
        stem = translated.rpartition(".")[0]
        found: dict[str, str] = {RECORD: f"{stem}.json", Part.TRANSLATION: translated}
        if recipe.public_names:
            found[Part.SOURCE] = f"{self.name}.PNG"
        if recipe.cycle:
            found[Part.RETURNED] = file_name(stem, Part.RETURNED, ".png")
        if recipe.uncertainty:
            found[UNCERTAINTY] = file_name(stem, UNCERTAINTY, ".png")
        if recipe.keep_latents:
            found[Part.LATENT] = file_name(stem, Part.LATENT, ".npy")
        return {str(kind): name for kind, name in found.items()}


def batches(tasks: Iterable[Task], size: int) -> Iterator[tuple[Task, ...]]:
    """Tasks in their order, at most `size` together, each batch of one pair of classes."""
    for _, group in groupby(tasks, key=lambda task: (task.source_class, task.target_class)):
        same = list(group)
        for start in range(0, len(same), size):
            yield tuple(same[start : start + size])


def check_names(tasks: Sequence[Task], recipe: Recipe) -> None:
    """Return when no two results would be written under one name, and none under that of one of the run's own files."""
    owner: dict[str, Task] = {}
    for task in tasks:
        for kind, name in task.files(recipe).items():
            if name.casefold() in RESERVED:
                raise UsageError(
                    f"a result of {task.shown} would be called {name}, as a file of the run itself is",
                    hint=f"rename {task.shown}",
                )
            # Case is folded: some file systems do not tell A.png from a.png.
            other = owner.setdefault(name.casefold(), task)
            if other is not task and not (kind == Part.SOURCE and other.path == task.path):
                raise UsageError(
                    f"the results of {other.shown} and {task.shown} would both be called {name}",
                    hint="rename one of them",
                )
