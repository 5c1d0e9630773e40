"""Series that arrive over DICOM: kept on the disk, translated once, and handed on once.

SPOOL/KEY/in/*.dcm      instances, each on the disk before its C-STORE is answered; KEY is a digest of the series' UIDs
SPOOL/KEY/out/...       results, as `ddib translate` writes them
SPOOL/KEY/state.json    what has become of the series
SPOOL/.arriving/        instances that are not complete yet

What comes late joins its series, which is translated again as a whole, under the UIDs of before. Every state is on the
disk before it is acted on, and the run in `out` resumes: a kill loses nothing. No value of a header is in the log.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddib_fed.client.exchange import Deliver
from ddib_fed.client.folder_run import RunOptions, RunProgress, open_run
from ddib_fed.client.profile import DicomSettings
from ddib_fed.errors import (
    AlreadyExists,
    ConfigError,
    ContractMismatch,
    DdibError,
    FilesLeftOut,
    ImageUnreadable,
    InputError,
    JobFailed,
    LatentNotGaussian,
    PeerUnreachable,
    UsageError,
    error_class,
    next_step,
)
from ddib_fed.files import make_private_folders, private_folder, sync_folder, write_file
from ddib_fed.formats.dicom import checked_header
from ddib_fed.formats.dicom_network import RESERVE
from ddib_fed.v1 import translation_pb2 as pb

if TYPE_CHECKING:
    from ddib_fed.formats.parts import WrittenStudy
    from ddib_fed.formats.study import Origin, Study

log = logging.getLogger(__name__)

RELEASED: Final = 5
"""Part of the silence that follows the release of a series' last association: some senders take one an instance."""
TICK_S: Final = 0.2
MOST_STARTS: Final = 4
"""Of a translation that takes this process with it, and of a job that fails."""
FIRST_RETRY_S: Final = 5.0
LAST_RETRY_S: Final = 600.0
STALLED_S: Final = 120.0
"""A series waits no longer for an instance of its sender that stopped in the middle."""
ABANDONED_S: Final = 600.0
_FOR_GOOD: Final = (InputError, JobFailed, FilesLeftOut, LatentNotGaussian, ContractMismatch)
"""Errors that the series itself has; what else goes wrong is tried again until the series expires."""
_KEY: Final = re.compile("[0-9a-f]{32}")
_QUOTED: Final = re.compile(r"(cannot be read as DICOM: \w+): .*", re.DOTALL)
"""What pydicom says of a value has the value in it."""


class Step(StrEnum):
    ARRIVING = "arriving"
    COMPLETE = "complete"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class State:
    """What `state.json` says."""

    step: Step = Step.ARRIVING
    changed: float = 0.0
    """When its step was entered, seconds of the epoch."""
    new: bool = True
    """Whether its instances differ from those that `out` was made of."""
    sent: int = 0
    """Files that the other side has."""
    starts: int = 0
    """How often its translation was begun and neither done nor given up."""


@dataclass(slots=True, eq=False)
class Routed:
    """A series in the spool."""

    folder: Path
    state: State
    due: float = 0.0
    """When it is complete, or tried again; of the monotonic clock."""
    tries: int = 0
    size: int = 0
    count: int = 0
    associations: set[int] = field(default_factory=set)

    @property
    def key(self) -> str:
        return self.folder.name[:8]

    @property
    def has_ended(self) -> bool:
        return self.state.step in {Step.DONE, Step.FAILED}

    def put(self, **changes: object) -> None:
        """Enter a state, on the disk."""
        changed = time.time() if "step" in changes else self.state.changed
        state = replace(self.state, changed=changed, **changes)  # type: ignore[arg-type]
        write_file(self.folder / "state.json", json.dumps(asdict(state)).encode(), private=True)
        self.state = state

    @classmethod
    def read(cls, folder: Path) -> Routed | None:
        """The series in a folder; None where it was killed before its first instance, or cannot be read."""
        try:
            found = json.loads((folder / "state.json").read_text())
            state = State(**{**found, "step": Step(found["step"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, FileNotFoundError):  # nothing of it was answered, or it was being removed
                shutil.rmtree(folder, ignore_errors=True)
            else:
                log.error("%s is left as it is: its state.json cannot be read", folder)  # noqa: TRY400 - no bug
            return None
        return cls(folder, state, size=_size(folder), count=len([*folder.glob("in/*.dcm")]))


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


class _Progress(RunProgress):
    """Logs what a person would have to know: burnt-in text, missing slices, a target that does not answer."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key, self._reason = key, ""

    def event(self, event: pb.WatchJobResponse) -> None:
        if event.stage == "wait" and event.reason != self._reason:
            log.warning("series %s: waits at the node: %s", self._key, error_class(event.reason).sentence)
            self._reason = event.reason

    def study(self, number: int, origin: Origin, study: Study | None) -> None:
        del number
        for line in study.warnings if study is not None else ():
            log.warning("series %s: %s", self._key, line.replace(f"{origin.given}: ", ""))

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        del number, study
        for line in written.said:
            log.info("series %s: %s", self._key, line)


class Router:
    """The series of a spool. `keep` and `ended` are for a `Receiver`, and `run` is the rest of the daemon."""

    def __init__(
        self,
        spool: Path,
        options: RunOptions,
        reading: dict[str, str],
        settings: DicomSettings,
        deliver: Deliver,
        busy: dict[int, float],
    ) -> None:
        self.spool, self.settings = private_folder(spool), settings
        self.options, self.reading = options, reading
        self.deliver, self.busy = deliver, busy
        self._lock = threading.RLock()
        self._held = 0.0
        now = time.monotonic()
        folders = [each for each in sorted(spool.iterdir()) if _KEY.fullmatch(each.name)]
        self.series = {each.folder.name: each for each in map(Routed.read, folders) if each is not None}
        for each in self.series.values():
            each.due = now + (settings.quiet_s if each.state.step is Step.ARRIVING else 0.0)
        if left := sum(not each.has_ended for each in self.series.values()):
            log.info("series in the spool that have not ended: %d", left)

    def keep(self, path: Path, association: int, who: str) -> int:
        """Bring an instance to the disk, and return the status of its C-STORE (PS3.4 B.2.3)."""
        try:
            header = checked_header(path)
            uids = [str(header.get(f"{of}InstanceUID", "")) for of in ("Study", "Series", "SOP")]
            if not all(uids):
                raise ImageUnreadable("it has no UID of its study, its series or its own")
        except DdibError as error:
            log.warning("%s: an instance is refused: %s", who, _told(error).replace(str(path), "it"))
            return 0xC000 if isinstance(error, ImageUnreadable) else 0xA900
        key = hashlib.sha256("\n".join(uids[:2]).encode()).hexdigest()[:32]
        name = hashlib.sha256(uids[2].encode()).hexdigest()[:32] + ".dcm"
        with path.open("rb") as file:
            os.fsync(file.fileno())
        with self._lock:
            found = self.series.get(key)
            place = self.spool / key / "in" / name
            known = place.exists() and filecmp.cmp(path, place, shallow=False)
            if not known and (why := self._no_room(path.stat().st_size, found)):
                log.error("%s: an instance is refused: %s", who, why)
                return 0xA700
            if found is None:
                make_private_folders(place.parent)
                found = self.series[key] = Routed(self.spool / key, State())
                log.info("series %s: begins to arrive from %s", found.key, who)
            state, begun = found.state, found.state.step is Step.ARRIVING and found.state.changed
            # Known already, and of a series that has ended: what is there is handed on again.
            if found.has_ended or (not known and not (begun and state.new)):
                new = state.new or not known or state.step is Step.FAILED
                found.put(step=Step.ARRIVING, new=new, sent=0, starts=0)
            if not known:
                found.size, found.count = found.size + path.stat().st_size, found.count + (not place.exists())
                path.replace(place)
                sync_folder(place.parent)
            if found.state.step is Step.ARRIVING:
                found.due, found.tries = time.monotonic() + self.settings.quiet_s, 0
                found.associations.add(association)
        return 0

    def ended(self, association: int, released: bool) -> None:
        """An association has ended; the series that it brought may be complete."""
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
        """Why another instance cannot be kept; empty if it can. What has ended makes room, the oldest first."""
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
                why = error.strerror if isinstance(error, OSError) else type(error).__name__
                log.error("the spool cannot be worked on: %s", why)  # noqa: TRY400 - without values
                time.sleep(FIRST_RETRY_S)

    def step(self) -> None:
        """Do what is due."""
        self._expire()
        for series in self._due():
            self._work(series)

    def _due(self) -> list[Routed]:
        """Series to work on, in the order in which they were completed."""
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
        oldest = time.time() - self.settings.expire_h * 3600
        with self._lock:
            for each in [each for each in self.series.values() if 0.0 < each.state.changed < oldest]:
                if not each.has_ended:
                    log.error("series %s: expired, and was not handed on", each.key)
                self._remove(each)
        for left in (self.spool / ".arriving").glob("*"):  # of an association that broke off
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - ABANDONED_S:
                    left.unlink()

    def _work(self, series: Routed) -> None:
        with self._lock:
            if series.state.step is not Step.COMPLETE:
                return  # more has come
            if series.state.new:
                shutil.rmtree(series.folder / "out", ignore_errors=True)
            series.put(new=False, starts=series.state.starts + 1)
            begun = series.state
        try:
            files = self._translate(series)
            series.size = _size(series.folder)

            def sent(path: Path) -> None:
                nonlocal begun
                with self._lock:
                    if series.state is begun:
                        series.put(sent=files.index(path) + 1)
                        begun = series.state

            if time.monotonic() < self._held:  # the other side was away: others are translated meanwhile
                series.put(starts=0)
                series.due = self._held
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
                series.put(step=Step.DONE, starts=0)
                log.info("series %s: handed on, instances: %d", series.key, len(files))

    def _translate(self, series: Routed) -> list[Path]:
        """The files of the result, which may be those of an earlier try."""
        if series.state.starts > MOST_STARTS:
            raise JobFailed(f"this process ended {MOST_STARTS} times while it was at it")
        since = time.monotonic()
        own = replace(self.options, out=series.folder / "out", progress=_Progress(series.key))
        say = partial(log.info, "series %s: %s", series.key)
        run = open_run([series.folder / "in"], self.reading, own, say)
        run.read()
        run.translate()
        run.conclude()
        files = sorted(path for written in run.written for path in written.files if path.suffix == ".dcm")
        for record in (written.provenance for written in run.written if written.provenance.doubtful):
            log.warning("series %s: doubtful: %s", series.key, ", ".join(record.doubts or ()))
        if not series.tries:
            took = time.monotonic() - since
            log.info("series %s: translated in %.1f s, files: %d", series.key, took, len(files))
        return files

    def _failed(self, series: Routed, error: Exception) -> None:
        """After an error of the series itself it has failed; after others it is tried again until it expires."""
        for_good = isinstance(error, _FOR_GOOD) and not isinstance(error, UsageError | ConfigError)
        again = isinstance(error, JobFailed) and max(series.tries + 1, series.state.starts) <= MOST_STARTS
        why = _told(error) if isinstance(error, DdibError) else type(error).__name__
        why = why.replace(f"{series.folder / 'in'}: ", "").replace(str(series.folder / "in"), "it")
        hint = next_step(error) if isinstance(error, DdibError) else "report it"
        if for_good and not again:
            log.error("series %s: not translated: %s; try: %s", series.key, why, hint)
            series.put(step=Step.FAILED)
            return
        # What is in `out` may be of another request, or of another model.
        series.put(starts=0, new=series.state.new or isinstance(error, AlreadyExists))
        wait = min(FIRST_RETRY_S * 2 ** min(series.tries, 7), LAST_RETRY_S)
        series.tries, series.due = series.tries + 1, time.monotonic() + wait
        if isinstance(error, PeerUnreachable):
            self._held = series.due
        log.warning("series %s: %s; again in %.0f s; try: %s", series.key, why, wait, hint)


def _told(error: DdibError) -> str:
    """What an error says, without values of headers."""
    lines = _QUOTED.sub(r"\1", error.detail).splitlines()
    return f"{'; '.join(lines)} [{error.reason}]"
