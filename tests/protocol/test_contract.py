"""What a side, the limits and a contract may hold, when two sides agree, and what the contract's digest is over."""

import json
import re
from pathlib import Path

import pytest

from ddib_fed.errors import ContractMismatch, DdibError, MessageInvalid, PolicyDenied, SettingsInvalid
from ddib_fed.protocol import contract as contracts
from ddib_fed.record import UNGUIDED, Guidance
from ddib_fed.v1 import decoding_pb2
from ddib_fed.v1.common_pb2 import PictureTerms
from ddib_fed.v1.decoding_pb2 import ContractSide
from tests.protocol.examples import LIMITS, TERMS, changed, contract, limits_of, offer, picture_side, side

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
OFFER = offer(4.0, 2.0, bytes(32), 10, clip=True)


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (side, "institution", "North.example"),
        (side, "domain", "../etc"),
        (side, "sample_kind", "film"),
        (side, "sample_shape", (2, 2)),
        (side, "size_rule", "centre-crop"),
        (side, "value_range", "minus-one-to-one"),
        (side, "soften_sigma", 0.02),
        (side, "picture", PictureTerms(low=0.0, high=255.0, bits=8)),
        (picture_side, "sample_shape", (65_536, 65_536, 1)),
        (picture_side, "picture", None),
        (picture_side, "class_names", ("cat",)),
    ],
)
def test_a_side_outside_the_protocol_names_its_field(make, field, value):
    with pytest.raises(MessageInvalid) as caught:
        contracts.check_side(make(**{field: value}))
    assert caught.value.facts == {"field": field}


def test_parts_that_contradict_themselves_are_refused():
    for make, field in (
        (lambda: contract(limits=changed(LIMITS, min_evaluations=1_001)), "min_evaluations"),
        (
            lambda: contracts.check_side(picture_side(picture=PictureTerms(low=0.0, high=0.0, bits=8))),
            "picture.high",
        ),
        (
            lambda: contracts.check_side(picture_side(picture=PictureTerms(low=0.0, high=255.0, bits=12))),
            "picture.bits",
        ),
        (
            lambda: contract(sample_kind="picture", calibration=changed(TERMS, kind="labels")),
            "calibration.kind",
        ),
        (lambda: contract(limits=changed(LIMITS, guidance=offer(0.0, 1.0))), "classifier_sha256"),
        (lambda: contract(limits=changed(LIMITS, guidance=offer(0.0, 1.0, bytes(32)))), "classifier_classes"),
        (lambda: contract(calibration=TERMS), "calibration"),  # of points
    ):
        with pytest.raises(MessageInvalid) as caught:
            make()
        assert caught.value.facts == {"field": field}


@pytest.mark.parametrize("name", ["", "a" * 65, "chat\n", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_class_name_that_cannot_be_hashed_or_printed_is_refused(name):
    """The canonical JSON has printable ASCII alone."""
    with pytest.raises(MessageInvalid) as caught:
        contracts.check_side(picture_side(classes=2, class_names=("cat", name)))
    assert caught.value.facts == {"field": "class_names"}


def test_a_class_is_found_by_name_and_by_index():
    """The name first: a class may be called by a number."""
    made = picture_side(classes=3, class_names=("cat", "dog", "0"))
    assert [contracts.class_index(made, asked) for asked in ("dog", "0", "1", "3", "-1", "bird", "")] == [
        1, 2, 1, None, None, None, None,
    ]  # fmt: skip
    assert contracts.class_index(picture_side(classes=3), "2") == 2


def test_the_canonical_json_is_the_documented_one():
    """A second implementation can start from this text. Nodes that write it differently refuse each other."""
    assert f"\n{contract().canonical().decode()}\n" in PAGE
    assert contract().digest.hex() == "3900c8c21608a0b422fb99db78773656d52971baf742f4e731f5cb190f6d64a7"
    source = json.loads(contract(sample_kind="picture", classes=1, class_names=("cat",)).canonical())[
        "source"
    ]
    assert (source["picture"], source["class_names"]) == ({"bits": 8, "high": 255, "low": 0}, ["cat"])


def test_any_change_changes_the_digest():
    """Also of what the two sides need not have in common."""
    changes = [
        {"model_sha256": bytes(32)},
        {"terminal_lambda": -5.0000001},
        {"classes": 1},
        {"sample_shape": (3,)},
        {"domain": "rings"},
        {"limits": limits_of(8, 100_000, 2 << 20, 999)},
        {"limits": changed(LIMITS, guidance=OFFER)},
        {"limits": changed(LIMITS, guidance=changed(OFFER, max_guidance=5.0))},
    ]
    assert len({contract().digest, *(contract(**each).digest for each in changes)}) == len(changes) + 1


# Agreement


@pytest.mark.parametrize(
    ("source", "target", "field", "values"),
    [
        (side(), side(sample_shape=(3,)), "sample_shape", ("2", "3")),
        (side(), picture_side(), "sample_kind", ("point", "picture")),
        (side(), picture_side(), "value_range", ("unit-std", "minus-one-to-one")),
        (picture_side(), picture_side(size_rule="resize"), "size_rule", ("crop", "resize")),
        (picture_side(), picture_side(soften_sigma=0.05), "soften_sigma", ("0.02", "0.05")),
        (side(), side(terminal_lambda=-4.4), "terminal_lambda", ("-5", "-4.4")),
        (side(), side(initial_lambda=2.9), "initial_lambda", ("5.3", "2.9")),
    ],
)
def test_a_field_that_must_match_is_named_with_both_values(source, target, field, values):
    found = {each.field: each for each in contracts.differences(source, target)}
    assert (found[field].source, found[field].target) == values
    assert found[field].remedy.endswith(".")
    with pytest.raises(ContractMismatch, match=field) as caught:
        contracts.agree(source, target, LIMITS)
    assert {each.field for each in caught.value.differences} == found.keys()


@pytest.mark.parametrize("rule", ["resize", "crop", "pad", "refuse"])
def test_a_side_that_takes_only_the_models_size_agrees_with_every_rule(rule):
    for rules in ((rule, "refuse"), ("refuse", rule)):
        source, target = (picture_side(size_rule=each) for each in rules)
        assert contracts.agree(source, target, LIMITS).size_rule == "refuse"


def test_nodes_of_different_protocols_are_told_both_versions_and_to_update():
    contracts.require_protocol(2, 2)
    said = "version 2 of the protocol, the node that answers 1"
    with pytest.raises(ContractMismatch, match=said) as caught:
        contracts.require_protocol(2, 1)
    (difference,) = caught.value.differences
    assert (difference.field, difference.source, difference.target) == ("protocol", "2", "1")


# What the source makes of the target's answer


def unlike() -> contracts.Contract:
    """Of sides that cannot agree."""
    target = side(institution="south.example", sample_shape=(3,))
    return contracts.Contract(decoding_pb2.Contract(source=side(), target=target, limits=LIMITS))


def confirmed(made: contracts.Contract, sha256: bytes | None = None, **changes) -> contracts.Contract:
    response = decoding_pb2.NegotiateContractResponse(
        contract=made.message, sha256=made.digest if sha256 is None else sha256
    )
    return contracts.confirm(response, **{"source": side(), "target_institution": "south.example", **changes})


@pytest.mark.parametrize(
    ("made", "changes", "fields"),
    [
        (contract(), {"sha256": bytes(32)}, ["contract_sha256"]),
        (contract(), {"sha256": b""}, ["contract_sha256"]),
        (contract(classes=3), {}, ["source"]),
        (contract(), {"target_institution": "east.example"}, ["institution"]),
        (unlike(), {}, ["sample_shape"]),
    ],
    ids=["digest", "no digest", "the own side", "another institution", "what the source cannot keep"],
)
def test_an_answer_that_is_not_what_was_asked_is_refused(made, changes, fields):
    with pytest.raises(ContractMismatch) as caught:
        confirmed(made, **changes)
    assert [difference.field for difference in caught.value.differences] == fields


@pytest.mark.parametrize(
    "other", [None, changed(TERMS, sha256=bytes(32)), changed(TERMS, expires=TERMS.expires + 1)]
)
def test_an_answer_with_another_calibration_is_refused(other):
    """Also leaving it out: a source would encode in one basis and be recorded in another."""
    pictures = {"source": picture_side(), "calibration": TERMS}
    assert confirmed(contract(sample_kind="picture", calibration=TERMS), **pictures).calibration == TERMS
    with pytest.raises(ContractMismatch) as caught:
        confirmed(contract(sample_kind="picture", calibration=other), **pictures)
    (difference,) = caught.value.differences
    assert (difference.field, difference.source) == ("calibration", contracts.calibration_text(TERMS))


# Guidance


@pytest.mark.parametrize(
    ("asked", "terms", "error", "said"),
    [
        (Guidance(4.001), OFFER, PolicyDenied, "max_guidance"),
        (Guidance(classifier_scale=2.5), OFFER, PolicyDenied, "max_guidance"),
        (Guidance(1.0), offer(0.0), SettingsInvalid, "guidance"),
        (Guidance(classifier_scale=1.0), offer(4.0), SettingsInvalid, "classifier-scale"),
        (Guidance(clip=True), offer(4.0), SettingsInvalid, "--clip_denoised of flags"),
    ],
)
def test_guidance_that_is_not_offered_is_refused_by_name(asked, terms, error, said):
    """Over the policy's bound, or a kind that the target does not have; up to the bounds it passes."""
    for offered in (UNGUIDED, Guidance(4.0), Guidance(classifier_scale=2.0), Guidance(0.0, clip=True)):
        contracts.check_offered(offered, OFFER, "south.example/relief")
    with pytest.raises(DdibError, match=r"south\.example/relief") as caught:
        contracts.check_offered(asked, terms, "south.example/relief")
    assert type(caught.value) is error
    assert said in caught.value.facts.values()
    assert caught.value.facts["remedy"] == caught.value.hint


def test_every_field_of_a_side_is_explained() -> None:
    chapter = PAGE.partition("## The contract\n")[2].partition("\nlambda = ")[0]
    assert set(re.findall(r"^\| `([a-z_0-9]+)` \|", chapter, re.MULTILINE)) == set(
        ContractSide.DESCRIPTOR.fields_by_name
    )
