"""What a side, the limits and a contract may hold, and what the contract's digest is over."""

import json
import math
from dataclasses import replace

import pytest

from ddib_fed.errors import MessageInvalid
from ddib_fed.protocol.contract import Contract, ContractLimits, ContractSide, PictureTerms
from ddib_fed.protocol.messages import from_message, to_message
from ddib_fed.v1 import decoding_pb2
from tests.protocol.examples import LIMITS, contract, picture_side, side

# The example of docs/protocol.md: a change of either is a change of the protocol.
EXAMPLE = (
    '{"calibration":{},"limits":{"guidance":{},"max_evaluations":1000,"max_items_per_stream":8,'
    '"max_latent_bytes":2097152,"max_samples_per_item":100000,"min_evaluations":0},"protocol":1,'
    '"source":{"class_names":[],"classes":0,"domain":"moons","initial_lambda":5.3,'
    '"institution":"north.example",'
    '"model_sha256":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","picture":{},'
    '"sample_kind":"point","sample_shape":[2],"size_rule":"none","soften_sigma":0,"terminal_lambda":-5,'
    '"value_range":"unit-std"},'
    '"target":{"class_names":[],"classes":0,"domain":"checkerboards","initial_lambda":5.3,'
    '"institution":"south.example",'
    '"model_sha256":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","picture":{},'
    '"sample_kind":"point","sample_shape":[2],"size_rule":"none","soften_sigma":0,"terminal_lambda":-5,'
    '"value_range":"unit-std"}}'
)
EXAMPLE_SHA256 = "51883bf9f75ecc80fcee32a49018dbd5bdb15adb09fbe729b76c0cb3d150effa"

CLASSES = picture_side(classes=2, class_names=("cat", "dog"))

INVALID = [
    ("institution", ""),
    ("institution", "north"),
    ("institution", "North.example"),
    ("institution", "north.example\n"),
    ("institution", "a." * 127 + "example"),
    ("institution", "north..example"),
    ("domain", ""),
    ("domain", "a" * 65),
    ("domain", "../etc"),
    ("domain", "moons\n"),
    ("domain", "\x1b[2J"),
    ("sample_kind", "volume"),
    ("sample_shape", ()),
    ("sample_shape", (0,)),
    ("sample_shape", (2, 2)),
    ("sample_shape", (65_537,)),
    ("model_sha256", b""),
    ("model_sha256", bytes(31)),
    ("terminal_lambda", math.nan),
    ("terminal_lambda", -math.inf),
    ("initial_lambda", math.inf),
    ("classes", -1),
    ("classes", 1_000_001),
    ("size_rule", "centre-crop"),
    ("size_rule", ""),
    ("value_range", "minus-one-to-one"),
    ("soften_sigma", 0.02),
    ("soften_sigma", math.nan),
    ("picture", PictureTerms(0.0, 255.0, 8)),
]


@pytest.mark.parametrize(("field", "value"), INVALID)
def test_a_side_outside_the_protocol_names_its_field(field, value):
    """Every field of a side is checked where it is made."""
    with pytest.raises(MessageInvalid) as caught:
        side(**{field: value})
    assert caught.value.facts == {"field": field}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_shape", (8, 8)),
        ("sample_shape", (65_536, 65_536, 1)),
        ("soften_sigma", 1.01),
        ("soften_sigma", -0.01),
        ("value_range", "unit-std"),
        ("size_rule", "no spaces"),
        ("size_rule", "none"),
        ("picture", None),
        ("class_names", ("cat",)),
    ],
)
def test_a_side_of_pictures_is_checked_as_pictures(field, value):
    """Their shape has three numbers, they are soft, and of another range."""
    with pytest.raises(MessageInvalid) as caught:
        picture_side(**{field: value})
    assert caught.value.facts == {"field": field}


@pytest.mark.parametrize(
    "field", ["max_items_per_stream", "max_samples_per_item", "max_latent_bytes", "max_evaluations"]
)
@pytest.mark.parametrize("value", [0, -1, 2**63])
def test_limits_outside_the_protocol_name_their_field(field, value):
    """A limit of nothing, or beyond what JSON keeps, is a mistake."""
    fields = {name: getattr(LIMITS, name) for name in LIMITS.__slots__}
    with pytest.raises(MessageInvalid) as caught:
        ContractLimits(**{**fields, field: value})
    assert caught.value.facts == {"field": field}


@pytest.mark.parametrize("value", [-1, LIMITS.max_evaluations + 1])
def test_a_floor_is_at_most_the_ceiling(value):
    """Otherwise no number of evaluations would do."""
    with pytest.raises(MessageInvalid) as caught:
        replace(LIMITS, min_evaluations=value)
    assert caught.value.facts == {"field": "min_evaluations"}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("picture.low", (math.nan, 255.0, 8)),
        ("picture.high", (0.0, 0.0, 8)),
        ("picture.high", (0.0, math.inf, 8)),
        ("picture.bits", (0.0, 255.0, 12)),
    ],
)
def test_terms_of_pictures_outside_the_protocol_name_their_field(field, values):
    """A range that is none, or bits that no file of ours has."""
    with pytest.raises(MessageInvalid) as caught:
        PictureTerms(*values)
    assert caught.value.facts == {"field": field}


@pytest.mark.parametrize("name", ["", "a" * 65, "chat\n", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_class_name_that_cannot_be_hashed_or_printed_is_refused(name):
    """The canonical JSON has printable ASCII alone."""
    with pytest.raises(MessageInvalid) as caught:
        picture_side(classes=2, class_names=("cat", name))
    assert caught.value.facts == {"field": "class_names"}


def test_a_class_is_found_by_name_and_by_index():
    """The name first: a class may be called by a number."""
    made = picture_side(classes=3, class_names=("cat", "dog", "0"))
    assert [made.class_index(asked) for asked in ("dog", "0", "1", "3", "-1", "bird", "")] == [
        1, 2, 1, None, None, None, None,
    ]  # fmt: skip
    assert picture_side(classes=3).class_index("2") == 2


@pytest.mark.parametrize(
    "made", [side(), picture_side(), CLASSES, side(terminal_lambda=3.0, initial_lambda=-1.0)]
)
def test_a_side_survives_the_wire(made):
    """Also one whose ends nobody can agree to: the difference is shown, not the message refused."""
    data = to_message(made, decoding_pb2.ContractSide).SerializeToString()
    assert from_message(decoding_pb2.ContractSide.FromString(data), ContractSide) == made


def test_a_contract_survives_the_wire():
    """With the same digest."""
    made = contract()
    read = from_message(
        decoding_pb2.Contract.FromString(to_message(made, decoding_pb2.Contract).SerializeToString()),
        Contract,
    )
    assert (read, read.digest) == (made, made.digest)


@pytest.mark.parametrize("number", [0, 99])
def test_a_kind_of_sample_that_is_not_known_is_refused(number):
    """Neither unspecified nor of a later release."""
    message = to_message(side(), decoding_pb2.ContractSide)
    message.sample_kind = number
    with pytest.raises(MessageInvalid) as caught:
        from_message(message, ContractSide)
    assert caught.value.facts == {"field": "sample_kind"}


def test_the_canonical_json_is_the_documented_one():
    """A second implementation can start from this text."""
    assert contract().canonical().decode() == EXAMPLE


def test_the_canonical_json_of_pictures_has_what_pictures_set():
    """Raw range and bits of each side, and the names of classes where there are any."""
    made = contract(sample_kind="picture", classes=2, class_names=("cat", "dog"))
    source = json.loads(made.canonical())["source"]
    assert source["picture"] == {"bits": 8, "high": 255, "low": 0}
    assert source["class_names"] == ["cat", "dog"]
    assert json.loads(contract(sample_kind="picture").canonical())["source"]["class_names"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"model_sha256": bytes(32)},
        {"terminal_lambda": -5.0000001},
        {"initial_lambda": 5.4},
        {"classes": 1},
        {"sample_shape": (3,)},
        {"domain": "rings"},
        {"limits": ContractLimits(8, 100_000, 2 << 20, 999)},
    ],
)
def test_any_change_changes_the_digest(changes):
    """Also of what the two sides need not have in common."""
    assert contract(**changes).digest != contract().digest


def test_the_prior_gap_is_the_larger_of_both_sides():
    """exp(2 lambda) of the side that ends in less noise."""
    assert contract(terminal_lambda=-5.0).prior_gap == pytest.approx(math.exp(-10))
    noisy, less = side(terminal_lambda=-6.0), side(terminal_lambda=-4.5)
    for source, target in ((noisy, less), (less, noisy)):
        assert Contract(source, target, LIMITS).prior_gap == pytest.approx(math.exp(-9))
