"""`ddib translate` of files of which pixels alone leave: all are looked at before anything is sent, then one by one.

One is in memory at a time. One that fails does not stop the others, nor the plain files beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.folders import ignored_line
from ddib_fed.cli.client.studies import (
    StudyManner,
    TranslateFiles,
    as_json,
    open_studies,
    refuse_detached,
    report_studies,
    translate_study,
)
from ddib_fed.cli.client.translation.checking import LeftOut, left_out, read_files, refused
from ddib_fed.cli.client.translation.display import TERMINAL, Display
from ddib_fed.cli.client.translation.document import Document
from ddib_fed.cli.client.translation.order import Order
from ddib_fed.client.profile import Profile
from ddib_fed.errors import (
    AlreadyExists,
    Cancelled,
    DdibError,
    ExtraMissing,
    FilesLeftOut,
    InputError,
    JobFailed,
    UsageError,
)
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.formats.origin import Bad, Origin
    from ddib_fed.formats.parts import WrittenStudy
    from ddib_fed.formats.study import Choice

Seen = TypeVar("Seen")
"""What is kept of a study that was looked at."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The studies of a command, before anything is sent."""

    choice: Choice
    manner: StudyManner
    asked: str
    earlier: Mapping[int, WrittenStudy]
    bad: tuple[tuple[Path, DdibError], ...]
    unreadable: frozenset[int]

    @property
    def file_names(self) -> tuple[str, ...]:
        origins = self.choice.studies.origins
        return tuple(name for each in origins for name in (*each.outputs, *each.beside, f"{each.name}.json"))

    @property
    def inputs(self) -> tuple[Path, ...]:
        return tuple(path for origin in self.choice.studies.origins for path in origin.inputs)

    @property
    def others(self) -> int:
        return len(self.bad) - len(self.unreadable)


def plan_studies(
    files: Sequence[Path],
    profile: Profile,
    asked: Mapping[str, Any],
    order: Order,
    manner: StudyManner,
    display: Display = TERMINAL,
) -> Plan | None:
    """The studies among some files and below folders, each read once to know that it can be; None without any."""
    bad: Bad = []
    choice = open_studies(
        files, asked, profile, out=manner.out, bad=bad, detach=manner.detach, display=display
    )
    if choice is None:
        return None
    refuse_detached(choice, detach=manner.detach)
    bad += [(folder, _beside(folder, found)) for folder, found in choice.beside]
    if line := ignored_line(choice.ignored):
        say(line, err=True)
    kept = replace(manner, keep_parts=manner.keep_parts or asked["keep_parts"])
    plan = Plan(choice, kept, order.digest(profile.institution), {}, (), frozenset())
    origins = choice.studies.origins
    found, unreadable = look_at_each(origins, partial(_look, plan))
    bad += [(origins[at].given, error) for at, error in unreadable.items()]
    earlier = {at: done for at, done in found.items() if done is not None}
    return replace(plan, earlier=earlier, bad=tuple(bad), unreadable=frozenset(unreadable))


def look_at_each(
    origins: Sequence[Origin], look: Callable[[int, Origin], Seen]
) -> tuple[dict[int, Seen], dict[int, DdibError]]:
    """What is seen of each study before anything is sent, by number; and why others cannot be read, likewise."""
    seen: dict[int, Seen] = {}
    unreadable: dict[int, DdibError] = {}
    for at, origin in enumerate(origins):
        try:
            seen[at] = look(at, origin)
        except (UsageError, AlreadyExists, Cancelled):
            raise
        except DdibError as error:
            unreadable[at] = error.kept()
        except OSError as error:
            why = f"{origin.given} cannot be read: {error.strerror or error}"
            unreadable[at] = InputError(why, hop="client")
    return seen, unreadable


def _look(plan: Plan, at: int, origin: Origin) -> WrittenStudy | None:
    """The output of a study of an earlier run; otherwise the study is read, and its warnings are said."""
    from ddib_fed.formats.finished import finished_study
    from ddib_fed.formats.parts import check_outputs

    manner = plan.manner
    if not manner.again:
        done = finished_study(origin, manner.out, asked=plan.asked)
        if done is not None:
            return done
    check_outputs(origin, manner.out, force=manner.force)
    for warning in plan.choice.studies[at].warnings:
        say(f"warning: {warning}", err=True)
    return None


def _beside(folder: Path, found: Mapping[str, int]) -> InputError:
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in found.items())
    return InputError(
        f"{folder}: files that are translated one by one ({kinds}) lie among DICOM files, and are not taken for slices",
        hop="client",
        hint="move them into a folder of their own, or name them in a command of their own",
    )


def check_plan(plan: Plan, chosen: Chosen | None, order: Order, institution: str, *, skip_bad: bool) -> None:
    """Return if every study and every plain file can be translated, or bad ones are left out."""
    bad = list(plan.bad)
    if not skip_bad:
        for error in (error for _, error in bad if isinstance(error, ExtraMissing)):
            raise error  # one command repairs it for all files
    total = len(plan.choice.studies) + plan.others
    if chosen is not None:
        total += len(chosen.paths)
        if not skip_bad:
            bad += read_files(chosen, order, institution, decode=False)[1]
    if bad and not (skip_bad and len(bad) < total):
        raise refused(bad, total, "nothing was submitted")


class Ending:
    """What a command ends with that goes on after an error of one of its parts."""

    def __init__(self, errors: Sequence[DdibError] = ()) -> None:
        self._errors = list(errors)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, an error about single files or items waits until `conclude`."""
        try:
            yield
        except (JobFailed, FilesLeftOut) as error:
            self._errors.append(error.kept())

    def conclude(self) -> None:
        """Return if all went well."""
        if len(self._errors) > 1:
            failed = any(isinstance(error, JobFailed) for error in self._errors)
            hints = dict.fromkeys(error.hint for error in self._errors if error.hint)
            raise (JobFailed if failed else FilesLeftOut)(
                "\n".join(error.detail for error in self._errors),
                hint="\n".join(hints),
                hop=self._errors[0].hop,
            )
        for error in self._errors:
            raise error


def translate_studies(
    plan: Plan, translate: TranslateFiles, document: Document, *, skip_bad: bool, done: list[WrittenStudy]
) -> None:
    """Translate all studies, one after the other, and print what was written as soon as it is."""
    documents: list[dict[str, object]] = []
    failed: list[DdibError] = []
    missing = [LeftOut.of(path, error) for path, error in plan.bad]
    for at, origin in enumerate(plan.choice.studies.origins):
        if at in plan.unreadable:
            continue
        try:
            written = _translated(plan, at, translate)
        except (JobFailed, InputError) as error:
            if isinstance(error, UsageError) or not (skip_bad or isinstance(error, JobFailed)):
                raise
            missing.append(LeftOut.of(origin.given, error))
            failed.append(error.kept())
            continue
        done.append(written)
        documents.append(as_json(written))
        if not document.is_wanted:
            report_studies([written], "text")
    document.add({"studies": documents, "left_out": [each.as_json() for each in missing]})
    if missing and skip_bad:
        total = len(plan.choice.studies) + plan.others
        raise left_out(missing, total, f"the others are in {plan.manner.out}")
    partly = [f"{each.given}: {each.refused}" for each in done if each.refused]
    if partly:
        hint = "the records name each item; what was refused is not in the results"
        failed.append(FilesLeftOut("\n".join(partly), hint=hint))
    Ending(failed).conclude()


def _translated(plan: Plan, at: int, translate: TranslateFiles) -> WrittenStudy:
    if at in plan.earlier:
        return plan.earlier[at]
    study = plan.choice.studies[at]
    return translate_study(study, translate, plan.manner, asked=plan.asked)
