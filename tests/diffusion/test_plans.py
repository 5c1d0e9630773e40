"""Settings: what exists is planned, learned or public; what does not exist, or go together, is refused by name."""

import math
from dataclasses import replace

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings, decode, encode, plan
from ddib_fed.diffusion.schedule import (
    CosineSchedule,
    LearnedLegs,
    LearnedSteps,
    LinearSchedule,
    PublicLevels,
    ScheduleConfig,
    discrete_schedule,
    make_grid,
    schedule_from_config,
)
from ddib_fed.diffusion.solvers import integrate, unipc
from ddib_fed.errors import SettingsInvalid
from tests.diffusion.gaussian_data import gaussian_denoiser, gaussian_map, gaussian_samples

SCHEDULE = LinearSchedule()
START, END = SCHEDULE.level(SCHEDULE.lambda_max), SCHEDULE.level(SCHEDULE.lambda_min)
LEVELS = PublicLevels("linear", 1000, "ddim250")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (SolverSettings("euler"), "no solver"),
        (SolverSettings("unipc", 5), "no order 5"),
        (SolverSettings("unipc", 3, 10_001), "unipc takes 1 to"),
        (SolverSettings("unipc", 3, 48, "fibonacci"), "no grid"),
        (SolverSettings("unipc", 3, 48, "ddib"), "for ddim alone"),
        (SolverSettings(depth=0.0), "outside"),
        (SolverSettings(depth=float("nan")), "outside"),
        (SolverSettings("ddim", 1, 48, "integer", 0.5), "no partial depth"),
        (SolverSettings("ddim", 1, 48, "ddib", 0.5), "neither softening nor depth"),
        (SolverSettings("ddim", eta=1.5), "outside"),
        (SolverSettings("unipc", eta=0.5), "follows the ODE"),
        (SolverSettings("ddim", ancestral=True), "public code's levels"),
        (SolverSettings("ddim", levels=LEVELS), "public code's levels"),
        (SolverSettings("ddim", grid="ddib", eta=0.5, ancestral=True), "variance of its own"),
        (SolverSettings("ddim", grid="ddib", levels=LEVELS), "integer steps that a model was trained on"),
    ],
    ids=str,
)
def test_settings_that_do_not_exist_or_go_together_are_refused(settings, word):
    with pytest.raises(SettingsInvalid, match=word):
        plan(settings, SCHEDULE)


@pytest.mark.parametrize("depth", [0.3, 1.0])
@pytest.mark.parametrize("soften_sigma", [0.0, 0.02])
def test_depth_is_a_fraction_of_the_schedules_angle(depth, soften_sigma):
    """Encoding ends there and decoding starts there, softened or not; the other ends stay where they were."""
    whole = plan(SolverSettings(), SCHEDULE, soften_sigma=soften_sigma)
    steps = plan(SolverSettings(depth=depth), SCHEDULE, soften_sigma=soften_sigma)
    data, noise = whole.decode_grid.levels[-1].phi, whole.decode_grid.levels[0].phi
    assert steps.encode_grid.levels[-1].phi == pytest.approx(data + depth * (noise - data))
    assert steps.decode_grid.levels[0] == steps.encode_grid.levels[-1]
    assert steps.encode_grid.levels[0] == whole.encode_grid.levels[0]
    assert steps.decode_grid.levels[-1] == whole.decode_grid.levels[-1]
    assert len(steps.encode_grid) == len(steps.decode_grid) == 48


@pytest.mark.parametrize("drawn", [{"eta": 0.1}, {"ancestral": True, "grid": "ddib"}], ids=str)
def test_encoding_refuses_to_draw_noise_and_decoding_refuses_to_invent_it(drawn):
    """The public code asserts eta 0 in encoding; here it is an error with a next step."""
    settings, schedule = SolverSettings("ddim", evaluations=30, **drawn), discrete_schedule("linear", 1000)
    x = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(SettingsInvalid, match="encoding follows the ODE"):
        encode(x, gaussian_denoiser("v"), schedule, settings)
    with pytest.raises(SettingsInvalid, match="draws noise, and there is none"):
        decode(x, gaussian_denoiser("v"), schedule, settings)


def test_a_model_keeps_the_steps_that_it_was_trained_on():
    """Options may repeat them or leave them open; others are refused, as is `linear` between other betas."""
    given = SolverSettings("ddim", evaluations=50, grid="ddib")
    for named in (("linear", 1000), ("", 0)):
        settings = replace(given, levels=PublicLevels(*named, "50"))
        assert len(plan(settings, discrete_schedule("linear", 1000)).decode_grid) == 50
    for named in (("cosine", 0), ("linear", 4000)):
        with pytest.raises(SettingsInvalid, match="the model was trained"):
            plan(replace(given, levels=PublicLevels(*named, "50")), discrete_schedule("linear", 1000))
    for respacing, said in (("ddim250", "keeps 250, not 50"), ("ddim", "not of the form")):
        with pytest.raises(SettingsInvalid, match=said):
            plan(replace(given, levels=PublicLevels(respacing=respacing)), discrete_schedule("linear", 1000))
    own = discrete_schedule("linear", 1000, ends=(1e-3, 0.03))
    with pytest.raises(SettingsInvalid, match="noise schedule"):
        plan(SolverSettings("ddim", grid="ddib", levels=PublicLevels("linear")), own)
    with pytest.raises(SettingsInvalid, match="this one has none"):
        PublicLevels(respacing="ddim50").kept(CosineSchedule())


# Learned steps

LEARNED = SolverSettings(evaluations=12, grid="learned")


def steps(stage, evaluations=12, sigma=0.0, *, order=3, coordinates="angle"):
    start = None if sigma == 0.0 else -math.log(sigma)
    grid = make_grid(SCHEDULE, "default", evaluations, lambda_max=start)
    return LearnedSteps(
        stage, evaluations, sigma, order, coordinates, tuple(level.lam for level in grid.levels)
    )


def test_each_direction_steps_by_the_rule_that_was_learned_for_it():
    """Encoding by order 1 and decoding by order 3: a translation by the other's rule is silently worse."""
    known = LearnedLegs("south", (steps("encode", order=1), steps("decode", order=3)))
    laid, x = plan(LEARNED, SCHEDULE, learned=known), torch.ones(2, 2, dtype=torch.float64)
    legs = (laid.encoder, laid.encode_grid, 1), (laid.decoder, laid.decode_grid, 3)
    for found, grid, order in legs:
        wanted = integrate(x, unipc(grid, order=order), gaussian_denoiser())
        assert torch.equal(integrate(x, found, gaussian_denoiser()), wanted)


def test_steps_that_were_not_learned_are_refused():
    """With those that were, and the command that learns others; another depth, solver, range or size has none."""
    known = LearnedLegs("south", (steps("encode"), steps("decode"), steps("decode", 16)))
    with pytest.raises(
        SettingsInvalid, match=r"south has learned steps of 12, 16 evaluations, not of 20"
    ) as refused:
        plan(replace(LEARNED, evaluations=20), SCHEDULE, learned=known)
    hint = "--evaluations 12, or on the model's node: ddib model tune MODEL --evaluations 20"
    assert refused.value.hint == hint
    for change, words in (
        ({"depth": 0.7}, "not to a depth of 0.7"),
        ({"solver": "ddim"}, "is of unipc, not of"),
    ):
        with pytest.raises(SettingsInvalid, match=words):
            plan(replace(LEARNED, **change), SCHEDULE, learned=known)
    short = replace(steps("decode"), lams=tuple(lam + 0.01 for lam in steps("decode").lams))
    with pytest.raises(SettingsInvalid, match="the learned steps go from lambda"):
        plan(LEARNED, SCHEDULE, learned=LearnedLegs("south", (short,)))


# The legs


# Every schedule, each with both inputs of the time and with all that a network may predict.
WAYS = [
    ("linear", None, False, "lambda", "eps"),
    ("linear", 1000, True, "timestep", "x0"),
    ("cosine", None, False, "timestep", "v"),
    ("zero-terminal-snr", 1000, True, "lambda", "x0"),
]


@pytest.mark.parametrize(("name", "steps", "rescale_timesteps", "time_input", "predicts"), WAYS)
def test_both_directions_are_exact_for_every_schedule_network_and_time_input(
    name, steps, rescale_timesteps, time_input, predicts
):
    """The closed form within the solver's own error, whatever is predicted and in whichever unit the time is given."""
    schedule = schedule_from_config(ScheduleConfig(name, steps, rescale_timesteps))
    denoiser = gaussian_denoiser(predicts, time_input=time_input, schedule=schedule)
    start, end = schedule.level(schedule.lambda_max), schedule.level(schedule.lambda_min)
    x, z = gaussian_samples(64, start), gaussian_samples(64, end, seed=1)
    for evaluations, encoding, decoding in ((48, 1.5e-4, 3.5e-5), (100, 7.5e-6, 2e-6)):
        settings = SolverSettings(evaluations=evaluations)
        found = encode(x, denoiser, schedule, settings) - gaussian_map(x, start, end)
        assert float(found.abs().max()) <= encoding
        found = decode(z, denoiser, schedule, settings) - gaussian_map(z, end, start)
        assert float(found.abs().max()) <= decoding
