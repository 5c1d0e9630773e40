"""Series that a PACS sends come back translated, each once, whatever is killed, refused, late or full; in quiet logs.

The PACS are pynetdicom's, over real associations, and the nodes are real. Orthanc is in tests/test_orthanc.py.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydicom
import pynetdicom
import pytest

from ddib_fed.client import routing
from ddib_fed.client.client import job_header
from ddib_fed.client.exchange import delivery, into_folder
from ddib_fed.client.folder_run import RunOptions, RunProgress
from ddib_fed.client.profile import DicomSettings, Profile
from ddib_fed.client.routing import Router
from ddib_fed.data.shipped import shipped_bytes
from ddib_fed.errors import PeerUnreachable, UsageError
from ddib_fed.formats import dicom_network
from ddib_fed.formats.dicom_network import DicomPeer, OwnEntity, Receiver
from ddib_fed.models.bundle import open_bundle
from ddib_fed.record import Settings
from tests.e2e.harness import free_port, wait_until
from tests.e2e.two_nodes import TwoNodes
from tests.formats.dicom.files import words_of, write_series
from tests.formats.echoes import DICOM

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.usefixtures("without_leftovers"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

MR = pydicom.uid.MRImageStorage
SECRET = "Ada-Lovelace-1815"
READING = {"intensity": "auto", "slices": "auto", "tile": "auto"}
(PLANES,) = shipped_bytes("brain-t1", ["test"])


@pytest.fixture(scope="module")
def folder_of_nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def profile(folder_of_nodes: Path) -> Iterator[Profile]:
    nodes = TwoNodes(folder_of_nodes, open_bundle("brain-t1"), open_bundle("brain-t2"))
    try:
        yield Profile.load(nodes.profile())
    finally:
        nodes.close()


class Pacs:
    """Stores what it is sent, by SOP Instance UID; `answers` are the statuses of its next answers."""

    def __init__(self) -> None:
        self.held: dict[str, pydicom.Dataset] = {}
        self.received = 0
        self.answers: list[int] = []
        self.entity = pynetdicom.AE("PACS")
        for each in (MR, "1.2.840.10008.1.1"):
            self.entity.add_supported_context(each)
        self.port = free_port()

    def __enter__(self) -> Self:
        handlers = [(pynetdicom.evt.EVT_C_STORE, self._store)]
        self.server = self.entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()

    def _store(self, event: Any) -> int:
        if self.answers and (status := self.answers.pop(0)):
            return status
        self.received += 1
        path = event.dataset_path
        self.held[str(event.request.AffectedSOPInstanceUID)] = pydicom.dcmread(path)
        path.unlink()
        return 0

    @property
    def peer(self) -> str:
        return f"PACS@127.0.0.1:{self.port}"


class Route:
    """A receiver and its router in this process, with a spool of its own."""

    def __init__(self, profile: Profile, folder: Path, deliver: Any, **settings: Any) -> None:
        self.profile, self.folder, self.deliver = profile, folder, deliver
        self.evaluations = settings.pop("evaluations", 8)
        self.settings = DicomSettings(**{"quiet_s": 0.5, **settings})
        self.port = free_port()
        self.start()

    def start(self) -> Route:
        header = job_header("south.example/brain-t2", Settings(evaluations=self.evaluations))
        options = RunOptions(self.profile, header, Path(), RunProgress())
        busy: dict[int, float] = {}
        self.router = Router(self.folder / "spool", options, dict(READING), self.settings, self.deliver, busy)
        callers = [DicomPeer("SENDER", "127.0.0.1")]
        self.receiver = Receiver(
            OwnEntity("DDIB"), self.port, self.folder / "spool" / ".arriving", callers, self.router.keep,
            self.router.ended, routing.log.warning, self.settings.most_associations, busy=busy,
            room=self.router.room,
        )  # fmt: skip
        self.receiver.start()
        return self

    def work(self, until: Any, seconds: float = 60.0) -> None:
        """Let the router work in this thread, until something holds."""

        def holds() -> bool:
            self.router.step()
            return bool(until())

        wait_until(holds, seconds=seconds)

    def steps(self) -> list[str]:
        return sorted(str(each.state.step) for each in self.router.series.values())


@contextlib.contextmanager
def routing_to(profile: Profile, folder: Path, deliver: Any, **settings: Any) -> Iterator[Route]:
    route = Route(profile, folder, deliver, **settings)
    try:
        yield route
    finally:
        route.receiver.stop()


def send(port: int, *paths: Path, aet: str = "SENDER", called: str = "DDIB") -> list[int]:
    entity = pynetdicom.AE(aet)
    kinds = {pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID for path in paths}
    for kind in kinds:
        entity.add_requested_context(kind)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    assert association.is_established
    try:
        return [int(association.send_c_store(path).get("Status", -1)) for path in paths]
    finally:
        association.release()


def series(folder: Path, slices: int = 3, first: int = 0, **changes: Any) -> list[Path]:
    return write_series(folder, PLANES[first : first + slices, 0].astype(np.uint16) * 4, **changes)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_a_study_comes_back_as_derived_series_of_the_same_study(profile, folder_of_nodes, tmp_path, log):
    """Each once; sent again, the PACS replaces what it has. No text of a header is in the log or at the nodes."""
    study, changes = pydicom.uid.generate_uid(), {"PatientName": SECRET, "PatientID": f"{SECRET}-id"}
    given = [
        series(tmp_path / f"s{n}", first=n, StudyInstanceUID=study, SeriesNumber=n, **changes) for n in (1, 2)
    ]
    with Pacs() as pacs, routing_to(profile, tmp_path, delivery(profile, pacs.peer, None)) as route:
        assert send(route.port, *given[0], *given[1]) == [0] * 6
        route.work(lambda: route.steps() == ["done", "done"])
        assert pacs.received == 6
        first = dict(pacs.held)
        assert send(route.port, *given[0]) == [0] * 3
        route.work(lambda: pacs.received == 9 and route.steps() == ["done", "done"])
        assert pacs.held.keys() == first.keys()
    sources = {str(pydicom.dcmread(path).SOPInstanceUID) for paths in given for path in paths}
    assert {str(each.SourceImageSequence[0].ReferencedSOPInstanceUID) for each in first.values()} == sources
    assert {each.StudyInstanceUID for each in first.values()} == {study}
    assert len({each.SeriesInstanceUID for each in first.values()}) == 2
    assert {str(each.PatientName) for each in first.values()} == {SECRET}
    words = set().union(*(words_of(path) for paths in given for path in paths)) | {SECRET, study}
    assert len(words) > 20
    assert [word for word in words if word in log.text] == []
    at_nodes = [path for path in folder_of_nodes.rglob("*") if path.is_file()]
    assert any(b"SQLite" in path.read_bytes()[:16] for path in at_nodes)
    held = b"".join(path.read_bytes() for path in at_nodes)
    assert [word for word in words if word.encode() in held] == []


def test_the_log_says_at_what_size_a_series_was_computed_and_what_was_left_out(profile, tmp_path, log):
    """What is derived says the same of its resolution; the localizer of the series has no result."""
    larger = PLANES[:2, 0].astype(np.uint16).repeat(2, axis=1).repeat(2, axis=2) * 4
    uid = pydicom.uid.generate_uid()
    paths = write_series(tmp_path / "in", larger, SeriesInstanceUID=uid)
    looks = {"SeriesInstanceUID": uid, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    paths += write_series(tmp_path / "scout", larger[:1], **looks)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        assert send(route.port, *paths) == [0] * 3
        route.work(lambda: route.steps() == ["done"])
    lost = "was computed at 48 x 48 pixels, not at its own 96 x 96, and enlarged: 4 pixels became one"
    assert f": {lost}\n" in log.text
    assert "1 DICOM localizer" in log.text
    made = [pydicom.dcmread(path) for path in (tmp_path / "out").glob("*/*.dcm")]
    assert [(lost in each.DerivationDescription, each.SpatialResolution) for each in made] == [(True, 3)] * 2


@pytest.mark.parametrize("stow", ["pacs/dicom-web", "ftp://pacs/dicom-web"])
def test_where_results_go_is_checked_before_anything_is_received(profile, stow):
    with pytest.raises(UsageError, match="is no address of DICOMweb"):
        delivery(profile, None, stow)
    with pytest.raises(UsageError, match="is no AE@HOST:PORT"):
        delivery(profile, "PACS", None)


def test_what_was_received_outlives_the_receiver(profile, tmp_path):
    """Killed between reception and translation, and again after the second of three deliveries."""
    paths, sent = series(tmp_path / "in"), list[str]()

    def stops_after_two(files, stored):
        for path in files:
            if len(sent) == 2:
                raise PeerUnreachable("the PACS is down")
            sent.append(path.name)
            stored(path)

    with routing_to(profile, tmp_path, stops_after_two) as route:
        assert send(route.port, *paths) == [0] * 3
    with routing_to(profile, tmp_path, stops_after_two) as route:
        route.work(lambda: len(sent) == 2)
    rest: list[str] = []
    with routing_to(
        profile, tmp_path, lambda files, stored: [(rest.append(p.name), stored(p)) for p in files]
    ) as route:
        route.work(lambda: route.steps() == ["done"])
    assert sorted(sent + rest) == ["0001.dcm", "0002.dcm", "0003.dcm"]


def test_a_kill_after_the_last_delivery_and_one_in_a_removal_are_nothing_to_the_next_process(
    profile, tmp_path
):
    """All was sent and the end of it not noted; a folder half removed; one whose state is of a later release."""
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: route.steps() == ["done"])
        (found,) = route.router.series.values()
        found.put(step=routing.Step.COMPLETE)
        state = (found.folder / "state.json").read_text()
    later, half, other = (tmp_path / "spool" / name for name in ("a" * 32, "b" * 32, "photographs"))
    for folder in (later / "in", half / "out", other):
        folder.mkdir(parents=True)
    (later / "state.json").write_text(state[:-1] + ', "colour": 1}')
    with routing_to(profile, tmp_path, lambda files, _: pytest.fail("sent again")) as route:
        route.work(lambda: route.steps() == ["done"])
    assert later.exists()
    assert other.exists()
    assert not half.exists()


def test_a_request_that_changed_is_made_anew(profile, tmp_path, monkeypatch):
    """The PACS was down, and the operator restarted the receiver with other options."""
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.2)

    def down(files, stored):
        raise PeerUnreachable("down")

    with routing_to(profile, tmp_path, down) as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: [*route.folder.glob("spool/*/out/in/*/*.dcm")])
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out"), evaluations=9) as route:
        route.work(lambda: route.steps() == ["done"])
    assert len([*(tmp_path / "out").glob("*/*.dcm")]) == 3


def test_a_pacs_that_is_away_for_long_gets_all_that_has_not_expired(profile, tmp_path, log, monkeypatch):
    """However often it was tried in vain; what expires is said to."""
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(routing, "LAST_RETRY_S", 0.1)
    tries = 0

    def away(files, stored):
        nonlocal tries
        tries += 1
        if tries < 15:
            raise PeerUnreachable("away")
        into_folder(tmp_path / "out")(files, stored)

    with routing_to(profile, tmp_path, away) as route:
        for number in range(3):
            send(route.port, *series(tmp_path / f"in{number}", first=number))
        route.work(lambda: route.steps() == ["done"] * 3)
    assert tries >= 15
    tries = -10_000
    with routing_to(profile, tmp_path / "other", away, expire_h=3 / 3600) as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: not route.router.series)
    assert "expired, and was not handed on" in log.text
    assert "not translated" not in log.text


def test_a_series_that_ends_the_process_again_and_again_fails(profile, tmp_path, log):
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: route.steps() == ["done"])
        (found,) = route.router.series.values()
        found.put(step=routing.Step.COMPLETE, starts=routing.MOST_STARTS, new=True)
        route.work(lambda: route.steps() == ["failed"])
    assert f"this process ended {routing.MOST_STARTS} times" in log.text


def test_what_comes_late_joins_its_series(profile, tmp_path):
    """It is translated as a whole, under the same identities."""
    paths = series(tmp_path / "in", 4)
    with Pacs() as pacs, routing_to(profile, tmp_path, delivery(profile, pacs.peer, None)) as route:
        send(route.port, *paths[:3])
        route.work(lambda: route.steps() == ["done"])
        first = set(pacs.held)
        send(route.port, paths[3])
        route.work(lambda: len(pacs.held) == 4 and route.steps() == ["done"])
        assert first < set(pacs.held)


def test_a_pacs_that_refuses_is_asked_again(profile, tmp_path, log, monkeypatch):
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.2)
    with Pacs() as pacs, routing_to(profile, tmp_path, delivery(profile, pacs.peer, None)) as route:
        pacs.answers = [0xA700]
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: route.steps() == ["done"])
        assert len(pacs.held) == 3
    assert "refused an instance: out of resources (0xA700) [REFUSED]; again in" in log.text


def test_what_cannot_be_translated_does_not_stop_the_rest(profile, tmp_path, log):
    """A palette and what is synthetic already are refused; a series that the model does not take fails, and is said."""
    good, short = series(tmp_path / "in"), series(tmp_path / "flat", Modality="MR")
    for path in short:
        dataset = pydicom.dcmread(path)
        dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.save_as(path)
    synthetic = tmp_path / "synthetic.dcm"
    dataset = pydicom.dcmread(good[0])
    dataset.SyntheticData, dataset.SOPInstanceUID = "YES", pydicom.uid.generate_uid()
    dataset.save_as(synthetic)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        codes = send(route.port, DICOM / "examples_palette.dcm", *short, synthetic, *good)
        assert codes == [0xC000, 0, 0, 0, 0xC000, 0, 0, 0]
        route.work(lambda: route.steps() == ["done", "failed"])
    assert len([*(tmp_path / "out").glob("*/*.dcm")]) == 3
    assert "holds PALETTE COLOR of 8 bits, which is not translated" in log.text
    assert "is synthetic itself" in log.text
    assert re.search(r"series \w{8}: not translated: .*all its values are 0", log.text)


def test_a_full_spool_refuses_and_makes_room_of_what_is_done(profile, tmp_path, log):
    first, second = series(tmp_path / "in1", 8), series(tmp_path / "in2", 3, first=9)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out"), most_gib=60e3 / (1 << 30)) as route:
        assert send(route.port, *first) == [0] * 8
        assert 0xA700 in send(route.port, *second)
        route.work(lambda: set(route.steps()) == {"done"})
        assert send(route.port, *second) == [0] * 3
        route.work(lambda: len([*(tmp_path / "out").glob("*/*.dcm")]) == 11)
    assert "an instance is refused: the spool holds" in log.text


def test_an_instance_that_a_spool_cannot_hold_is_broken_off(profile, tmp_path, log, monkeypatch):
    """While it arrives; the next that fits is taken."""
    monkeypatch.setattr(dicom_network, "RESERVE", 1 << 20)
    monkeypatch.setattr(dicom_network, "LOOK_S", 0.0)
    large, *small = series(tmp_path / "in", 3)
    dataset = pydicom.dcmread(large)
    dataset.PixelData = bytes(16 << 20)
    dataset.save_as(large)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out"), most_gib=2 / 1024) as route:
        assert send(route.port, large, small[0]) == [-1, -1]
        assert not [*(tmp_path / "spool" / ".arriving").iterdir()]
        assert send(route.port, *small) == [0, 0]
    assert re.search(
        r"SENDER@127.0.0.1: association aborted: \d+ MiB arrive, and the spool holds 0 MiB", log.text
    )


def test_a_series_has_a_bound_and_expires(profile, tmp_path, log):
    paths = series(tmp_path / "in", 4)
    with routing_to(
        profile, tmp_path, into_folder(tmp_path / "out"), most_instances=3, expire_h=1e-3
    ) as route:
        assert send(route.port, *paths) == [0, 0, 0, 0xA700]
        route.work(lambda: not route.router.series)
    assert not [path for path in (tmp_path / "spool").iterdir() if path.name[0] != "."]


@pytest.mark.parametrize(
    ("aet", "called", "why"),
    [
        ("NOBODY", "DDIB", "--from does not have its AE title with this address"),
        ("SENDER", "OTHER", "it calls OTHER, this is DDIB"),
    ],
)
def test_a_stranger_is_rejected(profile, tmp_path, log, aet, called, why):
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        entity = pynetdicom.AE(aet)
        entity.add_requested_context(MR)
        assert entity.associate("127.0.0.1", route.port, ae_title=called).is_rejected
    assert why in log.text


def test_an_association_for_each_instance_makes_one_series(profile, tmp_path):
    paths = series(tmp_path / "in", 4)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        for path in paths:
            send(route.port, path)
        route.work(lambda: route.steps() == ["done"])
    ((folder, *_),) = [[*(tmp_path / "out").iterdir()]]
    assert len([*folder.iterdir()]) == 4
