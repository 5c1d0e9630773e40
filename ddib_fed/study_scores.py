"""Figures of a study: volumes (D, H, W) in the units of the target beside their truth, and sites beside each other.

MAE          mean |a - b| over the voxels of the mask
PSNR         10 log10(R^2 / mean (a - b)^2) over them, both clipped to a fixed range of width R
MS-SSIM      Wang, Simoncelli and Bovik (2003) at five scales, as SynthRAD 2025 measures it: uniform windows of side 7,
             the mean over the mask at each scale, values outside of it as low as the range, luminance at each scale
Dice, HD95   of each label that the truth has, as MONAI has them; HD95 in mm, the diagonal where a label is nowhere
ICC          two-way random, absolute agreement, single measurement: ICC(2,1) of Shrout and Fleiss (1979)
"""

from __future__ import annotations

import io
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.errors import ConfigError, InputError, missing
from ddib_fed.formats import ITK, NIFTI

Volume = NDArray[np.floating]
Mask = NDArray[np.bool_]
Span = tuple[float, float]
Table = NDArray[np.float64]
Affine = NDArray[np.float64]

WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, LEAST_SIDE = 7, 97  # voxels; smaller volumes are padded, so that five scales have a window
K1, K2 = 0.01, 0.03
SLICES, HIGH = 48, 160  # slices of a subject whose features are compared; pixels of the height of a picture
MOST_VALUES: Final = 200_000  # of a volume that go into distributions
MOST_PSNR: Final = 100.0  # dB, where nothing differs
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


def synthesis(made: Volume, truth: Volume, mask: Mask, span: Span) -> dict[str, float]:
    """Return MAE, PSNR in dB and MS-SSIM of a volume in the mask; `span` is the range of both."""
    low, high = span
    gap = np.asarray(made[mask], np.float64) - truth[mask]
    a, b = (np.clip(np.asarray(each, np.float64), low, high) for each in (made, truth))
    error = np.square(a[mask] - b[mask]).mean()
    return {
        "mae": float(np.abs(gap).mean()),
        "psnr": min(MOST_PSNR, float(10.0 * np.log10((high - low) ** 2 / max(error, 1e-30)))),
        "ms_ssim": ms_ssim(np.where(mask, a - low, 0.0), np.where(mask, b - low, 0.0), mask, high - low),
    }


def ms_ssim(a: Volume, b: Volume, mask: Mask, width: float) -> float:
    """Return the MS-SSIM of volumes in [0, width], both 0 outside of the mask."""
    gaps = [max(0, LEAST_SIDE - side) for side in a.shape]
    room = [(gap // 2, gap - gap // 2) for gap in gaps]
    a, b = np.pad(a, room, mode="edge"), np.pad(b, room, mode="edge")
    mask = np.pad(mask, room, mode="edge")
    inner = (slice(WINDOW // 2, -(WINDOW // 2)),) * 3
    product = 1.0
    for weight in WEIGHTS:
        similar = _similarity(a, b, weight, width)[inner][mask[inner]]
        product *= float(np.clip(similar.mean(), 0.0, 1.0)) if similar.size else 1.0
        a, b, mask = _halved(a), _halved(b), mask[::2, ::2, ::2]
    return product


def _similarity(a: Volume, b: Volume, weight: float, width: float) -> Volume:
    """Return luminance, contrast and structure of each window, to a power, multiplied."""
    from scipy.ndimage import uniform_filter

    mean_a, mean_b, square_a, square_b, both = (
        uniform_filter(each, WINDOW) for each in (a, b, a * a, b * b, a * b)
    )
    sample = WINDOW**3 / (WINDOW**3 - 1)
    var_a, var_b = sample * (square_a - mean_a**2), sample * (square_b - mean_b**2)
    deviations = np.sqrt(np.maximum(var_a, 0.0)) * np.sqrt(np.maximum(var_b, 0.0))
    c1, c2 = (K1 * width) ** 2, (K2 * width) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2 * deviations + c2) / (var_a + var_b + c2)
    structure = (sample * (both - mean_a * mean_b) + c2 / 2) / (deviations + c2 / 2)
    parts = (np.maximum(part, 0.0) ** weight for part in (luminance, contrast, structure))
    product: Volume = np.prod(np.stack(list(parts)), axis=0)
    return product


def _halved(volume: Volume) -> Volume:
    """Return every second voxel of the means of 2^3; the first ones along an axis have zeros before them."""
    for axis in range(volume.ndim):
        before = [(1, 0) if each == axis else (0, 0) for each in range(volume.ndim)]
        volume = (volume + np.delete(np.pad(volume, before), -1, axis)) / 2.0
        volume = volume.take(np.arange(0, volume.shape[axis], 2), axis)
    return volume


def overlap(made: NDArray[Any], truth: NDArray[Any], spacing: Sequence[float]) -> dict[str, float]:
    """Return the means of Dice and of HD95 in mm over the labels of the truth, of which 0 is none."""
    import torch
    from monai.metrics import DiceMetric, HausdorffDistanceMetric

    dice = DiceMetric(include_background=True)
    hd95 = HausdorffDistanceMetric(include_background=True, percentile=95)
    labels = [label for label in np.unique(truth).tolist() if label]
    if not labels:
        raise InputError("the labels of a truth are all 0", hint="look at what the segmentation makes of it")
    with warnings.catch_warnings(
        action="ignore"
    ):  # of MONAI: what it no longer takes, and that a label is nowhere
        for label in labels:
            pair = [torch.from_numpy(each == label)[None, None] for each in (made, truth)]
            dice(*pair)
            hd95(*pair, spacing=[*spacing])
    far, diagonal = float(hd95.aggregate()), float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    return {"dice": float(dice.aggregate()), "hd95_mm": far if np.isfinite(far) else diagonal}


def volumes_ml(labels: NDArray[Any], spacing: Sequence[float]) -> dict[int, float]:
    """Return the volume of each label but 0, in ml."""
    numbers, counts = np.unique(labels, return_counts=True)
    voxel = float(np.prod(spacing)) / 1000.0
    return {int(n): float(count * voxel) for n, count in zip(numbers, counts, strict=True) if n}


def shift(a: Volume, b: Volume, mask: Mask) -> tuple[float, ...]:
    """Return by how many voxels along each axis the edges of `b` lie beside those of `a`."""
    from scipy.ndimage import gaussian_gradient_magnitude
    from skimage.registration import phase_cross_correlation

    edges = [
        gaussian_gradient_magnitude(np.where(mask, each, 0.0).astype(np.float32), 1.0) for each in (a, b)
    ]
    found = phase_cross_correlation(*edges, normalization=None)[0]  # type: ignore[no-untyped-call]
    return tuple(map(float, found))


def look(volume: Volume, foreground: Mask) -> Table:
    """(N, 7) of slices: quantiles, mean step and noise of the foreground, by which a classifier tells sites apart."""
    rows = []
    for plane, inside in zip(volume.astype(np.float64), foreground, strict=True):
        if inside.mean() < 0.02:
            continue
        steps = np.diff(plane, axis=0)
        second = np.diff(steps, axis=0)[inside[1:-1]]
        rows.append(
            [
                *np.quantile(plane[inside], QUANTILES),
                np.abs(steps[inside[1:]]).mean(),
                np.median(np.abs(second)),
            ]
        )
    return np.array(rows).reshape(-1, len(QUANTILES) + 2)


def accuracies(features: Table, answers: Sequence[str], subjects: Sequence[str]) -> dict[str, float]:
    """Return of each subject the share that a linear discriminant answers rightly, fitted on all other subjects."""
    try:
        from sklearn import discriminant_analysis, model_selection, pipeline, preprocessing
    except ImportError as error:
        raise missing("study", "scikit-learn", "scikit-learn is not installed") from error
    discriminant = discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    chosen = pipeline.make_pipeline(preprocessing.StandardScaler(), discriminant)
    given, groups = np.array(answers), np.array(subjects)
    cross = model_selection.LeaveOneGroupOut()
    right = model_selection.cross_val_predict(chosen, features, given, groups=groups, cv=cross) == given
    return {subject: float(right[groups == subject].mean()) for subject in sorted(set(subjects))}


def combat(features: Table, sites: Sequence[str]) -> Table | None:
    """Return features after ComBat over sites (Johnson and others 2007), or None without neuroHarmonize."""
    try:
        from neuroHarmonize import harmonizationLearn
        from pandas import DataFrame
    except ImportError:
        return None
    _, adjusted = harmonizationLearn(features, DataFrame({"SITE": list(sites)}))
    return np.asarray(adjusted, np.float64)


def icc(table: Table) -> float:
    """Return ICC(2,1) of (subjects, sites)."""
    count, sites = table.shape
    mean = table.mean()
    rows = sites * np.square(table.mean(axis=1) - mean).sum() / (count - 1)
    columns = count * np.square(table.mean(axis=0) - mean).sum() / (sites - 1)
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + mean
    error = np.square(left).sum() / ((count - 1) * (sites - 1))
    return float((rows - error) / (rows + (sites - 1) * error + sites * (columns - error) / count))


def moments(values: Volume) -> tuple[float, float]:
    """Return mean and deviation of the foreground: what is brighter than the mean of all."""
    inside = values[values >= values.mean()]
    return float(inside.mean()), max(float(inside.std()), 1e-6)


def read(path: Path) -> tuple[Volume, Affine]:
    """Return a volume (k, j, i) as float32, of which what is not finite is the least value, and its affine."""
    from ddib_fed.formats import itk, nifti

    kinds = {NIFTI: nifti.read_values, ITK: itk.read_values}
    reads = [by for kind, by in kinds.items() if path.name.lower().endswith(kind.suffixes)]
    if not reads:
        raise InputError(
            f"{path} is no volume of NIfTI, MetaImage or NRRD",
            hint="convert it; of DICOM dcm2niix makes NIfTI",
        )
    values, affine = reads[0](path)
    if values.ndim != 3:
        raise InputError(f"{path} has {values.ndim} axes, and a volume has three", hint="cut it into volumes")
    volume = np.ascontiguousarray(values.T, dtype=np.float32)
    finite = np.isfinite(volume)
    return np.where(finite, volume, volume[finite].min(initial=np.inf)), affine


def spacing_of(affine: Affine) -> tuple[float, ...]:
    return tuple(np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist())


def thinned(values: Volume) -> Volume:
    flat = values.reshape(-1)
    return flat[:: -(-flat.size // MOST_VALUES)]


def ends(volume: Volume) -> Span:
    low, high = np.percentile(thinned(volume), (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def moved(volume: Volume, span: Span, to: Span) -> Volume:
    """Return values on a straight line that leads from one range to another, clipped."""
    share = ((volume - span[0]) / (span[1] - span[0])).clip(0.0, 1.0)
    return to[0] + share * (to[1] - to[0])


def in_units(volume: Volume, span: Span) -> NDArray[np.float32]:
    """Return some slices (N, 1, H, W) of a volume, the range as [-1, 1]."""
    places = np.linspace(0.1 * len(volume), 0.9 * len(volume) - 1, min(SLICES, len(volume)))
    chosen = np.unique(places.round().astype(int).clip(0))
    return moved(volume[chosen, None], span, (-1.0, 1.0)).astype(np.float32)


def dilated(mask: Mask, mm: float, spacing: Sequence[float]) -> Mask:
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        raise InputError("a mask holds no voxel", hint='look at it, or mask = "none" for the whole volume')
    grown: Mask = distance_transform_edt(~mask, sampling=spacing) <= mm if mm else mask
    return grown


def segmented(command: str, volume: Volume, affine: Affine) -> NDArray[Any]:
    """Return the labels (k, j, i) that a command with {input} and {output} makes of a volume."""
    import nibabel

    with tempfile.TemporaryDirectory() as place:
        given, made = Path(place, "input.nii.gz"), Path(place, "output.nii.gz")
        nibabel.save(nibabel.Nifti1Image(volume.T.astype(np.float32), affine), given)
        words = [word.format(input=given, output=made) for word in shlex.split(command)]
        try:
            ran = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            why = f"the segmentation {words[0]!r} does not run: {error.strerror}"
            raise ConfigError(why, hint=f"which {shlex.quote(words[0])}") from error
        if ran.returncode or not made.is_file():
            why = (ran.stderr.strip().splitlines() or ["it wrote no output"])[-1]
            raise ConfigError(f"the segmentation {words[0]!r} failed: {why}", hint=f"try alone: {command}")
        return read(made)[0].round().astype(np.int32)


def picture(volume: Volume, span: Span, affine: Affine) -> bytes:
    """Return three planes through the middle as a PNG."""
    from ddib_fed.studies import PLANES, orientation_of, sliced

    orientation, panels = orientation_of(affine), []
    order = np.argsort(orientation[:, 0])
    sides = (np.linalg.norm(affine[:3, :3], axis=0) * volume.T.shape)[order]  # mm to the right, front and top
    scale = HIGH / max(sides[1], sides[2])  # of all planes, so that a slab stays thin
    for plane, (_, right, up) in PLANES.items():
        slices = sliced(volume.T[..., None], orientation, plane)[..., 0]
        shown = moved(slices[len(slices) // 2], span, (0.0, 255.0)).round().astype(np.uint8)
        wide, high = (max(1, round(scale * sides[axis])) for axis in (right, up))
        panel = np.zeros((HIGH, wide), np.uint8)
        top = (HIGH - high) // 2
        panel[top : top + high] = Image.fromarray(shown).resize((wide, high), Image.Resampling.BILINEAR)
        panels.append(panel)
    file = io.BytesIO()
    Image.fromarray(np.hstack(panels)).save(file, "PNG")
    return file.getvalue()
