"""Series that a PACS sends come back translated, each once, whatever is killed, refused, late or full; in quiet logs.

The PACS are pynetdicom's, over real associations, and the nodes are real. Orthanc is in test_orthanc.py.
"""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pynetdicom
import pytest

from ddib_fed import Profile, Request, Settings
from ddib_fed.cli.main import run
from ddib_fed.errors import DdibError, DomainNotFound, ExitCode, PeerUnreachable, SettingsInvalid, UsageError
from ddib_fed.formats.dicom_writing import KEPT
from ddib_fed.models.bundle import open_bundle
from ddib_fed.pacs import network as dicom_network
from ddib_fed.pacs import routing
from ddib_fed.pacs.exchange import delivery, into_folder
from ddib_fed.pacs.network import DicomPeer, OwnEntity
from ddib_fed.testing import free_port
from tests.e2e.harness import wait_until
from tests.e2e.in_process import InProcessNodes
from tests.e2e.translation.routes import MR, Pacs, routing_to, send, series
from tests.formats.dicom.files import words_of
from tests.formats.echoes import DICOM

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.usefixtures("without_leftovers"),
    # pynetdicom leaves sockets open where a peer is gone.
    *(
        pytest.mark.filterwarnings(f"ignore::{kind}")
        for kind in (
            "ResourceWarning",
            "pytest.PytestUnraisableExceptionWarning",
            "pytest.PytestUnhandledThreadExceptionWarning",
        )
    ),
]

SECRET = "Ada-Lovelace-1815"


@pytest.fixture(scope="module")
def folder_of_nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def profile(folder_of_nodes: Path) -> Iterator[Profile]:
    with InProcessNodes(folder_of_nodes, open_bundle("brain-t1"), open_bundle("brain-t2")) as nodes:
        yield Profile.load(nodes.profile())


def command_of(profile: Profile, *words: object) -> list[str]:
    given = ["--from", "SENDER@127.0.0.1", *map(str, words), "--profile", str(profile.path)]
    return ["dicom", "receive", "--evaluations", "8", *given]


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
    with Pacs() as pacs, routing_to(profile, tmp_path, delivery(profile, pacs.peer)) as route:
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


@pytest.mark.parametrize("stow", ["pacs/dicom-web", "ftp://pacs/dicom-web"])
def test_where_results_go_is_checked_before_anything_is_received(profile, stow):
    with pytest.raises(UsageError, match="is no address of DICOMweb"):
        delivery(profile, stow)
    with pytest.raises(UsageError, match="is no AE@HOST:PORT"):
        delivery(profile, "PACS")


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


def test_a_series_that_ends_the_process_again_and_again_fails(profile, tmp_path, log):
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: route.steps() == ["done"])
        (found,) = route.router.series.values()
        found.put(step=routing.Step.COMPLETE, starts=routing.MOST_STARTS, new=True)
        route.work(lambda: route.steps() == ["failed"])
    assert "this process ended" in log.text


def test_what_comes_late_joins_its_series_and_a_pacs_that_refuses_is_asked_again(
    profile, tmp_path, log, monkeypatch
):
    """However many associations bring it; it is translated as a whole, under the same identities."""
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.2)
    paths = series(tmp_path / "in", 4)
    with Pacs() as pacs, routing_to(profile, tmp_path, delivery(profile, pacs.peer)) as route:
        pacs.answers = [0xA700]
        for path in paths[:3]:
            send(route.port, path)
        route.work(lambda: route.steps() == ["done"])
        assert len(first := set(pacs.held)) == 3
        assert "refused an instance: out of resources (0xA700) [REFUSED]; again in" in log.text
        send(route.port, paths[3])
        route.work(lambda: len(pacs.held) == 4 and route.steps() == ["done"])
        assert first < set(pacs.held)
        assert len({each.SeriesInstanceUID for each in pacs.held.values()}) == 1


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
    assert "the picture cannot be read; is not translated [IMAGE_UNREADABLE]" in log.text
    assert "is synthetic itself" in log.text
    assert re.search(r"series \w{8}: not translated: .*percentiles say nothing", log.text)
    hint = rf"try: ddib translate {tmp_path}/spool/\w+/in --to south.example/brain-t2 --out /tmp/\w{{8}}\n"
    assert re.search(hint, log.text)


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
    monkeypatch.setattr(dicom_network, "RESERVE", 1 << 20)
    monkeypatch.setattr(dicom_network, "LOOK_S", 0.0)
    large, *small = series(tmp_path / "in", 3)
    dataset = pydicom.dcmread(large)
    dataset.PixelData = bytes(16 << 20)
    dataset.save_as(large)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out"), most_gib=2 / 1024) as route:
        peer = DicomPeer("DDIB", "127.0.0.1", route.port)
        with pytest.raises(DdibError, match="did not answer a C-STORE"):
            dicom_network.store(OwnEntity("SENDER"), peer, [large, small[0]], str)
        assert not [*(tmp_path / "spool" / ".arriving").iterdir()]
        assert send(route.port, *small) == [0, 0]
    assert re.search(
        r"SENDER@127.0.0.1: association aborted: \d+ MiB arrive, and the spool holds 0 MiB", log.text
    )


def test_a_series_has_a_bound_and_expires_once_it_was_tried(profile, tmp_path):
    with routing_to(
        profile, tmp_path, into_folder(tmp_path / "out"), most_instances=3, expire_h=1e-9
    ) as route:
        assert send(route.port, *series(tmp_path / "in", 4)) == [0, 0, 0, 0xA700]
        route.work(lambda: len([*(tmp_path / "out").glob("*/*.dcm")]) == 3)
        route.work(lambda: not route.router.series)
    assert not [path for path in (tmp_path / "spool").iterdir() if path.name[0] != "."]


@pytest.mark.parametrize("report", ["none", "sr"])
def test_what_expires_is_removed_at_once_or_reported(profile, tmp_path, log, report):
    """A result that the PACS did not take; there is nothing to keep another day where no report is asked for."""
    away = True

    def deliver(files, stored):
        if away:
            raise PeerUnreachable("away")
        into_folder(tmp_path / "out")(files, stored)

    with routing_to(profile, tmp_path, deliver, report=report, expire_h=1.0) as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: [each.tries for each in route.router.series.values()] == [1])
        route.router.clock.since -= 4000
        away = False
        route.router._held = 0.0  # as if the PACS had come back
        route.router.step()
        assert "expired, and was not handed on" in log.text
        if report == "none":
            assert not route.router.series
            assert not [*(tmp_path / "spool").glob("*/in")]
            return
        route.work(lambda: route.steps() == ["failed"])
    (made,) = (tmp_path / "out").rglob("*.dcm")
    said = pydicom.dcmread(made).ContentSequence[0].TextValue
    assert said.endswith("could be handed on within 1 h")


def test_what_was_received_waits_for_a_receiver_that_was_off_for_days(profile, tmp_path, monkeypatch):
    """A weekend off, or a clock that NTP sets after the start, expires nothing."""
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        assert send(route.port, *series(tmp_path / "in")) == [0] * 3
    later = SimpleNamespace(time=lambda: time.time() + 3 * 86_400, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(routing, "time", later)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        route.work(lambda: route.steps() == ["done"])
    assert len([*(tmp_path / "out").glob("*/*.dcm")]) == 3


def test_a_series_expires_by_the_time_that_receivers_have_run(profile, tmp_path, monkeypatch):
    """Of several processes together: the clock is on the disk."""
    monkeypatch.setattr(routing, "CLOCK_S", 0.0)
    for _ in range(3):
        with routing_to(profile, tmp_path, into_folder(tmp_path / "out"), expire_h=1.0) as route:
            if not route.router.series:
                send(route.port, *series(tmp_path / "in"))
            route.work(lambda: route.steps() == ["done"])
            route.router.clock.since -= 1500
            route.router.step()
    assert not route.router.series


def test_an_error_that_is_none_of_ours_ends_its_series_after_a_bound_of_tries(
    profile, tmp_path, log, monkeypatch
):
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.02)

    def fails(files, stored):
        raise ValueError(SECRET)

    with routing_to(profile, tmp_path, fails) as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: route.steps() == ["failed"])
    assert log.text.count("ValueError; again in") == routing.MOST_STARTS
    assert "not translated: ValueError" in log.text
    assert SECRET not in log.text


def spoiled(path: Path, tag: Any, value: str) -> Path:
    """A file whose element has a value that it should not have, of any VR."""
    dataset = pydicom.dcmread(path)
    raw, kind = value.encode(), dataset[tag].VR
    dataset[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(raw), raw, 0, False, True)
    dataset.save_as(path)
    return path


def send_as_they_are(port: int, *paths: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    entity = pynetdicom.AE("SENDER")
    entity.add_requested_context(MR, pydicom.uid.ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="DDIB")
    with monkeypatch.context() as patch:
        patch.setattr(pynetdicom._config, "STORE_SEND_CHUNKED_DATASET", True)
        codes = [int(association.send_c_store(path).get("Status", -1)) for path in paths]
    association.release()
    return codes


def test_no_value_of_any_element_is_in_the_log(profile, tmp_path, log, monkeypatch):
    """Each in a series of its own; it is translated, refused or fails, and none is tried without end."""
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.02)
    (example,) = series(
        tmp_path / "example", 1, SeriesDescription="d", RescaleType="US", BurnedInAnnotation="NO"
    )
    tags = [element.tag for element in pydicom.dcmread(example)]
    paths = []
    for at, tag in enumerate(tags):
        (path,) = series(
            tmp_path / f"in{at}", 1, SeriesDescription="d", RescaleType="US", BurnedInAnnotation="NO"
        )
        kept = tag.group == 0x0010 or pydicom.datadict.keyword_for_tag(tag) in KEPT
        if not (
            kept and pydicom.datadict.dictionary_VR(tag) in {"DS", "IS"}
        ):  # blank: it fails when it is read
            spoiled(path, pydicom.tag.Tag("PixelData"), "\0" * 2 * 48 * 48)
        paths.append(spoiled(path, tag, f"CANARY{at:03}ADA "))
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        codes = send_as_they_are(route.port, *paths, monkeypatch=monkeypatch)
        route.work(lambda: set(route.steps()) == {"done", "failed"}, 300)
    assert {*codes} == {0, 0xC000}
    assert len(tags) > 60
    assert "an instance is refused" in log.text
    assert "CANARY" not in log.text.upper()


def test_the_daemon_logs_no_value_of_a_header_either(profile, tmp_path, monkeypatch):
    """Whatever it imports first: pydicom sets the level of its log when it is imported."""
    port, log = free_port(), tmp_path / "log.txt"
    words = command_of(profile, "--to", "south.example/brain-t2", "--port", port, "--out", tmp_path / "out")
    good = series(tmp_path / "in", 2)
    for at, name in enumerate(("PatientBirthDate", "SeriesNumber", "TimezoneOffsetFromUTC", "WindowCenter")):
        spoiled(good[0], pydicom.tag.Tag(name), f"CANARY{at}ADA ")
    refused = spoiled(*series(tmp_path / "no", 1), pydicom.tag.Tag("PhotometricInterpretation"), "CANARY9ADA")
    with log.open("w") as file:
        daemon = subprocess.Popen([sys.executable, "-m", "ddib_fed", *words], stdout=file, stderr=file)
    try:
        wait_until(lambda: "receiving as" in log.read_text(), seconds=120)
        send_as_they_are(port, refused, *good, monkeypatch=monkeypatch)
        wait_until(lambda: re.search(r"handed on|not translated|again in", log.read_text()), seconds=120)
    finally:
        daemon.terminate()
        assert daemon.wait(60) == 0
    assert "an instance is refused" in log.read_text()
    assert "CANARY" not in log.read_text().upper()


def test_a_set_up_that_cannot_work_is_said_before_anything_is_received(profile):
    """What the node has against the settings, and what the target serves; a node that is away may come back."""
    other = Settings(evaluations=11, grid="learned")
    routing.check_setup(profile, "south.example/brain-t2", Request(Settings(evaluations=8)))
    with pytest.raises(SettingsInvalid) as caught:
        routing.check_setup(profile, "south.example/brain-t2", Request(other))
    assert caught.value.facts["evaluations"] == "11"
    with pytest.raises(DomainNotFound) as unknown:
        routing.check_setup(profile, "south.example/flair", Request(Settings(evaluations=8)))
    assert unknown.value.facts["served"] == "brain-t2"


def test_settings_that_a_model_no_longer_takes_do_not_end_a_series(profile, tmp_path, log, monkeypatch):
    """Its model was replaced; the log has the facts, and the series waits for the operator."""
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.02)
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out"), grid="learned") as route:
        send(route.port, *series(tmp_path / "in"))
        route.work(lambda: log.text.count("again in") > 5)
        assert route.steps() == ["complete"]
    assert re.search(
        "the settings are not valid; evaluations 8; learned .* \\[SETTINGS_INVALID]; again in", log.text
    )


@pytest.mark.parametrize("routes", [0, 1])
def test_either_the_command_or_the_profile_says_where_series_go(profile, tmp_path, capfd, routes):
    text = profile.path.read_text() + '\n[[dicom.route]]\nto = "south.example/brain-t2"\n' * routes
    folder = profile.path.parent
    (other := folder / f"client-{routes}.toml").write_text(text)
    words = command_of(Profile.load(other), "--out", tmp_path, *["--to", "south.example/brain-t2"] * routes)
    assert run(words) == ExitCode.USAGE
    assert "one of --to and [[dicom.route]] says where series go" in capfd.readouterr().err


ROUTES = (
    {"to": "south.example/flair", "series_description": "*FLAIR*"},
    {
        "to": "south.example/brain-t2", "modality": "mr", "image_type": r"ORIGINAL\PRIMARY*",
        "body_part_examined": "[HB]*",
    },
)  # fmt: skip


def test_routes_send_series_to_targets_and_leave_the_rest_with_a_report(profile, tmp_path, log, monkeypatch):
    """The first that takes all instances; a report is in the same study, and quotes no header."""
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.2)
    head = {"BodyPartExamined": "HEAD", "ImageType": ["ORIGINAL", "PRIMARY", "M"]}
    given = [
        head, {**head, "BodyPartExamined": "KNEE"}, {**head, "ImageType": ["DERIVED", "PRIMARY"]},
        {**head, "SeriesDescription": "t2 flair"},
    ]  # fmt: skip
    paths = [series(tmp_path / f"in{at}", SeriesNumber=at + 1, **each) for at, each in enumerate(given)]
    knee = pydicom.dcmread(paths[1][0])
    with (
        Pacs() as pacs,
        routing_to(profile, tmp_path, delivery(profile, pacs.peer), route=ROUTES, report="sr") as route,
    ):
        send(route.port, *(path for each in paths for path in each))
        route.work(lambda: sorted(route.steps()) == ["complete", "done", "failed", "failed"], 120)
        assert "no such domain; asked flair; served brain-t2 [DOMAIN_NOT_FOUND]; again in" in log.text
    assert (
        log.text.count(
            "not translated: the input cannot be used; no [[dicom.route]] takes it [INPUT_INVALID]"
        )
        == 2
    )
    reports = [each for each in pacs.held.values() if each.Modality == "SR"]
    assert (len(reports), len(pacs.held)) == (2, 5)
    assert {each.StudyInstanceUID for each in reports} == {knee.StudyInstanceUID}
    (report,) = [
        each for each in reports
        if each.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID
        == knee.SeriesInstanceUID
    ]  # fmt: skip
    assert report.PatientID == knee.PatientID
    assert report.ContentSequence[0].TextValue == (
        "The series of this image was not translated: "
        "the input cannot be used; no [[dicom.route]] takes it [INPUT_INVALID]"
    )


def test_a_report_waits_for_a_pacs_and_a_late_instance_takes_it_back(profile, tmp_path, log, monkeypatch):
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.2)
    paths = series(tmp_path / "in", 4)
    blank = pydicom.dcmread(paths[0])
    blank.PixelData = bytes(len(blank.PixelData))
    blank.save_as(paths[0])
    with Pacs() as pacs, routing_to(profile, tmp_path, delivery(profile, pacs.peer), report="sr") as route:
        pacs.answers = [0xA700]
        send(route.port, paths[0])
        route.work(lambda: route.steps() == ["failed"])
        assert "(0xA700) [REFUSED]; again in" in log.text
        (report,) = pacs.held.values()
        assert report.SOPClassUID == pydicom.uid.BasicTextSRStorage
        send(route.port, *paths[1:])
        route.work(lambda: route.steps() == ["done"])
        assert len(pacs.held) == 5


def test_a_series_with_a_malformed_header_is_reported_too(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(routing, "FIRST_RETRY_S", 0.02)
    (path,) = series(tmp_path / "in", 1, PatientID=SECRET)
    spoiled(path, pydicom.tag.Tag("InstanceNumber"), "CANARY0ADA")
    with Pacs() as pacs, routing_to(profile, tmp_path, delivery(profile, pacs.peer), report="sr") as route:
        assert send_as_they_are(route.port, path, monkeypatch=monkeypatch) == [0]
        route.work(lambda: route.steps() == ["failed"])
    (report,) = pacs.held.values()
    assert (report.Modality, report.PatientID) == ("SR", SECRET)


def test_a_series_much_larger_than_the_model_is_refused(profile, tmp_path, log):
    with routing_to(profile, tmp_path, into_folder(tmp_path / "out")) as route:
        send(route.port, *series(tmp_path / "in", 1, larger=3))
        route.work(lambda: route.steps() == ["failed"])
        assert not [*route.folder.glob("spool/*/out/**/*")]
    assert "[dicom] most_shrink allows; computed_at 48 x 48; shrink 3; most_shrink 2" in log.text
