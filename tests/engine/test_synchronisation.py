"""No step of a trajectory makes the host wait for the device: nothing of a tensor on it is read on the host."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.executors import CallingThread
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.stack import Trajectory
from ddib_fed.guidance import Guidance
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.units import ChannelMap
from tests.runs.tiny_models import tiny, tiny_classifier

TURN = ChannelMap(rotation=((-1.0,),))
FEW = SolverSettings("unipc", 3, 2)
CLASSY = {"num_classes": 3, "class_dropout": True}


def on_meta(bundle, **settings):
    return DomainModel(bundle, device="meta", **settings)


def legs(model, stage="encode", settings=FEW, **further):
    """Two of three and one rows, so that a batcher merges them."""
    label = further.pop("label", None)
    return [
        Trajectory(
            stage,
            torch.zeros(count, *model.sample_shape),
            settings,
            label=None if label is None else np.full(count, label),
            **further,
        )
        for count in (3, 1)
    ]


def drawn(step, rows):
    return np.zeros((rows.stop - rows.start, 1, 8, 8), np.float32)


GUIDED = {
    "plain": {},
    "rotated": {"calibration": TURN},
    "classifier-free, clipped": {"guidance": Guidance(scale=2.0, clip=True), "label": 1},
    "by a classifier": {"guidance": Guidance(classifier_scale=1.0), "label": 1},
    "stochastic": {
        "stage": "decode",
        "settings": SolverSettings("ddim", 1, 2, eta=1.0),
        "draw": drawn,
    },
}


def run(executor, trajectories):
    futures = [executor.submit(trajectory) for trajectory in trajectories]
    found = [future.result() for future in futures]
    executor.close()
    return found


@pytest.mark.parametrize("merged", [False, True], ids=["one", "merged"])
@pytest.mark.parametrize("how", GUIDED)
def test_no_step_of_pictures_reads_from_the_device(how, merged):
    bundle = tiny(**CLASSY)
    model = on_meta(bundle, classifier=tiny_classifier(3) if "by a" in how else None)
    executor = Batcher(model, rows=64) if merged else CallingThread(model, 64)
    found = run(executor, legs(model, **{"label": 0, **GUIDED[how]}))
    assert [tuple(x.shape) for x in found] == [(3, 1, 8, 8), (1, 1, 8, 8)]
    assert all(x.device.type == "meta" for x in found)


@pytest.mark.parametrize("merged", [False, True], ids=["one", "merged"])
@pytest.mark.parametrize("solver", ["unipc", "alf", "rk4", "ddim"])
def test_no_step_of_points_reads_from_the_device(solver, merged):
    model = on_meta(pretrained("moons"))
    executor = Batcher(model, rows=64) if merged else CallingThread(model, 64)
    assert len(run(executor, legs(model, settings=SolverSettings(solver, 0, 8)))) == 2


class Copies(TorchDispatchMode):
    """Counts tensors that are moved from the host to the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        copied = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
        if copied and source.device.type == "cpu" and out.device.type == "meta":
            self.count += 1
        return out


@pytest.mark.parametrize("domain", ["moons", "satellite"])
def test_a_leg_at_levels_seen_before_copies_nothing_to_the_device_but_its_rows(domain):
    """Times, embeddings and a spectrum's terms are there already; the only copy is that of x."""
    model = on_meta(pretrained(domain))
    trajectory = Trajectory("encode", torch.zeros(2, *model.sample_shape), FEW)
    executor = CallingThread(model, 64)
    executor.submit(trajectory).result()
    with Copies() as copies:
        executor.submit(trajectory).result()
    assert copies.count == 1
