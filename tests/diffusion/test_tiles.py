"""Scenes in overlapping tiles: a tile's model is followed where it is consistent, and blended without seams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ddib_fed.diffusion.bridge import decode, encode
from ddib_fed.diffusion.denoiser import Denoiser, LevelTable, Places
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.diffusion.tiles import Tiled, starts
from ddib_fed.errors import SettingsInvalid

SCHEDULE = schedule_from_config(ScheduleConfig(name="cosine"))


class Pixelwise(nn.Module):
    """An answer that needs no neighbours: tiles agree, so a scene gets what the model says of it as a whole."""

    def forward(
        self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        told = times[0] if rows is None else times[rows][:, None, None, None]
        kind = 0.0 if y is None else y[:, None, None, None].to(x.dtype)
        return torch.tanh(x) * torch.cos(told) + kind


class OfItsMean(nn.Module):
    """An answer that hangs on the whole tile: tiles disagree. Smooth in x, as a trained network is."""

    def forward(self, x: Tensor, times: Tensor, rows: Tensor | None = None) -> Tensor:
        del times, rows
        return 0.5 * torch.tanh(x - x.mean(dim=(2, 3), keepdim=True))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(64, 64, 0.5), (65, 64, 0.5), (150, 64, 0.25), (700, 64, 0.5)]
)
def test_tiles_cover_a_side_evenly_and_overlap_by_what_was_asked(
    length: int, tile: int, overlap: float
) -> None:
    found = starts(length, tile, overlap)
    assert found[0] == 0
    assert found[-1] == length - tile
    steps = [after - before for before, after in pairwise(found)]
    assert all(0 < step <= tile * (1 - overlap) for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1


def test_a_scene_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(SettingsInvalid, match="63 pixels a side is smaller than the model's pictures, 64"):
        starts(63, 64)


def test_where_tiles_agree_a_scene_gets_the_answer_of_the_whole() -> None:
    inner = Denoiser(Pixelwise().double())
    tiled = Tiled(inner, (8, 8), (19, 30))
    x, labels = noise(3, 2, 19, 30), {"y": torch.tensor([0, 1, 2])}
    level = SCHEDULE.level(0.3)
    assert torch.allclose(tiled(x, level), inner(x, level), atol=1e-6)
    assert torch.allclose(tiled(x, level, labels), inner(x, level, labels), atol=1e-6)
    # Rows at levels of their own, as the batcher merges them.
    table = LevelTable.of([SCHEDULE.level(0.3), SCHEDULE.level(0.8)])
    places = Places.by_row(x, table, torch.tensor([1, 0, 1]))
    assert torch.allclose(tiled.at(x, places, labels), inner.at(x, places, labels), atol=1e-6)


def test_a_round_trip_of_a_scene_closes_where_tiles_disagree() -> None:
    tiled = Tiled(Denoiser(OfItsMean().double()), (8, 8), (12, 28))
    x, settings = noise(1, 1, 12, 28), SolverSettings(evaluations=48)
    latent = encode(x, tiled, SCHEDULE, settings)
    assert (latent - x).abs().max() > 0.1
    assert (decode(latent, tiled, SCHEDULE, settings) - x).abs().max() < 1e-3
