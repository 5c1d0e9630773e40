"""`--credentials`: results are written with content credentials; idle is refused."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ExitCode
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import NORTH, TARGET, SourceNodeDouble
from tests.formats.signers import read_mark, write_signer

pytestmark = pytest.mark.slow
NAMES = ("a", "b")


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    node.script.pictures = True
    yield node
    node.stop()


@pytest.fixture
def scans(tmp_path):
    """Two pictures."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / f"{name}.png").write_bytes(encode_png(np.full((8, 9, 1), number, np.uint8)))
    return folder


@pytest.fixture
def signer(tmp_path):
    (tmp_path / "signer").mkdir()
    return ["--credentials", *map(str, write_signer(tmp_path / "signer"))]


@pytest.fixture
def translate(north, scans, tmp_path):
    place = ["--to", TARGET, "--out", str(tmp_path / "out"), "--profile", str(north.profile_path)]
    return lambda *words, given=scans: run(["translate", str(given), *place, *words])


@pytest.fixture
def marked(tmp_path):
    """The names of the results that hold valid credentials, and whose records know it."""

    def look():
        found = []
        for name in NAMES:
            content = (tmp_path / "out" / f"{name}.png").read_bytes()
            record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
            if (held := read_mark(content)) is not None:
                assert held["validation_state"] == "Valid"
                assert record["files"]["translation"]["sha256"] == hashlib.sha256(content).hexdigest()
                found.append(name)
        return found

    return look


def test_each_result_is_marked_as_it_is_written(translate, north, signer, marked, tmp_path):
    """Not after the last job: what is acknowledged is complete."""
    seen = []
    north.script.on_acknowledge = lambda request: seen.append(
        read_mark((tmp_path / "out" / "a.png").read_bytes()) is not None
    )
    assert translate(*signer) == 0
    assert seen == [True]
    assert marked() == ["a", "b"]


def test_fetched_results_are_marked(translate, north, signer, marked, tmp_path, capsys):
    assert translate("--detach") == 0
    job = capsys.readouterr().out.split()[1]
    place = ["--out", str(tmp_path / "out"), "--profile", str(north.profile_path)]
    assert (
        run(["job", "fetch", job, *place, *signer]) == ExitCode.USAGE
    )  # this double says that it has points
    assert "points hold no content credentials" in capsys.readouterr().err
    north.script.listed = pb.ListDomainsResponse(
        institution=NORTH, domain="scans", sample_kind="picture", sample_shape=[8, 9, 1]
    )
    assert run(["job", "fetch", job, *place, *signer]) == 0
    assert marked() == ["a", "b"]
