"""The error tree: one table of classes, each with its reason, gRPC status, exit code and public sentence.

The rule: `detail` and `hint` are for the person at this machine and never cross the wire. A peer reads the fixed
public `sentence`, the `reason`, and `facts` (short values that the peer sent itself, or limits that apply to it).
Status and exit code are those of the parent where a class names none.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
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
    """One field in which two contracts differ."""

    field: str
    source: str
    target: str
    remedy: str


class DdibError(Exception):
    """Root of the error tree."""

    reason: ClassVar[str] = "INTERNAL"
    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    sentence: ClassVar[str] = "internal error"

    def __init_subclass__(
        cls, *, reason: str, sentence: str, status: str | None = None, exit_code: ExitCode | None = None
    ) -> None:
        cls.reason, cls.sentence = reason, sentence
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
        self.says = ""

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
class UsageError(
    InputError, reason="USAGE", exit_code=ExitCode.USAGE, sentence="the options contradict each other",
): ...
class ConfigError(InputError, reason="CONFIG_INVALID", sentence="the configuration cannot be used"): ...
# The hint has the command that installs it.
class ExtraMissing(
    InputError, reason="EXTRA_MISSING", exit_code=ExitCode.USAGE, sentence="an optional package is not installed",
): ...
class ImageUnreadable(InputError, reason="IMAGE_UNREADABLE", sentence="the picture cannot be read"): ...
class ImageTooLarge(InputError, reason="IMAGE_TOO_LARGE", sentence="the picture is over the limit"): ...
class PointsUnreadable(
    InputError, reason="POINTS_UNREADABLE",
    sentence="the points cannot be read: a .npy file with an (N, D) array of floats is expected, without pickles",
): ...
class PointsTooMany(
    InputError, reason="POINTS_TOO_MANY", sentence="there are more points or bytes than the limit for one item",
): ...
class ItemsTooMany(
    InputError, reason="ITEMS_TOO_MANY", sentence="there are more files than the node accepts in one job",
): ...
class NotFinite(InputError, reason="NOT_FINITE", sentence="there are values that are NaN or infinite"): ...
class ShapeMismatch(InputError, reason="SHAPE_MISMATCH", sentence="the shape is not the one the model takes"): ...
class PictureMisfit(
    InputError, reason="PICTURE_MISFIT",
    sentence="the picture's type, values or channels are not those that the model takes",
): ...
class KindMismatch(
    InputError, reason="KIND_MISMATCH",
    sentence="the file holds another kind of sample than the model takes: points and pictures differ",
): ...
class SettingsInvalid(InputError, reason="SETTINGS_INVALID", sentence="the settings are not valid"): ...
class MessageInvalid(InputError, reason="MESSAGE_INVALID", sentence="the message breaks the protocol"): ...
class UnknownFields(
    MessageInvalid, reason="UNKNOWN_FIELDS",
    sentence="the message has fields that this protocol version does not know",
): ...
class BundleInvalid(InputError, reason="BUNDLE_INVALID", sentence="the model bundle fails its checks"): ...

# States and conflicts, how work ended, and bugs of ours. Of the client alone: JobFailed, FilesLeftOut, OutOfBounds.
# `differences` names each field.
class ContractMismatch(
    DdibError, reason="CONTRACT_MISMATCH", status="FAILED_PRECONDITION", exit_code=ExitCode.CONTRACT,
    sentence="the two sides' contracts differ",
): ...
class StateConflict(
    DdibError, reason="STATE_CONFLICT", status="FAILED_PRECONDITION", exit_code=ExitCode.CONFLICT,
    sentence="the state does not allow this",
): ...
class RequestIdConflict(
    DdibError, reason="REQUEST_ID_CONFLICT", status="ALREADY_EXISTS", exit_code=ExitCode.CONFLICT,
    sentence="this request id was used before with other content",
): ...
class AlreadyExists(
    DdibError, reason="ALREADY_EXISTS", status="ALREADY_EXISTS", exit_code=ExitCode.CONFLICT,
    sentence="it exists already",
): ...
class ChunkCorrupt(
    DdibError, reason="CHUNK_CORRUPT", status="DATA_LOSS", exit_code=ExitCode.CORRUPT,
    sentence="the bytes received are not those announced",
): ...
# The peer's fault, whatever was asked.
class PeerFault(
    DdibError, reason="PEER_FAULT", status="FAILED_PRECONDITION", exit_code=ExitCode.PEER_FAULT,
    sentence="the peer answered with what the protocol or the contract rules out",
): ...
class Cancelled(
    DdibError, reason="CANCELLED", status="CANCELLED", exit_code=ExitCode.CANCELLED, sentence="cancelled",
): ...
class DeadlineExceeded(
    DdibError, reason="DEADLINE_EXCEEDED", status="DEADLINE_EXCEEDED", exit_code=ExitCode.CANCELLED,
    sentence="the deadline has passed",
): ...
class JobFailed(
    DdibError, reason="JOB_FAILED", status="FAILED_PRECONDITION", exit_code=ExitCode.JOB_FAILED,
    sentence="the job failed",
): ...
class FilesLeftOut(
    DdibError, reason="FILES_LEFT_OUT", status="FAILED_PRECONDITION", exit_code=ExitCode.LEFT_OUT,
    sentence="some files were left out",
): ...
class OutOfBounds(
    DdibError, reason="OUT_OF_BOUNDS", exit_code=ExitCode.OUT_OF_BOUNDS,
    sentence="a measured figure is out of bounds",
): ...
class InternalError(DdibError, reason="INTERNAL", sentence="internal error"): ...

# Refusals of an identity, by policy, or of a latent.
class RefusedError(
    DdibError, reason="REFUSED", status="PERMISSION_DENIED", exit_code=ExitCode.REFUSED, sentence="refused",
): ...
class Unauthenticated(
    RefusedError, reason="UNAUTHENTICATED", status="UNAUTHENTICATED", sentence="no usable certificate was presented",
): ...
class PeerUnknown(RefusedError, reason="PEER_UNKNOWN", sentence="this node has not admitted this identity"): ...
# By the operator of one of the two nodes.
class PeerSuspended(
    RefusedError, reason="PEER_SUSPENDED", sentence="the peer is suspended until an operator resumes it",
): ...
class PolicyDenied(RefusedError, reason="POLICY_DENIED", sentence="the policy of this node does not allow this"): ...
# A picture's is not white noise, or a point's is out of reach of N(0, I).
class LatentNotGaussian(
    RefusedError, reason="LATENT_NOT_GAUSSIAN", sentence="the latent is not one that an encoder makes",
): ...

# A calibration that is not used; each reason is a class.
class CalibrationRefused(RefusedError, reason="CALIBRATION_REFUSED", sentence="the calibration is refused"): ...
class CalibrationUnknown(
    CalibrationRefused, reason="CALIBRATION_UNKNOWN", sentence="this node has no active calibration of this digest",
): ...
class CalibrationExpired(
    CalibrationRefused, reason="CALIBRATION_EXPIRED", sentence="the calibration has expired",
): ...
class CalibrationUnsigned(
    CalibrationRefused, reason="CALIBRATION_UNSIGNED", sentence="the calibration is not signed by both institutions",
): ...
class CalibrationAltered(
    CalibrationRefused, reason="CALIBRATION_ALTERED",
    sentence="a signature of the calibration does not belong to its content",
): ...
class CalibrationSigner(
    CalibrationRefused, reason="CALIBRATION_SIGNER",
    sentence="a signer of the calibration is not a trusted node of its institution",
): ...
class CalibrationKindDenied(
    CalibrationRefused, reason="CALIBRATION_KIND",
    sentence="the policy of this node does not allow this kind of calibration",
): ...
class CalibrationForeign(
    CalibrationRefused, reason="CALIBRATION_FOREIGN", sentence="the calibration is for other institutions or domains",
): ...
class CalibrationUnits(
    CalibrationRefused, reason="CALIBRATION_UNITS", sentence="the calibration is for the units of another model",
): ...
# One was made with a map that the other does not have.
class CalibrationModel(
    CalibrationRefused, reason="CALIBRATION_MODEL",
    sentence="the model was trained with another calibration than this translation's, or with none",
): ...
class CalibrationInvalid(
    CalibrationRefused, reason="CALIBRATION_INVALID",
    sentence="the calibration is malformed, over a limit, or not made from what this node published",
): ...
# Or another optimum is nearly as good.
class CalibrationIneffective(
    CalibrationRefused, reason="CALIBRATION_INEFFECTIVE",
    sentence="the calibration's figures do not show that it is right",
): ...

# What is not there, not now, or used up. Of this machine alone: FileMissing, MemoryExhausted.
class NotFoundError(
    DdibError, reason="NOT_FOUND", status="NOT_FOUND", exit_code=ExitCode.NOT_FOUND, sentence="not found",
): ...
class JobNotFound(NotFoundError, reason="JOB_NOT_FOUND", sentence="no such job"): ...
class ItemNotFound(
    NotFoundError, reason="ITEM_NOT_FOUND", sentence="no such item, or its result is no longer kept",
): ...
class DomainNotFound(NotFoundError, reason="DOMAIN_NOT_FOUND", sentence="no such domain"): ...
class PeerNotFound(NotFoundError, reason="PEER_NOT_FOUND", sentence="no such peer"): ...
class ModelNotFound(NotFoundError, reason="MODEL_NOT_FOUND", sentence="no such model"): ...
class AggregateNotFound(
    NotFoundError, reason="AGGREGATE_NOT_FOUND", sentence="no aggregate of this domain has been published",
): ...
class FileMissing(NotFoundError, reason="FILE_NOT_FOUND", sentence="no such file"): ...
class ExhaustedError(
    DdibError, reason="EXHAUSTED", status="RESOURCE_EXHAUSTED", exit_code=ExitCode.EXHAUSTED,
    sentence="a limit was reached",
): ...
class MemoryExhausted(ExhaustedError, reason="MEMORY_EXHAUSTED", sentence="the memory does not suffice"): ...
class QueueFull(ExhaustedError, reason="QUEUE_FULL", sentence="the queue is full"): ...
# Of the node that reports it, or of this machine.
class DiskFull(ExhaustedError, reason="DISK_FULL", sentence="the disk is full"): ...
class QuotaSpent(ExhaustedError, reason="QUOTA", sentence="the quota is spent"): ...
class TooManyStreams(ExhaustedError, reason="TOO_MANY_STREAMS", sentence="too many streams at once"): ...
class UnavailableError(
    DdibError, reason="UNAVAILABLE", status="UNAVAILABLE", exit_code=ExitCode.UNAVAILABLE,
    sentence="not available now",
): ...
class NotReady(UnavailableError, reason="NOT_READY", sentence="this node is not ready yet"): ...
class Draining(UnavailableError, reason="DRAINING", sentence="this node is draining"): ...
class PeerUnreachable(UnavailableError, reason="PEER_UNREACHABLE", sentence="the peer cannot be reached"): ...
# This process was restarted or has another policy by now.
class ContractUnknown(
    UnavailableError, reason="CONTRACT_UNKNOWN",
    sentence="this contract was not agreed on with this node: negotiate again",
): ...
# fmt: on


def all_errors(root: type[DdibError] = DdibError) -> Iterator[type[DdibError]]:
    """Every class of the tree, the root first."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def error_class(reason: str) -> type[DdibError]:
    return next((c for c in all_errors() if c.reason == reason and c is not DdibError), InternalError)


@contextmanager
def extra(name: str, package: str, what: str, *, otherwise: str = "") -> Iterator[None]:
    """Guard imports of a package of an extra."""
    try:
        yield
    except ImportError as error:
        raise missing(name, package, what, otherwise=otherwise) from error


def missing(name: str, package: str, what: str, *, otherwise: str = "") -> ExtraMissing:
    hint = install_command(name, package) + (f", or {otherwise}" if otherwise else "")
    return ExtraMissing(what, hint=hint, facts={"extra": name, "package": package})


def install_command(name: str, package: str) -> str:
    """A line for a shell that installs what is missing of an extra into the Python that runs; arguments as of
    `extra`.
    """
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
