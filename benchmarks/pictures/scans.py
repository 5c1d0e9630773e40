"""Real scans of heads between two nodes, by `ddib study`: T1 to T2, MR to CT, CT to CT of two scanners.

    python -m benchmarks.pictures.scans --scans FOLDER --models MODELS   measures, ten minutes of two cores
    python -m benchmarks.pictures.scans --scans FOLDER --prepare OUT     writes what the models are to learn, no more

FOLDER holds the unpacked packages (`apt-get download`, `dpkg -x`, no root): libcamitk5-data of Debian (FullHead, sinus,
brain), invesalius-examples (Cranium.inv3 as Cranium/matrix.dat), almi5_T1fs_conform.nii.gz of npm's
cornerstone-nifti-image-loader, and pairs/SUBJECT/{mr,ct,mask}.nii.gz: a head that no model saw, and a CT of another
person on its grid (affine registration by mutual information, SimpleITK). NOTICE has the terms of each.

Slices z = 47-62, 86-101, 125-140 of brain.mhd and of the T1 template, which stands for the head's T1, are kept apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from benchmarks.command import Rows, Run, command
from ddib_fed.datasets import package_folder
from ddib_fed.studies import orientation_of, sliced
from ddib_fed.testing import TwoNodes, ddib

Array = NDArray[Any]
TESTED = {"low": (47, 63), "middle": (86, 102), "high": (125, 141)}
SINUS = {"low": (40, 56), "high": (90, 106)}
SIDE = 256
MODELS = {"t1-t2": ("head-t1", "head-t2"), "mr-ct": ("head-t1", "head-ct"), "ct-ct": ("sinus-ct", "head-ct")}
FACTS = {"registration": "one coordinate system", "trained_on": [], "dilated_mm": 0, "evaluations": 24}
PLANS: dict[str, dict[str, Any]] = {
    "t1-t2": {"protocol": "synthesis", "unit": "arbitrary", "range": [0, 255],
              "mask": "{subject}/{session}/mask.nii.gz"},
    "mr-ct": {"protocol": "synthesis", "unit": "HU", "range": [-1024, 3000], "mask": "{subject}/mask.nii.gz",
              "registration": "none of one person: an affine one of another's CT"},
    "ct-ct": {"protocol": "unpaired", "unit": "HU", "range": [-1024, 3000]},
}  # fmt: skip


def others(slices: range, slabs: dict[str, tuple[int, int]], apart: int) -> list[int]:
    """Return the slices that are none of the slabs', nor near one."""
    taken = {z for low, high in slabs.values() for z in range(low - apart, high + apart)}
    return [z for z in slices if z not in taken]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scans", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the models")
    parser.add_argument("--prepare", type=Path, help="only write training pictures, into this folder")


def measure(run: Run) -> Rows:
    """Yield a row of each way of each pair."""
    if run.options.prepare:
        training(Scans(run.options.scans), run.options.prepare)
    with tempfile.TemporaryDirectory() as place:
        if run.smoke:
            yield from smoke(Path(place))
        for pair, names in run.pick(smoke={}, long={} if run.options.prepare else MODELS).items():
            folder, models = Path(place) / pair, [run.options.models / name for name in names]
            if not all(model.is_dir() for model in models):
                continue
            tests(Scans(run.options.scans), folder, pair)
            with TwoNodes.create(folder / "nodes", *models, settings={"threads": 1}) as nodes:
                by = f'profile = "{nodes.profile.resolve()}"'
                yield from report(folder, pair, plan(PLANS[pair], "domain", nodes.to, by))


def plan(facts: dict[str, Any], kind: str, target: str, source: str) -> str:
    lines = [f"{name} = {json.dumps(value)}" for name, value in (FACTS | facts).items()]
    deep = "{subject}/{session}" if "session" in str(facts.get("mask")) else "{subject}"
    truth = "" if facts["protocol"] == "unpaired" else f'images = "{deep}/truth.nii.gz"\n'
    return "\n".join(lines) + (
        f'\n[source.scans]\nimages = "{deep}/source.nii.gz"\n{source}\n'
        f'[target]\n{kind} = "{target}"\nreference = "reference/*.nii.gz"\n{truth}'
    )


def report(folder: Path, pair: str, text: str) -> Iterator[dict[str, Any]]:
    (folder / "plan.toml").write_text(text, encoding="utf-8")
    ddib("study", folder / "plan.toml", "--out", folder / "out")
    found = json.loads((folder / "out" / "study.json").read_text(encoding="utf-8"))
    for table in found["tables"]:
        for way, *cells in table["rows"]:
            yield {"pair": pair, "way": way, **dict(zip(table["columns"][1:], cells, strict=True))}
    yield {
        "pair": pair,
        **{key: found[key] for key in ("models", "pitfalls", "verdicts", "scans", "figures")},
    }


def smoke(folder: Path) -> Iterator[dict[str, Any]]:
    """Study one small volume by two models of this process."""
    values = (np.hypot(*np.indices((48, 48)) - 24)[..., None] < [[[18, 16]]]) * np.int16(180)
    save(folder / "one" / "source.nii.gz", values)
    save(folder / "one" / "truth.nii.gz", values[::-1])
    save(folder / "reference" / "one.nii.gz", values)
    facts = PLANS["t1-t2"] | {"mask": "none", "evaluations": 2}
    yield from report(folder, "t1-t2", plan(facts, "model", "brain-t2", 'model = "brain-t1"'))


class Scans:
    """The scans, as canonical volumes (right, anterior, superior)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.camitk,) = folder.rglob("FullHead.mhd")

    def raw(self, name: str, shape: tuple[int, ...], kind: str = "u1") -> Array:
        content = self.camitk.with_name(name).read_bytes()
        content = zlib.decompress(content) if name.endswith(".zraw") else content
        return np.frombuffer(content, kind, int(np.prod(shape))).reshape(shape).transpose(2, 1, 0)

    def t1(self) -> Array:
        name = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
        return np.asarray(nibabel.load(package_folder("nilearn", "nilearn") / name).dataobj)

    def t2(self) -> Array:
        """Both lie in the coordinates of ICBM with one centre, so the smaller one is padded."""
        return np.pad(self.raw("brain.raw", (180, 217, 181)), ((8, 8), (8, 8), (0, 0)))

    def ct(self) -> dict[str, tuple[Array, float]]:
        head = self.raw("FullHead.raw", (94, 256, 256), "<i2")[:, ::-1, ::-1] - 1024
        matrix = np.fromfile(next(self.folder.rglob("matrix.dat")), "<i2").reshape(108, 256, 256)
        return {
            "fullhead": (head, 0.9375),
            "cranium": (matrix.transpose(2, 1, 0)[::-1], 0.957),
        }  # mm of a pixel

    def sinus(self) -> Array:
        return self.raw("sinus.zraw", (163, 256, 256))[:, ::-1]

    def whole_t1(self) -> Array:
        """Its header says left, inferior, anterior; its values lie left, anterior, superior."""
        (path,) = self.folder.rglob("almi5_T1fs_conform.nii.gz")
        return np.asarray(nibabel.load(path).dataobj)[::-1]


def save(path: Path, values: Array, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(values), np.diag([*spacing, 1.0])), path)


def tests(scans: Scans, folder: Path, pair: str) -> None:
    """Write the scans that are translated, their truth, and other scans of the target."""
    if pair == "t1-t2":
        t1, t2 = scans.t1(), scans.t2()
        save(folder / "reference" / "t2.nii.gz", t2[..., others(range(8, 166), TESTED, 2)])
        for name, (low, high) in TESTED.items():
            place = folder / "one" / name
            for kind, values in (("source", t1), ("truth", t2), ("mask", (t1 > 0).astype(np.uint8))):
                save(place / f"{kind}.nii.gz", values[..., low:high])
        return
    for name, (ct, mm) in scans.ct().items():
        save(folder / "reference" / f"{name}.nii.gz", squares(ct, mm, -1024), (1.0, 1.0, 1.5))
    if pair == "ct-ct":
        for name, (low, high) in SINUS.items():
            part = squares(scans.sinus()[..., low:high], 0.625, 0)
            save(folder / name / "source.nii.gz", part.astype(np.uint8), (1.0, 1.0, 0.7))
    for case in sorted((scans.folder / "pairs").iterdir()) if pair == "mr-ct" else ():
        for kind, name in (("source", "mr"), ("truth", "ct"), ("mask", "mask")):
            save(
                folder / case.name / f"{kind}.nii.gz",
                np.asarray(nibabel.load(case / f"{name}.nii.gz").dataobj),
            )


def squares(volume: Array, mm: float, fill: float) -> Array:
    """Return slices of 256 x 256 pixels of 1 mm, the middle in the middle."""
    from scipy.ndimage import zoom

    planes = [
        zoom(plane.astype(np.float32), mm, order=1, mode="nearest") for plane in np.moveaxis(volume, 2, 0)
    ]
    gaps = [(half := (SIDE - side) // 2, SIDE - side - half) for side in planes[0].shape]
    gaps[1] = gaps[1][::-1]  # rows go from anterior to posterior
    padded = [np.pad(plane, gaps, constant_values=fill).round() for plane in planes]
    return np.stack(padded, axis=2).astype(np.int16)


def training(scans: Scans, out: Path) -> None:
    t1, whole = scans.t1(), scans.whole_t1().astype(np.float32)
    bright = np.clip(whole / np.percentile(whole[whole > 10], 99.8), 0, 1) * 255
    some = [z for z in others(range(12, 176), TESTED, 2) if (t1[..., z] > 20).mean() > 0.02]
    write(out / "t1", "mni", squares(t1, 1.0, 0), some)
    some = [z for z in range(20, SIDE) if (whole[..., z] > 20).mean() > 0.03]
    write(out / "t1", "almi5", squares(bright.astype(np.uint8), 1.0, 0), some)
    write(out / "t2", "slice", squares(scans.t2(), 1.0, 0), others(range(8, 166), TESTED, 2))
    some = [z for z in others(range(163), SINUS, 3) if (scans.sinus()[..., z] > 40).mean() > 0.02]
    write(out / "sinus", "sinus", squares(scans.sinus(), 0.625, 0), some)
    for name, (ct, mm) in scans.ct().items():
        body = [z for z in range(ct.shape[2]) if (ct[..., z] > -300).mean() > 0.02]
        write(out / "ct", name, squares(ct, mm, -1024), body)


def write(folder: Path, name: str, volume: Array, chosen: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    planes = sliced(volume[..., None], orientation_of(np.eye(4)))[..., 0]
    for z in chosen:
        np.save(folder / f"{name}-{z:03}.npy", planes[z] if volume.min() < 0 else planes[z].astype(np.uint8))


if __name__ == "__main__":
    sys.exit(command(measure, "pictures/scans", arguments=arguments))
