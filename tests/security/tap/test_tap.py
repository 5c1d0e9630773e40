"""Only latents cross: whole runs over a tap, and builds that leak on purpose, which it catches."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from ddib_fed import Profile, Request
from ddib_fed.data.fitting import fit_picture
from ddib_fed.data.pictures import decode_image
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.gate import Softener, load_key
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.errors import DdibError
from ddib_fed.metrics import picture_rule
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.record import Settings
from ddib_fed.testing import ddib
from tests.conftest import Evidence
from tests.e2e.harness import moons, two_nodes
from tests.e2e.processes import PLANT
from tests.node.picture_examples import SECRET, save_pictures_model, write_files
from tests.security.tap import leaks
from tests.security.tap.relay import tap_between
from tests.security.tap.search import Found, Secrets, Traffic, judged

pytestmark = [pytest.mark.e2e, pytest.mark.promise("latents")]

NAME = "patient-Ada-Lovelace"
CAUGHT = {
    leaks.pixels_in_low_bytes: ("Ada-png, raw as uint8", "byte 0 of 4"),
    leaks.latent_with_picture: ("a latent that no picture has", "Decode asked"),
    leaks.permuted_picture: ("100% of the numbers of Ada-png", "Decode asked"),
    leaks.pixels_behind_chunks: ("an unknown field", "Decode asked"),
    leaks.picture_in_metadata: ("as uint8", "header trace (base64 png)"),
    leaks.exif_in_metadata: ("metadata in utf-16-le", "header trace-bin"),
    leaks.description_in_contract: ("metadata in utf-8", "ContractSide.class_names"),
    leaks.seed_in_request_id: ("north.example softening key", "DecodeHeader.request_id (hex)"),
    leaks.key_in_metadata: ("north.example leaf.key", "header trace"),
    leaks.weights_behind_translations: ("weights of south.example", "Decode answered"),
}
"""Of each leak: what must be found, and where."""


def searched(traffic: Traffic, secrets: Secrets, evidence: Evidence) -> list[Found]:
    """What is in it, and the figures of the search."""
    windows, cases = secrets.size()
    size = sum(len(way.data) for call in traffic.calls for way in (call.asked, call.answered))
    evidence.cases(cases)
    evidence.figure(f"{windows:,} windows and {cases - windows} words in {size:,} bytes")
    return traffic.look(secrets)


def test_points_leave_as_latents_alone(tmp_path: Path, evidence: Evidence) -> None:
    """There and back by the client's command: no point, weight, name or key in any form; each latent is the ODE's."""
    pair = two_nodes(tmp_path)
    tap = tap_between(pair, tmp_path / "tap")
    cloud, folder = moons(400), pair.profile.parent
    with contextlib.closing(tap), pair:
        np.save(folder / f"{NAME}.npy", cloud)
        ddib("translate", folder / f"{NAME}.npy", "--to", "south.example/checkerboards", "--out", folder / "out",
             "--cycle", "--evaluations", 16, "--profile", pair.profile)  # fmt: skip
    traffic, secrets = Traffic(tap.calls), Secrets()
    with contextlib.closing(
        ServingParty(load_bundle(pair.source.config.paths.bundle), device="cpu", threads=1)
    ) as party:
        returned = np.load(folder / "out" / f"{NAME}.returned.npy")
        for name, points in (("cloud", cloud), ("returned cloud", returned)):
            secrets.sample(name, points, party.model.normalise(points))
        leg = Leg(SolverSettings(evaluations=16))
        expected = {"cloud": party.encode(ToEncode(0, cloud), leg).latent.data}
    for node in pair.both:
        secrets.node(node)
    for word in (NAME, f"client/{Profile.load(pair.profile).name}", str(tmp_path)):
        secrets.word(word, word)
    assert len(traffic.tensors) == 2
    record = json.loads((folder / "out" / f"{NAME}.json").read_text())
    # Latents and files, without the messages around them and the frames around these.
    assert record["wire_bytes"] == sum(traffic.payload.values())
    assert [*searched(traffic, secrets, evidence), *judged(traffic, secrets.arrays, expected)] == []


class Bench:
    """North's scans become south's relief; everything between the two nodes goes through the tap."""

    def __init__(self, folder: Path) -> None:
        save_pictures_model(folder / "scans", "scans", seed=1)
        form = PictureFormat(low=-1000.0, high=2000.0, bits=16)
        save_pictures_model(folder / "relief", "relief", seed=2, form=form)
        self.pair = two_nodes(folder, folder / "scans", folder / "relief")
        self.tap = tap_between(self.pair, folder / "tap")
        (folder / "in").mkdir()
        self.files = write_files(folder / "in")

    def traffic(self, leak: Callable[[], None] | None = None) -> Traffic:
        """What crosses in one run with all files and the way back, by nodes of which one leaks, or none."""
        before, leaking = (
            len(self.tap.calls),
            "target" if leak is leaks.weights_behind_translations else "source",
        )
        planted = {PLANT: f"tests.security.tap.leaks:{leak.__name__}"} if leak else {}
        self.pair.source.environment = planted if leaking == "source" else {}
        self.pair.target.environment = planted if leaking == "target" else {}
        try:
            with self.pair, self.pair.client(patience_s=0 if leak else 60) as client:
                settings = Settings(evaluations=12)
                asked = Request(settings, cycle=True)
                job = client.submit(self.files.paths, "south.example/relief", asked)
                list(client.results(job.job_id))
                client.get(job.job_id).require_finished("source north.example")
        except DdibError:
            assert leak is not None
        return Traffic(self.tap.calls[before:])

    @cached_property
    def known(self) -> tuple[Secrets, dict[str, np.ndarray]]:
        """Everything of these files, models and keys, and the latents (1, C, H, W) that north may send of the files.

        The latents are computed again, from the bundle, the files and the node's noise.
        """
        config = self.pair.source.config
        bundle, found, latents = load_bundle(config.paths.bundle), Secrets(), {}
        softener = Softener(load_key(config.paths.softening_key), bundle.digest)
        rule, leg = picture_rule(bundle.manifest), Leg(SolverSettings(evaluations=12))
        with contextlib.closing(ServingParty(bundle, device="cpu", threads=1)) as party:
            for path in self.files.paths:
                name, content = path.stem, path.read_bytes()
                samples = fit_picture(decode_image(content), rule).samples[None]
                units = bundle.manifest.normalisation.apply(samples)
                found.sample(name, decode_image(content).pixels, units[0])
                found.numbers(
                    f"{name}, fitted, as pixels", np.rint((samples[0] + 1) * 127.5).astype(np.uint8)
                )
                found.file(f"file {path.name}", content)
                found.word(f"name {name}", name)
                found.numbers(f"softening noise of {name}", softener.for_picture(samples, "south.example"))

                def noise(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
                    return softener.for_picture(picture, "south.example", shape)

                asked = ToEncode(0, samples, None, noise)
                latents[name] = party.encode(asked, leg).latent.data
        for node in self.pair.both:
            found.node(node)
        for name, text in {
            "metadata": SECRET,
            "client": f"client/{Profile.load(self.pair.profile).name}",
            "folder": str(self.files.folder),
        }.items():
            found.word(name, text)
        return found, latents


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ddib-tap-") as folder:
        made = Bench(Path(folder))
        yield made
        made.tap.close()


def test_the_real_build_leaks_nothing_and_the_tap_sees_what_crosses(bench: Bench, evidence: Evidence) -> None:
    """Every byte, stream, field and header of a whole run with pictures; each latent is there in full."""
    honest = bench.traffic()
    secrets, expected = bench.known
    sent = [tensor for tensor in honest.tensors if tensor.where.endswith("asked")]
    assert len(sent) == len(bench.files.paths)
    for latent in expected.values():
        assert min(float(np.abs(tensor.values - latent).max()) for tensor in sent) < 1e-4
    assert [*searched(honest, secrets, evidence), *judged(honest, secrets.arrays, expected)] == []


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(leak, id=leak.__name__, marks=[pytest.mark.long] if number % 4 else [])
        for number, leak in enumerate(CAUGHT)
    ],
)
def test_a_build_that_leaks_is_caught(bench: Bench, leak: Callable[[], None], evidence: Evidence) -> None:
    """The same run by a node that leaks on purpose: the tap names what crossed and where."""
    traffic = bench.traffic(leak)
    secrets, expected = bench.known
    found = [*traffic.look(secrets), *judged(traffic, secrets.arrays, expected)]
    what, where = CAUGHT[leak]
    assert any(what in each.what and where in each.where for each in found), found
    evidence.figure(f"{leak.__name__}: {(leak.__doc__ or '').strip()}")
