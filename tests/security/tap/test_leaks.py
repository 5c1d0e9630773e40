"""Builds that leak on purpose are caught by the tap, and the real one is not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Evidence
from tests.node.picture_examples import SECRET
from tests.security.tap import leaks
from tests.security.tap.bench import Bench
from tests.security.tap.judge import Judge
from tests.security.tap.search import Traffic
from tests.security.tap.secrets import Secrets

pytestmark = [pytest.mark.e2e, pytest.mark.promise("latents")]

CAUGHT = {
    leaks.pixels_in_low_bytes: ("Ada-png, raw as uint8", "byte 0 of 4"),
    leaks.pixels_in_lowest_bits: ("Ada-png, raw as uint8", "lowest 1 bits of byte 0 of 4"),
    leaks.latent_with_picture: ("a latent that no picture has", "Decode asked"),
    leaks.permuted_picture: ("100% of the numbers of Ada-png", "Decode asked"),
    leaks.pixels_behind_chunks: ("an unknown field", "Decode asked"),
    leaks.picture_in_metadata: ("as uint8", "header trace (base64 png)"),
    leaks.squeezed_picture_in_metadata: ("in the model's units as >float16", "(inflated)"),
    leaks.exif_in_metadata: ("metadata in utf-16-le", "header trace-bin"),
    leaks.dicom_in_metadata: (f"{SECRET}-id in utf-8", "header trace"),
    leaks.description_in_contract: ("metadata in utf-8", "ContractSide.class_names"),
    leaks.seed_in_request_id: ("north.example softening key", "DecodeHeader.request_id (hex)"),
    leaks.noise_in_metadata: ("softening noise", "header trace-bin"),
    leaks.key_in_metadata: ("north.example leaf.key", "header trace"),
    leaks.weights_behind_translations: ("weights of south.example", "Decode answered"),
    leaks.weights_in_low_bytes: ("weights of south.example", "png"),
}
"""Of each leak: what must be found, and where."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ddib-tap-") as folder:
        made = Bench.create(Path(folder))
        made.write_dicom()
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def honest(bench: Bench) -> Traffic:
    """What the real build sends and answers."""
    with bench.running(bench.pair.south), bench.running(bench.pair.north):
        assert bench.translate()
    return bench.kept()


@pytest.fixture(scope="module")
def secrets(bench: Bench, honest: Traffic) -> Secrets:
    """Once the nodes have made their keys."""
    return bench.secrets()


@pytest.fixture(scope="module")
def judge(bench: Bench, secrets: Secrets) -> Judge:
    return Judge(secrets.arrays, bench.latents(), bench.threshold())


def test_the_tap_sees_what_crosses(bench: Bench, honest: Traffic, judge: Judge) -> None:
    """Each latent that the source should send is there in full; what is searched is what was sent."""
    sent = [tensor for tensor in honest.tensors if tensor.where.endswith("asked")]
    assert len(sent) == len(bench.files.paths)
    for latent in judge.expected.values():
        assert min(float(np.abs(tensor.values() - latent).max()) for tensor in sent) < 1e-4
    assert {call.path.rpartition("/")[2] for call in honest.calls} >= {"NegotiateContract", "Decode"}


def test_the_real_build_leaks_nothing(
    honest: Traffic, secrets: Secrets, judge: Judge, evidence: Evidence
) -> None:
    """Every byte, stream, field and header of a whole run with pictures, and every latent."""
    windows = sum(len(rows) for kind in (secrets.long, secrets.short) for rows in kind.rows)
    searched = sum(len(place.data) for place in honest.raw)
    evidence.figure(f"{windows:,} windows and {len(secrets.words)} words in {searched:,} bytes")
    evidence.cases(windows + len(secrets.words))
    assert [*honest.look(secrets), *judge.look(honest)] == []


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(leak, id=leak.__name__, marks=[pytest.mark.long] if number % 2 else [])
        for number, leak in enumerate((*leaks.OF_SOURCE, *leaks.OF_TARGET))
    ],
)
def test_a_build_that_leaks_is_caught(
    bench: Bench, secrets: Secrets, judge: Judge, leak: Callable[[], None], evidence: Evidence
) -> None:
    """The same run by a node that leaks on purpose: the tap names what crossed and where."""
    before = len(bench.tap.connections)
    at_target = leak in leaks.OF_TARGET
    with (
        bench.running(bench.pair.south, leak.__name__ if at_target else ""),
        bench.running(bench.pair.north, "" if at_target else leak.__name__),
    ):
        bench.translate()
    traffic = bench.kept(before)
    found = [*traffic.look(secrets), *judge.look(traffic)]
    what, where = CAUGHT[leak]
    assert any(what in each.what and where in each.where for each in found), found
    evidence.figure(f"{leak.__name__}: {(leak.__doc__ or '').strip()}")
