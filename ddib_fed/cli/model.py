"""`ddib model`: list, copy, import, export, show, tune and measure models. Heavy imports wait until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import group, open_model, option
from ddib_fed.cli.sampling import interpolate, sample
from ddib_fed.cli.train import train
from ddib_fed.errors import AlreadyExists, InputError
from ddib_fed.terminal import bar, emit, figures, lines, outcome, print_table, say

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.models.manifest import DifferentialPrivacy, Distilled
    from ddib_fed.models.sidecars import Allowances, Figure, PrivacyReport, Reading, Tuned
    from ddib_fed.models.weights import Imported

SHOWN_DIGEST = 12
NUMBERS = (12, 16, 20)
FOLDER = click.argument("folder", metavar="MODEL", type=click.Path(file_okay=False, path_type=Path))
DATA = option(
    "--data PATH",
    "Folder of pictures of the model's domain that it was not trained on, or a .npy file of its points; default: the "
    "domain that ships.",
)
DEVICE = option("--device", "Device to compute on.", ("cpu", "cuda"), default="cpu")


@group(hooks={"distil": "ddib_fed.lab.commands:distil"})
def model() -> None:
    """List, copy, train, sample, show and import models."""


for each in (train, sample, interpolate):
    model.add_command(each)


@model.command("list", epilog="\b\nExamples:\n  ddib model list\n  ddib model list -q")
@options.QUIET
@options.OUTCOME
def list_(*, quiet: bool) -> None:
    """List the models that ship with the package.

    The name of a shipped model can be given wherever a command says that MODEL may be a shipped one; for tune and
    measure copy it first: `ddib model get`. Learned steps are the numbers of evaluations for which a model's steps were
    tuned (`--grid learned`).
    """
    from ddib_fed.models.catalogue import shipped_models

    found = shipped_models()
    if quiet:
        names = [each.name for each in found]
        emit(names, lambda: say(*names))
        return
    columns = ["!name", "domain", "!samples", ">parameters", ">MB", "learned steps", "!digest"]
    rows = [
        [
            each.name,
            each.domain,
            f"{each.kind} {'x'.join(map(str, each.shape))}",
            f"{each.parameters:,}",
            f"{each.size_bytes / 1e6:.1f}",
            " ".join(map(str, each.evaluations)) or "-",
            each.digest[:SHOWN_DIGEST],
        ]
        for each in found
    ]
    emit([figures(each) for each in found], lambda: print_table("", columns, rows))


@model.command(epilog="\b\nExample:\n  ddib model get satellite --out models/satellite")
@click.argument("name")
@option("--out DIR", "The folder of the copy; it appears whole or not at all.", required=True)
@option("--force", "Replace the model in --out.")
@options.OUTCOME
def get(*, name: str, out: Path, force: bool) -> None:
    """Copy a model that ships with the package to a folder of your own, e.g. to tune it or to serve it."""
    from ddib_fed.models.catalogue import copy_shipped

    made = copy_shipped(name, out, overwrite=force)
    say(f"{out}: {made.name}, {made.size_bytes / 1e6:.1f} MB, digest {made.digest[:SHOWN_DIGEST]}")
    outcome(out=out, **figures(made))


@model.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@option("--out DIR", "The bundle's folder.", required=True)
@option(
    "--flags FLAGS",
    "The flags that it was trained with, in quotes: the public README's MODEL_FLAGS line, or a classifier's.",
    default="",
)
@option("--classifier", "The checkpoint is a noisy classifier, for guidance.")
@option("--synthetic", "The checkpoint is a state dict of the public DDIB code's 2-D network.")
@option("--domain NAME", "Domain name in the bundle.", default="imported", callback=options.domain_name)
@option("--name NAME", "Model name in the bundle; default: the file's name.", default="")
@option(
    "--fit",
    "Pictures: how those of another size are fitted.  [default: crop, as the public code]",
    ("crop", "pad", "resize"),
)
@option(
    "--soften-sigma SIGMA",
    "Pictures: noise level of softening before encoding.  [default: 0]",
    click.FloatRange(0, 1),
)
@options.OUTCOME
@option("--force", "Replace an existing bundle.")
def import_(*, out: Path, force: bool, checkpoint: Path, **given: Any) -> None:
    """Make a bundle of a public checkpoint. Pickles are read with weights_only=True.

    CHECKPOINT is a file with a UNet of guided-diffusion (or of the public DDIB code), or with --classifier its noisy
    classifier. Its network is that of --flags, with the public defaults for the rest. Every setting is listed with
    its origin; a file with other tensors is refused.

    A folder is a diffusers pipeline of pixels as `save_pretrained` writes it: unet/ (UNet2DModel) and scheduler/. A
    setting that cannot be computed exactly is refused by its key, and so is a pipeline with more than a pixel network:
    an autoencoder, a text encoder, a LoRA.
    """
    from ddib_fed.models.bundle import save_bundle
    from ddib_fed.models.weights import Imported

    if out.exists() and not force:
        raise AlreadyExists(f"{out} exists", hint="choose another folder, or --force")
    found = _read_checkpoint(checkpoint, given)
    saved = save_bundle(out, found.manifest, found.state, overwrite=force)
    imported = found if isinstance(found, Imported) else None
    warnings = imported.warnings if imported else () if given["flags"] else (_of_synthetic(saved),)
    for warning in warnings:
        say(f"warning: {warning}", err=True)
    facts, ignored, remarks = (
        (imported.facts, imported.ignored, imported.remarks) if imported else ((), {}, ())
    )
    values = {
        "bundle": out,
        "digest": saved.digest,
        "parameters": saved.manifest.parameters,
        "settings": [{"key": fact.key, "value": fact.value, "basis": fact.basis} for fact in facts],
        "ignored": ignored,
        "remarks": remarks,
        "warnings": warnings,
    }
    said = [f"--{key} is not used: {why}" for key, why in ignored.items()]
    said += [*remarks, f"{out}: {saved.manifest.parameters:,} parameters, digest {saved.digest[:16]}"]

    def text() -> None:
        width = max((len(fact.value) for fact in facts), default=0)
        if facts:
            lines({fact.key: f"{fact.value:<{width}}  {fact.basis}" for fact in facts})
        say(*said)

    emit(values, text)


def _read_checkpoint(path: Path, given: dict[str, Any]) -> Imported | Bundle:
    """The model in a file or a pipeline's folder; options that say nothing of it are usage errors."""
    names = {"domain": given["domain"], "name": given["name"]}
    settings = {key: given[key] for key in ("fit", "soften_sigma") if given[key] is not None}
    if path.is_dir():
        from ddib_fed.models.import_diffusers import import_diffusers

        idle = ("flags", "classifier", "synthetic")
        options.refuse_idle(idle, "does not go with a diffusers pipeline", hint="leave it out")
        return import_diffusers(path, **names, **settings)
    if given["synthetic"]:
        from ddib_fed.models.import_guided import import_synthetic

        idle = ("classifier", "fit", "soften_sigma")
        options.refuse_idle(idle, "does not go with --synthetic", hint="leave it out")
        return import_synthetic(path, flags=given["flags"], **names)
    from ddib_fed.models.import_guided import import_guided

    return import_guided(path, flags=given["flags"], classifier=given["classifier"], **names, **settings)


def _of_synthetic(saved: Bundle) -> str:
    schedule = saved.manifest.schedule
    return (
        "without --flags these are the public defaults, which no tensor confirms: "
        f"{schedule.name}, {schedule.steps} steps"
    )


@model.command()
@options.MODEL
@option(
    "--out FILE",
    "The checkpoint; the public scripts look for models/synthetic/log2D0/model000000.pt and the like.",
    required=True,
)
@option("--force", "Replace an existing file.")
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
    plain = (norm.mean, norm.std) == (0.0, 1.0)
    scaled = f"(data - {norm.mean}) / {norm.std}: the public code does not scale"
    lines({"checkpoint": str(out), "flags": flags, "units": "those of the data" if plain else scaled})
    outcome(checkpoint=out, flags=flags, digest=bundle.digest, mean=norm.mean, std=norm.std)


@model.command()
@options.MODEL
@options.OUTCOME
def show(*, which: str) -> None:
    """Verify a model and print its manifest.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    bundle = open_model(which)
    found = {
        "digest": bundle.digest,
        **bundle.manifest.model_dump(mode="json"),
        "steps": None if bundle.tuned is None else bundle.tuned.values(),
        "gate": None if bundle.allowances is None else bundle.allowances.figures(),
        "privacy": None if bundle.privacy is None else bundle.privacy.values(),
    }
    emit(found, lambda: lines(_shown(bundle)))


def _shown(bundle: Bundle) -> dict[str, str]:
    """What `ddib model show` says of a model, line by line."""
    from ddib_fed.evaluation.sample_verdict import SampleVerdict

    made, values = bundle.manifest, bundle.manifest.model_dump(mode="json")
    training = values.pop("training")
    del values["distilled"]
    if made.differential_privacy is not None:
        values["differential_privacy"] = protection(made.differential_privacy)
    shown = {"digest": bundle.digest}
    shown |= {key: _text(value) for key, value in values.items() if value not in (None, "", [])}
    shown["sample_shape"] = " x ".join(map(str, made.sample_shape))
    if made.distilled is not None:
        shown |= distilled_lines(made.distilled)
    shown |= {f"training {key}": _text(value) for key, value in training.items()}
    if bundle.tuned is not None:
        shown |= {"steps": bundle.tuned.digest(), **tuned_figures(bundle.tuned)}
    if (verdict := SampleVerdict.of_figures(made.training.figures)) is not None:
        shown["samples"] = verdict.sentence(made.training.steps)
    if bundle.allowances is not None:
        shown["gate"] = measured(bundle.allowances)
    elif made.sample_kind == "picture":
        shown["gate"] = "fixed bounds alone"
    else:
        shown["gate"] = "fixed bounds, and points of each set are encoded again"
    if bundle.privacy is not None:
        shown |= {f"privacy, {key}": text for key, text in attacked_lines(bundle.privacy)}
    return shown


def _text(value: object) -> str:
    if isinstance(value, dict):
        said = {key: item for key, item in value.items() if item not in (None, "", [])}
        return ", ".join(f"{key} {_text(item)}" for key, item in said.items())
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@model.command()
@FOLDER
@click.argument("further", metavar="[NUMBER]...", nargs=-1, type=click.IntRange(2, 64))
@option(
    "--evaluations N",
    "Network evaluations of a leg to learn steps for; several numbers may follow.",
    click.IntRange(2, 64),
    multiple=True,
    show_default="12 16 20",
)
@DATA
@option(
    "--soften-sigma SIGMA",
    "Softening of the pictures that are encoded; default: the model's own.",
    click.FloatRange(0, 1),
)
@options.SEED
@DEVICE
@options.OUTCOME
def tune(
    *,
    folder: Path,
    further: tuple[int, ...],
    evaluations: tuple[int, ...],
    data: Path | None,
    soften_sigma: float | None,
    seed: int,
    device: str,
) -> None:
    """Learn where the solver steps on a model, so that fewer evaluations are as exact.

    The steps are learned for encoding and for decoding, from this model alone, and written into steps.json beside its
    weights with their error on held-out samples; the model's digest does not change. `--grid learned` uses them, with
    one of the numbers learned: for example `ddib model tune models/a --evaluations 12 16 20`. Steps of encoding belong
    to one softening. MODEL is the bundle's folder.
    """
    from ddib_fed.networks.placement import torch_threads
    from ddib_fed.training.tune import tune_bundle

    counts = tuple(sorted({*evaluations, *further})) or NUMBERS
    words = f"tune MODEL --evaluations {' '.join(map(str, counts))}"
    words += "" if soften_sigma is None else f" --soften-sigma {soften_sigma:g}"
    with bar("tuning") as show, torch_threads(options.usual_threads()):
        tuned = tune_bundle(
            folder,
            counts,
            data=data,
            soften_sigma=soften_sigma,
            seed=seed,
            command=_noted(words, data, seed),
            device=device,
            say=lambda what, done, total: show(done, total, what),
        )
    emit(tuned.values(), lambda: lines({"steps": tuned.digest(), **tuned_figures(tuned)}))


def _noted(words: str, data: Path | None, seed: int) -> str:
    """The command as it is kept beside the weights: without paths."""
    return f"ddib model {words}{' --data PATH' if data else ''}{f' --seed {seed}' if seed else ''}"


def tuned_figures(tuned: Tuned) -> dict[str, str]:
    """The error of each leg's learned steps, by stage and number of evaluations."""
    found = {}
    for leg in tuned.legs:
        error, before, full = leg.error, leg.default_error, leg.yardstick_error
        softened = f", softened {leg.sigma:g}" if leg.sigma else ""
        found[f"{leg.stage} in {leg.evaluations}{softened}"] = (
            f"error mean {error.mean:.1e} ({error.low:.1e} to {error.high:.1e}), median {error.median:.1e}, p99 "
            f"{error.p99:.1e}; default at {leg.evaluations}: {before.mean:.1e}, at {leg.yardstick}: {full.mean:.1e}"
        )
    return found


@model.command()
@FOLDER
@DATA
@option("--skip-bad", "Leave out pictures of --data that cannot be read.")
@options.SEED
@DEVICE
@options.OUTCOME
def measure(*, folder: Path, data: Path | None, skip_bad: bool, seed: int, device: str) -> None:
    """Measure what a model's own latents and pictures look like, for the gate and for the marks of doubt.

    Latents of held-out pictures set bounds, which are written into gate.json beside the weights: a latent beyond them
    is encoded again before it leaves, and refused if the two differ. A model without thresholds of structure, such as
    an imported one, gets them if --data names pictures: translations that agree with their source no better than
    unrelated pictures do are marked as doubtful. The thresholds are in the manifest, so the model's digest changes
    then. Bounds need at least 40 pictures, and a model without classes that is not distilled; where they cannot be
    measured but thresholds can, the reason is said. Training does both by itself where at least 40 pictures are held
    out. MODEL is the bundle's folder.
    """
    from ddib_fed.evaluation.structure import put_thresholds
    from ddib_fed.models.bundle import load_bundle
    from ddib_fed.networks.placement import torch_threads
    from ddib_fed.training.sources import shipped_name
    from ddib_fed.training.tune import put_allowances

    found: Allowances | None = None
    why: InputError | None = None
    try:
        with bar("encoding") as show, torch_threads(options.usual_threads()):
            found = put_allowances(
                folder,
                data,
                command=_noted(f"measure MODEL{' --skip-bad' if skip_bad else ''}", data, seed),
                device=device,
                seed=seed,
                skip_bad=skip_bad,
                tell=lambda done, total: show(done, total, ""),
            )
    except InputError as error:
        why = error
    bundle = load_bundle(folder)
    made = bundle.manifest
    lacks = made.structure is None and (made.sample_kind, made.role) == ("picture", "generator")
    if lacks and data is not None and shipped_name(made, data) is None:
        with bar("looking at files") as show:
            bundle = put_thresholds(
                folder, data, skip_bad=skip_bad, progress=lambda done, total: show(done, total, "")
            )
    elif why is not None:
        raise why
    structure = bundle.manifest.structure
    thresholds = None if structure is None else structure.model_dump()
    problem = why.detail if why else None
    bounds = {"gate": found.digest(), "bounds": measured(found)} if found else {"gate": problem or ""}
    text = {**bounds, "thresholds": _text(thresholds), "digest": bundle.digest}
    said = {
        "digest": bundle.digest,
        "gate": found.figures() if found else None,
        "gate_problem": problem,
        "thresholds": thresholds,
    }
    emit(said, lambda: lines(text))


def measured(allowances: Allowances) -> str:
    """What was measured, in words."""
    return (
        f"measured on {allowances.measured} latents; of {allowances.checked} others {allowances.beyond} are beyond, "
        "and would be encoded again"
    )


def protection(spent: DifferentialPrivacy) -> str:
    start = f"; not counting what its initial weights {spent.initial[:16]} spent" if spent.initial else ""
    return f"{spent}{start}. Not covered: pictures that are translated, several samples of one person, normalisation"


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
    rows = [("attacked", f"{found.attacked} latents, of as many candidates; {found.known} samples known")]
    for each in found.readings:
        softened = f"softened {each.soften_sigma:g}" if each.soften_sigma else "not softened"
        rows.append((f"{each.encoder}, depth {each.depth:g}, {softened}", _read(each, found.sample_kind)))
    for told in found.membership:
        said = f"area under the curve by the latent's norm {_number(told.norm)}, by the loss {_number(told.loss)}"
        rows.append((f"membership, softened {told.soften_sigma:g}", said))
    if found.copies is not None:
        near, held_out = found.copies.samples.value, found.copies.held_out.value
        said = (
            f"nearest at {near:.2f} of the distance from the mean picture, held-out pictures at {held_out:.2f}; "
            f"{found.copies.near.value:.0%} nearer than 99 in 100 held-out pictures"
        )
        rows.append(("training pictures drawn again", said))
    return rows


def _read(each: Reading, kind: str) -> str:
    unit = "dB" if kind == "picture" else "deviations off"
    return (
        f"correlation {_number(each.correlation)}, found by it {_number(each.found_by_correlation)}; {each.surrogate} "
        f"reads {_number(each.read)} {unit}, found {_number(each.found_by_reading)}"
    )


def _number(figure: Figure) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
