"""Every DICOM file that pydicom, pynetdicom and pydicom-data carry for their tests: translated, or refused and why.

    python -m benchmarks.pacs.files          (pip install pydicom-data)

Each is given alone to `ddib translate` with two models in one process, brain-t1 and brain-t2, or satellite and relief
for colours, by percentiles. docs/benchmarks/pacs/files.json has a row a file: class, syntax, frames, what became
of it, and what a receiver would answer to its C-STORE.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydicom
from click.testing import CliRunner

from benchmarks.pacs.site import write
from ddib_fed.cli.main import cli
from ddib_fed.errors import DdibError
from ddib_fed.formats.dicom import checked_header, read_header, readable_syntaxes
from ddib_fed.pacs.network import TAKEN

FOLDERS = (("pydicom", "data/test_files"), ("pynetdicom", "tests/dicom_files"), ("data_store", "data"))


def main() -> None:
    rows = []
    for package, below in FOLDERS:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        for path in sorted(Path(spec.submodule_search_locations[0]).joinpath(below).rglob("*")):
            if path.is_file() and path.read_bytes()[128:132] == b"DICM" and "dicomdirtests" not in path.parts:
                rows.append({"package": package, "file": path.name, **row(path)})
                print(rows[-1], flush=True)
    write("files", {"counts": Counter(each["became"].partition(":")[0] for each in rows), "rows": rows})


def row(path: Path) -> dict[str, Any]:
    try:
        header = read_header(path)
    except DdibError as error:
        return {"became": f"refused: {_why(error.detail, path)}"}
    uids, kind = pydicom.uid, pydicom.uid.UID(str(header.get("SOPClassUID") or "none"))
    syntax = header.file_meta.get("TransferSyntaxUID", "")
    looks = {
        "class": kind.name.removesuffix(" Storage"),
        "syntax": getattr(syntax, "name", str(syntax)).partition(",")[0],
        "frames": int(re.sub(r"\D", "", str(header.get("NumberOfFrames", 1))) or 1),
    }
    colours = header.get("SamplesPerPixel") == 3
    models = ("satellite", "relief") if colours else ("brain-t1", "brain-t2")
    with tempfile.TemporaryDirectory() as folder:
        result = CliRunner().invoke(cli, [
            "translate", str(path), "--source", models[0], "--target", models[1], "--out", folder, "--evaluations", "6",
            "--intensity", "percentile:0.5,99.5",
        ])  # fmt: skip
        made = sorted(Path(folder).rglob("*.dcm"))
        if made and not result.exit_code:
            kinds = {read_header(each).SOPClassUID.name.removesuffix(" Storage") for each in made}
            became = f"translated: {len(made)} x {', '.join(kinds)}"
        else:
            error = result.exception
            became = f"refused: {_why(error.detail if isinstance(error, DdibError) else repr(error), path)}"
    taken = kind in {getattr(uids, name) for name in TAKEN} and syntax in readable_syntaxes()
    try:
        checked_header(path)
        stored = "success" if taken else "no presentation context"
    except DdibError:
        stored = "0xC000" if taken else "no presentation context"
    return {**looks, "became": became, "c_store": stored}


def _why(detail: str, path: Path) -> str:
    return detail.replace(str(path), "it").replace("\n", " ")[:200]


if __name__ == "__main__":
    main()
