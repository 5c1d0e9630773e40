"""Wrong set-ups of AE titles, addresses, ports, TLS and storage classes: what `ddib doctor` and the receiver's log say.

    python -m benchmarks.pacs.setups

The peers are a real Orthanc and, where it cannot be set up so wrongly, pynetdicom. docs/benchmarks/pacs/setups.json has
a row for each: the set-up, who says it, and what is said.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pydicom
from click.testing import CliRunner

from benchmarks.pacs.site import Orthanc, Process, Site, brain_series, storescu, until, write
from ddib_fed.cli.main import cli
from ddib_fed.errors import DdibError
from ddib_fed.pacs.network import VERIFICATION
from ddib_fed.testing import free_port
from tests.pacs.peers import make_certificates, pynetdicom_peer, silent, tls_peer


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

    def restarted(self, caller: str, other: str) -> None:
        self.site.receiver.kill()
        command = self.site.receiver.command
        command[command.index(caller)] = other
        self.site.start_receiver()

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
            stranger = f'tls = "{certificates / "stranger"}"'
            doctor("our certificate is of an unknown CA", f"PEER@localhost:{there}", stranger)
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
        secret = folder / "login.txt"
        for what, words in (("wrong", "ward:wrong"), ("right", "ward:secret")):
            secret.write_text(words)
            secret.chmod(0o600)
            doctor(f"DICOMweb, login {what}", login.web, f'login = "{secret}"')
        doctor("DICOMweb, login over plain http", "http://pacs.invalid/dicom-web", f'login = "{secret}"')

    def of_log(self, folder: Path) -> None:
        site, logged = self.site, self.logged
        study = folder / "study"
        brain_series(study, pydicom.uid.generate_uid(), 1, 3)
        for what, words, called in (
            ("sender's AE title not in --from", ("-aet", "NOBODY"), "DDIB"),
            ("sender calls another AE title", (), "OTHER"),
        ):
            logged(what, after(site, lambda w=words, c=called: storescu(site.port, c, study, *w)))
        self.restarted("STORESCU@127.0.0.1", "STORESCU@192.0.2.1")
        logged("sender's address not in --from", after(site, lambda: storescu(site.port, "DDIB", study)))
        self.restarted("STORESCU@192.0.2.1", "STORESCU@127.0.0.1")
        (report := folder / "report").mkdir()
        for name, what in {"reportsi": "a report", "examples_palette": "a picture of a palette"}.items():
            other = Path(pydicom.__file__).parent / "data" / "test_files" / f"{name}.dcm"
            (report / "sr.dcm").write_bytes(other.read_bytes())
            logged(f"{what} is sent", after(site, lambda: storescu(site.port, "DDIB", report)))
        retried = after(site, lambda: storescu(site.port, "DDIB", study), "again in")
        logged("results go to a closed port", retried)
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


if __name__ == "__main__":
    assert subprocess.run(["which", "Orthanc"], check=False).returncode == 0
    main()
