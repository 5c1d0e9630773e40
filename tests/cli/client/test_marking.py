"""`--credentials`: results are written, and fetched, with content credentials; for points it is refused."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ExitCode
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import NORTH, TARGET
from tests.formats.signers import read_mark, write_signer


@pytest.mark.slow
def test_results_are_marked_as_they_are_written_and_as_they_are_fetched(north, tmp_path, capsys):
    """Not after the last job: what is acknowledged is complete, and the record has the digest of the marked file."""
    (given := tmp_path / "given").mkdir()
    for number, name in enumerate("ab"):
        (given / f"{name}.png").write_bytes(encode_png(np.full((8, 9, 1), number, np.uint8)))
    (tmp_path / "signer").mkdir()
    signer = ["--credentials", *map(str, write_signer(tmp_path / "signer"))]
    north.script.pictures = True
    seen = []

    def marked(folder):
        found = []
        for path in sorted((tmp_path / folder).glob("[ab].png")):
            held = read_mark(path.read_bytes())
            record = json.loads(path.with_suffix(".json").read_text())
            assert held["validation_state"] == "Valid"
            assert record["files"]["translation"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            found.append(path.stem)
        return found

    def place(folder):
        return ["--out", str(tmp_path / folder), "--profile", str(north.profile_path)]

    north.script.on_acknowledge = lambda request: seen.append(marked("out"))
    translate = ["translate", str(given), "--to", TARGET]
    assert run([*translate, *place("out"), *signer]) == 0
    assert seen == [["a", "b"]]
    north.script.on_acknowledge = lambda request: None
    capsys.readouterr()
    assert run([*translate, *place("later"), "--detach"]) == 0
    fetch = ["job", "fetch", capsys.readouterr().out.split()[1], *place("later"), *signer]
    assert run(fetch) == ExitCode.USAGE  # this double says that it has points
    assert "points hold no content credentials" in capsys.readouterr().err
    north.script.listed = pb.ListDomainsResponse(
        institution=NORTH, domain="scans", sample_kind="picture", sample_shape=[8, 9, 1]
    )
    assert run(fetch) == 0
    assert marked("later") == ["a", "b"]
