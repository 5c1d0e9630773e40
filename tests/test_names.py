"""One grammar for each name: what one part of the package accepts, no other part refuses."""

import pytest
from pydantic import ValidationError

from ddib_fed.errors import BundleInvalid, InputError, MessageInvalid
from ddib_fed.models.bundle import make_bundle
from ddib_fed.names import is_domain, is_institution
from ddib_fed.node.config import ModelSection, NodeSection
from ddib_fed.protocol.contract import check_side
from ddib_fed.security.identity import check_institution
from ddib_fed.training.config import TrainConfig
from tests.node.tiny_nodes import manifest, state
from tests.protocol.examples import side

DOMAINS = ["T1.w_2-x", "d" * 64, "d" * 65, "", "-x", "a\n", "é", "a/b"]
INSTITUTIONS = ["north.example", "a.bc", "a.b", "1.2.3.4", "x-.example", "North.example", "north", "a." * 130 + "bc",
                "north.123", "north.exam_ple", "north.-ab", "north.example."]  # fmt: skip


def accepts(make, *refusals) -> bool:
    try:
        make()
    except refusals:
        return False
    return True


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_is_accepted_everywhere_or_nowhere(name: str) -> None:
    found = {
        "grammar": is_domain(name),
        "config": accepts(lambda: ModelSection(domain=name), ValidationError),
        "contract": accepts(lambda: check_side(side(domain=name)), MessageInvalid),
        "bundle": accepts(
            lambda: make_bundle(manifest(domain=name), state()), ValidationError, BundleInvalid
        ),
        "points": accepts(lambda: TrainConfig(kind="points", data="x.npy", name=name), ValidationError),
        "pictures": accepts(lambda: TrainConfig(kind="pictures", images="x", name=name), ValidationError),
    }
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("name", INSTITUTIONS)
def test_an_institution_is_accepted_everywhere_or_nowhere(name: str) -> None:
    found = {
        "grammar": is_institution(name),
        "config": accepts(
            lambda: NodeSection(institution=name, listen="localhost:1", address="localhost:1"),
            ValidationError,
        ),
        "certificates": accepts(lambda: check_institution(name), InputError),
        "contract": accepts(lambda: check_side(side(institution=name)), MessageInvalid),
    }
    assert len(set(found.values())) == 1, found
