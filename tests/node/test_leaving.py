"""`ddib status --leaving`: the page says what the files say, and nothing on it is secret or markup of a peer."""

import html
import re
from pathlib import Path

import pytest

from ddib_fed.cli.main import run
from ddib_fed.models.bundle import parse_manifest
from ddib_fed.models.sidecars import Figure, PrivacyReport, Reading
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.security.identity import Identity
from tests.node.institutions import Institution
from tests.node.tiny_nodes import make_config, make_institution, save_model


def make(folder: Path, role: str, admitted: tuple[str, ...] = ("south",), **settings: str) -> NodeConfig:
    """North's node, which admits peers; the role "both" is source and target."""
    made = make_config(folder / "north", "north.example", "target" if role == "target" else "source")
    text = made.path.read_text()
    if role == "both":
        text = text.replace('roles = ["source"]', 'roles = ["source", "target"]')
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    made.path.write_text(text.replace("[policy]\n", f"[policy]\n{lines}", 1))
    north = make_institution(folder / "north", "north.example")
    for name in admitted:
        north.admit(Institution(f"{name}.example", folder / name), f"{name}.example:7555")
    config = NodeConfig.load(made.path)
    save_model(config)
    return config


def said(config: NodeConfig) -> str:
    """The text of the page."""
    path = config.folder / "page.html"
    path.unlink(missing_ok=True)
    assert run(["status", "--config", str(config.path), "--leaving", str(path)]) == 0
    page = path.read_text()
    assert page.startswith("<!doctype html>")
    assert "PRIVATE KEY" not in page
    assert (config.paths.pki / "leaf.key").read_text().splitlines()[1] not in page
    body = html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]))
    return " ".join(body.split())


def test_a_source_sends_latents_and_what_shows_more_is_said(tmp_path: Path) -> None:
    text = said(make(tmp_path, "source"))
    assert "Latents of your clients' pictures or points leave, to south.example." in text
    for part in ("2 numbers.", "Only latents of full depth leave", "No calibration is allowed"):
        assert part in text
    assert "Translations leave" not in text
    more = {
        "least_depth": "0.6", "least_share": "0.75", "shared_noise": "true", "calibration": '["rotation"]',
    }  # fmt: skip
    config = make(tmp_path / "more", "source", **more)
    (config.paths.bundle / "gate.json").write_text("{}")
    text = said(config)
    for part in (
        "down to 0.6",
        "a share down to 0.75",
        "softened by the same noise",
        "of the kind rotation",
        "its map, its figures and the units of your model leave",
    ):
        assert part in text
    assert "Only latents of full depth" not in text
    assert "histogram" not in text, "only a target publishes one"


def test_a_target_sends_translations(tmp_path: Path) -> None:
    text = said(make(tmp_path, "target", samples_per_day="1000", calibration='["rotation"]'))
    for part in ("the latents of south.example", "at most 1,000 samples a day", "a noised histogram"):
        assert part in text
    assert "Latents of your clients" not in text
    assert "mean and deviation of the channels of its training data, without noise" in text


def test_recipients_are_those_of_the_policy(tmp_path: Path) -> None:
    """A peer that may only send is no recipient of latents, and one that may only be sent to does not decode here."""
    config = make(
        tmp_path, "both", ("south", "west"), peers='{ "south.example" = ["send"], "*" = ["decode"] }',
        calibration='["rotation"]',
    )  # fmt: skip
    text = said(config)
    assert "leave, to south.example." in text
    assert "Translations leave: what this node makes of the latents of west.example." in text
    assert "No latents go to west.example" in text
    assert "No latents of south.example are decoded" in text
    assert "are allowed, but with none of the peers." in text
    assert "spiffe://south.example/node/node-1 south.example:7555 latents west.example" in text
    assert "west.example:7555 translations" in text


@pytest.mark.parametrize("how", ["suspended", "withdrawn"])
def test_a_peer_that_is_suspended_or_withdrawn_is_no_recipient(tmp_path: Path, how: str) -> None:
    config = make(tmp_path, "both", ("south", "west"))
    if how == "suspended":
        peer_store(config).suspend("south.example", reason="a stolen disk")
    else:
        peer_store(config).withdraw(Identity("south.example", "node", "node-1"))
    text = said(config)
    assert "Latents of your clients' pictures or points leave, to west.example." in text
    assert "Nothing goes to south.example and nothing is taken from it: " in text
    assert ("a stolen disk" if how == "suspended" else "its node is withdrawn") in text


def test_a_leak_is_shown_if_it_was_measured_on_these_weights(tmp_path: Path, capsys) -> None:
    """Figures with their intervals, and which of them this policy does not allow; else the command that measures it."""
    config = make(tmp_path, "source", least_depth="0.7", least_share="0.8")
    bundle = config.paths.bundle
    assert (
        f"Not measured for this model. What an attacker reads from its latents: ddib privacy report --model {bundle}"
        in (said(config))
    )
    shares = Figure(value=0.5, low=0.25, high=0.75)
    reading = Reading(
        soften_sigma=0.0, depth=1.0, share=1.0, correlation=shares, found_by_correlation=shares,
        surrogate="ridge", read=Figure(value=23.21, low=21.7, high=24.4), found_by_reading=shares,
    )  # fmt: skip
    report = PrivacyReport(
        weights_sha256=parse_manifest((bundle / "manifest.json").read_bytes(), "").weights_sha256,
        sample_kind="picture", known=512, attacked=128,
        readings=(
            *(reading, reading.model_copy(update={"depth": 0.5}), reading.model_copy(update={"share": 0.75})),
            reading.model_copy(update={"soften_sigma": 0.5}),
        ),
    )  # fmt: skip
    (bundle / "privacy.json").write_bytes(report.text())
    text = said(config)
    assert "right one of 128 by correlation read with 512 known pairs" in text
    assert "depth 1, share 1 50 % (25 to 75) 23.2 (21.7 to 24.4) 50 % (25 to 75)" in text
    assert "depth 0.5, share 1; not allowed here" in text
    assert "depth 1, share 0.75; not allowed here" in text
    assert "softened to 0.5; for comparison, this model softens otherwise" in text
    assert "guessing finds 0.781 %" in text
    (bundle / "privacy.json").write_bytes(report.model_copy(update={"weights_sha256": "00" * 32}).text())
    assert "belongs to other weights" in said(config)
    assert "belongs to other weights" in capsys.readouterr().err


def test_no_text_of_a_file_becomes_markup(tmp_path: Path) -> None:
    config = make(tmp_path, "source")
    peer_store(config).suspend("south.example", reason="<script>alert(1)</script>")
    path = tmp_path / "page.html"
    assert run(["status", "--config", str(config.path), "--leaving", str(path)]) == 0
    page = path.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
