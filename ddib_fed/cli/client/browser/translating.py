"""One translation of the page: its series, volumes and maps one by one, then its plain files; all by `ddib translate`.

One study is in memory at a time. What cannot be read or translated does not stop the rest: the watcher is notified, and
the error at the end counts it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.bridge.records.translation_record import DOUBTFUL_BELOW, Part
from ddib_fed.cli.client.browser.clients import Clients
from ddib_fed.cli.client.browser.display import PageDisplay, Shown
from ddib_fed.cli.client.browser.views import SliceViews, map_result, tiled_map
from ddib_fed.cli.client.choosing import Chosen
from ddib_fed.cli.client.delivery import Delivered, Input, check_names
from ddib_fed.cli.client.studies import INTENSITY, StudyManner, open_studies, translate_study
from ddib_fed.cli.client.study_runs import look_at_each
from ddib_fed.cli.client.translation.order import Order
from ddib_fed.cli.client.translation.outcome import require_translated
from ddib_fed.cli.client.translation.run import Manner
from ddib_fed.cli.client.translation.whole import translate_files, translate_parts
from ddib_fed.client.payload import split_target
from ddib_fed.errors import (
    Cancelled,
    DdibError,
    FilesLeftOut,
    InputError,
    JobFailed,
    PictureMisfit,
)
from ddib_fed.formats.origin import Bad, Origin
from ddib_fed.formats.recognition import is_dicom
from ddib_fed.formats.study import Studies, Study
from ddib_fed.web import backend
from ddib_fed.web.backend import measured_in_words, step_in_words
from ddib_fed.wire.jobs import Settings

LOOSE = "DICOM files"
"""What a series is called whose files were dropped without a folder."""
_STEPS = 3
"""Next steps that are named at most."""


@dataclass(frozen=True, slots=True)
class Translating:
    """One translation."""

    clients: Clients
    given: Sequence[backend.Source]
    asked: backend.TranslationRequest
    out: Path
    views: Path
    watcher: backend.Watcher

    def run(self) -> None:
        """Translate everything."""
        try:
            self._run()
        except BaseException as error:
            self._tidy()
            if isinstance(error, DdibError):
                error.hint = _step(error)
            raise

    def _tidy(self) -> None:
        found = [path for path in self.out.rglob("*") if path.is_file()]
        if all(path.parent.name == "items" for path in found):
            shutil.rmtree(self.out, ignore_errors=True)

    def _run(self) -> None:
        split_target(self.asked.target)
        studies, failed, plain = self._opened()
        total = len(studies) + len(failed) + len(plain)
        labels = self._labels(studies.origins)

        def look(at: int, origin: Origin) -> backend.Study:
            del origin
            self._check_stopped()
            return _seen(studies[at], labels[at])

        seen, unreadable = look_at_each(studies.origins, look)
        failed += [(labels[at], error) for at, error in unreadable.items()]
        items = sum(each.items for each in seen.values()) + len(plain)
        self.watcher.opened([*seen.values()], items, total)
        for number, (at, each) in enumerate(seen.items()):
            self._check_stopped()
            try:
                self._translate_study(number, studies[at], each)
            except (InputError, JobFailed) as error:
                failed.append((labels[at], error.kept()))
        self._check_stopped()
        if plain:
            failed += self._translate_plain(plain)
        self._check_stopped()
        if failed:
            self._refuse(failed, total)

    def _refuse(self, failed: Sequence[tuple[str, DdibError]], total: int) -> None:
        """Tell what was not translated."""
        if total == 1:
            raise failed[0][1]
        for label, error in failed:
            self.watcher.left_out(label, f"{error.detail} [{error.reason}]")
        steps = dict.fromkeys(_step(error) for _, error in failed)
        raise FilesLeftOut(
            f"{len(failed):,} of {total:,} were not translated", hint="; ".join([*steps][:_STEPS])
        )

    def _opened(self) -> tuple[Studies, list[tuple[str, DdibError]], list[backend.Source]]:
        """What is translated in items, none of it read yet; of what none can be made, with the reason; and the rest."""
        asked: dict[str, Any] = {
            "intensity": self.asked.intensity,
            "slices": self.asked.slices,
            "tile": "auto",
            "overlap": None,
            "keep_parts": False,
        }
        bad: Bad = []
        display = self._display(self.out, _not_shown)
        paths = [each.path for each in self.given]
        found = open_studies(paths, asked, self.clients.profile, bad=bad, display=display)
        called, plain = self._called(), {each.path: each for each in self.given if not each.is_study}
        failed = [(called(path), error) for path, error in bad]
        if found is None:
            return Studies(), failed, [*plain.values()]
        tiled = {path: each.name for path, each in plain.items()}
        studies = [u.renamed(tiled.get(u.origin.given, u.origin.name)) for u in found.studies.unread]
        return Studies(studies), failed, [plain[path] for path in found.plain if path in plain]

    def _called(self) -> Callable[[Path], str]:
        known = {each.path: each.label for each in self.given}
        loose = {
            each.path for each in self.given if each.is_study and each.path.is_file() and is_dicom(each.path)
        }
        return lambda path: LOOSE if len(loose) > 1 and path in loose else known.get(path, path.name)

    def _labels(self, origins: Sequence[Origin]) -> list[str]:
        called, alike = self._called(), Counter(origin.given for origin in origins)
        return [
            called(each.given) if alike[each.given] == 1 else f"{called(each.given)}, {each.name}"
            for each in origins
        ]

    def _check_stopped(self) -> None:
        if self.watcher.stopped:
            raise Cancelled("stopped; what was finished before is here")

    def _display(self, out: Path, shown: Shown, label: Callable[[str], str] = str) -> PageDisplay:
        return PageDisplay(self.clients, self.watcher, out, shown, label)

    def _order(self) -> Order:
        return Order(
            self.asked.target,
            Settings().of_quality(self.asked.quality),
            self.asked.cycle,
            keep_latent=False,
            deadline_s=None,
            target_class=self.asked.target_class,
        )

    def _manner(self) -> Manner:
        return Manner(self.out, force=False, skip_bad=True, doubtful_below=DOUBTFUL_BELOW)

    def _translate_study(self, number: int, study: Study, seen: backend.Study) -> None:
        """Translate the items of a study, and put it together."""
        tiled = tiled_map(study)

        def send(paths: Sequence[Path], results: Path) -> dict[Path, str]:
            word = seen.plane_word if study.planes > 1 else ""
            views = SliceViews.of(number, seen.label, word, paths, self.views)
            display = self._display(results, views.result if tiled is None else _not_shown, views.called)
            return translate_parts(
                self.clients.profile, self._order(), self._manner(), paths, results, display=display
            )

        manner = StudyManner(self.out, "text")
        digest = self._order().digest(self.clients.profile.institution)
        written = translate_study(study, send, manner, asked=digest)
        shown = map_result(number, seen.label, tiled, written, self.views) if tiled is not None else None
        refused = (written.refused,) if written.refused else ()
        said = (*refused, *measured_in_words(written.report), *written.said)
        done = backend.PutTogether(written.files, written.record, said, written.provenance)
        self.watcher.put_together(number, done, shown)

    def _translate_plain(self, plain: Sequence[backend.Source]) -> list[tuple[str, DdibError]]:
        """Translate files that the node takes as they are; those that were left out, and why."""
        sources = {each.name: each for each in plain}
        chosen = Chosen(
            tuple(each.path for each in plain), tuple(Input(each.name, each.label) for each in plain)
        )
        check_names(chosen.paths, chosen.inputs, self.out)

        def shown(given: Input, result: Delivered) -> backend.Result:
            source = sources[given.name]
            files = {Part.SOURCE: source.path, **result.files}
            outputs = (*result.files.values(), result.record)
            return backend.Result(source.label, files, result.provenance, outputs)

        outcome, _ = translate_files(
            self.clients.profile,
            chosen,
            self._order(),
            self._manner(),
            page=False,
            display=self._display(self.out, shown),
        )
        self._check_stopped()
        hop = self.clients.profile.hop
        require_translated(outcome, hop, skip_bad=True)
        labels = {each.path: each.label for each in plain}
        return [(labels[each.path], each.as_error(hop)) for each in (*outcome.left_out, *outcome.failed)]


def _not_shown(given: Input, result: Delivered) -> None:
    del given, result


def _seen(study: Study, label: str) -> backend.Study:
    word = "slice" if tiled_map(study) is None else "tile"
    return backend.Study(label, study.kind, study.planes, len(study.sent), word, study.warnings)


def _step(error: DdibError) -> str:
    if isinstance(error, FilesLeftOut) and error.hint:
        return error.hint  # the steps of what was left out
    if isinstance(error, PictureMisfit) and INTENSITY in error.facts:
        return f"on the start page, under volumes and maps, set the rule of intensity to {error.facts[INTENSITY]}"
    return step_in_words(error)
