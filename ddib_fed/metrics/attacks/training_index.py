"""The file by which a node recognises its model's training pictures among the pictures that it decodes.

It holds each training picture reduced to some 16 pixels a side, the digest of the model, and the distance below which
an output counts as a copy. Reduced pictures still show their subject, so the file is as private as the pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import InputError, ShapeMismatch
from ddib_fed.metrics.attacks.copies import (
    Distances,
    Floats,
    TrainingRows,
    reduced,
    reduced_length,
)

MAGIC: Final = b"ddib-fed training index"
MAX_PICTURES: Final = 200_000
"""Some 600 MB of memory for pictures of three channels."""
MAX_BYTES: Final = 1 << 30
MAX_HEADER_BYTES: Final = 4_096
RARE: Final = 1e-3
"""Share of held-out pictures that are nearer to a training picture than the reference distance."""
MARGIN: Final = 0.5
"""The threshold, over the reference distance."""
TAIL: Final = 0.05
"""Share of the held-out pictures, the nearest, from which the reference distance is extrapolated."""
FEWEST_HELD_OUT: Final = 50
FEWEST_IN_TAIL: Final = 10
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class IndexFacts(BaseModel):
    """The header of an index.

    Attributes:
        format_version: Of the file.
        model_sha256: Digest of the model that was trained on the pictures.
        sample_shape: Of the model's pictures, (C, H, W).
        pictures: How many training pictures.
        numbers: Length of the row of each.
        threshold: Distance below which an output counts as a copy, over the distance from the mean picture.
        held_out: Pictures from which the threshold was taken; 0 where it was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    model_sha256: Digest
    sample_shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    pictures: int = Field(ge=1, le=MAX_PICTURES)
    numbers: int = Field(ge=1)
    threshold: float = Field(gt=0, lt=1, allow_inf_nan=False)
    held_out: int = Field(ge=0)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingIndex:
    """A model's training pictures, as `parse_index` read them.

    Attributes:
        facts: The header.
        rows: The reduced pictures.
        sha256: Of the file, hex.
    """

    facts: IndexFacts
    rows: TrainingRows
    sha256: str

    def copied(self, pictures: Floats) -> float | None:
        """The least distance of pictures (N, C, H, W) in [-1, 1] that is below the threshold; None where none is.

        Raises:
            ShapeMismatch: They are not of the model's shape.
        """
        if pictures.shape[1:] != self.facts.sample_shape:
            raise ShapeMismatch(f"pictures {pictures.shape} beside those of {self.facts.sample_shape}")
        found = distances(pictures, self.rows, within=self.facts.threshold)
        least = float(found.min(initial=np.inf))
        return least if least < self.facts.threshold else None


def file_name(model_sha256: str) -> str:
    """Name of the index of a model in a folder of indexes."""
    return f"{model_sha256}.index"


def distances(pictures: Floats, rows: TrainingRows, within: float = np.inf) -> Distances:
    """Distance of each picture (N, C, H, W), or of its mirror image, to the nearest training picture; (N,).

    A model that was trained with `--flip` has seen both.

    Args:
        pictures: In [-1, 1].
        rows: The training pictures, reduced.
        within: See `TrainingRows.nearest`.
    """
    plain, mirrored = (reduced(each) for each in (pictures, pictures[..., ::-1]))
    return np.minimum(rows.nearest(plain, within), rows.nearest(mirrored, within))


def threshold_of(held_out: Distances) -> float:
    """The distance below which an output counts as a copy, from the distances of pictures that are no copies.

    Half the distance that 1 in 1,000 held-out pictures falls below. The number of pictures nearer than r grows as a
    power of r; its exponent is estimated from the nearest twentieth (Hill 1975), so fewer than 1,000 pictures are
    enough. It is half, because translations come nearer to training pictures than held-out pictures do.

    Args:
        held_out: Of pictures that the model was not trained on, (N,).

    Returns:
        At most `MARGIN`: a picture at the distance of the mean picture is no copy.

    Raises:
        InputError: They are fewer than `FEWEST_HELD_OUT`.
    """
    count = len(held_out)
    if count < FEWEST_HELD_OUT:
        raise InputError(
            f"{count} held-out pictures are too few to set a threshold by",
            hint=f"give {FEWEST_HELD_OUT} or more, or --threshold",
        )
    ordered = np.sort(held_out)
    tail = max(FEWEST_IN_TAIL, round(TAIL * count))
    edge, nearer = ordered[tail], np.maximum(ordered[:tail], 1e-6)
    if not edge > 0:
        return 0.0
    inverse_exponent = float(np.log(edge / nearer).mean())
    return MARGIN * min(1.0, float(edge * (RARE * count / tail) ** inverse_exponent))


def index_file(facts: IndexFacts, rows: Floats) -> bytes:
    """The content of an index's file.

    Args:
        facts: The header; `pictures` and `numbers` are those of the rows.
        rows: Reduced training pictures, (M, D) in [-1, 1].

    Raises:
        ShapeMismatch: Header and rows differ.
    """
    if rows.shape != (facts.pictures, facts.numbers):
        raise ShapeMismatch(f"rows {rows.shape} in an index of {facts.pictures} x {facts.numbers}")
    body = facts.model_dump_json().encode() + b"\n" + rows.astype("<f2").tobytes()
    return MAGIC + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def parse_index(data: bytes, source: str) -> TrainingIndex:
    """Read an index and check all of it.

    Args:
        data: The content.
        source: Name of the file, for errors.

    Raises:
        InputError: It is no such file, or was damaged.
    """
    again = "make it again with ddib privacy index"
    first, _, body = data.partition(b"\n")
    magic, _, digest = first[: len(MAGIC) + 65].rpartition(b" ")
    if magic != MAGIC or len(first) != len(MAGIC) + 65:
        raise InputError(f"{source} is not an index of training pictures", hint=again)
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise InputError(f"{source} is damaged: its digest does not match its content", hint=again)
    end = body.find(b"\n", 0, MAX_HEADER_BYTES)
    try:
        facts = IndexFacts.model_validate_json(body[: max(end, 0)])
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, wrong["loc"])) or "content"
        raise InputError(f"{source}: {where}: {wrong['msg']}", hint=again) from error
    expected = reduced_length(facts.sample_shape)
    if facts.numbers != expected:
        raise InputError(f"{source}: numbers: {facts.numbers}, and such pictures have {expected}", hint=again)
    numbers = np.frombuffer(memoryview(body)[end + 1 :], np.uint8)
    if numbers.nbytes != 2 * facts.pictures * facts.numbers:
        raise InputError(f"{source} does not hold the {facts.pictures} pictures of its header", hint=again)
    rows = numbers.view("<f2").reshape(facts.pictures, facts.numbers).astype(np.float32)
    if not np.isfinite(rows).all():
        raise InputError(f"{source} has numbers that are not finite", hint=again)
    return TrainingIndex(facts, TrainingRows(rows), hashlib.sha256(data).hexdigest())
