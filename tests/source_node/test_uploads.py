"""What is being sent lies on the disk and not in memory, within stated bounds, and not for ever."""

from __future__ import annotations

import threading
from contextlib import suppress

import numpy as np
import pytest

from ddib_fed.errors import (
    ChunkCorrupt,
    DdibError,
    DeadlineExceeded,
    ImageTooLarge,
    QueueFull,
)
from ddib_fed.protocol.streams import MAX_CHUNK, file_header, stream
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from tests.node.picture_examples import pictures_engine
from tests.node.tiny_nodes import npy
from tests.source_node.conftest import wait_until
from tests.source_node.served import Served, job_header, messages


@pytest.fixture
def open_served(tmp_path, institutions, target, engine):
    """North's node with limits of its own."""
    made: list[Served] = []

    def open_one(own_engine=engine, **limits) -> Served:
        made.append(Served(tmp_path, institutions[0], own_engine, **limits))
        return made[-1]

    yield open_one
    for served in made:
        served.close()


class Upload:
    """A job of one item whose last chunk waits until it is let go."""

    def __init__(self, size: int = 3 * MAX_CHUNK) -> None:
        data = npy() + bytes(size)
        header = file_header(common_pb2.MEDIA_TYPE_NPY, data)
        self._sent = [job_header(1), *stream(pb.SubmitJobRequest, "item", header, data)]
        self._go = threading.Event()
        self.held_bytes = 3 * MAX_CHUNK

    def __iter__(self):
        yield from self._sent[:-1]
        self._go.wait(20)
        yield self._sent[-1]

    def end(self) -> None:
        self._go.set()


def refused(served: Served, upload: Upload) -> None:
    with suppress(DdibError):
        served.ask("SubmitJob", iter(upload))


def staged_bytes(served: Served) -> int:
    return sum(path.stat().st_size for path in served.node.config.paths.spool.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_stalled_upload_is_ended_and_leaves_nothing(open_served) -> None:
    """Its place is free again, and so is the disk; it held both until its client went away."""
    served, upload = open_served(stall_s=0.3), Upload()
    with pytest.raises(DeadlineExceeded) as caught:
        served.ask("SubmitJob", iter(upload))
    assert caught.value.facts["stall_s"] == "0.3"
    upload.end()
    wait_until(lambda: staged_bytes(served) == 0)
    assert not list(served.node.config.paths.spool.iterdir())


def test_one_client_has_a_share_of_what_is_being_received(open_served) -> None:
    """By what was announced, and by what has come in all of its uploads at once."""
    served = open_served(stall_s=20, max_spool_bytes=8 * MAX_CHUNK)
    first = Upload()
    thread = threading.Thread(target=refused, args=(served, first))
    thread.start()
    wait_until(lambda: staged_bytes(served) == first.held_bytes)
    with pytest.raises(QueueFull) as caught:
        served.submit(npy() + bytes(2 * MAX_CHUNK))
    assert caught.value.facts["limit_bytes"] == str(5 * MAX_CHUNK)
    first.end()
    thread.join()
    assert served.submit(npy())


def test_bytes_of_another_digest_leave_nothing(open_served) -> None:
    """Counted while they come; what is on the disk goes with the job."""
    served = open_served()
    sent = list(messages([npy()]))
    sent[0].item.sha256 = bytes(32)
    with pytest.raises(ChunkCorrupt):
        served.ask("SubmitJob", iter([job_header(1), *sent]))
    assert staged_bytes(served) == 0


@pytest.mark.slow
def test_a_picture_beyond_the_memory_for_decoding_is_refused_with_both_figures(open_served) -> None:
    """From its header, with the item's number; the job is not accepted."""
    engine = pictures_engine()
    served = open_served(engine, decode_memory_mib=64)
    header = b"\x93NUMPY\x01\x00"
    shape = b"{'descr': '<u2', 'fortran_order': False, 'shape': (4000, 4000), }"
    body = header + (len(shape) + 1).to_bytes(2, "little") + shape + b"\n" + bytes(32_000_000)
    with pytest.raises(ImageTooLarge) as caught:
        served.submit(body)
    assert caught.value.facts["limit_mib"] == "64"
    assert caught.value.facts["item"] == "0"
    assert int(caught.value.facts["memory_mib"]) > 64
    engine.close()


def test_results_are_sent_from_the_disk_and_checked_before(open_served) -> None:
    """A file that changed is an error and no result; nothing of it is sent."""
    served = open_served()
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    (path,) = served.node.config.paths.spool.rglob("0.translation-*")
    before = path.read_bytes()
    assert np.array_equal(_fetched(served, job_id), np.frombuffer(before, np.uint8))
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ChunkCorrupt):
        served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))


def _fetched(served: Served, job_id: str) -> np.ndarray:
    answers = served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))
    return np.frombuffer(b"".join(a.data for a in answers), np.uint8)
