"""What runs a network in its place answers as the network does; settings of the C library's allocator."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from ddib_fed.diffusion.denoiser import network_times, run_plain
from ddib_fed.models.bundle import pretrained
from ddib_fed.networks.mlp import ResidualMLP
from ddib_fed.networks.placement import MOST_LEVELS, Remembering, placed
from ddib_fed.networks.unet import UNet
from tests.diffusion.gaussian_data import merged

pytestmark = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch's compilers


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows", [None, torch.tensor([2, 0, 1, 1, 0])], ids=["one level", "rows of three levels"]
)
def test_a_compiled_network_answers_as_the_network(points, rows):
    """Of each number of rows; an answer is not overwritten by the next."""
    run, plain = placed(points, compiling=True), partial(run_plain, points)
    times = torch.tensor([0.7] if rows is None else [0.7, -2.0, 1.1])
    questions = [(torch.randn(5, 2), times, rows, {}) for _ in range(2)]
    answers = [run(*question) for question in questions]
    assert run._usable
    for question, answer in zip(questions, answers, strict=True):
        torch.testing.assert_close(answer, plain(*question), atol=1e-5, rtol=1e-5)


def test_a_network_that_cannot_be_compiled_is_called(points, monkeypatch, caplog):
    def failing(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: failing)
    run, question = placed(points, compiling=True), (torch.randn(3, 2), torch.tensor([0.7]), None, {})
    for _ in range(2):
        torch.testing.assert_close(run(*question), run_plain(points, *question))
    assert [record.getMessage() for record in caplog.records] == [
        "the network runs without torch.compile: RuntimeError: no compiler"
    ]


@pytest.mark.parametrize("domain", ["moons", "satellite"])
def test_what_is_remembered_of_a_level_changes_no_answer(domain):
    """The second call at a level, for which nothing of it is computed, answers as the first and as merged rows."""
    bundle = pretrained(domain)
    denoiser = bundle.denoiser()
    levels = bundle.schedule.levels(torch.tensor([0.5, -1.5]))
    x = torch.randn(3, *bundle.manifest.sample_shape)  # more than `FEW_ROWS`
    first = [denoiser(x, level) for level in levels]
    again = [denoiser(x, level) for level in levels]
    plain = [run_plain(denoiser.network, x, told, None, {}) for told in times_of(bundle, levels)]
    together = merged(denoiser, torch.cat([x, x]), levels, [3, 3])
    for found, same, other in zip(first, again, plain, strict=True):
        assert torch.equal(found, same)
        assert torch.equal(found, other)
    assert torch.allclose(torch.cat(first), together, atol=1e-4)


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
        torch.testing.assert_close(run(x, times, rows, {}), run_plain(network, x, times, rows, {}))


MANY_THREADS = """
import ctypes, sys, tempfile, threading
from ddib_fed.networks.placement import share_heaps
if sys.argv[1] == "shared":
    assert share_heaps()
libc, barrier = ctypes.CDLL(None), threading.Barrier(12)
libc.malloc.restype = ctypes.c_void_p
def work():
    barrier.wait()
    held = [libc.malloc(1000) for _ in range(100)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
with tempfile.NamedTemporaryFile() as file:
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    assert libc.malloc_info(0, stream) == 0
    libc.fclose(stream)
    print(open(file.name).read().count("<heap nr="))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc has arenas")
def test_threads_share_two_heaps_once_told() -> None:
    """And had one each before, so that the count means something."""

    def heaps(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MANY_THREADS, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert heaps("shared") <= 2 < heaps("plain")


def test_what_is_remembered_is_bounded_and_few_pictures_are_answered_as_many_are(points):
    run = Remembering(points)
    for step in range(MOST_LEVELS + 5):
        run(torch.zeros(1, 2), torch.tensor([float(step)]), None, {})
    assert len(run._levels) == MOST_LEVELS
    settings = {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 1}
    settings["attention_resolutions"] = ()
    run = Remembering(shaken(UNet(**settings, num_res_blocks=1, channel_mult=(1,), norm_groups=8)))
    x = torch.randn(3, 1, 8, 8)
    whole = run(x, torch.tensor([0.5]), None, {})
    alone = torch.cat([run(row[None], torch.tensor([0.5]), None, {}) for row in x])
    assert torch.allclose(alone, whole, atol=1e-5)
