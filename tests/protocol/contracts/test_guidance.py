"""What guidance a contract offers, and what is said of a request that asks for more."""

import pytest

from ddib_fed.errors import DdibError, MessageInvalid, PolicyDenied, SettingsInvalid
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.protocol.contract import (
    Contract,
    ContractLimits,
    GuidanceTerms,
    check_offered,
    guidance_from_pb,
    guidance_to_pb,
)
from ddib_fed.protocol.messages import from_message, to_message
from ddib_fed.v1 import common_pb2, decoding_pb2
from tests.protocol.examples import contract

TERMS = GuidanceTerms(4.0, 2.0, bytes(32), 10, clip=True)
OFFERING = ContractLimits(8, 100_000, 2 << 20, 1_000, TERMS)


def test_the_terms_are_in_the_contract_and_its_digest() -> None:
    """And survive the wire; another bound is another contract."""
    made = contract(limits=OFFERING)
    assert from_message(to_message(made, decoding_pb2.Contract), Contract) == made
    assert made.limits.guidance == TERMS
    other = ContractLimits(8, 100_000, 2 << 20, 1_000, GuidanceTerms(5.0, 2.0, bytes(32), 10, clip=True))
    assert len({made.digest, contract().digest, contract(limits=other).digest}) == 3


@pytest.mark.parametrize(
    "values",
    [
        (float("nan"), 0.0),
        (1e300, 0.0),
        (-1.0, 0.0),
        (float("inf"), 0.0),
        (0.0, 1e300, bytes(32), 10),
        (0.0, 1.0),
        (0.0, 1.0, bytes(31), 10),
        (0.0, 0.0, bytes(32), 10),
        (0.0, 0.0, b"", 10),
        (0.0, 1.0, bytes(32), 1_000_001),
        (0.0, 1.0, bytes(32), 0),
    ],
)
def test_terms_that_make_no_sense_are_refused(values) -> None:
    """Not finite, too large, a weight without a classifier, and a classifier without a weight."""
    with pytest.raises(MessageInvalid):
        GuidanceTerms(*values)


@pytest.mark.parametrize(
    "asked", [UNGUIDED, Guidance(0.0), Guidance(3.5), Guidance(classifier_scale=1.0), Guidance(clip=True)]
)
def test_guidance_survives_the_wire(asked) -> None:
    """0 is a scale; none is no message at all."""
    sent = guidance_to_pb(asked)
    assert (sent is None) == (asked == UNGUIDED)
    assert guidance_from_pb(sent or common_pb2.GuidanceSettings()) == asked


def test_guided_encoding_does_not_travel() -> None:
    """Its latents are no noise."""
    with pytest.raises(SettingsInvalid, match="decoding alone"):
        guidance_to_pb(Guidance(2.0, encoding=True))


def test_both_kinds_at_once_are_refused() -> None:
    """From the wire too."""
    with pytest.raises(SettingsInvalid):
        guidance_from_pb(common_pb2.GuidanceSettings(guidance=1.0, classifier_scale=1.0))


@pytest.mark.parametrize(
    "asked", [UNGUIDED, Guidance(4.0), Guidance(classifier_scale=2.0), Guidance(0.0, clip=True)]
)
def test_what_is_offered_passes(asked) -> None:
    """Up to the bounds."""
    check_offered(asked, TERMS, "south.example/relief")


@pytest.mark.parametrize(
    ("asked", "terms", "error", "said"),
    [
        (Guidance(4.001), TERMS, PolicyDenied, "max_guidance"),
        (Guidance(classifier_scale=2.5), TERMS, PolicyDenied, "max_classifier_scale"),
        (Guidance(1.0), None, SettingsInvalid, "--guidance"),
        (Guidance(0.0), GuidanceTerms(), SettingsInvalid, "--guidance"),
        (Guidance(classifier_scale=1.0), GuidanceTerms(4.0), SettingsInvalid, "--classifier-scale"),
        (Guidance(clip=True), GuidanceTerms(4.0), SettingsInvalid, "--clip"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(asked, terms, error, said) -> None:
    """Over the policy's bound, or a kind that the target does not have."""
    with pytest.raises(DdibError) as caught:
        check_offered(asked, terms, "south.example/relief")
    assert type(caught.value) is error
    assert said in caught.value.facts.values()
    assert "south.example/relief" in caught.value.detail
    assert caught.value.facts["remedy"] == caught.value.hint
