"""Peers that speak DICOM, or only listen; and folders of certificates, of CAs that know each other and that do not."""

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pynetdicom.dsutils import encode

from ddib_fed.pacs.network import VERIFICATION, OwnEntity
from ddib_fed.security import pki
from ddib_fed.testing import free_port
from tests.node.institutions import HOUR, forge

MULTIPART = 'multipart/related; type="application/dicom"; boundary=XYZ'


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts, and nobody reads
        yield server.getsockname()[1]


@contextlib.contextmanager
def pynetdicom_peer(classes: list[str], context: Any = None) -> Iterator[int]:
    entity, port = pynetdicom.AE("PEER"), free_port()
    for each in classes:
        entity.add_supported_context(each)
    server = entity.start_server(("127.0.0.1", port), block=False, ssl_context=context)
    try:
        yield port
    finally:
        server.shutdown()


@contextlib.contextmanager
def tls_peer(folder: Path) -> Iterator[int]:
    context = OwnEntity("PEER", folder).context(ssl.PROTOCOL_TLS_SERVER)
    with pynetdicom_peer([VERIFICATION, pydicom.uid.MRImageStorage], context) as port:
        yield port


def make_certificates(folder: Path) -> Path:
    """Folders for [dicom] tls: ours and theirs know each other, a stranger's and an unknown one's do not."""
    good, bad = pki.new_authority("localhost"), pki.new_authority("localhost")
    for name, by in {"ours": good, "theirs": good, "stranger": bad, "unknown": bad}.items():
        (made := folder / "certificates" / name).mkdir(parents=True)
        key, now = pki.new_key(), datetime.now(UTC)
        names = [x509.DNSName("localhost")]
        leaf = forge(by, names, subject_key=key.public_key(), start=now - HOUR, end=now + HOUR)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files = {"ca.pem": pki.certificate_pem(good.certificate), "cert.pem": leaf, "key.pem": secret}
        for file, content in files.items():
            (made / file).write_bytes(content)
            (made / file).chmod(0o600)
    return folder / "certificates"


@contextlib.contextmanager
def web(
    status: int,
    body: bytes,
    kind: str = "application/dicom+json",
    study: tuple[bytes, str] | None = None,
    study_status: int = 0,
) -> Iterator[tuple[str, list[str | None]]]:
    """A server of HTTP whose every answer is this; its address, and the logins that it was shown.

    `study` is another answer, and its kind, to who retrieves one, with a status of its own.
    """
    logins: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers.get("Authorization"))
            retrieved = study is not None and "/studies/" in self.path
            content, of = study if study and retrieved else (body, kind)
            self.send_response((retrieved and study_status) or status)
            self.send_header("Content-Type", of)
            self.send_header("Location", "/login")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", logins
    finally:
        server.shutdown()
        server.server_close()


def answers(*studies: str) -> bytes:
    return json.dumps([{"0020000D": {"vr": "UI", "Value": [each]}} for each in studies]).encode()


def multipart(*files: bytes, end: bytes = b"\r\n--XYZ--") -> bytes:
    head = b"\r\n--XYZ\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + each for each in files)[2:] + end


def associated(port: int, aet: str, address: str = "127.0.0.1") -> socket.socket:
    """The connection of an association, for bytes that no sender would send."""
    entity = pynetdicom.AE(aet)
    entity.add_requested_context(pydicom.uid.MRImageStorage)
    found = entity.associate("127.0.0.1", port, ae_title="DDIB", bind_address=(address, 0))
    return socket.socket(fileno=os.dup(found.dul.socket.socket.fileno()))


def fragment(control: int, data: bytes) -> bytes:
    """A P-DATA-TF of one fragment of a message (PS3.8 9.3.5, E.2)."""
    item = (len(data) + 2).to_bytes(4, "big") + bytes([1, control]) + data
    return b"\4\0" + len(item).to_bytes(4, "big") + item


def store_request() -> bytes:
    """A C-STORE-RQ (PS3.7 9.3.1.1), to which its instance follows."""
    asked = pydicom.Dataset()
    for tag, value in {
        2: pydicom.uid.MRImageStorage,
        0x100: 1,
        0x110: 1,
        0x700: 0,
        0x800: 0,
        0x1000: "1.2.3",
    }.items():
        asked.add_new(tag, "US" if isinstance(value, int) else "UI", value)
    return fragment(3, encode(asked, True, True) or b"")
