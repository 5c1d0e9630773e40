"""`ddib_fed.translate`: samples of a notebook through two models of this process, or through two nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.api.inputs import Given, contents
from ddib_fed.api.results import Translated, Translations
from ddib_fed.errors import UsageError
from ddib_fed.extras import extra
from ddib_fed.guidance import Guidance
from ddib_fed.wire.jobs import Settings

if TYPE_CHECKING:
    from ddib_fed.api.model import Model
    from ddib_fed.bridge.calibration.record import Calibration
    from ddib_fed.client.client import Client

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
        source_class: Class of the samples, by number (between nodes by name too), where the source's model has classes.
        target_class: Class to translate to.
        guidance: Scale of classifier-free guidance at the target; None for none.
        classifier_scale: Weight of the target's classifier; None for no classifier guidance.
        soften_sigma: Noise level before encoding; None for the source model's own. In this process only.
        seed: Of the softening's noise. In this process only: a node derives it from a secret.
        keep_latents: Whether results carry latents.
        calibration: Under which the source encodes: the object, or the file that `ddib calibrate --local` writes. In
            this process only: nodes use the one that both operators agreed on.
        no_calibration: Leave that one out. Between nodes only.
        on_progress: Called with (evaluations done, in all); in this process only.

    Returns:
        One `Translated` for each sample, in order.

    Raises:
        DdibError: A sample cannot be used (`facts["item"]` says which), the settings do not fit the models, a latent is
            not Gaussian, or a node refuses or cannot be reached; the text says what to do.
    """
    files = contents(samples)
    asked = Settings(solver, order, evaluations, grid, depth).of_quality(quality)
    settings = (asked.solver, asked.order, asked.evaluations, asked.grid, depth)
    classes, guided = (source_class, target_class), Guidance(guidance, classifier_scale)
    from ddib_fed.client.client import Client

    if isinstance(source, Client):
        for name, idle in (
            ("soften_sigma", soften_sigma),
            ("seed", seed or None),
            ("calibration", calibration),
            ("on_progress", on_progress),
        ):
            if idle is not None:
                raise UsageError(f"{name} has no effect between nodes", hint=f"leave {name} out")
        return _through_nodes(
            files,
            source,
            target,
            (*settings, encoder),
            classes,
            guided,
            cycle,
            keep_latents,
            no_calibration,
        )
    if no_calibration:
        raise UsageError(
            "no_calibration has no effect in one process", hint="leave no_calibration and calibration out"
        )
    with extra("node", "torch", "translating in this process needs torch, which is not installed"):
        from ddib_fed.api.local import Wanted, translate_here

    wanted = Wanted(
        settings,
        encoder,
        classes,
        guided,
        cycle,
        keep_latents,
        soften_sigma,
        seed,
        on_progress,
        calibration,
    )
    return translate_here(files, source, target, wanted)


def _through_nodes(
    files: Sequence[bytes],
    client: Client,
    target: object,
    settings: tuple[str, int, int, str, float, str],
    classes: tuple[Label, Label],
    guidance: Guidance,
    cycle: bool,
    keep_latents: bool,
    no_calibration: bool,
) -> Translations:
    from ddib_fed.wire.jobs import Settings

    if not isinstance(target, str):
        raise UsageError(
            "between nodes the target is a text",
            hint='for example "west.example/relief"; client.domains() lists them',
        )
    before, after = ("" if each is None else str(each) for each in classes)
    results = client.translate(
        files,
        target,
        Settings(*settings),
        cycle=cycle,
        keep_latent=keep_latents,
        source_class=before,
        target_class=after,
        guidance=guidance,
        no_calibration=no_calibration,
    )
    return Translations(
        [
            Translated({part: file.data for part, file in each.files.items()}, each.provenance.judged())
            for each in results
        ]
    )
