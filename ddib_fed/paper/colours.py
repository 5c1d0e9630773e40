"""Colour transfer between two photographs with models of their colours, points of RGB in [-1, 1].

z = ODESolve(x; v_content, sigma_s -> sigma_max),   y = ODESolve(z; v_reference, sigma_max -> sigma_s)
"""

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed import Model, Settings, TrainConfig, train
from ddib_fed.data.pictures import encode_png, read_image
from ddib_fed.errors import FileMissing, InputError, UsageError
from ddib_fed.files import model_folder, write_file, write_json
from ddib_fed.metrics import sliced_w2
from ddib_fed.terminal import require_alone

Floats = NDArray[np.float64]
OnProgress = Callable[[str, int, int, str], None]
"""Told what is being done, how far, of how much, and a remark."""

MIN_COLOURS = 50  # distinct colours below which there is nothing to learn a density of
SMOOTH = 0.1
"""Sigma_s, in standard deviations of the photograph's colours; less is more exact and has more speckle."""
WIDTH = 96
MIN_POINTS, MAX_POINTS = 65_536, 400_000
COMPARED = 10_000
_COMPARED_SEED, _POINTS_SEED = 11, 20_220_316


@dataclass(frozen=True, slots=True)
class Photograph:
    """A picture in colour: distinct colours (K, 3), and the number of each pixel's (H, W)."""

    name: str
    colours: NDArray[Any]
    index: NDArray[np.int32]

    @property
    def top(self) -> int:
        return int(np.iinfo(self.colours.dtype).max)

    def rgb(self) -> Floats:
        """Return the colours in [-1, 1], (K, 3)."""
        return self.unit(self.colours)

    def unit(self, pixels: NDArray[Any]) -> Floats:
        return np.asarray(pixels, np.float64) * (2.0 / self.top) - 1.0

    def paint(self, rgb: Floats) -> NDArray[Any]:
        """Return the picture (H, W, 3) with other colours (K, 3), clipped."""
        levels = np.rint((np.clip(rgb, -1.0, 1.0) + 1.0) * (0.5 * self.top))
        return levels.astype(self.colours.dtype)[self.index]

    def drawn(self, count: int, seed: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(seed)
        return self.index.reshape(-1)[rng.integers(0, self.index.size, count)].astype(np.int64)

    def points(self, count: int, seed: int) -> Floats:
        """`count` points (N, 3) in [-1, 1], each somewhere in the cell of a pixel."""
        rng = np.random.default_rng(seed)
        pixels = self.index.reshape(-1)
        rounds, rest = divmod(count, len(pixels))
        chosen = np.concatenate([np.tile(pixels, rounds), rng.permutation(pixels)[:rest]])
        return self.unit(self.colours[chosen] + (rng.random((count, 3)) - 0.5))


def open_photograph(path: Path) -> Photograph:
    if not path.is_file():
        raise FileMissing(f"there is no file {path}", hint="name a picture: PNG, JPEG or TIFF")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem).strip("-.") or "picture"
    return photograph(name, read_image(path).pixels)


def photograph(name: str, pixels: NDArray[Any]) -> Photograph:
    """Return a photograph of pixels (H, W, 3), of 8 or 16 bits and with colours that fill a volume."""
    if pixels.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        problem = f"{name} holds {pixels.dtype} numbers; colours are read from pictures of 8 or 16 bits"
        raise InputError(problem, hint="save it as PNG, JPEG or TIFF of 8 or 16 bits a channel")
    if pixels.shape[2] != 3:
        raise _grey(name, "it has one channel")
    codes = pixels.reshape(-1, 3).astype(np.int64) @ (1 << np.array([32, 16, 0]))
    distinct, places, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([distinct >> 32, distinct >> 16 & 0xFFFF, distinct & 0xFFFF], axis=1).astype(
        pixels.dtype
    )
    covariance = np.cov(colours.T.astype(np.float64), fweights=counts, ddof=0)
    spread = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0.0))
    if shape := ("point", "line", "plane", "")[int((spread >= 1.0).sum())]:
        raise _grey(name, f"its colours lie on a {shape} within one level")
    if len(colours) < MIN_COLOURS:
        problem = f"{name} has {len(colours)} colours; at least {MIN_COLOURS} are needed"
        raise InputError(problem, hint="choose a photograph")
    index = places.reshape(pixels.shape[:2]).astype(np.int32)
    return Photograph(name, colours, index)


def _grey(name: str, why: str) -> InputError:
    return InputError(
        f"{name} has no three-dimensional colours: {why}",
        hint="a grey or toned picture cannot give or take colours; choose one in colour",
    )


def transfer(
    content: Photograph,
    reference: Photograph,
    out: Path,
    *,
    steps: int,
    evaluations: int,
    seed: int = 0,
    threads: int = 1,
    width: int = WIDTH,
    command: str = "",
    resume: bool = False,
    force: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, Any]:
    """Train what is missing, give `content` the colours of `reference`, write the picture and report.json."""
    require_alone("exchanging colours")
    if content.name == reference.name:
        raise UsageError(f"both pictures are called {content.name}", hint="rename one of them")
    settings = Settings(evaluations=evaluations)
    fields: dict[str, Any] = {"seed": seed, "steps": steps, "width": width, "threads": threads}
    config = TrainConfig(kind="points", data=Path(), samples=2_000, command=command, **fields)
    photos = content, reference
    models = [
        model_of(photo, config, out, resume=resume, force=force, on_progress=on_progress) for photo in photos
    ]
    name = f"{content.name}-to-{reference.name}.png"

    def tell(leg: int) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(f"colouring {content.name}", leg * total + done, 2 * total, "")

    shrink = float(1.0 / np.hypot(1.0, SMOOTH))
    x = shrink * models[0].units(content.rgb())
    z = models[0].integrate(x, settings, sigma=SMOOTH, on_progress=tell(0))
    y = models[1].integrate(z, settings, sigma=SMOOTH, back=True, on_progress=tell(1))
    rgb = models[1].out_of_units(y / shrink).astype(np.float64)
    write_file(out / name, encode_png(content.paint(rgb)))
    chosen = content.drawn(COMPARED, _COMPARED_SEED)
    goal, again = (reference.rgb()[reference.drawn(COMPARED, _COMPARED_SEED + turn)] for turn in (0, 1))
    report: dict[str, Any] = {
        "picture": name,
        "solver": asdict(settings),
        "smooth": SMOOTH,
        "photographs": [
            {"name": photo.name, "colours": len(photo.colours), "model": made.digest}
            for photo, made in zip(photos, models, strict=True)
        ],
        "colours": {
            "ddib": sliced_w2(np.clip(rgb, -1, 1)[chosen], goal),
            "content": sliced_w2(content.rgb()[chosen], goal),
            "floor": sliced_w2(again, goal),
        },
    }
    write_json(out / "report.json", report)
    return report


def model_of(
    photo: Photograph, config: TrainConfig, out: Path, *, resume: bool, force: bool, on_progress: OnProgress
) -> Model:
    """Return the model of a photograph's colours, trained or found in `out`."""
    count = int(np.clip(photo.index.size, MIN_POINTS, MAX_POINTS))
    stream = io.BytesIO()
    np.save(stream, photo.points(count, _POINTS_SEED).astype(np.float32))
    content = stream.getvalue()
    label = f"{photo.name[:60]}-{hashlib.sha256(content).hexdigest()[:8]}"
    folder = out / "models" / label
    out.mkdir(parents=True, exist_ok=True)
    model_folder(folder.parent)
    points = folder.with_name(f"{label}.npy")
    write_file(points, content, private=True)
    config = config.model_copy(update={"data": points, "name": f"colours-{label}"})

    def tell(progress: Any) -> None:
        on_progress(f"training {photo.name}", progress.step, progress.steps, f"loss {progress.loss:.4f}")

    try:
        return train(config, folder, resume=resume, force=force, on_progress=tell)
    finally:
        # It can be made again from the picture, bit for bit.
        points.unlink(missing_ok=True)
