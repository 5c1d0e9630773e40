"""When two sides can meet, and what each is told when they cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.errors import ContractMismatch, MessageInvalid, PolicyDenied
from ddib_fed.latent_types import LATENT_TYPES
from ddib_fed.v1 import decoding_pb2
from ddib_fed.wire.contracts.agreement import agree, confirm, differences
from ddib_fed.wire.contracts.contract import Contract, PictureTerms
from ddib_fed.wire.mapping import to_message
from ddib_fed.wire.version import SPOKEN, Version
from tests.wire.examples import LIMITS, contract, picture_side, side

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
VERSIONS = st.lists(st.builds(Version, st.integers(1, 2), st.integers(0, 1)), min_size=1, max_size=3)


def found(source, target, ours=SPOKEN, theirs=SPOKEN) -> dict:
    return {d.field: (d.source, d.target) for d in differences(ours, theirs, source, target)}


@given(VERSIONS, VERSIONS, SIDES, SIDES)
def test_agreement_is_symmetric(ours, theirs, source, target):
    """Seen from the other side, the same fields differ, with the values exchanged."""
    there = found(target, source, theirs, ours)
    assert found(source, target, ours, theirs) == {field: (b, a) for field, (a, b) in there.items()}


@given(VERSIONS, VERSIONS, SIDES, SIDES)
def test_every_difference_says_what_to_do(ours, theirs, source, target):
    """One sentence, and both values."""
    for difference in differences(ours, theirs, source, target):
        assert difference.remedy.endswith(".")
        assert difference.source
        assert difference.target


@given(VERSIONS, SIDES)
def test_a_side_agrees_with_its_like(versions, both):
    """Unless its own ends are not good enough for anybody."""
    old = set() if max(versions) >= both.needs else {"version"}
    assert set(found(both, both, versions, versions)) <= {"terminal_lambda", "initial_lambda"} | old


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


def test_values_that_print_alike_are_still_shown_apart():
    """A difference of 1e-9 is no difference of nothing."""
    values = found(picture_side(soften_sigma=0.02), picture_side(soften_sigma=0.020000001))["soften_sigma"]
    assert values == ("0.02", "0.020000001")


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
    made = Contract(
        Version(1, 1), picture_side(size_rule=rule), picture_side(**SOUTH, size_rule="refuse"), LIMITS
    )
    assert made.size_rule == "refuse"
    made = Contract(
        Version(1, 1), picture_side(size_rule="refuse"), picture_side(**SOUTH, size_rule=rule), LIMITS
    )
    assert made.size_rule == "refuse"


def test_the_raw_ranges_of_two_sides_may_differ():
    """Each side's files have their own units; only the samples between them must be in one range."""
    relief = picture_side(picture=PictureTerms(-1000.0, 2000.0, 16))
    assert found(picture_side(), relief) == {}


@pytest.mark.parametrize("other", [side(), picture_side()])
def test_pictures_need_a_release_that_knows_them(other):
    """A peer of 1.0 is told by the version, not by a field that it does not know; points still meet it."""
    old = [Version(1, 0)]
    assert found(picture_side(), other, SPOKEN, old)["version"] == ("1.5, 1.4, 1.3, 1.2, 1.1, 1.0", "1.0")
    assert found(side(), side(), SPOKEN, old) == {}


def test_a_mismatch_names_all_fields_at_once():
    """Nobody has to mend one to hear of the next."""
    with pytest.raises(ContractMismatch) as caught:
        agree([Version(1, 0)], [Version(2, 0)], side(), side(sample_shape=(3,), terminal_lambda=0.0), LIMITS)
    names = [difference.field for difference in caught.value.differences]
    assert names == ["version", "sample_shape", "terminal_lambda"]


def test_the_highest_common_version_and_the_targets_limits_are_used():
    """Whatever else either side speaks."""
    ours = [Version(1, 0), Version(1, 1), Version(1, 2)]
    theirs = [Version(2, 0), Version(1, 1), Version(1, 0)]
    made = agree(ours, theirs, side(**NORTH), side(**SOUTH), LIMITS)
    assert (made.version, made.limits) == (Version(1, 1), LIMITS)


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
    made = Contract(Version(1, 0), side(), side(**SOUTH, sample_shape=(3,)), LIMITS)
    with pytest.raises(ContractMismatch) as caught:
        confirmed(answer(made))
    assert [difference.field for difference in caught.value.differences] == ["sample_shape"]


def test_an_answer_in_a_version_that_was_not_offered_is_refused():
    """The target chose from its own list only."""
    made = Contract(Version(1, 5), side(), side(**SOUTH), LIMITS)
    with pytest.raises(ContractMismatch) as caught:
        confirmed(answer(made))
    assert [difference.field for difference in caught.value.differences] == ["version"]


@pytest.mark.parametrize(
    ("wanted", "allowed", "chosen"),
    [
        ((), ("float32",), None),
        (("float16", "float32"), ("float32", "bfloat16"), None),
        (("bfloat16", "float16"), ("float32", "float16"), "float16"),
        (("float16", "bfloat16"), ("bfloat16", "float16"), "float16"),
    ],
)
def test_the_target_takes_the_first_latent_type_that_it_allows(wanted, allowed, chosen):
    """In the source's order; float32 leaves nothing in the contract."""
    made = agree(SPOKEN, SPOKEN, side(), side(**SOUTH), LIMITS, None, wanted, allowed)
    assert (made.latent_type, made.wire_type) == (chosen, chosen or "float32")
    assert confirmed(answer(made), latent_types=wanted) == made
    assert (b'"latent_type":' in made.canonical()) == (chosen is not None)


@pytest.mark.parametrize(
    ("wanted", "allowed"), [((), ("float16",)), (("float16",), ("float32", "bfloat16")), (("float32",), ())]
)
def test_no_latent_type_that_both_allow_is_refused_by_the_policys_name(wanted, allowed):
    """The operator reads which setting to change."""
    with pytest.raises(PolicyDenied) as caught:
        agree(SPOKEN, SPOKEN, side(), side(**SOUTH), LIMITS, None, wanted, allowed)
    assert caught.value.facts["policy"] == "latent_types"


def test_narrow_latents_need_1_4_and_float32_among_the_types_does_not():
    """Alone they are a difference of versions; with float32 an older peer gets what it knows."""
    old, narrow = [Version(1, 3)], ("float16",)
    found = differences(SPOKEN, old, side(), side(**SOUTH), None, narrow)
    assert [(difference.field, difference.target) for difference in found] == [("version", "1.3")]
    made = agree(SPOKEN, old, side(), side(**SOUTH), LIMITS, None, (*narrow, "float32"), LATENT_TYPES)
    assert (made.version, made.latent_type) == (Version(1, 3), None)


def test_a_latent_type_that_was_not_proposed_is_refused():
    """The target would read the bytes as something else."""
    made = Contract(SPOKEN[-1], side(), side(**SOUTH), LIMITS, latent_type="bfloat16")
    with pytest.raises(ContractMismatch) as caught:
        confirmed(answer(made), latent_types=("float16", "float32"))
    assert [difference.field for difference in caught.value.differences] == ["latent_type"]


@pytest.mark.parametrize(
    ("version", "name"), [(Version(1, 3), "float16"), (SPOKEN[-1], "float32"), (SPOKEN[-1], "unknown")]
)
def test_a_contract_names_only_latent_types_that_its_version_has(version, name):
    """float32 is named by nothing, so that one agreement has one digest."""
    with pytest.raises(MessageInvalid) as caught:
        Contract(version, side(), side(**SOUTH), LIMITS, latent_type=name)
    assert caught.value.facts["field"] == "latent_type"


def test_types_of_tensors_must_match():
    """There is one type in this release: a side of a later one is made behind the check's back."""
    later = side()
    object.__setattr__(later, "dtype", "float16")
    assert found(side(), later) == {"dtype": ("float32", "float16")}
