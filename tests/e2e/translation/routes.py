"""A receiver and its router in this process, a PACS for what they hand on, and series to send to them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydicom
import pynetdicom

from ddib_fed import Profile, Request, Settings
from ddib_fed.datasets import shipped_bytes
from ddib_fed.pacs import routing
from ddib_fed.pacs.exchange import DicomSettings
from ddib_fed.pacs.network import DicomPeer, OwnEntity, Receiver
from ddib_fed.pacs.routing import Router
from ddib_fed.testing import START_S, free_port
from tests.e2e.harness import wait_until
from tests.formats.dicom.files import write_series

MR = pydicom.uid.MRImageStorage
READING = {"intensity": "auto", "slices": "auto", "tile": "auto"}
(PLANES,) = shipped_bytes("brain-t1", ["test"])


class Pacs:
    """Stores what it is sent, by SOP Instance UID; `answers` are the statuses of its next answers."""

    def __init__(self) -> None:
        self.held: dict[str, pydicom.Dataset] = {}
        self.received = 0
        self.answers: list[int] = []
        self.entity = pynetdicom.AE("PACS")
        for each in (MR, "1.2.840.10008.1.1", pydicom.uid.BasicTextSRStorage):
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
        self.asked = Settings(
            evaluations=settings.pop("evaluations", 8), grid=settings.pop("grid", "default")
        )
        self.target = settings.pop("target", "south.example/brain-t2")
        self.settings = DicomSettings(**{"quiet_s": 0.5, **settings})
        self.port = free_port()
        self.start()

    def start(self) -> Self:
        busy: dict[int, float] = {}
        self.router = Router(
            self.folder / "spool", self.profile, self.target, Request(self.asked), "auto", self.settings,
            self.deliver, busy,
        )  # fmt: skip
        callers = [DicomPeer("SENDER", "127.0.0.1")]
        self.receiver = Receiver(
            OwnEntity("DDIB"), self.port, self.folder / "spool" / ".arriving", callers, self.router.keep,
            self.router.ended, routing.log.warning, self.settings.most_associations, busy=busy,
            room=self.router.room,
        )  # fmt: skip
        self.receiver.start()
        return self

    def work(self, until: Any, seconds: float = START_S) -> None:
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
        return [_sent(association, path) for path in paths]
    finally:
        association.release()


def _sent(association: Any, path: Path) -> int:
    """The status of one C-STORE; -1 where there is none, because the association is broken."""
    with contextlib.suppress(RuntimeError):  # broken already when it begins
        return int(association.send_c_store(path).get("Status", -1))
    return -1


def series(folder: Path, slices: int = 3, first: int = 0, larger: int = 1, **changes: Any) -> list[Path]:
    values = PLANES[first : first + slices, 0].astype(np.uint16) * 4
    return write_series(folder, values.repeat(larger, 1).repeat(larger, 2), **changes)
