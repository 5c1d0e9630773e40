"""A party lets nothing in and nothing out that it did not check, beside its caller as on its caller's thread.

Each leg is in the basis of the calibration, by the encoder and the steps that were asked for.
"""

import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import make_grid
from ddib_fed.diffusion.solvers import integrate, unipc
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.local_party import LocalParty, ServingParty, open_party
from ddib_fed.engine.model import DomainModel, check_decoding, check_encoding
from ddib_fed.engine.party import Control, Failed, Leg, ToDecode, ToEncode, ToTranslate, translate
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    NotFinite,
    NotReady,
    SettingsInvalid,
    ShapeMismatch,
)
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.sidecars import Tuned
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.networks.config import MlpConfig
from ddib_fed.networks.spectrum import cosines, spectrum_of
from ddib_fed.networks.spectrum import pictures as from_cosines
from ddib_fed.record import Guidance
from tests.engine.stages import translate_array
from tests.models.examples import distilled, tuned_leg
from tests.node.tiny_nodes import decode, encode, gaussian, tiny_bundle
from tests.runs.tiny_models import pictures, tiny
from tests.source_node.conftest import wait_until

SETTINGS = SolverSettings(evaluations=8)


@pytest.fixture
def beside():
    party = open_party(tiny_bundle())
    made = LocalParty(party.model, Batcher(party.model, rows=8))
    yield made
    made.close()


def points(*sizes: int) -> list[ToEncode]:
    return [ToEncode(number, gaussian(size, number)) for number, size in enumerate(sizes)]


# What goes in and what comes out


def test_what_is_not_finite_is_refused_both_ways(engine) -> None:
    """One bad number among good ones is found, and counted; 3e38 overflows in units of a deviation of 0.01."""
    bad = gaussian(50)
    bad[7, 1] = np.nan
    with pytest.raises(NotFinite) as refused:
        encode(engine, bad, SETTINGS)
    assert refused.value.facts == {"not_finite": "1"}
    with pytest.raises(NotFinite):
        decode(engine, Latent(bad, bytes(32)), SETTINGS)
    small = open_party(tiny_bundle(normalisation=Normalisation(std=0.01)))
    with pytest.raises(NotFinite):
        encode(small, np.full((4, 2), 3e38, np.float32), SETTINGS)


def test_a_model_that_answers_nan_never_becomes_ready() -> None:
    """The warm-up finds it, and leaves no thread behind."""
    bundle = tiny_bundle()
    bundle.state["leave.bias"].fill_(float("nan"))
    threads = {t.name for t in threading.enumerate()}
    with pytest.raises(NotReady, match="NaN"):
        ServingParty(bundle, device="cpu", threads=1)
    assert {t.name for t in threading.enumerate()} <= threads


# Streams


def test_items_of_any_size_come_in_order_and_as_on_the_calling_thread(beside) -> None:
    """Among them one that is refused before, and one that is larger than a call."""
    items = points(3, 1, 30, 2, 5)
    items[3] = replace(items[3], samples=np.zeros((2, 3), np.float32))
    alone = LocalParty(beside.model, Batcher(beside.model, rows=8, beside=False))
    found = [list(party.encode_each(items, Leg(SETTINGS))) for party in (beside, alone)]
    for one, other in zip(*found, strict=True):
        assert one.number == other.number
        if one.number == 3:
            assert isinstance(one, Failed)
            assert isinstance(one.error, ShapeMismatch)
        else:
            np.testing.assert_allclose(one.latent.data, other.latent.data, atol=1e-5)
    assert [each.number for each in found[0]] == list(range(5))


def test_known_latents_take_their_place_in_the_order(beside) -> None:
    items = points(3, 1, 2, 5)
    before = beside.encode(items[1], Leg(SETTINGS))
    calls = beside.executor.counters["rows"]
    known = {1: before, 3: replace(before, number=3)}
    found = list(beside.encode_each(items, Leg(SETTINGS), known=lambda item: known.get(item.number)))
    assert [each.number for each in found] == [0, 1, 2, 3]
    assert found[1] is before
    assert beside.executor.counters["rows"] - calls == 8 * (3 + 2)


def test_cancelling_ends_a_stream_at_the_next_step(beside) -> None:
    """With the reason that was given, whatever is still in flight."""
    control = Control()

    def stop(number: int, stage: str, done: int, of: int) -> None:
        if number == 1:
            control.cancel(Draining())

    leg = Leg(SolverSettings(evaluations=500), control=control, on_step=stop)
    with pytest.raises(Draining):
        list(beside.encode_each(points(*[8] * 50), leg))
    with pytest.raises(Draining):
        list(beside.encode_each(points(1), Leg(SETTINGS, control=control)))
    control.cancel(Cancelled())
    assert isinstance(control.error, Draining), "the first reason stays"


def test_a_stream_takes_items_ahead_of_its_reader_and_ends_with_it(beside) -> None:
    """So many rows are in flight; closing it closes the items, on the thread that takes them."""
    taken, closed = [], []

    def items():
        try:
            for item in points(*[8] * 30):
                taken.append(item.number)
                yield item
        finally:
            closed.append(threading.current_thread().name)

    stream = beside.encode_each(items(), Leg(SETTINGS))
    assert next(stream).number == 0
    wait_until(lambda: len(taken) >= 3)
    time.sleep(0.02)
    assert len(taken) <= 4
    stream.close()
    assert closed == ["feeder"]


def test_a_deadline_or_cancelling_wakes_a_reader_that_waits_for_an_item(beside) -> None:
    for control, error in ((Control(time.monotonic() + 0.05), DeadlineExceeded), (Control(), Draining)):
        go_on = threading.Event()

        def items(go_on=go_on):
            go_on.wait(10)
            yield ToDecode(0, Latent.from_array(gaussian(1)))

        threading.Timer(0.05, control.cancel, (Draining(),)).start()
        # The item is let through once the reading has ended, however late the reader wakes.
        stream = beside.decode_each(items(), Leg(SETTINGS, control=control), end=go_on.set)
        with pytest.raises((error, Draining)):
            next(stream)


# Translations

LEG = Leg(SolverSettings(evaluations=2, depth=0.5))


@pytest.fixture(scope="module")
def classy() -> list[LocalParty]:
    """Of three classes, and one for none."""
    return [
        open_party(tiny(name, seed=seed, num_classes=3, class_dropout=True), together=1)
        for seed, name in enumerate(("north", "south"))
    ]


def test_a_cycle_goes_to_the_target_class_and_comes_back_to_the_source_class(classy) -> None:
    """As its legs do one by one; guidance is of decoding alone."""
    (source, target), x = classy, pictures(1)
    leg = replace(LEG, round_trip=True, guidance=Guidance(guidance=2.0))
    (found,) = translate(source, target, [ToTranslate(0, x, 0, 2)], leg)
    latent = source.encode(ToEncode(0, x, 0), LEG).latent
    there = target.decode(ToDecode(0, latent, 2), leg)
    back = source.decode(ToDecode(0, there.again.latent, 0), replace(leg, round_trip=False, returning=True))
    np.testing.assert_allclose(found.encoded.latent.data, latent.data, atol=1e-5)
    np.testing.assert_allclose(found.decoded.samples, there.samples, atol=1e-5)
    np.testing.assert_allclose(found.back.samples, back.samples, atol=1e-5)
    assert np.abs(target.decode(ToDecode(0, latent, 0), leg).samples - there.samples).max() > 0.01


@pytest.mark.parametrize("bad", [0, 2])
def test_an_item_that_fails_is_told_wherever_it_stands(classy, bad: int) -> None:
    """Also behind the last that is translated: no result is silently missing."""
    items = [ToTranslate(n, pictures(1, size=3 if n == bad else 8, seed=n), 0, 1) for n in range(3)]
    outcomes = list(translate(*classy, items, LEG))
    assert [each.number for each in outcomes if isinstance(each, Failed)] == [bad]
    done = {each.item.number for each in outcomes if not isinstance(each, Failed)}
    assert done == {0, 1, 2} - {bad}


# Calibrations

FEW = SolverSettings("unipc", 3, 6)


def turned(sign=1.0):
    """A random rotation of three channels; with sign -1 it mirrors, too."""
    q, r = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= sign * np.linalg.det(q)
    return ChannelMap(rotation=tuple(map(tuple, q.tolist())))


@pytest.fixture(scope="module")
def coloured():
    return [
        open_party(tiny(name, seed=seed, channels=3, soften_sigma=0.02))
        for name, seed in (("north", 1), ("south", 2))
    ]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_calibrated_latent_is_the_plain_one_rotated(coloured, sign):
    """With its softening; and what the target makes of it is what it makes of that latent, in its own basis."""
    x, calibration, model = pictures(2, channels=3), turned(sign), coloured[1].model
    plain, calibrated = (
        translate_array(x, *coloured, ArraySettings(FEW, calibration=each)) for each in (None, calibration)
    )
    assert np.allclose(calibrated.latent, calibration.apply(plain.latent), atol=2e-5)
    assert np.abs(calibrated.latent - plain.latent).max() > 0.1
    again = integrate(torch.from_numpy(calibrated.latent.copy()), model.plan(FEW).decoder, model.plain)
    assert np.allclose(calibrated.translated, np.clip(model.denormalise(again.numpy()), -1, 1), atol=1e-5)


@pytest.mark.slow
def test_guidance_is_inside_the_rotation():
    """What guides, and what clips, sees the model's own basis."""
    model = DomainModel(tiny(channels=3, num_classes=3, class_dropout=True))
    guidance, calibration = Guidance(guidance=2.0, clip=True), turned()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    level, label = model.plan(FEW).decoder.levels[0], model.condition(model.class_rows(1, 1, guidance))
    with torch.no_grad():
        plain = model.denoiser(guidance)(model.out_of_basis(x, calibration), level, label)
        found = model.denoiser(guidance, calibration)(x, level, label)
    torch.testing.assert_close(found, model.into_basis(plain, calibration), atol=1e-5, rtol=1e-5)


def test_calibrations_that_a_leg_cannot_have_are_refused(coloured):
    curve, grey = ChannelMap(quadratic=((0.0, 1.0, 0.1),)), ChannelMap(rotation=((-1.0,),))
    with pytest.raises(SettingsInvalid, match="only a rotation") as refused:
        Leg(calibration=curve)
    assert "--calibration" in refused.value.hint
    some = open_party(tiny_bundle())
    with pytest.raises(SettingsInvalid, match="model of points"):
        some.encode(ToEncode(0, gaussian(4)), Leg(calibration=turned()))
    with pytest.raises(SettingsInvalid, match="1 channels, and pictures of north have 3"):
        translate_array(pictures(1, channels=3), *coloured, ArraySettings(FEW, calibration=grey))


# A share of the network

MIXED = replace(FEW, share=0.5)


def spectral(name, seed, soften_sigma=0.0):
    """A tiny model with a mean and a spectrum as pictures have them: coarse structure varies most."""
    plain = tiny(name, seed=seed, channels=3, soften_sigma=soften_sigma, spectral=True)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.arange(8.0)
    logs = 2.0 - 0.5 * torch.hypot(coarse[:, None], coarse) + 0.3 * torch.randn(3, 8, 8, generator=generator)
    mean = 0.2 * torch.randn(3, 8, 8, generator=generator)
    state = {**plain.state, "spectrum.mean": mean, "spectrum.log_variance": logs}
    return make_bundle(plain.manifest, state)


@pytest.fixture(scope="module")
def whitened():
    return [open_party(spectral(*each)) for each in (("north", 1), ("south", 2))]


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.75, 0.0])
def test_a_cycle_comes_back_by_the_same_share(whitened, share):
    """The target encodes its translation by its network; of scenes tile by tile, under a calibration too."""
    x = 0.8 * pictures(2, channels=3)
    settings = SolverSettings("unipc", 3, 24, share=share, temperature=0.9)
    found = translate_array(x, *whitened, ArraySettings(settings, cycle=True))
    assert np.abs(found.back - x).max() < 0.02
    sides = [open_party(party.model.bundle.of_scenes(12, 16)) for party in whitened]
    scene = np.tile(x[:1], (1, 1, 2, 2))[:, :, :12, :16]
    found = translate_array(scene, *sides, ArraySettings(settings, cycle=True, calibration=turned()))
    assert found.latent.shape == scene.shape
    assert np.abs(found.back - scene).max() < 0.05


@pytest.mark.parametrize("share", [0.75, 0.0])
def test_a_share_lies_on_the_line(whitened, share):
    """Between the estimate of v by the network and that of Gaussian pictures of its mean and spectrum."""
    model = whitened[0].model
    x, level = torch.from_numpy(pictures(2, channels=3)), model.bundle.schedule.level(0.5)
    network, mixed = (model.denoiser(share=each)(x, level) for each in (1.0, share))
    spectrum = spectrum_of(model.plain.network)
    mean, variance = spectrum.mean, spectrum.log_variance.exp()
    total = level.alpha**2 * variance + level.sigma**2
    # Of Gaussian x0, E[x0 | x] and E[eps | x] are linear in x, frequency by frequency.
    white = cosines(x - level.alpha * mean) / total
    x0 = mean + from_cosines(level.alpha * variance * white)
    linear = level.alpha * from_cosines(level.sigma * white) - level.sigma * x0
    assert torch.allclose(mixed, share * network + (1 - share) * linear, atol=1e-5)
    assert float((network - linear).abs().max()) > 0.01


def test_the_target_scales_a_latent_and_what_comes_back_is_not_scaled(whitened):
    leg, latent = (
        Leg(replace(FEW, temperature=0.8)),
        np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32),
    )
    cool, scaled = (
        whitened[1].decode(ToDecode(0, Latent.from_array(z)), each).samples
        for z, each in ((latent, leg), (np.float32(0.8) * latent, Leg(FEW, returning=True)))
    )
    np.testing.assert_array_equal(cool, scaled)
    back = whitened[1].decode(ToDecode(0, Latent.from_array(latent)), replace(leg, returning=True)).samples
    assert np.abs(back - cool).max() > 0.01
    for wrong in ({"temperature": 0.79}, {"temperature": 1.01}, {"temperature": 0.9, "depth": 0.7}):
        with pytest.raises(SettingsInvalid):
            whitened[1].model.plan(replace(FEW, **wrong))


def test_a_share_that_a_model_does_not_have_is_refused(whitened):
    """Of the source: the target needs no spectrum."""
    plain = open_party(tiny("plain", channels=3))
    with pytest.raises(SettingsInvalid, match="plain has no mean and spectrum") as caught:
        translate_array(pictures(1, channels=3), plain, whitened[1], ArraySettings(MIXED))
    assert "--share 1" in (caught.value.hint or "")
    few = SolverSettings(evaluations=2, share=0.5)
    translate_array(pictures(1, channels=3), whitened[1], plain, ArraySettings(few))
    with pytest.raises(SettingsInvalid, match="outside"):
        plain.model.plan(replace(FEW, share=1.5))
    with pytest.raises(SettingsInvalid, match="cannot be guided"):
        whitened[0].model.check_share(0.5, Guidance(guidance=2.0))


# Learned steps, and those of distilled models

LEARNED = SolverSettings(evaluations=6, grid="learned")
FLOW_MAP = SolverSettings("flow-map", evaluations=4)


def tuned(bundle, name="uniform-lambda"):
    """With whitened steps of order 2 in both directions, on a named grid."""
    legs = []
    for stage, sigma in (("encode", 0.1), ("decode", 0.0)):
        start = -math.log(sigma) if sigma else None
        lams = tuple(level.lam for level in make_grid(bundle.schedule, name, 6, lambda_max=start).levels)
        legs.append(tuned_leg(stage, 6, sigma=sigma, order=2, coordinates="spectrum", lams=lams))
    weights = bundle.manifest.weights_sha256
    return replace(bundle, tuned=Tuned(weights_sha256=weights, legs=tuple(legs)))


@pytest.fixture(scope="module")
def learned():
    return [
        open_party(tuned(tiny(name, seed=seed, channels=3, spectral=True, soften_sigma=0.1), grid))
        for name, seed, grid in (("north", 1, "uniform-lambda"), ("south", 2, "default"))
    ]


def test_each_side_follows_the_learned_steps_of_its_own_model(learned):
    """The latent decoded by hand along the target's steps is the translation; under a calibration all is rotated."""
    x, model, calibration = 0.9 * pictures(2, channels=3), learned[1].model, turned()
    found = translate_array(x, *learned, ArraySettings(LEARNED, cycle=True))
    grid = make_grid(model.bundle.schedule, "default", 6).reversed()
    steps = unipc(grid, order=2, whitened=True)
    by_hand = model.denormalise(model.integrate(torch.from_numpy(found.latent.copy()), steps).numpy())
    assert np.allclose(found.translated, np.clip(by_hand, -1, 1), atol=1e-5)
    assert found.back.shape == x.shape
    rotated = translate_array(x, *learned, ArraySettings(LEARNED, calibration=calibration))
    assert np.allclose(rotated.latent, calibration.apply(found.latent), atol=1e-4)
    with pytest.raises(SettingsInvalid, match="whitened by its spectrum"):
        DomainModel(tiny(channels=3)).denoiser(whitened=True)


@pytest.mark.parametrize("kind", ["learned", "distilled"])
def test_further_solvers_are_merged_with_other_work(learned, kind):
    """Whitened steps, and steps of a flow map of several lengths: each ends where it ends alone."""
    model, first = learned[0].model, LEARNED
    if kind == "distilled":
        model, first = DomainModel(distilled(MlpConfig(width=8, blocks=1, flow_map=True))), FLOW_MAP
    batcher = Batcher(model, rows=64)
    settings = [first, replace(first, evaluations=2) if kind == "distilled" else first, SETTINGS]
    generator = torch.Generator().manual_seed(1)
    work = [
        Trajectory("decode", torch.randn(rows, *model.sample_shape, generator=generator), Leg(each))
        for rows, each in zip((3, 1, 2), settings, strict=True)
    ]
    for each, future in zip(work, [batcher.submit(each) for each in work], strict=True):
        assert torch.allclose(future.result(60).x, each.on(model).run(), atol=1e-4)
    batcher.close()


def test_what_a_step_of_a_distilled_model_does_not_know_is_refused():
    """A share below 1 and clipping are no part of the ODE that was distilled."""
    model = DomainModel(distilled(MlpConfig(width=8, blocks=1, flow_map=True)))
    check_encoding(model, FLOW_MAP, None)
    check_decoding(model, FLOW_MAP, None)
    with pytest.raises(SettingsInvalid, match=r"a share of 0\.5 is no part of it"):
        check_encoding(model, replace(FLOW_MAP, share=0.5), None)
    with pytest.raises(SettingsInvalid, match="clipping is no part of it"):
        check_decoding(model, FLOW_MAP, None, Guidance(clip=True))
    check_decoding(model, SolverSettings(), None, Guidance(clip=True))
