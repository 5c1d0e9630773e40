"""The clients' service behind its real port: what is accepted, what is not, and what its watchers are told."""

from __future__ import annotations

import math
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.errors import (
    DdibError,
    DomainNotFound,
    Draining,
    ItemNotFound,
    ItemsTooMany,
    KindMismatch,
    MessageInvalid,
    NotFinite,
    NotReady,
    PeerNotFound,
    PointsUnreadable,
    PolicyDenied,
    QueueFull,
    SettingsInvalid,
    TooManyStreams,
    UnknownFields,
)
from ddib_fed.node.policy import Policy
from ddib_fed.rpc.error_details import from_rpc_error
from ddib_fed.samples.points import to_npy
from ddib_fed.server.interceptors import AuthInterceptor, ErrorInterceptor, StreamLimiter
from ddib_fed.server.server import NodeServer
from ddib_fed.trust import pki, tls
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from ddib_fed.v1 import translation_pb2_grpc as rpc
from ddib_fed.wire.jobs import Settings
from ddib_fed.wire.streams.chunks import file_header, stream
from ddib_fed.wire.version import SPOKEN
from source_node.service import MAX_LISTINGS, SourceService
from tests.node.tiny_nodes import gaussian, make_config, make_context, npy, tiny_engine
from tests.source_node.conftest import wait_until
from tests.source_node.scripted_target import hang


class Served:
    """North's node for its clients, started, and Alice's certificate."""

    def __init__(self, folder, north, engine, *, per_identity: int = 8, **settings) -> None:
        self.folder, self.north = folder, north
        config = make_config(folder / "north", "north.example", "source", **settings)
        self.node = make_context(config, north, engine)
        self.service = SourceService(self.node)
        policy = Policy(institution="north.example", roles=("source",), issuer=False)
        interceptors = [
            ErrorInterceptor("north.example"),
            AuthInterceptor(self.node.peers, policy),
            StreamLimiter(8, per_identity),
        ]
        credentials = tls.server_credentials(north.pki, self.node.peers).grpc
        self.server = NodeServer("127.0.0.1:0", credentials, interceptors, max_streams=8)
        self.service.register(self.server.grpc)
        self.server.start()
        self.service.start()
        pki.issue_client(north.pki, folder / "alice", "alice")

    @contextmanager
    def called(self):
        arguments = {"server_name": "node-1.north.example", "pki_folder": self.folder / "alice"}
        with tls.channel(self.server.address, **arguments) as channel:
            yield rpc.TranslationServiceStub(channel)

    def ask(self, name: str, request, timeout: float = 20):
        """The answer to a call, or the error that came back."""
        with self.called() as stub:
            try:
                answer = getattr(stub, name)(request, timeout=timeout)
                return list(answer) if isinstance(answer, grpc.Call) else answer
            except grpc.RpcError as error:
                raise from_rpc_error(error, "source north.example") from error

    def submit(self, *files: bytes, items: int | None = None, **changes) -> str:
        count = len(files) if items is None else items
        return self.ask("SubmitJob", iter([job_header(count, **changes), *messages(files)])).job_id

    def close(self) -> None:
        self.service.close()
        self.server.stop(0.0)
        self.service.release()


def job_header(items: int, **changes) -> pb.SubmitJobRequest:
    version = max(SPOKEN)
    fields = {
        "version": common_pb2.ProtocolVersion(major=version.major, minor=version.minor),
        "request_id": str(uuid.uuid4()), "items": items,
        "target_institution": "south.example", "target_domain": "checkerboards",
        "solver": common_pb2.SolverSettings(evaluations=8), **changes,
    }  # fmt: skip
    return pb.SubmitJobRequest(header=pb.JobHeader(**fields))


def messages(files):
    for data in files:
        yield from stream(pb.SubmitJobRequest, "item", file_header(common_pb2.MEDIA_TYPE_NPY, data), data)


def test_a_picture_for_a_model_of_points_is_refused_with_its_number(served) -> None:
    """Before its bytes are read, and with what is taken here instead."""
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    picture = list(stream(pb.SubmitJobRequest, "item", file_header(common_pb2.MEDIA_TYPE_PNG, png), png))
    with pytest.raises(KindMismatch) as caught:
        served.ask("SubmitJob", iter([job_header(2), *messages([npy()]), *picture]))
    assert caught.value.facts["item"] == "1"
    assert "points" in caught.value.facts["takes"]
    assert caught.value.facts["model"] == "north.example/moons"


@pytest.fixture
def served(tmp_path, institutions, target, engine):
    made = Served(tmp_path, institutions[0], engine, max_items_per_job=3, max_evaluations=100)
    yield made
    made.close()


@pytest.mark.slow
def test_a_client_waits_for_a_stream_when_all_of_its_own_are_taken(
    tmp_path, institutions, target, engine
) -> None:
    """The real limiter refuses the third stream of one person; the client comes back until one is free."""
    target.decodes = [hang]
    served = Served(tmp_path, institutions[0], engine, per_identity=2)
    try:
        job_id = served.submit(npy())
        profile = Profile(
            institution="north.example",
            source_address=served.server.address,
            source_identity="node-1.north.example",
            name="alice",
            pki=str(served.folder / "alice"),
        )
        told: list[DdibError] = []
        with served.called() as stub:
            held = [stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=30) for _ in range(2)]
            for watching in held:
                next(watching)

            def on_wait(error: DdibError, delay_s: float) -> None:
                told.append(error)
                held[0].cancel()

            with Client(profile, on_wait=on_wait) as client:
                assert client.submit([npy()], "south.example/checkerboards", Settings(evaluations=8)).job_id
            again = stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=30)
            next(again)
            with Client(profile, busy_s=0) as hasty, pytest.raises(TooManyStreams):
                next(hasty.watch(job_id))
        assert {(error.reason, error.retry_after_s) for error in told} == {("TOO_MANY_STREAMS", 1.0)}
    finally:
        target.release.set()
        served.close()


SCALES = common_pb2.GuidanceSettings


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"guidance": SCALES(guidance=math.nan)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=math.inf)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=-1.0)}, SettingsInvalid),
        ({"guidance": SCALES(classifier_scale=1e300)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=1.0, classifier_scale=1.0)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=1.0), "cycle": True}, SettingsInvalid),
        (
            {"guidance": SCALES(clip=True), "version": common_pb2.ProtocolVersion(major=1, minor=1)},
            UnknownFields,
        ),
        ({"item_classes": [pb.ItemClasses(), pb.ItemClasses()]}, MessageInvalid),
        ({"item_classes": [pb.ItemClasses(source_class="1")]}, SettingsInvalid),
        ({"item_classes": [pb.ItemClasses()], "target_class": "1"}, MessageInvalid),
        ({"item_classes": [pb.ItemClasses(target_class="x" * 65)]}, MessageInvalid),
        ({"model_size": True}, MessageInvalid),
    ],
)
def test_guidance_and_classes_that_make_no_sense_are_refused_with_the_header(served, changes, error) -> None:
    """Hostile scales, both kinds, a cycle that the own model cannot close, fields of a later version, and too many."""
    with pytest.raises(error) as caught:
        served.submit(npy(), **changes)
    assert type(caught.value) is error


def test_a_job_goes_from_submission_to_acknowledged(served) -> None:
    """Accepted, watched to its end, fetched, acknowledged, deleted."""
    job_id = served.submit(npy())
    events = served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    assert events[-1].state == pb.JOB_STATE_FINISHED
    fetched = served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))
    digest = fetched[0].result.file.sha256
    written = pb.Acknowledgement(item=0, sha256=digest)
    done = pb.AcknowledgeItemsRequest(job_id=job_id, items=[written])
    assert served.ask("AcknowledgeItems", done).remaining == 0
    served.ask("DeleteJob", pb.DeleteJobRequest(job_id=job_id))
    assert served.ask("ListJobs", pb.ListJobsRequest()).jobs == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"items": 0}, MessageInvalid),
        ({"items": 4}, ItemsTooMany),
        ({"items": 2}, MessageInvalid),
        ({"version": common_pb2.ProtocolVersion(major=9)}, MessageInvalid),
        ({"request_id": "../../etc"}, MessageInvalid),
        ({"target_domain": "x" * 65}, MessageInvalid),
        ({"deadline_s": 86_401}, MessageInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=101)}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=0)}, SettingsInvalid),
        ({"solver": None}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=float("nan"))}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, solver="magic")}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=0.6)}, PolicyDenied),
        (
            {
                "solver": common_pb2.SolverSettings(evaluations=8, depth=0.6),
                "version": common_pb2.ProtocolVersion(major=1),
            },
            UnknownFields,
        ),
        ({"solver": common_pb2.SolverSettings(evaluations=8, encoder="linear")}, PolicyDenied),
        (
            {
                "solver": common_pb2.SolverSettings(evaluations=8, encoder="linear"),
                "version": common_pb2.ProtocolVersion(major=1, minor=2),
            },
            UnknownFields,
        ),
        (
            {
                "solver": common_pb2.SolverSettings(evaluations=8, grid="learned"),
                "version": common_pb2.ProtocolVersion(major=1, minor=3),
            },
            UnknownFields,
        ),
        (
            {
                "solver": common_pb2.SolverSettings(evaluations=8, solver="flow-map"),
                "version": common_pb2.ProtocolVersion(major=1, minor=3),
            },
            UnknownFields,
        ),
        ({"source_class": "cat"}, SettingsInvalid),
        ({"target_class": "cat"}, SettingsInvalid),
        ({"target_class": "c" * 65}, MessageInvalid),
        ({"target_class": "0", "version": common_pb2.ProtocolVersion(major=1)}, UnknownFields),
        ({"target_institution": "nobody.example"}, PeerNotFound),
        ({"target_domain": "moons"}, DomainNotFound),
    ],
)
def test_a_job_that_can_never_work_is_refused_before_it_is_accepted(served, changes, error) -> None:
    """Nothing of it stays."""
    with pytest.raises(error):
        served.submit(npy(), **changes)
    assert not any(served.service.jobs().values())
    assert not list(served.node.config.paths.spool.rglob("*.*"))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (to_npy(np.full((3, 2), np.nan, np.float32)), NotFinite),
        (b"\x80\x04K\x01.", PointsUnreadable),
        (b"", PointsUnreadable),
    ],
)
def test_a_bad_item_is_named_by_its_number(served, bad, error) -> None:
    """NaN, a pickle, nothing at all: the reason and which one, and the node lives on."""
    with pytest.raises(error) as refused:
        served.submit(npy(), bad)
    assert refused.value.facts["item"] == "1"
    assert served.submit(npy())


def test_a_peer_that_is_away_is_no_reason_to_refuse(served, target) -> None:
    """The job is accepted, and waits."""
    target.server.stop(None).wait()
    job_id = served.submit(npy())
    job = served.ask("GetJob", pb.GetJobRequest(job_id=job_id)).job
    assert job.state in {pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING}


def test_an_unknown_institution_is_answered_with_those_that_are_known(served) -> None:
    """The client can choose one."""
    with pytest.raises(PeerNotFound) as refused:
        served.submit(npy(), target_institution="nobody.example")
    assert refused.value.facts == {"institution": "nobody.example", "known": "south.example"}


def test_a_watcher_is_told_the_end_of_a_job_that_ended_while_it_was_told_the_start(
    served, target, monkeypatch
) -> None:
    """A state that is published late is followed by the one that is true: nobody watches for ever."""
    target.decodes = [hang]
    job_id = served.submit(npy())
    assert target.asked.wait(10)
    events, store, publish = served.service._events, served.service._store, served.service._events.publish
    raced: list[bool] = []
    teller = threading.current_thread()

    def late(job: str, **said):
        if threading.current_thread() is teller and not raced:  # the engine's thread publishes too
            raced.append(True)
            served.ask("CancelJob", pb.CancelJobRequest(job_id=job))
            wait_until(lambda: store.get(job).state.ended and events.last(job).state.ended)
        return publish(job, **said)

    monkeypatch.setattr(events, "publish", late)
    served.service._servicer._tell(job_id)
    assert raced
    assert served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))[-1].state == pb.JOB_STATE_CANCELLED


def test_listing_domains_cannot_take_every_thread(served, target) -> None:
    """While peers are silent, few callers wait for them; the next is told to come back, and others are served."""
    entered = threading.Semaphore(0)
    target.negotiation = lambda: (entered.release(), target.release.wait(20))
    with ThreadPoolExecutor(MAX_LISTINGS) as pool:
        waiting = [
            pool.submit(served.ask, "ListDomains", pb.ListDomainsRequest()) for _ in range(MAX_LISTINGS)
        ]
        assert all(entered.acquire(timeout=10) for _ in waiting)
        with pytest.raises(TooManyStreams):
            served.ask("ListDomains", pb.ListDomainsRequest())
        served.ask("ListJobs", pb.ListJobsRequest())
        target.release.set()
        assert [future.result().domains[0].status for future in waiting] == ["ready"] * MAX_LISTINGS


def test_a_silent_peer_is_listed_as_unreachable(served, target) -> None:
    """With its reason, after a short time, and the others beside it."""
    target.server.stop(None).wait()
    answer = served.ask("ListDomains", pb.ListDomainsRequest())
    assert (answer.domain, answer.domains[0].status) == ("moons", "PEER_UNREACHABLE")


@pytest.mark.slow
def test_removed_peers_get_nothing_more_from_running_jobs(served, target) -> None:
    """What a reload and the regular look call: the open call ends, and so does the job."""
    target.decodes = [hang]
    job_id = served.submit(npy())
    assert target.asked.wait(10)
    served.node.peers.remove("south.example")
    served.service.peers_changed()
    events = served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    assert (events[-1].state, events[-1].reason) == (pb.JOB_STATE_FAILED, "PEER_NOT_FOUND")


def test_the_janitor_outlives_a_full_disk(tmp_path, institutions, target, engine, monkeypatch) -> None:
    """What nobody fetched is removed at start and later, also after a removal failed."""
    monkeypatch.setattr("source_node.service.EXPIRE_EVERY_S", 0.01)
    tries: list[int] = []

    def expire(store) -> int:
        tries.append(1)
        raise QueueFull("full")

    monkeypatch.setattr("source_node.jobs.store.JobStore.expire", expire)
    served = Served(tmp_path, institutions[0], engine)
    wait_until(lambda: len(tries) > 2)
    served.close()


def test_results_that_are_not_there_are_not_found(served) -> None:
    """An item that does not exist, of a job that does."""
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    with pytest.raises(ItemNotFound):
        served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[5]))


def test_an_item_is_asked_for_once_in_a_call(served) -> None:
    """A few bytes for each name would have its file sent again, and be a line of the audit log."""
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    with pytest.raises(MessageInvalid):
        served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[0, 0]))
    twice = [pb.Acknowledgement(item=0, sha256=bytes(32))] * 2
    with pytest.raises(MessageInvalid):
        served.ask("AcknowledgeItems", pb.AcknowledgeItemsRequest(job_id=job_id, items=twice))


def test_a_node_that_loads_or_drains_takes_no_job(tmp_path, institutions, target) -> None:
    """NOT_READY, then DRAINING; what it has can still be asked for."""
    served = Served(tmp_path, institutions[0], None)
    with pytest.raises(NotReady):
        served.submit(npy())
    made = tiny_engine()
    served.node.set_engine(made)
    served.node.drain()
    with pytest.raises(Draining):
        served.submit(to_npy(gaussian(3)))
    assert not served.ask("ListJobs", pb.ListJobsRequest()).jobs
    served.close()
    made.close()
