"""Settings and records become messages and come back."""

from dataclasses import fields

import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import PublicLevels
from ddib_fed.errors import MessageInvalid, SettingsInvalid
from ddib_fed.node.role import settings_message, solver_settings
from ddib_fed.protocol.messages import check, provenance_message, provenance_record
from ddib_fed.record import CycleError, Guidance, LatentFigures, PictureFigures, Record, Settings
from ddib_fed.v1 import common_pb2, translation_pb2

FULL = Record(
    job_id="job", source_institution="north.example", source_domain="scans", target_institution="south.example",
    target_domain="relief", contract_sha256="01" * 32, source_model_sha256="02" * 32, target_model_sha256="03" * 32,
    input_sha256="04" * 32, latent_sha256="05" * 32, soften_sigma=0.02, source_class="cat", target_class="dog",
    guidance=Guidance(guidance=0.0, clip=True), classifier_sha256="06" * 32, calibration_sha256="07" * 32,
    calibration_kind="rotation", policy_sha256="08" * 32, samples=3, wire_bytes=2**40,
    latent=LatentFigures(mean=0.0, std=1.0, kurtosis=-0.1, correlation=0.01, count=6),
    seconds={"encode": 1.5}, cycle=CycleError(median=0.0, mean=1e-4, p99=1e-3, max=0.5),
    picture=PictureFigures(height=8, width=9, size_rule="crop", low=-1000.0, high=0.0, bits=16, cycle_psnr=30.5,
                           structure_doubtful=False, clipped=2**40, outside=0.0, fitted_height=4),
)  # fmt: skip


@pytest.mark.parametrize("record", [FULL, Record(samples=2)], ids=["full", "empty"])
def test_a_record_survives_the_wire(record):
    """Numbers that are 0 too, and what is not known."""
    sent = provenance_message(record.stored())
    again = provenance_record(translation_pb2.Provenance.FromString(sent.SerializeToString()))
    if record is FULL:
        assert again.stored() == record.stored()
        check(sent)
    else:
        assert (again.samples, again.picture, again.cycle, again.guidance) == (2, None, None, None)


def test_every_field_of_the_message_is_one_of_the_record():
    for message, kind in (
        (translation_pb2.Provenance, Record),
        (translation_pb2.PictureFigures, PictureFigures),
    ):
        assert set(message.DESCRIPTOR.fields_by_name) <= set(kind.model_fields)


def test_stages_are_in_one_order():
    """A protobuf map has another order in each process; a client that goes on in a new one compares bytes."""
    stages = [f"stage-{number:02}" for number in range(16)]
    sent = translation_pb2.Provenance(seconds=dict.fromkeys(reversed(stages), 1.0))
    assert (
        list(provenance_record(translation_pb2.Provenance.FromString(sent.SerializeToString())).seconds)
        == stages
    )


IN_ONE_PROCESS = [
    SolverSettings("ddim", eta=0.5),
    SolverSettings("ddim", grid="ddib", ancestral=True),
    SolverSettings("ddim", grid="ddib", levels=PublicLevels("linear", 1000, "ddim50")),
]


@pytest.mark.parametrize("settings", IN_ONE_PROCESS, ids=str)
def test_what_the_wire_does_not_carry_is_not_dropped_in_silence(settings):
    """A message of the other five would ask the peer for something else."""
    with pytest.raises(SettingsInvalid, match="do not travel"):
        settings_message(settings)


def test_all_settings_cross_the_wire():
    for settings in (SolverSettings("ddim", 1, 50, "ddib"), SolverSettings(share=0.0, temperature=0.9)):
        assert solver_settings(settings_message(settings)) == settings


def test_a_quality_is_one_of_three_settings():
    """Depth, share and temperature stay as they were asked; what the quality chooses may not be set beside it."""
    asked = Settings(depth=0.5, share=0.75, temperature=0.9)
    assert asked.of_quality(None) is asked
    assert asked.of_quality("draft") == Settings(
        evaluations=12, grid="learned", depth=0.5, share=0.75, temperature=0.9
    )
    assert asked.of_quality("standard") == asked
    chosen = {"solver", "order", "evaluations", "grid"}
    others = {field.name: 0.875 for field in fields(Settings) if field.name not in chosen}
    assert {name: getattr(Settings(**others).of_quality("draft"), name) for name in others} == others
    assert asked.of_quality("exact").evaluations == 96
    with pytest.raises(SettingsInvalid, match="no quality 'best'"):
        asked.of_quality("best")
    with pytest.raises(SettingsInvalid, match="chooses grid itself") as refused:
        Settings(grid="integer").of_quality("exact")
    assert refused.value.hint == "leave grid or quality out"


def test_a_record_whose_fields_contradict_each_other_breaks_the_protocol() -> None:
    sent = translation_pb2.Provenance(
        guidance=common_pb2.GuidanceSettings(guidance=2.0, classifier_scale=1.0)
    )
    with pytest.raises(MessageInvalid, match="the record of a result"):
        provenance_record(sent)
