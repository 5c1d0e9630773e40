"""Averages follow the weights, are independent of them, and survive storing."""

import pytest
import torch
from torch import nn

from ddib_fed.training.trainer import Ema


@pytest.fixture
def module():
    return nn.Linear(2, 1, bias=False)


def test_averages_start_at_the_weights_and_do_not_share_their_memory(module):
    ema = Ema(module, 0.9)
    before = ema.state_dict()["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(ema.state_dict()["weight"], before)


def test_an_update_moves_by_one_minus_the_decay(module):
    ema = Ema(module, 0.9)
    before = ema.state_dict()["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    ema.update(module, 10_000)
    assert torch.allclose(ema.state_dict()["weight"], before + 0.1)


def test_the_first_updates_forget_the_start_faster(module):
    ema = Ema(module, 0.999)
    before = ema.state_dict()["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    ema.update(module, 0)
    assert torch.allclose(ema.state_dict()["weight"], before + 0.9)


def test_stored_averages_come_back(module):
    stored = {"weight": torch.full((1, 2), 7.0)}
    ema = Ema(module, 0.9)
    ema.load_state_dict(stored)
    assert torch.equal(ema.state_dict()["weight"], stored["weight"])
