"""The officer's page: what it says is what the files say, and nothing on it is secret or markup of a peer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.bundle_files import parse_manifest
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.privacy import Figure, PrivacyReport, Reading
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.officer.facts import gather
from ddib_fed.node.officer.render import as_html, as_markdown
from ddib_fed.node.officer.section import Section
from ddib_fed.node.officer.sections import sections
from ddib_fed.node.policy import policy_digest
from ddib_fed.node.running.admin import AdminServicer, serve_admin, stop_admin
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.audit.receipts import RECEIPT, Exchanged
from ddib_fed.v1 import admin_pb2 as pb
from ddib_fed.wire.latent import Anchor
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_config, make_institution, save_model
from tests.runs.tiny_models import tiny_classifier


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """North's source node: south is admitted, and two calls were made."""
    made = make_config(tmp_path / "north", "north.example", "source", least_depth=0.7, listen='"127.0.0.1:0"')
    north = make_institution(tmp_path / "north", "north.example")
    north.admit(Institution("south.example", tmp_path / "south"), "south.example:7555")
    save_model(made)
    log = AuditLog(made.paths.audit)
    log.write("node_started", policy="ab" * 32)
    for item in range(2):
        exchanged = Exchanged(2, 1_500, 2, 70_000, Anchor(40 + item, "cd" * 32))
        log.write(RECEIPT, peer="south.example", **exchanged.values())
    log.write("refused", reason="PEER_UNKNOWN", identity="x", times=7)
    log.write("refused", reason="NO_CALL", identity="", times=2)
    return made


def section(config: NodeConfig, title: str) -> Section:
    (found,) = [each for each in sections(gather(config)) if each.title.startswith(title)]
    return found


def parse(bundle: Path) -> Manifest:
    return parse_manifest((bundle / "manifest.json").read_bytes(), str(bundle))


def text_of(part: Section) -> str:
    return " ".join([*part.lines, *(cell for row in part.rows for cell in row)])


def test_amounts_are_those_of_the_receipts(config: NodeConfig) -> None:
    """For each peer and direction, with the form."""
    rows = {row[0]: row[1:] for row in section(config, "What crosses").rows}
    assert rows["to south.example"][1:3] == ("4", "3,000")
    assert rows["from south.example"][1:3] == ("4", "140,000")
    assert "depth at least 0.7" in rows["to south.example"][0]


def test_latents_without_a_receipt_are_told(config: NodeConfig) -> None:
    """Of an earlier release, or of a call that a kill ended: nobody may read that nothing went."""
    log = AuditLog(config.paths.audit)
    for item in range(7):
        log.write("latent_sent", peer="south.example", item=item)
    told = text_of(section(config, "What crosses"))
    assert "south.example: 3 latents sent and 0 received without a receipt" in told


def test_a_peer_that_was_removed_stays_in_the_account(config: NodeConfig) -> None:
    """What went to it has gone."""
    peer_store(config).remove("south.example")
    assert section(config, "What crosses").rows[0][0] == "to south.example (no longer admitted)"


def test_the_settings_are_those_of_node_toml(config: NodeConfig) -> None:
    """Every key of [policy], with what it bounds."""
    rows = {row[0]: row[1:] for row in section(config, "Thresholds").rows}
    assert rows["policy.least_depth"][0] == "0.7"
    named = {f"policy.{name}" for name in type(config.policy).model_fields}
    assert named <= set(rows)
    assert all(what for name, (_, what) in rows.items()), "each says what it bounds"


def test_the_policy_that_the_node_applied_is_compared_with_the_file(config: NodeConfig) -> None:
    """It was changed since, and not read again."""
    (policy,) = [row[1] for row in section(config, "The node").rows if row[0] == "policy"]
    assert policy_digest(config) in policy
    assert f"the node applied {'ab' * 32} last" in policy
    log = AuditLog(config.paths.audit)
    log.write("reload", policy=policy_digest(config))
    log.write("receipt", policy="ab" * 32)  # of a call that began before the reload
    (policy,) = [row[1] for row in section(config, "The node").rows if row[0] == "policy"]
    assert "last" not in policy


def test_the_state_of_the_audit_log_is_told(config: NodeConfig) -> None:
    """Lines, refusals with how often, and how far the peer's log is known here; a broken chain in capitals."""
    part = section(config, "Audit log")
    assert "5 lines; its chain is whole" in part.lines[0]
    assert "2 NO_CALL, 7 PEER_UNKNOWN" in text_of(part)
    assert part.rows == (("south.example", "41"),)
    path = config.paths.audit
    path.write_bytes(path.read_bytes().replace(b"receipt", b"recipe.", 1))
    assert "BROKEN" in section(config, "Audit log").lines[0]


def test_ports_and_callers_are_those_of_the_files(config: NodeConfig) -> None:
    """The bound address, the peer's, the operator's socket; who may call for what."""
    ports = text_of(section(config, "Ports"))
    assert "127.0.0.1:0" in ports
    assert "south.example:7555" in ports
    assert str(config.paths.admin_socket) in ports
    assert "spiffe://north.example/client/NAME" in text_of(section(config, "Who may call"))


def test_telemetry_is_told(config: NodeConfig, tmp_path: Path) -> None:
    """Off, on, and with whom trace ids are shared: what crosses by it is named."""
    assert "Telemetry is off" in text_of(section(config, "What leaves"))
    settings = {"endpoint": '"http://127.0.0.1:4318"', "peers": '["south.example"]'}
    on = make_config(tmp_path / "other", "north.example", "source")
    text = on.path.read_text()
    for key, value in settings.items():
        at = text.index(f"# {key} = ", text.index("[telemetry]"))
        text = text[:at] + f"{key} = {value} #" + text[at + 1 :]
    on.path.write_text(text)
    make_institution(tmp_path / "other", "north.example")
    on = NodeConfig.load(on.path)
    told = text_of(section(on, "What leaves"))
    assert "go to http://127.0.0.1:4318" in told
    assert "Trace ids are shared with south.example" in told
    assert "`traceparent`, 55 characters" in told
    assert "http://127.0.0.1:4318 plain HTTP on loopback" in text_of(section(on, "Ports"))


def test_a_proxy_is_told(tmp_path: Path) -> None:
    """Beside each peer that is reached through it."""
    made = make_config(
        tmp_path / "north", "north.example", "source", proxy='"http://proxy.north.example:3128"'
    )
    north = make_institution(tmp_path / "north", "north.example")
    north.admit(Institution("south.example", tmp_path / "south"), "south.example:7555")
    assert "through the proxy http://proxy.north.example:3128" in text_of(section(made, "Ports"))


def test_a_leak_that_was_not_measured_is_said_to_be_so(config: NodeConfig) -> None:
    """With the command that measures it."""
    part = section(config, "Measured leak")
    assert "Not measured" in part.lines[0]
    assert f"ddib privacy report --model {config.paths.bundle}" in part.lines[0]


def report(bundle: Path, **changes: object) -> PrivacyReport:
    """A report on a bundle's weights, beside them."""
    shares = Figure(value=0.5, low=0.25, high=0.75)
    reading = Reading(
        soften_sigma=0.0, depth=1.0, encoder="ode", correlation=shares, found_by_correlation=shares,
        surrogate="ridge", read=Figure(value=23.21, low=21.7, high=24.4), found_by_reading=shares,
    )  # fmt: skip
    made = PrivacyReport(
        weights_sha256=parse(bundle).weights_sha256, sample_kind="picture", known=512, attacked=128,
        readings=(reading, reading.model_copy(update={"depth": 0.5}), reading.model_copy(update={"soften_sigma": 0.5})),
    ).model_copy(update=changes)  # fmt: skip
    (bundle / "privacy.json").write_bytes(made.text())
    return made


def test_a_report_beside_the_weights_is_shown_if_it_is_about_them(config: NodeConfig) -> None:
    """Figures with their intervals, and which of them this policy does not allow; one of other weights is a warning."""
    report(config.paths.bundle)
    part = section(config, "Measured leak")
    assert part.columns[1:3] == ("right one of 128 by correlation", "read with 512 known pairs")
    found = "50 % (25 to 75)"
    assert part.rows[0] == (
        "depth 1, ode", found, "23.2 (21.7 to 24.4)", found, "", "",
    )  # fmt: skip
    assert part.rows[1][0] == "depth 0.5, ode; not allowed here"
    assert part.rows[2][0].endswith("softened to 0.5; for comparison, this model softens otherwise")
    assert "guessing finds 0.781 %" in part.lines[0]
    report(config.paths.bundle, weights_sha256="00" * 32)
    facts = gather(config)
    assert facts.privacy is None
    assert "about other weights" in facts.problems[0]


def test_a_node_without_a_model_or_a_log_has_a_page(tmp_path: Path) -> None:
    """Before its first start; what is missing is said."""
    config = make_config(tmp_path / "south", "south.example", "target")
    make_institution(tmp_path / "south", "south.example")
    facts = gather(config)
    assert "cannot be read" in facts.problems[0]
    page = as_markdown("x", sections(facts))
    assert "There is none yet" in page
    assert "A target keeps no latent" in page


def test_no_text_of_a_file_becomes_markup(config: NodeConfig) -> None:
    """A peer chooses its address, and whoever wrote a manifest its names."""
    hostile = Section("t", ("<script>alert(1)</script> | [x](http://evil)",), ("a",), (("|<b>\n# x",),))
    page = as_html("<img src=x>", [hostile])
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<img" not in page
    marked = as_markdown("t", [hostile])
    assert "<script>" not in re.sub(r"\\<", "", marked)
    assert "](http" not in re.sub(r"\\\]", "", marked)
    assert len(marked.splitlines()) == len(
        as_markdown("t", [Section("t", ("x",), ("a",), (("b",),))]).splitlines()
    )


def test_the_command_writes_one_page_without_a_secret(config: NodeConfig, tmp_path: Path, capsys) -> None:
    """HTML or Markdown by the name; an existing file stays."""
    for name in ("officer.html", "officer.md"):
        out = tmp_path / name
        command = ["officer", "report", "--config", str(config.path), "--out", str(out)]
        assert run(command) == 0
        assert run(command) == ExitCode.CONFLICT
        assert run([*command, "--force"]) == 0
        page = out.read_text()
        assert "PRIVATE KEY" not in page
        key = (config.paths.pki / "leaf.key").read_text().splitlines()[1]
        assert key not in page
        assert "security officer" in page
    assert (tmp_path / "officer.html").read_text().startswith("<!doctype html>")


def row(config: NodeConfig, title: str, name: str) -> tuple[str, ...]:
    (found,) = [each[1:] for each in section(config, title).rows if each[0] == name]
    return found


def test_a_running_node_that_serves_another_model_is_told(config: NodeConfig) -> None:
    """Somebody has put another bundle in place: it is served from the next start."""
    served, asked = "ef" * 32, parse(config.paths.bundle).digest()
    answer = pb.StatusResponse(state="serving", model=pb.ModelStatus(sha256=served))
    servicer = AdminServicer(lambda: answer, list, lambda: 0, lambda _: pb.WorkersResponse())
    server = serve_admin(config.paths.admin_socket, servicer, [])
    try:
        facts = gather(config)
        assert (facts.state, facts.running) == ("serving", served)
        assert served in facts.problems[0]
        assert asked in facts.problems[0]
        answer.model.sha256 = asked
        assert gather(config).problems == ()
    finally:
        stop_admin(server, config.paths.admin_socket)


def test_the_classifier_is_named(config: NodeConfig) -> None:
    """It steers what is given out."""
    text = config.path.read_text().replace('# classifier = "classifier"', 'classifier = "guide"')
    config.path.write_text(text)
    again = NodeConfig.load(config.path)
    assert "guide cannot be read" in gather(again).problems[0]
    guide = tiny_classifier()
    save_bundle(config.folder / "guide", guide.manifest, guide.state)
    assert guide.digest in row(again, "The node", "classifier")[0]
