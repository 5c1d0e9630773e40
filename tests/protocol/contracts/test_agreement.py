"""When two sides can agree on a contract, and the error of each when they cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.errors import ContractMismatch
from ddib_fed.protocol.agreement import agree, confirm, differences
from ddib_fed.protocol.contract import Contract, require_protocol
from ddib_fed.protocol.messages import to_message
from ddib_fed.v1 import decoding_pb2
from tests.protocol.examples import LIMITS, contract, picture_side, side

NORTH = {"institution": "north.example"}
SOUTH = {"institution": "south.example"}

SIDES = st.one_of(
    st.builds(
        side,
        sample_shape=st.sampled_from([(2,), (3,)]),
        terminal_lambda=st.sampled_from([-6.0, -4.5, -4.0, 0.0]),
        initial_lambda=st.sampled_from([5.0, 3.0, 2.0]),
        classes=st.integers(0, 2),
    ),
    st.builds(
        picture_side,
        soften_sigma=st.sampled_from([0.0, 0.02]),
        size_rule=st.sampled_from(["crop", "resize", "refuse"]),
    ),
)


def found(source, target) -> dict:
    return {d.field: (d.source, d.target) for d in differences(source, target)}


@given(SIDES, SIDES)
def test_every_difference_says_what_to_do(source, target):
    """One sentence, and both values."""
    for difference in differences(source, target):
        assert difference.remedy.endswith(".")
        assert difference.source
        assert difference.target


@pytest.mark.parametrize(
    ("source", "target", "field", "values"),
    [
        (side(), side(sample_shape=(3,)), "sample_shape", ("2", "3")),
        (side(), picture_side(), "sample_kind", ("point", "picture")),
        (side(), picture_side(), "value_range", ("unit-std", "minus-one-to-one")),
        (
            picture_side(sample_shape=(3, 8, 8)),
            picture_side(sample_shape=(3, 8, 8), value_range="minus-one-to-one-opponent"),
            "value_range",
            ("minus-one-to-one", "minus-one-to-one-opponent"),
        ),
        (picture_side(), picture_side(size_rule="resize"), "size_rule", ("crop", "resize")),
        (picture_side(), picture_side(soften_sigma=0.05), "soften_sigma", ("0.02", "0.05")),
        (side(), side(terminal_lambda=-4.4), "terminal_lambda", ("-5", "-4.4")),
        (side(terminal_lambda=-4.4), side(), "terminal_lambda", ("-4.4", "-5")),
        (side(), side(initial_lambda=2.9), "initial_lambda", ("5.3", "2.9")),
    ],
)
def test_a_field_that_must_match_is_named_with_both_values(source, target, field, values):
    """Each of them."""
    assert found(source, target)[field] == values


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": "rings"},
        {"model_sha256": bytes(32)},
        {"terminal_lambda": -4.5},
        {"initial_lambda": 3.0},
        {"classes": 5},
    ],
)
def test_what_need_not_match_may_differ(changes):
    """Linear and cosine schedules may meet; so may models of different classes."""
    assert found(side(), side(**changes)) == {}


@pytest.mark.parametrize("rule", ["resize", "crop", "pad", "refuse"])
def test_who_takes_only_the_models_size_agrees_with_every_rule(rule):
    """And the contract then has that rule, whichever side says so."""
    refusing = {"sample_kind": "picture", "size_rule": "refuse"}
    assert found(picture_side(size_rule=rule), picture_side(size_rule="refuse")) == {}
    assert found(picture_side(size_rule="refuse"), picture_side(size_rule=rule)) == {}
    assert contract(**refusing).size_rule == "refuse"
    made = Contract(picture_side(size_rule=rule), picture_side(**SOUTH, size_rule="refuse"), LIMITS)
    assert made.size_rule == "refuse"
    made = Contract(picture_side(size_rule="refuse"), picture_side(**SOUTH, size_rule=rule), LIMITS)
    assert made.size_rule == "refuse"


def test_a_mismatch_names_all_fields_at_once():
    """All differences are in one error."""
    with pytest.raises(ContractMismatch) as caught:
        agree(side(), side(sample_shape=(3,), terminal_lambda=0.0), LIMITS)
    names = [difference.field for difference in caught.value.differences]
    assert names == ["sample_shape", "terminal_lambda"]


def test_nodes_of_different_protocols_are_told_both_versions_and_to_update():
    require_protocol(2, 2)
    with pytest.raises(
        ContractMismatch, match="version 2 of the protocol, the node that answers 1"
    ) as caught:
        require_protocol(2, 1)
    (difference,) = caught.value.differences
    assert (difference.field, difference.source, difference.target) == ("protocol", "2", "1")
    assert difference.remedy.startswith("Update")


# What the source makes of the target's answer


def answer(made: Contract, **changes) -> decoding_pb2.NegotiateContractResponse:
    response = decoding_pb2.NegotiateContractResponse(
        contract=to_message(made, decoding_pb2.Contract), sha256=made.digest
    )
    for field, value in changes.items():
        setattr(response, field, value)
    return response


def confirmed(response, **changes) -> Contract:
    return confirm(response, **{"source": side(), "target_institution": "south.example", **changes})


def test_a_true_answer_is_confirmed():
    """And comes back as the contract."""
    assert confirmed(answer(contract())) == contract()


@pytest.mark.parametrize(
    ("response", "field"),
    [
        (answer(contract(), sha256=bytes(32)), "contract_sha256"),
        (answer(contract(), sha256=b""), "contract_sha256"),
        (answer(contract(classes=3)), "source"),
        (answer(contract(terminal_lambda=-7.0)), "source"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_is_refused(response, field):
    """Another digest, or the source's own side changed."""
    with pytest.raises(ContractMismatch) as caught:
        confirmed(response)
    assert field in {difference.field for difference in caught.value.differences}


def test_an_answer_of_another_institution_is_refused():
    """A node answers for its own institution alone."""
    with pytest.raises(ContractMismatch) as caught:
        confirmed(answer(contract()), target_institution="east.example")
    (difference,) = caught.value.differences
    assert (difference.field, difference.source, difference.target) == (
        "institution",
        "east.example",
        "south.example",
    )


def test_an_answer_that_the_source_cannot_keep_is_refused():
    """A target that agrees to what does not fit is not believed."""
    made = Contract(side(), side(**SOUTH, sample_shape=(3,)), LIMITS)
    with pytest.raises(ContractMismatch) as caught:
        confirmed(answer(made))
    assert [difference.field for difference in caught.value.differences] == ["sample_shape"]
