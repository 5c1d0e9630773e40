"""What files, peers and nodes say, shown on a terminal or written to a log: it must do nothing but be read."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, Said, attack, ddib
from benchmarks.trust.soundness.nodes import peer_of, root_of
from ddib_fed.models.catalogue import copy_shipped
from ddib_fed.v1 import translation_pb2 as pb
from tests.cli.test_hostile_words import GENUINE, on_a_terminal
from tests.client.scripted_source import ScriptedSource, SourceNodeDouble, StoredJob, npy, points
from tests.e2e.harness import Node
from tests.node.institutions import Institution
from tests.source_node.scripted_target import ScriptedTarget
from tests.trust.peers.test_store import changed

EVIL = "x\n2030-01-01 INFO ddib_fed: admitted \x1b]0;\x07\x9d\u202e\u2028\x85"
SEQUENCES = {
    "OSC": "\x1b]0;", "OSC of one character": "\x9d", "CSI": "\x1b[2K\x1b[1A", "right to left": "\u202e",
    "line separator": "\u2028", "next line": "\x85", "carriage return": "\r", "backspace": "\b\b\b",
    "zero width": "\u200b", "a tag character": "\U000e0041", "a variation selector": "\ufe0f", "NUL": "\x00",
    "an isolate": "\u2066", "a soft hyphen": "\xad",
}  # fmt: skip


def harmless(text: str) -> bool:
    """Whether a text has nothing in it but what is shown, and no line that a hostile word began."""
    return all(line.isprintable() for line in text.split("\n")) and not any(
        line.startswith("2030-01-01") for line in text.splitlines()
    )


def _shown(result: Result, what: str, said: Said) -> None:
    """Note a variant that holds when what was shown is harmless, and is no traceback."""
    bad = next((ascii(line) for line in said.text.split("\n") if not harmless(line)), "")
    result.add(what, not bad and "Traceback" not in said.text, said.code, bad or said.error)


@attack(
    7,
    "a swapped peer file with sequences of 14 kinds in address, identity and institution, and a `y` on a terminal",
    before="an OSC sequence hid the real fingerprint, and `y` admitted the attacker's root",
    test="tests/cli/test_hostile_words.py::test_a_peer_file_with_a_sequence_in_its_address_is_refused_in_plain_words",
)
def swapped_file(folder: Path, result: Result) -> None:
    north = Node.create(folder / "north", "source", "north.example", "moons", pretrained=False)
    attacker, file = Institution("south.example", folder / "attacker"), folder / "south.peer"
    for kind, sequence in SEQUENCES.items():
        hidden = f"{sequence}{GENUINE}{sequence}"
        for name, value in (
            ("address", f"south.example:7442{hidden}"),
            ("address", f"south.example{sequence}:7442"),
            ("identity", f"spiffe://south.example/node/node-1{hidden}"),
            ("institution", f"south.example{sequence}"),
        ):
            file.write_bytes(changed(attacker.peer("south.example:7442"), **{name: value}))
            said = ddib("peer", "add", file, "--config", north.config_path, "--fingerprint", GENUINE)
            if said.code == 0 or not harmless(said.text):
                result.add(f"{kind} in {name}", held=False, code=said.code, said=said.error)
        result.add(kind, said.code in {3, 5}, said.code, said.error)
    file.write_bytes(changed(attacker.peer(), address=f"south.example:7442\x1b]0;{GENUINE}"))
    code, shown = on_a_terminal(["peer", "add", file, "--config", north.config_path], b"y\n")
    result.add("on a terminal", code == 3 and b"\x1b" not in shown, code)
    result.add("nobody was admitted", not list(north.config.paths.peers.glob("*")))


class Evil(ScriptedSource):
    """A source node whose texts are hostile.

    Attributes:
        only_errors: Whether those alone are that take any words; names are checked before anything is shown.
    """

    only_errors = False

    def ListDomains(self, request: Any, context: grpc.ServicerContext) -> pb.ListDomainsResponse:  # noqa: N802
        answer = super().ListDomains(request, context)
        answer.domain = answer.institution = EVIL
        for domain in answer.domains:
            domain.institution = domain.domain = domain.status = EVIL
        return answer

    def _view(self, job_id: str, job: StoredJob) -> pb.Job:
        view = super()._view(job_id, job)
        if not self.only_errors:
            view.target_domain = view.target_institution = view.solver.solver = view.target_class = EVIL
        view.error.sentence = view.error.incident = view.error.institution = EVIL
        view.error.reason = "LATENT_NOT_GAUSSIAN" if self.only_errors else EVIL
        view.error.facts["found"] = EVIL
        view.state = pb.JOB_STATE_FAILED
        return view


@contextmanager
def evil_source(folder: Path) -> Iterator[SourceNodeDouble]:
    """The node double with hostile answers."""
    double = SourceNodeDouble(folder)
    double.stop()
    double.service = Evil(double.script)
    double.start()
    try:
        yield double
    finally:
        double.stop()


@attack(
    7,
    "a hostile source node, to each of the client's commands, as text and JSON",
    before="escape sequences reached the terminal, a job id with a newline forged lines",
    test="tests/cli/test_hostile_words.py::test_a_job_that_a_node_describes_is_shown_escaped",
)
def hostile_source(folder: Path, result: Result) -> None:
    (folder / "p.npy").write_bytes(npy(points()))
    with evil_source(folder) as double:
        profile = ("--profile", double.profile_path)
        submitted = ddib("job", "submit", folder / "p.npy", "--to", "south.example/checkerboards", *profile)
        _shown(result, "job submit", submitted)
        job = (
            f"job-{double.script.seen('SubmitJob')[0].request_id[:8]}"
            if double.script.seen("SubmitJob")
            else "job-1"
        )
        double.service.only_errors = True
        for words in (("show", job), ("list",), ("watch", job), ("fetch", job, "--out", folder / "o")):
            _shown(result, f"errors alone: {words[0]}", ddib("job", *words, *profile))
        double.service.only_errors = False
        for words in (
            ("domains",), ("doctor",), ("job", "list"), ("job", "show", job), ("job", "watch", job),
            ("job", "fetch", job, "--out", folder / "o"), ("job", "cancel", job),
            ("translate", folder / "p.npy", "--to", "south.example/checkerboards", "--out", folder / "o"),
        ):  # fmt: skip
            for form in ((), ("--format", "json")):
                if form and words[:2] in {("doctor",), ("job", "cancel")}:
                    continue
                _shown(result, " ".join(map(str, (*words[:2], *form))), ddib(*words, *form, *profile))


@attack(
    7,
    "a hostile peer: `ddib peer test`, `domains`, and what is in the log of the source after a job for it",
    before="printed and logged as said",
    test="tests/cli/test_hostile_words.py::test_no_text_of_a_peer_begins_a_line_of_a_log",
)
def hostile_peer(folder: Path, result: Result) -> None:
    pair, south = nodes.points(), Institution("west.example", folder / "west")
    north = pair.north.config
    south.store.add(peer_of(pair.north), fingerprints=[root_of(pair.north)])
    target = ScriptedTarget(south)
    (folder / "west.peer").write_bytes(south.peer(target.address).to_bytes())
    ddib(
        "peer",
        "add",
        folder / "west.peer",
        "--fingerprint",
        south.peer().fingerprint,
        "--config",
        pair.north.config_path,
    )

    def forge(answer: Any) -> None:
        side = answer.side if "side" in answer.DESCRIPTOR.fields_by_name else answer.contract.target
        side.domain = EVIL

    target.forge = forge
    try:
        _shown(result, "peer test", ddib("peer", "test", "west.example", "--config", pair.north.config_path))
        _shown(result, "peer list", ddib("peer", "list", "--config", pair.north.config_path))
        _shown(result, "domains", ddib("domains", "--profile", pair.profile))
        (folder / "p.npy").write_bytes(npy(points(40)))
        _shown(result, "translate", ddib("translate", folder / "p.npy", "--to", "west.example/checkerboards",
                                         "--out", folder / "o", "--profile", pair.profile))  # fmt: skip
        _shown(result, "status", ddib("status", "--config", pair.north.config_path))
    finally:
        ddib("peer", "remove", "west.example", "--config", pair.north.config_path)
        target.close()
    log = (pair.north.folder / "log.txt").read_text()
    result.add("the log", harmless(log.replace("\t", " ")))
    result.add("the audit log", harmless(north.paths.audit.read_text()))


@attack(
    7,
    "files that are read and shown (manifest, recipe, calibration, request, backup), reasons and comments",
    before="not looked at",
    test="tests/cli/test_hostile_words.py::test_what_was_typed_is_shown_escaped_in_errors",
)
def shown_files(folder: Path, result: Result) -> None:
    copy_shipped("moons", folder / "model")
    manifest = folder / "model" / "manifest.json"
    content = json.loads(manifest.read_text())
    for key in ("name", "domain"):
        manifest.write_text(json.dumps({**content, key: EVIL}))
        _shown(result, f"model show, {key}", ddib("model", "show", folder / "model"))
        _shown(
            result,
            f"model sample, {key}",
            ddib("model", "sample", folder / "model", "--n", 5, "--out", folder / "s"),
        )
    manifest.write_text(json.dumps({**content, EVIL: 1}))
    _shown(result, "model show, an unknown key", ddib("model", "show", folder / "model"))
    for command in (
        "recipe use",
        "restore --check",
        "calibrate --evaluate",
        "model import",
        "pki issue --yes",
    ):
        file = folder / "hostile.json"
        file.write_text(json.dumps({"format": 1, EVIL: EVIL, "kind": EVIL, "preset": EVIL}))
        further = (
            ("--out", folder / "x")
            if command in {"restore --check", "model import", "pki issue --yes"}
            else ()
        )
        first, *options = command.split()
        words = (first, options[0], file) if len(options) == 1 else (first, *options, file)
        _shown(result, command, ddib(*words, *further))
    node = Node.create(folder / "north", "source", "north.example", "moons", pretrained=False)
    config = ("--config", node.config_path)
    _shown(
        result,
        "pki withdraw --comment",
        ddib("pki", "withdraw", "spiffe://north.example/client/bob", "--comment", EVIL, *config),
    )
    _shown(result, "pki withdrawn", ddib("pki", "withdrawn", *config))
    other = Institution("south.example", folder / "south")
    (folder / "s.peer").write_bytes(other.peer().to_bytes())
    ddib("peer", "add", folder / "s.peer", "--fingerprint", other.peer().fingerprint, *config)
    _shown(
        result, "peer suspend --reason", ddib("peer", "suspend", "south.example", "--reason", EVIL, *config)
    )
    _shown(result, "peer list", ddib("peer", "list", *config))
    _shown(result, "audit verify", ddib("audit", "verify", *config))
    _shown(result, "officer report", ddib("officer", "report", *config, "--out", folder / "page.html"))
    for word in (f"{EVIL}.png", f"--{EVIL}", f"south.example/{EVIL}"):
        _shown(result, f"typed: {ascii(word)[:12]}", ddib("bridge", "translate", word))
        _shown(
            result,
            f"typed to translate: {ascii(word)[:12]}",
            ddib("translate", word, "--to", word, "--out", folder / "t"),
        )
    logging.getLogger("ddib_fed").handlers.clear()
    shutil.rmtree(folder / "model")
