"""`ddib_fed.translate`: samples of a notebook through two models of this process, or through two nodes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.client.jobs import Event, Request
from ddib_fed.client.results import Translated
from ddib_fed.data.pictures import ImageLimits, decode_image, encode_png, read_content
from ddib_fed.errors import DdibError, UsageError
from ddib_fed.record import Settings

if TYPE_CHECKING:
    from ddib_fed.client.client import Client
    from ddib_fed.engine.model import DomainModel
    from ddib_fed.model import Model


Given = Image.Image | NDArray[Any] | str | Path
"""A PIL picture; an array of raw values, (H, W) or (H, W, C) of a picture, (D, H, W) or (D, H, W, C) of a volume, or
(N, D) points; or the path of a file of any."""


def contents(samples: Given | Sequence[Given]) -> list[bytes]:
    """Return the file of each sample: PNG for PIL pictures, .npy for arrays, a path's own bytes."""
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


def translate(
    samples: Given | Sequence[Given],
    source: Model | Client | str | Path,
    target: Model | str | Path,
    request: Request | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Translated]:
    """Translate samples of the source's domain to the target's and, for a cycle, back.

    In this process, source and target are models. Between institutions, `source` is a `ddib_fed.Client` of the
    institution's source node and `target` a text like ``"west.example/relief"``; only latents leave the institution.

    Parameters
    ----------
    samples
        PIL pictures, arrays or paths, one or a list of them. An array is one sample: (H, W) or (H, W, C) raw values of
        a picture, (D, H, W) or (D, H, W, C) of a volume, or points (N, D) in the units of the data.
    source
        A model, its name or folder; or a client.
    target
        A model, its name or folder; with a client INSTITUTION/DOMAIN.
    request
        What is asked of the translation; without one the defaults.
    on_progress
        Called with (samples done, in all).

    Yields
    ------
    Translated
        One for each sample, in their order, as soon as it is there.

    Raises
    ------
    DdibError
        A sample cannot be used (`facts["item"]` says which), the settings do not fit the models, or a node refuses or
        cannot be reached; the text says what to do.

    Examples
    --------
    >>> import numpy
    >>> from ddib_fed import Request, Settings, translate
    >>> angles = numpy.linspace(0.2, 2.9, 16)
    >>> points = numpy.stack([numpy.cos(angles), numpy.sin(angles)], 1)
    >>> request = Request(Settings(evaluations=12), cycle=True)
    >>> for result in translate(points, "moons", "checkerboards", request):
    ...     print(result.array.shape, result.returned.shape, result.record.target_domain)
    (16, 2) (16, 2) checkerboards
    """
    from ddib_fed.client.client import Client

    request, files = request or Request(), contents(samples)
    offset, total = 0, len(files)

    def tell(event: Event) -> None:
        if on_progress is not None:
            on_progress(offset + event.items_done, total)

    if isinstance(source, Client):
        if not isinstance(target, str):
            raise UsageError(
                "between nodes the target is a text",
                hint='for example "west.example/relief"; client.domains() lists them',
            )
        yield from source.translate(files, target, request, on_event=tell)
        return
    from ddib_fed.model import Model  # with torch, as nothing that a client needs

    models = [each if isinstance(each, Model) else Model.open(each) for each in (source, target)]
    # Each picture at its own size in tiles, or fitted; those of one size together.
    sizes: dict[tuple[int, int] | None, list[int]] = {}
    for number, content in enumerate(files):
        with _naming([number]):
            sizes.setdefault(_scene_of(models[0].party.model, content, request.settings), []).append(number)
    early: dict[int, Translated] = {}
    following = 0
    for scene, numbers in sizes.items():
        own, other = (each if scene is None else each.of_scene(*scene) for each in models)
        client = own.to(other)
        with _naming(numbers):
            made = client.translate([files[n] for n in numbers], client.target, request, on_event=tell)
            for each in made:
                early[numbers[each.item]] = replace(each, item=numbers[each.item])
                while following in early:
                    yield early.pop(following)
                    following += 1
        offset += len(numbers)


def _scene_of(model: DomainModel, content: bytes, settings: Settings) -> tuple[int, int] | None:
    """Return (H, W) if a picture is translated in tiles; None if it is fitted to the model's size."""
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
