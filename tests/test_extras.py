"""A package of an extra that is not installed is named, with the command that installs it."""

from __future__ import annotations

import shlex
import sys

import pytest

from ddib_fed.errors import ExtraMissing


def test_networks_of_diffusers_name_their_extra(monkeypatch):
    """A bundle with one can be read without the library, and not computed."""
    from ddib_fed.networks.build import build_network
    from ddib_fed.networks.config import DiffusersUNetConfig

    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ExtraMissing) as caught:
        build_network(
            DiffusersUNetConfig(
                image_size=8,
                block_out_channels=(32,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
            )
        )
    assert shlex.split(caught.value.hint)[1:] == ["-m", "pip", "install", "diffusers"]
