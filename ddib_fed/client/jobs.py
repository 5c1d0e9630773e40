"""What a client asks, and what becomes of it, as values: requests, domains, jobs, their events and their results.

None of them holds a message of the protocol; `client.client` turns messages into them. Importable without numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from ddib_fed import errors
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.record import DIAL, UNGUIDED, Guidance, Settings
from ddib_fed.terminal import bar, say

if TYPE_CHECKING:
    from ddib_fed.calibration.record import Calibration
    from ddib_fed.client.parts import WrittenStudy
    from ddib_fed.client.results import Delivered
    from ddib_fed.data.study import Study

STAGES: Final[Mapping[str, str]] = {
    "encode": "encoding by the source",
    "send": "sending the latent",
    "decode": "decoding by the target",
    "return": "checking by translating back",
    "done": "done",
    "failed": "failed",
    "wait": "waiting for the target",
}
"""The stages of an item in words, for terminal and page."""
OF_MODELS: Final = ("soften", "seed", "calibration", "flags")
"""Fields of a request that nodes do not take: they have policies, secrets and agreements in their place."""


def split_target(target: str) -> tuple[str, str]:
    """Split `INSTITUTION/DOMAIN`; raise UsageError unless it is that."""
    institution, slash, domain = target.partition("/")
    if not slash or not institution or not domain or "/" in domain:
        raise errors.UsageError(
            f"{target!r} is no target: INSTITUTION/DOMAIN is expected, e.g. south.example/checkerboards",
            hop="client",
            hint="ddib domains",
        )
    return institution, domain


@dataclass(frozen=True, slots=True)
class Request:
    """All that is asked of a translation, beside its samples and its two sides.

    Parameters
    ----------
    settings
        How the ODE is integrated on both sides.
    guidance
        How decoding is steered towards `target_class`.
    cycle
        Translate back too, and measure the round trip.
    keep_latents
        Return the latents too. A latent is an invertible encoding: treat it as the sample.
    source_class, target_class
        Class of the samples and class to translate to, by number or name; empty for none.
    without_calibration
        Leave out the calibration that both operators agreed on. Between nodes only.
    left
        Which of `share`, `temperature` and `blend` the calibration decides, and whether `flags` decide `evaluations`,
        where `settings` has the default; empty to insist on the defaults.
    calibration
        Under which the source encodes: the object, its file, or the name of a shipped model that has one. Two models
        of one process only, as all that follows: nodes have agreements, secrets and policies in their place.
    soften
        Noise level of softening before encoding, in units of the sample's deviation; None for the source model's own.
    seed
        Of the softening's noise, and of the noise that `flags` may draw.
    flags
        Flags of the public code (``--timestep_respacing ddim50``), whose sampling is followed exactly.

    Raises
    ------
    UsageError
        A calibration is given and left out.
    CalibrationInvalid
        The file holds none.

    Examples
    --------
    >>> from ddib_fed import Request, Settings
    >>> Request(Settings(evaluations=12, share=0.75)).left
    ('temperature', 'blend')
    """

    settings: Settings = field(default_factory=Settings)
    guidance: Guidance = UNGUIDED
    cycle: bool = False
    keep_latents: bool = False
    source_class: int | str = ""
    target_class: int | str = ""
    without_calibration: bool = False
    left: Sequence[str] = (*DIAL, "evaluations")
    calibration: Calibration | str | Path | None = None
    soften: float | None = None
    seed: int = 0
    flags: str = ""

    def __post_init__(self) -> None:
        default = Settings()
        same = (name for name in self.left if getattr(self.settings, name) == getattr(default, name))
        values: dict[str, Any] = {"left": tuple(name for name in same if name in DIAL or self.flags)}
        values |= {name: str(getattr(self, name)) for name in ("source_class", "target_class")}
        if self.calibration is not None and self.without_calibration:
            raise errors.UsageError("a calibration is given, and left out", hint="choose one of the two")
        if isinstance(self.calibration, str | Path):
            from ddib_fed.calibration.record import Calibration

            values["calibration"] = Calibration.open(self.calibration)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def agreed(self) -> Calibration | None:
        """The calibration, which was read when the request was made."""
        assert not isinstance(self.calibration, str | Path)
        return self.calibration

    def values(self) -> dict[str, Any]:
        """Return what decides a result, as JSON values."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in self.left}
        names = ("cycle", "keep_latents", "source_class", "target_class", "without_calibration")
        own = {name: getattr(self, name) for name in (*names, "soften", "seed", "flags")}
        sha256 = None if self.agreed is None else self.agreed.sha256.hex()
        return {**own, "settings": settings, "guidance": asdict(self.guidance), "calibration": sha256}

    def require_of_nodes(self) -> None:
        """Raise UsageError if something is asked that only two models of one process do."""
        for name in OF_MODELS:
            if getattr(self, name) not in {None, 0, ""}:
                raise errors.UsageError(
                    f"{name} has no effect between nodes, which have policies and secrets in its place",
                    hint=f"leave {name} out",
                )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item or a job failed, or why a job waits: the error that it was at the node."""

    reason: str
    sentence: str = ""
    institution: str = ""  # where it failed, if that is not the own node
    incident: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    differences: tuple[errors.Difference, ...] = ()
    hop: str = ""
    says: str = ""

    @property
    def text(self) -> str:
        """Describe the failure in words of the picture, by whose fault it is, or by the last cause of a time-out."""
        facts, peer = self.facts, self.facts.get("peer") or self.institution
        if self.reason == errors.DeadlineExceeded.reason and "deadline_s" in facts:
            last = f"; last: {facts['last']}" if "last" in facts else ""
            done = facts.get("items_done", "some")
            return f"the deadline of {facts['deadline_s']} s passed, {done} items were done{last}"
        if "picture" in facts:
            return f"{facts['picture']}, and the source's model has not learned such pictures"
        if "found" not in facts:
            return self.sentence
        if self.reason == errors.PeerFault.reason:
            return f"{peer} answered with what cannot be used: {facts['found']}"
        return f"{peer}: {facts['found']}"

    def __str__(self) -> str:
        at = f" at {self.institution}" if self.institution else ""
        return f"{self.text} ({self.reason}){at}" if self.reason else ""

    def error(self, hop: str) -> errors.DdibError:
        kind = errors.error_class(self.reason) if self.reason else errors.JobFailed
        return kind(self.text, hop=hop)


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a job: its state, the size and SHA-256 of its file, and why it failed, if it did."""

    index: int
    state: ItemState
    size_bytes: int = 0
    sha256: bytes = b""
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job at a node.

    Attributes
    ----------
    target
        INSTITUTION/DOMAIN.
    request
        What was asked; settings that are left to the calibration have their defaults.
    state
        QUEUED, RUNNING, FINISHED, FAILED or CANCELLED; `state.ended` says whether it has ended.
    created, finished, expires
        Unix time in seconds; 0 for not yet.
    items
        Empty in a list of jobs.
    error
        Why it failed, or why it waits.
    calibration
        Canonical JSON of the calibration that it uses; empty for none.
    model_size
        Whether results keep the models' size.
    repeated
        Whether its request id had been accepted before.
    """

    job_id: str
    target: str
    request: Request
    state: JobState
    request_id: str = ""
    created: float = 0.0
    finished: float = 0.0
    expires: float = 0.0
    items: tuple[Item, ...] = ()
    item_count: int = 0
    items_done: int = 0
    error: Failure | None = None
    calibration: bytes = b""
    model_size: bool = False
    repeated: bool = False

    @property
    def has_failed_items_alone(self) -> bool:
        return self.state is JobState.FAILED and all(each.state is ItemState.FAILED for each in self.items)

    def require_finished(self, hop: str) -> Job:
        """Return the job if all its items were translated; raise JobFailed or Cancelled if it, or an item, was not.

        `hop` is the node that has it, for the error; empty in one process.
        """
        if self.state is JobState.CANCELLED:
            raise errors.Cancelled(f"job {self.job_id} was cancelled", hop=hop)
        bad = [item for item in self.items if item.state is ItemState.FAILED]
        if self.state is not JobState.FAILED and not bad:
            return self
        what = f"job {self.job_id}"
        if bad:
            what = f"{len(bad)} of {len(self.items)} items of {what}"
        first = self.error or (bad[0].error if bad else None) or Failure("", hop=hop)
        why = f": {first.text} ({first.reason})" if first.reason else ""
        error = errors.JobFailed(
            f"{what} failed{why}",
            hint=f"ddib job show {self.job_id}" if hop else "",  # in one process nothing is kept
            hop=first.hop or hop,
            facts=first.facts,
            differences=first.differences,
            incident=first.incident,
        )
        error.says = first.says
        raise error


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a job; `item`, `step` and `steps` are of the item that moved, if `stage` is set."""

    sequence: int = 0
    state: JobState = JobState.RUNNING
    item: int = 0
    stage: str = ""
    step: int = 0
    steps: int = 0
    reason: str = ""
    items_done: int = 0
    items: int = 0

    @property
    def words(self) -> str:
        """Name the stage for a person."""
        return STAGES.get(self.stage, self.stage)

    @property
    def sentence(self) -> str:
        """Say why the job waits, or why the item failed."""
        return errors.error_class(self.reason).sentence


class Progress:
    """Receives the progress of a run, in the run's thread; a context manager around its calls of the node.

    This base class shows nothing but the first time that the node is waited for.
    """

    done = 0
    """Results that are on the disk."""
    stopped = False
    """Whether no further job is to be submitted."""
    job_id = ""
    names: Sequence[str] = ()
    waits = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def wait(self, error: errors.DdibError, delay_s: float) -> None:
        """Note that a call waits for a node that is away or busy, and is tried again after `delay_s`."""
        if not self.waits:
            say(self.waiting(error, delay_s), err=True)
        self.waits += 1

    @staticmethod
    def waiting(error: errors.DdibError, delay_s: float) -> str:
        """Say that a call waits for the node."""
        again = (
            f"trying again in {delay_s:.1f} s" if isinstance(error, errors.ExhaustedError) else "trying again"
        )
        return f"{error.hop or 'the node'}: {error.detail}; {again}"

    def counted(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Return a function that is called with (done, total) while files are read, or a page is drawn."""
        return bar(what)

    def say(self, line: str) -> None:
        """Show a sentence."""

    def study(self, number: int, study: Study | None) -> None:
        """Note a study that can be translated; None if an earlier run has finished it."""

    def parts(self, number: int, paths: Sequence[Path]) -> None:
        """Note that further jobs are of these items of a study."""

    def study_written(self, number: int, written: WrittenStudy, study: Study | None) -> None:
        """Note that the output of a study is on the disk; `study` is None if an earlier run wrote it."""

    def whole(self, total: int, done: int) -> None:
        """Note the number of files, and how many are on the disk already."""

    def submitted(self, job_id: str, items: int) -> None:
        """Note that the node has accepted a job."""

    def begin(self, job_id: str, names: Sequence[str]) -> None:
        """Note that further events are of this job, whose items have these names."""
        self.job_id, self.names = job_id, names

    def name_of(self, item: int) -> str:
        return self.names[item] if item < len(self.names) else f"item {item}"

    def event(self, event: Event) -> None:
        """Show an event of the job."""

    def written(self, result: Delivered) -> None:
        """Note that a result is on the disk."""

    def job_ended(self, job_id: str, state: JobState) -> None:
        """Note that a job has ended and its results are written."""
