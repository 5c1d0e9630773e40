"""Knows a study again that an earlier run has translated, without reading its pixels.

It is finished if its record names the same input, options and request, and its files have the recorded digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddib_fed.bridge.records.translation_record import Translation
from ddib_fed.files import has_sha256, parse_json
from ddib_fed.formats.origin import Origin
from ddib_fed.formats.parts import FORMAT, WrittenStudy


def finished_study(origin: Origin, out: Path, *, asked: str) -> WrittenStudy | None:
    """The output of a study that is on the disk already; None if it is not, or is that of something else."""
    digest = ""
    for path in (out / f"{name}.json" for name in (origin.name, *origin.also)):
        record, report = Translation.read(path), _report(path)
        if record is None or report is None:
            continue
        if (record.asked_sha256, report["options"]) != (asked, dict(origin.settings)):
            continue
        digest = digest or origin.sha256()
        files = {path.parent / name: written for name, written in report["files"].items()}
        if record.input_sha256 != digest or not files:
            continue
        if all(has_sha256(file, written) for file, written in files.items()):
            said = ("was translated by an earlier run; --again translates it again",)
            return WrittenStudy(origin.given, tuple(files), path, record, report, said)
    return None


def _report(path: Path) -> dict[str, Any] | None:
    """The section `study` of a record; None where there is none of this release's."""
    try:
        document = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    report = document.get("study") if isinstance(document, Mapping) else None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        return None
    kinds = {"kind": str, "planes": int, "options": dict, "warnings": list, "files": dict, "items": list}
    if not all(isinstance(report.get(name), kind) for name, kind in kinds.items()):
        return None
    return report if all(isinstance(item, dict) for item in report["items"]) else None
