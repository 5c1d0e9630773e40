"""The last day of an audit log, and what leaves in plain words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.node.config import NodeConfig
from ddib_fed.node.officer.facts import gather
from ddib_fed.node.officer.leaving import leaving
from ddib_fed.node.officer.recent import HOURS, Recent
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.audit.receipts import RECEIPT, Exchanged
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_config, make_institution, save_model

NOW = datetime(2030, 6, 2, 12, 30, tzinfo=UTC)


def write(path: Path, hours_ago: float, act: str = RECEIPT, **values: object) -> None:
    if act == RECEIPT:
        values = Exchanged(2, 1_500, 1, 70_000).values()
    AuditLog(path, clock=lambda: NOW - timedelta(hours=hours_ago)).write(act, **values)


def test_hours_add_up(tmp_path: Path) -> None:
    """24 of them, the running one last; what is older is not counted."""
    path = tmp_path / "audit.jsonl"
    for ago in (30, 23, 1, 0.1, 0):
        write(path, ago)
    write(path, 0, "refused", reason="PEER_UNKNOWN", identity="x", times=7)
    write(path, 0, "refused", reason="NO_CALL")
    hours = Recent(path).hours(NOW)
    assert len(hours) == HOURS
    assert hours[-1].start == datetime(2030, 6, 2, 12, tzinfo=UTC)
    assert [hour.sent_items for hour in hours if hour.sent_items] == [2, 2, 4]
    assert (hours[-1].sent_bytes, hours[-1].received_items, hours[-1].received_bytes) == (3_000, 2, 140_000)
    assert hours[-1].refused == {"PEER_UNKNOWN": 7, "NO_CALL": 1}


def test_a_log_is_read_on_where_it_ended(tmp_path: Path) -> None:
    """Each line is counted once, half a line later, and a log that was begun anew from its beginning."""
    path = tmp_path / "audit.jsonl"
    recent = Recent(path)
    assert not any(hour.sent_items for hour in recent.hours(NOW))
    write(path, 0)
    assert recent.hours(NOW)[-1].sent_items == 2
    whole = path.read_bytes()
    write(path, 0)
    later = path.read_bytes()
    path.write_bytes(later[:-10])
    assert recent.hours(NOW)[-1].sent_items == 2
    path.write_bytes(later)
    assert recent.hours(NOW)[-1].sent_items == 4
    path.write_bytes(whole)
    assert recent.hours(NOW)[-1].sent_items == 2
    assert recent.hours(NOW + timedelta(hours=2))[-3].sent_items == 2
    assert not any(hour.sent_items for hour in recent.hours(NOW + timedelta(days=2)))


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b"[]\n",
        b'{"act":"receipt","time":"yesterday","sent_items":5}\n',
        b'{"act":"receipt","time":"2030-06-02T12:00:00+00:00","sent_items":"many","sent_bytes":-4}\n',
        b"\xff\x00\x9c{" * 16 + b"\n",
    ],
)
def test_a_line_that_cannot_be_read_is_skipped(tmp_path: Path, line: bytes) -> None:
    """`ddib audit verify` names it; the page goes on."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line)
    assert not any(hour.sent_items or hour.sent_bytes for hour in Recent(path).hours(NOW))


def sentences(tmp_path: Path, role: str, **settings: object) -> str:
    config = make_config(tmp_path / "north", "north.example", role, **settings)
    institution = make_institution(tmp_path / "north", "north.example")
    institution.admit(Institution("south.example", tmp_path / "south"))
    save_model(config)
    return " ".join(leaving(gather(config)))


def test_a_source_sends_latents(tmp_path: Path) -> None:
    """To whom, of what size, and that they are the picture."""
    said = sentences(tmp_path, "source")
    assert "to south.example" in said
    assert "Treat it as the picture" in said
    assert "2 numbers, as 32-bit numbers" in said
    assert "full depth" in said
    assert "Translations leave" not in said
    assert "No calibration is allowed" in said


def test_what_shows_more_is_said(tmp_path: Path) -> None:
    """Depths, encoders and calibrations that a policy allows."""
    said = sentences(
        tmp_path, "source", least_depth=0.6, encoders='["ode", "mixed"]', calibration='["rotation"]',
        latent_types='["float16"]',
    )  # fmt: skip
    for text in ("down to 0.6", "mixed is allowed", "of the kind rotation", "16-bit numbers"):
        assert text in said
    assert "Only latents of full depth" not in said
    assert "its map and its figures leave" in said
    assert "histogram" not in said, "only a target publishes one"


def test_a_target_sends_translations(tmp_path: Path) -> None:
    """And whether their number is limited."""
    said = sentences(tmp_path, "target", samples_per_day=1_000)
    assert "Translations leave: what this node makes of the latents of south.example" in said
    assert "at most 1,000 samples a day" in said
    assert "Latents of your clients" not in said


def test_what_a_target_gives_for_calibrations_is_said(tmp_path: Path) -> None:
    """The noised histogram; the units, which are not noised, where the policy allows it."""
    said = sentences(tmp_path / "some", "target", calibration='["rotation"]')
    assert "a noised histogram" in said
    assert "mean and deviation" not in said
    assert "its map and its figures leave" not in said
    said = sentences(tmp_path / "more", "target", calibration='["rotation"]', calibration_units="true")
    assert "mean and deviation of the channels of its training data, without noise" in said


def test_telemetry_is_said(tmp_path: Path) -> None:
    """Off; or where traces go, and with whom trace ids are shared."""
    assert "Telemetry is off" in sentences(tmp_path / "off", "source")
    config = make_config(tmp_path / "north", "north.example", "source")
    text = config.path.read_text()
    for key, value in {"endpoint": '"http://127.0.0.1:4318"', "peers": '["south.example"]'}.items():
        at = text.index(f"# {key} = ", text.index("[telemetry]"))
        text = text[:at] + f"{key} = {value} #" + text[at + 1 :]
    config.path.write_text(text)
    make_institution(tmp_path / "north", "north.example")
    said = " ".join(leaving(gather(NodeConfig.load(config.path))))
    assert "go to http://127.0.0.1:4318" in said
    assert "Trace ids are shared with south.example" in said


@pytest.mark.parametrize(("role", "what"), [("source", "latents"), ("target", "translations")])
def test_without_a_peer_nothing_leaves(tmp_path: Path, role: str, what: str) -> None:
    """Said in plain words."""
    config = make_config(tmp_path / "north", "north.example", role)
    make_institution(tmp_path / "north", "north.example")
    assert leaving(gather(config))[0] == f"No {what} leave: no peer is admitted."
