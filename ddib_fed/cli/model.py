"""`ddib model`: list, copy, train, import, export, show and measure models; `ddib evaluate`: how good translations are.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.options import group, option, usual_threads
from ddib_fed.cli.train import train
from ddib_fed.errors import AlreadyExists, UsageError
from ddib_fed.models.catalogue import copy_shipped, shipped_models
from ddib_fed.terminal import bar, emit, lines, listed, number, outcome, plain, print_table, say

SHOWN_DIGEST = 12
FOLDERS = click.Path(file_okay=False, path_type=Path)
FOLDER = click.argument("folder", metavar="MODEL", type=FOLDERS)
DATA = option(
    "--data PATH",
    "Folder of pictures of the model's domain that it was not trained on, or a .npy file of its points; default: the "
    "domain that ships.",
)
OF_PICTURES = ("classifier", "classifier-scale", "guidance", "batch", "dtype")
OF_SAMPLING = ("solver", "grid", "flags", *OF_PICTURES)
"""Of `--set`, `ddib model sample` takes these alone: nothing is encoded."""
DEVICE = option("--device", "Device to compute on.", ("cpu", "cuda"), default="cpu")


def _span(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise ValueError(f"{text!r} is not LOW:HIGH, such as -1000:2000") from error
    if not low < high < float("inf") or low == float("-inf"):
        raise ValueError(f"{text!r} is empty")
    return low, high


SPAN = options.read_by(_span)


def _code(text: str) -> str:
    if not re.fullmatch(r"[DSIHPAWRL]{2,3}", text.upper()):
        raise ValueError(f"{text!r} is not RAS, LPS, DHW, or of pictures WH, HW, RA")
    return text.upper()


def _triple(text: str) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) != 3 or not all(0.0 < number < 1000.0 for number in numbers):
        raise ValueError(f"{text!r} is not three millimetres, such as 1.5,1.5,2")
    return numbers


@group(extended="ddib_fed.commands.model")
def model() -> None:
    """List, copy, train, sample, show and import models."""


model.add_command(train)


@model.command("list")
@options.OUTCOME
def list_() -> None:
    """List the models that ship with the package.

    The name of a shipped model can be given wherever a command says that MODEL may be a shipped one; for tune and
    measure copy it first: `ddib model get`. Learned steps are the numbers of evaluations for which a model's steps were
    tuned (`--set grid=learned`).
    """
    shipped = shipped_models()
    columns = ["!name", "domain", "!samples", ">parameters", ">MB", "learned steps", "!digest"]
    rows = [
        [
            row.name,
            row.domain,
            f"{row.kind} {'x'.join(map(str, row.shape))}",
            f"{row.parameters:,}",
            f"{row.size_bytes / 1e6:.1f}",
            " ".join(map(str, row.evaluations)) or "-",
            row.digest[:SHOWN_DIGEST],
        ]
        for row in shipped
    ]
    emit(shipped, lambda: print_table("", columns, rows))


@model.command(epilog="\b\nExample:\n  ddib model get satellite --out models/satellite")
@click.argument("name")
@option("--out DIR", "The folder of the copy; it appears whole or not at all.", required=True)
@option("--force", "Replace the model in --out.")
@options.OUTCOME
def get(*, name: str, out: Path, force: bool) -> None:
    """Copy a model that ships with the package to a folder of your own, e.g. to tune it or to serve it."""
    copy = copy_shipped(name, out, overwrite=force)
    say(f"{out}: {copy.name}, {copy.size_bytes / 1e6:.1f} MB, digest {copy.digest[:SHOWN_DIGEST]}")
    outcome(out=out, **plain(copy))


@model.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@option("--out DIR", "The bundle's folder.", required=True)
@option("--flags FLAGS", "Flags of its training, in quotes: the public README's MODEL_FLAGS.", default="")
@option("--classifier", "The checkpoint is a noisy classifier, for guidance.")
@option("--synthetic", "The checkpoint is a state dict of the public DDIB code's 2-D network.")
@option("--domain NAME", "Domain name in the bundle.", default="imported")
@option("--name NAME", "Model name in the bundle; default: the file's name.", default="")
@option(
    "--fit",
    "Pictures: how those of another size are fitted; crop as the public code.",
    ("crop", "pad", "resize"),
    default="crop",
)
@option("--intensity RULE", "How values of volumes and maps become numbers, as of `ddib translate`.")
@option("--soften-sigma SIGMA", "Pictures: softening before encoding.", click.FloatRange(0, 1), default=0.0)
@option(
    "--scale-factor NUMBER",
    "Folders of latents: what latents are multiplied by.",
    click.FloatRange(min=0, min_open=True),
)
@option(
    "--check PATH",
    "Folders of latents: own pictures, or volumes (.npy, NIfTI), that the autoencoder is to reconstruct. The scale "
    "factor is measured on them where no file says it.",
)
@option("--size HxW", "Folders: sides of a sample, as 128x128 or 128x128x64.", callback=options.SIDES)
@option("values --range LOW:HIGH", "MONAI: black and white in training, else 0:1.", callback=SPAN)
@option("--spacing X,Y,Z", "MONAI: millimetres between voxels.", callback=options.read_by(_triple))
@option(
    "--axes CODE",
    "MONAI: axes of the network's arrays: RAS and the like, or D, H and W of a sample; else RAS of volumes.",
    callback=options.read_by(_code),
)
@option("--modality NAME", "MAISI: the modality, a number or a name such as ct or mri_t1.")
@options.OUTCOME
@option("--force", "Replace an existing bundle.")
def import_(*, out: Path, force: bool, checkpoint: Path, **given: Any) -> None:
    """Make a bundle of a public checkpoint. Pickles are read with weights_only=True.

    What no option says is as the files say.

    CHECKPOINT is a file with a UNet of guided-diffusion (or of the public DDIB code), or with --classifier its noisy
    classifier. Its network is that of --flags, with the public defaults for the rest. Every setting is listed with
    its origin; a file with other tensors is refused.

    A folder is what diffusers' `save_pretrained` writes (UNet2DModel or DiT with a scheduler, of pixels or with a vae/;
    an autoencoder alone), or of MONAI: a bundle with configs/ and models/, MAISI's checkpoints with the JSON that
    defines their networks, FLIP's file with its config.json. An autoencoder is saved beside the model. A setting that
    cannot be computed exactly is refused by its key, and so are text encoders, LoRAs and conditions.
    """
    _refuse_existing(out, "folder", force=force)
    chosen = {name: value for name, value in given.items() if options.is_given(name)}
    from ddib_fed.importing import Imported, ImportOptions  # with torch

    imported = Imported.read(checkpoint, ImportOptions(**chosen))
    model = imported.save(out, overwrite=force)
    parameters = model.manifest.parameters
    values = {
        "bundle": out, "digest": model.digest, "parameters": parameters, "settings": imported.facts,
        "ignored": imported.ignored, "remarks": imported.remarks, "warnings": imported.warnings,
    }  # fmt: skip
    for warning in imported.warnings:
        say(f"warning: {warning}", err=True)

    def text() -> None:
        if imported.facts:
            width = max(len(fact.value) for fact in imported.facts)
            lines({fact.key: f"{fact.value:<{width}}  {fact.basis}" for fact in imported.facts})
        unused = [f"--{key} is not used: {why}" for key, why in imported.ignored.items()]
        say(*unused, *imported.remarks, f"{out}: {parameters:,} parameters, digest {model.digest[:16]}")

    emit(values, text)


def _refuse_existing(out: Path | None, kind: str, *, force: bool) -> None:
    if out is not None and out.exists() and not force:
        raise AlreadyExists(f"{out} exists", hint=f"choose another {kind}, or --force")


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
    _refuse_existing(out, "file", force=force)
    model = ddib_fed.Model.open(which)
    flags, norm = model.export(out), model.manifest.normalisation
    unscaled = (norm.mean, norm.std) == (0.0, 1.0)
    scaled = f"(data - {norm.mean}) / {norm.std}: the public code does not scale"
    lines({"checkpoint": str(out), "flags": flags, "units": "those of the data" if unscaled else scaled})
    outcome(checkpoint=out, flags=flags, digest=model.digest, mean=norm.mean, std=norm.std)


@model.command()
@options.MODEL
@options.OUTCOME
def show(*, which: str) -> None:
    """Verify a model and print its manifest.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    model = ddib_fed.Model.open(which)
    tuned, allowances, privacy = model.bundle.tuned, model.bundle.allowances, model.bundle.privacy
    values = {
        "digest": model.digest,
        **model.manifest.model_dump(mode="json"),
        "steps": None if tuned is None else tuned.values(),
        "gate": None if allowances is None else allowances.figures(),
        "privacy": None if privacy is None else privacy.values(),
    }
    emit(values, lambda: lines(_shown(model)))


def _shown(model: ddib_fed.Model) -> dict[str, str]:
    """Return what is shown of a model, line by line."""
    bundle, manifest = model.bundle, model.manifest
    values = manifest.model_dump(mode="json")
    parts = [(name, values.pop(name)) for name in ("training", "distilled")]
    shape = " x ".join(map(str, model.shape))
    shown = {"digest": model.digest, **listed("", values), "sample_shape": shape}
    for name, part in parts:
        shown |= listed(f"{name} ", part or {})
    if bundle.tuned is not None:
        shown |= listed("", bundle.tuned.values())
    if bundle.autoencoder is not None:
        encoder = bundle.autoencoder.manifest
        psnr = encoder.training.figures.get("reconstruction_psnr")
        lost = "" if psnr is None else f", gives held-out pictures back at {psnr:.1f} dB"
        shown["autoencoder"] = f"{encoder.name}, {encoder.parameters:,} parameters{lost}"
    if model.verdict is not None:
        shown["samples"] = model.verdict.sentence(manifest.training.steps)
    if bundle.allowances is not None:
        shown["gate"] = measured(bundle.allowances)
    else:
        also = "" if manifest.sample_kind != "point" else ", and points of each set are encoded again"
        shown["gate"] = f"fixed bounds{also or ' alone'}"
    return shown | ({} if bundle.privacy is None else listed("privacy ", bundle.privacy.values()))


@model.command()
@FOLDER
@DATA
@option("--skip-bad", "Leave out pictures of --data that cannot be read.")
@options.SEED
@DEVICE
@options.OUTCOME
def measure(*, folder: Path, device: str, **given: Any) -> None:
    """Measure what a model's own latents and pictures look like, for the gate and for the marks of doubt.

    Latents of held-out pictures set bounds, which are written into gate.json beside the weights: a latent beyond them
    is encoded again before it leaves, and refused if the two differ. A model without thresholds of structure, such as
    an imported one, gets them if --data names pictures: translations that agree with their source no better than
    unrelated pictures do are marked as doubtful. The thresholds are in the manifest, so the model's digest changes
    then. Bounds need at least 40 pictures, and a model without classes that is not distilled; where they cannot be
    measured but thresholds can, the reason is said. Training does both by itself where at least 40 pictures are held
    out. MODEL is the bundle's folder.
    """
    model = ddib_fed.Model.open(folder, device=device, threads=usual_threads(), without=["gate.json"])
    with bar("encoding") as encoding, bar("looking at files") as looking:
        problem = model.measure(on_encoding=encoding, on_scan=looking, **given)
    structure, gate = model.manifest.structure, None if problem else model.bundle.allowances
    thresholds = None if structure is None else structure.model_dump()
    bounds = {"gate": gate.digest(), "bounds": measured(gate)} if gate else {"gate": problem}
    values = {
        "digest": model.digest,
        "gate": gate.figures() if gate else None,
        "gate_problem": problem or None,
        "thresholds": thresholds,
    }
    text = {**bounds, **listed("", {"thresholds": thresholds, "digest": model.digest})}
    emit(values, lambda: lines(text))


@model.command()
@options.MODEL
@options.OUT_RESULTS
@option("count --n N", "Number of samples; default: 10,000 points or 64 pictures.", click.IntRange(1))
@option("--seed N", "Seed of the noise.", click.IntRange(0), default=0)
@options.EVALUATIONS
@options.QUALITY
@options.TARGET_CLASS
@options.DEVICE
@options.SET
@options.FORCE
@options.OUTCOME
def sample(
    *,
    which: str,
    out: Path,
    count: int | None,
    device: str,
    force: bool,
    settings: dict[str, Any],
    **given: Any,
) -> None:
    """Draw points, pictures or volumes from a model.

    Points: samples.npy, latent.npy, samples.png and report.json. Pictures: sample_0.png and on (volumes: sample_0.npy),
    sheet.png and report.json. Of --set it takes solver, grid, flags, guidance, classifier, classifier-scale, batch and
    dtype.

    MODEL is the name of a shipped model (`ddib model list`), its index, or a bundle's folder.
    """
    others = [name for name in options.SETTINGS if name not in OF_SAMPLING]
    options.refuse_settings(settings, others, "has no effect on samples", hint="omit it")
    model = options.open_model(which, settings, device)
    pictures = model.manifest.sample_kind != "point"
    if not pictures:
        why = f"is for pictures, and {which} is a model of points"
        options.refuse_idle(("target_class", "device"), why)
        options.refuse_settings(settings, OF_PICTURES, why, hint="omit it")
    seed = given.pop("seed")
    request = options.asked(settings, **given)
    solver, clip = request.settings, False
    if "flags" in settings:
        if given["quality"] or "grid" in settings or settings.get("solver", "ddim") != "ddim":
            raise UsageError(
                "flags are the public code's ddim along its own grid", hint="omit solver, grid and --quality"
            )
        evaluations = solver.evaluations if options.is_given("evaluations") else None
        solver, clips = ddib_fed.Model.public_settings(request.flags, [model.manifest], evaluations)
        clip = pictures if clips is None else clips
    how: dict[str, Any] = {
        "label": request.target_class or None,
        "guidance": replace(request.guidance, clip=clip),
        "seed": seed,
        "overwrite": force,
    }
    with bar("sampling") as show:
        report = model.draw(out, count, solver, on_progress=show, **how)
    if pictures:
        lines({"pictures": str(report["count"]), "sheet": str(out / "sheet.png"), "written": str(out)})
        emit({"out": out, "samples": report["count"], "digest": model.digest, **report})
        return
    cloud = report["target_cloud"]
    near = f"{cloud['sliced_w2']:.4f} (floor {cloud['sliced_w2_floor']:.4f})" if cloud else ""
    lines({"points": str(out / "samples.npy"), **({"sliced-W2": near} if cloud else {})})
    emit({"out": out, "samples": report["points"], "digest": model.digest, "target_cloud": cloud})


def measured(gate: Any) -> str:
    """Return a sentence on the bounds in gate.json."""
    return (
        f"measured on {gate.measured} latents; of {gate.checked} others {gate.beyond} are beyond, "
        "and would be encoded again"
    )


@click.command()
@click.argument("folder", type=FOLDERS)
@option("--truth FOLDER", "The true translations, by the same names.", FOLDERS)
@option("--source FOLDER", "The translated pictures' sources, by the same names.", FOLDERS)
@option("--domain FOLDER", "Other pictures of the target domain, for the feature distance.", FOLDERS)
@option("--target MODEL", "The target's model: baselines also as its autoencoder gives them back.", str)
@option("--group-by", "folder: intervals draw whole folders, such as slices of a patient.", ("folder",))
@option("--size PIXELS", "Sides that all are resized to; default: the first's.", click.IntRange(7, 4096))
@option("span --range LOW:HIGH", "Raw values of black and white; default: the models'.", callback=SPAN)
@option("--out FILE", "Also write an HTML page, with the pictures, the worst first.")
@options.OUTCOME
@options.FORCE
def evaluate(folder: Path, group_by: str | None, out: Path | None, *, force: bool, **given: Any) -> None:
    """Evaluate a folder of translated pictures against references.

    The folder is the output of `ddib translate`, or any folder of pictures. Everything else is optional; figures that
    need a missing input are left out. Pictures are matched by their path below their folder, ignoring the suffix. Each
    mean has its bootstrap interval of 95 % in brackets.
    """
    _refuse_existing(out, "file", force=force)
    with bar("reading") as show:
        figures = ddib_fed.evaluate(folder, by_folder=group_by is not None, on_read=show, **given)
    if out is not None:
        figures.write_page(out, f"Translations in {folder.name}")
    emit(figures.report, lambda: _print_figures(figures))


def _print_figures(figures: ddib_fed.Figures) -> None:
    report = figures.report
    say(f"{report['count']} pictures, {' x '.join(map(str, report['shape']))}", *report["notes"])
    for table in figures.tables():
        say()
        columns = [table.columns[0], *(f">{column}" for column in table.columns[1:])]
        rows = [
            [cell if isinstance(cell, str) else "-" if cell is None else number(cell) for cell in row]
            for row in table.rows
        ]
        print_table(table.title, columns, rows)
        say(table.note)
