"""Translations that show something else than their sources: whether they are marked."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, attack, ddib
from benchmarks.trust.soundness.samples import photograph, written
from ddib_fed.models.catalogue import copy_shipped
from ddib_fed.models.shipped import open_bundle
from tests.samples.picture_examples import png_of

COUNT, LEAST = 16, 0.8
"""Pictures, and the share of forged ones that must be marked: thresholds are at the 95th percentile of chance."""


def _translated(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Held-out satellite pictures as the relief model shows them, by the defaults but with fewer steps; the records."""
    written(folder / "in", {f"{n:02}.png": png_of(photograph(9 * n)) for n in range(COUNT)})
    out = folder / "out"
    said = ddib("bridge", "translate", folder / "in", "--source", "satellite", "--target", "relief",
                "--evaluations", 12, "--out", out)  # fmt: skip
    assert said.code == 0, said.error
    return out, {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("??.json"))}


def _exchanged(out: Path) -> None:
    files = sorted(out.glob("??.png"))
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def _each(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def forge(out: Path) -> None:
        for path in out.glob("??.png"):
            with Image.open(io.BytesIO(path.read_bytes())) as picture:
                Image.fromarray(np.ascontiguousarray(change(np.asarray(picture)))).save(path)

    return forge


def _permuted(pixels: Any) -> Any:
    flat = pixels.reshape(-1, *pixels.shape[2:])
    return flat[np.random.default_rng(0).permutation(len(flat))].reshape(pixels.shape)


FORGED: dict[str, Callable[[Path], None]] = {
    "another picture's": _exchanged,
    "mirrored, so that land is where sea was": _each(lambda pixels: pixels[:, ::-1]),
    "turned by a quarter": _each(np.rot90),
    "pixels in another order": _each(_permuted),
    "grey noise": _each(lambda pixels: np.random.default_rng(1).integers(0, 256, pixels.shape, np.uint8)),
}


@attack(
    2,
    f"translations of {COUNT} held-out pictures, replaced, mirrored, turned, permuted or noise: `ddib evaluate`",
    before="pictures whose land became sea (edge correlation .07, chance .03) were not doubtful",
    test="tests/cli/models/test_doubts.py::test_a_picture_is_doubtful_by_its_round_trip_or_by_its_structure",
)
def forged(folder: Path, result: Result) -> None:
    out, records = _translated(folder)
    least = open_bundle("satellite").manifest.structure
    assert least is not None
    wrong = [
        name for name, record in records.items()
        if bool(record["doubtful"]) != (record["picture"]["edge_correlation"] < least.edge_correlation
                                        or record["picture"]["mutual_information"] < least.mutual_information)
    ]  # fmt: skip
    result.add("each record's mark is that of its figures, without --cycle", not wrong, said=", ".join(wrong))
    copy_shipped("satellite", folder / "model")
    kept = {path: path.read_bytes() for path in out.glob("??.png")}
    for what, forge in {"honest": lambda _out: None, **FORGED}.items():
        forge(out)
        said = ddib(
            "evaluate", out, "--source", folder / "in", "--thresholds", folder / "model", "--format", "json"
        )
        found = json.loads(said.out)["structure"]["doubtful"] if said.code == 0 else -1
        right = found >= LEAST * COUNT if what in FORGED else 0 <= found <= (1 - LEAST) * COUNT
        result.add(what, right, said.code, f"{found} of {COUNT} marked")
        result.measured.append(f"{what}: {found}")
        for path, content in kept.items():
            path.write_bytes(content)


@attack(
    2,
    "thresholds: in every shipped bundle of pictures, and applied by a node to a job without a round trip",
    before="no thresholds in the bundle; a good round trip excused everything",
    test="tests/models/test_bundle.py::test_shipped_models_of_pictures_say_what_is_doubtful",
)
def thresholds(folder: Path, result: Result) -> None:
    for name in (
        "satellite",
        "relief",
        "etopo",
        "brain-t1",
        "brain-t2",
        "satellite-as-relief",
        "brain-t1-as-t2",
    ):
        found = open_bundle(name).manifest.structure
        result.add(name, found is not None and found.edge_correlation > 0)
    pair = nodes.pictures()
    written(folder / "in", {"coast.png": png_of(photograph(3)), "noise.png": png_of(_noise())})
    said = ddib("translate", folder / "in" / "coast.png", "--to", nodes.SATELLITE, "--evaluations", 12, "--out",
                folder / "o", "--profile", pair.profile)  # fmt: skip
    record = json.loads((folder / "o" / "coast.json").read_text())
    result.add(
        "a node's record says yes or no",
        isinstance(record.get("doubtful"), bool),
        said.code,
        str(record.get("doubts")),
    )


def _noise() -> Any:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
