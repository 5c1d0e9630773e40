"""A process that works on a job store and says what was done, until it is killed; run by test_job_kills."""

import json
import sys
import uuid
from pathlib import Path

from source_node.records import Job, Part
from source_node.store import JobStore
from tests.source_node.jobs.job_examples import ALICE, LIMITS, NPY, header

ITEMS = 2


def request_id(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"request {number}"))


def item_bytes(number: int, item: int, part: str) -> bytes:
    return f"{number} {item} {part} ".encode() * (1 + 200 * ((number + item) % 5))


def say(**fact: object) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


def submit(store: JobStore, number: int) -> None:
    asked = header(request_id=request_id(number))
    with store.stage(ALICE, asked) as staging:
        for item in range(ITEMS):
            staging.add(NPY, item_bytes(number, item, Part.INPUT))
        job, _ = staging.commit()
    say(job=job.job_id, number=number, state=job.state)


def work(store: JobStore, job: Job) -> None:
    number = next(n for n in range(10_000) if request_id(n) == job.request.request_id)
    for item in job.items:
        if item.state == "RECEIVED":
            store.put_part(job.job_id, item.index, Part.ENCODED, item_bytes(number, item.index, Part.ENCODED))
            store.advance(job.job_id, item.index, "ENCODED", {"from": number})
            say(job=job.job_id, item=item.index, state="ENCODED")
        if item.state in {"RECEIVED", "ENCODED"}:
            translation = item_bytes(number, item.index, Part.TRANSLATION)
            store.put_part(job.job_id, item.index, Part.TRANSLATION, translation)
            store.advance(job.job_id, item.index, "DECODED")
            say(job=job.job_id, item=item.index, state="DECODED")
    store.finish(job.job_id, "FINISHED")
    say(job=job.job_id, state="FINISHED")


def main() -> None:
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = JobStore(folder / "jobs.sqlite", folder / "spool", LIMITS)
    store.release_running()
    say(boot=store.boot)
    for number in range(first, last + 1):
        submit(store, number)
        while (job := store.claim()) is not None:
            work(store, job)
    store.close()


if __name__ == "__main__":
    main()
