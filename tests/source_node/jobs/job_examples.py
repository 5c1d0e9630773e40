"""Jobs that the tests of the store share."""

import hashlib
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from ddib_fed.v1.translation_pb2 import JobHeader
from source_node.records import Job, JobLimits, Part
from source_node.store import JobStore

ALICE = "spiffe://north.example/client/alice"
BOB = "spiffe://north.example/client/bob"
NPY = 1
LIMITS = JobLimits(max_open_jobs=16, max_spool_bytes=1 << 20, retention_s=100.0, default_deadline_s=50)


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def header(**changes) -> JobHeader:
    """A request with an id of its own."""
    fields = {
        "request_id": str(uuid.uuid4()),
        "target_institution": "south.example",
        "target_domain": "checkerboards",
    }
    return JobHeader(**{**fields, **changes})


def submit(store: JobStore, *files: bytes, owner: str = ALICE, **changes) -> Job:
    """A job of these files, `changes` to its request."""
    with store.stage(owner, header(**changes)) as staging:
        for data in files or (b"points",):
            staging.add(NPY, data)
        return staging.commit()[0]


def running(store: JobStore, *files: bytes, **changes) -> Job:
    """The same, claimed."""
    submit(store, *files, **changes)
    job = store.claim()
    assert job is not None
    return job


def encode(store: JobStore, job: Job, item: int = 0) -> None:
    store.put_part(job.job_id, item, Part.ENCODED, b"latent")
    store.advance(job.job_id, item, "ENCODED", {"seconds": {"encode": 1.0}})


def decode(store: JobStore, job: Job, item: int = 0) -> bytes:
    """Take an item to DECODED; the digest of its translation."""
    encode(store, job, item)
    store.put_part(job.job_id, item, Part.TRANSLATION, b"translation")
    store.advance(job.job_id, item, "DECODED")
    return hashlib.sha256(b"translation").digest()


def files(tmp_path: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (tmp_path / "spool").rglob("*") if path.is_file()}


def in_threads(work: Callable[[], None], number: int) -> None:
    """Do the same in several threads at once."""
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
