"""A calibration survives its file, belongs to two models, and is used only if both institutions signed exactly it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.calibration.record import (
    CalibratedSide,
    Calibration,
    CalibrationStore,
    SignedCalibration,
    leg_map,
    map_between,
    parse_calibration,
    parse_signed,
)
from ddib_fed.errors import (
    CalibrationAltered,
    CalibrationExpired,
    CalibrationForeign,
    CalibrationInvalid,
    CalibrationModel,
    CalibrationSigner,
    CalibrationUnits,
    CalibrationUnsigned,
    FileMissing,
)
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.security import pki
from ddib_fed.security.identity import Identity
from tests.calibration.examples import calibration, sign, signed
from tests.node.institutions import Institution, issue_client
from tests.runs.tiny_models import tiny

AGREED = calibration()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "is no calibration"),
        ('{"kind": "rotation"}', "source: Field required"),
        (json.dumps(AGREED.model_dump(mode="json") | {"more": 1}), "more: Extra"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CalibrationInvalid, match=said) as told:
        Calibration.open(tmp_path / "c.json")
    assert "c.json" in told.value.detail
    with pytest.raises(FileMissing):
        Calibration.open(tmp_path / "none.json")


def test_a_shipped_models_calibration_goes_by_its_name(tmp_path, monkeypatch):
    """Its map is the one that the model's units have; a file of that name here comes first."""
    shipped = Calibration.open(Path("satellite-as-relief"))
    assert shipped.map == pretrained("satellite-as-relief").manifest.normalisation.calibrated
    assert (shipped.source.domain, shipped.target.domain) == ("satellite", "relief")
    assert shipped.made.epsilon == 1.0
    monkeypatch.chdir(tmp_path)
    AGREED.save(Path("satellite-as-relief"))
    assert Calibration.open(Path("satellite-as-relief")) == AGREED
    with pytest.raises(FileMissing):
        Calibration.open(Path("satellite"))


TURN = ((0, 1, 0), (1, 0, 0), (0, 0, 1))
CURVE = ChannelMap(quadratic=((0.0, 1.0, 0.1),))


def side(domain, **units):
    return CalibratedSide(domain=domain, units=Normalisation(**units))


def between(source="north", target="south", **changes):
    return calibration(source=side(source), target=side(target), **changes)


TONE = between(kind="tone", map=CURVE)
NORTH, SOUTH = (tiny(name, channels=3).manifest for name in ("north", "south"))
GREY = tiny("north").manifest
TRAINED = tiny("north", normalisation=Normalisation(calibrated=CURVE)).manifest


@pytest.mark.parametrize(
    ("given", "source", "says", "command"),
    [
        (TONE, GREY, "was not trained with it", "ddib model train --init OWN --calibration FILE"),
        (
            TONE,
            tiny("north", normalisation=Normalisation(calibrated=ChannelMap(rotation=((-1.0,),)))).manifest,
            "was trained with the map of another one",
            "ddib model train",
        ),
        (None, TRAINED, "this translation has none", "ddib calibrate list"),
        (between(map=ChannelMap(rotation=((-1.0,),))), TRAINED, "has a rotation", "--calibration FILE"),
    ],
)
def test_a_model_and_a_calibration_that_do_not_belong_together_are_refused(given, source, says, command):
    with pytest.raises(CalibrationModel, match=says) as refused:
        leg_map(given, source)
    assert command in refused.value.hint


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (between(target="east"), CalibrationForeign),
        (between("south", "north"), CalibrationForeign),
        (calibration(source=side("north"), target=side("south", std=0.5)), CalibrationUnits),
    ],
)
def test_a_calibration_of_other_domains_or_units_is_refused(given, error):
    with pytest.raises(error) as refused:
        map_between(given, NORTH, SOUTH)
    assert "ddib calibrate --local" in refused.value.hint


DAY = timedelta(days=1)


class Pair:
    """north and south, each with a node's key and the other's root."""

    def __init__(self, folder: Path) -> None:
        self.north = Institution("north.example", folder / "north")
        self.south = Institution("south.example", folder / "south")
        self.west = Institution("west.example", folder / "west")
        self.pins = {each.name: (each.root,) for each in (self.north, self.south)}
        self.now = datetime.now(UTC)

    def signed(self, agreed: Calibration) -> SignedCalibration:
        return signed(agreed, self.north, self.south)

    def verify(self, signed: SignedCalibration, **changes) -> Calibration:
        return signed.verify(**{"pins": self.pins, "now": self.now, **changes})


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


def test_what_both_signed_is_the_calibration_also_after_a_day_and_a_file(pair) -> None:
    """A leaf of 24 hours may have ended since; JSON and back changes nothing. What has ended itself is refused."""
    agreed = calibration()
    read = parse_signed(pair.signed(agreed).model_dump_json().encode(), "it")
    assert pair.verify(read, now=pair.now + 30 * DAY) == agreed
    with pytest.raises(CalibrationExpired, match="ended at 20"):
        pair.verify(read, now=pair.now + 366 * DAY)


@pytest.mark.parametrize("side", ["source", "target"])
def test_one_signature_is_not_enough(pair, side) -> None:
    signed = pair.signed(calibration()).model_copy(update={side: None})
    with pytest.raises(CalibrationUnsigned, match=f"no signature of the {side}"):
        pair.verify(signed)


@pytest.mark.parametrize("where", range(0, 1_200, 149))
def test_one_bit_of_the_content_is_noticed(pair, where) -> None:
    """Whatever the bit does: the text is no calibration any more, or not the signed one."""
    text = pair.signed(calibration()).model_dump_json(exclude_none=True)
    altered = text[:where] + chr(ord(text[where]) ^ 1) + text[where + 1 :]
    with pytest.raises((CalibrationInvalid, CalibrationAltered, CalibrationSigner)):
        pair.verify(parse_signed(altered.encode(), "it"))


def test_the_time_of_signing_is_signed(pair) -> None:
    """Or a key whose certificate ended could seem to have signed in time."""
    signed = pair.signed(calibration())
    earlier = signed.source.model_copy(update={"signed_at": signed.source.signed_at - 60})
    with pytest.raises(CalibrationAltered, match="the source's signature"):
        pair.verify(signed.model_copy(update={"source": earlier}))


def test_a_signature_is_for_one_side(pair) -> None:
    """Between two domains of one institution the source's signature is not the target's."""
    both = calibration()
    both = both.model_copy(update={"target": both.source.model_copy(update={"domain": "maps"})})
    source = sign(both, "source", pki.load_identity(pair.north.pki), now=pair.now)
    with pytest.raises(CalibrationAltered):
        pair.verify(SignedCalibration(calibration=both, source=source, target=source))


def test_another_institution_cannot_sign(pair) -> None:
    """Not by our function, and not by exchanging the institution afterwards."""
    agreed = calibration()
    with pytest.raises(CalibrationForeign, match="cannot sign as the source"):
        sign(agreed, "source", pki.load_identity(pair.west.pki), now=pair.now)
    west = agreed.model_copy(
        update={"source": agreed.source.model_copy(update={"institution": "west.example"})}
    )
    foreign = sign(west, "source", pki.load_identity(pair.west.pki), now=pair.now)
    signed = pair.signed(agreed).model_copy(update={"source": foreign})
    with pytest.raises(CalibrationSigner, match="must be a node of north"):
        pair.verify(signed, pins=pair.pins | {"west.example": (pair.west.root,)})


def test_a_withdrawn_node_and_a_client_sign_nothing(pair, tmp_path) -> None:
    agreed, node = calibration(), Identity("south.example", "node", "node-1")
    with pytest.raises(CalibrationSigner, match="withdrawn"):
        pair.verify(pair.signed(agreed), withdrawn=frozenset({node}))
    credentials = issue_client(pair.north.pki, tmp_path / "alice", "alice")
    by_client = sign(agreed, "source", credentials, now=pair.now)
    with pytest.raises(CalibrationSigner, match="must be a node"):
        pair.verify(pair.signed(agreed).model_copy(update={"source": by_client}))


@pytest.mark.parametrize(
    ("shift", "seen", "says"),
    [(2 * DAY, 10 * DAY, "expired at"), (-2 * DAY, 10 * DAY, "not valid before"), (DAY / 12, 0 * DAY, "future")],
)  # fmt: skip
def test_a_certificate_that_was_not_valid_at_signing_or_a_signature_of_the_future_is_refused(
    pair, shift, seen, says
) -> None:
    agreed = calibration(expires=pair.now + 100 * DAY)
    late = sign(agreed, "source", pki.load_identity(pair.north.pki), now=pair.now + shift)
    with pytest.raises(CalibrationSigner, match=says):
        pair.verify(pair.signed(agreed).model_copy(update={"source": late}), now=pair.now + seen)


def test_what_is_received_is_the_canonical_text(pair) -> None:
    """Another text of the same content would have another digest."""
    agreed = calibration()
    assert parse_calibration(agreed.canonical, "it") == agreed
    for wrong in (b"{}", agreed.model_dump_json().encode(), agreed.canonical + b" ", b"[" * 20_000):
        with pytest.raises(CalibrationInvalid):
            parse_calibration(wrong, "it")


def test_a_store_keeps_and_finds(pair, tmp_path) -> None:
    store = CalibrationStore(tmp_path / "calibrations")
    older, newer = pair.signed(calibration()), pair.signed(calibration(expires=pair.now + 9 * DAY))
    proposed = pair.signed(calibration(expires=pair.now + 8 * DAY)).model_copy(update={"target": None})
    store.add(older, now=pair.now - DAY)
    store.add(newer, now=pair.now)
    store.add(proposed, now=pair.now + DAY)
    north, south = ("north.example", "photos"), ("south.example", "maps")
    assert [stored.state(pair.now) for stored in store.list()] == ["proposed", "active", "active"]
    assert [each.sha256 for each in store.between(north, south)] == [
        each.sha256 for each in (proposed, newer, older)
    ]
    assert store.between(south, north) == ()
    assert store.named(older.sha256.hex()[:10]).sha256 == older.sha256
    assert pair.verify(store.find(older.sha256)) == older.calibration
    (file, *_) = (tmp_path / "calibrations").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
