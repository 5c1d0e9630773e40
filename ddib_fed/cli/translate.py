"""`ddib translate`: translates files and writes results with provenance; file names never leave this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.delivery import WriteOptions, check_names
from ddib_fed.cli.folder_report import Document, one_document, print_submitted, report_outcome, write_pages
from ddib_fed.cli.folder_run import conclude, submit_files, translate_files, translate_parts
from ddib_fed.cli.folder_state import Outcome, Work, request_of
from ddib_fed.cli.help import command
from ddib_fed.cli.inputs import Chosen, choose
from ddib_fed.cli.options import (
    BATCH,
    CALIBRATION,
    CLASSIFIER,
    DEVICE,
    DTYPE,
    SCENE,
    SOFTEN,
    THREADS,
    read_given,
)
from ddib_fed.cli.output import print_ids
from ddib_fed.cli.progress import JobProgress
from ddib_fed.cli.public_code import PUBLIC_CODE, take_settings
from ddib_fed.cli.studies import (
    Ending,
    Plan,
    check_plan,
    load_credentials,
    may_be_points,
    plan_studies,
    refuse_points,
    refuse_without_pictures,
    translate_studies,
)
from ddib_fed.client.client import JobRequest
from ddib_fed.client.payload import split_target
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Domains
from ddib_fed.errors import UsageError
from ddib_fed.processes import require_alone
from ddib_fed.protocol.messages import Settings
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.client.in_process import InProcess
    from ddib_fed.engine.local_party import LocalParty
    from ddib_fed.formats.parts import WrittenStudy
    from ddib_fed.models.bundle import Bundle


MODELS = (
    click.option(
        "--source",
        "source_model",
        metavar="MODEL",
        help="Without nodes: model that encodes, its name or folder.",
    ),
    click.option(
        "--target",
        "target_model",
        metavar="MODEL",
        help="Without nodes: model that decodes.",
    ),
)
ALONE = (
    SOFTEN,
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Without nodes: seed of the noise of softening and of --eta.",
    ),
    CALIBRATION,
    SCENE,
    CLASSIFIER,
    *PUBLIC_CODE,
    BATCH,
    DTYPE,
    DEVICE,
    THREADS,
)
"""What two models in one process take, and nodes do not."""
OF_NODES = ("no_calibration", "detach", "quiet", "profile_path")
_OF_PICTURES = ("soften", "calibration", "scene", "classifier", "batch", "dtype")
_NAMES = (
    *("soften", "seed", "calibration", "scene", "classifier", "batch", "dtype", "device", "threads"),
    *("compat", "diffusion_steps", "noise_schedule", "timestep_respacing", "eta", "ddpm"),
)


def open_in_process(
    source: str | None, target: str | None, asked: dict[str, Any]
) -> tuple[InProcess | None, Settings | None]:
    """Two models behind the client's interface, and the solver; takes what is for them out of `asked`.

    Nothing where the command is for nodes.
    """
    given = {name: asked.pop(name) for name in _NAMES}
    if source is None or target is None:
        if source or target:
            raise UsageError("--source and --target are both needed", hint="add the other one")
        options.refuse_idle(
            _NAMES, "is for two models in one process", hint="add --source and --target, or omit it"
        )
        return None, None
    options.refuse_idle(OF_NODES, "is for nodes", hint="omit it, or translate --to INSTITUTION/DOMAIN")
    require_alone("a translation without nodes")
    from ddib_fed.client.in_process import Here, InProcess
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.models.bundle import open_bundle

    bundles = open_bundle(source), open_bundle(target)
    pictures = bundles[0].manifest.sample_kind == "picture"
    solver = take_settings(given | asked, [bundle.manifest for bundle in bundles])
    if (
        given["compat"] is not None and pictures
    ):  # the public code neither softens nor leaves values unclipped
        given["soften"] = 0.0 if given["soften"] is None else given["soften"]
        asked["clip"] = True if asked["clip"] is None else asked["clip"]
    _refuse_idle(source, bundles[0], given, solver)
    if given["classifier"] is not None and asked["classifier_scale"] is None:
        asked["classifier_scale"] = 1.0
    here = Here(
        given["soften"],
        given["seed"],
        read_given(given["calibration"]),
        replace(SolverSettings(), levels=solver.levels, eta=solver.eta, ancestral=solver.ancestral),
    )
    settings = Settings(
        solver.solver, solver.order, solver.evaluations, solver.grid, asked["depth"], asked["encoder"]
    )
    return InProcess(*_parties(bundles, given, pictures=pictures), here), settings


def _parties(
    bundles: tuple[Bundle, Bundle], given: Mapping[str, Any], *, pictures: bool
) -> tuple[LocalParty, LocalParty]:
    """One for each model, or one for both."""
    from ddib_fed.engine.local_party import open_party
    from ddib_fed.models.bundle import open_bundle

    classifier = None if given["classifier"] is None else open_bundle(given["classifier"])
    made: dict[str, LocalParty] = {}
    for bundle in bundles:
        if bundle.digest not in made:
            scene = given["scene"]
            made[bundle.digest] = open_party(
                bundle if scene is None else bundle.of_scenes(*scene),
                given["device"],
                given["dtype"],
                classifier=classifier,
                together=given["batch"] if pictures else 0,
                threads=given["threads"],
            )
    return made[bundles[0].digest], made[bundles[1].digest]


def _refuse_idle(source: str, bundle: Bundle, given: Mapping[str, Any], solver: Any) -> None:
    """Options that would have no effect."""
    softened = given["soften"] if given["soften"] is not None else bundle.manifest.soften_sigma
    if bundle.manifest.sample_kind != "picture":
        softened = 0.0
        options.refuse_idle(
            _OF_PICTURES, f"is for pictures, and {source} is a model of points", hint="omit it"
        )
    if not softened and not solver.stochastic:
        options.refuse_idle(
            ("seed",),
            "sets the noise of softening and of --eta, and there is neither",
            hint="omit --seed; --soften-sigma 0.05, or --eta 0.5 with --solver ddim, draws noise",
        )
    if given["classifier"] is None:
        options.refuse_idle(
            ("classifier_scale",), "weighs --classifier, which is not given", hint="add --classifier MODEL"
        )


@command(
    epilog="\b\nExamples:\n"
    "  ddib translate scans/*.png --to south.example/relief --out out --cycle\n"
    "  ddib translate SERIES_FOLDER --to south.example/brain-t2 --out out\n"
    "  ddib translate points.npy --to south.example/checkerboards --out out\n"
    "  ddib translate scans --source MODEL_A --target MODEL_B --out out --cycle"
)
@options.FILES
@options.TARGET
@options.with_options(MODELS)
@options.OUT_RESULTS
@options.TARGET_CLASS
@options.SOURCE_CLASS
@options.with_options(options.GUIDING)
@options.with_options(options.PAIRING)
@options.CYCLE
@options.DOUBTFUL
@options.with_options(options.SOLVING)
@options.KEEP_LATENTS
@options.NO_CALIBRATION
@options.FORCE_OTHERS
@options.AGAIN
@options.SKIP_BAD_FILES
@options.PAGE
@options.with_options(options.STUDIES)
@options.CREDENTIALS
@click.option("--detach", is_flag=True, help="Only submit; print the job and how to watch and fetch it.")
@options.QUIET_DETACH
@options.FORMAT
@options.PROFILE
@options.with_options(ALONE)
def translate(
    files: tuple[Path, ...],
    target: str | None,
    source_model: str | None,
    target_model: str | None,
    out: Path,
    pairs: str | None,
    labels: Path | None,
    limit: int | None,
    doubtful_below: float,
    force: bool,
    again: bool,
    skip_bad: bool,
    page: bool,
    credentials: tuple[Path, Path] | None,
    detach: bool,
    quiet: bool,
    output_format: str,
    profile_path: Path | None,
    **asked: Any,
) -> None:
    """Translate files and folders to another domain.

    A picture (PNG, JPEG, TIFF, .npy) becomes DIR/NAME.png at its own size, points DIR/NAME.npy; DIR/NAME.json beside it
    is its provenance. With --cycle there is DIR/NAME.returned.png too, with --keep-latents DIR/NAME.latent.npy. The
    source node of this institution encodes; only latents go to the other institution. File names stay on this
    machine, metadata in the institution: the source node gets a PNG, JPEG or TIFF as it is.

    A folder stands for the files below it, whose paths are kept below DIR. Results are written one by one; after an
    interruption the same command resumes. DIR/report.html shows several pictures.

    A folder of DICOM files, a DICOMDIR, a NIfTI volume, a georeferenced TIFF, JPEG 2000, WebP or BMP becomes one of its
    own kind, also below a folder; only pixels leave, slice by slice or tile by tile (docs/formats.md).

    With --pairs FILES is one folder: of sub-folders called by class names, numbers or WordNet ids, or ImageNet's
    validation part with --labels. Results have the public code's names and the models' size: 260_1.PNG,
    260_1_translated_261.PNG.

    With --source and --target instead of --to, two models of this process do the same, without nodes.
    """
    pair, solver = open_in_process(source_model, target_model, asked)
    if pair is not None:
        if target is not None:
            raise UsageError("--to is for nodes, --source and --target for models", hint="omit one of them")
        target = pair.target
    elif target is None:
        raise UsageError(
            "where to translate is missing", hint="--to INSTITUTION/DOMAIN, or --source MODEL --target MODEL"
        )
    request = request_of(target, asked, solver)
    _refuse_idle_options(request, detach=detach, alone=pair is not None)
    split_target(target)
    profile = Profile.load(profile_path) if pair is None else pair.profile
    progress, signer = JobProgress(pair), load_credentials(credentials)
    keep_parts = request.keep_latent or asked["keep_parts"]
    write = WriteOptions(out, force or again, again, skip_bad, doubtful_below, signer, keep_parts)
    work = Work(profile, request, write, progress)
    plan = None
    if pairs is None:
        plan = plan_studies(files, asked, work, detach=detach)
        files = files if plan is None else plan.choice.plain
    chosen = None
    if files:
        taken = () if plan is None else plan.file_names
        chosen = choose(
            files,
            partial(_domains, work),
            target,
            pairs=pairs,
            labels=labels,
            limit=limit,
            out=out,
            taken=taken,
            without=() if plan is None else plan.inputs,
        )
        check_names(chosen.paths, chosen.inputs, out)
        if chosen.said:
            say(chosen.said, err=True)
    if signer is not None:
        _check_marked(work, plan, chosen)
    if chosen is not None and detach:
        submitted, incomplete = submit_files(chosen, work)
        if quiet:
            print_ids([each.job_id for each in submitted])
        else:
            print_submitted(submitted, target, out, output_format, profile_path)
        if incomplete is not None:
            raise incomplete
        return
    with one_document(output_format) as document:
        _translate(plan, chosen, work, document, page=page)


def _translate(
    plan: Plan | None,
    chosen: Chosen | None,
    work: Work,
    document: Document,
    *,
    page: bool,
) -> None:
    """Translate the studies of a command, then its plain files."""
    ending, out = Ending(), work.write.out
    done: list[WrittenStudy] = []
    if plan is not None:
        check_plan(plan, chosen)
        with ending.held():
            translate_studies(plan, partial(translate_parts, work), document, done)
    if chosen is not None:
        outcome, shown = translate_files(chosen, work, page=page, whole=done)
        report_outcome(
            outcome, work.request.target, out, document, doubtful_below=work.write.doubtful_below, page=shown
        )
        with ending.held():
            conclude(outcome, work)
    elif page and (shown := write_pages(Outcome(0, (), (), 0, (), (), ()), out, done)) is not None:
        document.add({"page": shown})
        if not document.is_wanted:
            say(f"page: {shown}")
    ending.conclude()


def _domains(work: Work) -> Domains:
    with work.opened() as client:
        return client.domains()


def _refuse_idle_options(request: JobRequest, *, detach: bool, alone: bool) -> None:
    """Return if no option that was given is without effect."""
    if not request.cycle:
        options.refuse_idle(("doubtful_below",), "is a bound on round trips", hint="add --cycle")
    if detach:
        of_results = ("doubtful_below", "credentials")
        options.refuse_idle(of_results, "applies only to fetched results", hint="give it to `ddib job fetch`")
    elif not alone:
        options.refuse_idle(("quiet",), "prints the id of a job that was only submitted", hint="add --detach")


def _check_marked(work: Work, plan: Plan | None, chosen: Chosen | None) -> None:
    """Return if --credentials has an effect, and say of what it has none."""
    studies = [] if plan is None else [origin.given for origin in plan.choice.studies.origins]
    if chosen is None and studies:
        refuse_without_pictures(studies)
    elif chosen is not None and may_be_points(chosen.paths):
        with work.opened() as client:
            refuse_points(client)
    if studies:
        say("content credentials are put into PNG alone (docs/formats.md)", err=True)
