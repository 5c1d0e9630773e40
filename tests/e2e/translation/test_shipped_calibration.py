"""The model that ships with a calibration translates between two nodes: proposed, signed by both, used."""

from dataclasses import replace
from pathlib import Path

import pytest

import ddib_fed
from ddib_fed import Request, Settings
from ddib_fed.errors import SettingsInvalid
from ddib_fed.files import copy_folder
from ddib_fed.models.bundle import pretrained
from ddib_fed.record import Part
from tests.cli.calibrate.operators import Operators, run
from tests.e2e.in_process import InProcessNodes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
MODELS = {"north": "satellite-as-relief", "south": "relief"}


@pytest.fixture
def both(tmp_path: Path):
    models = map(pretrained, MODELS.values())
    with InProcessNodes(tmp_path, *models, calibration='["colour-map"]') as nodes:
        for at, name in MODELS.items():
            copy_folder(ROOT / "ddib_fed/models/pretrained" / name, tmp_path / at / "model")
        yield Operators(nodes, tmp_path)


def test_a_calibration_in_a_file_is_signed_by_both_and_used(both: Operators) -> None:
    """Nothing of south crossed for it, which the record says; south's operator sees where it comes from, and signs."""
    said = run(
        "--peer", "south.example/relief", "--from", "satellite-as-relief", "--yes", "--config", both.north
    )
    assert "nothing but the calibration itself" in said
    assert "was not south.example's" in said
    sha256 = both.agree()
    for at in ("north", "south"):
        (stored,) = both.stored(at).list()
        made = stored.calibration.made
        assert stored.complete
        assert (made.aggregate_sha256, made.crossed_bytes, made.epsilon, made.delta) == ("", 0, None, None)
    picture = min((ROOT / "docs/images/satellite").glob("*.png"))
    (result,) = both.nodes.translate([picture])
    assert result.record.calibration_sha256 == sha256
    alone = Request(Settings(blend=1.0))
    (mapped,) = both.nodes.translate([picture], alone)
    assert result.record.wire_bytes > mapped.record.wire_bytes == 0
    assert not mapped.record.latent_sha256
    models = map(ddib_fed.Model.open, MODELS.values())
    (own,) = ddib_fed.translate(picture, *models, replace(alone, calibration="satellite-as-relief"))
    assert mapped.files[Part.TRANSLATION].data == own.files[Part.TRANSLATION].data
    with pytest.raises(SettingsInvalid) as refused:
        both.nodes.translate([picture], replace(alone, cycle=True))
    assert refused.value.facts["field"] == "blend"
