"""The receiver and a query under attack: whether the PACS is answered meanwhile, and what the refusal costs.

    python -m benchmarks.pacs.attacks

Needs no node. The PACS and DICOMweb are at 127.0.0.1, a stranger at 127.0.0.2, and at 127.0.0.3 a sender of `--from`
that turned hostile. attacks.json has connections of the stranger, 1.25 a second, and of the sender, 2 a second that are
idle; its request, command (also in place of an instance that it announced) and instance of 600 MB, where the spool may
have 256 MiB; and of DICOMweb a list of 126 MB, and a part and a redirect of 600 MB.
"""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pacs.site import Process, Site, memory, write
from ddib_fed.errors import DdibError
from ddib_fed.pacs.network import DicomPeer, OwnEntity, echo
from tests.pacs.peers import MULTIPART, answers, associated, fragment, multipart, store_request, web

SECONDS, LONG, PART = 21, 600_000_000, bytes(120_000)


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as at:
        site = Site.create(Path(at), "--out", at, "--from", "OTHER@127.0.0.3", dicom="most_gib = 0.25")
        for name, attack in ATTACKS.items():
            site.start_receiver()
            found[name] = measured(site, attack)
            site.receiver.kill()
        write("attacks", found | queries(site))


def measured(site: Site, attack: Callable[[int], object]) -> dict[str, Any]:
    """What the PACS and an operator see of an attack while the PACS asks once a second."""
    pid, peer, took, written = site.receiver.pid, DicomPeer("DDIB", "127.0.0.1", site.port), [], [0]
    echo(OwnEntity("PACS"), peer)
    before, said = memory(pid)["now"], len(site.receiver.text())
    threading.Thread(target=attack, args=[site.port], daemon=True).start()
    asked, end = 0, time.monotonic() + SECONDS
    while (since := time.monotonic()) < end:
        asked += 1
        with contextlib.suppress(DdibError):
            echo(OwnEntity("PACS"), peer)
            took.append(time.monotonic() - since)
        while time.monotonic() < since + 1:
            time.sleep(0.05)
            with contextlib.suppress(FileNotFoundError):
                written.append(sum(part.stat().st_size for part in site.spool.glob(".arriving/*")))
    lines = re.findall(r"(?:WARNING|ERROR) .*?: (.*)", site.receiver.text()[said:])
    return {"asked": asked, "answered": len(took), "slowest_s": round(max(took, default=0.0), 2),
            "mib_over_idle": round(memory(pid)["most"] - before), "mib_written": max(written) >> 20,
            "log": [*dict.fromkeys(lines)][:3]}  # fmt: skip


def connect(port: int, address: str, seconds: float) -> None:
    kept = []
    for _ in range(int(SECONDS / seconds)):
        kept.append(link(port, address))
        time.sleep(seconds)


def link(port: int, address: str = "127.0.0.3") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), source_address=(address, 0))


def send(far: socket.socket, first: bytes, again: bytes) -> None:
    with far, contextlib.suppress(OSError):
        far.sendall(first)
        for _ in range(LONG // len(PART)):
            far.sendall(again)


def queries(site: Site) -> dict[str, Any]:
    """The memory of a client's query, over that of one that finds nothing."""
    row, found, idle = answers("1.2.3")[1:-1], {}, 0.0
    long = b"[" + b",".join([row] * (126_000_000 // len(row))) + b"]"
    one = answers("1.2.3"), bytes(LONG)
    wanted = {
        "none": (b"[]", b"", 200),
        "qido": (long, b"", 200),
        "wado": (*one, 200),
        "redirect": (*one, 302),
    }
    for name, (body, study, status) in wanted.items():
        with web(200, body, study=(multipart(study), MULTIPART), study_status=status) as (url, _):
            words = f"--query PatientID=1 --pacs {url} --to south.example/brain-t2 --profile"
            words = f"{words} {site.pair.profile} --out {site.folder / name}"
            command = [*site.receiver.command[:3], "translate", *words.split()]
            client, most = Process(command, site.folder / f"{name}.txt"), 0.0
            client.start()
            while client.process and client.process.poll() is None:
                with contextlib.suppress(OSError, KeyError):  # it has just ended
                    most = memory(client.pid)["most"]
                time.sleep(0.02)
        idle = idle or most
        found[name] = {"mib_over_idle": round(most - idle), "says": client.text().splitlines()[-3:]}
    return found


ATTACKS: dict[str, Callable[[int], None]] = {
    "strangers": lambda port: connect(port, "127.0.0.2", 0.8),
    "idle": lambda port: connect(port, "127.0.0.3", 0.5),
    "request": lambda port: send(link(port), b"\1\0" + LONG.to_bytes(4, "big"), PART),
    "command": lambda port: send(associated(port, "OTHER", "127.0.0.3"), b"", fragment(1, PART)),
    "command_in_instance": lambda port: send(
        associated(port, "OTHER", "127.0.0.3"), store_request(), fragment(1, PART)
    ),
    "instance": lambda port: send(associated(port, "OTHER", "127.0.0.3"), store_request(), fragment(0, PART)),
}

if __name__ == "__main__":
    main()
