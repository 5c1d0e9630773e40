"""Series that arrive over DICOM: kept on the disk, translated once, and handed on once.

SPOOL/KEY/in/*.dcm      instances, each on the disk before its C-STORE is answered; KEY is a digest of the series' UIDs
SPOOL/KEY/out/...       results, as `ddib translate` writes them
SPOOL/KEY/state.json    what has become of the series
SPOOL/.arriving/        instances that are not complete yet
SPOOL/.clock            seconds in which a receiver has run

What comes late joins its series, which is translated again as a whole, under the UIDs of before. Every state is on the
disk before it is acted on: a kill loses nothing. The log repeats no text about a series, which may quote its headers.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import os
import re
import shlex
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from ddib_fed import Client, Event, Profile, Progress, Request, Run, errors
from ddib_fed.files import make_private_folders, private_folder, sync_folder, write_file
from ddib_fed.formats.dicom import checked_header, read_header
from ddib_fed.pacs.exchange import FROZEN, Deliver, DicomRoute, DicomSettings
from ddib_fed.pacs.network import RESERVE
from ddib_fed.studies import Study, WrittenStudy

log = logging.getLogger(__name__)

RELEASED: Final = 5
"""Wait this part of quiet_s after a series' last association was released: some senders take one an instance."""
TICK_S: Final = 0.2
MOST_STARTS: Final = 4
"""Give up a series after so many crashes, failed jobs, or errors that are no errors of ours."""
FIRST_RETRY_S: Final = 5.0
LAST_RETRY_S: Final = 600.0
STALLED_S: Final = 120.0  # wait at most this many seconds for an instance whose sender stopped in the middle
CLOCK_S: Final = 60.0
"""Save the clock by which series expire this often, in seconds: a kill loses no more of it."""
_OF_THE_SERIES: Final = (errors.InputError, errors.FilesLeftOut, errors.LatentNotGaussian)
"""Errors after which a series is given up at once."""
_OF_THE_SETUP: Final = (
    errors.ConfigError,
    errors.SettingsInvalid,
    errors.ContractMismatch,
    errors.DomainNotFound,
    errors.PeerNotFound,
)
_TOLD: Final = (*_OF_THE_SETUP, errors.UnavailableError, errors.RefusedError, errors.ExhaustedError)
"""The log repeats texts of these alone: nodes and peers cause them, and neither knows a header."""
_WORDS: Final = (
    "burnt-in text", "a person may be recognised", "slices are not parallel", "is a slice missing?",
    "no Hounsfield units", "is synthetic itself", "without pixels", "is not translated", "no functional groups",
    "read of enhanced CT, MR and PET alone", "does not begin as DICOM files do", "cannot be read as DICOM", "no UID",
    "percentiles say nothing", "in no common units", "no volume", "every one was refused", "this process ended",
    "no [[dicom.route]] takes it", "larger than [dicom] most_shrink allows", "pictures of anatomy", "localizer",
    "mosaic of slices", "screen or protocol", "phase, real or imaginary picture", "colour map", "its header says",
)  # fmt: skip
"""Words of ours that the log repeats from a text which may also hold values of headers."""
_WITHOUT_VALUES: Final = re.compile("warning: --|ignored |was computed at |[0-9,]+ values outside ")
"""Lines of ours that have counts and sizes alone."""
_REASON: Final = re.compile(r"[\[(]([A-Z_]{4,})[\])]")
_SELECTED: Final = {name: name.title().replace("_", "") for name in DicomRoute.model_fields if name != "to"}
"""Attributes by which a `[[dicom.route]]` selects series."""
_KEY: Final = re.compile("[0-9a-f]{32}")


class Step(StrEnum):
    ARRIVING = "arriving"
    COMPLETE = "complete"
    DONE = "done"
    FAILED = "failed"


class State(BaseModel):
    """What `state.json` says."""

    model_config = FROZEN

    step: Step = Step.ARRIVING
    changed: float = 0.0  # when its step was entered, by the spool's clock
    new: bool = True  # whether its instances differ from those that `out` was made of
    sent: int = 0  # files that the other side has
    starts: int = 0  # how often its translation was begun and neither done nor given up
    why: str = ""  # why it was given up, where a report of that is handed on in place of a result


@dataclass(slots=True)
class Clock:
    """Seconds for which receivers have run with a spool: no set clock, stop or sleep makes a series expire."""

    path: Path
    saved: float = 1.0
    since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError):
            self.saved = float(self.path.read_text())

    def now(self) -> float:
        return self.saved + time.monotonic() - self.since

    def save(self) -> None:
        self.saved, self.since = self.now(), time.monotonic()
        write_file(self.path, str(self.saved).encode(), private=True)


@dataclass(slots=True, eq=False)
class Routed:
    """A series in the spool."""

    folder: Path
    clock: Clock
    state: State = field(default_factory=State)
    due: float = 0.0  # when it is complete, or tried again; of the monotonic clock
    tries: int = 0  # what was never tried does not expire
    size: int = 0
    count: int = 0
    target: str = "INSTITUTION/DOMAIN"
    associations: set[int] = field(default_factory=set)

    @property
    def key(self) -> str:
        return self.folder.name[:8]

    @property
    def has_ended(self) -> bool:
        return self.state.step in {Step.DONE, Step.FAILED}

    def put(self, **changes: object) -> None:
        """Enter a state, on the disk."""
        changed = self.clock.now() if "step" in changes else self.state.changed
        state = self.state.model_copy(update={"changed": changed, **changes})
        write_file(self.folder / "state.json", state.model_dump_json().encode(), private=True)
        self.state = state

    @classmethod
    def read(cls, folder: Path, clock: Clock) -> Routed | None:
        """Read the series in a folder; return None if nothing of it was kept, or its state cannot be read."""
        try:
            state = State.model_validate_json((folder / "state.json").read_bytes())
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):  # nothing of it was answered, or it was being removed
                shutil.rmtree(folder, ignore_errors=True)
            else:
                log.error("%s is left as it is: its state.json cannot be read", folder)  # noqa: TRY400 - no bug
            return None
        clock.saved = max(clock.saved, state.changed)
        return cls(folder, clock, state, size=_size(folder), count=len([*folder.glob("in/*.dcm")]))


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


class _Progress(Progress):
    """Logs what a person would have to know: burnt-in text, missing slices, a target that does not answer."""

    def __init__(self, key: str, sides: Sequence[int]) -> None:
        self._key, self._sides, self._reason = key, sides, ""
        self.shrink: tuple[float, tuple[int, ...]] = (1.0, ())
        """How many times longer a side of what was read is than computed at most, and at what size that is."""

    def event(self, event: Event) -> None:
        if event.stage == "wait" and event.reason != self._reason:
            log.warning("series %s: waits at the node: %s", self._key, event.sentence)
            self._reason = event.reason

    def say(self, line: str) -> None:
        if told := line if _WITHOUT_VALUES.match(line) else _words(line):
            log.warning("series %s: %s", self._key, told)

    def study(self, number: int, study: Study | None) -> None:
        del number
        if study is None:
            return
        self.shrink = max(self.shrink, study.pixels.shrink(self._sides))
        for line in study.warnings:
            said = _words(line) or "has a warning: ddib translate on its folder in the spool shows it"
            log.warning("series %s: %s", self._key, said)

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        del number, study
        for line in filter(_WITHOUT_VALUES.match, written.said):
            log.info("series %s: %s", self._key, line)


@dataclass(eq=False)
class Router:
    """The series of a spool. `keep` and `ended` are for a `Receiver`, and `run` is the rest of the daemon."""

    spool: Path
    profile: Profile
    target: str  # of all series, where there is no `[[dicom.route]]`
    request: Request
    intensity: str
    settings: DicomSettings
    deliver: Deliver
    busy: dict[int, float]
    _held: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        now, self.clock = time.monotonic(), Clock(private_folder(self.spool) / ".clock")
        folders = [each for each in sorted(self.spool.iterdir()) if _KEY.fullmatch(each.name)]
        routed = [Routed.read(each, self.clock) for each in folders]
        self.series = {each.folder.name: each for each in routed if each is not None}
        for each in self.series.values():
            each.due = now + (self.settings.quiet_s if each.state.step is Step.ARRIVING else 0.0)
        if left := sum(not each.has_ended for each in self.series.values()):
            log.info("series in the spool that have not ended: %d", left)

    def keep(self, path: Path, association: int, who: str) -> int:
        """Bring an instance to the disk, and return the status of its C-STORE (PS3.4 B.2.3)."""
        try:
            header = checked_header(path)
            uids = [str(header.get(f"{of}InstanceUID", "")) for of in ("Study", "Series", "SOP")]
            if not all(uids):
                raise errors.ImageUnreadable("it has no UID of its study, its series or its own")
        except errors.DdibError as error:
            log.warning("%s: an instance is refused: %s", who, _told(error))
            return 0xC000
        key = hashlib.sha256("\n".join(uids[:2]).encode()).hexdigest()[:32]
        name = hashlib.sha256(uids[2].encode()).hexdigest()[:32] + ".dcm"
        with path.open("rb") as file:
            os.fsync(file.fileno())
        with self._lock:
            series = self.series.get(key)
            place = self.spool / key / "in" / name
            known = place.exists() and filecmp.cmp(path, place, shallow=False)
            if not known and (why := self._no_room(path.stat().st_size, series)):
                log.error("%s: an instance is refused: %s", who, why)
                return 0xA700
            if series is None:
                make_private_folders(place.parent)
                series = self.series[key] = Routed(self.spool / key, self.clock)
                log.info("series %s: begins to arrive from %s", series.key, who)
            state, begun = series.state, series.state.step is Step.ARRIVING and series.state.changed
            # Known already, and of a series that has ended: what is there is handed on again.
            if series.has_ended or (not known and not (begun and state.new)):
                new = state.new or not known or state.step is Step.FAILED
                series.put(step=Step.ARRIVING, new=new, sent=0, starts=0, why="")
            if not known:
                series.size, series.count = (
                    series.size + path.stat().st_size,
                    series.count + (not place.exists()),
                )
                path.replace(place)
                sync_folder(place.parent)
            if series.state.step is Step.ARRIVING:
                series.due, series.tries = time.monotonic() + self.settings.quiet_s, 0
                series.associations.add(association)
        return 0

    def ended(self, association: int, released: bool) -> None:
        """Note the end of an association; the series that it brought may be complete."""
        with self._lock:
            for each in self.series.values():
                if association in each.associations:
                    each.associations.discard(association)
                    if released and not each.associations and each.state.step is Step.ARRIVING:
                        each.due = min(each.due, time.monotonic() + self.settings.quiet_s / RELEASED)

    def room(self, size: int) -> str:
        """Say why so many bytes of instances that still arrive are too many; empty if they are not."""
        with self._lock:
            why = self._no_room(size, None)
        return why and f"{size >> 20:,} MiB arrive, and {why}"

    def _no_room(self, size: int, series: Routed | None) -> str:
        """Say why another instance cannot be kept; empty if it can. What has ended makes room, the oldest first."""
        most = int(self.settings.most_gib * (1 << 30))
        if series is not None and series.count >= self.settings.most_instances:
            return f"its series has {self.settings.most_instances:,} instances already"
        while True:
            used = sum(each.size for each in self.series.values())
            open_bytes = sum(each.size for each in self.series.values() if not each.has_ended)
            free = shutil.disk_usage(self.spool).free
            if used + size <= most and free >= size + open_bytes + RESERVE:
                return ""
            ended = [each for each in self.series.values() if each.has_ended and each is not series]
            if not ended:
                return f"the spool holds {used >> 20:,} MiB, and {free >> 20:,} MiB of the disk are free"
            self._remove(min(ended, key=lambda each: (each.state.step is Step.FAILED, each.state.changed)))

    def _remove(self, series: Routed) -> None:
        # First, because a folder without it is removed at the next start.
        (series.folder / "state.json").unlink(missing_ok=True)
        shutil.rmtree(series.folder, ignore_errors=True)
        self.series.pop(series.folder.name, None)

    def run(self) -> None:
        """Complete, translate and hand on series, as long as the process lives."""
        while True:
            time.sleep(TICK_S)
            try:
                self.step()
            except Exception as error:  # noqa: BLE001 - a full disk, most often; it must not end the daemon's work
                log.error("the spool cannot be worked on: %s", _told(error))  # noqa: TRY400 - without values
                time.sleep(FIRST_RETRY_S)

    def step(self) -> None:
        self._expire()
        for series in self._due():
            self._work(series)

    def _due(self) -> list[Routed]:
        """Return series to work on, in the order in which they were completed."""
        now = time.monotonic()
        with self._lock:
            for each in self.series.values():
                last = max((self.busy.get(by, 0.0) for by in each.associations), default=0.0)
                waits = each.due > now or now - last < STALLED_S
                if each.state.step is Step.ARRIVING and each.state.changed and not waits:
                    each.put(step=Step.COMPLETE)
                    each.associations.clear()
                    log.info("series %s: complete, instances: %d", each.key, each.count)
            ready = [e for e in self.series.values() if e.state.step is Step.COMPLETE and e.due <= now]
        return sorted(ready, key=lambda each: each.state.changed)

    def _expire(self) -> None:
        oldest = self.clock.now() - self.settings.expire_h * 3600
        if time.monotonic() - self.clock.since > CLOCK_S:
            self.clock.save()
        with self._lock:
            for each in [each for each in self.series.values() if 0.0 < each.state.changed < oldest]:
                if is_lost := each.tries and not each.has_ended and not each.state.why:
                    log.error("series %s: expired, and was not handed on", each.key)
                if is_lost and self.settings.report != "none":
                    self._give_up(each, f"no result could be handed on within {self.settings.expire_h:g} h")
                elif each.tries or each.has_ended:
                    self._remove(each)

    def _work(self, series: Routed) -> None:
        with self._lock:
            if series.state.step is not Step.COMPLETE:
                return  # more has come
            if series.state.new:
                shutil.rmtree(series.folder / "out", ignore_errors=True)
            series.put(new=False, starts=series.state.starts + 1)
            begun = series.state
        try:
            files = [self._report(series)] if series.state.why else self._translate(series)
            series.size = _size(series.folder)

            def sent(path: Path) -> None:
                nonlocal begun
                with self._lock:
                    if series.state is begun:
                        series.put(sent=files.index(path) + 1)
                        begun = series.state

            if time.monotonic() < self._held:  # the other side was away: others are translated meanwhile
                series.put(starts=0)
                series.due, series.tries = self._held, max(series.tries, 1)
                return
            if left := files[begun.sent :]:
                self.deliver(left, sent)
        except Exception as error:  # noqa: BLE001 - one series must not stop the others
            with self._lock:
                if series.state is begun:
                    self._failed(series, error)
            return
        with self._lock:
            if series.state is begun:
                what = "a report was handed on" if series.state.why else f"handed on, instances: {len(files)}"
                series.put(step=Step.FAILED if series.state.why else Step.DONE, starts=0)
                log.info("series %s: %s", series.key, what)

    def _translate(self, series: Routed) -> list[Path]:
        """Return the files of the result, which may be those of an earlier try; raise DdibError if there is none."""
        if series.state.starts > MOST_STARTS:
            raise errors.JobFailed(f"this process ended {MOST_STARTS} times while it was at it")
        since = time.monotonic()
        series.target = self._target(series)
        with Client.for_command(self.profile) as client:
            sides = client.domains(own_alone=True).sample_shape[1:]
        progress = _Progress(series.key, sides)
        run = Run(self.profile, series.target, series.folder / "out", self.request, progress)
        run.open([series.folder / "in"], intensity=self.intensity)
        run.read()
        shrink, size = progress.shrink
        if shrink > self.settings.most_shrink:
            facts = {"computed_at": " x ".join(map(str, size)), "shrink": f"{shrink:.3g}"}
            facts["most_shrink"] = f"{self.settings.most_shrink:g}"
            raise errors.InputError("it is larger than [dicom] most_shrink allows", facts=facts)
        run.translate()
        run.conclude()
        files = sorted(path for written in run.written for path in written.files if path.suffix == ".dcm")
        for written in run.written:
            if (record := written.provenance).doubtful:
                log.warning("series %s: doubtful: %s", series.key, ", ".join(record.doubts or ()))
        if not series.tries:
            took = time.monotonic() - since
            log.info("series %s: translated in %.1f s, files: %d", series.key, took, len(files))
        return files

    def _target(self, series: Routed) -> str:
        """Return the target of a series: that of the first route that takes all its instances."""
        if not self.settings.route:
            return self.target
        instances = {_selected(path) for path in (series.folder / "in").glob("*.dcm")}
        for route in self.settings.route:
            patterns = [getattr(route, name).casefold() for name in _SELECTED]
            if all(all(map(fnmatchcase, values, patterns)) for values in instances):
                return route.to
        raise errors.InputError("no [[dicom.route]] takes it")

    def _report(self, series: Routed) -> Path:
        """Write the report that takes the place of a result."""
        from ddib_fed.formats.dicom_writing import report_of

        make_private_folders(series.folder / "out")
        path = series.folder / "out" / "report.dcm"
        write_file(path, report_of(min(series.folder.glob("in/*.dcm")), series.state.why), private=True)
        return path

    def _failed(self, series: Routed, error: Exception) -> None:
        """Give a series up, or try it again later."""
        why = _told(error)
        folder = shlex.quote(str(series.folder / "in"))
        hint = f"ddib translate {folder} --to {series.target} --out /tmp/{series.key}"
        hint = errors.next_step(error) if isinstance(error, _TOLD) else hint
        if not _may_pass(error, max(series.tries + 1, series.state.starts)):
            log.error("series %s: not translated: %s; try: %s", series.key, why, hint)
            self._give_up(series, why)
            return
        # What is in `out` may be of another request, or of another model.
        series.put(starts=0, new=series.state.new or isinstance(error, errors.AlreadyExists))
        wait = min(FIRST_RETRY_S * 2 ** min(series.tries, 7), LAST_RETRY_S)
        series.tries, series.due = series.tries + 1, time.monotonic() + wait
        if isinstance(error, errors.PeerUnreachable):
            self._held = series.due
        log.warning("series %s: %s; again in %.0f s; try: %s", series.key, why, wait, hint)

    def _give_up(self, series: Routed, why: str) -> None:
        """End a series; first hand a report on where the profile asks for one and it was not that which failed."""
        if self.settings.report == "none" or series.state.why:
            series.put(step=Step.FAILED)
        else:
            series.put(step=Step.COMPLETE, new=True, sent=0, starts=0, why=why)
            series.tries, series.due = 0, 0.0


def check_setup(profile: Profile, target: str, request: Request) -> None:
    """Raise what the node objects to in such a job; log what may pass, such as a node that is away."""
    try:
        with Client.for_command(profile, patience_s=0) as client:
            client.check(target, request)
    except (errors.UnavailableError, errors.ExhaustedError, errors.DeadlineExceeded) as error:
        log.warning("the set-up could not be checked: %s; try: %s", _told(error), errors.next_step(error))


def _selected(path: Path) -> tuple[str, ...]:
    """Return the attributes of an instance by which routes select."""
    header = read_header(path, [*_SELECTED.values()])
    values = (header.get(keyword) or "" for keyword in _SELECTED.values())
    return tuple("\\".join([each] if isinstance(each, str) else each).casefold() for each in values)


def _may_pass(error: Exception, tries: int) -> bool:
    """Return whether to try a series again after this many tries."""
    if any(issubclass(each, (*_OF_THE_SETUP, errors.UsageError)) for each in (type(error), *_quoted(error))):
        return True  # an operator corrects it
    ours = isinstance(error, errors.InternalError) and not error.incident  # a node's may pass
    if ours or isinstance(error, errors.JobFailed) or not isinstance(error, errors.DdibError | OSError):
        return tries <= MOST_STARTS
    return not isinstance(error, _OF_THE_SERIES)


def _words(text: str) -> str:
    return ", ".join(words for words in _WORDS if words in text)


def _quoted(error: Exception) -> set[type[errors.DdibError]]:
    """Return the classes whose reasons an error's text names."""
    reasons = _REASON.findall(error.detail) if isinstance(error, errors.DdibError) else ()
    return {kind for each in reasons if (kind := errors.error_class(each)).reason == each}


def _told(error: Exception) -> str:
    """Describe an error without values of headers."""
    if not isinstance(error, errors.DdibError):
        return getattr(error, "strerror", None) or type(error).__name__
    parts = error.detail.splitlines() if isinstance(error, _TOLD) else [error.sentence, _words(error.detail)]
    parts += sorted(each.sentence for each in _quoted(error) - {type(error)})
    parts += [f"{name} {value}" for name, value in error.facts.items()]
    return f"{'; '.join(filter(None, parts))} [{error.reason}]"
