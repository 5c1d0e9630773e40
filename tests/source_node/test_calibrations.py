"""Under which calibration a source encodes: the active one for the target, or none when the client says so."""

from datetime import UTC, datetime

import numpy as np
import pytest

from ddib_fed.calibration.record import Dial
from ddib_fed.errors import CalibrationExpired, CalibrationModel, CalibrationUnknown
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.record import Record
from source_node.service import job_message
from source_node.submission import active_terms, calibration_of, choose_calibration
from tests import audit_rows
from tests.calibration.examples import signed as signed_by
from tests.node.agreed_calibrations import agreed, ended
from tests.node.picture_examples import pictures_engine
from tests.source_node.jobs.job_examples import header
from tests.source_node.pipeline.test_pictures import Scans, picture_target

TO = ("south.example", "relief")
DEEP = PictureFormat(high=65535.0, bits=16)
TARGET = {"target_institution": TO[0], "target_domain": TO[1]}


@pytest.fixture(scope="module")
def engine():
    made = pictures_engine("scans", form=DEEP)
    yield made
    made.close()


@pytest.fixture
def target(institutions):
    north, south = institutions
    made = picture_target(south)
    north.admit(south, made.address)
    yield made
    made.close()


@pytest.fixture
def source(tmp_path, institutions, target, engine):
    """Not started; it allows every kind."""
    made = Scans(
        tmp_path / "north", institutions[0], engine, domain="scans",
        calibration='["rotation", "tone", "colour-map"]',
    )  # fmt: skip
    yield made
    made.stop()


@pytest.fixture
def signed(institutions):
    return agreed(*institutions)


@pytest.mark.slow
def test_items_are_encoded_under_the_active_calibration(source, target, signed) -> None:
    """The contract, the latent and the record have it; with `no_calibration` none of them has."""
    source.node.calibrations.add(signed)
    source.start()
    jobs = [source.translated(no_calibration=each) for each in (False, True)]
    calibrated, plain = (latent.data for _, latent in target.latents)
    np.testing.assert_allclose(calibrated, -plain, atol=1e-5)
    records = [Record.parse(job.items[0].provenance) for job in jobs]
    assert [record.calibration_sha256 for record in records] == [signed.sha256.hex(), ""]
    assert [record.calibration_kind for record in records] == ["rotation", ""]
    assert [job_message(job).request.no_calibration for job in jobs] == [False, True]
    assert target.contract.calibration is None
    lines = audit_rows.records(source.config.paths.store)
    sent = [line["calibration"] for line in lines if line["act"] == "latent_sent"]
    assert sent == [f"rotation {signed.sha256.hex()}", ""]


def test_a_target_that_changes_the_calibration_ends_the_job(source, target, signed) -> None:
    """It answers with a contract without one: the translation would be another than the record says."""

    def leave_out(answer) -> None:
        if hasattr(answer, "contract"):
            answer.contract.ClearField("calibration")

    target.forge = leave_out
    source.node.calibrations.add(signed)
    job = source.start().translated()
    assert str(job.state) == "FAILED"
    assert job.error.reason == "PEER_FAULT"
    assert job.error.institution == "south.example"
    assert job.error.facts["answer"] == "CONTRACT_MISMATCH"
    fields = [difference.field for difference in job.error.differences]
    assert sorted(fields) == ["calibration", "contract_sha256"]
    assert not target.latents


def test_what_has_ended_is_refused_and_not_left_out(source, signed) -> None:
    """Until a newer one replaces it; the error says how to go on without."""
    node = source.node
    node.calibrations.add(ended(signed))
    with pytest.raises(CalibrationExpired, match="ended") as refused:
        choose_calibration(node, header(**TARGET))
    assert "--calibration none" in refused.value.hint
    assert active_terms(node, TO) is None
    node.calibrations.add(signed)
    assert choose_calibration(node, header(**TARGET)) == signed.calibration
    assert active_terms(node, TO) == signed.calibration.terms
    assert choose_calibration(node, header(**TARGET | {"target_domain": "drawings"})) is None


def test_an_accepted_job_keeps_its_calibration_and_its_setting(source, institutions, signed) -> None:
    """Also when it is sent again, whatever is signed or allowed by then; it ends where it was taken out of use."""
    node = source.node
    node.calibrations.add(signed)
    accepted = header(**TARGET)
    choose_calibration(node, accepted)
    later = signed.calibration.dialled(Dial(share=0.75), datetime.now(UTC))
    node.calibrations.add(signed_by(later, *institutions))
    repeated, fresh = header(**TARGET), header(**TARGET)
    assert choose_calibration(node, repeated, accepted) == signed.calibration
    assert (repeated.solver.share, repeated.calibration_sha256) == (1.0, signed.sha256)
    assert node.config.policy.least_share == 1.0  # which was lower when that was signed
    assert choose_calibration(node, fresh) == later
    assert fresh.solver.share == 0.75
    assert active_terms(node, TO) == later.terms
    node.calibrations.deactivate(signed.sha256)
    with pytest.raises(CalibrationUnknown, match="taken out of use"):
        calibration_of(node, accepted)


def test_a_damaged_calibration_is_not_taken_for_none(source, signed) -> None:
    node = source.node
    node.calibrations.add(signed)
    (file,) = node.config.paths.calibrations.glob("*.json")
    file.write_text("{}")
    with pytest.raises(CalibrationUnknown, match=file.name) as refused:
        choose_calibration(node, header(**TARGET))
    assert "--calibration none" in refused.value.hint
    assert choose_calibration(node, header(**TARGET, no_calibration=True)) is None


@pytest.mark.slow
def test_a_kind_that_needs_training_needs_the_bundle_that_has_it(source, institutions, signed) -> None:
    """And such a bundle needs the calibration: the job fails with the command that helps."""
    tone = agreed(*institutions, kind="tone", map=ChannelMap(quadratic=((0.0, 1.0, 0.1),)))
    source.node.calibrations.add(tone)
    job = source.start().translated()
    assert job.error.reason == CalibrationModel.reason
    assert "ddib model train --init OWN --calibration FILE" in job.error.facts["remedy"]
    source.stop()
    mapped = Normalisation(std=0.5, calibrated=tone.calibration.map)
    trained = pictures_engine("scans", form=DEEP, normalisation=mapped)
    source.open(trained)
    assert source.start().translated().state == "FINISHED"
    assert source.translated(no_calibration=True).error.reason == CalibrationModel.reason
    source.node.calibrations.deactivate(tone.sha256)
    source.node.calibrations.add(signed)
    assert source.translated().error.reason == CalibrationModel.reason
    source.runner.close()
    trained.close()
