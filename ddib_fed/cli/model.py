"""`ddib model`: train, sample, import and show models. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import command, group
from ddib_fed.cli.opening import open_model
from ddib_fed.cli.output import figures, lines, outcome, print_ids, print_json, print_table
from ddib_fed.cli.sampling import interpolate, sample
from ddib_fed.cli.train import train
from ddib_fed.cli.tune import gate, said, tune, tuned_figures
from ddib_fed.errors import AlreadyExists, UsageError
from ddib_fed.terminal import bar, say

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.models.catalogue import Listed
    from ddib_fed.models.manifest import DifferentialPrivacy, Distilled
    from ddib_fed.models.sidecars import Figure, Membership, PrivacyReport, Reading
    from ddib_fed.models.weights import Imported


_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
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
    found = _read_checkpoint(given)
    saved = save_bundle(out, found.manifest, found.state, overwrite=force)
    _say(found, saved, out, output_format)


def _read_checkpoint(given: dict[str, Any]) -> Imported | Bundle:
    """The model named by the options; contradictions are usage errors."""
    named = [key for key in ("checkpoint", "diffusers", "synthetic") if given[key] is not None]
    if len(named) != 1:
        raise UsageError(
            "name one model: CHECKPOINT.pt, --diffusers DIR or --synthetic FILE.pt",
            hint="ddib model import --help",
        )
    kind = named[0]
    strange = () if kind == "checkpoint" else ("flags", "classifier")
    what = "CHECKPOINT.pt" if kind == "checkpoint" else f"--{kind}"
    for keys, hint in (
        (strange, "leave it out"),
        (
            _OF_PICTURES if kind == "synthetic" else _OF_POINTS,
            "put it into --flags" if kind == "checkpoint" else "leave it out",
        ),
    ):
        options.refuse_idle(keys, f"does not go with {what}", hint=hint)
    names = {"domain": given["domain"], "name": given["name"]}
    if kind == "synthetic":
        from ddib_fed.models.import_guided import import_synthetic

        settings = {key: given[key] for key in _OF_POINTS if given[key]}
        return import_synthetic(given["synthetic"], **names, **settings)
    settings = {key: given[key] for key in _OF_PICTURES if given[key] is not None}
    if kind == "diffusers":
        from ddib_fed.models.import_diffusers import import_diffusers

        return import_diffusers(given["diffusers"], **names, **settings)
    from ddib_fed.models.import_guided import import_guided

    return import_guided(
        given["checkpoint"],
        flags=given["flags"] or "",
        classifier=given["classifier"],
        **names,
        **settings,
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
    from ddib_fed.models.weights import Imported

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


SHOWN_DIGEST = 12


@command("list", epilog="\b\nExamples:\n  ddib model list\n  ddib model list -q")
@options.QUIET
@options.FORMAT
def list_(*, quiet: bool, output_format: str) -> None:
    """List the models that ship with the package.

    The name of a shipped model can be given wherever a command says that MODEL may be a shipped one; for tune, gate and
    thresholds copy it first: `ddib model get`. Learned steps are the numbers of evaluations for which a model's steps
    were tuned (`--grid learned`).
    """
    from ddib_fed.models.catalogue import shipped_models

    found = shipped_models()
    if quiet:
        print_ids([each.name for each in found], output_format)
    elif output_format == "json":
        print_json([figures(each) for each in found])
    else:
        columns = ["!name", "domain", "!samples", ">parameters", ">MB", "learned steps", "!digest"]
        print_table("", columns, [_row(each) for each in found])


def _row(each: Listed) -> list[str]:
    return [
        each.name,
        each.domain,
        f"{each.kind} {'x'.join(map(str, each.shape))}",
        f"{each.parameters:,}",
        f"{each.size_bytes / 1e6:.1f}",
        " ".join(map(str, each.evaluations)) or "-",
        each.digest[:SHOWN_DIGEST],
    ]


@command(epilog="\b\nExample:\n  ddib model get satellite --out models/satellite")
@click.argument("name")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The folder of the copy; it appears whole or not at all.",
)
@click.option("--force", is_flag=True, help="Replace the model in --out.")
@options.FORMAT
def get(*, name: str, out: Path, force: bool, output_format: str) -> None:
    """Copy a model that ships with the package to a folder of your own, e.g. to tune it or to serve it."""
    from ddib_fed.models.catalogue import copy_shipped

    made = copy_shipped(name, out, overwrite=force)
    if output_format == "json":
        print_json({"out": out, **figures(made)})
        return
    say(f"{out}: {made.name}, {made.size_bytes / 1e6:.1f} MB, digest {made.digest[:SHOWN_DIGEST]}")


@group(
    context_settings={"help_option_names": ["-h", "--help"]},
    hooks={"distil": "ddib_fed.lab.commands:distil"},
)
def model() -> None:
    """List, copy, train, sample, show and import models."""


for each in (list_, get, train, tune, gate, sample, interpolate, import_):
    model.add_command(each)


@model.command()
@options.MODEL
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.pt",
    help="The checkpoint; the public scripts look for models/synthetic/log2D0/model000000.pt and the like.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@options.OUTCOME
def export(*, which: str, out: Path, force: bool) -> None:
    """Write a model of the public DDIB code's 2-D network as that code's checkpoint, and print its flags.

    `ddib model import --synthetic` reads it back.
    """
    from ddib_fed.files import write_file
    from ddib_fed.models.weights import public_checkpoint

    if out.exists() and not force:
        raise AlreadyExists(f"{out} exists", hint="choose another file, or --force")
    bundle = open_model(which)
    content, flags = public_checkpoint(bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, content)
    norm = bundle.manifest.normalisation
    lines({"checkpoint": str(out), "flags": flags, "units": _units(bundle)})
    outcome(checkpoint=out, flags=flags, digest=bundle.digest, mean=norm.mean, std=norm.std)


def _units(bundle: Bundle) -> str:
    norm = bundle.manifest.normalisation
    if (norm.mean, norm.std) == (0.0, 1.0):
        return "those of the data"
    return f"(data - {norm.mean}) / {norm.std}: the public code does not scale"


@model.command()
@options.MODEL
@options.FORMAT
def show(*, which: str, output_format: str) -> None:
    """Verify a model and print its manifest.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    from ddib_fed.evaluation.sample_verdict import SampleVerdict

    bundle = open_model(which)
    manifest = bundle.manifest.model_dump(mode="json")
    if output_format == "json":
        steps = None if bundle.tuned is None else bundle.tuned.values()
        own = None if bundle.allowances is None else bundle.allowances.figures()
        attacked = None if bundle.privacy is None else bundle.privacy.values()
        print_json({"digest": bundle.digest, **manifest, "steps": steps, "gate": own, "privacy": attacked})
        return
    training = manifest.pop("training")
    manifest.pop("distilled")
    distilled = bundle.manifest.distilled
    verdict = SampleVerdict.of_figures(bundle.manifest.training.figures)
    if bundle.manifest.differential_privacy is not None:
        manifest["differential_privacy"] = protection(bundle.manifest.differential_privacy)
    flat = {key: _text(value) for key, value in manifest.items() if value not in (None, "", [])}
    flat["sample_shape"] = " x ".join(map(str, manifest["sample_shape"]))
    lines(
        {
            "digest": bundle.digest,
            **flat,
            **({} if distilled is None else distilled_lines(distilled)),
            **{f"training {key}": _text(value) for key, value in training.items()},
            **(
                {}
                if bundle.tuned is None
                else {"steps": bundle.tuned.digest(), **dict(tuned_figures(bundle.tuned))}
            ),
            **({} if verdict is None else {"samples": verdict.sentence(bundle.manifest.training.steps)}),
            "gate": said(bundle.allowances)
            if bundle.allowances is not None
            else "fixed bounds alone"
            if bundle.manifest.sample_kind == "picture"
            else "fixed bounds, and points of each set are encoded again",
            **(
                {}
                if bundle.privacy is None
                else {f"privacy, {key}": text for key, text in attacked_lines(bundle.privacy)}
            ),
        }
    )


@model.command()
@click.argument("folder", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Pictures of the model's domain, at least eight.",
)
@click.option("--skip-bad", is_flag=True, help="List unreadable pictures, and continue.")
@options.FORMAT
def thresholds(*, folder: Path, images: Path, skip_bad: bool, output_format: str) -> None:
    """Measure how much structure unrelated pictures share, and store it in a model's bundle.

    Translations whose edges or values agree with their source no better than that are marked as doubtful.
    Training does this by itself; this command is for models that were imported, or trained by an older release.
    MODEL is the bundle's folder. Its weights do not change; its digest does.
    """
    from ddib_fed.evaluation.structure import put_thresholds

    with bar("looking at files") as show:
        found = put_thresholds(
            folder, images, skip_bad=skip_bad, progress=lambda done, total: show(done, total, "")
        )
    measured = found.manifest.structure
    assert measured is not None
    said = {"digest": found.digest, **measured.model_dump()}
    if output_format == "json":
        print_json(said)
        return
    lines({key: _text(value) for key, value in said.items()})


def protection(spent: DifferentialPrivacy) -> str:
    start = f"; not counting what its initial weights {spent.initial[:16]} spent" if spent.initial else ""
    return f"{spent}{start}. Not covered: pictures that are translated, several samples of one person, normalisation"


def _text(value: object) -> str:
    if isinstance(value, dict):
        said = {key: item for key, item in value.items() if item not in (None, "", [])}
        return ", ".join(f"{key} {_text(item)}" for key, item in said.items())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def distilled_lines(found: Distilled) -> dict[str, str]:
    """What a distilled model was made from and how accurate it is, line by line."""
    rows = {
        "distilled from": f"{found.teacher_name}, digest {found.teacher[:16]}",
        "errors": f"on the grid {found.grid}: distances from its {found.solver} with {found.evaluations} evaluations, "
        f"in deviations of the data: median, and what 95 % of {found.samples:,} held-out samples stay below",
    }
    for error in found.errors:
        plural = "evaluation" if error.evaluations == 1 else "evaluations"
        rows[f"{error.evaluations} {plural}"] = (
            f"encode {error.encode:g}, {error.encode_p95:g}; decode {error.decode:g}, {error.decode_p95:g}; "
            f"there and back {error.round_trip:g}"
        )
    return rows


def attacked_lines(found: PrivacyReport) -> list[tuple[str, str]]:
    """A line for each kind of latent and each attack."""
    rows = [(_name(each), _read(each, found.sample_kind)) for each in found.readings]
    rows += [(f"membership, softened {each.soften_sigma:g}", _told(each)) for each in found.membership]
    if found.copies is not None:
        near, held_out = found.copies.samples.value, found.copies.held_out.value
        said = (
            f"nearest at {near:.2f} of the distance from the mean picture, held-out pictures at {held_out:.2f}; "
            f"{found.copies.near.value:.0%} nearer than 99 in 100 held-out pictures"
        )
        rows.append(("training pictures drawn again", said))
    return [
        ("attacked", f"{found.attacked} latents, of as many candidates; {found.known} samples known"),
        *rows,
    ]


def _name(each: Reading) -> str:
    softened = f"softened {each.soften_sigma:g}" if each.soften_sigma else "not softened"
    return f"{each.encoder}, depth {each.depth:g}, {softened}"


def _read(each: Reading, kind: str) -> str:
    unit = "dB" if kind == "picture" else "deviations off"
    said = (
        f"correlation {_number(each.correlation)}, found by it {_number(each.found_by_correlation)}; {each.surrogate} "
        f"reads {_number(each.read)} {unit}, found {_number(each.found_by_reading)}"
    )
    if each.model_read is None or each.found_by_model is None:
        return said
    return f"{said}; a model of the attacker {_number(each.model_read)} {unit}, found {_number(each.found_by_model)}"


def _told(each: Membership) -> str:
    return f"area under the curve by the latent's norm {_number(each.norm)}, by the loss {_number(each.loss)}"


def _number(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
