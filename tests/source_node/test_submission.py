"""Which jobs are accepted, and which are refused before anything of them stays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ddib_fed.data.points import to_npy
from ddib_fed.errors import (
    ContractMismatch,
    DomainNotFound,
    Draining,
    ItemsTooMany,
    KindMismatch,
    MessageInvalid,
    NotFinite,
    NotReady,
    PeerNotFound,
    PointsUnreadable,
    PolicyDenied,
    SettingsInvalid,
)
from ddib_fed.protocol.details import refused_items
from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from tests.node.tiny_nodes import gaussian, npy, tiny_engine
from tests.source_node.served import Served, job_header, messages

SCALES = common_pb2.GuidanceSettings


def test_a_picture_for_a_model_of_points_is_refused_with_its_number(served) -> None:
    """Before its bytes are read, and with what is taken here instead."""
    png = b"\x89PNG\r\n\x1a\n" + bytes(100)
    picture = list(stream(pb.SubmitJobRequest, "item", file_header(common_pb2.MEDIA_TYPE_PNG, png), png))
    with pytest.raises(KindMismatch) as caught:
        served.ask("SubmitJob", iter([job_header(2), *messages([npy()]), *picture]))
    assert caught.value.facts["item"] == "1"
    assert "points" in caught.value.facts["takes"]
    assert caught.value.facts["model"] == "north.example/moons"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"items": 0}, MessageInvalid),
        ({"items": 4}, ItemsTooMany),
        ({"items": 2}, MessageInvalid),
        ({"protocol": 9}, ContractMismatch),
        ({"request_id": "../../etc"}, MessageInvalid),
        ({"target_domain": "x" * 65}, MessageInvalid),
        ({"deadline_s": 86_401}, MessageInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=101)}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=0)}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=7)}, PolicyDenied),
        ({"solver": None}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=float("nan"))}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, solver="magic")}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=0.6)}, PolicyDenied),
        ({"solver": common_pb2.SolverSettings(evaluations=8, encoder="mixed")}, PolicyDenied),
        ({"source_class": "cat"}, SettingsInvalid),
        ({"target_class": "cat"}, SettingsInvalid),
        ({"target_class": "c" * 65}, MessageInvalid),
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
    ("changes", "error"),
    [
        ({"guidance": SCALES(guidance=math.nan)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=math.inf)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=-1.0)}, SettingsInvalid),
        ({"guidance": SCALES(classifier_scale=1e300)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=1.0, classifier_scale=1.0)}, SettingsInvalid),
        ({"guidance": SCALES(guidance=1.0), "cycle": True}, SettingsInvalid),
        ({"item_classes": [pb.ItemClasses(), pb.ItemClasses()]}, MessageInvalid),
        ({"item_classes": [pb.ItemClasses(source_class="1")]}, SettingsInvalid),
        ({"item_classes": [pb.ItemClasses()], "target_class": "1"}, MessageInvalid),
        ({"item_classes": [pb.ItemClasses(target_class="x" * 65)]}, MessageInvalid),
        ({"model_size": True}, MessageInvalid),
    ],
)
def test_guidance_and_classes_that_make_no_sense_are_refused_with_the_header(served, changes, error) -> None:
    """Hostile scales, both kinds, a cycle that the own model cannot close, and too many."""
    with pytest.raises(error) as caught:
        served.submit(npy(), **changes)
    assert type(caught.value) is error


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


@pytest.mark.parametrize(
    ("last", "limits", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), {}, "KIND_MISMATCH"),
        (npy(), {"max_item_bytes": 400}, "POINTS_TOO_MANY"),
    ],
)
def test_an_item_that_is_refused_by_its_header_does_not_hide_those_before(
    tmp_path, institutions, target, engine, last, limits, reason
) -> None:
    """Its bytes are not waited for; what came before is named with it."""
    served = Served(tmp_path, institutions[0], engine, max_items_per_job=3, **limits)
    kind = common_pb2.MEDIA_TYPE_PNG if last.startswith(b"\x89PNG") else common_pb2.MEDIA_TYPE_NPY
    sent = list(stream(pb.SubmitJobRequest, "item", file_header(kind, last), last))
    nan = to_npy(np.full((3, 2), math.nan, np.float32))
    with pytest.raises(NotFinite) as refused:
        served.ask("SubmitJob", iter([job_header(3), *messages([nan, to_npy(gaussian(3))]), *sent]))
    assert refused.value.facts["item"] == "0"
    assert refused_items(refused.value.facts) == {0: "NOT_FINITE", 2: reason}
    assert refused.value.facts["refused_count"] == "2"
    served.close()


def test_a_peer_that_is_away_is_no_reason_to_refuse(served, target) -> None:
    """The job is accepted, and waits."""
    target.server.stop(None).wait()
    job_id = served.submit(npy())
    job = served.ask("GetJob", pb.GetJobRequest(job_id=job_id)).job
    assert job.state in {pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING}


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
