"""A scene that is larger than the models' pictures: tiles that follow one ODE against tiles of their own.

    python -m benchmarks.calibration.scenes                     satellite-64 to relief-64, bundles in build/pretrained
    python -m benchmarks.calibration.scenes --detail 1 --shipped --evaluations 24       a look, with the 32-pixel models
    python -m benchmarks.calibration.scenes --ways one-ode      some of the ways only; others stay as they were measured

    fitted        the whole scene squeezed to the model's size and back, as without --scene
    cut           tiles side by side, each translated by itself
    blended       overlapping tiles, each translated by itself, the finished ones averaged
    one-ode       overlapping tiles whose velocities are averaged at each step: `Bundle.of_scenes`
    ... -rotated  the same under the rotation fitted without pairs against the target's noised aggregate (epsilon 1)
    ... -mixed    and encoded half by the network, half linearly (`SolverSettings.encoder`), which reveals more

The scene is a part of a test stripe. Writes docs/benchmarks/calibration/scenes/PAIR.json and
docs/images/pictures/scenes-PAIR.png; arrays stay in build/calibration/scenes. One thread, float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import BUILD, OUT, ROOT, Directed
from ddib_fed.bridge.arrays import Asked, translate_array
from ddib_fed.bridge.local_party import LocalParty, only, open_party
from ddib_fed.bridge.party import ToDecode, ToEncode
from ddib_fed.datasets.maps import cut_scene
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.wrapped import tiles
from ddib_fed.files import write_file, write_json
from ddib_fed.metrics.pictures import Pictures, compare, psnr
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.reports.sheets import to_pixels
from ddib_fed.samples.fitting import to_array
from ddib_fed.samples.images import PictureRule, decode_image, encode_png, from_array

STRIPE, ROWS = 3, (200, 412)
"""Ten to twenty degrees east, 63 to 35 degrees north: from Scandinavia to Sicily."""
WAYS = ("fitted", "cut", "blended", "one-ode", "blended-rotated", "one-ode-rotated", "one-ode-rotated-mixed")
SHOWN = ("source", "cut", "one-ode", "one-ode-rotated", "one-ode-rotated-mixed", "truth")
GAP = 8
Made = tuple[Pictures, Pictures | None, np.ndarray | None]
"""Translation, what comes back, and the latent, where there are."""
MOST_TILES = 64


@dataclass
class Scene:
    """A scene, its truth, and two models."""

    directed: Directed
    detail: int
    settings: SolverSettings
    cycle: bool = True

    @cached_property
    def pictures(self) -> tuple[Pictures, Pictures]:
        kinds = [part.domain.map for part in self.directed.pictures]
        cut = [cut_scene(kind, STRIPE, ROWS, self.detail) for kind in kinds]
        return tuple(each[None].astype(np.float32) / np.float32(127.5) - np.float32(1) for each in cut)  # type: ignore[return-value]

    @property
    def tile(self) -> int:
        return int(self.directed.bundles[0].manifest.sample_shape[1])

    @cached_property
    def rotation(self) -> ChannelMap:
        """Fitted by the source against the target's aggregate."""
        from ddib_fed.bridge.calibration.aggregates import make_aggregate
        from ddib_fed.bridge.calibration.fitting.unpaired import propose

        own, target = self.directed.unpaired
        units = [bundle.manifest.normalisation for bundle in self.directed.bundles]
        aggregate = make_aggregate(
            target, units[1], self.directed.target_name, generator=np.random.default_rng(0)
        )
        return propose(own, units[0], aggregate, "rotation").map

    def corners(self, overlap: float) -> list[tuple[int, int]]:
        """First row and column of each tile."""
        height, width = self.pictures[0].shape[2:]
        return [
            (top, left)
            for top in tiles.starts(height, self.tile, overlap)
            for left in tiles.starts(width, self.tile, overlap)
        ]


def one_ode(scene: Scene, asked: Asked) -> Made:
    """Translation, what comes back, and the latent."""
    height, width = scene.pictures[0].shape[2:]
    source, target = (open_party(bundle.of_scenes(height, width)) for bundle in scene.directed.bundles)
    found = translate_array(scene.pictures[0], source, target, replace(asked, cycle=scene.cycle))
    return found.translated, found.back, found.latent


def of_their_own(scene: Scene, overlap: float, asked: Asked) -> Made:
    """Tiles translated one by one and put together; the way back begins at the finished scene, as a user's would."""
    source, target = (open_party(bundle, together=MOST_TILES) for bundle in scene.directed.bundles)
    there = _tile_by_tile(
        scene, scene.pictures[0], overlap, lambda x: translate_array(x, source, target, asked).translated
    )
    if not scene.cycle:
        return there, None, None
    return there, _tile_by_tile(scene, there, overlap, lambda x: _returned(x, source, target, asked)), None


def _returned(x: Pictures, source: LocalParty, target: LocalParty, asked: Asked) -> Pictures:
    """Pictures of the target's domain, encoded by the target and decoded by the source."""
    plain = replace(asked.leg(), round_trip=False, soften=0.0, calibration=None)
    latents = [
        only(each).latent
        for each in target.encode_each((ToEncode(n, x[n : n + 1]) for n in range(len(x))), plain)
    ]
    own = replace(plain, calibration=asked.calibration)
    decoded = source.decode_each((ToDecode(n, latent) for n, latent in enumerate(latents)), own)
    return np.concatenate([only(each).samples for each in decoded]).clip(-1.0, 1.0)


def _tile_by_tile(
    scene: Scene, x: Pictures, overlap: float, change: Callable[[Pictures], Pictures]
) -> Pictures:
    """A scene whose tiles were changed: averaged where they overlap by a window, else side by side."""
    side, corners = scene.tile, scene.corners(overlap)
    changed = change(np.concatenate([x[:, :, top : top + side, left : left + side] for top, left in corners]))
    window = torch.outer(tiles.window(side), tiles.window(side)).numpy() if overlap else np.ones((side, side))
    total, weights = np.zeros(x.shape), np.zeros(x.shape[2:])
    for tile, (top, left) in zip(changed, corners, strict=True):
        place = (slice(top, top + side), slice(left, left + side))
        if not overlap:
            weights[place], total[:, :, *place] = 0.0, 0.0
        weights[place] += window
        total[:, :, *place] += window * tile
    found: Pictures = (total / weights).astype(np.float32)
    return found


def fitted(scene: Scene, asked: Asked) -> Made:
    """The scene squeezed to the model's size, translated, and stretched again."""
    x = scene.pictures[0]
    source, target = (open_party(bundle) for bundle in scene.directed.bundles)
    rule = PictureRule(3, scene.tile, scene.tile)
    small, size = to_array(decode_image(encode_png(to_pixels(x)[0])), rule)
    found = translate_array(small[None], source, target, replace(asked, cycle=scene.cycle))
    stretched = [
        from_array(part[0], rule, size).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(127.5) - 1
        for part in (found.translated, found.back)
        if part is not None
    ]
    return stretched[0], stretched[1] if scene.cycle else None, None


def make(scene: Scene, way: str) -> Made:
    """The scene translated in one of the `WAYS`."""
    rotated, mixed = way.removesuffix("-mixed"), way.endswith("-mixed")
    asked = Asked(
        replace(scene.settings, encoder="mixed" if mixed else "ode"),
        calibration=scene.rotation if rotated.endswith("-rotated") else None,
    )
    plain = rotated.removesuffix("-rotated")
    if plain == "one-ode":
        return one_ode(scene, asked)
    if plain == "fitted":
        return fitted(scene, asked)
    return of_their_own(scene, tiles.OVERLAP if plain == "blended" else 0.0, asked)


def figures(scene: Scene, made: Made) -> dict[str, Any]:
    """Against the truth, of the seams, and of the way back."""
    translated, back, latent = made
    x, truth = scene.pictures
    same = compare(translated, truth)
    found = {
        "psnr": float(same.psnr[0]),
        "ssim": float(same.ssim[0]),
        "seams": seams(scene, translated),
        "edges": _steps(translated).mean() / _steps(truth).mean(),
    }
    if back is not None:
        found["cycle_psnr"] = float(psnr(back, x)[0])
    if latent is not None:
        statistics = measure(torch.from_numpy(latent))
        found |= {"latent_std": statistics.std, "patch_correlation": statistics.correlation}
    return {key: round(float(value), 4) for key, value in found.items()}


def seams(scene: Scene, pictures: Pictures) -> float:
    """Mean step between two neighbouring pixels on either side of a border of side-by-side tiles, over that of all."""
    downward, across = _steps(pictures, 2), _steps(pictures, 3)
    tops, lefts = (sorted({corner[axis] for corner in scene.corners(0.0)} - {0}) for axis in (0, 1))
    at = np.concatenate(
        [
            downward[:, :, [top - 1 for top in tops]].ravel(),
            across[:, :, :, [left - 1 for left in lefts]].ravel(),
        ]
    )
    return float(at.mean() / np.concatenate([downward.ravel(), across.ravel()]).mean())


def _steps(pictures: Pictures, axis: int = 3) -> np.ndarray:
    return np.abs(np.diff(pictures, axis=axis))


def draw(scene: Scene, kept: dict[str, Pictures], path: Path) -> None:
    """What there is of `SHOWN`, side by side, enlarged to the same height."""
    x, truth = scene.pictures
    shown = {"source": x, **kept, "truth": truth}
    parts = [
        to_pixels(shown[name])[0].repeat(2 // scene.detail, 0).repeat(2 // scene.detail, 1)
        for name in SHOWN
        if name in shown
    ]
    gap = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
    row = [piece for part in parts for piece in (part, gap)][:-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, encode_png(np.concatenate(row, axis=1)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--detail", type=int, choices=(1, 2), default=2, help="1: crops of 32 pixels, 2: of 64"
    )
    parser.add_argument(
        "--models", type=Path, default=ROOT / "build" / "pretrained", help="folder of bundles"
    )
    parser.add_argument("--shipped", action="store_true", help="the bundles that ship instead")
    parser.add_argument("--evaluations", type=int, default=48, help="of one leg")
    parser.add_argument("--one-way", action="store_true", help="leave the way back out")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=OUT / "scenes")
    parser.add_argument("--picture", type=Path, help="default: docs/images/pictures/scenes-PAIR.png")
    return parser.parse_args()


def main() -> int:
    """Measure, write and draw."""
    given = _arguments()
    torch.set_num_threads(1)
    names = [f"{kind}-64" if given.detail == 2 else kind for kind in ("satellite", "relief")]
    directed = Directed(names[0], names[1], None if given.shipped else given.models)
    scene = Scene(
        directed, given.detail, SolverSettings(evaluations=given.evaluations), cycle=not given.one_way
    )
    path, arrays = given.out / f"{directed.name}.json", BUILD / "scenes" / directed.name
    for folder in (arrays, given.out):
        folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "models": [bundle.digest for bundle in directed.bundles],
        "evaluations": given.evaluations,
        "scene": {"stripe": STRIPE, "rows": list(ROWS), "pixels": list(scene.pictures[0].shape[2:])},
        "tiles": {
            "side": scene.tile,
            "cut": len(scene.corners(0.0)),
            "overlapping": len(scene.corners(tiles.OVERLAP)),
        },
        "truth": {"seams": round(seams(scene, scene.pictures[1]), 4)},
    }
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ways = there.get("ways", {}) if all(there.get(key) == value for key, value in asked.items()) else {}
    for way in given.ways:
        started = time.process_time()
        made = make(scene, way)
        kept = {"translated": made[0], "back": made[1]}
        np.savez(arrays / f"{way}.npz", **{name: part for name, part in kept.items() if part is not None})
        ways[way] = figures(scene, made) | {"cpu_seconds": round(time.process_time() - started, 1)}
        write_json(path, {**asked, "ways": {name: ways[name] for name in WAYS if name in ways}})
        print(way, ways[way], flush=True)
    stacks = {name: np.load(arrays / f"{name}.npz")["translated"] for name in ways}
    draw(
        scene, stacks, given.picture or ROOT / "docs" / "images" / "pictures" / f"scenes-{directed.name}.png"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
