"""A whole command: reads its files, translates them in a folder that is locked meanwhile, and writes the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.translation.batches import JOB_FILES
from ddib_fed.cli.client.translation.checking import Entry, LeftOut, left_out, read_files, refused
from ddib_fed.cli.client.translation.display import TERMINAL, Display
from ddib_fed.cli.client.translation.lock import locked
from ddib_fed.cli.client.translation.order import Order
from ddib_fed.cli.client.translation.outcome import Outcome, require_translated
from ddib_fed.cli.client.translation.pages import write_pages
from ddib_fed.cli.client.translation.run import Manner, Run
from ddib_fed.client.profile import Profile
from ddib_fed.client.views import Submitted
from ddib_fed.errors import Cancelled, FilesLeftOut, JobFailed

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy


def translate_files(
    profile: Profile,
    chosen: Chosen,
    order: Order,
    manner: Manner,
    *,
    page: bool,
    display: Display = TERMINAL,
    whole: Sequence[WrittenStudy] = (),
) -> tuple[Outcome, Path | None]:
    """Translate files into a folder, or what is missing there; what became of them, and the page."""
    with locked(manner.out):
        entries, bad = _read(chosen, order, profile, display, skip_bad=manner.skip_bad)
        with display.opened(profile) as (client, progress):
            outcome = Run(client, chosen, entries, order, manner, progress, bad).translate()
        return outcome, write_pages(outcome, manner.out, whole) if page else None


def translate_parts(
    profile: Profile,
    order: Order,
    manner: Manner,
    paths: Sequence[Path],
    out: Path,
    *,
    display: Display = TERMINAL,
) -> dict[Path, str]:
    """Translate the items of a series, volume or map into a folder; why those that have no result were refused."""
    parts = replace(manner, out=out, skip_bad=True, credentials=None)  # of the whole, not of its parts
    outcome, _ = translate_files(profile, Chosen.files(paths), order, parts, page=False, display=display)
    if not outcome.delivered:
        for each in outcome.left_out:
            if each.error is not None:
                raise each.error
    try:
        require_translated(outcome, profile.hop, skip_bad=True)
    except Cancelled as error:
        # Others of the command's studies go on; Ctrl-C is raised above.
        raise JobFailed(error.detail, hint="the same command again", hop=error.hop) from error
    return {each.path: f"{each.why} [{each.reason}]" for each in (*outcome.left_out, *outcome.failed)}


def submit_files(
    profile: Profile, chosen: Chosen, order: Order, manner: Manner
) -> tuple[list[Submitted], FilesLeftOut | None]:
    """Only submit what is missing in a folder; the new jobs, and what to end with if files were left out."""
    with locked(manner.out):
        entries, bad = _read(chosen, order, profile, TERMINAL, skip_bad=manner.skip_bad)
        with TERMINAL.opened(profile) as (client, progress):
            run = Run(client, chosen, entries, order, manner, progress, bad)
            submitted = run.submit_all()
    if not run.left_out:
        return submitted, None
    return submitted, left_out(run.left_out, len(chosen.paths), "the others are submitted or translated")


def _read(
    chosen: Chosen, order: Order, profile: Profile, display: Display, *, skip_bad: bool
) -> tuple[list[Entry], list[LeftOut]]:
    """Read every file before anything is submitted; those that can be sent, and those that are left out."""
    many = len(chosen.paths) > JOB_FILES
    if many:
        with display.counted("reading files") as show:
            entries, bad = read_files(chosen, order, profile.institution, decode=True, on_read=show)
    else:
        entries, bad = read_files(chosen, order, profile.institution, decode=False)
    if bad and not (skip_bad and entries):
        raise refused(bad, len(chosen.paths), "nothing was submitted")
    return entries, [LeftOut.of(path, error) for path, error in bad]


def conclude(outcome: Outcome, out: Path, hop: str, *, skip_bad: bool) -> None:
    """Return if every file was translated."""
    require_translated(outcome, hop, skip_bad=skip_bad)
    missing = [*outcome.left_out, *(outcome.failed if skip_bad else ())]
    if missing:
        raise left_out(missing, outcome.total, f"the others are in {out}")
