"""Every DICOM file that pydicom, pynetdicom and pydicom-data carry for their tests: translated, or refused and why.

    python -m benchmarks.pacs.files      10 minutes of one core; pip install pydicom-data

Each is given alone to `ddib translate` with two models in one process, brain-t1 and brain-t2, or satellite and relief
for colours, by percentiles; and sent to a receiver. docs/benchmarks/pacs/files.json has a row a file: class, syntax,
frames, what became of it, and the receiver's answer to its C-STORE. The smoke has one that is translated and one not.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydicom

from benchmarks.command import Rows, Run, command
from benchmarks.pacs.series import BROKEN, send
from benchmarks.pacs.site import Site
from ddib_fed.errors import DdibError
from ddib_fed.testing import ddib

FOLDERS = (("pydicom", "data/test_files"), ("pynetdicom", "tests/dicom_files"), ("data_store", "data"))
SMOKE = ("CT_small.dcm", "rtplan.dcm")


def measure(run: Run) -> Rows:
    """Translate and send each file."""
    with tempfile.TemporaryDirectory() as place:
        site = Site.create(Path(place), "--out", f"{place}/out", archive=True, dicom="quiet_s = 3600.0")
        try:
            site.start_receiver()  # which no node need serve
            for package, path in files():
                if not run.smoke or path.name in SMOKE:
                    yield {"package": package, "file": path.name, **row(path, site.port)}
        finally:
            site.stop()


def files() -> Iterator[tuple[str, Path]]:
    """Yield the DICOM files of the packages that are installed."""
    for package, below in FOLDERS:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or []:
            for path in sorted(Path(folder).joinpath(below).rglob("*")):
                if (
                    path.is_file()
                    and "dicomdirtests" not in path.parts
                    and path.read_bytes()[128:132] == b"DICM"
                ):
                    yield package, path


def row(path: Path, port: int) -> dict[str, Any]:
    """Return what a file is, and what became of it; `held` says that nothing crashed."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        kind = pydicom.uid.UID(str(header.get("SOPClassUID") or "none"))
        syntax = header.file_meta.get("TransferSyntaxUID", "")
        colours = header.get("SamplesPerPixel") == 3
        looks = {"class": kind.name.removesuffix(" Storage")}
        looks["syntax"] = getattr(syntax, "name", str(syntax)).partition(",")[0]
        looks["frames"] = int(re.sub(r"\D", "", str(header.get("NumberOfFrames", 1))) or 1)
    except Exception as error:  # noqa: BLE001 - whatever pydicom raises of a file that it cannot read
        looks, colours = {"unreadable": repr(error)[:99]}, False
    became = translated(path, *(("satellite", "relief") if colours else ("brain-t1", "brain-t2")))
    return {**looks, "became": became, "c_store": stored(path, port), "held": "crashed" not in became}


def translated(path: Path, source: str, target: str) -> str:
    """Return what `ddib translate` makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        models, out = ("--source", source, "--target", target), ("--out", folder)
        try:
            ddib("translate", path, *models, *out, "--evaluations", 6, "--intensity", "percentile:0.5,99.5")
        except DdibError as error:
            return f"refused: {error.detail.replace(str(path), 'it')}"[:200]
        except Exception as error:  # noqa: BLE001 - a crash is what is looked for
            return f"crashed: {error!r}"[:200]
        results = [*Path(folder).rglob("*.dcm")]
        kinds = {pydicom.dcmread(one, stop_before_pixels=True).SOPClassUID.name for one in results}
        return f"translated: {len(results)} x {', '.join(kinds).replace(' Storage', '')}"


def stored(path: Path, port: int) -> str:
    """Return what the receiver answers."""
    try:
        (status,) = send(port, [path])
    except (AttributeError, ValueError, pydicom.errors.InvalidDicomError):  # without what is sent first
        return "cannot be sent"
    return {0: "success", BROKEN: "no presentation context"}.get(status, f"0x{status:04X}")


if __name__ == "__main__":
    sys.exit(command(measure, "pacs/files"))
