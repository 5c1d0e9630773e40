"""Which jobs are accepted; what is being sent lies on the disk, within stated bounds, and not for ever."""

import math
import threading
from contextlib import suppress

import numpy as np
import pytest

from ddib_fed import errors
from ddib_fed.data.points import to_npy
from ddib_fed.protocol.streams import MAX_CHUNK, file_header, stream
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from tests.e2e.harness import wait_until
from tests.node.picture_examples import pictures_engine
from tests.node.tiny_nodes import gaussian, npy
from tests.source_node.served import Served, job_header, messages

SCALES = common_pb2.GuidanceSettings


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"items": 0}, errors.MessageInvalid),
        ({"items": 4}, errors.ItemsTooMany),
        ({"protocol": 9}, errors.ContractMismatch),
        ({"request_id": "../../etc"}, errors.MessageInvalid),
        ({"deadline_s": 86_401}, errors.MessageInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=101)}, errors.SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=7)}, errors.PolicyDenied),
        ({"solver": common_pb2.SolverSettings(evaluations=8, solver="magic")}, errors.SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=0.6)}, errors.PolicyDenied),
        ({"solver": common_pb2.SolverSettings(evaluations=8, share=0.5)}, errors.PolicyDenied),
        ({"solver": common_pb2.SolverSettings(evaluations=8, share=0.0)}, errors.PolicyDenied),
        ({"source_class": "cat"}, errors.SettingsInvalid),
        ({"target_class": "cat"}, errors.SettingsInvalid),
        ({"target_institution": "nobody.example"}, errors.PeerNotFound),
        ({"target_domain": "moons"}, errors.DomainNotFound),
        ({"guidance": SCALES(guidance=math.nan)}, errors.SettingsInvalid),
        ({"guidance": SCALES(guidance=1.0, classifier_scale=1.0)}, errors.SettingsInvalid),
        ({"guidance": SCALES(guidance=1.0), "cycle": True}, errors.SettingsInvalid),
        ({"item_classes": [pb.ItemClasses(), pb.ItemClasses()]}, errors.MessageInvalid),
        ({"item_classes": [pb.ItemClasses(source_class="1")]}, errors.SettingsInvalid),
        ({"item_classes": [pb.ItemClasses()], "target_class": "1"}, errors.MessageInvalid),
        ({"model_size": True}, errors.MessageInvalid),
    ],
)
def test_a_job_that_can_never_work_is_refused_before_it_is_accepted(served, changes, error) -> None:
    with pytest.raises(error) as caught:
        served.submit(npy(), **changes)
    assert type(caught.value) is error
    assert not any(served.service.jobs().values())
    assert not list(served.node.config.paths.spool.rglob("*.*"))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (to_npy(np.full((3, 2), np.nan, np.float32)), errors.NotFinite),
        (to_npy(np.zeros((5, 3), np.float32)), errors.ShapeMismatch),
        (npy()[:-3], errors.PointsUnreadable),
        (b"\x80\x04K\x01.", errors.PointsUnreadable),
    ],
)
def test_a_bad_item_is_named_by_its_number(served, bad, error) -> None:
    """NaN, a pickle, nothing at all: the reason and which one, and the node lives on."""
    with pytest.raises(error) as refused:
        served.submit(npy(), bad)
    assert refused.value.facts["item"] == "1"
    assert served.submit(npy())


@pytest.mark.parametrize(
    ("last", "limits", "reason"),
    [(b"\x89PNG\r\n\x1a\n" + bytes(100), {}, "KIND_MISMATCH"), (npy(), {"max_item_bytes": 400}, "POINTS_TOO_MANY")],
)  # fmt: skip
def test_an_item_that_is_refused_by_its_header_does_not_hide_those_before(
    tmp_path, institutions, target, engine, last, limits, reason
) -> None:
    """Its bytes are not waited for; what came before is named with it."""
    served = Served(tmp_path, institutions[0], engine, max_items_per_job=3, **limits)
    kind = common_pb2.MEDIA_TYPE_PNG if last.startswith(b"\x89PNG") else common_pb2.MEDIA_TYPE_NPY
    sent = list(stream(pb.SubmitJobRequest, "item", file_header(kind, last), last))
    nan = to_npy(np.full((3, 2), math.nan, np.float32))
    with pytest.raises(errors.NotFinite) as refused:
        served.ask("SubmitJob", iter([job_header(3), *messages([nan, to_npy(gaussian(3))]), *sent]))
    assert refused.value.facts["item"] == "0"
    assert refused.value.refused == {0: "NOT_FINITE", 2: reason}
    served.close()


def test_a_node_that_loads_or_drains_takes_no_job(tmp_path, institutions, target, engine) -> None:
    served = Served(tmp_path, institutions[0], None)
    with pytest.raises(errors.NotReady):
        served.submit(npy())
    served.node.set_engine(engine)
    served.node.draining = True
    with pytest.raises(errors.Draining):
        served.submit(to_npy(gaussian(3)))
    assert not served.ask("ListJobs", pb.ListJobsRequest()).jobs
    served.close()


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
    with suppress(errors.DdibError):
        served.ask("SubmitJob", iter(upload))


def staged_bytes(served: Served) -> int:
    return sum(path.stat().st_size for path in served.node.config.paths.spool.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_stalled_upload_is_ended_and_leaves_nothing(open_served) -> None:
    """Its place is free again, and so is the disk; it held both until its client went away."""
    served, upload = open_served(stall_s=1.5), Upload()
    with pytest.raises(errors.DeadlineExceeded) as caught:
        served.ask("SubmitJob", iter(upload))
    assert caught.value.facts["stall_s"] == "1.5"
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
    with pytest.raises(errors.QueueFull) as caught:
        served.submit(npy() + bytes(2 * MAX_CHUNK))
    assert caught.value.facts["limit_bytes"] == str(5 * MAX_CHUNK)
    first.end()
    thread.join()
    assert served.submit(npy())


@pytest.mark.slow
def test_a_picture_beyond_the_memory_for_decoding_is_refused_with_both_figures(open_served) -> None:
    engine = pictures_engine()
    served = open_served(engine, decode_memory_mib=64)
    header = b"\x93NUMPY\x01\x00"
    shape = b"{'descr': '<u2', 'fortran_order': False, 'shape': (4000, 4000), }"
    body = header + (len(shape) + 1).to_bytes(2, "little") + shape + b"\n" + bytes(32_000_000)
    with pytest.raises(errors.ImageTooLarge) as caught:
        served.submit(body)
    assert caught.value.facts["limit_mib"] == "64"
    assert caught.value.facts["item"] == "0"
    assert int(caught.value.facts["memory_mib"]) > 64
    engine.close()


def test_results_are_sent_from_the_disk_and_checked_before(open_served) -> None:
    served = open_served()
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    (path,) = served.node.config.paths.spool.rglob("0.translation-*")
    before = path.read_bytes()
    request = pb.FetchResultsRequest(job_id=job_id)
    assert b"".join(answer.data for answer in served.ask("FetchResults", request)) == before
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(errors.ChunkCorrupt):
        served.ask("FetchResults", request)
