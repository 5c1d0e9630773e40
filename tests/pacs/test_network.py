"""Peers that are set up wrongly, each named by its cause; TLS both ways; and logins of DICOMweb."""

import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
import pytest

from ddib_fed.errors import ConfigError, DdibError, RefusedError, UsageError
from ddib_fed.pacs import network as dicom_network
from ddib_fed.pacs.dicomweb import Web, parts
from ddib_fed.pacs.network import (
    VERIFICATION,
    DicomPeer,
    OwnEntity,
    Receiver,
    _contexts,
    echo,
    fetch,
    parse_query,
    store,
)
from ddib_fed.pacs.network import associated as association
from ddib_fed.testing import free_port
from tests.e2e.harness import wait_until
from tests.formats.echoes import DICOM
from tests.pacs.peers import (
    MULTIPART,
    answers,
    associated,
    fragment,
    make_certificates,
    multipart,
    pynetdicom_peer,
    silent,
    store_request,
    tls_peer,
    web,
)

# Which pynetdicom leaves open where an association is not made.
pytestmark = [
    pytest.mark.usefixtures("without_leftovers"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CT, MR = pydicom.uid.CTImageStorage, pydicom.uid.MRImageStorage
UID = str(pydicom.dcmread(DICOM / "CT_small.dcm").SOPInstanceUID)
FIND, MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tests whose peer says nothing."""
    monkeypatch.setattr(dicom_network, "CONNECT_S", 2.0)


def cause(call) -> str:
    with pytest.raises(DdibError) as caught:
        call()
    assert caught.value.hint
    return caught.value.detail


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ([VERIFICATION], "accepts no storage"),
        ([FIND], "accepted the association and no presentation context of it: CT"),
    ],
)
def test_a_peer_that_stores_nothing_is_named(classes, says):
    with pynetdicom_peer(classes) as port:
        assert says in cause(lambda: echo(OwnEntity("DDIB"), DicomPeer("PEER", "127.0.0.1", port)))


def test_rejections_are_named_by_their_reason(tmp_path):
    port, said = free_port(), list[str]()
    receiver = Receiver(
        OwnEntity("DDIB"), port, tmp_path / "in", [DicomPeer("KNOWN", "127.0.0.1")], lambda *_: 0, say=said.append
    )  # fmt: skip
    receiver.start()
    try:
        says = cause(lambda: echo(OwnEntity("STRANGER"), DicomPeer("DDIB", "127.0.0.1", port)))
        assert "rejected the association: it does not know the AE title STRANGER" in says
        says = cause(lambda: echo(OwnEntity("KNOWN"), DicomPeer("OTHER", "127.0.0.1", port)))
        assert "rejected the association: its AE title is not OTHER" in says
        assert "--from does not have its AE title with this address" in said[0]
        assert any("it calls OTHER, this is DDIB" in line for line in said)
        assert "stores MR, CT" in echo(OwnEntity("KNOWN"), DicomPeer("DDIB", "127.0.0.1", port))
        with pytest.raises(ConfigError, match=f"port {port} cannot be listened at: Address already in use"):
            Receiver(OwnEntity("DDIB"), port, tmp_path / "other", [], lambda *_: 0).start()
    finally:
        receiver.stop()


def test_a_peer_that_is_not_there_is_named(impatience):
    own, port = OwnEntity("DDIB"), free_port()
    says = cause(lambda: echo(own, DicomPeer("PEER", "127.0.0.1", port)))
    assert f"nothing listens at 127.0.0.1:{port}" in says
    says = cause(lambda: echo(own, DicomPeer("PEER", "pacs.invalid", port)))
    assert "there is no host pacs.invalid" in says
    with silent() as mute:
        says = cause(lambda: echo(own, DicomPeer("PEER", "127.0.0.1", mute)))
        assert "accepts connections and does not answer" in says


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize(
    ("ours", "theirs", "host", "says"),
    [
        ("ours", "theirs", "localhost", ""),
        ("ours", "theirs", "127.0.0.1", "certificate is not accepted: IP address mismatch"),
        ("ours", "unknown", "localhost", "certificate is not accepted: unable to get local issuer"),
        ("stranger", "theirs", "localhost", "it refuses our certificate"),
        (None, "theirs", "localhost", "accepts connections and does not answer"),
        ("ours", None, "localhost", "breaks the TLS handshake off|no TLS at"),
    ],
)
def test_tls_is_of_both_sides(impatience, certificates, ours, theirs, host, says):
    """An association where each accepts the other's certificate; else what is wrong with which."""
    own = OwnEntity("DDIB", ours and certificates / ours)
    there = tls_peer(certificates / theirs) if theirs else pynetdicom_peer([VERIFICATION, MR])
    with there as port:
        peer = DicomPeer("PEER", host, port)
        if not says:
            assert echo(own, peer) == "answers DDIB, stores MR"
            return
        found = cause(lambda: echo(own, peer))
        assert any(each in found for each in says.split("|"))


@contextlib.contextmanager
def receiving(folder: Path, tls: Path | None = None, **how: Any) -> Iterator[tuple[int, list[str]]]:
    """A receiver for SENDER and another of 127.0.0.3, of two associations each; its port, and what it says."""
    port, said = free_port(), list[str]()
    callers = [DicomPeer("SENDER", "localhost"), DicomPeer("OTHER", "127.0.0.3")]
    keep = how.pop("keep", lambda *_: 0)
    receiver = Receiver(OwnEntity("DDIB", tls), port, folder, callers, keep, say=said.append, most=2, **how)
    receiver.start()
    try:
        yield port, said
    finally:
        receiver.stop()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1", "2 connections without an association"),
        ("127.0.0.2", "connection closed: no caller has this address"),
        ("127.0.0.3", "2 connections without an association"),
    ],
)
def test_connections_without_an_association_keep_nobody_out(certificates, tmp_path, address, says, tls):
    """Of a stranger, of another caller, of a sender itself; with TLS no handshake is begun."""
    peer, own = "DDIB@localhost:", OwnEntity("SENDER", certificates / "ours" if tls else None)
    with (
        receiving(tmp_path, certificates / "theirs" if tls else None) as (port, said),
        contextlib.ExitStack() as stack,
    ):
        for _ in range(12):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), source_address=(address, 0)))
        assert (
            echo(own, DicomPeer.parse(f"{peer}{port}")) == "answers SENDER, stores MR, CT, SecondaryCapture"
        )
        assert len([line for line in said if f"{address}: " in line and says in line]) == 1


def test_an_address_has_so_many_associations_and_takes_none_of_others(tmp_path):
    with receiving(tmp_path) as (port, said), contextlib.ExitStack() as stack:
        peer = DicomPeer("DDIB", "127.0.0.1", port)
        for _ in range(2):
            stack.enter_context(association(OwnEntity("SENDER"), peer, _contexts([VERIFICATION])))
        assert "it has as many associations as it takes" in cause(lambda: echo(OwnEntity("SENDER"), peer))
        assert any("its address has [dicom] most_associations, 2, already" in line for line in said)
        other = pynetdicom.AE("OTHER")
        other.add_requested_context(VERIFICATION)
        found = other.associate("127.0.0.1", port, ae_title="DDIB", bind_address=("127.0.0.3", 0))
        assert found.send_c_echo().Status == 0
        found.release()


def test_an_association_request_of_600_megabytes_is_not_received(tmp_path):
    with receiving(tmp_path) as (port, said), socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"\1\0" + (600_000_000).to_bytes(4, "big"))
        assert link.recv(10)[:1] == b"\7"  # an A-ABORT
        assert "?@127.0.0.1: association aborted: it sends a PDU of 600,000,000 bytes" in said[0]


@pytest.mark.parametrize(
    ("control", "begun"),
    [(1, b""), (0, b""), (1, store_request())],
    ids=["a command", "a data set of no command", "a command in place of the instance that was announced"],
)
def test_a_message_without_an_end_is_cut(tmp_path, control, begun):
    with receiving(tmp_path) as (port, said), associated(port, "SENDER") as link:
        link.sendall(begun)
        with contextlib.suppress(OSError):
            for _ in range(64):
                link.sendall(fragment(control, bytes(65_536)))
        wait_until(lambda: said, what="the end of the association")
        assert "SENDER@127.0.0.1: association aborted: it sends more than 1,048,576 bytes" in said[0]


def test_instances_that_nobody_answers_any_more_are_not_left(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def keep(*_: object) -> int:
        begun.set()
        go_on.wait(60)
        return 0

    with receiving(tmp_path / "in", keep=keep) as (port, _), associated(port, "SENDER") as link:
        for _ in range(8):
            link.sendall(store_request() + fragment(2, bytes(1 << 16)))
        assert begun.wait(60)
        wait_until(lambda: len([*(tmp_path / "in").iterdir()]) == 8, what="eight instances")
        link.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: len([*(tmp_path / "in").iterdir()]) == 1, what="the end of those that wait")
        go_on.set()
        wait_until(lambda: not [*(tmp_path / "in").iterdir()], what="the end of the one that was kept")


def test_messages_that_wait_are_bounded(tmp_path):
    go_on = threading.Event()
    with (
        receiving(tmp_path, keep=lambda *_: int(go_on.wait(60))) as (port, said),
        associated(port, "SENDER") as link,
    ):
        with contextlib.suppress(OSError):
            for _ in range(64):
                link.sendall(store_request() + fragment(2, bytes(64)))
        wait_until(lambda: said, what="the end of the association")
        go_on.set()
    assert "it sends more than 10 messages without waiting for an answer; try: its log says why" in said[0]


def test_an_answer_to_a_query_is_bounded(tmp_path):
    """A PACS that answers with 3 MB of one value; the query ends then, and not when the wait for an answer would."""
    with archive(["1.2." * 800_000], [], own=1) as peer:
        says = cause(lambda: fetch(OwnEntity("DDIB"), peer, free_port(), {"PatientID": "1"}, tmp_path, str))
    assert "it sends more than 1,048,576 bytes that are no instance" in says


def test_a_redirect_is_bounded_too(tmp_path):
    with web(302, bytes(3 << 20)) as (url, _), pytest.raises(DdibError, match="more than 1,048,576 bytes"):
        Web(OwnEntity("DDIB"), url).fetch({"PatientID": "1"}, tmp_path)
    study = (bytes(3 << 20), MULTIPART)
    with web(200, answers("1.2.3"), study=study, study_status=302) as (url, _):
        says = cause(lambda: Web(OwnEntity("DDIB"), url).fetch({"PatientID": "1"}, tmp_path))
    assert "answers with more than 1,048,576 bytes" in says


def test_an_instance_that_a_peer_does_not_take_is_said_to_be_of_its_class():
    with pynetdicom_peer([VERIFICATION, CT]) as port:
        sent: list[Path] = []
        files = [DICOM / "MR_small.dcm", DICOM / "CT_small.dcm"]
        peer = DicomPeer("PEER", "127.0.0.1", port)
        with pytest.raises(RefusedError, match="takes no MR Image Storage"):
            store(OwnEntity("DDIB"), peer, files, sent.append)
        assert sent == []


@pytest.mark.parametrize(
    "text", ["PACS", "PACS@host", "@host:104", "A-TITLE-TOO-LONG-@host:104", "A@host:70000"]
)
def test_an_address_is_checked(text):
    with pytest.raises(UsageError, match="is no AE@HOST:PORT"):
        DicomPeer.parse(text)


def test_a_query_is_of_keywords():
    assert parse_query("PatientID=1&StudyDate=20260102") == {"PatientID": "1", "StudyDate": "20260102"}
    for text in ("Patient=1", "PatientID", "PatientID="):
        with pytest.raises(UsageError, match="is no KEYWORD=VALUE of DICOM"):
            parse_query(text)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"", "does not accept the login (401)"),
        (404, b"", "is no DICOMweb service (404)"),
        (500, b"", "answered 500"),
        (200, b"<html>", "does not answer as DICOMweb does"),
    ],
)
def test_a_service_that_is_no_dicomweb_is_named(status, body, says):
    with web(status, body) as (url, _):
        assert says in cause(Web(OwnEntity("DDIB"), url).ask)


@pytest.mark.parametrize(
    ("login", "shown"), [("ward:secret", "Basic d2FyZDpzZWNyZXQ="), ("a-token", "Bearer a-token")]
)
def test_a_login_is_a_password_or_a_token_and_private(tmp_path, login, shown):
    file = tmp_path / "login"
    file.write_text(login)
    file.chmod(0o644)
    own = OwnEntity("DDIB", login=file)
    with web(200, json.dumps([]).encode()) as (url, logins):
        cause(lambda: Web(own, url))
        file.chmod(0o600)
        assert Web(own, url).ask() == "answers QIDO-RS"
        assert logins == [shown]
    assert "would show the login" in cause(lambda: Web(own, "http://pacs.invalid/dicom-web"))


STORED = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [UID]}}]}}
FAILED = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}


@pytest.mark.parametrize(
    ("status", "answer", "kind", "says"),
    [
        (200, STORED, "application/dicom+json", ""),
        (200, STORED, "application/dicom+json; charset=utf-8", ""),
        (
            202, FAILED, "application/dicom+json;charset=utf-8",
            "does not say that it stored an instance (failure 0xA700)",
        ),
        (202, {}, "text/html", "does not say that it stored"),
        (302, {}, "text/html", "Exceeded 0 redirects"),
        (409, {}, "application/dicom+json", "answered 409"),
        (503, {}, "application/dicom+json", "answered 503"),
    ],
)  # fmt: skip
def test_an_instance_is_stored_where_the_answer_says_so(status, answer, kind, says):
    """Not where a proxy's page of login does."""
    sent: list[Path] = []
    with web(status, json.dumps(answer).encode(), kind) as (url, _):
        found = Web(OwnEntity("DDIB"), url)
        if says:
            assert says in cause(lambda: found.store([DICOM / "CT_small.dcm"], sent.append))
        else:
            found.store([DICOM / "CT_small.dcm"], sent.append)
    assert len(sent) == (not says)


def instances(*studies: str) -> list[pydicom.Dataset]:
    found = []
    for each in studies:
        dataset = pydicom.dcmread(DICOM / "MR_small.dcm")
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = each, pydicom.uid.generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        found.append(dataset)
    return found


def contents(*studies: str) -> list[bytes]:
    made = []
    for each in instances(*studies):
        each.save_as(file := io.BytesIO())
        made.append(file.getvalue())
    return made


def test_a_study_of_dicomweb_is_kept_as_it_comes(tmp_path):
    sent = contents("1.2.3", "1.2.3", "1.2.3")
    with web(200, answers("1.2.3"), study=(multipart(*sent), MULTIPART)) as (url, _):
        assert Web(OwnEntity("DDIB"), url).fetch({"PatientID": "1"}, tmp_path) == 3
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == sent
    with web(200, answers("1.2.3"), study=(sent[1], "application/dicom")) as (url, _):
        assert Web(OwnEntity("DDIB"), url).fetch({"PatientID": "1"}, tmp_path) == 1
    assert (tmp_path / "000001.dcm").read_bytes() == sent[1]


@pytest.mark.parametrize(
    ("studies", "answer", "kind", "says"),
    [
        (["1.2.3"], multipart(*contents("1.2.3", "9.9")), MULTIPART, "an instance is of another study than 1.2.3"),
        (["9.9"], b"", MULTIPART, "has no study of StudyInstanceUID=1.2.3"),
        (["1.2.3"] * 50_000, b"", MULTIPART, "answers with more than 1,048,576 bytes"),
        (["1.2.3"], multipart(*contents("1.2.3"), end=b""), MULTIPART, "does not answer as DICOMweb does"),
        (["1.2.3"], multipart(b"x" * 999), "multipart/related", "does not answer as DICOMweb does"),
        (["1.2.3"], b"--XYZ\r\n" + b"x" * 99_999, MULTIPART, "does not answer as DICOMweb does"),
        (["1.2.3"], multipart(b"no DICOM"), MULTIPART, "cannot be read as DICOM"),
    ],
    ids=["instance", "study", "long", "cut off", "no boundary", "long head", "no DICOM"],
)  # fmt: skip
def test_another_answer_than_was_asked_for_is_refused(tmp_path, studies, answer, kind, says):
    with web(200, answers(*studies), study=(answer, kind)) as (url, _):
        query = {"StudyInstanceUID": "1.2.3"}
        assert says in cause(lambda: Web(OwnEntity("DDIB"), url).fetch(query, tmp_path))


def test_a_study_for_which_the_disk_has_no_room_is_cut_while_it_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_network, "RESERVE", 1 << 62)
    with web(200, answers("1.2.3"), study=(multipart(bytes(8 << 20)), MULTIPART)) as (url, _):
        says = cause(lambda: Web(OwnEntity("DDIB"), url).fetch({"PatientID": "1"}, tmp_path))
    assert says.endswith("MiB of the disk are free")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 17


def test_parts_are_found_wherever_an_answer_is_torn():
    bodies = [b"a\r\n--XY\r\n", b"", b"\r\n\r\n--", b"b" * 99]
    message = b"preamble\r\n" + multipart(*bodies)
    for size in (1, 2, 3, 5, 7, len(message)):
        torn = [message[at : at + size] for at in range(0, len(message), size)]
        joined = dict.fromkeys(range(1, 5), b"")
        for number, piece in parts(torn, MULTIPART):
            joined[number] += piece
        assert list(joined.values()) == bodies


@contextlib.contextmanager
def archive(
    studies: list[str], sends: list[pydicom.Dataset], *, own: int, status: int = 0
) -> Iterator[DicomPeer]:
    """A PACS that finds these studies and moves these instances to port `own`."""
    entity, port = pynetdicom.AE("PACS"), free_port()
    for kind in (FIND, MOVE):
        entity.add_supported_context(kind)
    entity.requested_contexts = pynetdicom.StoragePresentationContexts

    def found(event):
        del event
        for each in studies:
            answer = pydicom.Dataset()
            answer.QueryRetrieveLevel = "STUDY"
            if each:
                answer.StudyInstanceUID = each
            yield 0xFF00, answer
        if status:
            yield status, None

    def moved(event):
        if event.move_destination != "DDIB":
            yield None, None
            return
        yield "127.0.0.1", own
        yield len(sends)
        for each in sends:
            yield 0xFF00, each

    handlers = [(pynetdicom.evt.EVT_C_FIND, found), (pynetdicom.evt.EVT_C_MOVE, moved)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        yield DicomPeer("PACS", "127.0.0.1", port)
    finally:
        server.shutdown()


def test_a_query_takes_the_instances_of_its_study_alone(tmp_path):
    """A report among them is taken, and an instance of another study refused, which would be lost here."""
    port, said = free_port(), list[str]()
    report = pydicom.dcmread(DICOM / "reportsi.dcm")
    report.StudyInstanceUID = "1.2.3"
    with archive(["1.2.3"], [*instances("1.2.3", "1.2.3"), report], own=port) as peer:
        assert fetch(OwnEntity("DDIB"), peer, port, {"PatientID": "1"}, tmp_path, said.append) == 3
    assert len([*tmp_path.glob("*.dcm")]) == 3
    with archive(["1.2.3"], instances("1.2.3", "9.9"), own=port) as peer:
        says = cause(lambda: fetch(OwnEntity("DDIB"), peer, port, {"PatientID": "1"}, tmp_path, said.append))
    assert "did not send the study to DDIB" in says
    assert "PACS@127.0.0.1: an instance was not stored: an instance is of another study than 1.2.3" in said


def test_a_query_of_several_studies_names_them(tmp_path):
    port = free_port()
    with (
        archive(["1.3", "1.2"], [], own=port) as peer,
        pytest.raises(DdibError, match="several studies of PatientID=1") as caught,
    ):
        fetch(OwnEntity("DDIB"), peer, port, {"PatientID": "1"}, tmp_path, str)
    assert caught.value.hint == "--query StudyInstanceUID=1.2, or --query StudyInstanceUID=1.3"
    with (
        archive([f"1.{number}" for number in range(100, 200)], [], own=port) as peer,
        pytest.raises(DdibError, match="several studies") as caught,
    ):
        fetch(OwnEntity("DDIB"), peer, port, {"PatientID": "1"}, tmp_path, str)
    assert caught.value.hint.endswith("=1.107, or 92 more")


@pytest.mark.parametrize(
    ("studies", "aet", "status", "says"),
    [
        ([], "DDIB", 0, "has no study of PatientID=1"),
        (["1.2"], "DDIB", 0xA700, "did not answer the query: status 0xA700"),
        (["1.2"], "OTHER", 0, "it does not know OTHER as a destination"),
    ],
)
def test_a_query_that_brings_nothing_says_why(studies, aet, status, says, tmp_path):
    port = free_port()
    with archive(studies, instances("1.2"), own=port, status=status) as peer:
        assert says in cause(lambda: fetch(OwnEntity(aet), peer, port, {"PatientID": "1"}, tmp_path, str))


def test_an_answer_of_a_peer_is_bounded_too():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):  # the second asks why
                link, _ = server.accept()
                with link:
                    link.recv(10)
                    link.sendall(b"\2\0\xff\xff\xff\xff" + bytes(1 << 16))
                    link.recv(1 << 20)

        threading.Thread(target=answer, daemon=True).start()
        peer = DicomPeer("PEER", "127.0.0.1", server.getsockname()[1])
        assert "it sends a PDU of 4,294,967,295 bytes" in cause(lambda: echo(OwnEntity("DDIB"), peer))
