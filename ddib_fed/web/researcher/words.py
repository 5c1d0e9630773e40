"""Figures and doubts of a translation in plain words, and how doubtful it is, for the order on the page."""

from __future__ import annotations

from ddib_fed.bridge.records.translation_record import Translation

DOUBTS = {
    "cycle_psnr": "translated back, it differs visibly from the original",
    "structure": "its edges or values agree with those of the original no better than an unrelated picture's",
}


def doubts_in_words(record: Translation) -> list[str]:
    """Why it is doubtful; empty where it is not."""
    return [DOUBTS.get(each, each) for each in record.doubts or ()]


def severity(record: Translation) -> float:
    """The higher, the earlier it should be looked at: doubtful ones first, then by the worst round trip."""
    rank = 1000.0 * len(record.doubts or ())
    picture = record.picture
    if picture is not None and picture.cycle_psnr is not None:
        return rank - picture.cycle_psnr
    if record.cycle is not None:
        return rank + min(record.cycle.p99, 999.0)
    if picture is not None and picture.edge_correlation is not None:
        return rank - picture.edge_correlation
    return rank


def figures_in_words(record: Translation) -> list[tuple[str, str]]:
    """Names and values, for a list of definitions."""
    found: list[tuple[str, str]] = []
    picture, cycle = record.picture, record.cycle
    if picture is not None and picture.cycle_psnr is not None:
        found.append(("Round trip", f"{picture.cycle_psnr:.1f} dB (higher is better)"))
    if picture is not None and picture.edge_correlation is not None:
        found.append(("Edges in common", f"{picture.edge_correlation:.2f} of 1"))
    if cycle is not None:
        found.append(("Round trip, median point", f"{cycle.median:.3g} of a standard deviation"))
        found.append(("Round trip, worst 1 %", f"{cycle.p99:.3g} of a standard deviation"))
    if picture is not None and picture.width:
        found.append(("Size", f"{picture.width} × {picture.height} pixels"))
    if picture is not None and picture.clipped:
        found.append(("Outside the model's range", f"{picture.clipped:,} values were clipped"))
    if record.samples > 1:
        found.append(("Points", f"{record.samples:,}"))
    solver = record.solver
    found.append(("Steps", f"{solver.evaluations} each way ({solver.solver})"))
    found.append(("Time", f"{sum(record.seconds.values()):.1f} s"))
    return found
