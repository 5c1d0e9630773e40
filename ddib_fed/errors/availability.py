"""Errors of what is not there, not now, or used up."""

from __future__ import annotations

from ddib_fed.errors.tree import DdibError, ExitCode


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


class DiskFull(ExhaustedError):
    """No room on a disk: of the node that reports it, or of this machine."""

    reason = "DISK_FULL"
    sentence = "the disk is full"


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
    sentence = "this node is not ready yet"


class Draining(UnavailableError):
    """The node is finishing its work and accepts no more."""

    reason = "DRAINING"
    sentence = "this node is draining"


class PeerUnreachable(UnavailableError):
    """The other node does not answer."""

    reason = "PEER_UNREACHABLE"
    sentence = "the peer cannot be reached"


class ContractUnknown(UnavailableError):
    """A contract unknown to this process, which was restarted or has another policy by now: negotiate again."""

    reason = "CONTRACT_UNKNOWN"
    sentence = "this contract was not agreed on with this node: negotiate again"
