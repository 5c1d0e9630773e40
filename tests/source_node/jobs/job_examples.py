"""Jobs that the tests of the store share."""

import hashlib
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from ddib_fed.node.config import LimitsSection
from ddib_fed.protocol.messages import ItemState
from ddib_fed.security.audit import AuditLog
from ddib_fed.store import NodeStore
from ddib_fed.v1.common_pb2 import ErrorDetail
from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.spool import NewFile, SpoolPart
from source_node.store import Change, JobStore, StoredJob
from source_node.submission import Receiving, Staging

ALICE = "spiffe://north.example/client/alice"
BOB = "spiffe://north.example/client/bob"
NPY = 1
RETENTION_S = 100.0
LIMITS = LimitsSection(max_open_jobs=16, max_spool_bytes=1 << 20, result_days=RETENTION_S / 86_400)


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def open_jobs(folder: Path, limits: LimitsSection = LIMITS, **options) -> JobStore:
    """The store of a node whose state lies in a folder."""
    return JobStore(AuditLog(NodeStore(folder / "node.sqlite")), folder / "spool", limits, **options)


def close_jobs(store: JobStore) -> None:
    store.close()
    store._store.close()


def header(**changes) -> JobHeader:
    """A request with an id of its own."""
    fields = {
        "request_id": str(uuid.uuid4()), "target_institution": "south.example", "target_domain": "checkerboards",
    }  # fmt: skip
    return JobHeader(**{**fields, **changes})


def add(staging: Staging, data: bytes, media: int = NPY) -> None:
    staging.receive(len(data)).write(data)
    staging.keep(media, hashlib.sha256(data).digest())


def submit(store: JobStore, *files: bytes, owner: str = ALICE, media: int = NPY, **changes) -> StoredJob:
    """A job of these files, `changes` to its request."""
    with Receiving(store).stage(owner, header(**changes)) as staging:
        for data in files or (b"points",):
            add(staging, data, media)
        return staging.commit()[0]


def claim(store: JobStore) -> StoredJob | None:
    """The oldest job that is due, running."""
    due = store.due()
    return store.claim(due[0].job_id) if due else None


def running(store: JobStore, *files: bytes, **changes) -> StoredJob:
    """The same, claimed."""
    submit(store, *files, **changes)
    job = claim(store)
    assert job is not None
    return job


def encode(store: JobStore, job: StoredJob, item: int = 0, data: bytes = b"latent") -> None:
    file, record = NewFile(SpoolPart.ENCODED, data), {"seconds": {"encode": 1.0}}
    store.keep(job.job_id, Change(item, [file], ItemState.ENCODED, record)).result(20)


def decode(store: JobStore, job: StoredJob, item: int = 0) -> bytes:
    """Take an item to DECODED; the digest of its translation."""
    encode(store, job, item)
    return keep_translation(store, job, item)


def keep_translation(store: JobStore, job: StoredJob, item: int = 0) -> bytes:
    file = NewFile(SpoolPart.TRANSLATION, b"translation")
    store.keep(job.job_id, Change(item, [file], ItemState.DECODED)).result(20)
    return hashlib.sha256(b"translation").digest()


def fail(store: JobStore, job: StoredJob, item: int = 0) -> None:
    error = ErrorDetail(reason="NOT_FINITE")
    store.keep(job.job_id, Change(item, state=ItemState.FAILED, error=error)).result(20)


def files(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (folder / "spool").rglob("*") if path.is_file()}


def in_threads(work: Callable[[], None], number: int) -> None:
    """Do the same in several threads at once."""
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
