"""Wrong set-ups of AE titles, addresses, ports, TLS and storage classes: what `ddib doctor` and the receiver's log say.

    python -m benchmarks.pacs.setups

The peers are a real Orthanc and, where it cannot be set up so wrongly, pynetdicom. docs/benchmarks/pacs/setups.json has
a row for each: the set-up, who says it, and what is said.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.pacs.site import Orthanc, Process, Site, brain_series, storescu, until, write
from ddib_fed.cli.main import cli
from ddib_fed.errors import DdibError
from ddib_fed.formats.dicom_network import OwnEntity
from tests.e2e.harness import free_port

VERIFICATION = "1.2.840.10008.1.1"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder))
    for row in rows:
        row["says"] = row["says"].replace(folder, "...")
    write("setups", {"rows": rows})


def measured(folder: Path) -> list[dict[str, str]]:
    strict = {"DicomCheckCalledAet": True, "DicomAlwaysAllowEcho": False, "DicomAlwaysAllowStore": False,
              "DicomAlwaysAllowFind": False, "DicomCheckModalityHost": False}  # fmt: skip
    site = Site.create(folder, "--send", "PACS@127.0.0.1:1", dicom="quiet_s = 1.0", **strict)
    site.pacs.modalities = {"ddib": {"AET": "DDIB", "Host": "127.0.0.1", "Port": site.port, "AllowEcho": True,
                                     "AllowStore": True}}  # fmt: skip
    site.start()
    login = Orthanc(
        folder / "login", {}, {"AuthenticationEnabled": True, "RegisteredUsers": {"ward": "secret"}}, "LOGIN"
    )
    login.start()
    rows = Rows(site)
    try:
        rows.of_doctor(folder, login)
        rows.of_log(folder)
    finally:
        login.process.kill()
        site.stop()
    return rows.rows


class Rows:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.rows: list[dict[str, str]] = []

    def doctor(self, what: str, peer: str, settings: str = "") -> None:
        self.rows.append({"setup": what, "who": "doctor", "says": said_by_doctor(self.site, peer, settings)})
        print(self.rows[-1], flush=True)

    def logged(self, what: str, line: str) -> None:
        self.rows.append({"setup": what, "who": "log", "says": line})
        print(self.rows[-1], flush=True)

    def of_doctor(self, folder: Path, login: Orthanc) -> None:
        site, doctor = self.site, self.doctor
        port, web = site.pacs.port, site.pacs.web
        certificates = make_certificates(folder)
        doctor("right", f"PACS@127.0.0.1:{port}")
        doctor("called AE title", f"WRONG@127.0.0.1:{port}")
        doctor("own AE title unknown to the PACS", f"PACS@127.0.0.1:{port}", 'aet = "STRANGER"')
        doctor("port closed", f"PACS@127.0.0.1:{free_port()}")
        doctor("port of another service", f"PACS@127.0.0.1:{site.pacs.http}")
        doctor("host unknown", f"PACS@pacs.invalid:{port}")
        doctor("no port given", "PACS@127.0.0.1")
        doctor("AE title too long", f"AN-AE-TITLE-OF-MORE@127.0.0.1:{port}")
        with silent() as mute:
            doctor("something that does not answer", f"PACS@127.0.0.1:{mute}")
        with pynetdicom_peer([VERIFICATION]) as there:
            doctor("PACS takes no storage", f"PEER@127.0.0.1:{there}")
        with pynetdicom_peer(["1.2.840.10008.5.1.4.1.2.2.1"]) as there:
            doctor("PACS accepts no presentation context", f"PEER@127.0.0.1:{there}")
        with pynetdicom_peer([VERIFICATION, pydicom.uid.CTImageStorage]) as there:
            doctor("PACS takes CT alone", f"PEER@127.0.0.1:{there}")
        ours = f'tls = "{certificates / "ours"}"'
        with tls_peer(certificates / "theirs") as there:
            doctor("TLS, right", f"PEER@localhost:{there}", ours)
            doctor("PACS asks for TLS, we do not", f"PEER@localhost:{there}")
            doctor("its certificate is of another name", f"PEER@127.0.0.1:{there}", ours)
            doctor(
                "our certificate is of an unknown CA",
                f"PEER@localhost:{there}",
                f'tls = "{certificates / "stranger"}"',
            )
        with tls_peer(certificates / "unknown") as there:
            doctor("its certificate is of an unknown CA", f"PEER@localhost:{there}", ours)
        doctor("we ask for TLS, PACS does not", f"PACS@localhost:{port}", ours)
        doctor("folder of TLS without files", f"PACS@localhost:{port}", f'tls = "{folder / "nothing"}"')
        doctor("DICOMweb, right", web)
        doctor("DICOMweb, path", f"{site.pacs.url}/wrong")
        doctor("DICOMweb, a page that is no DICOMweb", f"{site.pacs.url}/app/explorer.html")
        doctor("DICOMweb, port closed", f"http://127.0.0.1:{free_port()}/dicom-web")
        doctor("DICOMweb, https of a port without TLS", web.replace("http:", "https:"))
        doctor("DICOMweb, login missing", login.web)
        (folder / "login.txt").write_text("ward:wrong")
        (folder / "login.txt").chmod(0o600)
        doctor("DICOMweb, login wrong", login.web, f'login = "{folder / "login.txt"}"')
        (folder / "login.txt").write_text("ward:secret")
        doctor("DICOMweb, login right", login.web, f'login = "{folder / "login.txt"}"')
        doctor(
            "DICOMweb, login over plain http",
            "http://pacs.invalid/dicom-web",
            f'login = "{folder / "login.txt"}"',
        )

    def of_log(self, folder: Path) -> None:
        site, logged = self.site, self.logged
        study = folder / "study"
        brain_series(study, pydicom.uid.generate_uid(), 1, 3)
        for what, words, called in (
            ("sender's AE title not in --from", ("-aet", "NOBODY"), "DDIB"),
            ("sender calls another AE title", (), "OTHER"),
        ):
            logged(what, after(site, lambda w=words, c=called: storescu(site.port, c, study, *w)))
        site.receiver.kill()
        site.receiver.command[site.receiver.command.index("STORESCU@127.0.0.1")] = "STORESCU@192.0.2.1"
        site.start_receiver()
        logged("sender's address not in --from", after(site, lambda: storescu(site.port, "DDIB", study)))
        site.receiver.kill()
        site.receiver.command[site.receiver.command.index("STORESCU@192.0.2.1")] = "STORESCU@127.0.0.1"
        site.start_receiver()
        other = Path(pydicom.__file__).parent / "data" / "test_files"
        report = folder / "report"
        report.mkdir()
        (report / "sr.dcm").write_bytes((other / "reportsi.dcm").read_bytes())
        logged("a report is sent", after(site, lambda: storescu(site.port, "DDIB", report)))
        (report / "sr.dcm").write_bytes((other / "examples_palette.dcm").read_bytes())
        logged(
            "a picture that is not translated is sent",
            after(site, lambda: storescu(site.port, "DDIB", report)),
        )
        logged(
            "results go to a closed port", after(site, lambda: storescu(site.port, "DDIB", study), "again in")
        )
        second = Process([*site.receiver.command], folder / "second.txt")
        second.start()
        until(lambda: bool(second.text()), 30, "the second receiver")
        second.kill()
        logged("a second receiver of the same profile", second.text().strip())


def said_by_doctor(site: Site, peer: str, settings: str) -> str:
    text = site.pair.profile.read_text()
    text = re.sub(r"\npeers = .*", f'\npeers = ["{peer}"]', text) + settings + "\n"
    profile = site.pair.profile.with_name("asked.toml")
    profile.write_text(text)
    result = CliRunner().invoke(cli, ["doctor", "--profile", str(profile)])
    error = result.exception
    if isinstance(error, DdibError):
        return f"FAIL  {error.detail}  try: {error.hint}"
    return next(line for line in result.output.splitlines() if line.startswith("ok    dicom "))


def after(site: Site, send: Any, what: str = "WARNING") -> str:
    """The line of the log that comes of it."""
    before = len(site.receiver.text())
    send()
    until(lambda: what in site.receiver.text()[before:], 30, "a line of the log")
    return next(line for line in site.receiver.text()[before:].splitlines() if what in line)[24:]


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
    import ssl

    context = OwnEntity("PEER", folder).context(ssl.PROTOCOL_TLS_SERVER)
    with pynetdicom_peer([VERIFICATION, pydicom.uid.MRImageStorage], context) as port:
        yield port


def make_certificates(folder: Path) -> Path:
    """Folders for [dicom] tls: ours and theirs know each other, a stranger's and an unknown one's do not."""
    made = folder / "certificates"
    good, bad = authority("a hospital"), authority("another")
    issue(made / "ours", good, trusts=good)
    issue(made / "theirs", good, trusts=good)
    issue(made / "stranger", bad, trusts=good)
    issue(made / "unknown", bad, trusts=good)
    return made


Signer = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def authority(name: str) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, signed(key, name, (key, None), ca=True)


def issue(folder: Path, by: Signer, *, trusts: Signer) -> None:
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(trusts[1].public_bytes(pem))
    (folder / "cert.pem").write_bytes(signed(key, "localhost", by, ca=False).public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "key.pem").chmod(0o600)


def signed(
    key: ec.EllipticCurvePrivateKey, name: str, by: tuple[Any, x509.Certificate | None], *, ca: bool
) -> Any:
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own if by[1] is None else by[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(by[0], hashes.SHA256())
    )


if __name__ == "__main__":
    assert subprocess.run(["which", "Orthanc"], check=False).returncode == 0
    main()
