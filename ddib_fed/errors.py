"""The error tree; each class fixes what the peer may read and the exit code.

The rule: `detail` and `hint` are for the person at this machine and never cross the wire. A peer reads the fixed
public `sentence`, the `reason`, and `facts` (short values that the peer sent itself, or limits that apply to it).

    DdibError
    ├── InputError                 INVALID_ARGUMENT      what was given cannot be used
    │   ├── UsageError             (local only)          options that contradict each other
    │   ├── ConfigError            (local only)          node.toml, client.toml
    │   ├── ExtraMissing           (local only)          an optional package is not installed
    │   ├── ImageUnreadable, ImageTooLarge, PointsUnreadable, PointsTooMany, NotFinite
    │   ├── ShapeMismatch, PictureMisfit, KindMismatch
    │   ├── SettingsInvalid, MessageInvalid, UnknownFields
    │   └── BundleInvalid          (mostly local)        a model on disk that fails its checks
    ├── ContractMismatch           FAILED_PRECONDITION   carries the differing fields, both values, what to do
    ├── StateConflict              FAILED_PRECONDITION   the job is not in a state that allows this
    ├── RefusedError
    │   ├── Unauthenticated        UNAUTHENTICATED       no usable certificate
    │   ├── PeerUnknown            PERMISSION_DENIED     a valid certificate of an identity not admitted
    │   ├── PolicyDenied           PERMISSION_DENIED
    │   ├── LatentNotGaussian      PERMISSION_DENIED
    │   └── CalibrationRefused     PERMISSION_DENIED     CalibrationUnknown, -Expired, -Unsigned, -Altered, -Signer,
    │                                                    -KindDenied, -Foreign, -Units, -Invalid, -Ineffective
    ├── NotFoundError              NOT_FOUND             JobNotFound, ItemNotFound, DomainNotFound, PeerNotFound,
    │                                                    ModelNotFound, AggregateNotFound, FileMissing (local)
    ├── RequestIdConflict          ALREADY_EXISTS
    ├── AlreadyExists              ALREADY_EXISTS        (local: will not overwrite)
    ├── ExhaustedError             RESOURCE_EXHAUSTED    QueueFull, QuotaSpent, TooManyStreams, MemoryExhausted (local)
    ├── UnavailableError           UNAVAILABLE           NotReady, Draining, PeerUnreachable, ContractUnknown
    ├── ChunkCorrupt               DATA_LOSS
    ├── Cancelled                  CANCELLED
    ├── DeadlineExceeded           DEADLINE_EXCEEDED
    ├── JobFailed                  (client)              a failed job, with its recorded reason
    ├── OutOfBounds                (client)              the demo's figures are out of bounds
    └── InternalError              INTERNAL              "internal error, incident ID"; our bugs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What the `ddib` and node commands end with; documented in docs/cli.md and tested."""

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


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which two contracts differ.

    Attributes:
        field: Name of the field in the contract, e.g. ``sample_shape``.
        source: The source side's value, as text.
        target: The target side's value, as text.
        remedy: What to do about it, one sentence.
    """

    field: str
    source: str
    target: str
    remedy: str


class DdibError(Exception):
    """Root of the error tree.

    Args:
        detail: What failed, with the thing's name; for this machine's log and terminal only.
        hint: The next command or step to try; for this machine only.
        hop: Where it failed, e.g. ``client``, ``source north.example``, ``target south.example``.
        facts: Short values that may cross the wire.
        retry_after_s: Seconds after which a retry makes sense.
        differences: Fields in which contracts differ (ContractMismatch only).
        incident: The id under which the failing node logged it; set on errors read from the wire.
    """

    reason: ClassVar[str] = "INTERNAL"
    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    sentence: ClassVar[str] = "internal error"

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


class InputError(DdibError):
    """Input that cannot be used."""

    reason = "INPUT_INVALID"
    status = "INVALID_ARGUMENT"
    exit_code = ExitCode.BAD_INPUT
    sentence = "the input cannot be used"


class UsageError(InputError):
    """Options that contradict each other; local."""

    reason = "USAGE"
    exit_code = ExitCode.USAGE
    sentence = "the options contradict each other"


class ConfigError(InputError):
    """A configuration file that cannot be used; local."""

    reason = "CONFIG_INVALID"
    sentence = "the configuration cannot be used"


class ExtraMissing(InputError):
    """A package of an optional extra is not installed; the hint has the command that installs it."""

    reason = "EXTRA_MISSING"
    exit_code = ExitCode.USAGE
    sentence = "an optional package is not installed"


class ImageUnreadable(InputError):
    """Bytes that are not a picture of an accepted format."""

    reason = "IMAGE_UNREADABLE"
    sentence = "the picture cannot be read"


class ImageTooLarge(InputError):
    """A picture over the limits on pixels, frames or bytes."""

    reason = "IMAGE_TOO_LARGE"
    sentence = "the picture is over the limit"


class PointsUnreadable(InputError):
    """Bytes that are not a .npy array of numbers."""

    reason = "POINTS_UNREADABLE"
    sentence = (
        "the points cannot be read: a .npy file with an (N, D) array of floats is expected, without pickles"
    )


class PointsTooMany(InputError):
    """More points, or more bytes, than the node accepts in one item."""

    reason = "POINTS_TOO_MANY"
    sentence = "there are more points or bytes than the limit for one item"


class NotFinite(InputError):
    """NaN or infinity where numbers are needed."""

    reason = "NOT_FINITE"
    sentence = "there are values that are NaN or infinite"


class ShapeMismatch(InputError):
    """An array whose shape is not the model's."""

    reason = "SHAPE_MISMATCH"
    sentence = "the shape is not the one the model takes"


class PictureMisfit(InputError):
    """A picture whose type, values or channels do not fit the model; see `samples.units`."""

    reason = "PICTURE_MISFIT"
    sentence = "the picture's type, values or channels are not those that the model takes"


class KindMismatch(InputError):
    """Points for a picture model, or a picture for a point model."""

    reason = "KIND_MISMATCH"
    sentence = "the file holds another kind of sample than the model takes: points and pictures differ"


class SettingsInvalid(InputError):
    """A solver, grid, number of steps or option that does not exist or is out of range."""

    reason = "SETTINGS_INVALID"
    sentence = "the settings are not valid"


class MessageInvalid(InputError):
    """A message or a stream that violates the protocol."""

    reason = "MESSAGE_INVALID"
    sentence = "the message breaks the protocol"


class UnknownFields(MessageInvalid):
    """A message with fields that the agreed protocol version does not know."""

    reason = "UNKNOWN_FIELDS"
    sentence = "the message has fields that this protocol version does not know"


class BundleInvalid(InputError):
    """A model on disk, or a checkpoint, that fails its checks."""

    reason = "BUNDLE_INVALID"
    sentence = "the model bundle fails its checks"


class ContractMismatch(DdibError):
    """Two sides whose contracts differ; `differences` names each field."""

    reason = "CONTRACT_MISMATCH"
    status = "FAILED_PRECONDITION"
    exit_code = ExitCode.CONTRACT
    sentence = "the two sides' contracts differ"


class StateConflict(DdibError):
    """A job whose state does not allow the request."""

    reason = "STATE_CONFLICT"
    status = "FAILED_PRECONDITION"
    exit_code = ExitCode.CONFLICT
    sentence = "the state does not allow this"


class RefusedError(DdibError):
    """The caller is not permitted to do this."""

    reason = "REFUSED"
    status = "PERMISSION_DENIED"
    exit_code = ExitCode.REFUSED
    sentence = "refused"


class Unauthenticated(RefusedError):
    """No certificate that the node can use."""

    reason = "UNAUTHENTICATED"
    status = "UNAUTHENTICATED"
    sentence = "no usable certificate was presented"


class PeerUnknown(RefusedError):
    """A certificate of an identity that is not admitted."""

    reason = "PEER_UNKNOWN"
    sentence = "this identity has not been admitted here"


class PolicyDenied(RefusedError):
    """The node's policy does not allow the call."""

    reason = "POLICY_DENIED"
    sentence = "the policy of this node does not allow this"


class LatentNotGaussian(RefusedError):
    """A latent that no encoder produces: a picture's is not white noise, or a point's is out of reach of N(0, I)."""

    reason = "LATENT_NOT_GAUSSIAN"
    sentence = "the latent is not one that an encoder makes"


class CalibrationRefused(RefusedError):
    """A calibration that is not used; each reason is a class below."""

    reason = "CALIBRATION_REFUSED"
    sentence = "the calibration is refused"


class CalibrationUnknown(CalibrationRefused):
    """No calibration of this digest is stored here, or it is not active any more."""

    reason = "CALIBRATION_UNKNOWN"
    sentence = "no active calibration of this digest is stored here"


class CalibrationExpired(CalibrationRefused):
    """Its time has ended."""

    reason = "CALIBRATION_EXPIRED"
    sentence = "the calibration has expired"


class CalibrationUnsigned(CalibrationRefused):
    """A signature of one of the two institutions is missing."""

    reason = "CALIBRATION_UNSIGNED"
    sentence = "the calibration is not signed by both institutions"


class CalibrationAltered(CalibrationRefused):
    """A signature is not one over this content."""

    reason = "CALIBRATION_ALTERED"
    sentence = "a signature of the calibration does not belong to its content"


class CalibrationSigner(CalibrationRefused):
    """It was signed by somebody who is not, or no longer, trusted to sign for the institution."""

    reason = "CALIBRATION_SIGNER"
    sentence = "a signer of the calibration is not a trusted node of its institution"


class CalibrationKindDenied(CalibrationRefused):
    """The policy does not list its kind."""

    reason = "CALIBRATION_KIND"
    sentence = "the policy of this node does not allow this kind of calibration"


class CalibrationForeign(CalibrationRefused):
    """It is between other institutions or domains."""

    reason = "CALIBRATION_FOREIGN"
    sentence = "the calibration is for other institutions or domains"


class CalibrationUnits(CalibrationRefused):
    """Its numbers are in the units of another model, e.g. one that was replaced."""

    reason = "CALIBRATION_UNITS"
    sentence = "the calibration is for the units of another model"


class CalibrationModel(CalibrationRefused):
    """The model and the calibration do not belong together: one was made with a map that the other does not have."""

    reason = "CALIBRATION_MODEL"
    sentence = "the model was trained with another calibration than this translation's, or with none"


class CalibrationInvalid(CalibrationRefused):
    """It is no calibration, is over a limit, or names an aggregate that was not published here."""

    reason = "CALIBRATION_INVALID"
    sentence = "the calibration is malformed, over a limit, or not made from what was published here"


class CalibrationIneffective(CalibrationRefused):
    """Its figures are no better than none, or another optimum is nearly as good."""

    reason = "CALIBRATION_INEFFECTIVE"
    sentence = "the calibration's figures do not show that it is right"


class NotFoundError(DdibError):
    """Something that does not exist."""

    reason = "NOT_FOUND"
    status = "NOT_FOUND"
    exit_code = ExitCode.NOT_FOUND
    sentence = "not found"


class JobNotFound(NotFoundError):
    """No such job of this client."""

    reason = "JOB_NOT_FOUND"
    sentence = "no such job"


class ItemNotFound(NotFoundError):
    """No such item, or its result is no longer kept."""

    reason = "ITEM_NOT_FOUND"
    sentence = "no such item, or its result is no longer kept"


class DomainNotFound(NotFoundError):
    """No such target domain."""

    reason = "DOMAIN_NOT_FOUND"
    sentence = "no such domain"


class PeerNotFound(NotFoundError):
    """No such peer."""

    reason = "PEER_NOT_FOUND"
    sentence = "no such peer"


class ModelNotFound(NotFoundError):
    """No model where one is expected."""

    reason = "MODEL_NOT_FOUND"
    sentence = "no such model"


class AggregateNotFound(NotFoundError):
    """The target's operator has published no aggregate."""

    reason = "AGGREGATE_NOT_FOUND"
    sentence = "no aggregate of this domain has been published"


class FileMissing(NotFoundError):
    """No file where one is expected; local."""

    reason = "FILE_NOT_FOUND"
    sentence = "no such file"


class RequestIdConflict(DdibError):
    """The same request id with other content."""

    reason = "REQUEST_ID_CONFLICT"
    status = "ALREADY_EXISTS"
    exit_code = ExitCode.CONFLICT
    sentence = "this request id was used before with other content"


class AlreadyExists(DdibError):
    """Something exists already and is not overwritten."""

    reason = "ALREADY_EXISTS"
    status = "ALREADY_EXISTS"
    exit_code = ExitCode.CONFLICT
    sentence = "it exists already"


class ExhaustedError(DdibError):
    """A limit was reached; a later retry may succeed."""

    reason = "EXHAUSTED"
    status = "RESOURCE_EXHAUSTED"
    exit_code = ExitCode.EXHAUSTED
    sentence = "a limit was reached"


class MemoryExhausted(ExhaustedError):
    """Not enough memory for the smallest piece of the work; local."""

    reason = "MEMORY_EXHAUSTED"
    sentence = "the memory does not suffice"


class QueueFull(ExhaustedError):
    """The node holds as many unfinished jobs as it may."""

    reason = "QUEUE_FULL"
    sentence = "the queue is full"


class QuotaSpent(ExhaustedError):
    """The peer's quota is spent."""

    reason = "QUOTA"
    sentence = "the quota is spent"


class TooManyStreams(ExhaustedError):
    """Too many streams at once, in all or for one identity."""

    reason = "TOO_MANY_STREAMS"
    sentence = "too many streams at once"


class UnavailableError(DdibError):
    """Not now; the same call may succeed later."""

    reason = "UNAVAILABLE"
    status = "UNAVAILABLE"
    exit_code = ExitCode.UNAVAILABLE
    sentence = "not available now"


class NotReady(UnavailableError):
    """The model is not loaded and warm yet."""

    reason = "NOT_READY"
    sentence = "the node is not ready yet"


class Draining(UnavailableError):
    """The node is finishing its work and accepts no more."""

    reason = "DRAINING"
    sentence = "the node is draining"


class PeerUnreachable(UnavailableError):
    """The other node does not answer."""

    reason = "PEER_UNREACHABLE"
    sentence = "the peer cannot be reached"


class ContractUnknown(UnavailableError):
    """A contract unknown to this process, which was restarted: negotiate again."""

    reason = "CONTRACT_UNKNOWN"
    sentence = "this contract was not agreed on with this node: negotiate again"


class ChunkCorrupt(DdibError):
    """Bytes whose digest, order or size differs from what was announced."""

    reason = "CHUNK_CORRUPT"
    status = "DATA_LOSS"
    exit_code = ExitCode.CORRUPT
    sentence = "the bytes received are not those announced"


class Cancelled(DdibError):
    """Cancelled by the caller."""

    reason = "CANCELLED"
    status = "CANCELLED"
    exit_code = ExitCode.CANCELLED
    sentence = "cancelled"


class DeadlineExceeded(DdibError):
    """The deadline passed."""

    reason = "DEADLINE_EXCEEDED"
    status = "DEADLINE_EXCEEDED"
    exit_code = ExitCode.CANCELLED
    sentence = "the deadline has passed"


class JobFailed(DdibError):
    """A failed job, seen from the client."""

    reason = "JOB_FAILED"
    status = "FAILED_PRECONDITION"
    exit_code = ExitCode.JOB_FAILED
    sentence = "the job failed"


class OutOfBounds(DdibError):
    """A measured figure is not within its bound."""

    reason = "OUT_OF_BOUNDS"
    exit_code = ExitCode.OUT_OF_BOUNDS
    sentence = "a measured figure is out of bounds"


class InternalError(DdibError):
    """A bug of ours or an unforeseen failure."""


def all_errors(root: type[DdibError] = DdibError) -> Iterator[type[DdibError]]:
    """Every class of the tree, the root first."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def error_class(reason: str) -> type[DdibError]:
    """The class for a reason read from the wire; `InternalError` for one that this release does not know."""
    return next((c for c in all_errors() if c.reason == reason and c is not DdibError), InternalError)
