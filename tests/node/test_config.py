"""node.toml: strict, with suggestions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, FileMissing
from ddib_fed.node.config import (
    MAX_SOCKET_PATH,
    EngineSection,
    LimitsSection,
    LogSection,
    NodeConfig,
    PolicySection,
    render_node_toml,
)


def write(folder: Path, **replace: str) -> Path:
    text = render_node_toml(
        institution="north.example",
        name="node-1",
        roles=("source",),
        domain="moons",
        listen="127.0.0.1:7443",
        address="localhost:7443",
    )
    for old, new in replace.items():
        text = text.replace(old.replace("__", " = "), new)
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_the_template_is_accepted_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    """What `ddib init node` writes can be read, and the state lies beside the file."""
    config = NodeConfig.load(write(tmp_path))
    assert config.node.roles == ("source",)
    assert config.paths.pki == tmp_path / "state" / "pki"


def test_every_commented_setting_can_be_switched_on(tmp_path: Path) -> None:
    """The comments in the template show settings that exist, with values that are valid."""
    path = write(tmp_path)
    lines = []
    for line in path.read_text().splitlines():
        bare = line.removeprefix("# ")
        setting = line.startswith("# ") and " = " in bare and bare.split(" = ")[0].isidentifier()
        lines.append(bare.partition("#")[0] if setting else line)
    path.write_text("\n".join(lines))
    config = NodeConfig.load(path)
    assert config.http.listen == "127.0.0.1:9464"
    assert config.limits.max_open_jobs == 64


def test_every_limit_stands_in_the_template_with_its_default(tmp_path: Path) -> None:
    """Nobody has to read the source to learn which limits there are, or what they are."""
    text = write(tmp_path).read_text()
    for section in (LimitsSection(), EngineSection(), PolicySection(), LogSection()):
        for name, value in section.model_dump(mode="json").items():
            shown = next(line for line in text.splitlines() if line.startswith(f"# {name} = "))
            assert tomllib.loads(shown.removeprefix("# "))[name] == value, name


def test_a_misspelt_key_is_named_with_the_right_one(tmp_path: Path) -> None:
    """An unknown key is refused and the nearest known one is offered."""
    with pytest.raises(ConfigError, match=r"train\.sede.*did you mean 'seed'"):
        NodeConfig.load(write(tmp_path, seed__="sede = "))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"north.example"', '"North"', "DNS name in lower case"),
        ("127.0.0.1:7443", "7443", "is not host:port"),
        ('"source"]', '"sauce"]', "source"),
        ('# listen = "127.0.0.1:9464"', 'listen = "0.0.0.0:9464"', "unencrypted"),
        ("seed = 0", 'seed = 0\ndata = "p.npy"', "not both"),
        ("[node]", "[node", "not valid TOML"),
    ],
)
def test_a_value_that_cannot_be_used_is_explained(tmp_path: Path, old: str, new: str, words: str) -> None:
    """Each bad value is refused with a sentence that says what is wanted."""
    path = write(tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        NodeConfig.load(path)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    """The error of a missing node.toml is the next command."""
    with pytest.raises(FileMissing) as caught:
        NodeConfig.load(tmp_path / "node.toml")
    assert "ddib init node" in caught.value.hint


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    """A Unix socket's path is limited to about 100 bytes; a deep folder still gets one, always the same."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    config = NodeConfig.load(write(deep))
    assert len(str(config.paths.admin_socket)) <= MAX_SOCKET_PATH
    assert config.paths.admin_socket == NodeConfig.load(deep / "node.toml").paths.admin_socket


def test_a_node_has_at_least_one_role(tmp_path: Path) -> None:
    """Without one it would serve nothing, and say SERVING."""
    with pytest.raises(ConfigError, match=r"node\.roles"):
        NodeConfig.load(write(tmp_path, **{'roles__["source"]': "roles = []"}))
