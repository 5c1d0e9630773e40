"""What runs a network in its place answers as the network does, or is not let in."""

import threading
from itertools import pairwise

import pytest
import torch

from ddib_fed.diffusion.denoiser import network_times
from ddib_fed.diffusion.running import Plain
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.shipped import pretrained
from ddib_fed.networks.mlp import ResidualMLP
from ddib_fed.networks.placed.buckets import Bucketed, buckets_up_to
from ddib_fed.networks.placed.eager import MOST_LEVELS, MOST_TABLES, Remembering
from ddib_fed.networks.placed.placement import Probe, placed
from ddib_fed.networks.unet import UNet
from tests.networks.placed.recorded import recorded

POINTS = Probe((2,), (0.5, -1.5))
MAKERS = {"graphs": recorded, "compile": recorded}


def shaken(network):
    """`network` with weights none of which is zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(requires_grad=False)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def points():
    return shaken(ResidualMLP(width=16, blocks=2, embedding=8, features=8))


def pictures(**further):
    settings = {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 1}
    blocks = {"num_res_blocks": 1, "attention_resolutions": (1,), "channel_mult": (1,), "norm_groups": 8}
    return shaken(UNet(**settings | blocks | further, use_scale_shift_norm=True))


def asked(shape, count, rows=None, extra=None):
    times = torch.tensor([0.7] if rows is None else [0.7, -2.0, 1.1])
    return torch.randn(count, *shape), times, rows, extra or {}


KINDS = {
    "points": (lambda: shaken(ResidualMLP(width=16, blocks=2, embedding=8, features=8)), (2,), {}),
    "flow map": (
        lambda: shaken(ResidualMLP(width=16, blocks=2, embedding=8, features=8, flow_map=True)),
        (2,),
        {"to": torch.tensor([0.1, -3.0, 0.4])},
    ),
    "pictures": (lambda: pictures(spectral=True, global_mean=True), (1, 8, 8), {}),
    "classes": (lambda: pictures(num_classes=3), (1, 8, 8), {"y": torch.tensor([2, 0, 1, 1, 0])}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_answers_as_the_network_whatever_was_asked_before(kind):
    """Of each number of rows and of levels, in any order; only the buffers carry what is asked."""
    make, shape, extra = KINDS[kind]
    network = make()
    run, plain = Bucketed(Plain(network), network, recorded, (2, 8)), Plain(network)
    three = torch.tensor([2, 0, 1, 1, 0])
    for count, rows in ((5, three), (1, None), (5, None), (3, three[:3]), (5, three), (1, None)):
        told = {name: value[:count] if name == "y" else value for name, value in extra.items()}
        if rows is None and "to" in told:
            told["to"] = told["to"][:1]
        question = asked(shape, count, rows, told)
        assert torch.allclose(run(*question), plain(*question), atol=1e-5)
    assert (run.made, run.replayed, run.called) == (2, 6, 0)


def test_an_answer_is_not_overwritten_by_the_next_call(points):
    run = Bucketed(Plain(points), points, recorded, (4,))
    question = asked((2,), 3)
    first = run(*question)
    kept = first.clone()
    run(*asked((2,), 4))
    assert torch.equal(first, kept)


def test_large_batches_and_calls_under_gradients_call_the_network(points):
    run = Bucketed(Plain(points), points, recorded, (1, 4))
    large, small = asked((2,), 5), asked((2,), 2)
    assert torch.equal(run(*large), Plain(points)(*large))
    with torch.enable_grad():
        x = small[0].requires_grad_()
        run(x, *small[1:]).sum().backward()
    assert float(x.grad.abs().max()) > 0.0
    assert (run.made, run.replayed, run.called) == (0, 0, 2)


def test_threads_that_share_the_buffers_get_their_own_answers(points):
    run, plain = Bucketed(Plain(points), points, recorded, (8,)), Plain(points)
    wrong = []

    def ask():
        for _ in range(20):
            with torch.no_grad():
                question = asked((2,), 6)
                if not torch.allclose(run(*question), plain(*question), atol=1e-5):
                    wrong.append(question)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_buckets_end_at_the_most_and_pad_by_less_than_half():
    sizes = buckets_up_to(128)
    assert sizes == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    assert buckets_up_to(20)[-1] == 20
    assert all(later <= 1.5 * (before + 1) for before, later in pairwise(sizes))


def forgetful(network, buffers):
    first = torch.full_like(buffers.times, POINTS.times[0])
    return lambda: network(buffers.x, first)


def failing(network, buffers):
    raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


def test_what_answers_otherwise_is_refused_by_name(points):
    makers = {"graphs": forgetful}
    with pytest.raises(SettingsInvalid, match=r"compile = 'graphs' cannot run .* differ by"):
        placed(points, "graphs", POINTS, makers)


def test_what_cannot_be_captured_is_refused_with_torchs_own_words(points):
    with pytest.raises(
        SettingsInvalid, match=r"RuntimeError: operation not permitted when stream is capturing$"
    ):
        placed(points, "compile", POINTS, {"compile": failing})


def test_graphs_are_refused_where_there_is_no_gpu(points):
    with pytest.raises(SettingsInvalid, match="CUDA graphs need a CUDA device, and the network is on cpu"):
        placed(points, "graphs", POINTS)
    with pytest.raises(SettingsInvalid, match="there is no compile 'fast'"):
        placed(points, "fast", POINTS)


@pytest.mark.parametrize("name", ["none", "auto"])
def test_on_a_cpu_the_network_is_called(points, name):
    assert isinstance(placed(points, name, POINTS, MAKERS), Remembering)


@pytest.mark.parametrize("kind", ["points", "flow map", pytest.param("classes", marks=pytest.mark.slow)])
def test_the_check_lets_in_what_is_right(kind):
    make, shape, extra = KINDS[kind]
    probe = Probe(shape, (0.5, -1.5), 3 if "y" in extra else 0, "to" in extra)
    run = placed(make(), "graphs", probe, MAKERS)
    assert isinstance(run, Bucketed)
    assert run.replayed == 4


@pytest.mark.parametrize("domain", ["moons", "satellite"])
def test_what_is_remembered_of_a_level_changes_no_answer(domain):
    """The second call at a level, for which nothing of it is computed, answers as the first and as merged rows."""
    bundle = pretrained(domain)
    denoiser = bundle.denoiser()
    levels = bundle.schedule.levels(torch.tensor([0.5, -1.5]))
    x = torch.randn(3, *bundle.manifest.sample_shape)  # more than `FEW_ROWS`
    first = [denoiser(x, level) for level in levels]
    again = [denoiser(x, level) for level in levels]
    plain = [Plain(denoiser.network)(x, told, None, {}) for told in times_of(bundle, levels)]
    merged = denoiser.evaluate_merged(torch.cat([x, x]), levels, [3, 3])
    for found, same, other in zip(first, again, plain, strict=True):
        assert torch.equal(found, same)
        assert torch.equal(found, other)
    assert torch.allclose(torch.cat(first), merged, atol=1e-4)


def times_of(bundle, levels):
    table = torch.tensor(levels, dtype=torch.float64)
    return network_times(table, bundle.manifest.time_input).float()[:, None]


@pytest.mark.parametrize("domain", ["moons", "satellite"])
def test_what_is_remembered_of_a_table_of_levels_changes_no_answer(domain):
    """Rows of requests at different steps point into the levels of all steps."""
    bundle = pretrained(domain)
    network, shape = bundle.denoiser().network, bundle.manifest.sample_shape
    levels = bundle.schedule.levels(torch.linspace(4.0, -4.0, 24))
    times, run = times_of(bundle, levels).flatten(), Remembering(network)
    for seed in range(3):
        torch.manual_seed(seed)
        x, rows = torch.randn(5, *shape), torch.randint(len(times), (5,))
        torch.testing.assert_close(run(x, times, rows, {}), Plain(network)(x, times, rows, {}))


def test_tables_of_large_spectra_are_not_remembered():
    """A level of a large picture takes megabytes."""
    assert pictures(spectral=True).remembers_tables
    assert not pictures(spectral=True, image_size=128).remembers_tables


def test_few_levels_are_remembered(points):
    run = Remembering(points)
    for step in range(MOST_LEVELS + 5):
        run(torch.zeros(1, 2), torch.tensor([float(step)]), None, {})
    assert len(run._kept) == MOST_LEVELS


def test_a_table_in_use_is_remembered_however_many_are_asked_once(points):
    """Solvers without a recurrence ask at a table of their own at each step."""
    run = Remembering(points)
    used, x, rows = torch.tensor([1.0, 2.0]), torch.zeros(2, 2), torch.tensor([0, 1])
    run(x, used, rows, {})
    first = run._kept_tables[id(used)][1]
    for step in range(2 * MOST_TABLES):
        run(x, torch.tensor([3.0, float(step)]), rows, {})
        run(x, used, rows, {})
    assert run._kept_tables[id(used)][1] is first
    assert len(run._kept_tables) == MOST_TABLES


def test_nothing_is_remembered_under_gradients(points):
    run = Remembering(points)
    with torch.enable_grad():
        run(torch.zeros(1, 2), torch.tensor([1.0]), None, {})
    assert not run._kept


def test_few_pictures_are_answered_by_a_copy_as_many_are():
    """The copy is made when it is first needed, of small float32 networks with convolutions alone."""
    network = pictures()
    run = Remembering(network)
    x = torch.randn(3, 1, 8, 8)
    whole = run(x, torch.tensor([0.5]), None, {})
    assert run.network_for(3) is network
    alone = torch.cat([run(row[None], torch.tensor([0.5]), None, {}) for row in x])
    assert torch.allclose(alone, whole, atol=1e-5)
    copied = run.network_for(1)
    assert copied is run.network_for(2)
    assert copied is not network
    assert copied.input_blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network.input_blocks[0][0].weight.is_contiguous()
    for other in (network.to(torch.bfloat16), shaken(ResidualMLP(width=16, blocks=1))):
        assert Remembering(other).network_for(1) is other
