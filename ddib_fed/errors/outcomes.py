"""Errors of states and conflicts, of how work ended, and of our own bugs."""

from __future__ import annotations

from ddib_fed.errors.tree import DdibError, ExitCode


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


class ChunkCorrupt(DdibError):
    """Bytes whose digest, order or size differs from what was announced."""

    reason = "CHUNK_CORRUPT"
    status = "DATA_LOSS"
    exit_code = ExitCode.CORRUPT
    sentence = "the bytes received are not those announced"


class PeerFault(DdibError):
    """A peer that answered with what the protocol or the contract rules out: its fault, whatever was asked."""

    reason = "PEER_FAULT"
    status = "FAILED_PRECONDITION"
    exit_code = ExitCode.PEER_FAULT
    sentence = "the peer answered with what the protocol or the contract rules out"


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


class FilesLeftOut(DdibError):
    """Files that could not be translated and were left out, as asked; the others are translated."""

    reason = "FILES_LEFT_OUT"
    status = "FAILED_PRECONDITION"
    exit_code = ExitCode.LEFT_OUT
    sentence = "some files were left out"


class OutOfBounds(DdibError):
    """A measured figure is not within its bound."""

    reason = "OUT_OF_BOUNDS"
    exit_code = ExitCode.OUT_OF_BOUNDS
    sentence = "a measured figure is out of bounds"


class InternalError(DdibError):
    """A bug of ours or an unforeseen failure."""
