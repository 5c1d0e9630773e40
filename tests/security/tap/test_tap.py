"""Only latents cross: whole runs over a tap, and builds that leak on purpose, which it catches."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.models.bundle import load_bundle
from tests.conftest import Evidence
from tests.e2e.harness import Pair, ddib, moons
from tests.security.tap import leaks
from tests.security.tap.bench import Bench, add_keys
from tests.security.tap.relay import tap_between
from tests.security.tap.search import Found, Traffic, judged
from tests.security.tap.secrets import Secrets

pytestmark = [pytest.mark.e2e, pytest.mark.promise("latents")]

EVALUATIONS = 16
NAME = "patient-Ada-Lovelace"
CAUGHT = {
    leaks.pixels_in_low_bytes: ("Ada-png, raw as uint8", "byte 0 of 4"),
    leaks.latent_with_picture: ("a latent that no picture has", "Decode asked"),
    leaks.permuted_picture: ("100% of the numbers of Ada-png", "Decode asked"),
    leaks.pixels_behind_chunks: ("an unknown field", "Decode asked"),
    leaks.picture_in_metadata: ("as uint8", "header trace (base64 png)"),
    leaks.exif_in_metadata: ("metadata in utf-16-le", "header trace-bin"),
    leaks.description_in_contract: ("metadata in utf-8", "ContractSide.class_names"),
    leaks.seed_in_request_id: ("north.example softening key", "DecodeHeader.request_id (hex)"),
    leaks.key_in_metadata: ("north.example leaf.key", "header trace"),
    leaks.weights_behind_translations: ("weights of south.example", "Decode answered"),
}
"""Of each leak: what must be found, and where."""


def searched(traffic: Traffic, secrets: Secrets, evidence: Evidence) -> list[Found]:
    """What is in it, and the figures of the search."""
    windows = sum(len(rows) for kind in (secrets.long, secrets.short) for rows in kind.rows)
    size = sum(len(place.data) for place in traffic.raw)
    evidence.cases(windows + len(secrets.words))
    evidence.figure(f"{windows:,} windows and {len(secrets.words)} words in {size:,} bytes")
    return traffic.look(secrets)


def test_points_leave_as_latents_alone(tmp_path: Path, evidence: Evidence) -> None:
    """There and back by the client's command: no point, weight, name or key in any form; each latent is the ODE's."""
    pair = Pair.create(tmp_path)
    tap = tap_between(pair, tmp_path / "tap")
    cloud, folder = moons(400), pair.profile.parent
    try:
        pair.start()
        np.save(folder / f"{NAME}.npy", cloud)
        ddib("translate", folder / f"{NAME}.npy", "--to", "south.example/checkerboards", "--out", folder / "out",
             "--cycle", "--evaluations", EVALUATIONS, "--profile", pair.profile)  # fmt: skip
    finally:
        pair.stop()
        tap.close()
    traffic, secrets = Traffic(tap.calls), Secrets()
    party = ServingParty(load_bundle(pair.north.config.paths.bundle), device="cpu", threads=1)
    returned = np.load(folder / "out" / f"{NAME}.returned.npy")
    try:
        for name, points in (("cloud", cloud), ("returned cloud", returned)):
            secrets.sample(name, points, party.model.normalise(points))
        leg = Leg(SolverSettings(evaluations=EVALUATIONS))
        expected = {"cloud": party.encode(ToEncode(0, cloud), leg).latent.data}
    finally:
        party.close()
    for node in (pair.north, pair.south):
        secrets.weights(node.institution, node.config.paths.bundle / "model.safetensors")
        add_keys(secrets, node)
    for word in (NAME, "client/alice", str(tmp_path)):
        secrets.word(word, word)
    assert len(traffic.tensors) == 2
    record = json.loads((folder / "out" / f"{NAME}.json").read_text())
    # Latents and files, without the messages around them and the frames around these.
    assert record["wire_bytes"] == sum(traffic.payload.values())
    assert [*searched(traffic, secrets, evidence), *judged(traffic, secrets.arrays, expected)] == []


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ddib-tap-") as folder:
        made = Bench.create(Path(folder))
        try:
            yield made
        finally:
            made.close()


def test_the_real_build_leaks_nothing_and_the_tap_sees_what_crosses(bench: Bench, evidence: Evidence) -> None:
    """Every byte, stream, field and header of a whole run with pictures; each latent is there in full."""
    before = len(bench.tap.calls)
    with bench.running(bench.pair.south), bench.running(bench.pair.north):
        assert bench.translate()
    honest, secrets, expected = bench.kept(before), bench.secrets(), bench.latents()
    sent = [tensor for tensor in honest.tensors if tensor.where.endswith("asked")]
    assert len(sent) == len(bench.files.paths)
    for latent in expected.values():
        assert min(float(np.abs(tensor.values() - latent).max()) for tensor in sent) < 1e-4
    assert [*searched(honest, secrets, evidence), *judged(honest, secrets.arrays, expected)] == []


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(leak, id=leak.__name__, marks=[pytest.mark.long] if number % 4 else [])
        for number, leak in enumerate(CAUGHT)
    ],
)
def test_a_build_that_leaks_is_caught(bench: Bench, leak: Callable[[], None], evidence: Evidence) -> None:
    """The same run by a node that leaks on purpose: the tap names what crossed and where."""
    before, at_target = len(bench.tap.calls), leak is leaks.weights_behind_translations
    with (
        bench.running(bench.pair.south, leak.__name__ if at_target else ""),
        bench.running(bench.pair.north, "" if at_target else leak.__name__),
    ):
        bench.translate()
    traffic, secrets = bench.kept(before), bench.secrets()
    found = [*traffic.look(secrets), *judged(traffic, secrets.arrays, bench.latents())]
    what, where = CAUGHT[leak]
    assert any(what in each.what and where in each.where for each in found), found
    evidence.figure(f"{leak.__name__}: {(leak.__doc__ or '').strip()}")
