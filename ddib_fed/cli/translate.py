"""`ddib translate`: translates files and writes results with provenance; file names never leave this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.folder_report import ConsoleProgress, print_submitted, report_run
from ddib_fed.errors import UsageError
from ddib_fed.extensions import extension
from ddib_fed.terminal import require_alone

OF_PICTURES = ("soften-sigma", "size", "classifier", "batch", "dtype")
"""Settings that models of points do not take."""
NONE = "none"


def _open_models(
    source: str, target: str, settings: Mapping[str, Any], device: str
) -> tuple[ddib_fed.Client, str]:
    """Return a client of two models in this process, and what it calls the target."""
    hint = "omit it, or translate --to INSTITUTION/DOMAIN"
    options.refuse_idle(("detach", "profile_path"), "is for nodes", hint=hint)
    require_alone("a translation without nodes")
    encoder = options.open_model(source, settings, device)
    if len(encoder.shape) == 1:
        why = f"is for pictures, and {source} is a model of points"
        options.refuse_settings(settings, OF_PICTURES, why, hint="omit it")
        options.refuse_idle(("calibration",), why, hint="omit it")
    decoder = encoder if target == source else options.open_model(target, settings, device)
    client = encoder.to(decoder)
    return client, client.target


@click.command(
    epilog="\b\nExamples:\n"
    "  ddib translate scans/*.png --to south.example/relief --out out --cycle\n"
    "  ddib translate SERIES_FOLDER --to south.example/brain-t2 --out out\n"
    "  ddib translate points.npy --to south.example/checkerboards --out out\n"
    "  ddib translate scans --source MODEL_A --target MODEL_B --out out --cycle\n"
    "  ddib translate --query AccessionNumber=123 --pacs PACS@10.0.0.7:4242 --to south.example/brain-t2 --out out"
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@options.option("target --to INSTITUTION/DOMAIN", "Target, as listed by `ddib domains`.")
@options.option("source_model --source MODEL", "Without nodes: model that encodes, its name or folder.", str)
@options.option("target_model --target MODEL", "Without nodes: model that decodes.", str)
@options.OUT_RESULTS
@options.TARGET_CLASS
@options.option("--source-class CLASS", "Class of the files, by name or number.", default="")
@options.option("--cycle", "Also translate back and report each item's round-trip error.")
@options.QUALITY
@options.EVALUATIONS
@options.SHARE
@options.option(
    "--calibration FILE|none",
    "none: leave out the calibration that both operators agreed on for this target (`ddib domains` lists it). Without "
    "nodes: translate pictures under this one (`ddib calibrate --local` makes one), or that of a shipped model, by its "
    "name.",
    str,
)
@options.option(
    "keep_latents --keep-latents",
    "Also fetch the latents. A latent is an invertible encoding: protect it like the picture.",
)
@options.FORCE
@options.option(
    "--skip-bad", "Leave out files that are unreadable or refused, list them, and end with exit code 15."
)
@options.INTENSITY
@options.option(
    "--slices",
    "Plane in which a NIfTI volume is cut into items; auto is that of the source's model, else axial.",
    ("auto", "axial", "coronal", "sagittal"),
    default="auto",
)
@options.option(
    "--tile PIXELS",
    "Side of the tiles of a map, and of a picture larger than that; none: the whole as one item. auto: the model's "
    "size for a map, and for a picture if the model is one of parts of pictures, in up to 1,024 tiles.",
    str,
    default="auto",
)
@options.option(
    "--query KEYWORD=VALUE", "In place of FILES: the study of these attributes, joined by &.", str
)
@options.option(
    "--pacs AE@HOST:PORT|URL",
    "Where --query looks: C-FIND, and C-MOVE to [dicom] aet; at a URL by DICOMweb (QIDO-RS, WADO-RS).",
    str,
)
@options.SEND
@options.option("--detach", "Only submit; print the job and how to watch and fetch it.")
@options.OUTCOME
@options.PROFILE
@options.DEVICE
@options.SET
def translate(
    files: Sequence[Path],
    target: str | None,
    source_model: str | None,
    target_model: str | None,
    out: Path,
    force: bool,
    skip_bad: bool,
    tile: str,
    query: str | None,
    pacs: str | None,
    send: str | None,
    detach: bool,
    profile_path: Path | None,
    device: str,
    calibration: str | None,
    settings: dict[str, Any],
    **given: Any,
) -> None:
    """Translate files and folders to another domain.

    A picture (PNG, JPEG, TIFF, .npy) becomes DIR/NAME.png at its own size, points DIR/NAME.npy; DIR/NAME.json beside it
    is its provenance. With --cycle there is DIR/NAME.returned.png too, with --keep-latents DIR/NAME.latent.npy. The
    source node of this institution encodes; only latents go to the other institution. File names stay on this
    machine, metadata in the institution: the source node gets a PNG, JPEG or TIFF as it is. With --source and --target
    instead of --to, two models of this process do the same, without nodes.

    A folder stands for the files below it, whose paths are kept below DIR; DICOM, NIfTI, GeoTIFF and others become one
    of their own kind (docs/formats.md). After an interruption the same command resumes, and --force translates
    everything again. DIR/report.html shows several pictures. With --set pairs=FROM:TO FILES is one folder of
    sub-folders called by class names, numbers or WordNet ids, or ImageNet's validation part with the unpacked
    ILSVRC2012_devkit_t12 beside it; results have the public code's names and the models' size.
    """
    reading = {"tile": tile} | {name: given.pop(name) for name in ("intensity", "slices")}
    via, target = where_to(target, source_model, target_model, settings, calibration, device, profile_path)
    chosen = None if calibration == NONE else calibration
    without = calibration == NONE and isinstance(via, ddib_fed.Profile)
    request = options.asked(settings, calibration=chosen, without_calibration=without, **given)
    run = ddib_fed.Run(via, target, out, request, ConsoleProgress(), force, skip_bad)
    archive: Any = extension("ddib_fed.archives", "dicom") if query or send else None
    deliver = None if send is None else archive.delivery(run.profile, send)
    files = _inputs(run, files, archive, query, pacs)
    if "pairs" in settings:
        _open_pairs(run, files, settings)
    else:
        hint = "add --set pairs=260:261, or omit it"
        options.refuse_settings(settings, ("limit",), "is for classes", hint=hint)
        _open_files(run, files, reading, detach=detach)
    run.read()
    if detach:
        run.submit()
        print_submitted(run, profile_path)
    else:
        try:
            run.translate()
            page = run.page()
        except BaseException:
            if run.written or len(run.results) > run.earlier:  # what is on the disk
                report_run(run)
            raise
        report_run(run, page)
        if deliver is not None:
            archive.hand_on(run, deliver)
    run.conclude()
    if archive is not None:
        archive.drop_fetched(out)


def where_to(
    target: str | None,
    source: str | None,
    model: str | None,
    settings: Mapping[str, Any],
    calibration: str | None,
    device: str,
    profile_path: Path | None,
) -> tuple[ddib_fed.Client | ddib_fed.Profile, str]:
    """Return what translates, and to which target; refuse options that are for the other of both ways."""
    if source is not None and model is not None:
        if target is not None:
            raise UsageError("--to is for nodes, --source and --target for models", hint="omit one of them")
        return _open_models(source, model, settings, device)
    if source or model:
        raise UsageError("--source and --target are both needed", hint="add the other one")
    why, hint = "is for two models in one process", "add --source and --target, or omit it"
    options.refuse_idle(("device",), why, hint=hint)
    here = (each.name for each in options.SETTINGS.values() if each.here)
    options.refuse_settings(settings, here, why, hint=hint)
    if calibration not in {None, NONE}:
        both = "between nodes the calibration is the one that both operators agreed on"
        raise UsageError(f"--calibration {calibration}: {both}", hint="--calibration none, or leave it out")
    if target is None:
        hint = "--to INSTITUTION/DOMAIN, or --source MODEL --target MODEL"
        raise UsageError("where to translate is missing", hint=hint)
    return ddib_fed.Profile.load(profile_path), target


def _inputs(
    run: ddib_fed.Run, files: Sequence[Path], archive: Any, query: str | None, pacs: str | None
) -> Sequence[Path]:
    """Return the files of the command, or the study that a query finds."""
    if not files and query is not None:
        return (archive.fetched_study(run.profile, query, pacs, run.out),)
    options.refuse_idle(("query", "pacs"), "is in place of FILES", hint="leave one out")
    if not files:
        raise UsageError("FILES are missing", hint="name files or folders, or --query and where it looks")
    return files


def _open_files(run: ddib_fed.Run, files: Sequence[Path], reading: dict[str, str], *, detach: bool) -> None:
    if detach and reading["tile"] == "auto":
        reading["tile"] = NONE  # a picture in tiles is put together when its items are there
    run.open(files, **reading)
    if run.studies is None:
        why = "is for DICOM, NIfTI, GeoTIFF and pictures in tiles"
        options.refuse_idle(("intensity", "slices"), why)
    elif detach:
        raise UsageError(
            f"--detach: {run.studies.origins[0].given} is put together when its items are there",
            hint="leave --detach out; after an interruption the same command resumes",
        )


def _open_pairs(run: ddib_fed.Run, files: Sequence[Path], settings: Mapping[str, Any]) -> None:
    options.refuse_idle(("source_class", "target_class"), "is already set by pairs", hint="omit one of them")
    if len(files) != 1:
        raise UsageError(
            f"--set pairs takes one folder, and {len(files)} files are given",
            hint="ddib translate FOLDER --set pairs=260:261",
        )
    find = extension("ddib_fed.pairs", "imagenet")
    limit = settings.get("limit")
    run.open_pairs(
        settings["pairs"], lambda pairs, names: find(files[0], pairs, class_names=names, limit=limit)
    )
