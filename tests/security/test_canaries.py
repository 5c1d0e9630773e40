"""No secret and no patient in a log or on a node's disk, at every level of the log."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import DdibError
from ddib_fed.protocol.messages import Settings
from tests.conftest import Evidence
from tests.e2e.harness import Node, Pair, ddib
from tests.node.picture_examples import save_pictures_model
from tests.security.canaries import CANARY, TOLERATED, damaged, whole
from tests.security.tap.search import Place, Secrets, look

pytestmark = [pytest.mark.e2e, pytest.mark.promise("secrets")]

TARGET = "south.example/relief"
LEVELS = (
    "debug",  # all lines of the others, and more
    *(pytest.param(level, marks=pytest.mark.long) for level in ("info", "warning", "error")),
)
KEY_FILES = {"ca.key", "leaf.key", "softening.key"}


@dataclass
class Ward:
    """Two nodes after they have translated, and refused, everything with a canary in it, at one level of the log."""

    pair: Pair
    secrets: Secrets
    outcomes: dict[str, str]


@pytest.fixture(scope="module", params=LEVELS)
def ward(request: pytest.FixtureRequest) -> Iterator[Ward]:
    with tempfile.TemporaryDirectory(prefix="ddib-ward-") as name:
        pair = Pair.create(Path(name), "relief", domain="scans", pretrained=False)
        for seed, (node, domain) in enumerate(((pair.north, "scans"), (pair.south, "relief"))):
            save_pictures_model(node.folder / "model", domain, seed=seed)
            node.edit('# level = "info"', f'level = "{request.param}"')
            node.environment = {"GRPC_TRACE": "all", "GRPC_VERBOSITY": "debug"}
        (folder := Path(name) / "in").mkdir()
        paths = whole(folder)
        try:
            pair.start()
            ddib("translate", *paths, "--to", TARGET, "--evaluations", 12, "--cycle", "--keep-latents",
                 "--out", folder / "out", "--profile", pair.profile)  # fmt: skip
            outcomes = {name: outcome(pair, content) for name, content in damaged().items()}
        finally:
            codes = [node.terminate() for node in (pair.north, pair.south)]
            pair.stop()
        assert codes == [0, 0]
        yield Ward(pair, secrets_of(pair, paths, folder / "out"), outcomes)


def outcome(pair: Pair, content: bytes) -> str:
    """What comes of a file that a client submits."""
    with pair.client(patience_s=0) as client:
        try:
            client.translate([content], TARGET, Settings(evaluations=12))
        except DdibError as error:
            return "quoted" if CANARY in f"{error} {error.detail} {error.facts}" else "refused"
    return "read"


def secrets_of(pair: Pair, paths: list[Path], out: Path) -> Secrets:
    """Names, metadata, pixels, files, what came back and its latents, keys."""
    found = Secrets()
    found.word("canary", CANARY)
    for path in paths:
        pixels = decode_image(path.read_bytes()).pixels
        found.sample(f"pixels of {path.suffix}", pixels, (pixels / np.float32(127.5) - 1) / np.float32(0.5))
        found.file(f"file {path.suffix}", path.read_bytes())
    for path in out.glob("*.npy"):
        found.numbers(f"latent {path.name[-12:]}", np.load(path))
    for path in out.glob("*.png"):
        found.numbers(f"result {path.name[-14:]}", decode_image(path.read_bytes()).pixels)
    for node in (pair.north, pair.south):
        found.node(node)
    return found


def places(node: Node) -> Iterator[Place]:
    for path in sorted(node.folder.rglob("*")):
        if path.is_file() and path.name not in KEY_FILES and node.folder / "model" not in path.parents:
            yield Place(str(path.relative_to(node.folder)), path.read_bytes(), numbers=True)


def test_no_refusal_quotes_a_file(ward: Ward) -> None:
    """Damaged and foreign files are refused, but two whose pixels are whole: the canaries passed through that code."""
    assert ward.outcomes == {name: "read" if name in TOLERATED else "refused" for name in damaged()}


def test_nothing_of_a_patient_is_in_a_log_or_on_a_disk(ward: Ward, evidence: Evidence) -> None:
    """After delivery, of names, EXIF, XMP, ICC, DICOM, pixels, results, latents and keys: no log, spool or database."""
    searched = [place for node in (ward.pair.north, ward.pair.south) for place in places(node)]
    assert {"log.txt", "state/node.sqlite"} <= {place.where for place in searched}
    windows, cases = ward.secrets.size()
    evidence.cases(cases)
    evidence.figure(f"{windows:,} windows in {sum(len(place.data) for place in searched):,} bytes")
    assert look(searched, ward.secrets) == []


def test_a_canary_on_a_disk_would_be_found(ward: Ward) -> None:
    """The same search over the same folders with a line more in a log."""
    line = Place("log.txt", b"decoding " + CANARY.encode("utf-16-le") + b" for a client", numbers=True)
    assert "canary in utf-16-le" in {each.what for each in look([line], ward.secrets)}
