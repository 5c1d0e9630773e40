"""`ddib model import`: imports models of other code, and lists where each setting comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command
from ddib_fed.errors import AlreadyExists, BundleInvalid, UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.models.importers.report import Imported

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_TOLERANCE = 1e-4
# Options for only one of the three kinds of file.
_OF_POINTS = ("noise_schedule", "diffusion_steps", "rescale_timesteps", "predict_xstart")
_OF_PICTURES = ("fit", "soften_sigma")


@command("import")
@click.argument("checkpoint", required=False, type=_FILE, metavar="[CHECKPOINT.pt]")
@click.option("--out", required=True, type=_FOLDER, metavar="DIR", help="The bundle's folder.")
@click.option(
    "--flags",
    metavar="FLAGS",
    help="The flags that it was trained with: the public README's MODEL_FLAGS line, or a classifier's, in quotes.",
)
@click.option("--classifier", is_flag=True, help="The checkpoint is a noisy classifier, for guidance.")
@click.option(
    "--diffusers",
    type=_FOLDER,
    metavar="DIR",
    help="Instead: the folder of a diffusers pipeline of pixels (needs the package diffusers).",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="With --diffusers: which of its weights, such as fp16.  [default: the full ones, or the only ones]",
)
@click.option(
    "--check",
    is_flag=True,
    help="With --diffusers: compare outputs with the library's first.",
)
@click.option(
    "--synthetic",
    type=_FILE,
    metavar="FILE.pt",
    help="Instead: a state dict of the public DDIB code's 2-D network.",
)
@click.option(
    "--domain",
    default="imported",
    show_default=True,
    metavar="NAME",
    callback=options.domain_name,
    help="Domain name in the bundle.",
)
@click.option(
    "--name", metavar="NAME", default="", help="Model name in the bundle; default: the file's name."
)
@click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "resize"]),
    help="Pictures: how those of another size are fitted.  [default: crop, as the public code]",
)
@click.option(
    "--soften-sigma",
    type=click.FloatRange(0, 1),
    metavar="SIGMA",
    help="Pictures: noise level of softening before encoding.  [default: 0]",
)
@click.option(
    "--noise-schedule",
    type=click.Choice(["linear", "cosine"]),
    help="With --synthetic: noise schedule of its training.  [default: linear]",
)
@click.option(
    "--diffusion-steps",
    type=click.IntRange(2),
    help="With --synthetic: diffusion steps of its training.  [default: 4000]",
)
@click.option(
    "--rescale-timesteps", is_flag=True, help="With --synthetic: it was trained with rescaled timesteps."
)
@click.option("--predict-xstart", is_flag=True, help="With --synthetic: it predicts x0 instead of the noise.")
@options.FORMAT
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def import_(*, out: Path, force: bool, output_format: str, **given: Any) -> None:
    """Make a bundle of a public checkpoint. Pickles are read with weights_only=True.

    CHECKPOINT.pt holds a UNet of guided-diffusion (or of the public DDIB code), or with --classifier its noisy
    classifier. Settings are inferred from the tensors' shapes; the rest comes from --flags, or the public defaults.
    Every setting is listed with its origin; a flag that contradicts the shapes is refused.

    With --diffusers, a folder as `save_pretrained` writes it: unet/ (UNet2DModel) or transformer/ (DiT), and
    scheduler/. A setting that cannot be computed exactly is refused by its key, and so is a pipeline with more than a
    pixel network: an autoencoder, a text encoder, a LoRA.
    """
    from ddib_fed.models.bundle import save_bundle

    if out.exists() and not force:
        raise AlreadyExists(f"{out} exists", hint="choose another folder, or --force")
    found = _read(given)
    saved = save_bundle(out, found.manifest, found.state, overwrite=force)
    _say(found, saved, out, output_format)


def _read(given: dict[str, Any]) -> Imported | Bundle:
    """The model named by the options; contradictions are usage errors."""
    named = [key for key in ("checkpoint", "diffusers", "synthetic") if given[key] is not None]
    if len(named) != 1:
        raise UsageError(
            "name one model: CHECKPOINT.pt, --diffusers DIR or --synthetic FILE.pt",
            hint="ddib model import --help",
        )
    kind = named[0]
    strange = {
        "checkpoint": ("check", "variant"),
        "diffusers": ("flags", "classifier"),
        "synthetic": ("flags", "classifier", "check", "variant"),
    }
    what = "CHECKPOINT.pt" if kind == "checkpoint" else f"--{kind}"
    for keys, hint in (
        (strange[kind], "leave it out"),
        (
            _OF_PICTURES if kind == "synthetic" else _OF_POINTS,
            "put it into --flags" if kind == "checkpoint" else "leave it out",
        ),
    ):
        options.refuse_idle(keys, f"does not go with {what}", hint=hint)
    names = {"domain": given["domain"], "name": given["name"]}
    if kind == "synthetic":
        from ddib_fed.models.importers.synthetic import import_synthetic

        settings = {key: given[key] for key in _OF_POINTS if given[key]}
        return import_synthetic(given["synthetic"], **names, **settings)
    settings = {key: given[key] for key in _OF_PICTURES if given[key] is not None}
    if kind == "diffusers":
        from ddib_fed.models.importers.diffusers_folder import import_diffusers, largest_difference

        folder, variant = given["diffusers"], given["variant"]
        found = import_diffusers(folder, variant=variant, **names, **settings)
        if given["check"]:
            _compare(largest_difference(folder, found, variant=variant))
        return found
    from ddib_fed.models.importers.guided import import_guided

    return import_guided(
        given["checkpoint"],
        flags=given["flags"] or "",
        classifier=given["classifier"],
        **names,
        **settings,
    )


def _compare(relative: float) -> None:
    """Report the difference from the library's outputs; refuse an import that differs."""
    say(f"outputs differ from the library's by {relative:.1e} of their largest value", err=True)
    if not relative <= _TOLERANCE:
        raise BundleInvalid(
            f"outputs differ from the library's by more than {_TOLERANCE:g}",
            hint="report the model's config.json: this is a defect of the import",
        )


def _of_synthetic(saved: Bundle) -> tuple[str, ...]:
    """A warning for a point network imported without its options."""
    context = click.get_current_context(silent=True)
    chosen = [] if context is None else [key for key in _OF_POINTS if context.params.get(key)]
    if chosen:
        return ()
    schedule = saved.manifest.schedule
    trust = "without --noise-schedule and --diffusion-steps these are the public defaults, which no tensor confirms"
    return (f"{trust}: {schedule.name}, {schedule.steps} steps",)


def _say(found: Imported | Bundle, saved: Bundle, out: Path, output_format: str) -> None:
    from ddib_fed.cli.output import lines, print_json
    from ddib_fed.models.importers.report import Imported

    manifest = saved.manifest
    warnings = found.warnings if isinstance(found, Imported) else _of_synthetic(saved)
    for warning in warnings:
        say(f"warning: {warning}", err=True)
    imported = found if isinstance(found, Imported) else None
    if output_format == "json":
        print_json(
            {
                "bundle": str(out),
                "digest": saved.digest,
                "parameters": manifest.parameters,
                "settings": [
                    {"key": fact.key, "value": fact.value, "basis": fact.basis}
                    for fact in (imported.facts if imported else ())
                ],
                "ignored": dict(imported.ignored) if imported else {},
                "remarks": list(imported.remarks) if imported else [],
                "warnings": list(warnings),
            }
        )
        return
    if imported:
        width = max(len(fact.value) for fact in imported.facts)
        lines({fact.key: f"{fact.value:<{width}}  {fact.basis}" for fact in imported.facts})
        for key, reason in imported.ignored.items():
            say(f"{key if imported.of_files else f'--{key}'} is not used: {reason}")
        for remark in imported.remarks:
            say(remark)
    say(f"{out}: {manifest.parameters:,} parameters, digest {saved.digest[:16]}")
