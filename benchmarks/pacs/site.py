"""A hospital on this machine for the benchmarks of DICOM: a real Orthanc, two nodes, and `ddib dicom receive`.

Needs Debian's packages orthanc, orthanc-dicomweb, dicom3tools, dcmtk and dcm2niix, and the extra `dicom`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import requests

from ddib_fed.datasets import shipped_bytes
from ddib_fed.testing import TwoNodes, free_port
from tests.e2e.harness import two_nodes, wait_until
from tests.formats.dicom.files import write_series

RESULTS = Path("docs/benchmarks/pacs")
MODELS = ("brain-t1", "brain-t2")
TARGET = "south.example/brain-t2"


class Process:
    """A command whose output goes to a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class Orthanc:
    """A PACS: DICOM at `port`, REST and DICOMweb at `http`. `modalities` are its known AEs."""

    folder: Path
    modalities: dict[str, list[Any]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    aet: str = "PACS"

    def __post_init__(self) -> None:
        self.port, self.http = free_port(), free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = Process(["Orthanc", str(self.folder / "orthanc.json")], self.folder / "log.txt")

    def start(self) -> Orthanc:
        settings = {
            "Name": self.aet, "DicomAet": self.aet, "DicomPort": self.port, "HttpPort": self.http,
            "StorageDirectory": str(self.folder / "db"), "IndexDirectory": str(self.folder / "db"),
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomModalities": self.modalities,
            "OverwriteInstances": True, "StableAge": 2, "DicomScuTimeout": 60, "SaveJobs": True,
            "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, **self.more,
        }  # fmt: skip
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        self.process.start()
        wait_until(self.answers, what="Orthanc")
        return self

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/system", timeout=60).status_code < 500
        except requests.RequestException:
            return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def web(self) -> str:
        return f"{self.url}/dicom-web"

    @property
    def peer(self) -> str:
        return f"{self.aet}@127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        return requests.get(f"{self.url}/{path}", timeout=60).json()

    def post(self, path: str, body: Any) -> Any:
        return requests.post(f"{self.url}/{path}", json=body, timeout=600).json()

    def series(self) -> list[dict[str, Any]]:
        return self.get("series?expand")

    def derived(self) -> list[dict[str, Any]]:
        """The series that ddib-fed made."""
        return [each for each in self.series() if each["MainDicomTags"].get("Manufacturer") == "ddib-fed"]

    def files(self, series: dict[str, Any]) -> list[bytes]:
        found = [
            requests.get(f"{self.url}/instances/{each}/file", timeout=60).content
            for each in series["Instances"]
        ]
        return sorted(found, key=len)


@dataclass
class Site:
    """Two nodes, a PACS and a receiver between them."""

    folder: Path
    pair: TwoNodes
    pacs: Orthanc
    port: int
    receiver: Process

    @classmethod
    def create(
        cls, folder: Path, *words: str, models: tuple[str, str] = MODELS, dicom: str = "", **pacs: Any
    ) -> Site:
        """`words` are further options of the receiver, `dicom` further lines of the profile's table."""
        pair = two_nodes(folder, *models)
        port = free_port()
        orthanc = Orthanc(folder / "pacs", {"ddib": ["DDIB", "127.0.0.1", port]}, pacs)
        peers = f'["{orthanc.peer}", "{orthanc.web}"]'
        with pair.profile.open("a") as file:
            file.write(f"\n[dicom]\nport = {port}\npeers = {peers}\n{dicom}\n")
        given = [*words] or ["--send", orthanc.peer]
        command = [
            sys.executable, "-m", "ddib_fed", "dicom", "receive", "--from", "PACS@127.0.0.1", "--from",
            "STORESCU@127.0.0.1", "--to", f"south.example/{models[1]}", "--quality", "draft",
            "--profile", str(pair.profile), *given,
        ]  # fmt: skip
        receiver = Process(command, folder / "receiver.txt")
        return cls(folder, pair, orthanc, port, receiver)

    def start(self) -> Site:
        self.pair.start()
        self.pacs.start()
        self.start_receiver()
        return self

    def start_receiver(self) -> None:
        before = self.receiver.text().count("receiving as")
        self.receiver.start()
        wait_until(lambda: self.receiver.text().count("receiving as") > before, what="the receiver")

    def stop(self, *_: object) -> None:
        self.receiver.kill()
        self.pacs.process.kill()
        self.pair.kill()

    __enter__, __exit__ = start, stop

    @property
    def spool(self) -> Path:
        return self.pair.profile.parent / "dicom-spool"


def brain_series(folder: Path, study: str, number: int, slices: int = 8, **changes: Any) -> list[Path]:
    """Slices of the brain template's T1 as an MR series of a study."""
    (test,) = shipped_bytes(MODELS[0], ["test"])
    planes = np.take(test[:, 0], range(number, number + slices), axis=0, mode="wrap").astype(np.uint16) * 4
    paths = write_series(folder, planes, StudyInstanceUID=study, SeriesNumber=number, **changes)
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = int(dataset.InstanceNumber)
        dataset.save_as(path)
    return paths


def storescu(peer_port: int, aet: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """dcmtk's sender, of all files below a folder."""
    how, where = ["-aet", "STORESCU", "-aec", aet, "+sd", "+r", "-R", *words], ["127.0.0.1", str(peer_port)]
    command = ["storescu", *how, *where, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def errors_of(content: bytes, folder: Path) -> set[str]:
    """What `dciodvfy` calls errors."""
    path = folder / "checked.dcm"
    path.write_bytes(content)
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    return {line for line in said.splitlines() if line.startswith("Error")}


def geometry(files: list[bytes], folder: Path) -> Any:
    """The affine that dcm2niix gives a series."""
    import nibabel

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    for at, content in enumerate(files):
        (folder / "in" / f"{at}.dcm").write_bytes(content)
    subprocess.run(
        ["dcm2niix", "-o", str(folder), "-f", "x", str(folder / "in")], capture_output=True, check=True
    )
    found = nibabel.as_closest_canonical(nibabel.load(next(folder.glob("x*.nii"))))
    return found.shape, found.affine


def memory(pid: int) -> dict[str, float]:
    """Resident MiB now, and the most there ever was."""
    lines = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("most", "VmHWM"))}


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait, and say how long it took."""
    since = time.monotonic()
    wait_until(condition, seconds=seconds, what=what)
    return time.monotonic() - since


def write(name: str, values: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=RESULTS, capture_output=True, text=True, check=True).stdout.strip()
    values = {"made": f"python -m benchmarks.pacs.{name} at {commit}", **values}
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    print(json.dumps(values, indent=1), file=sys.stderr)


os.environ.setdefault("OMP_NUM_THREADS", "1")
