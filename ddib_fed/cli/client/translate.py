"""`ddib translate`: translates files and writes results with provenance; file names never leave this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddib_fed.cli import options
from ddib_fed.cli.client.choosing import Chosen, choose
from ddib_fed.cli.client.delivery import check_names
from ddib_fed.cli.client.marking import (
    load_credentials,
    may_be_points,
    refuse_points,
    refuse_without_pictures,
)
from ddib_fed.cli.client.session import open_client
from ddib_fed.cli.client.studies import StudyManner
from ddib_fed.cli.client.study_runs import Ending, Plan, check_plan, plan_studies, translate_studies
from ddib_fed.cli.client.translation.document import Document, one_document
from ddib_fed.cli.client.translation.order import Order, order_of
from ddib_fed.cli.client.translation.outcome import Outcome
from ddib_fed.cli.client.translation.pages import write_pages
from ddib_fed.cli.client.translation.report import print_submitted, report_outcome
from ddib_fed.cli.client.translation.run import Manner
from ddib_fed.cli.client.translation.whole import conclude, submit_files, translate_files, translate_parts
from ddib_fed.cli.help import command
from ddib_fed.cli.output import print_ids
from ddib_fed.client.payload import split_target
from ddib_fed.client.profile import Profile
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy


@command(
    epilog="\b\nExamples:\n"
    "  ddib translate scans/*.png --to south.example/relief --out out --cycle\n"
    "  ddib translate scans --to south.example/relief --out out --skip-bad\n"
    "  ddib translate SERIES_FOLDER --to south.example/brain-t2 --out out\n"
    "  ddib translate points.npy --to south.example/checkerboards --out out"
)
@options.FILES
@options.TARGET
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
@options.DEADLINE
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
def translate(
    files: tuple[Path, ...],
    target: str,
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
    """Translate files and folders to another institution's domain.

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
    """
    order, force = order_of(target, asked), force or again
    _refuse_idle(order, detach=detach)
    split_target(target)
    profile, signer = Profile.load(profile_path), load_credentials(credentials)
    manner = Manner(
        out,
        force=force,
        skip_bad=skip_bad,
        doubtful_below=doubtful_below,
        again=again,
        credentials=signer,
    )
    plan = None
    if pairs is None:
        written = StudyManner(
            out,
            output_format,
            force=force,
            again=again,
            detach=detach,
            keep_parts=order.keep_latent,
            doubtful_below=doubtful_below,
        )
        plan = plan_studies(files, profile, asked, order, written)
        files = files if plan is None else plan.choice.plain
    chosen = None
    if files:
        taken = () if plan is None else plan.file_names
        chosen = choose(
            files,
            profile,
            target,
            pairs=pairs,
            labels=labels,
            limit=limit,
            out=out,
            apart=True,
            taken=taken,
            without=() if plan is None else plan.inputs,
        )
        check_names(chosen.paths, chosen.inputs, out)
        if chosen.said:
            say(chosen.said, err=True)
    if signer is not None:
        _check_marked(profile, plan, chosen)
    if chosen is not None and detach:
        _submit(profile, chosen, order, manner, quiet=quiet, output_format=output_format, given=profile_path)
        return
    with one_document(output_format) as document:
        _translate(profile, plan, chosen, order, manner, document, page=page)


def _translate(
    profile: Profile,
    plan: Plan | None,
    chosen: Chosen | None,
    order: Order,
    manner: Manner,
    document: Document,
    *,
    page: bool,
) -> None:
    """Translate the studies of a command, then its plain files."""
    ending = Ending()
    done: list[WrittenStudy] = []
    if plan is not None:
        check_plan(plan, chosen, order, profile.institution, skip_bad=manner.skip_bad)
        with ending.held():
            parts = partial(translate_parts, profile, order, manner)
            translate_studies(plan, parts, document, skip_bad=manner.skip_bad, done=done)
    if chosen is not None:
        outcome, shown = translate_files(profile, chosen, order, manner, page=page, whole=done)
        report_outcome(
            outcome, order.target, manner.out, document, doubtful_below=manner.doubtful_below, page=shown
        )
        with ending.held():
            conclude(outcome, manner.out, f"source {profile.institution}", skip_bad=manner.skip_bad)
    elif page and (shown := write_pages(Outcome(0, (), (), 0, (), (), ()), manner.out, done)) is not None:
        document.add({"page": shown})
        if not document.is_wanted:
            say(f"page: {shown}")
    ending.conclude()


def _refuse_idle(order: Order, *, detach: bool) -> None:
    """Return if no option that was given is without effect."""
    if not order.cycle:
        options.refuse_idle(("doubtful_below",), "is a bound on round trips", hint="add --cycle")
    if detach:
        of_results = ("doubtful_below", "credentials")
        options.refuse_idle(of_results, "applies only to fetched results", hint="give it to `ddib job fetch`")
    else:
        options.refuse_idle(("quiet",), "prints the id of a job that was only submitted", hint="add --detach")


def _check_marked(profile: Profile, plan: Plan | None, chosen: Chosen | None) -> None:
    """Return if --credentials has an effect, and say of what it has none."""
    studies = [] if plan is None else [origin.given for origin in plan.choice.studies.origins]
    if chosen is None and studies:
        refuse_without_pictures(studies)
    elif chosen is not None and may_be_points(chosen.paths):
        with open_client(profile) as client:
            refuse_points(client)
    if studies:
        say("content credentials are put into PNG alone (docs/formats.md)", err=True)


def _submit(
    profile: Profile,
    chosen: Chosen,
    order: Order,
    manner: Manner,
    *,
    quiet: bool,
    output_format: str,
    given: Path | None,
) -> None:
    """Only submit; `given` is the profile that the command was given."""
    submitted, incomplete = submit_files(profile, chosen, order, manner)
    if quiet:
        print_ids([each.job_id for each in submitted])
    else:
        print_submitted(submitted, order.target, manner.out, output_format, given)
    if incomplete is not None:
        raise incomplete
