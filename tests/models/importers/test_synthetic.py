"""Public checkpoints become bundles; anything else is refused by the first tensor that differs."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.errors import BundleInvalid
from ddib_fed.models.import_guided import import_synthetic
from ddib_fed.networks.config import SyntheticConfig
from tests.models.examples import state

NETWORK = SyntheticConfig(num_channels=64, num_res_blocks=2)


@pytest.fixture
def weights():
    return state(NETWORK)


def written(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"ema": s, "model": {"other": torch.zeros(1)}},
        lambda s: {f"module.{key}": value for key, value in s.items()},
    ],
    ids=["plain", "state_dict", "model", "ema first", "DataParallel"],
)
def test_sizes_are_inferred_wherever_the_weights_lie(wrap, tmp_path, weights):
    """Channels, blocks and coordinates come from the shapes."""
    bundle = import_synthetic(written(tmp_path, wrap(weights)), domain="moons")
    assert bundle.manifest.network == NETWORK
    assert all(torch.equal(bundle.state[key], value) for key, value in weights.items())


def test_the_imported_model_is_told_integer_steps_and_predicts_eps(tmp_path, weights):
    """As the public code trained it: eps, 4,000 linear steps."""
    made = import_synthetic(written(tmp_path, weights), domain="moons").manifest
    assert (made.parameterisation, made.time_input) == ("eps", "timestep")
    assert (made.schedule.name, made.schedule.steps) == ("linear", 4000)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("middle_block.1.out_layers.3.bias"), "middle_block.1.out_layers.3.bias"),
        (lambda s: s.update({"label_emb.weight": torch.zeros(3, 64)}), "label_emb.weight"),
        (lambda s: s.update({"out.2.bias": torch.full((2,), float("nan"))}), "out.2.bias"),
        (lambda s: s.pop("input_blocks.0.0.weight"), "input_blocks.0.0.weight"),
        (
            lambda s: s.update({"input_blocks.0.0.weight": torch.zeros(64, 2, 3, 3)}),
            "input_blocks.0.0.weight",
        ),
        (lambda s: s.update({"input_blocks.0.0.weight": torch.zeros(50, 2)}), "input_blocks.0.0.weight"),
    ],
)
def test_names_the_first_tensor_that_differs(change, named, tmp_path, weights):
    """Missing, extra, of another shape, not finite, or of a picture network."""
    change(weights)
    with pytest.raises(BundleInvalid) as caught:
        import_synthetic(written(tmp_path, weights), domain="moons")
    assert named in caught.value.detail


class Payload:
    """What a hostile checkpoint would run."""

    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize("content", [Payload(), [1, 2], {}, {"state_dict": {"a": 1}}, torch.zeros(2)])
def test_refuses_what_is_no_state_dict_and_runs_nothing(content, tmp_path, capsys):
    """Only tensors are read; code in a pickle is not executed."""
    with pytest.raises(BundleInvalid):
        import_synthetic(written(tmp_path, content), domain="moons")
    assert capsys.readouterr().out == ""
