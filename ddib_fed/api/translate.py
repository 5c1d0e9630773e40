"""`ddib_fed.translate`: samples of a notebook through two models of this process, or through two nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddib_fed.api.inputs import Given, contents
from ddib_fed.api.model import Model, load
from ddib_fed.api.results import Translated, Translations
from ddib_fed.errors import DdibError, UsageError
from ddib_fed.extras import extra
from ddib_fed.guidance import Guidance
from ddib_fed.wire.jobs import Settings

if TYPE_CHECKING:
    from ddib_fed.bridge.calibration.record import Calibration
    from ddib_fed.client.client import Client
    from ddib_fed.client.in_process import Here
    from ddib_fed.client.views import Result

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
    encoder: str = "ode",
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
) -> Translations:
    """Translate samples of the source's domain to the target's and, for a cycle, back.

    In this process, source and target are models. Between institutions, `source` is a `ddib_fed.Client` of the
    institution's source node and `target` a text like ``"west.example/relief"``; only latents leave the institution.

    Args:
        samples: PIL pictures, arrays or paths, one or a list of them. An array is one sample: (H, W) or (H, W, C) raw
            values of a picture, or points (N, D) in the units of the data.
        source: A model from `load`, its name or folder; or a client.
        target: A model from `load`, its name or folder; with a client INSTITUTION/DOMAIN.
        cycle: Whether to come back, for the error of the round trip.
        evaluations: Network evaluations of each leg.
        solver: "unipc", "ddim", "rk4", "alf" or "flow-map" (both models distilled).
        order: Of the solver; 0 for its default.
        grid: "default", "uniform-lambda", "karras", "integer", "integer:T" or "learned" (both models tuned).
        depth: Fraction of the way to noise, in (0, 1]; below 1 the latent keeps some of the sample.
        quality: "draft", "standard" or "exact", instead of solver, order, evaluations and grid.
        encoder: How the source encodes pictures: "ode" or "mixed"; with "mixed" the latent shows more of the picture,
            and between nodes both policies must allow it.
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
        One `Translated` for each sample, in order.

    Raises:
        DdibError: A sample cannot be used (`facts["item"]` says which), the settings do not fit the models, or a node
            refuses or cannot be reached; the text says what to do.
        JobFailed: A latent is not Gaussian, for one.
    """
    files = contents(samples)
    asked = Settings(solver, order, evaluations, grid, depth, encoder).of_quality(quality)
    from ddib_fed.client.client import Client

    before, after = ("" if each is None else str(each) for each in (source_class, target_class))
    request: dict[str, Any] = {
        "cycle": cycle,
        "keep_latent": keep_latents,
        "source_class": before,
        "target_class": after,
        "guidance": Guidance(guidance, classifier_scale),
        "on_event": None if on_progress is None else lambda event: on_progress(event.items_done, event.items),
    }
    if isinstance(source, Client):
        for name, idle in (
            ("soften_sigma", soften_sigma),
            ("seed", seed or None),
            ("calibration", calibration),
        ):
            if idle is not None:
                raise UsageError(f"{name} has no effect between nodes", hint=f"leave {name} out")
        if not isinstance(target, str):
            raise UsageError(
                "between nodes the target is a text",
                hint='for example "west.example/relief"; client.domains() lists them',
            )
        results = source.translate(files, target, asked, no_calibration=no_calibration, **request)
        return _translations(results)
    if no_calibration:
        raise UsageError(
            "no_calibration has no effect in one process", hint="leave no_calibration and calibration out"
        )
    with extra("node", "torch", "translating in this process needs torch, which is not installed"):
        from ddib_fed.bridge.calibration.files import read_calibration
        from ddib_fed.client.in_process import Here

    if isinstance(calibration, str | Path):
        calibration = read_calibration(Path(calibration))
    models = [each if isinstance(each, Model) else load(each) for each in (source, target)]
    return _translations(_here(files, models, Here(soften_sigma, seed, calibration), asked, request))


def _here(
    files: Sequence[bytes], models: Sequence[Model], here: Here, settings: Settings, request: dict[str, Any]
) -> Iterator[Result]:
    """Through models of this process: each picture at its own size in tiles, or fitted; those of one size together."""
    from ddib_fed.client.in_process import InProcess, scene_for

    manifest = models[0].party.model.manifest
    sizes: dict[tuple[int, int] | None, list[int]] = {}
    for number, content in enumerate(files):
        with _naming([number]):
            scene = scene_for(models[0].party.model, content, settings) if manifest.picture else None
        sizes.setdefault(scene, []).append(number)
    found: dict[int, Result] = {}
    for scene, numbers in sizes.items():
        source, target = ((each if scene is None else each.of_scene(*scene)).party for each in models)
        with _naming(numbers):
            client = InProcess(source, target, here)
            made = client.translate([files[n] for n in numbers], client.target, settings, **request)
        found |= {numbers[each.item]: each for each in made}
    return (found[number] for number in range(len(files)))


@contextmanager
def _naming(numbers: Sequence[int]) -> Iterator[None]:
    """Errors name the sample that they are about, which is one of these."""
    try:
        yield
    except DdibError as error:
        item = int(error.facts.get("item", "0"))
        if "item" in error.facts or len(numbers) == 1:
            error.detail = f"sample {numbers[item]}: {error.detail.removeprefix(f'item {item}: ')}"
            error.facts = {**error.facts, "item": str(numbers[item])}
            error.args = (error.detail,)
        raise


def _translations(results: Iterable[Result]) -> Translations:
    return Translations(
        [
            Translated({part: file.data for part, file in each.files.items()}, each.provenance.judged())
            for each in results
        ]
    )
