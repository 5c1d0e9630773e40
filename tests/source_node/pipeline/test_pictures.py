"""Pictures of classes on their way through a source node: what reaches the target, and what is kept."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from ddib_fed.data.pictures import decode_image
from ddib_fed.data.points import to_npy
from ddib_fed.latent import Latent
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.protocol.contract import guidance_to_pb
from ddib_fed.protocol.messages import ItemState
from ddib_fed.record import UNGUIDED, Guidance, Record
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from source_node.spool import SpoolPart
from source_node.store import StoredJob
from source_node.submission import choose_calibration
from tests.e2e.harness import wait_until
from tests.node.picture_examples import SIZE, noise, pictures_engine, png_bytes, to_bits
from tests.node.tiny_nodes import make_institution
from tests.protocol.examples import GuidanceTerms, PictureTerms, changed, limits_of, picture_side
from tests.protocol.examples import offer as guided
from tests.source_node.conftest import Source
from tests.source_node.scripted_target import ScriptedTarget, hang

RETURNED = Latent.from_array(np.random.default_rng(3).standard_normal((1, 1, SIZE, SIZE), dtype=np.float32))


def scan(height: int = SIZE, width: int = SIZE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(to_bits(noise(height, width), np.uint16)).save(file, "PNG")
    return file.getvalue()


def picture_target(institution) -> ScriptedTarget:
    """A target with classes of its own, which answers every latent with the same picture and the same latent."""
    made = ScriptedTarget(institution)
    made.own = picture_side(
        institution=institution.name, domain="relief", sample_shape=(1, SIZE, SIZE), size_rule="resize",
        picture=PictureTerms(low=0.0, high=255.0, bits=8), classes=3, class_names=("ridge", "delta", "coast"),
    )  # fmt: skip
    made.limits = limits_of(100, 1, 4 * SIZE * SIZE, 10_000)
    made.media_type = common_pb2.MEDIA_TYPE_PNG
    made.translation = lambda latent: png_bytes(noise(seed=9))
    made.round_trip = lambda latent: RETURNED
    return made


class Scans(Source):
    """North's node with a model of two classes that cannot do without one; its pictures are softened by 0.02."""

    def submitted(
        self,
        *,
        peer: str = "south",
        picture: bytes | None = None,
        pictures: int = 1,
        guidance: Guidance = UNGUIDED,
        classes: Sequence[tuple[str, str]] = (),
        **changes,
    ) -> str:
        """A job of one picture, or of the same several times."""
        changes["guidance"] = guidance_to_pb(guidance)
        changes["item_classes"] = [pb.ItemClasses(source_class=own, target_class=to) for own, to in classes]
        files = [picture or scan()] * pictures
        to = {"target_institution": f"{peer}.example", "target_domain": "relief"}
        asked = pb.JobHeader(**to, no_calibration=changes.get("no_calibration", False))
        choose_calibration(self.node, asked)
        changes["calibration_sha256"] = asked.calibration_sha256
        return self.submit(*files, media=common_pb2.MEDIA_TYPE_PNG, **to, **changes)

    def translated(self, **options) -> StoredJob:
        return self.ended(self.submitted(**options))


@pytest.fixture(scope="module")
def engine():
    made = pictures_engine("scans", classes=("coast", "ridge"), form=PictureFormat(high=65535.0, bits=16))
    yield made
    made.close()


@pytest.fixture
def north(tmp_path):
    return make_institution(tmp_path / "north", "north.example")


@pytest.fixture
def targets(tmp_path, north):
    """South and west, which north and they admitted."""
    made = {}
    for name in ("south", "west"):
        institution = make_institution(tmp_path / name, f"{name}.example")
        institution.admit(north)
        made[name] = picture_target(institution)
        north.admit(institution, made[name].address)
    yield made
    for target in made.values():
        target.close()


@pytest.fixture
def source(tmp_path, north, targets, engine):
    made = Scans(tmp_path / "north", north, engine)
    yield made.start()
    made.stop()


@pytest.mark.slow
def test_a_picture_is_softened_by_other_noise_for_each_peer(source, targets) -> None:
    """The two latents of a picture differ by the noise of both; the same peer gets the same latent again."""
    for peer in ("south", "west", "south"):
        assert source.translated(peer=peer, source_class="coast").state == "FINISHED"
    (_, south), (_, again), (_, west) = *targets["south"].latents, *targets["west"].latents
    assert again.sha256 == south.sha256
    # This network changes a picture little on its way: what is left of a difference is that of the noise.
    sigma = targets["south"].contract.source.soften_sigma
    assert np.std(south.data - west.data) == pytest.approx(2**0.5 * sigma, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), [(False, True), (True, False), (True, True)])
def test_slices_of_a_volume_share_their_noise_where_both_operators_allow_it(
    ours, theirs, tmp_path, north, targets, engine
) -> None:
    """Over all jobs of the volume, also of a node that was stopped; otherwise each slice has its own."""
    first, second, allowed = b"1" * 32, b"2" * 32, ours and theirs
    targets["south"].own.shared_noise = theirs
    slices = scan(), scan_with_one_other_pixel()
    jobs: list[StoredJob] = []
    for asked in (zip(slices, (first, first), strict=True), zip(slices, (second, b""), strict=True)):
        source = Scans(tmp_path / "north", north, engine, shared_noise="true" if ours else "false").start()
        jobs += [
            source.translated(source_class="coast", picture=picture, volume_sha256=volume)
            for picture, volume in asked
        ]
        source.stop()
    records = [Record.parse(job.items[0].provenance) for job in jobs]
    assert [record.shared_noise for record in records] == [allowed, allowed, allowed, False]
    a, b, c, d = (latent.data for _, latent in targets["south"].latents)
    sigma = targets["south"].contract.source.soften_sigma
    apart = pytest.approx(2**0.5 * sigma, rel=0.3)
    assert np.std(a - b) < 0.3 * sigma if allowed else np.std(a - b) == apart
    assert np.std(a - c) == apart if allowed else np.array_equal(a, c)
    assert np.std(b - d) == apart if allowed else np.array_equal(b, d)


@pytest.mark.slow
def test_a_latent_of_shared_noise_is_made_again_once_an_operator_no_longer_allows_it(
    tmp_path, north, targets, engine
) -> None:
    """It was on the disk, and its peer did not answer until both nodes had negotiated anew."""
    south = targets["south"]
    south.own.shared_noise, south.decodes = True, [hang]
    source = Scans(tmp_path / "north", north, engine, shared_noise="true").start()
    job_id = source.submitted(source_class="coast", volume_sha256=b"1" * 32)
    wait_until(lambda: source.store.get(job_id).items[0].state == ItemState.ENCODED)
    source.stop()
    south.own.shared_noise = False
    source.open(engine)
    job = source.start().ended(job_id)
    source.stop()
    assert job.state == "FINISHED"
    assert not Record.parse(job.items[0].provenance).shared_noise


def scan_with_one_other_pixel() -> bytes:
    pixels = decode_image(scan()).pixels[..., 0].copy()
    pixels[0, 0] ^= 1
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_items_of_several_classes_go_in_one_call(source, targets) -> None:
    pairs = (("coast", "ridge"), ("ridge", "1"), ("0", "delta"), ("coast", "2"))
    job = source.translated(pictures=4, classes=pairs)
    assert job.state == "FINISHED"
    south = targets["south"]
    assert south.classes == {0: 0, 1: 1, 2: 1, 3: 2}
    assert len(south.headers) == 1
    latents = {number: latent.data for number, latent in south.latents}
    for other in (2, 3):  # the same up to how many rows shared a network call
        np.testing.assert_allclose(latents[other], latents[0], atol=1e-4)
    assert np.abs(latents[1] - latents[0]).max() > 0.01
    records = [Record.parse(item.provenance) for item in job.items]
    assert [(record.source_class, record.target_class) for record in records] == list(pairs)


@pytest.mark.parametrize(
    ("terms", "changes", "reason"),
    [
        (guided(2.0), {"guidance": Guidance(2.5)}, "POLICY_DENIED"),
        (guided(2.0), {"guidance": Guidance(2.0), "target_class": ""}, "SETTINGS_INVALID"),
        (guided(2.0), {"guidance": Guidance(2.0), "cycle": True}, "SETTINGS_INVALID"),
    ],
)
def test_guidance_that_a_side_does_not_offer_costs_neither_a_call_nor_an_evaluation(
    source, targets, terms, changes, reason
) -> None:
    """More than the target allows, a kind that it has not, no class to steer to, and a cycle that cannot be closed."""
    offer(targets["south"], terms)
    calls = source.node.running_engine.executor.counters["calls"]
    job = source.translated(**{"source_class": "coast", "target_class": "delta", **changes})
    assert (str(job.state), job.error.reason) == ("FAILED", reason)
    assert (targets["south"].headers, source.node.running_engine.executor.counters["calls"]) == ([], calls)


def offer(target: ScriptedTarget, terms: GuidanceTerms | None) -> None:
    target.limits = changed(target.limits, guidance=terms)


@pytest.mark.slow
def test_a_cycle_and_a_latent_are_made_and_kept_only_where_they_were_asked_for(source, targets) -> None:
    for changes, kept in (
        ({}, set()),
        ({"keep_latent": True}, {SpoolPart.LATENT}),
        ({"cycle": True}, {SpoolPart.RETURNED}),
    ):
        job = source.translated(source_class="coast", **changes)
        assert {part for part, _ in source.store.parts(job.job_id, 0)} == {SpoolPart.TRANSLATION, *kept}
        assert targets["south"].headers[-1].round_trip == ("cycle" in changes)
        if kept == {SpoolPart.LATENT}:
            sent = targets["south"].latents[-1][1].data
            assert source.store.read_part(job.job_id, 0, SpoolPart.LATENT) == to_npy(sent)
