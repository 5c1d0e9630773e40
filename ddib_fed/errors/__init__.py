"""The error tree; each class fixes what the peer may read and the exit code.

The rule: `detail` and `hint` are for the person at this machine and never cross the wire. A peer reads the fixed
public `sentence`, the `reason`, and `facts` (short values that the peer sent itself, or limits that apply to it).

    DdibError
    ├── InputError                 INVALID_ARGUMENT      what was given cannot be used
    │   ├── UsageError             (local only)          options that contradict each other
    │   ├── ConfigError            (local only)          node.toml, client.toml
    │   ├── ExtraMissing           (local only)          an optional package is not installed
    │   ├── ImageUnreadable, ImageTooLarge, PointsUnreadable, PointsTooMany, ItemsTooMany
    │   ├── NotFinite, ShapeMismatch, PictureMisfit, KindMismatch
    │   ├── SettingsInvalid, MessageInvalid, UnknownFields
    │   └── BundleInvalid          (mostly local)        a model on disk that fails its checks
    ├── ContractMismatch           FAILED_PRECONDITION   carries the differing fields, both values, what to do
    ├── StateConflict              FAILED_PRECONDITION   the job is not in a state that allows this
    ├── RefusedError
    │   ├── Unauthenticated        UNAUTHENTICATED       no usable certificate
    │   ├── PeerUnknown            PERMISSION_DENIED     a valid certificate of an identity not admitted
    │   ├── PeerSuspended          PERMISSION_DENIED     an admitted peer that an operator suspended for now
    │   ├── PolicyDenied           PERMISSION_DENIED
    │   ├── LatentNotGaussian      PERMISSION_DENIED
    │   └── CalibrationRefused     PERMISSION_DENIED     CalibrationUnknown, -Expired, -Unsigned, -Altered, -Signer,
    │                                                    -KindDenied, -Foreign, -Units, -Invalid, -Ineffective
    ├── NotFoundError              NOT_FOUND             JobNotFound, ItemNotFound, DomainNotFound, PeerNotFound,
    │                                                    ModelNotFound, AggregateNotFound, FileMissing (local)
    ├── RequestIdConflict          ALREADY_EXISTS
    ├── AlreadyExists              ALREADY_EXISTS        (local: will not overwrite)
    ├── ExhaustedError             RESOURCE_EXHAUSTED    QueueFull, DiskFull, QuotaSpent, TooManyStreams,
    │                                                    MemoryExhausted (local)
    ├── UnavailableError           UNAVAILABLE           NotReady, Draining, PeerUnreachable, ContractUnknown
    ├── ChunkCorrupt               DATA_LOSS
    ├── PeerFault                  FAILED_PRECONDITION   a peer's answer that cannot be: its fault, with its name
    ├── Cancelled                  CANCELLED
    ├── DeadlineExceeded           DEADLINE_EXCEEDED
    ├── JobFailed                  (client)              a failed job, with its recorded reason
    ├── FilesLeftOut               (client)              files that --skip-bad left out; the others are done
    ├── OutOfBounds                (client)              the demo's figures are out of bounds
    └── InternalError              INTERNAL              "internal error, incident ID"; our bugs
"""

from __future__ import annotations

from collections.abc import Iterator

from ddib_fed.errors.availability import (
    AggregateNotFound,
    ContractUnknown,
    DiskFull,
    DomainNotFound,
    Draining,
    ExhaustedError,
    FileMissing,
    ItemNotFound,
    JobNotFound,
    MemoryExhausted,
    ModelNotFound,
    NotFoundError,
    NotReady,
    PeerNotFound,
    PeerUnreachable,
    QueueFull,
    QuotaSpent,
    TooManyStreams,
    UnavailableError,
)
from ddib_fed.errors.calibrations import (
    CalibrationAltered,
    CalibrationExpired,
    CalibrationForeign,
    CalibrationIneffective,
    CalibrationInvalid,
    CalibrationKindDenied,
    CalibrationModel,
    CalibrationRefused,
    CalibrationSigner,
    CalibrationUnits,
    CalibrationUnknown,
    CalibrationUnsigned,
)
from ddib_fed.errors.inputs import (
    BundleInvalid,
    ConfigError,
    ExtraMissing,
    ImageTooLarge,
    ImageUnreadable,
    InputError,
    ItemsTooMany,
    KindMismatch,
    MessageInvalid,
    NotFinite,
    PictureMisfit,
    PointsTooMany,
    PointsUnreadable,
    SettingsInvalid,
    ShapeMismatch,
    UnknownFields,
    UsageError,
)
from ddib_fed.errors.outcomes import (
    AlreadyExists,
    Cancelled,
    ChunkCorrupt,
    ContractMismatch,
    DeadlineExceeded,
    FilesLeftOut,
    InternalError,
    JobFailed,
    OutOfBounds,
    PeerFault,
    RequestIdConflict,
    StateConflict,
)
from ddib_fed.errors.refusals import (
    LatentNotGaussian,
    PeerSuspended,
    PeerUnknown,
    PolicyDenied,
    RefusedError,
    Unauthenticated,
)
from ddib_fed.errors.tree import (
    DdibError,
    Difference,
    ExitCode,
)

__all__ = [
    "AggregateNotFound",
    "AlreadyExists",
    "BundleInvalid",
    "CalibrationAltered",
    "CalibrationExpired",
    "CalibrationForeign",
    "CalibrationIneffective",
    "CalibrationInvalid",
    "CalibrationKindDenied",
    "CalibrationModel",
    "CalibrationRefused",
    "CalibrationSigner",
    "CalibrationUnits",
    "CalibrationUnknown",
    "CalibrationUnsigned",
    "Cancelled",
    "ChunkCorrupt",
    "ConfigError",
    "ContractMismatch",
    "ContractUnknown",
    "DdibError",
    "DeadlineExceeded",
    "Difference",
    "DiskFull",
    "DomainNotFound",
    "Draining",
    "ExhaustedError",
    "ExitCode",
    "ExtraMissing",
    "FileMissing",
    "FilesLeftOut",
    "ImageTooLarge",
    "ImageUnreadable",
    "InputError",
    "InternalError",
    "ItemNotFound",
    "ItemsTooMany",
    "JobFailed",
    "JobNotFound",
    "KindMismatch",
    "LatentNotGaussian",
    "MemoryExhausted",
    "MessageInvalid",
    "ModelNotFound",
    "NotFinite",
    "NotFoundError",
    "NotReady",
    "OutOfBounds",
    "PeerFault",
    "PeerNotFound",
    "PeerSuspended",
    "PeerUnknown",
    "PeerUnreachable",
    "PictureMisfit",
    "PointsTooMany",
    "PointsUnreadable",
    "PolicyDenied",
    "QueueFull",
    "QuotaSpent",
    "RefusedError",
    "RequestIdConflict",
    "SettingsInvalid",
    "ShapeMismatch",
    "StateConflict",
    "TooManyStreams",
    "Unauthenticated",
    "UnavailableError",
    "UnknownFields",
    "UsageError",
    "all_errors",
    "error_class",
]


def all_errors(root: type[DdibError] = DdibError) -> Iterator[type[DdibError]]:
    """Every class of the tree, the root first."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)


def error_class(reason: str) -> type[DdibError]:
    return next((c for c in all_errors() if c.reason == reason and c is not DdibError), InternalError)
