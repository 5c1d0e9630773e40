"""Whole runs of the real build over the tap: points, guided pictures, a calibration and what it changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.calibration.record import CalibrationStore, leg_map
from ddib_fed.data.pictures import read_image
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.engine.record import Guidance
from ddib_fed.formats.intensity import item_bytes
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.models.units import ChannelMap, Normalisation
from tests.conftest import Evidence
from tests.e2e.harness import Pair, ddib, moons
from tests.node.picture_examples import SIZE, save_pictures_model
from tests.runs.picture_folders import write
from tests.runs.tiny_models import tiny_classifier
from tests.security.tap.bench import TARGET, Bench, add_keys
from tests.security.tap.judge import Judge, threshold
from tests.security.tap.search import Found, Traffic
from tests.security.tap.secrets import Secrets
from tests.security.tap.third import tap_between

pytestmark = [pytest.mark.e2e, pytest.mark.promise("latents")]

EVALUATIONS = 16
NAME = "patient-Ada-Lovelace"


def searched(traffic: Traffic, secrets: Secrets, evidence: Evidence) -> list[Found]:
    """What is in it, and the figures of the search."""
    windows = sum(len(rows) for kind in (secrets.long, secrets.short) for rows in kind.rows)
    size = sum(len(place.data) for place in traffic.raw)
    evidence.cases(windows + len(secrets.words))
    evidence.figure(f"{windows:,} windows and {len(secrets.words)} words in {size:,} bytes")
    return traffic.look(secrets)


def test_points_leave_as_latents_alone(tmp_path: Path, evidence: Evidence) -> None:
    """There and back by the client's command: no point, weight, name or key in any form; each latent is the ODE's."""
    pair = Pair.create(tmp_path)
    tap = tap_between(pair, tmp_path / "tap")
    cloud, folder = moons(400), pair.profile.parent
    try:
        pair.start()
        np.save(folder / f"{NAME}.npy", cloud)
        ddib("translate", folder / f"{NAME}.npy", "--to", "south.example/checkerboards", "--out", folder / "out",
             "--cycle", "--evaluations", EVALUATIONS, "--profile", pair.profile)  # fmt: skip
    finally:
        pair.stop()
        tap.close()
    traffic, secrets = Traffic(tap.connections), Secrets()
    party = ServingParty(load_bundle(pair.north.config.paths.bundle), device="cpu", threads=1)
    try:
        for name, points in (
            ("cloud", cloud), ("returned cloud", np.load(folder / "out" / f"{NAME}.returned.npy")),
        ):  # fmt: skip
            secrets.sample(name, points, party.model.normalise(points))
        latents, clouds = (
            [make(moons(400, seed)) for seed in range(20, 28)]
            for make in (lambda drawn: encoded(party, drawn), party.model.normalise)
        )
        judge = Judge(secrets.arrays, {"cloud": encoded(party, cloud)}, threshold(latents, clouds))
    finally:
        party.close()
    for node in (pair.north, pair.south):
        secrets.weights(node.institution, node.config.paths.bundle / "model.safetensors")
        add_keys(secrets, node)
    for word in (NAME, "client/alice", str(tmp_path)):
        secrets.word(word, word)
    assert len(traffic.tensors) == 2
    record = json.loads((folder / "out" / f"{NAME}.json").read_text())
    # Latents and files, without the messages around them and the frames around these.
    assert record["wire_bytes"] == sum(traffic.payload.values())
    inside_tls = len(tap.to_target) + len(tap.to_source)
    layers = sum(traffic.payload.values()), sum(traffic.messages.values()), inside_tls
    evidence.figure("{:,} bytes of latents and files in {:,} of messages in {:,} inside TLS".format(*layers))
    assert [*searched(traffic, secrets, evidence), *judge.look(traffic)] == []


def encoded(party: ServingParty, points: np.ndarray) -> np.ndarray:
    """The latent that the ODE gives."""
    return party.encode(ToEncode(0, points), Leg(SolverSettings(evaluations=EVALUATIONS))).latent.data


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Opens benches, and closes them."""
    made: list[Bench] = []

    def open_one(**options: object) -> Bench:
        made.append(Bench.create(tmp_path / f"bench{len(made)}", **options))  # type: ignore[arg-type]
        return made[-1]

    yield open_one
    for bench in made:
        bench.close()


def test_guided_pictures_leave_as_latents_alone(benches: Callable[..., Bench], evidence: Evidence) -> None:
    """Classes of both sides and classifier-free guidance, there and back."""
    bench = benches(classes=("coast", "ridge"))
    shutil.rmtree(bench.pair.north.folder / "model")
    save_pictures_model(
        bench.pair.north.folder / "model", "scans", seed=1, classes=("coast", "ridge"), class_dropout=True
    )
    with bench.running(bench.pair.south), bench.running(bench.pair.north):
        assert bench.translate(source_class="coast", target_class="ridge", guidance=Guidance(3.0))
    traffic = bench.kept()
    assert len(traffic.tensors) == 2 * len(bench.files.paths)
    secrets = bench.secrets()
    judge = Judge(secrets.arrays, bench.latents(label=0), bench.threshold(label=0))
    evidence.figure(f"correlation allowed up to {judge.threshold:.2f}")
    assert [*searched(traffic, secrets, evidence), *judge.look(traffic)] == []


@pytest.mark.long
def test_a_classifier_of_the_target_changes_nothing_of_that(
    benches: Callable[..., Bench], evidence: Evidence
) -> None:
    """Guided by it: its weights stay, and what leaves the source is what left it without."""
    bench = benches()
    south = bench.pair.south
    guide = tiny_classifier(size=SIZE, normalisation=Normalisation(std=0.5))
    save_bundle(south.folder / "guide", guide.manifest, guide.state)
    south.edit('# classifier = "classifier"', 'classifier = "guide"')
    with bench.running(south), bench.running(bench.pair.north):
        assert bench.translate(target_class="1", guidance=Guidance(classifier_scale=10.0), cycle=False)
    traffic, secrets = bench.kept(), bench.secrets()
    secrets.weights("the classifier", south.folder / "guide" / "model.safetensors")
    judge = Judge(secrets.arrays, bench.latents(), bench.threshold())
    assert [*searched(traffic, secrets, evidence), *judge.look(traffic)] == []


def test_a_dicom_series_leaves_as_latents_alone(benches: Callable[..., Bench], evidence: Evidence) -> None:
    """By the client's command: no text of a header, no header's bytes, no pixel; each latent is that of a slice."""
    bench = benches()
    slices = bench.write_dicom()
    out = bench.files.folder / "out"
    with bench.running(bench.pair.south), bench.running(bench.pair.north):
        ddib("translate", bench.series, "--to", TARGET, "--out", out, "--evaluations", bench.evaluations,
             "--intensity", "values", "--profile", bench.pair.profile)  # fmt: skip
    traffic, secrets = bench.kept(), bench.secrets()
    samples = {
        name: bench.seen(item_bytes(pixels[..., None].astype(np.int16))) for name, pixels in slices.items()
    }
    for name, pixels in slices.items():
        secrets.sample(name, pixels, samples[name] / np.float32(0.5))
        noised = bench.softener.for_picture(samples[name][None] / np.float32(0.5), "south.example")
        secrets.numbers(f"softening noise of {name}", noised)
    pictures = {name: secrets.arrays[name] for name in slices}
    judge = Judge(pictures, bench.encoded(samples, bench.softener), bench.threshold())
    assert len([each for each in traffic.tensors if each.where.endswith("asked")]) == len(slices)
    evidence.figure(f"{sum('DICOM' in name for name in secrets.words) // 3} texts of DICOM headers")
    assert [*searched(traffic, secrets, evidence), *judge.look(traffic)] == []


def calibration_at(bench: Bench) -> ChannelMap:
    """The rotation that north and south have agreed on."""
    (stored,) = CalibrationStore(bench.pair.north.config.paths.calibrations).list()
    found = leg_map(stored.calibration, load_bundle(bench.pair.north.config.paths.bundle).manifest)
    assert found is not None
    return found


def skewed(seed: int, *, negative: bool = False) -> np.ndarray:
    """260 grey pictures whose every pixel is its own, mostly dark or mostly light."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (260, 1, SIZE, SIZE)).astype(np.float32)
    dark = (drawn + 1) ** 3 / 4 - 1
    return -dark if negative else dark


def test_a_calibration_and_what_is_sent_under_it(benches: Callable[..., Bench], evidence: Evidence) -> None:
    """One aggregate, one proposal, two signatures; then pictures under it: none of 520 pictures, no weight, no key."""
    bench = benches(form=PictureFormat(), calibration='["rotation"]')
    north, south = bench.pair.north, bench.pair.south
    drawn = {"north": skewed(1), "south": skewed(2, negative=True)}
    folders = {at: write(bench.files.folder / f"{NAME}-{at}", pictures) for at, pictures in drawn.items()}
    with bench.running(south), bench.running(north):
        ddib("calibrate", "publish", "--pictures", folders["south"], "--yes", "--config", south.config_path)
        said = ddib("calibrate", "--peer", TARGET, "--pictures", folders["north"], "--yes", "--config",
                    north.config_path, "--format", "json")  # fmt: skip
        shown = json.loads(said[said.index("{\n") :])
        name = shown["sha256"][:12]
        ddib("calibrate", "accept", name, "--yes", "--config", south.config_path)
        ddib("calibrate", "send", name, "--config", north.config_path)
        assert bench.translate()
    traffic, secrets = bench.kept(), bench.secrets()
    for at, folder in folders.items():
        for number, path in enumerate(sorted(folder.iterdir())):
            pixels = read_image(path).pixels
            secrets.numbers(f"picture {number} of {at}", pixels)
            secrets.numbers(f"picture {number} of {at}, in the model's units", (pixels / 127.5 - 1) / 0.5)
    secrets.word("folders", NAME)
    assert any("SignCalibration" in call.path for call in traffic.calls)
    crossed = {name.rpartition(" ")[2]: 0 for name in shown["crossed"]}
    for name, size in shown["crossed"].items():
        crossed[name.rpartition(" ")[2]] += size
    evidence.figure(
        f"of the calibration {crossed['sent']:,} bytes went out, {crossed['received']:,} came back"
    )
    rotation = calibration_at(bench)
    judge = Judge(secrets.arrays, bench.latents(calibration=rotation), bench.threshold(calibration=rotation))
    assert [*searched(traffic, secrets, evidence), *judge.look(traffic)] == []
