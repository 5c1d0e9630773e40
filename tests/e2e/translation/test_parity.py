"""The same samples by two parties in this process and by two nodes: the same files, records and refusals."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddib_fed import Request
from ddib_fed.calibration.record import CalibratedSide, Calibration
from ddib_fed.client import in_process
from ddib_fed.client.files import FileItem
from ddib_fed.client.in_process import InProcess
from ddib_fed.client.results import write_result
from ddib_fed.data.pictures import read_image
from ddib_fed.data.points import to_npy
from ddib_fed.datasets import sample
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import make_grid
from ddib_fed.engine.arrays import ArraySettings, item_of
from ddib_fed.engine.gate import Softener
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import CalibrationUnits
from ddib_fed.models.bundle import Bundle, make_bundle, pretrained
from ddib_fed.models.manifest import StructureThresholds
from ddib_fed.models.sidecars import Tuned
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.record import UNGUIDED, Guidance, Part, Record, Settings, file_name
from tests.calibration.examples import calibration, signed
from tests.e2e.in_process import InProcessNodes, same_noise
from tests.engine import stages
from tests.engine.latent_models import CHANNELS, FACTOR, SIZE, autoencoder, latent_model
from tests.engine.stages import translate_array
from tests.models.examples import tuned_leg
from tests.node.agreed_calibrations import agreed
from tests.node.picture_examples import pictures_model, write_files

pytestmark = pytest.mark.e2e

EVALUATIONS, LEARNED = 8, 20
LEAST = StructureThresholds(edge_correlation=0.25, count=100)
LATENT_BOUND = 2e-5
"""Of a number of a latent, near N(0, 1): pictures are integrated together here and one by one at a node."""
LEVELS_BOUND = 1
"""Of a number in a file of 8 bits: what crosses is rounded to 8 bits before a picture gets its own size again."""
FIGURE_BOUND = 0.01
"""Of a figure in a record: those of nodes are of what crossed, rounded to 8 bits."""
# What names the hop, or what only one of the two can say.
HOP = {
    "job_id", "source_institution", "target_institution", "contract_sha256", "wire_bytes", "seconds", "input_sha256",
    "latent_sha256", "run", "files", "policy_sha256",
}  # fmt: skip


def scans(*, std: float = 0.5, **options: Any) -> Bundle:
    manifest, weights = pictures_model("scans", seed=1, structure=LEAST, **options)
    return make_bundle(manifest.model_copy(update={"normalisation": Normalisation(std=std)}), weights)


def relief(**options: Any) -> Bundle:
    return make_bundle(*pictures_model("relief", seed=2, **options))


@pytest.fixture
def shared_noise(monkeypatch):
    monkeypatch.setattr(
        Softener, "for_picture", lambda self, picture, peer, shape, *_: same_noise(picture, shape)
    )
    for module in (in_process, stages):
        monkeypatch.setattr(module, "item_of", lambda *given: replace(item_of(*given), noise=same_noise))


@pytest.fixture
def open_nodes(tmp_path):
    made: list[InProcessNodes] = []

    def open_two(north: Bundle, south: Bundle, **settings: object) -> InProcessNodes:
        made.append(InProcessNodes(tmp_path / f"nodes{len(made)}", north, south, **settings))
        return made[-1]

    yield open_two
    for nodes in made:
        nodes.close()


class Compared:
    """The folders that both ways wrote, and their records."""

    def __init__(self, local: Path, federated: Path, names: list[str]) -> None:
        self.local, self.federated, self.names = local, federated, names

    def records(self, name: str) -> tuple[Record, Record]:
        found = [Record.read(folder / f"{name}.json") for folder in (self.local, self.federated)]
        assert None not in found
        return found[0], found[1]

    def check(self, *parts: Part) -> None:
        for name in self.names:
            for part in (Part.TRANSLATION, *parts):
                self._check_file(file_name(name, part, ".npy" if part is Part.LATENT else ".png"))
            mine, theirs = (said(record) for record in self.records(name))
            assert mine.keys() == theirs.keys()
            assert mine == pytest.approx(theirs, abs=FIGURE_BOUND)

    def _check_file(self, name: str) -> None:
        if name.endswith(".npy"):
            mine, theirs = (np.load(folder / name) for folder in (self.local, self.federated))
            np.testing.assert_allclose(mine, theirs, atol=LATENT_BOUND)
            return
        mine, theirs = (
            read_image(folder / name).pixels.astype(int) for folder in (self.local, self.federated)
        )
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max() <= LEVELS_BOUND


PLAIN = Settings(evaluations=EVALUATIONS)


def said(record: Record) -> dict[str, Any]:
    """A record without what names the hop, flat: the numbers, names and marks in it by their paths."""
    flat: dict[str, Any] = {}

    def lay(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                lay(f"{prefix}.{key}", inner)
        elif isinstance(value, list):
            flat[prefix] = " ".join(map(str, value))
        else:
            flat[prefix] = value

    for key, value in record.stored().items():
        if key not in HOP:
            lay(key, value)
    flat["files"] = " ".join(sorted(file.file for file in record.files.values()))
    return flat


def compare(
    folder: Path,
    nodes: InProcessNodes,
    *,
    classes: tuple[int | None, int | None] = (None, None),
    cycle: bool = False,
    without_calibration: bool = False,
    calibration: Calibration | None = None,
    guidance: Guidance = UNGUIDED,
    settings: Settings = PLAIN,
) -> Compared:
    """Translate four files of several formats and sizes both ways."""
    (folder / "in").mkdir()
    files = write_files(folder / "in")
    parties = (open_party(party.model.bundle) for party in nodes.parties)
    client = InProcess(*parties)
    labels = {
        f"{side}_class": str(label)
        for side, label in zip(("source", "target"), classes, strict=True)
        if label is not None
    }
    asked = Request(
        settings,
        guidance,
        cycle=cycle,
        keep_latents=True,
        left=(),
        without_calibration=without_calibration,
        **labels,
    )
    here = replace(asked, calibration=calibration, without_calibration=False)
    local = [*client.translate(files.paths, client.target, here)]
    federated = nodes.translate(files.paths, asked)
    for name, results in (("local", local), ("federated", federated)):
        (folder / name).mkdir()
        for number, path in enumerate(files.paths):
            given = FileItem(path.stem, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
            write_result(results[number], given, folder / name)
    return Compared(folder / "local", folder / "federated", list(files.sizes))


@pytest.mark.usefixtures("shared_noise")
def test_calibrated_pictures_go_there_and_back_alike(tmp_path, open_nodes) -> None:
    """Both parties apply the same object, and name it; each way without it is another translation."""
    nodes = open_nodes(
        scans(spectral=True), relief(spectral=True), calibration='["rotation"]', least_share=0.75
    )
    signed = agreed(*nodes.institutions)
    nodes.agree_on(signed)
    compared = compare(tmp_path, nodes, cycle=True, calibration=signed.calibration)
    compared.check(Part.RETURNED, Part.LATENT)
    mine, theirs = compared.records("Ada-png")
    assert mine.calibration_sha256 == theirs.calibration_sha256 == signed.sha256.hex()
    assert mine.calibration_kind == theirs.calibration_kind == "rotation"
    (tmp_path / "plain").mkdir()
    plain = compare(tmp_path / "plain", nodes, cycle=True, without_calibration=True)
    plain.check(Part.RETURNED, Part.LATENT)
    assert plain.records("Ada-png")[1].calibration_sha256 == ""
    assert plain.records("Ada-png")[1].contract_sha256 != theirs.contract_sha256
    for folder in ("local", "federated"):
        calibrated, without = (
            np.load(getattr(each, folder) / "Ada-png.latent.npy") for each in (compared, plain)
        )
        np.testing.assert_allclose(calibrated, -without, atol=LATENT_BOUND)
    (tmp_path / "cool").mkdir()
    settings = replace(PLAIN, share=0.75, temperature=0.9)
    cool = compare(tmp_path / "cool", nodes, cycle=True, calibration=signed.calibration, settings=settings)
    cool.check(Part.RETURNED, Part.LATENT)
    assert cool.records("Ada-png")[1].solver == replace(settings, order=3)
    assert cool.records("Ada-png")[1].latent_sha256 != theirs.latent_sha256


@pytest.mark.usefixtures("shared_noise")
def test_guided_pictures_of_classes_go_there_and_back_alike(tmp_path, open_nodes) -> None:
    nodes = open_nodes(*(make(classes=("coast", "ridge"), class_dropout=True) for make in (scans, relief)))
    compared = compare(tmp_path, nodes, classes=(0, 1), cycle=True, guidance=Guidance(3.0))
    compared.check(Part.LATENT, Part.RETURNED)
    mine, theirs = compared.records("Ada-png")
    assert mine.soften_sigma == theirs.soften_sigma == 0.02
    assert mine.doubtful == theirs.doubtful
    assert (mine.source_institution, theirs.source_institution) == ("", "north.example")


@pytest.mark.usefixtures("shared_noise")
def test_models_of_latents_translate_alike_and_record_what_the_autoencoder_loses(tmp_path, open_nodes):
    """Each side has an autoencoder of its own; latents of one shape cross, and no other."""
    north, south = (
        latent_model(seed, autoencoder(seed), name, soften_sigma=0.02)
        for seed, name in ((1, "north"), (2, "south"))
    )
    nodes = open_nodes(north, south)
    compared = compare(tmp_path, nodes, cycle=True)
    compared.check(Part.LATENT)
    for name in compared.names:
        mine, theirs = compared.records(name)
        latent = np.load(compared.federated / f"{name}.latent.npy")
        assert latent.shape == (1, CHANNELS, SIZE // FACTOR, SIZE // FACTOR)
        model = nodes.parties[0].model
        assert mine.picture.autoencoder_psnr == pytest.approx(theirs.picture.autoencoder_psnr)
        assert theirs.picture.autoencoder_psnr < 60
        assert model.sample_shape == (1, SIZE, SIZE)
    other = open_nodes(north, latent_model(2, name="south", encoder=autoencoder(2, size=48), size=48))
    error = other.refusal(write_files(tmp_path).paths)
    assert error.reason == "CONTRACT_MISMATCH"
    assert {each.field for each in error.differences} >= {"sample_shape", "latent_shape"}


@pytest.mark.usefixtures("shared_noise")
def test_shipped_models_of_latents_translate_alike(tmp_path, open_nodes) -> None:
    nodes = open_nodes(pretrained("satellite-256"), pretrained("relief-256"))
    compare(tmp_path, nodes, cycle=True).check(Part.LATENT)


@pytest.mark.usefixtures("shared_noise")
def test_latents_of_one_autoencoder_are_rotated_by_a_calibration(tmp_path, open_nodes) -> None:
    """As colours are; with two autoencoders the latents have nothing in common, and it is refused."""
    own = autoencoder(1)
    north, south = (latent_model(seed, own, name) for seed, name in ((1, "north"), (2, "south")))
    nodes = open_nodes(north, south, calibration='["rotation"]')
    rotation = ChannelMap(rotation=tuple(map(tuple, np.linalg.qr(np.arange(16).reshape(4, 4) ** 1.5)[0])))
    sides = {
        side: CalibratedSide(
            institution=f"{name}.example", domain=name, units=bundle.manifest.calibrated_units[1]
        )
        for side, name, bundle in (("source", "north", north), ("target", "south", south))
    }
    made = signed(calibration(kind="rotation", map=rotation, **sides), *nodes.institutions)
    nodes.agree_on(made)
    compared = compare(tmp_path, nodes, calibration=made.calibration)
    compared.check(Part.LATENT)
    (tmp_path / "plain").mkdir()
    plain = compare(tmp_path / "plain", nodes, without_calibration=True)
    turned, latent = (np.load(each.federated / "Ada-png.latent.npy") for each in (compared, plain))
    np.testing.assert_allclose(turned, rotation.apply(latent), atol=1e-4)
    foreign = latent_model(2, autoencoder(2), "south")
    client = InProcess(open_party(north), open_party(foreign))
    with pytest.raises(CalibrationUnits, match="was made for a model of"):
        client.submit([], client.target, Request(calibration=made.calibration))


def learned_legs(domain: str, order: int, *numbers: int) -> Bundle:
    """A shipped model with steps of both directions, of an order that is not the default's."""
    bundle = pretrained(domain)
    legs = []
    for number in numbers:
        lams = tuple(level.lam for level in make_grid(bundle.schedule, "default", number).levels)
        legs += [tuned_leg(stage, number, order=order, lams=lams) for stage in ("encode", "decode")]
    return replace(bundle, tuned=Tuned(weights_sha256=bundle.manifest.weights_sha256, legs=tuple(legs)))


def test_points_go_there_and_back_alike(tmp_path, open_nodes) -> None:
    """A set of points is one item: latents, translations and what came back; each along the steps of its own model."""
    bundles = learned_legs("moons", 2, LEARNED, 24), learned_legs("checkerboards", 4, LEARNED)
    x, grid = sample("moons", 60, 0), "learned"
    settings = SolverSettings(evaluations=LEARNED, grid=grid)
    nodes = open_nodes(*bundles)
    path = tmp_path / "points.npy"
    path.write_bytes(to_npy(x))
    parties = [open_party(bundle) for bundle in bundles]
    found = translate_array(x, *parties, ArraySettings(settings, cycle=True))
    wanted = Request(Settings(evaluations=LEARNED, grid=grid), cycle=True, keep_latents=True)
    (result,) = nodes.translate([path], wanted)
    stages = {Part.LATENT: found.latent, Part.TRANSLATION: found.translated, Part.RETURNED: found.back}
    for part, mine in stages.items():
        (tmp_path / "part.npy").write_bytes(result.files[part].data)
        np.testing.assert_allclose(np.load(tmp_path / "part.npy"), mine, atol=1e-4)
    assert (result.record.samples, result.record.solver.grid) == (len(x), grid)
    other = translate_array(x, *parties, ArraySettings(replace(settings, grid="default"), cycle=True))
    assert np.abs(other.translated - found.translated).max() > 1e-3
    error = nodes.refusal([path], Request(Settings(evaluations=24, grid=grid)))
    assert (error.reason, dict(error.facts)["learned"]) == ("SETTINGS_INVALID", "20")
