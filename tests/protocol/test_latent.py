"""The egress guard, and what a receiver makes of a latent's header and bytes."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ddib_fed
from ddib_fed import errors
from ddib_fed.latent import Latent, moments
from ddib_fed.protocol.latent import ApprovedLatent, LatentOpener, approve
from ddib_fed.protocol.streams import assemble
from ddib_fed.v1 import common_pb2, decoding_pb2
from tests.protocol.examples import Whiteness, contract, latent

CONTRACT = contract()


def approved(samples: int = 1_000, item: int = 0) -> ApprovedLatent:
    made = latent(samples)
    return approve(made, CONTRACT, Whiteness(made), item=item)


def header(**changes) -> decoding_pb2.LatentHeader:
    """A good header of 10 points, changed."""
    tensor = {"shape": [10, 2], "size_bytes": 80, "sha256": bytes(32)}
    fields = {"item": 0, "contract_sha256": CONTRACT.digest}
    fields.update({k: v for k, v in changes.items() if k in fields})
    tensor.update({k: v for k, v in changes.items() if k in tensor})
    return decoding_pb2.LatentHeader(tensor=common_pb2.TensorHeader(**tensor), **fields)


@given(samples=st.integers(1, 50_000), seed=st.integers(0, 3))
def test_a_latent_crosses_unchanged(samples, seed):
    sent = latent(samples, seed)
    leaving = approve(sent, CONTRACT, Whiteness(sent), item=3)
    (whole,) = assemble(leaving.stream(decoding_pb2.DecodeRequest), {"latent": LatentOpener(CONTRACT, 1)})
    received = Latent.from_bytes(whole.data, CONTRACT.sample_shape)
    np.testing.assert_array_equal(received.data, sent.data)
    assert (received.sha256, whole.header.item) == (sent.sha256, 3)


def test_the_bytes_are_little_endian_row_major_float32():
    """As docs/protocol.md says, for a second implementation."""
    made = Latent.from_array(np.array([[1.0, -2.0], [0.5, 0.0]], dtype=np.float32))
    assert made.to_bytes() == bytes.fromhex("0000803f 000000c0 0000003f 00000000")


@pytest.mark.parametrize("count", [1, 65_536, 65_537, 200_000])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (300.0, 0.01), (-3.0, 0.0)])
def test_moments_are_those_of_double_precision(count, mean, std):
    """In one pass over blocks, also where the mean is far from 0."""
    noise = np.random.default_rng(count).standard_normal(count, dtype=np.float32)
    array = noise * np.float32(std) + np.float32(mean)
    exact = array.astype(np.float64)
    assert moments(array) == pytest.approx((exact.mean(), exact.std()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_received_bytes_must_be_finite(value):
    data = np.array([[0.0, value]], dtype="<f4").tobytes()
    with pytest.raises(errors.NotFinite) as caught:
        Latent.from_bytes(data, (2,))
    assert caught.value.facts["count"] == "1"


# The egress guard


def test_only_the_guard_makes_an_approved_latent_and_nothing_changes_it():
    """Neither its bytes nor where it goes; it cannot be copied, and the bytes of a latent cannot be written."""
    with pytest.raises(TypeError, match="approve"):
        ApprovedLatent(object(), decoding_pb2.LatentHeader(), memoryview(b""))
    made, leaving = latent(10), approved()
    with pytest.raises(ValueError, match="read-only"):
        made.data[:] = 0
    assert made.wire().readonly
    for name in ApprovedLatent.__slots__:
        with pytest.raises(AttributeError):
            setattr(leaving, name, b"")
    for copies in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError):
            copies(leaving)


def test_only_the_guarded_module_makes_latent_headers():
    root = Path(ddib_fed.__file__).parent
    sources = [
        path
        for folder in (root, root.parent / "source_node", root.parent / "target_node")
        for path in folder.rglob("*.py")
        if "LatentHeader(" in path.read_text(encoding="utf-8")
    ]
    assert [path.relative_to(root).as_posix() for path in sources] == ["protocol/latent.py"]
    assert len(re.findall(r"LatentHeader\(", sources[0].read_text(encoding="utf-8"))) == 1


def test_the_guard_refuses_what_is_not_finite():
    made = Latent.from_array(np.full((5, 2), np.nan, dtype=np.float32))
    with pytest.raises(errors.NotFinite):
        approve(made, CONTRACT, Whiteness(made), item=0)


def test_the_guard_refuses_a_latent_in_shared_memory_that_changed():
    """The digest was taken when it was made, and is computed again."""
    memory = bytearray(latent(10).to_bytes())
    made = Latent.from_bytes(memory, (2,))
    approve(made, CONTRACT, Whiteness(made), item=0)
    memory[3] ^= 1
    with pytest.raises(errors.ChunkCorrupt):
        approve(made, CONTRACT, Whiteness(made), item=0)


@pytest.mark.parametrize(
    "statistics",
    [Whiteness(latent(10), count=19), Whiteness(latent(10), std=float("nan")), Whiteness(latent(10, seed=1))],
)
def test_the_guard_refuses_statistics_of_something_else(statistics):
    with pytest.raises(errors.LatentNotGaussian):
        approve(latent(10), CONTRACT, statistics, item=0)


# The receiver


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"shape": []}, errors.ShapeMismatch),
        ({"shape": [10, 3]}, errors.ShapeMismatch),
        ({"shape": [0, 2], "size_bytes": 0}, errors.ShapeMismatch),
        ({"shape": [2**64 - 1, 2]}, errors.ShapeMismatch),
        ({"size_bytes": 79}, errors.ShapeMismatch),
        ({"size_bytes": 2**64 - 1}, errors.ShapeMismatch),
        ({"shape": [100_001, 2], "size_bytes": 800_008}, errors.PointsTooMany),
        ({"sha256": bytes(31)}, errors.MessageInvalid),
        ({"contract_sha256": bytes(32)}, errors.ContractMismatch),
    ],
)
def test_a_lying_tensor_header_is_refused(changes, error):
    with pytest.raises(error):
        LatentOpener(CONTRACT, 1)(header(**changes))


@pytest.mark.parametrize(("item", "announced"), [(0, 8), (1, 8), (2, 1)])
def test_item_numbers_must_rise_and_be_no_more_than_announced(item, announced):
    """The same or a lower one is not another item; the header of the stream said how many."""
    opener = LatentOpener(CONTRACT, announced)
    opener(header(item=1))
    with pytest.raises(errors.MessageInvalid):
        opener(header(item=item))


@pytest.mark.parametrize("figure", ["mean", "std"])
def test_the_guard_compares_figures_to_a_thousandth(figure):
    """Sums in another order differ by less; statistics of another latent do not."""
    made = latent(1_000)
    own = getattr(Whiteness(made), figure)
    for off in (5e-4, -5e-4):
        approve(made, CONTRACT, Whiteness(made, **{figure: own + off}), item=0)
    for off in (2e-3, -2e-3):
        with pytest.raises(errors.LatentNotGaussian):
            approve(made, CONTRACT, Whiteness(made, **{figure: own + off}), item=0)
