"""`ddib_fed.translate`: samples of a notebook through two models of this process, or through two nodes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.data.pictures import (
    ImageLimits,
    decode_image,
    decode_volume,
    encode_png,
    image_format,
    middle_slices,
    read_content,
)
from ddib_fed.data.points import parse_npy
from ddib_fed.errors import DdibError, UsageError, extra
from ddib_fed.model import Model
from ddib_fed.record import Guidance, Part, Settings, Translation

if TYPE_CHECKING:
    from ddib_fed.calibration.record import Calibration
    from ddib_fed.client.client import Client, JobResult
    from ddib_fed.engine.model import DomainModel


Given = Image.Image | NDArray[Any] | str | Path
"""A PIL picture; an array of raw values, (H, W) or (H, W, C) of a picture, (D, H, W) or (D, H, W, C) of a volume, or
(N, D) points; or the path of a file of any."""


def contents(samples: Given | Sequence[Given]) -> list[bytes]:
    """The file of each sample: PNG for PIL pictures, .npy for arrays, a path's own bytes."""
    listed = list(samples) if isinstance(samples, list | tuple) else [samples]
    if not listed:
        raise UsageError("no samples were given", hint="pass a picture, an array, a path, or a list of them")
    return [_content(sample) for sample in listed]


def _content(sample: object) -> bytes:
    if isinstance(sample, str | Path):
        return read_content(Path(sample), ImageLimits(max_bytes=1 << 30))
    if isinstance(sample, Image.Image):
        return encode_png(_pixels(sample))
    if isinstance(sample, np.ndarray):
        stream = io.BytesIO()
        np.save(stream, sample, allow_pickle=False)
        return stream.getvalue()
    raise UsageError(
        f"a sample of type {type(sample).__name__} cannot be translated",
        hint="pass a PIL picture, a numpy array, a path, or a list of them",
    )


def _pixels(picture: Image.Image) -> NDArray[Any]:
    """(H, W, C) of a PIL picture: 16-bit grey stays 16-bit, everything that is not grey becomes RGB on white."""
    if picture.mode.startswith("I;16"):
        return np.asarray(picture)[..., None]
    if picture.mode in {"1", "L"}:
        return np.asarray(picture.convert("L"))[..., None]
    if picture.mode in {"I", "F"}:
        raise UsageError(
            f"a PIL picture of mode {picture.mode!r} has no stated range",
            hint="pass numpy.asarray(picture) instead",
        )
    flat = picture.convert("RGBA")
    white = Image.new("RGBA", flat.size, "white")
    return np.asarray(Image.alpha_composite(white, flat).convert("RGB"))


@dataclass(frozen=True, eq=False)
class TranslatedSample:
    """One translated sample, from its verified result."""

    result: JobResult

    @property
    def files(self) -> Mapping[Part, bytes]:
        """Contents of its files: the translation (PNG or .npy), the one returned by a cycle, the latent."""
        return {part: file.data for part, file in self.result.files.items()}

    @cached_property
    def record(self) -> Translation:
        """Its provenance and figures, the same that `ddib translate` writes as JSON."""
        return self.result.provenance.judged()

    @cached_property
    def array(self) -> NDArray[Any]:
        """The translation: (H, W, C) or (D, H, W, C) numbers of its file, or points (N, D) float32."""
        return self._array(self.files[Part.TRANSLATION])

    @cached_property
    def returned(self) -> NDArray[Any] | None:
        """What the cycle returned, like `array`; None without a cycle."""
        content = self.files.get(Part.RETURNED)
        return None if content is None else self._array(content)

    @cached_property
    def latent(self) -> NDArray[np.float32] | None:
        """The latent (N, *shape), where it was asked for. It is an invertible encoding: treat it as the sample."""
        content = self.files.get(Part.LATENT)
        return None if content is None else np.load(io.BytesIO(content), allow_pickle=False)

    @property
    def picture(self) -> Image.Image:
        """The translation as a PIL picture.

        Raises:
            UsageError: It is a set of points, or a volume.
        """
        content = self.files[Part.TRANSLATION]
        if image_format(content) == "NPY":
            what = "a set of points" if self.record.picture is None else "a volume"
            raise UsageError(f"the translation is {what}, not a picture", hint="use .array")
        picture = Image.open(io.BytesIO(content))
        picture.load()
        return picture

    def save(self, folder: str | Path, name: str) -> Path:
        """Write NAME.png or NAME.npy with its other files and NAME.json, as `ddib translate` does; gives the first.

        Raises:
            AlreadyExists: One of them is there.
        """
        from ddib_fed.client.files import FileItem
        from ddib_fed.client.results import check_free, write_result

        item, out = FileItem(name, name), Path(folder)
        check_free([item], (), out, force=False)
        return write_result(self.result, item, out).files[Part.TRANSLATION]

    def __repr__(self) -> str:
        record, picture = self.record, self.record.picture
        parts = [f"{len(self.array)} points"]
        if picture is not None:
            sides = [side for side in (picture.depth, picture.height, picture.width) if side]
            parts = [f"{' x '.join(map(str, sides))} {'volume' if picture.depth else 'picture'}"]
        if picture is not None and picture.lost:
            parts.append(picture.lost)
        if picture is not None and picture.cycle_psnr is not None:
            alone = picture.autoencoder_psnr
            of = "" if alone is None else f" (the autoencoder alone {alone:.1f} dB)"
            parts.append(f"round trip {picture.cycle_psnr:.1f} dB{of}")
        if record.cycle is not None:
            parts.append(f"cycle error median {record.cycle.median:.1e}")
        if record.doubtful:
            parts.append(f"doubtful ({', '.join(record.doubts or ())})")
        return f"<Translated {record.source_domain} to {record.target_domain}: {', '.join(parts)}>"

    def _repr_png_(self) -> bytes | None:
        if self.record.picture is None:
            return None
        return encode_png(middle_slices(self.array)) if self.array.ndim == 4 else self.files[Part.TRANSLATION]

    def _array(self, content: bytes) -> NDArray[Any]:
        if image_format(content) != "NPY":
            return decode_image(content).pixels
        if self.record.picture is not None:
            return decode_volume(content)
        return parse_npy(content, max_bytes=len(content), max_points=len(content))


OnProgress = Callable[[int, int], None]
Label = int | str | None


def translate(
    samples: Given | Sequence[Given],
    source: Model | Client | str | Path,
    target: Model | str | Path,
    *,
    cycle: bool = False,
    evaluations: int = 48,
    solver: str = "unipc",
    order: int = 0,
    grid: str = "default",
    depth: float = 1.0,
    quality: str | None = None,
    share: float | None = None,
    temperature: float | None = None,
    blend: float | None = None,
    source_class: Label = None,
    target_class: Label = None,
    guidance: float | None = None,
    classifier_scale: float | None = None,
    soften_sigma: float | None = None,
    seed: int = 0,
    keep_latents: bool = False,
    calibration: Calibration | str | Path | None = None,
    no_calibration: bool = False,
    on_progress: OnProgress | None = None,
) -> list[TranslatedSample]:
    """Translate samples of the source's domain to the target's and, for a cycle, back.

    In this process, source and target are models. Between institutions, `source` is a `ddib_fed.Client` of the
    institution's source node and `target` a text like ``"west.example/relief"``; only latents leave the institution.

    Args:
        samples: PIL pictures, arrays or paths, one or a list of them. An array is one sample: (H, W) or (H, W, C) raw
            values of a picture, (D, H, W) or (D, H, W, C) of a volume, or points (N, D) in the units of the data.
        source: A model from `Model.open`, its name or folder; or a client.
        target: A model from `Model.open`, its name or folder; with a client INSTITUTION/DOMAIN.
        cycle: Whether to come back, for the error of the round trip.
        evaluations: Network evaluations of each leg.
        solver: "unipc", "ddim" or "flow-map" (both models distilled).
        order: Of the solver; 0 for its default.
        grid: "default", "uniform-lambda", "integer" or "learned" (both models tuned).
        depth: Fraction of the way to noise, in (0, 1]; below 1 the latent keeps some of the sample.
        quality: "draft", "standard" or "exact", instead of solver, order, evaluations and grid.
        share: Of the network in encoding pictures, in [0, 1]; the rest is linear. Below 1 the latent keeps more
            structure and shows more of the picture, and between nodes both policies must allow it. None for what the
            calibration proposes, 1 without one.
        temperature: Of the latent where it is decoded, in [0.8, 1]: below 1 less is invented, and edges are softer.
            None as of `share`.
        blend: Of the source's own picture, mapped by the calibration, in the result, in [0, 1]. None for what the
            calibration proposes, 0 without one.
        source_class: Class of the samples, by number or name, where the source's model has classes.
        target_class: Class to translate to.
        guidance: Scale of classifier-free guidance at the target; None for none.
        classifier_scale: Weight of the target's classifier; None for no classifier guidance.
        soften_sigma: Noise level before encoding; None for the source model's own. In this process only.
        seed: Of the softening's noise. In this process only: a node derives it from a secret.
        keep_latents: Whether results carry latents.
        calibration: Under which the source encodes: the object, or the file that `ddib calibrate --local` writes. In
            this process only: nodes use the one that both operators agreed on.
        no_calibration: Leave that one out. Between nodes only.
        on_progress: Called with (samples done, in all).

    Returns:
        One `TranslatedSample` for each sample, in order.

    Raises:
        DdibError: A sample cannot be used (`facts["item"]` says which), the settings do not fit the models, or a node
            refuses or cannot be reached; the text says what to do.
        JobFailed: A latent is not Gaussian, for one.
    """
    files = contents(samples)
    dial = {"share": share, "temperature": temperature, "blend": blend}
    said = {name: value for name, value in dial.items() if value is not None}
    settings = Settings(solver, order, evaluations, grid, depth, **said).of_quality(quality)
    from ddib_fed.client.client import Client

    before, after = ("" if each is None else str(each) for each in (source_class, target_class))
    request: dict[str, Any] = {
        "cycle": cycle,
        "keep_latent": keep_latents,
        "source_class": before,
        "target_class": after,
        "left": [name for name in dial if name not in said],
        "guidance": Guidance(guidance, classifier_scale),
        "on_event": None if on_progress is None else lambda event: on_progress(event.items_done, event.items),
    }
    of_one_process = {"soften_sigma": soften_sigma, "seed": seed or None, "calibration": calibration}
    if isinstance(source, Client):
        for name in (name for name, value in of_one_process.items() if value is not None):
            raise UsageError(f"{name} has no effect between nodes", hint=f"leave {name} out")
        if not isinstance(target, str):
            raise UsageError(
                "between nodes the target is a text",
                hint='for example "west.example/relief"; client.domains() lists them',
            )
        results = source.translate(files, target, settings, no_calibration=no_calibration, **request)
        return [TranslatedSample(each) for each in results]
    if no_calibration:
        raise UsageError(
            "no_calibration has no effect in one process", hint="leave no_calibration and calibration out"
        )
    with extra("node", "torch", "translating in this process needs torch, which is not installed"):
        from ddib_fed.calibration.record import read_calibration
        from ddib_fed.client.in_process import InProcess, ProcessOptions

    if isinstance(calibration, str | Path):
        calibration = read_calibration(Path(calibration))
    here = ProcessOptions(soften_sigma, seed, calibration)
    models = [each if isinstance(each, Model) else Model.open(each) for each in (source, target)]
    # Each picture at its own size in tiles, or fitted; those of one size together.
    sizes: dict[tuple[int, int] | None, list[int]] = {}
    for number, content in enumerate(files):
        with _naming([number]):
            sizes.setdefault(_scene_of(models[0].party.model, content, settings), []).append(number)
    found: dict[int, TranslatedSample] = {}
    for scene, numbers in sizes.items():
        with _naming(numbers):
            parties = [(each if scene is None else each.of_scene(*scene)).party for each in models]
            client = InProcess(parties[0], parties[1], here)
            made = client.translate([files[n] for n in numbers], client.target, settings, **request)
        found |= {numbers[each.item]: TranslatedSample(each) for each in made}
    return [found[number] for number in range(len(files))]


def _scene_of(model: DomainModel, content: bytes, settings: Settings) -> tuple[int, int] | None:
    """The scene (H, W) as which a picture is translated in tiles; None for one that is fitted to the model's size."""
    from ddib_fed.record import MOST_TILES, tiles_in

    form = model.manifest.picture
    one_size = settings.solver == "flow-map" or settings.grid == "learned" or model.bundle.tile is not None
    if form is None or not form.tiles or one_size or model.manifest.sample_kind != "picture":
        return None
    (high, wide), (_, height, width) = decode_image(content).pixels.shape[:2], model.sample_shape
    return (high, wide) if 0 < tiles_in(high, wide, (height, width)) <= MOST_TILES else None


@contextmanager
def _naming(numbers: Sequence[int]) -> Iterator[None]:
    try:
        yield
    except DdibError as error:
        item = int(error.facts.get("item", "0"))
        if "item" in error.facts or len(numbers) == 1:
            error.detail = f"sample {numbers[item]}: {error.detail.removeprefix(f'item {item}: ')}"
            error.facts = {**error.facts, "item": str(numbers[item])}
        raise
