"""`ddib translate`: translates files and writes results with provenance; file names never leave this machine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.folder_report import ConsoleProgress, print_submitted, report_run, write_pages
from ddib_fed.client.client import job_header, split_target
from ddib_fed.client.exchange import delivery, drop_fetched, fetched_study, hand_on
from ddib_fed.client.files import FileItem, check_names
from ddib_fed.client.folder_run import FolderRun, RunOptions, open_run
from ddib_fed.client.profile import Profile
from ddib_fed.errors import DomainNotFound, UsageError
from ddib_fed.record import DIAL, Classes, Guidance, Settings
from ddib_fed.terminal import require_alone, say
from ddib_fed.v1 import translation_pb2 as pb

if TYPE_CHECKING:
    from ddib_fed.client.in_process import InProcess
    from ddib_fed.formats.credentials import Credentials

OF_PICTURES = ("soften", "calibration", "scene", "classifier", "batch", "dtype")
ALONE = (*OF_PICTURES, "seed", "device", "flags")
"""Options of two models in one process, which nodes do not take."""
_WITHOUT = "leave --credentials out; docs/formats.md says which results hold them"
OF_NODES = ("no_calibration", "detach", "profile_path")


def _open_in_process(source: str, target: str, given: dict[str, Any]) -> InProcess:
    """Two models behind the client's interface; the solver that is asked for, and whether to clip, go into `given`."""
    options.refuse_idle(OF_NODES, "is for nodes", hint="omit it, or translate --to INSTITUTION/DOMAIN")
    from ddib_fed.cli.model import take_settings
    from ddib_fed.client.in_process import InProcess, ProcessOptions
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.engine.local_party import open_party
    from ddib_fed.models.bundle import open_bundle

    require_alone("a translation without nodes")
    bundles = open_bundle(source), open_bundle(target)
    pictures = bundles[0].manifest.sample_kind != "point"
    asked, public, clip = take_settings(given, [bundle.manifest for bundle in bundles])
    solver = SolverSettings.of(asked)
    if public and pictures:  # the public code neither softens nor leaves values unclipped
        given["soften"] = 0.0 if given["soften"] is None else given["soften"]
        clip = True if clip is None else clip
    if not pictures:
        why = f"is for pictures, and {source} is a model of points"
        options.refuse_idle(OF_PICTURES, why, hint="omit it")
    softened = bundles[0].manifest.soften_sigma if given["soften"] is None else given["soften"]
    if not (pictures and softened) and not solver.stochastic:
        why = "sets the noise of softening and of --flags, and there is neither"
        hint = "omit --seed; --soften-sigma 0.05, or --flags with --eta 0.5, draws noise"
        options.refuse_idle(("seed",), why, hint=hint)
    guide, given["classifier_scale"] = options.take_classifier(given)
    given |= {"settings": solver, "clip": bool(clip)}
    here = ProcessOptions(given["soften"], given["seed"], options.read_given(given["calibration"]), solver)
    parties = [
        open_party(
            each if given["scene"] is None else each.of_scenes(*given["scene"]),
            given["device"],
            given["dtype"],
            classifier=guide,
            together=given["batch"] if pictures else 0,
            threads=options.usual_threads(),
        )
        for each in {bundle.digest: bundle for bundle in bundles}.values()  # one model may be both
    ]
    return InProcess(parties[0], parties[-1], here)


def load_credentials(given: tuple[Path, Path] | None) -> Credentials | None:
    if given is None:
        return None
    from ddib_fed.formats.credentials import Credentials

    return Credentials.load(*given)


def _check_marked(run: FolderRun) -> None:
    """Raise unless --credentials has an effect, and print which files it has none for."""
    studies = run.studies.origins if run.studies is not None else ()
    if not run.items and studies:
        raise UsageError(
            f"--credentials: what {studies[0].given} becomes holds no content credentials", hint=_WITHOUT
        )
    if all(item.path.suffix.lower() == ".npy" for item in run.items):
        with run.options.progress.opened(run.options.profile) as client:
            if client.domains(own_alone=True).sample_kind == "point":
                raise UsageError("--credentials: points hold no content credentials", hint=_WITHOUT)
    if studies:
        say("content credentials are put into PNG alone (docs/formats.md)", err=True)


@click.command(
    epilog="\b\nExamples:\n"
    "  ddib translate scans/*.png --to south.example/relief --out out --cycle\n"
    "  ddib translate SERIES_FOLDER --to south.example/brain-t2 --out out\n"
    "  ddib translate points.npy --to south.example/checkerboards --out out\n"
    "  ddib translate scans --source MODEL_A --target MODEL_B --out out --cycle\n"
    "  ddib translate --query AccessionNumber=123 --pacs PACS@10.0.0.7:4242 --to south.example/brain-t2 --out out"
)
@options.FILES
@options.TARGET
@options.option("source_model --source MODEL", "Without nodes: model that encodes, its name or folder.", str)
@options.option("target_model --target MODEL", "Without nodes: model that decodes.", str)
@options.OUT_RESULTS
@options.TARGET_CLASS
@options.SOURCE_CLASS
@options.with_options(options.GUIDING)
@options.with_options(options.PAIRING)
@options.CYCLE
@options.with_options(options.SOLVING)
@options.KEEP_LATENTS
@options.NO_CALIBRATION
@options.FORCE
@options.SKIP_BAD_FILES
@options.with_options(options.STUDIES)
@options.CREDENTIALS
@options.with_options(options.EXCHANGE)
@options.option("--detach", "Only submit; print the job and how to watch and fetch it.")
@options.OUTCOME
@options.PROFILE
@options.SOFTEN
@options.option(
    "--seed N", "Without nodes: seed of the noise of softening and of --flags.", click.IntRange(0), default=0
)
@options.CALIBRATION
@options.SIZE
@options.CLASSIFIER
@options.FLAGS
@options.BATCH
@options.DTYPE
@options.DEVICE
def translate(
    files: Sequence[Path],
    target: str | None,
    source_model: str | None,
    target_model: str | None,
    out: Path,
    pairs: str | None,
    limit: int | None,
    force: bool,
    skip_bad: bool,
    credentials: tuple[Path, Path] | None,
    detach: bool,
    profile_path: Path | None,
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
    everything again. DIR/report.html shows several pictures. With --pairs FILES is one folder of sub-folders called by
    class names, numbers or WordNet ids, or ImageNet's validation part with the unpacked ILSVRC2012_devkit_t12 beside
    it; results have the public code's names and the models' size.
    """
    pair, target = _where_to(target, source_model, target_model, given)
    header = header_of(target, given)
    if pairs is None:
        options.refuse_idle(("limit",), "is for classes", hint="add --pairs 260:261, or omit it")
    if detach:
        same = "the same command without --detach" + (", with --tile none" if given["tile"] == "auto" else "")
        hint = f"give it to {same}: it fetches them"
        options.refuse_idle(("credentials",), "applies only to fetched results", hint=hint)
    profile = Profile.load(profile_path) if pair is None else pair.profile
    deliver = delivery(profile, given["send"], given["stow"])
    files = inputs(files, profile, given, out)
    signer, progress = load_credentials(credentials), ConsoleProgress(pair)
    run_options = RunOptions(profile, header, out, progress, force, skip_bad, credentials=signer)
    if pairs is None:
        if detach and given["tile"] == "auto":
            given["tile"] = "none"  # a picture in tiles is put together when its items are there
        run = open_run(files, given, run_options, partial(say, err=True))
        if run.studies is None:
            why = "is for DICOM, NIfTI, GeoTIFF and pictures in tiles"
            options.refuse_idle(("intensity", "slices"), why)
        elif detach:
            raise UsageError(
                f"--detach: {run.studies.origins[0].given} is put together when its items are there",
                hint="leave --detach out; after an interruption the same command resumes",
            )
    else:
        with progress.opened(profile) as client:
            domains = client.domains()
        run = FolderRun(run_options, _paired_items(files, domains, target, pairs, limit))
        check_names(run.items, out)
    if run_options.credentials is not None:
        _check_marked(run)
    run.read()
    if not detach:
        try:
            run.translate()
            page = write_pages(run)
        except BaseException:
            if run.written or len(run.results) > run.earlier:  # what is on the disk
                report_run(run)
            raise
        report_run(run, page)
        hand_on(run, deliver)
    else:
        run.submit()
        print_submitted(run, profile_path)
    run.conclude()
    drop_fetched(out)


def inputs(files: Sequence[Path], profile: Profile, given: dict[str, Any], out: Path) -> Sequence[Path]:
    if not files and given["query"] is not None:
        return (fetched_study(profile, given["query"], given["pacs"], given["dicomweb"], out),)
    options.refuse_idle(("query", "pacs", "dicomweb"), "is in place of FILES", hint="leave one out")
    if not files:
        raise UsageError("FILES are missing", hint="name files or folders, or --query and where it looks")
    return files


def _where_to(
    target: str | None, source: str | None, model: str | None, given: dict[str, Any]
) -> tuple[InProcess | None, str]:
    if source is not None and model is not None:
        if target is not None:
            raise UsageError("--to is for nodes, --source and --target for models", hint="omit one of them")
        pair = _open_in_process(source, model, given)
        return pair, pair.target
    if source or model:
        raise UsageError("--source and --target are both needed", hint="add the other one")
    hint = "add --source and --target, or omit it"
    options.refuse_idle(ALONE, "is for two models in one process", hint=hint)
    if target is None:
        raise UsageError(
            "where to translate is missing", hint="--to INSTITUTION/DOMAIN, or --source MODEL --target MODEL"
        )
    split_target(target)
    return None, target


def _paired_items(
    files: Sequence[Path], domains: pb.ListDomainsResponse, target: str, pairs: str, limit: int | None
) -> list[FileItem]:
    taken = ("source_class", "target_class")
    options.refuse_idle(taken, "is already set by --pairs", hint="omit one of them")
    if len(files) != 1:
        raise UsageError(
            f"--pairs takes one folder, and {len(files)} files are given",
            hint="ddib translate FOLDER --pairs 260:261",
        )
    own = Classes(f"{domains.institution}/{domains.domain}", domains.classes, domains.class_names)
    institution, _ = split_target(target)
    other = next((each for each in domains.domains if each.institution == institution), None)
    if other is None or not other.domain:
        raise DomainNotFound(
            f"{target} is not ready, so its classes are not known" if other else f"{institution} is no peer",
            hint="ddib domains",
        )
    # A model without classes may be guided by a classifier.
    count = other.classes or other.guidance.classifier_classes
    kit = importlib.import_module("ddib_fed.paper.imagenet")  # the layers keep what is the paper's above
    numbers = options.parse_pairs(pairs, own, Classes(target, count, other.class_names))
    return [
        FileItem(
            f"{each.source}_{each.ordinal}_translated_{each.target}",
            each.path.name,
            source=f"{each.source}_{each.ordinal}",
            path=each.path,
            classes=(str(each.source), str(each.target)),
        )
        for each in kit.paired_pictures(files[0], numbers, class_names=own.names, limit=limit)
    ]


def header_of(target: str, given: dict[str, Any]) -> pb.JobHeader:
    """The request that the options make; of two models in one process the solver was looked at before."""
    asked = given.get("settings")
    if asked is None:
        settings = Settings(given["solver"], 0, given["evaluations"], given["grid"]).of_quality(
            given["quality"]
        )
    else:
        settings = Settings(asked.solver, asked.order, asked.evaluations, asked.grid)
    left = [name for name in DIAL if given[name] is None]
    settings = replace(settings, **{name: given[name] for name in ("depth", *DIAL) if name not in left})
    names = ("cycle", "keep_latent", "source_class", "target_class", "no_calibration")
    guidance = Guidance(given["guidance"], given["classifier_scale"], clip=given.get("clip", False))
    return job_header(target, settings, guidance=guidance, left=left, **{name: given[name] for name in names})
