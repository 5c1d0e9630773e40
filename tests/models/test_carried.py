"""Only a model that was trained on samples that ship counts as one of them, whatever it is called."""

from __future__ import annotations

import pytest

from ddib_fed.data.shipped import SHIPPED
from ddib_fed.data.synthetic import DOMAINS
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.models.manifest import DataNote, carried_domain
from ddib_fed.models.units import Normalisation


@pytest.mark.parametrize("name", shipped_names())
def test_each_model_that_ships_was_trained_on_what_ships(name: str) -> None:
    """Those that were retrained under a calibration too, on their own side's pictures."""
    expected = {"satellite-as-relief": "satellite", "brain-t1-as-t2": "brain-t1"}.get(name, name)
    assert carried_domain(pretrained(name).manifest) == expected
    assert expected in {*SHIPPED, *DOMAINS}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("moons", {"normalisation": Normalisation(mean=0.1)}),
        ("relief", {"data": None}),
        ("relief", {"data": DataNote(source="400 pictures of a user's folder, 40 held out")}),
        ("relief", {"name": "satellite", "domain": "satellite"}),
    ],
)
def test_a_name_alone_is_no_proof(name: str, changes: dict) -> None:
    """Units, shape and data have to be those of the domain."""
    assert carried_domain(pretrained(name).manifest.model_copy(update=changes)) is None
