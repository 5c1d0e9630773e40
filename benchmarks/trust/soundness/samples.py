"""Files whose numbers, channels or kind are not the model's, given to every command that takes files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, attack, ddib
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.manifest import PictureFormat
from tests.e2e.harness import moons
from tests.runs.tiny_models import tiny
from tests.samples.picture_examples import npy_of, png_of, tiff_of

Pixels = np.ndarray[Any, Any]


def photograph(number: int = 5) -> Pixels:
    """(32, 32, 3) uint8: a coast that the satellite model was not trained on."""
    return np.rint((load_shipped("satellite").held_out[number].transpose(1, 2, 0) + 1) * 127.5).astype(
        np.uint8
    )


def _jpeg(pixels: Pixels, mode: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG")
    return file.getvalue()


def _spoilt(pixels: Pixels, value: float) -> Pixels:
    floats = pixels.astype(np.float32)
    floats[3, 4, 1] = value
    return floats


def misfits() -> dict[str, bytes]:
    """Files that are no 8-bit pictures, by a name that says why."""
    eight = photograph()
    deep, unit = eight.astype(np.uint16) * 257, eight.astype(np.float32) / 255
    alpha = np.concatenate([eight, np.full((32, 32, 1), 255, np.uint8)], axis=2)
    return {
        "rgb16.png": png_of(deep),
        "rgb16-interlaced.png": png_of(deep, interlace=True),
        "grey16.png": png_of(deep[..., :1]),
        "rgba16.png": png_of(alpha.astype(np.uint16) * 257),
        "rgb16-deflated.tif": tiff_of(deep, compression="zlib"),
        "rgb16-big-endian.tif": tiff_of(deep.astype(">u2"), byteorder=">"),
        "rgb16-planes.tif": tiff_of(deep, planarconfig="separate"),
        "big-endian.npy": npy_of(deep.astype(">u2")),
        "fortran.npy": npy_of(np.asfortranarray(deep)),
        "twelve-bits.npy": npy_of(eight.astype(np.uint16) * 16),
        "unit.npy": npy_of(unit),
        "unit-half.npy": npy_of(unit.astype(np.float16)),
        "unit.tif": tiff_of(unit),
        "minus-one-to-one.npy": npy_of(unit.astype(np.float64) * 2 - 1),
        "signed.npy": npy_of((eight.astype(np.int16) - 128) * 256),
        "int8.npy": npy_of((eight.astype(np.int16) - 128).astype(np.int8)),
        "int64.npy": npy_of(deep.astype(np.int64)),
        "mask.npy": npy_of(eight > 127),
        "nan.npy": npy_of(_spoilt(eight, np.nan)),
        "infinite.tif": tiff_of(_spoilt(eight, np.inf)),
        "points.npy": npy_of(moons(40)),
        "two-channels.npy": npy_of(eight[..., :2]),
        "four-channels.npy": npy_of(alpha),
        "stack.npy": npy_of(np.stack([eight, eight])),
    }


def written(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Files in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


@attack(
    1,
    "a picture of another type, range or channel count, or points, to nodes of 8-bit pictures, beside a good one",
    before="16-bit RGB came back blank white, exit 0, “33.8 dB”, not doubtful",
    test="tests/e2e/translation/test_units.py::test_what_is_not_in_the_models_units_is_refused_by_name",
)
def pictures_to_nodes(folder: Path, result: Result) -> None:
    pair = nodes.pictures()
    (good,) = written(folder / "good", {"good.png": png_of(photograph())})
    for path in written(folder / "bad", misfits()):
        out = folder / "out" / path.stem
        said = ddib("translate", good, path, "--to", nodes.SATELLITE, "--evaluations", 12, "--out", out,
                    "--profile", pair.profile)  # fmt: skip
        result.refused(path.name, said, path.name, codes=(3,))
        if list(out.glob("*.png")):
            result.add(f"{path.name}: something was written", held=False)
    said = ddib("translate", good, "--to", nodes.SATELLITE, "--evaluations", 12, "--out", folder / "ok",
                "--profile", pair.profile)  # fmt: skip
    result.add("the good one alone is translated", said.code == 0, said.code, said.error)


@attack(
    1,
    "the same files through `ddib job submit`, and in one process through `ddib bridge translate`",
    before="as above",
    test="tests/samples/test_units.py::test_what_is_of_another_scale_is_refused",
)
def siblings(folder: Path, result: Result) -> None:
    pair = nodes.pictures()
    for path in written(
        folder / "bad", {n: c for n, c in misfits().items() if n.startswith(("rgb16", "unit"))}
    ):
        said = ddib("job", "submit", path, "--to", nodes.SATELLITE, "--profile", pair.profile)
        result.refused(f"job submit {path.name}", said, path.name, codes=(3,))
        alone = folder / "alone" / path.stem
        written(alone, {path.name: path.read_bytes()})
        said = ddib("bridge", "translate", alone, "--source", "satellite", "--target", "relief", "--evaluations", 8,
                    "--out", folder / "out" / path.stem)  # fmt: skip
        result.refused(f"bridge translate {path.name}", said, path.name, codes=(3,))


@attack(
    1,
    "pictures to nodes of points, and points to a model of pictures in one process",
    before="not refused as such",
    test="tests/source_node/test_units.py::test_points_are_no_picture_and_pictures_no_points",
)
def kinds(folder: Path, result: Result) -> None:
    pair, eight = nodes.points(), photograph()
    files = {
        "photo.png": png_of(eight), "photo.jpg": _jpeg(eight, "RGB"), "photo.tif": tiff_of(eight),
        "rgb.npy": npy_of(eight), "grey.npy": npy_of(eight[..., 0]), "floats.npy": npy_of(eight[..., 0] / 255.0),
    }  # fmt: skip
    for path in written(folder / "in", files):
        said = ddib(
            "translate", path, "--to", nodes.MOONS, "--out", folder / "out", "--profile", pair.profile
        )
        result.refused(path.name, said, path.name, codes=(3,))
    said = ddib("bridge", "translate", "--source", "moons", "--target", "checkerboards", "--input",
                folder / "in" / "rgb.npy", "--out", folder / "o")  # fmt: skip
    result.refused("bridge translate --input rgb.npy", said, "rgb.npy", codes=(3,))
    alone = folder / "alone"
    written(alone, {"points.npy": npy_of(moons(40))})
    said = ddib(
        "bridge", "translate", alone, "--source", "satellite", "--target", "relief", "--out", folder / "p"
    )
    result.refused("bridge translate of a folder with points.npy", said, "points.npy", codes=(3,))


@attack(
    1,
    "`ddib model train --range 0:255` on folders with 16-bit, unit and mixed files",
    before="trained on white pictures without a word",
    test="tests/samples/test_units.py::test_a_range_for_a_folder_may_be_a_narrow_window_but_not_another_scale",
)
def training(folder: Path, result: Result) -> None:
    eight = [photograph(number) for number in range(8)]
    made = {
        "uint16": lambda x: png_of(x.astype(np.uint16) * 257),
        "unit": lambda x: tiff_of(x.astype(np.float32) / 255),
        "int16": lambda x: tiff_of((x.astype(np.int16) - 128) * 256),
    }
    small = ("--size", 8, "--network", "model_channels=32", "--network", "channel_mult=1", "--network",
             "num_res_blocks=1", "--batch", 4, "--steps", 1)  # fmt: skip
    for name, write in made.items():
        suffix = "png" if name == "uint16" else "tif"
        written(folder / name, {f"{n}.{suffix}": write(x) for n, x in enumerate(eight)})
        said = ddib(
            "model", "train", "--images", folder / name, "--range", "0:255", *small, "--out", folder / "m"
        )
        result.refused(name, said, f".{suffix}", codes=(3,))
    written(folder / "mixed", {f"{n}.png": png_of(x) for n, x in enumerate(eight[1:])})
    written(folder / "mixed", {"deep.png": made["uint16"](eight[0])})
    said = ddib(
        "model", "train", "--images", folder / "mixed", "--range", "0:255", *small, "--out", folder / "m2"
    )
    result.refused("one 16-bit file among seven of 8 bits", said, "deep.png", codes=(3,))


@attack(
    1,
    "the round trip's figure of a picture of which the model sees a clipped copy",
    before="compared with the clipped copy: the part that was lost did not count",
    test="tests/source_node/test_units.py::test_a_round_trip_is_measured_against_the_picture_as_given",
)
def as_given(folder: Path, result: Result) -> None:
    made = tiny(picture=PictureFormat(low=-1000.0, high=2000.0, bits=16), size=16)
    save_bundle(folder / "model", made.manifest, made.state)
    scan = np.random.default_rng(0).normal(500, 300, (16, 16)).astype(np.int16)
    scan[4:8, 4:8] = 3071
    written(folder / "in", {"metal.tif": tiff_of(scan[..., None])})
    said = ddib("bridge", "cycle", folder / "in", "--source", folder / "model", "--target", folder / "model",
                "--out", folder / "out")  # fmt: skip
    if said.code != 0:
        result.add("metal of 3071 in a model of -1000 to 2000", held=False, code=said.code, said=said.error)
        return
    record = json.loads((folder / "out" / "metal.json").read_text())
    returned = next((folder / "out").glob("metal.returned.*"))
    back = np.asarray(Image.open(returned), float) if returned.suffix == ".png" else tifffile.imread(returned)
    figure = record.get("cycle_psnr", (record.get("picture") or {}).get("cycle_psnr"))
    share = float(np.mean((scan > 2000) * ((scan - 2000) / 1500.0) ** 2))
    most = 10 * np.log10(4 / share)  # what is lost by clipping alone
    result.add("the figure includes what was clipped", figure <= most + 0.1, said.code, f"{figure:.1f} dB")
    result.measured.append(f"at most {most:.1f} dB were possible, {back.shape[0]} x {back.shape[1]} pixels")
