"""The error tree: one table of classes, each with its reason, gRPC status, exit code and public sentence.

The rule: `detail` and `hint` are for the person at this machine and never cross the wire. A peer reads the fixed
public `sentence`, the `reason`, and `facts` (short values that the peer sent itself, or limits that apply to it).
Status and exit code are those of the parent where a class names none, and the reason is the class's name.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self


class ExitCode(IntEnum):
    """What the `ddib` and node commands end with; documented in docs/troubleshooting.md and tested."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_INPUT = 3
    CONTRACT = 4
    REFUSED = 5
    NOT_FOUND = 6
    CONFLICT = 7
    EXHAUSTED = 8
    UNAVAILABLE = 9
    CORRUPT = 10
    JOB_FAILED = 11
    CANCELLED = 12
    OUT_OF_BOUNDS = 13
    PEER_FAULT = 14
    LEFT_OUT = 15


@dataclass(frozen=True, slots=True)
class Difference:
    field: str
    source: str
    target: str
    remedy: str


class DdibError(Exception):
    reason: ClassVar[str] = "INTERNAL"
    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    sentence: ClassVar[str] = "internal error"

    def __init_subclass__(
        cls, *, sentence: str, reason: str = "", status: str | None = None, exit_code: ExitCode | None = None
    ) -> None:
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__.removesuffix("Error"))
        cls.reason, cls.sentence = reason or words.upper(), sentence
        cls.status, cls.exit_code = status or cls.status, exit_code or cls.exit_code

    def __init__(
        self,
        detail: str = "",
        *,
        hint: str = "",
        hop: str = "",
        facts: Mapping[str, str | int | float] | None = None,
        retry_after_s: float | None = None,
        differences: tuple[Difference, ...] = (),
        incident: str = "",
    ) -> None:
        super().__init__(detail or self.sentence)
        self.detail = detail or self.sentence
        self.hint = hint
        self.hop = hop
        self.facts: dict[str, str] = {k: str(v) for k, v in (facts or {}).items()}
        self.retry_after_s = retry_after_s
        self.differences = differences
        self.incident = incident
        self.refused: dict[int, str] = {}
        """The reasons of the items of a job that cannot be used, by their numbers."""
        self.says = ""

    def __str__(self) -> str:
        return self.detail

    def kept(self) -> Self:
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    @classmethod
    def said_by(cls, institution: str) -> str:
        named = f"the node of {institution}" if institution else "this node"
        return cls.sentence.replace("this node", named)


# fmt: off
# What was given cannot be used. Of this machine alone, and never sent: usage, configuration, extras.
class InputError(
    DdibError, reason="INPUT_INVALID", status="INVALID_ARGUMENT", exit_code=ExitCode.BAD_INPUT,
    sentence="the input cannot be used",
): ...
class UsageError(InputError, sentence="the options contradict each other", exit_code=ExitCode.USAGE): ...
class ConfigError(InputError, sentence="the configuration cannot be used", reason="CONFIG_INVALID"): ...
# The hint has the command that installs it.
class ExtraMissing(InputError, sentence="an optional package is not installed", exit_code=ExitCode.USAGE): ...
class ImageUnreadable(InputError, sentence="the picture cannot be read"): ...
class ImageTooLarge(InputError, sentence="the picture is over the limit"): ...
class PointsUnreadable(
    InputError,
    sentence="the points cannot be read: a .npy file with an (N, D) array of floats is expected, without pickles",
): ...
class PointsTooMany(InputError, sentence="there are more points or bytes than the limit for one item"): ...
class ItemsTooMany(InputError, sentence="there are more files than the node accepts in one job"): ...
class NotFinite(InputError, sentence="there are values that are NaN or infinite"): ...
class ShapeMismatch(InputError, sentence="the shape is not the one the model takes"): ...
class PictureMisfit(
    InputError, sentence="the picture's type, values or channels are not those that the model takes",
): ...
class KindMismatch(
    InputError, sentence="the file holds another kind of sample than the model takes: points and pictures differ",
): ...
class SettingsInvalid(InputError, sentence="the settings are not valid"): ...
class MessageInvalid(InputError, sentence="the message breaks the protocol"): ...
class UnknownFields(MessageInvalid, sentence="the message has fields that this protocol version does not know"): ...
class BundleInvalid(InputError, sentence="the model bundle fails its checks"): ...

# States and conflicts, how work ended, and bugs of ours. Of the client alone: JobFailed, FilesLeftOut, OutOfBounds.
# `differences` names each field.
class ContractMismatch(
    DdibError, sentence="the two sides' contracts differ", status="FAILED_PRECONDITION", exit_code=ExitCode.CONTRACT,
): ...
class StateConflict(
    DdibError, sentence="the state does not allow this", status="FAILED_PRECONDITION", exit_code=ExitCode.CONFLICT,
): ...
class RequestIdConflict(
    DdibError, status="ALREADY_EXISTS", exit_code=ExitCode.CONFLICT,
    sentence="this request id was used before with other content",
): ...
class AlreadyExists(DdibError, sentence="it exists already", status="ALREADY_EXISTS", exit_code=ExitCode.CONFLICT): ...
class ChunkCorrupt(
    DdibError, sentence="the bytes received are not those announced", status="DATA_LOSS", exit_code=ExitCode.CORRUPT,
): ...
# The peer's fault, whatever was asked.
class PeerFault(
    DdibError, status="FAILED_PRECONDITION", exit_code=ExitCode.PEER_FAULT,
    sentence="the peer answered with what the protocol or the contract rules out",
): ...
class Cancelled(DdibError, sentence="cancelled", status="CANCELLED", exit_code=ExitCode.CANCELLED): ...
class DeadlineExceeded(
    DdibError, sentence="the deadline has passed", status="DEADLINE_EXCEEDED", exit_code=ExitCode.CANCELLED,
): ...
class JobFailed(DdibError, sentence="the job failed", status="FAILED_PRECONDITION", exit_code=ExitCode.JOB_FAILED): ...
class FilesLeftOut(
    DdibError, sentence="some files were left out", status="FAILED_PRECONDITION", exit_code=ExitCode.LEFT_OUT,
): ...
class OutOfBounds(DdibError, sentence="a measured figure is out of bounds", exit_code=ExitCode.OUT_OF_BOUNDS): ...
class InternalError(DdibError, sentence="internal error"): ...

# Refusals of an identity, by policy, or of a latent.
class RefusedError(DdibError, sentence="refused", status="PERMISSION_DENIED", exit_code=ExitCode.REFUSED): ...
class Unauthenticated(RefusedError, sentence="no usable certificate was presented", status="UNAUTHENTICATED"): ...
class PeerUnknown(RefusedError, sentence="this node has not admitted this identity"): ...
# By the operator of one of the two nodes.
class PeerSuspended(RefusedError, sentence="the peer is suspended until an operator resumes it"): ...
class PolicyDenied(RefusedError, sentence="the policy of this node does not allow this"): ...
# A picture's is not white noise, or a point's is out of reach of N(0, I).
class LatentNotGaussian(RefusedError, sentence="the latent is not one that an encoder makes"): ...

# A calibration that is not used; each reason is a class.
class CalibrationRefused(RefusedError, sentence="the calibration is refused"): ...
class CalibrationUnknown(CalibrationRefused, sentence="this node has no active calibration of this digest"): ...
class CalibrationExpired(CalibrationRefused, sentence="the calibration has expired"): ...
class CalibrationUnsigned(CalibrationRefused, sentence="the calibration is not signed by both institutions"): ...
class CalibrationAltered(
    CalibrationRefused, sentence="a signature of the calibration does not belong to its content",
): ...
class CalibrationSigner(
    CalibrationRefused, sentence="a signer of the calibration is not a trusted node of its institution",
): ...
class CalibrationKindDenied(
    CalibrationRefused, reason="CALIBRATION_KIND",
    sentence="the policy of this node does not allow this kind of calibration",
): ...
class CalibrationForeign(CalibrationRefused, sentence="the calibration is for other institutions or domains"): ...
class CalibrationUnits(CalibrationRefused, sentence="the calibration is for the units of another model"): ...
# One was made with a map that the other does not have.
class CalibrationModel(
    CalibrationRefused, sentence="the model was trained with another calibration than this translation's, or with none",
): ...
class CalibrationInvalid(
    CalibrationRefused,
    sentence="the calibration is malformed, over a limit, or not made from what this node published",
): ...
# Or another optimum is nearly as good.
class CalibrationIneffective(CalibrationRefused, sentence="the calibration's figures do not show that it is right"): ...

# What is not there, not now, or used up. Of this machine alone: FileMissing, MemoryExhausted.
class NotFoundError(DdibError, sentence="not found", status="NOT_FOUND", exit_code=ExitCode.NOT_FOUND): ...
class JobNotFound(NotFoundError, sentence="no such job"): ...
class ItemNotFound(NotFoundError, sentence="no such item, or its result is no longer kept"): ...
class DomainNotFound(NotFoundError, sentence="no such domain"): ...
class PeerNotFound(NotFoundError, sentence="no such peer"): ...
class ModelNotFound(NotFoundError, sentence="no such model"): ...
class AggregateNotFound(NotFoundError, sentence="no aggregate of this domain has been published"): ...
class FileMissing(NotFoundError, sentence="no such file", reason="FILE_NOT_FOUND"): ...
class ExhaustedError(
    DdibError, sentence="a limit was reached", status="RESOURCE_EXHAUSTED", exit_code=ExitCode.EXHAUSTED,
): ...
class MemoryExhausted(ExhaustedError, sentence="the memory does not suffice"): ...
class QueueFull(ExhaustedError, sentence="the queue is full"): ...
# Of the node that reports it, or of this machine.
class DiskFull(ExhaustedError, sentence="the disk is full"): ...
class QuotaSpent(ExhaustedError, sentence="the quota is spent", reason="QUOTA"): ...
class TooManyStreams(ExhaustedError, sentence="too many streams at once"): ...
class UnavailableError(
    DdibError, sentence="not available now", status="UNAVAILABLE", exit_code=ExitCode.UNAVAILABLE,
): ...
class NotReady(UnavailableError, sentence="this node is not ready yet"): ...
class Draining(UnavailableError, sentence="this node is draining"): ...
class PeerUnreachable(UnavailableError, sentence="the peer cannot be reached"): ...
# This process was restarted or has another policy by now.
class ContractUnknown(UnavailableError, sentence="this contract was not agreed on with this node: negotiate again"): ...
# fmt: on


def all_errors(root: type[DdibError] = DdibError) -> Iterator[type[DdibError]]:
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def error_class(reason: str) -> type[DdibError]:
    return next((c for c in all_errors() if c.reason == reason and c is not DdibError), InternalError)


def first_of(refused: Mapping[int, DdibError]) -> DdibError:
    """Return the error of the first item, which names the other refused items."""
    first = refused[min(refused)]
    first.refused = {number: error.reason for number, error in refused.items()}
    return first


@contextmanager
def extra(name: str, package: str, what: str, *, otherwise: str = "") -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise missing(name, package, what, otherwise=otherwise) from error


def missing(name: str, package: str, what: str, *, otherwise: str = "") -> ExtraMissing:
    hint = install_command(name, package) + (f", or {otherwise}" if otherwise else "")
    return ExtraMissing(what, hint=hint, facts={"extra": name, "package": package})


def install_command(name: str, package: str) -> str:
    """Return the shell command that installs an extra into the Python that runs; arguments as of `extra`."""
    from importlib import metadata  # which only an error needs

    try:
        declared = metadata.requires("ddib-fed") or []
    except metadata.PackageNotFoundError:
        declared = []
    lacking = []
    for requirement, _, marker in (each.partition(";") for each in declared):
        if re.search(rf"extra == ['\"]{name}['\"]", marker):
            try:
                metadata.version(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
            except metadata.PackageNotFoundError:
                lacking.append(requirement.strip())
    return shlex.join([sys.executable, "-m", "pip", "install", *(lacking or package.split())])


# The default hint by reason, for errors without their own; parents of the class are tried after it.
NEXT_STEPS: Mapping[str, str] = {
    "INTERNAL": "give the incident's id, where there is one, to the node's operator, whose log has the rest",
    "INPUT_INVALID": "correct what the message names, then repeat the command",
    "CONFIG_INVALID": "tell the node's operator: its log, and its `check --config node.toml`, name the setting",
    "USAGE": "the command's --help",
    "SETTINGS_INVALID": "the command's --help says what each option takes",
    "MESSAGE_INVALID": "ddib --version on both machines: client and node may be of different releases",
    "SHAPE_MISMATCH": "`ddib domains` shows the shapes that nodes take, `ddib model show MODEL` that of a model",
    "PICTURE_MISFIT": "convert the picture to the units of the model, or use a model of its units",
    "KIND_MISMATCH": "`ddib domains` shows what nodes take, `ddib model show MODEL` what a model takes",
    "IMAGE_UNREADABLE": "open the file in a viewer and save it again, as PNG, JPEG or TIFF",
    "IMAGE_TOO_LARGE": "make the picture smaller, or cut it into several files",
    "NOT_FINITE": "replace the values that are NaN or infinite, e.g. by numpy.nan_to_num",
    "POINTS_UNREADABLE": "numpy.save(file, points) with points of shape (N, D) writes such a file",
    "POINTS_TOO_MANY": "split the file into several and translate them in one call",
    "ITEMS_TOO_MANY": "ddib translate ... --detach makes jobs as small as the node allows; the operator can raise "
    "[limits] max_items_per_job in node.toml",
    "BUNDLE_INVALID": "ddib model show DIR names the check that fails",
    "CONTRACT_MISMATCH": "send the table to both operators; ddib domains lists what can be reached now",
    "STATE_CONFLICT": "ddib job list shows the job's state",
    "REFUSED": "ask the operator of the node that refused",
    "CALIBRATION_REFUSED": "the operators of both nodes: ddib calibrate list; or ddib translate --calibration none",
    "CALIBRATION_EXPIRED": "the operator: ddib calibrate --peer INSTITUTION/DOMAIN; or ddib translate --calibration "
    "none",
    "CALIBRATION_KIND": "the operators: [policy] calibration in node.toml; or ddib translate --calibration none",
    "UNAUTHENTICATED": "`ddib doctor`, at a node `ddib pki show`, names what is wrong with the certificate",
    "PEER_UNKNOWN": "a client: its operator (ddib pki show lists it); a node: the operators exchange peer files, "
    "ddib peer export and ddib peer add",
    "PEER_SUSPENDED": "accepted jobs wait; the operator of the node that refused lifts it: ddib peer suspend --undo",
    "LATENT_NOT_GAUSSIAN": "leave it out, or train the source's model longer and with data like it",
    "NOT_FOUND": "check the name or the path",
    "JOB_NOT_FOUND": "ddib job list",
    "ITEM_NOT_FOUND": "ddib job show JOB",
    "DOMAIN_NOT_FOUND": "ddib domains",
    "PEER_NOT_FOUND": "ddib domains, or ddib peer list at the node",
    "MODEL_NOT_FOUND": "`ddib model list` lists the models that ship, `ddib model train` makes one",
    "REQUEST_ID_CONFLICT": "submit again: a new request id is made for each job",
    "ALREADY_EXISTS": "choose another folder, or --force",
    "EXHAUSTED": "try again later; ddib job list shows what is under way",
    "UNAVAILABLE": "run ddib doctor, then repeat the command",
    "NOT_READY": "repeat the command in a moment",
    "DRAINING": "repeat the command when the node is back",
    "CHUNK_CORRUPT": "repeat the command; the bytes were damaged in transit",
    "CANCELLED": "ddib job list",
    "DEADLINE_EXCEEDED": "translate fewer or smaller files at once",
    "JOB_FAILED": "ddib job show JOB",
    "FILES_LEFT_OUT": "repair the listed files, then the same command again",
    "PEER_FAULT": "tell the operator of that institution; ddib domains lists what can be reached now",
    "DISK_FULL": "df -h shows the disks of this machine; a node's own are its operator's",
    "OUT_OF_BOUNDS": "the report names the figure",
}


def next_step(error: DdibError) -> str:
    """Return the error's own hint, else the table's line for its class or the nearest parent."""
    if error.hint:
        return error.hint
    policy, least = error.facts.get("policy", ""), error.facts.get("least", "")
    options = {
        "least_evaluations": "--evaluations ",
        "least_depth": "--set depth=",
        "least_share": "--share ",
    }
    if policy in options and re.fullmatch(r"[\d.]{1,6}", least):
        return f"{options[policy]}{least}, or the operators of both nodes lower policy.{policy}"
    return _of_class(error, NEXT_STEPS)


def next_steps(errors: Iterable[DdibError]) -> str:
    steps = dict.fromkeys(step for error in errors if (step := next_step(error)))
    return "\n".join([*steps][:3])


# By reason, for somebody at the page: an error's own hint is for a shell. Parents of the class are tried after it.
STEPS: Mapping[str, str] = {
    "INTERNAL": "give the incident's number, where there is one, to the operator of your node",
    "INPUT_INVALID": "correct the file, or leave it out, and drop it again",
    "USAGE": "choose otherwise, or rename the file, and translate again",
    "SETTINGS_INVALID": "choose otherwise on the start page",
    "CONFIG_INVALID": "ask the operator of your node",
    "IMAGE_UNREADABLE": "open it in a viewer and save it again as PNG, JPEG or TIFF, or leave it out",
    "PICTURE_MISFIT": "bring its values to the range that the message names, or leave it out",
    "CONTRACT_MISMATCH": "tell the operators of both nodes; choose another domain meanwhile",
    "STATE_CONFLICT": "load the page again",
    "REFUSED": "ask the operator of the node that refused",
    "UNAUTHENTICATED": "ask the operator of your node for a new certificate",
    "LATENT_NOT_GAUSSIAN": "leave it out, or drop a picture like those that your node's model was trained on",
    "NOT_FOUND": "go back to the start page, and choose again",
    "ALREADY_EXISTS": "move the earlier results away, and translate again",
    "EXHAUSTED": "wait a while, and translate again; what is finished is here",
    "DISK_FULL": "make room on the disk, and translate again; what is finished is here",
    "UNAVAILABLE": "wait a while, and translate again; ask the operator of your node if it stays so",
    "CHUNK_CORRUPT": "translate again: the bytes were damaged on the way",
    "CANCELLED": "drop the rest again to continue",
    "DEADLINE_EXCEEDED": "translate again, fewer files at once",
    "JOB_FAILED": "translate again; ask the operator of your node if it fails again",
    "FILES_LEFT_OUT": "repair what is listed, or choose otherwise, and drop it again; what was translated is here",
    "PEER_FAULT": "tell the operator of that institution; choose another domain meanwhile",
}


def step_in_words(error: DdibError) -> str:
    """Return the next step for a person at the page, without a shell command where possible."""
    if isinstance(error, ExtraMissing):
        return f"in a terminal: {error.hint}; then start the page again"
    return _of_class(error, STEPS)


def _of_class(error: DdibError, steps: Mapping[str, str]) -> str:
    reasons = (str(getattr(kind, "reason", "")) for kind in type(error).__mro__)
    return next((steps[reason] for reason in reasons if reason in steps), "")
