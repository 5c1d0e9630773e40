"""The receiver under what a hospital does to it: how much memory and time, what is lost, and what is doubled.

    python -m benchmarks.pacs.load [--only burst,slow,broken,huge,large,duplicates,interleaved,full]

Results go to a folder (`--out`), by two nodes with brain-t1 and brain-t2. Writes docs/benchmarks/pacs/load.json. `full`
mounts a file system of 24 MiB in memory, for which it must be root.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pynetdicom

from benchmarks import options
from benchmarks.pacs.site import RESULTS, Site, brain_series, memory, storescu, until, write
from ddib_fed.datasets import shipped_bytes
from tests.formats.dicom.files import write_enhanced

MR = pydicom.uid.MRImageStorage


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", default=",".join(CASES))
    chosen = parser.parse_args().only.split(",")
    file = RESULTS / "load.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder, site(Path(folder), name) as there:
            found[name] = CASES[name](there, Path(folder))
            found[name]["receiver_mib"] = {k: round(v) for k, v in memory(there.receiver.pid).items()}
            lines = sorted(set(re.findall(r"(?:WARNING|ERROR) .*?: (.*)", there.receiver.text())))[:6]
            found[name]["log"] = [re.sub(r"series \w{8}", "series ...", line) for line in lines]
        write("load", {each: found[each] for each in CASES if each in found})


@contextlib.contextmanager
def site(folder: Path, name: str) -> Iterator[Site]:
    lines = "most_gib = 8.0"
    small = folder / "small"
    if name == "full":
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(small)], check=True)
        lines = f'spool = "{small}/spool"'
    made = Site.create(folder, "--out", str(folder / "out"), dicom=lines)
    made.pair.start()
    made.start_receiver()
    try:
        yield made
    finally:
        made.stop()
        if name == "full":
            subprocess.run(["umount", str(small)], check=True)


def held(there: Site, series: int, seconds: float = 1800.0) -> dict[str, Any]:
    """Wait until so many series were handed on; what the folder then has."""
    took = until(
        lambda: len(set(re.findall(r"series (\w+): handed on", there.receiver.text()))) >= series,
        seconds, "the series",
    )  # fmt: skip
    files = sorted((there.folder / "out").glob("*/*.dcm"))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    sources = [str(each.SourceImageSequence[0].ReferencedSOPInstanceUID) for each in headers]
    return {
        "then_seconds": round(took, 1),
        "derived_series": len({str(each.SeriesInstanceUID) for each in headers}),
        "derived_instances": len(files),
        "doubled": len(sources) - len(set(sources)),
        "handed_on": len(re.findall("handed on", there.receiver.text())),
    }


def burst(there: Site, folder: Path) -> dict[str, Any]:
    """10,000 instances: 100 series of 100, by five senders at once."""
    for number in range(100):
        brain_series(folder / f"sender-{number % 5}" / str(number), pydicom.uid.generate_uid(), number, 100)
    since = time.monotonic()
    with ThreadPoolExecutor(5) as senders:
        codes = list(
            senders.map(lambda n: storescu(there.port, "DDIB", folder / f"sender-{n}").returncode, range(5))
        )
    seconds = time.monotonic() - since
    return {"sent": 10_000, "failed_senders": sum(map(bool, codes)), "seconds_to_send": round(seconds, 1),
            "mib_after_sending": round(memory(there.receiver.pid)["most"]), **held(there, 100)}  # fmt: skip


def slow(there: Site, folder: Path) -> dict[str, Any]:
    """Six instances: 7 s between them, more than the 5 s of silence; and one that takes 12 s to arrive."""
    paths = brain_series(folder / "in", pydicom.uid.generate_uid(), 1, 6)
    with association(there.port) as sender:
        for path in paths:
            assert sender.send_c_store(path).Status == 0
            time.sleep(7.0)
    first = held(there, 1)
    until(lambda: held(there, 1)["derived_instances"] == 6, 60, "all six")
    trickled = brain_series(folder / "trickled", pydicom.uid.generate_uid(), 2, 3)
    with wire(there.port, bytes_per_second=1500) as port, association(port) as sender:
        for path in trickled:
            assert sender.send_c_store(path).Status == 0
    return {"sent": 9, "first": first, **held(there, 2)}


def broken(there: Site, folder: Path) -> dict[str, Any]:
    """The connection breaks within the third of five instances, and the sender sends all of them again; the same where
    the receiver is not told, as when a cable is pulled.
    """
    codes = []
    for number, silent in enumerate((False, True)):
        series = folder / f"in-{number}"
        brain_series(series, pydicom.uid.generate_uid(), number, 5)
        with wire(there.port, most_bytes=15_000, silent=silent) as port:
            codes.append(storescu(port, "DDIB", series).returncode)
        codes.append(storescu(there.port, "DDIB", series).returncode)
    found = held(there, 2)
    return {"sent": 10, "codes": codes, "left_over": len([*(there.spool / ".arriving").iterdir()]), **found}


def huge(there: Site, folder: Path) -> dict[str, Any]:
    """An enhanced MR of 4,096 frames of 512 x 512, 2 GiB, more than is translated; and then an ordinary series."""
    frames(folder / "in" / "huge.dcm", 4096)
    since = time.monotonic()
    code = storescu(there.port, "DDIB", folder / "in").returncode
    seconds = time.monotonic() - since
    most = memory(there.receiver.pid)["most"]
    shutil.rmtree(folder / "in")
    brain_series(folder / "small-one", pydicom.uid.generate_uid(), 1, 5)
    after = storescu(there.port, "DDIB", folder / "small-one").returncode
    return {"bytes": 2 << 30, "codes": [code, after], "seconds_to_send": round(seconds, 1),
            "mib_after_sending": round(most), **held(there, 1)}  # fmt: skip


def large(there: Site, folder: Path) -> dict[str, Any]:
    """An enhanced MR of 1,024 frames of 512 x 512, 512 MiB, which is translated."""
    frames(folder / "in" / "large.dcm", 1024)
    code = storescu(there.port, "DDIB", folder / "in").returncode
    return {"bytes": 1 << 29, "codes": [code], "mib_after_sending": round(memory(there.receiver.pid)["most"]),
            **held(there, 1)}  # fmt: skip


def frames(path: Path, count: int) -> None:
    """So many frames of one slice of the brain, at 512 x 512."""
    write_enhanced(path, np.zeros((1, 8, 8), np.uint16))
    dataset = pydicom.dcmread(path)
    (groups,) = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [groups] * count
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = count, 512, 512
    plane = np.kron(shipped_bytes("brain-t1", ["test"])[0][20, 0, 8:40, 8:40], np.ones((16, 16))) * 4
    dataset.PixelData = plane.astype("<u2").tobytes() * count
    dataset.save_as(path)


def duplicates(there: Site, folder: Path) -> dict[str, Any]:
    """A series that is sent three times at once, and once more after it was handed on."""
    brain_series(folder / "in", pydicom.uid.generate_uid(), 1, 10)
    with ThreadPoolExecutor(3) as senders:
        codes = list(senders.map(lambda _: storescu(there.port, "DDIB", folder / "in").returncode, range(3)))
    first = held(there, 1)
    codes.append(storescu(there.port, "DDIB", folder / "in").returncode)
    until(lambda: there.receiver.text().count("handed on") == 2, 60, "the repeat")
    return {"sent": 40, "codes": codes, "first": first, **held(there, 1)}


def interleaved(there: Site, folder: Path) -> dict[str, Any]:
    """Two studies of one series each, whose instances alternate on one association."""
    both = [brain_series(folder / f"in-{n}", pydicom.uid.generate_uid(), n, 10) for n in (1, 2)]
    with association(there.port) as sender:
        for pair in zip(*both, strict=True):
            for path in pair:
                assert sender.send_c_store(path).Status == 0
    return {"sent": 20, **held(there, 2)}


def full(there: Site, folder: Path) -> dict[str, Any]:
    """The spool's file system has hardly more than its reserve, then nothing at all, then room again; the sender sends
    each time what it could not.
    """
    ballast = folder / "small" / "ballast"
    codes: dict[str, list[int]] = {}
    for state, fill in (("reserve", 29 << 20), ("full", 200 << 20), ("room", 0)):
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            for _ in range(fill >> 20):
                file.write(b"\0" * (1 << 20))
                file.flush()
        sent = []
        for number in range(8):
            series = folder / f"in-{number}"
            if not series.exists():
                brain_series(series, pydicom.uid.generate_uid(), number, 60)
            if not any(codes[earlier][number] == 0 for earlier in codes):
                sent.append(storescu(there.port, "DDIB", series).returncode)
            else:
                sent.append(-1)
        codes[state] = sent
    return {"sent": len([*folder.glob("in-*/*")]), "codes": codes, **held(there, 8)}


@contextlib.contextmanager
def association(port: int) -> Iterator[Any]:
    entity = pynetdicom.AE("STORESCU")
    entity.add_requested_context(MR)
    found = entity.associate("127.0.0.1", port, ae_title="DDIB")
    assert found.is_established
    try:
        yield found
    finally:
        found.release()


@contextlib.contextmanager
def wire(port: int, bytes_per_second: int = 0, most_bytes: int = 0, *, silent: bool = False) -> Iterator[int]:
    """A way to a port that is slow, or that breaks after so many bytes, perhaps without a word to the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def there_and_back() -> None:
        near, _ = server.accept()
        far = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=lambda: copied(far, near, 0, 0), daemon=True).start()
        copied(near, far, bytes_per_second, most_bytes)
        near.shutdown(socket.SHUT_RDWR)
        if not silent:
            far.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=there_and_back, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def copied(source: socket.socket, sink: socket.socket, per_second: int, most: int) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while part := source.recv(max(per_second // 4, 1) if per_second else 4096):
            sink.sendall(part)
            passed += len(part)
            if most and passed > most:
                return
            if per_second:
                time.sleep(0.25)


CASES = {each.__name__: each for each in (burst, slow, broken, huge, large, duplicates, interleaved, full)}

if __name__ == "__main__":
    main()
