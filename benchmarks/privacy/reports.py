"""The privacy reports of the shipped models, as `ddib privacy report` writes them, and the tables of docs/privacy.md.

    python -m benchmarks.privacy.reports [--domain satellite moons ...]   attack, then write the tables
    python -m benchmarks.privacy.reports --report                         only the tables

One thread. privacy.json lies beside the weights of each shipped model; digests do not change.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.pages import between, markdown
from ddib_fed.files import write_file
from ddib_fed.lab.report import Wanted, privacy_report
from ddib_fed.models.bundle import load_bundle, put_beside
from ddib_fed.models.privacy import PRIVACY_FILE, Figure, PrivacyReport

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "ddib_fed" / "models" / "pretrained"
PAGE = ROOT / "docs" / "privacy.md"
PICTURES = ("satellite", "relief", "etopo", "brain-t1", "brain-t2")
POINTS = (
    *("moons", "checkerboards", "concentric-rings"),
    *("parallel-squares", "concentric-squares", "parallel-rings"),
)


def main() -> int:
    """Attack what was asked, then write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", nargs="+", default=[*POINTS, *PICTURES], choices=[*POINTS, *PICTURES])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--surrogate-seconds", type=float, default=60.0)
    parser.add_argument("--report", action="store_true", help="attack nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for domain in () if given.report else given.domain:
        started = time.process_time()
        seconds = f"{given.surrogate_seconds:g}"
        command = (
            f"ddib privacy report --model MODEL --samples {given.samples} --surrogate-seconds {seconds} "
            "--evaluations 24 --seed 41"
        )
        wanted = Wanted(samples=given.samples, surrogate_s=given.surrogate_seconds, command=command)
        found = privacy_report(load_bundle(SHIPPED / domain), wanted, say=print)
        put_beside(SHIPPED / domain, PRIVACY_FILE, found.text())
        print(f"{domain}: {time.process_time() - started:.0f} CPU seconds", flush=True)
    text = PAGE.read_text(encoding="utf-8")
    for name, domains in (("pictures", PICTURES), ("points", POINTS)):
        text = between(text, name, "benchmarks/privacy/reports.py", tables(domains))
    write_file(PAGE, text.encode())
    return 0


def tables(domains: tuple[str, ...]) -> str:
    """What is read of each kind of latent; membership and copies."""
    found = {domain: load_bundle(SHIPPED / domain).privacy for domain in domains}
    there = {domain: report for domain, report in found.items() if report is not None}
    if not there:
        return ""
    parts = [readings(there)]
    told = membership(there)
    return "\n\n".join([*parts, told] if told else parts)


def readings(there: dict[str, PrivacyReport]) -> str:
    """A row of each kind of latent."""
    rows = tuple(
        (
            domain,
            f"{report.attacked} of {report.known} known",
            each.encoder,
            f"{each.depth:g}",
            f"{each.soften_sigma:g}",
            _said(each.correlation),
            _said(each.found_by_correlation),
            each.surrogate,
            _said(each.read, 1 if report.sample_kind == "picture" else 3),
            _said(each.found_by_reading),
            _said(each.model_read, 1 if report.sample_kind == "picture" else 3),
            _said(each.found_by_model),
        )
        for domain, report in there.items()
        for each in report.readings
    )
    unit = "dB" if next(iter(there.values())).sample_kind == "picture" else "deviations off"
    columns = (
        *("model", "attacked", "encoder", "depth", "softened", "correlation", "found by it", "inverter"),
        *(f"it reads, {unit}", "found by it", f"own model reads, {unit}", "found by it"),
    )
    return markdown(columns, rows)


def membership(there: dict[str, PrivacyReport]) -> str:
    """A row of each softening, with the copies of the model."""
    rows = tuple(
        (
            domain,
            f"{each.soften_sigma:g}",
            f"{each.members}, {each.others}",
            _said(each.norm),
            _said(each.loss),
            *((None, None, None) if report.copies is None else map(_said, _copies(report))),
        )
        for domain, report in there.items()
        for each in report.membership
    )
    columns = (
        *("model", "softened", "members, others", "by the norm, AUC", "by the loss, AUC"),
        *("drawn: nearest training picture", "held out: the same", "drawn nearer than 99 in 100 of these"),
    )
    return markdown(columns, rows) if rows else ""


def _copies(report: PrivacyReport) -> tuple[Figure, Figure, Figure]:
    assert report.copies is not None  # the caller has looked
    return report.copies.samples, report.copies.held_out, report.copies.near


def _said(figure: Figure | None, digits: int = 2) -> str:
    if figure is None:
        return "–"
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f}–{figure.high:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
