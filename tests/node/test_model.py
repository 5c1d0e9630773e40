"""A node's scene and its ways to run the network: what node.toml says is used, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError
from ddib_fed.node.config import NodeConfig, render_node_toml
from ddib_fed.node.model import load_hosted, open_engine
from tests.node.picture_examples import save_pictures_model
from tests.node.tiny_nodes import make_config, save_model


def configured(folder: Path, scene: str) -> NodeConfig:
    """A node of scans of 16 x 16 with this scene; read, not made."""
    text = render_node_toml(
        institution="north.example",
        name="node-1",
        roles=("source",),
        domain="scans",
        listen="127.0.0.1:7441",
        address="localhost:7441",
    )
    assert '# scene = "512x512"' in text
    text = text.replace('# scene = "512x512"', f'scene = "{scene}"')
    (folder / "node.toml").write_text(text)
    save_pictures_model(folder / "model", "scans", seed=1)
    return NodeConfig.load(folder / "node.toml")


def test_a_scene_is_the_size_of_the_nodes_samples(tmp_path: Path) -> None:
    bundle = load_hosted(configured(tmp_path, "20x33"))
    assert (bundle.manifest.sample_shape, bundle.tile) == ((1, 20, 33), (16, 16))


@pytest.mark.parametrize(
    ("scene", "said"), [("20x15", "smaller than the model's pictures, 16"), ("20", "no size")]
)
def test_a_scene_that_cannot_be_is_refused_with_its_text(tmp_path: Path, scene: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        load_hosted(configured(tmp_path, scene))
    assert "scene" in refused.value.detail


def test_the_executor_ray_needs_an_address(tmp_path):
    """A local cluster is started only when that is said."""
    config = make_config(tmp_path / "node", "north.example", "source", executor='"ray"')
    save_model(config)
    with pytest.raises(ConfigError, match="not where the cluster is") as caught:
        open_engine(config)
    assert "ray_address" in caught.value.hint
    with pytest.raises(ConfigError):
        make_config(tmp_path / "other", "north.example", "source", ray_address='"head"')
