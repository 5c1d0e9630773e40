"""A hospital on this machine for the benchmarks of DICOM: a PACS, two nodes, and `ddib dicom receive` between them.

The PACS is a real Orthanc, of Debian's packages orthanc and orthanc-dicomweb, or in smokes an `Archive`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynetdicom
import requests

from benchmarks.pacs.series import MODELS, PORTABLE
from ddib_fed.testing import TwoNodes, free_port

TARGET = f"south.example/{MODELS[1]}"
LIMIT_S = 300.0


class Process:
    """A command whose output goes to a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(self.command, stdout=file, stderr=file, env=environment)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait()

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass
class Archive:
    """A PACS that only stores what it gets over DICOM."""

    folder: Path
    aet: str = "PACS"

    def __post_init__(self) -> None:
        self.port = free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._server: Any = None

    @property
    def peer(self) -> str:
        return f"{self.aet}@127.0.0.1:{self.port}"

    def start(self) -> None:
        entity = pynetdicom.AE(self.aet)
        for syntax in PORTABLE:
            entity.add_supported_context(syntax)
        handlers = [(pynetdicom.evt.EVT_C_STORE, self._store)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def kill(self) -> None:
        if self._server is not None:
            self._server.shutdown()

    def _store(self, event: Any) -> int:
        (self.folder / f"{event.dataset.SOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0


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
        self.kill = self.process.kill

    def start(self) -> None:
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
        until(self.answers, LIMIT_S, "Orthanc")

    def answers(self) -> bool:
        try:
            return int(requests.get(f"{self.url}/system", timeout=60).status_code) < 500
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
        return list(self.get("series?expand"))

    def derived(self) -> list[dict[str, Any]]:
        """Return the series that ddib-fed made."""
        return [each for each in self.series() if each["MainDicomTags"].get("Manufacturer") == "ddib-fed"]

    def files(self, series: dict[str, Any]) -> list[bytes]:
        addresses = [f"{self.url}/instances/{each}/file" for each in series["Instances"]]
        return sorted((requests.get(each, timeout=60).content for each in addresses), key=len)


@dataclass
class Site:
    """Two nodes, a PACS and a receiver between them."""

    folder: Path
    pair: TwoNodes
    pacs: Any
    port: int
    receiver: Process

    @classmethod
    def create(cls, folder: Path, *words: str, archive: bool = False, dicom: str = "", **pacs: Any) -> Site:
        """Set up a site; `words` are further options of the receiver, `dicom` further lines of the profile's table."""
        pair, port = TwoNodes.create(folder, *MODELS), free_port()
        store: Any = Archive(folder / "pacs")
        if not archive:
            store = Orthanc(folder / "pacs", {"ddib": ["DDIB", "127.0.0.1", port]}, pacs)
        peers = [store.peer, *([] if archive else [store.web])]
        with pair.profile.open("a") as file:
            file.write(f"\n[dicom]\nport = {port}\npeers = {json.dumps(peers)}\n{dicom}\n")
        command = [
            sys.executable, "-m", "ddib_fed", "dicom", "receive", "--from", "PACS@127.0.0.1", "--from",
            "STORESCU@127.0.0.1", "--to", TARGET, "--quality", "draft", "--profile", str(pair.profile),
            *(words or ("--send", store.peer)),
        ]  # fmt: skip
        return cls(folder, pair, store, port, Process(command, folder / "receiver.txt"))

    def start(self) -> Site:
        self.pacs.start()
        self.pair.start()
        self.start_receiver()
        return self

    def start_receiver(self) -> None:
        before = self.receiver.text().count("receiving as")
        self.receiver.start()
        until(lambda: self.receiver.text().count("receiving as") > before or self.receiver.ended, 300, "this")
        assert not self.receiver.ended, self.receiver.text()[-2000:]

    def stop(self, *_: object) -> None:
        self.receiver.kill()
        self.pacs.kill()
        self.pair.kill()

    __enter__, __exit__ = start, stop

    @property
    def spool(self) -> Path:
        return self.pair.profile.parent / "dicom-spool"

    @property
    def ended(self) -> int:
        """How many series were handed on."""
        return len(set(re.findall(r"series (\w+): handed on", self.receiver.text())))


def memory(pid: int) -> dict[str, float]:
    """Return resident MiB now, and the most there ever were."""
    text = Path(f"/proc/{pid}/status").read_text()
    keys = (("now", "VmRSS"), ("most", "VmHWM"))
    return {name: int(re.findall(rf"{key}:\s+(\d+)", text)[0]) / 1024 for name, key in keys}


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until the condition holds; return the seconds."""
    since = time.monotonic()
    while not condition():
        if time.monotonic() > since + seconds:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - since
