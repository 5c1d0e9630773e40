"""`ddib domains`: lists the target domains of the source node, and whether each is ready."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ddib_fed.cli import options
from ddib_fed.cli.client.session import open_client
from ddib_fed.cli.help import command
from ddib_fed.cli.output import figures, moment, print_ids, print_json, print_table
from ddib_fed.client.views import Domain
from ddib_fed.terminal import say
from ddib_fed.wire.contracts.calibration import CalibrationTerms
from ddib_fed.wire.contracts.guidance import GuidanceTerms

MAX_LISTED = 12


@command()
@options.QUIET
@options.FORMAT
@options.PROFILE
def domains(quiet: bool, output_format: str, profile_path: Path | None) -> None:
    """List the available target domains, and whether each is ready."""
    with open_client(profile_path) as client:
        found = client.domains()
    if quiet:
        print_ids([each.target for each in found.targets if each.domain], output_format)
        return
    if output_format == "json":
        print_json({**figures(found), "targets": [_values(each) for each in found.targets]})
        return
    say(f"from {found.institution}/{found.domain} ({kind(found.sample_kind, found.sample_shape)}) to:")
    if not found.targets:
        say("none yet: the node's operator admits peers with `ddib peer add`")
        return
    rows = [_row(domain) for domain in found.targets]
    columns = ["!--to", "!samples", "classes", "guidance", "calibration", "status", ">ms"]
    empty = {place for place in (2, 3, 4) if all(row[place] == "-" for row in rows)}
    shown = [[cell for place, cell in enumerate(row) if place not in empty] for row in (columns, *rows)]
    print_table("", shown[0], shown[1:])


def _values(domain: Domain) -> dict[str, object]:
    values = figures(domain)
    if domain.calibration is not None:
        values["calibration"]["expires"] = moment(domain.calibration.expires)
    return {"target": domain.target, **values}


def _row(domain: Domain) -> list[str]:
    what = kind(domain.sample_kind, domain.sample_shape) if domain.sample_shape else "-"
    target = domain.target if domain.domain else f"{domain.institution}/?"
    offers, there = guidance(domain.guidance), classes(domain.classes, domain.class_names)
    calibrated = calibration(domain.calibration)
    return [target, what, there, offers, calibrated, domain.status, str(domain.latency_ms)]


def calibration(terms: CalibrationTerms | None) -> str:
    """The kind and the last day of the calibration that jobs to the target use."""
    if terms is None:
        return "-"
    return f"{terms.kind} until {datetime.fromtimestamp(terms.expires, UTC):%Y-%m-%d}"


def guidance(terms: GuidanceTerms) -> str:
    """The guidance options that the target accepts, with their limits."""
    found = []
    if terms.max_guidance:
        found.append(f"--guidance {terms.max_guidance:g}")
    if terms.max_classifier_scale:
        found.append(f"--classifier-scale {terms.max_classifier_scale:g}")
    return ", ".join(found) or "-"


def classes(count: int, names: Sequence[str]) -> str:
    return ", ".join(names) if 0 < len(names) <= MAX_LISTED else f"0 to {count - 1}" if count else "-"


def kind(sample_kind: str, shape: tuple[int, ...]) -> str:
    return f"{sample_kind} {'x'.join(map(str, shape))}"
